"""TLS on both sides of a connection, from files that may be replaced while the service runs.

Says what is wrong with a file in one line, before gRPC says it in many.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc

from outrider_runtime.errors import StartupError
from outrider_runtime.watched_files import WatchedFiles


def server_credentials(
    key: Path | None, certificate: Path | None, authorities: Path | None
) -> grpc.ServerCredentials | None:
    """TLS credentials of a server; None for plaintext. Files that change are in force at once.

    Args:
        key: Private key, PEM.
        certificate: Certificate chain, PEM.
        authorities: Authorities of client certificates, PEM. When given, clients must have one.

    Raises:
        StartupError: One of key and certificate is missing, or a file is not what it should be.
    """
    if key is None and certificate is None:
        if authorities is not None:
            raise StartupError("--ssl-ca-certs needs --ssl-keyfile and --ssl-certfile")
        return None
    if key is None or certificate is None:
        raise StartupError("--ssl-keyfile and --ssl-certfile go together")

    def read() -> grpc.ServerCertificateConfiguration:
        pair = _pair(key, certificate)
        return grpc.ssl_server_certificate_configuration([pair], _authorities(authorities))

    paths = [path for path in (key, certificate, authorities) if path is not None]
    files = WatchedFiles(paths, read)

    def changed() -> Any:  # grpc's own None for "as before" is missing in its types
        return files.value if files.reread() else None

    return grpc.dynamic_ssl_server_credentials(
        files.value,
        changed,  # asked at each handshake
        require_client_authentication=authorities is not None,
    )


class ChannelCertificates:
    """TLS credentials of a client that connects again and again, as its files are at the time."""

    def __init__(self, authorities: Path, key: Path | None, certificate: Path | None) -> None:
        """Read the files.

        Args:
            authorities: Authorities of server certificates, PEM.
            key: The client's own private key, PEM, where servers ask for a certificate.
            certificate: The client's own certificate chain, PEM.

        Raises:
            StartupError: One of key and certificate is missing, or a file is not what it should be.
        """

        def read() -> grpc.ChannelCredentials:
            if key is None or certificate is None:
                return grpc.ssl_channel_credentials(_authorities(authorities))
            return grpc.ssl_channel_credentials(_authorities(authorities), *_pair(key, certificate))

        if (key is None) != (certificate is None):
            raise StartupError("a client's key and its certificate go together")
        paths = [path for path in (authorities, key, certificate) if path is not None]
        self._files = WatchedFiles(paths, read)

    def credentials(self) -> grpc.ChannelCredentials:
        """For the next connection."""
        self._files.reread()
        return self._files.value


def _pair(key: Path, certificate: Path) -> tuple[bytes, bytes]:
    """Key and chain, which belong together."""
    key_bytes, certificate_bytes = _read(key), _read(certificate)
    # gRPC takes anything and fails at the first handshake; OpenSSL says at once.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError):
        raise StartupError(
            f"{certificate} and {key} are not a certificate in PEM form and its private key"
        ) from None
    return key_bytes, certificate_bytes


def _authorities(path: Path | None) -> bytes | None:
    if path is None:
        return None
    read = _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (ssl.SSLError, OSError):
        raise StartupError(f"{path} does not hold certificates in PEM form") from None
    return read


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from None
