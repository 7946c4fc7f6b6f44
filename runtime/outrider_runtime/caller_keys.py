"""Who may call: keys, and the names of those who have them.

A caller may have several keys at once, so that keys change without an interruption: add the new
one, let the caller change over, take the old one out. Keys are kept as digests.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from pathlib import Path

from outrider_runtime.errors import StartupError
from outrider_runtime.watched_files import WatchedFiles, read_text

THE_CALLER = "default"
"""Name of who has the one key that is not in a file."""

_MIN_KEY_LENGTH = 16
"""Of keys in a file, in characters."""

_LOOK_SECONDS = 1.0
"""How often the file is looked at, at most."""

_Digests = list[tuple[bytes, str]]


class CallerKeys:
    """All keys, of one flag and of one file."""

    def __init__(
        self,
        api_key: str | None = None,
        keys_file: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the file.

        Args:
            api_key: The key of `THE_CALLER`; None: there is none.
            keys_file: A line `NAME KEY` for each key; empty lines and those that begin with `#` say
                nothing. A name may come several times. Read again when it changes.
            clock: Seconds, from any start.

        Raises:
            StartupError: The file cannot be read or makes no sense.
        """
        self._own: _Digests = [] if api_key is None else [(_digest(api_key), THE_CALLER)]
        self._file: WatchedFiles[_Digests] | None = None
        if keys_file is not None:
            self._file = WatchedFiles([keys_file], lambda: _parse(keys_file))
        self._clock = clock
        self._looked_at = clock()

    @property
    def required(self) -> bool:
        """Whether callers need one."""
        return bool(self._own) or self._file is not None

    def name_of(self, key: str) -> str | None:
        """Whose key this is; None: nobody's. Takes as long for any key."""
        offered = _digest(key)
        found = None
        for digest, name in [*self._own, *self._in_file()]:
            if hmac.compare_digest(digest, offered):
                found = name
        return found

    def _in_file(self) -> _Digests:
        if self._file is None:
            return []
        now = self._clock()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            self._file.reread()
        return self._file.value


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _parse(path: Path) -> _Digests:
    """The keys in a file. No message quotes what may be one."""
    digests: _Digests = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise StartupError(f"{path}, line {number}: not a name and a key")
        name, key = words
        if len(key) < _MIN_KEY_LENGTH or not key.isascii():
            raise StartupError(
                f"{path}, line {number}: the key of {name} is not {_MIN_KEY_LENGTH} or more "
                "ASCII characters"
            )
        if any(digest == _digest(key) and other != name for digest, other in digests):
            raise StartupError(f"{path}, line {number}: {name} has the key of somebody else")
        digests.append((_digest(key), name))
    if not digests:
        raise StartupError(f"{path} holds no key")
    return digests
