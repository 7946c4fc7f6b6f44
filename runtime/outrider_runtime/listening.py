"""Whether a server can listen where it is told to, and whether it should.

Says why not in one line, before gRPC says so in many. Knows nothing of servers.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

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


def check_exposure(host: str, *, encrypted: bool, insecure: bool) -> None:
    """Refuses to listen to other machines in the clear, unless that is meant.

    Raises:
        StartupError: It is neither meant nor harmless.
    """
    if encrypted or insecure or _is_loopback(host):
        return
    raise StartupError(
        f"{host} is not a loopback address, and without TLS texts and keys would cross the network "
        "in the clear; give --ssl-keyfile and --ssl-certfile, or --insecure if that is meant"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
