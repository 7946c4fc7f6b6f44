"""A network of namespaces: each has one address, and every packet between two of them passes here.

So lines can be slow or cut, under real TCP, on kernels that have no netem as well. Needs root.
Knows nothing of what is sent.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_SYN, _SYN_ACK = 0x02, 0x12
_NUMBERS = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """Why there can be no such network here; None when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    name = f"outrider-{os.getpid()}-try"
    try:
        run = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    except FileNotFoundError:
        return "there is no ip command"
    if run.returncode:
        return f"network namespaces are not permitted: {run.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


class Wire:
    """The network. A context manager: leaving it takes all namespaces down."""

    def __init__(self) -> None:
        self._prefix = f"outrider-{os.getpid()}-{next(_NUMBERS)}"
        self._ends: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._delays: dict[frozenset[str], float] = {}
        self._cut: set[frozenset[str]] = set()
        self.may_connect: Callable[[str, str, int], bool] = lambda source, sink, port: True
        """Whether a connection may be made from an address to a port of another."""
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK)
        self._stopping = False

    def __enter__(self) -> Wire:
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        os.write(self._woken, b".")
        self._thread.join()
        for end in (*self._ends.values(), self._wake, self._woken):
            os.close(end)
        for name in self._names.values():
            subprocess.run(["ip", "netns", "delete", name], check=True)

    def add(self, address: str) -> str:
        """Makes a namespace that has the address 10.77.0.N; returns its name."""
        name = f"{self._prefix}-{address.replace('.', '-')}"
        _ip("netns", "add", name)
        self._names[address] = name
        self._ends[address] = end = _tun_in(name)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "address", "add", f"{address}/24", "dev", "wire0")
        _ip("-n", name, "link", "set", "wire0", "up")
        self._selector.register(end, selectors.EVENT_READ)
        os.write(self._woken, b".")
        return name

    def delay(self, one: str, other: str, seconds: float) -> None:
        """Packets between two take that long each way from now on."""
        self._delays[frozenset((one, other))] = seconds

    def cut(self, one: str, other: str) -> None:
        """Packets between two are lost from now on."""
        self._cut.add(frozenset((one, other)))

    def mend(self, one: str, other: str) -> None:
        """They arrive again."""
        self._cut.discard(frozenset((one, other)))

    def _carry(self) -> None:
        order = itertools.count()
        on_their_way: list[tuple[float, int, int, bytes]] = []
        while not self._stopping:
            until = on_their_way[0][0] - time.monotonic() if on_their_way else None
            for key, _ in self._selector.select(until if until is None else max(0.0, until)):
                packet = os.read(key.fd, 65_536)
                if key.fd == self._wake or packet[0] >> 4 != 4:
                    continue
                source, sink = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
                line = frozenset((source, sink))
                if sink in self._ends and line not in self._cut and self._passes(packet):
                    due = time.monotonic() + self._delays.get(line, 0.0)
                    entry = (due, next(order), self._ends[sink], packet)
                    heapq.heappush(on_their_way, entry)
            while on_their_way and on_their_way[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(on_their_way)
                with contextlib.suppress(OSError):  # its namespace is being taken down
                    os.write(end, packet)

    def _passes(self, packet: bytes) -> bool:
        """Whether a firewall lets it through: what is of a connection that was made always is."""
        source, sink = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        port = _port_asked_for(packet)
        return port is None or self.may_connect(source, sink, port)


def _port_asked_for(packet: bytes) -> int | None:
    """The port that a packet asks a new TCP connection of; None if it does not."""
    tcp = packet[(packet[0] & 15) * 4 :]
    is_tcp, flags = packet[9] == 6, tcp[13] if len(tcp) > 13 else 0
    return int.from_bytes(tcp[2:4], "big") if is_tcp and flags & _SYN_ACK == _SYN else None


def _tun_in(namespace: str) -> int:
    """Opens an interface in a namespace: a thread of its own goes there and is gone."""
    opened: list[int | OSError] = []

    def open_there() -> None:
        try:
            with Path("/run/netns", namespace).open() as place:
                if _libc.setns(place.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            request = struct.pack("16sH", b"wire0", _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(end, _TUNSETIFF, request)
            opened.append(end)
        except OSError as error:
            opened.append(error)

    thread = threading.Thread(target=open_there)
    thread.start()
    thread.join()
    (result,) = opened
    if isinstance(result, OSError):
        raise result
    return result


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
