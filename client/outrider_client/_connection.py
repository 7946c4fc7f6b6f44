"""Where the server is and how to reach it: address, credentials, channel options, metadata.

Opens no channel itself: the synchronous and the asyncio client do, each its own kind.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import grpc
from outrider_contract.metadata import AUTHORIZATION, BEARER_PREFIX, REQUEST_ID

ChannelOption = tuple[str, str | int]

_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
_OPTIONS: tuple[ChannelOption, ...] = (
    # A name with several addresses is a fleet: spread requests over it.
    ("grpc.service_config", _SERVICE_CONFIG),
    # A dead connection is noticed while a stream waits for tokens. Servers refuse faster pings.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A server that restarts is found again before the retries are used up.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


@dataclass(frozen=True, slots=True)
class TLSConfig:
    """Certificates for an encrypted connection, as paths of PEM files.

    `TLSConfig()` trusts the certificate authorities that gRPC ships.
    """

    ca: str | Path | None = None
    """Certificate authorities to trust."""

    cert: str | Path | None = None
    """The client's own certificate chain, where the server asks for one."""

    key: str | Path | None = None
    """Private key of `cert`."""

    server_name: str | None = None
    """Name to expect in the server's certificate, when it differs from the address."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("TLSConfig: cert and key belong together, got only one of them")


@dataclass(frozen=True, slots=True, repr=False)
class Connection:
    """Everything it takes to open a channel and to make a call on it."""

    address: str
    credentials: grpc.ChannelCredentials | None
    options: tuple[ChannelOption, ...]
    authorization: str | None

    @classmethod
    def to(
        cls,
        address: str,
        *,
        api_key: str | None,
        tls: TLSConfig | None,
        options: Sequence[ChannelOption],
    ) -> Connection:
        """Checks the arguments of a client and reads the certificates.

        Raises:
            ValueError: The address or the API key cannot be one.
            OSError: A certificate cannot be read.
        """
        if not isinstance(address, str) or not address.strip() or not address.isprintable():
            raise ValueError(f"address: must be like 'localhost:50051', got {address!r}")
        if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable()):
            raise ValueError("api_key: must be printable ASCII characters, at least one")
        every = [*_OPTIONS, ("grpc.primary_user_agent", f"outrider-client/{_version()}")]
        if tls is not None and tls.server_name is not None:
            every.append(("grpc.ssl_target_name_override", tls.server_name))
        return cls(
            address=address,
            credentials=None if tls is None else _credentials(tls),
            options=(*every, *options),
            authorization=None if api_key is None else BEARER_PREFIX + api_key,
        )

    def metadata(self, request_id: str) -> tuple[tuple[str, str], ...]:
        """The metadata of one call."""
        named = ((REQUEST_ID, request_id),)
        if self.authorization is None:
            return named
        return (*named, (AUTHORIZATION, self.authorization))


def _credentials(tls: TLSConfig) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca),
        private_key=_read(tls.key),
        certificate_chain=_read(tls.cert),
    )


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _version() -> str:
    try:
        return version("outrider")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"
