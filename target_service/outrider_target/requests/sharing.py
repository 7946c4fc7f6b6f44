"""Among whom outputs are remembered for drafting: those who may see each other's text.

A caller is known by its key or certificate. Drafts show in the speed at which an answer comes, so
what one caller wrote must not be drafted to another: different callers, or different salts, are
different tenants. On a server that asks for no credentials all callers are one tenant, unless they
send salts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from outrider_runtime.errors import InvalidRequest

MAX_SALT_BYTES = 256

_SIZE = 16


@dataclass(frozen=True, slots=True)
class Sharing:
    """The caller of a request."""

    caller: str | None
    """Its name, empty when nobody asked for one; None: it shares nothing."""

    def tenant(self, salt: str) -> bytes:
        """An opaque name, the same on every server with the same keys.

        Raises:
            InvalidRequest: The salt is too long.
        """
        salted = salt.encode()
        if len(salted) > MAX_SALT_BYTES:
            raise InvalidRequest(
                "speculation.cache_salt", f"has {len(salted)} bytes; at most {MAX_SALT_BYTES}"
            )
        if self.caller is None:
            return b""
        # Both parts have a fixed length: no salt can be taken for another caller.
        parts = hashlib.sha256(self.caller.encode()).digest() + hashlib.sha256(salted).digest()
        return hashlib.blake2b(parts, digest_size=_SIZE, person=b"outrider-tenant").digest()


NOBODY = Sharing(None)
