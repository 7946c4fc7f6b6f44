"""Whether a server can listen where it is told to, and with which credentials.

Says why not in one line, before gRPC says so in many. Knows nothing of servers.
"""

from __future__ import annotations

import errno
import socket
import ssl
from pathlib import Path

import grpc

from outrider_runtime.errors import StartupError


def join_address(host: str, port: int) -> str:
    """Host and port as gRPC writes them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_address(host: str, port: int) -> None:
    """Tries to bind the address, and lets it go.

    Raises:
        StartupError: The port is taken or privileged, or the host is not of this machine.
    """
    # gRPC only says that binding failed, and says it in several lines on stderr. A plain socket
    # knows why.
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (socket.gaierror, UnicodeError):
        raise StartupError(f"host {host!r} cannot be resolved") from None
    except OSError as error:
        raise StartupError(_bind_failure(host, port, error)) from None


def server_credentials(
    key: Path | None, certificate: Path | None, authorities: Path | None
) -> grpc.ServerCredentials | None:
    """TLS credentials of a server; None for plaintext.

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
    key_bytes, certificate_bytes = _read(key), _read(certificate)
    authority_bytes = _read(authorities) if authorities is not None else None
    # gRPC takes anything and fails at the first handshake; OpenSSL says at once.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError):
        raise StartupError(
            f"{certificate} and {key} are not a certificate in PEM form and its private key"
        ) from None
    try:
        if authorities is not None:
            context.load_verify_locations(authorities)
    except (ssl.SSLError, OSError):
        raise StartupError(f"{authorities} does not hold certificates in PEM form") from None
    return grpc.ssl_server_credentials(
        [(key_bytes, certificate_bytes)],
        root_certificates=authority_bytes,
        require_client_auth=authority_bytes is not None,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from None


def _bind_failure(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is taken; stop what listens there or choose another port"
        case errno.EACCES:
            return f"port {port} on {host} needs privileges; choose one above 1023"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine"
        case _:
            return f"cannot listen on {join_address(host, port)}: {error.strerror}"
