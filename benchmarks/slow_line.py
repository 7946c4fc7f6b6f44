"""A line between two services that takes time: bytes arrive a fixed delay after they were sent.

A thread for each direction of a connection sleeps until a piece is due, which is exact to a tenth
of a millisecond; an event loop's timers are not. Knows nothing of what it carries.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from types import TracebackType

_CHUNK = 65_536


class SlowLine:
    """A TCP forwarder on loopback. A context manager: leaving it breaks all connections."""

    def __init__(self, upstream: str) -> None:
        """Lay the line.

        Args:
            upstream: `HOST:PORT` of its far end.
        """
        host, port = upstream.rsplit(":", 1)
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.delay = 0.0
        """Seconds one way; may be changed at any time."""

    @property
    def address(self) -> str:
        """`HOST:PORT` of its near end."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> SlowLine:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._upstream)
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._ends += [near, far]
                self._carry(near, far)
                self._carry(far, near)

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        on_its_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def take_in() -> None:
            data = b"..."
            while data:
                try:
                    data = source.recv(_CHUNK)
                except OSError:
                    data = b""
                on_its_way.put((time.monotonic() + self.delay, data))

        def hand_out() -> None:
            with contextlib.suppress(OSError):
                while True:
                    due, data = on_its_way.get()
                    if not data:
                        sink.shutdown(socket.SHUT_WR)
                        return
                    if (wait := due - time.monotonic()) > 0:
                        time.sleep(wait)
                    sink.sendall(data)

        for work in (take_in, hand_out):
            threading.Thread(target=work, daemon=True).start()
