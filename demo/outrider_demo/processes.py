"""Services as child processes: started on free loopback ports, stopped cleanly.

Used by the demo, the benchmarks and the tests that need whole processes.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import IO

_STOP_SECONDS = 20.0


class ServiceFailed(Exception):
    """A service ended before it served; the text is what it said."""


class Service:
    """One service in a process of its own. A context manager: leaving it stops the process."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        """Describe a service.

        Args:
            module: Its package, such as `outrider_target`.
            arguments: Its flags; `--host` and `--port` are added, a free port on loopback.
        """
        self._command = [
            sys.executable, "-m", module, "--host", "127.0.0.1", "--port", "0", *arguments,
        ]  # fmt: skip
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None
        self.address = ""
        """`HOST:PORT`, once it serves."""
        self.announcement = ""
        """The line it printed when it began to serve."""

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, timeout: float = 120.0) -> None:
        """Start the process and wait until it serves.

        Raises:
            ServiceFailed: It ended, or said nothing in time.
        """
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by stop
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self._process.stdout is not None
        watchdog = threading.Timer(timeout, self._process.kill)
        watchdog.start()
        try:
            self.announcement = self._process.stdout.readline().strip()
        finally:
            watchdog.cancel()
        match = re.search(r"(127\.0\.0\.1:\d+)", self.announcement)
        if match is None:
            self._process.kill()
            self._process.wait()
            raise ServiceFailed(self.log().strip() or f"no answer within {timeout:g} s")
        self.address = match[1]

    def stop(self) -> int:
        """Ask the process to end, and see that it does; returns its exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._reap()

    def kill(self) -> None:
        """End the process without warning."""
        assert self._process is not None
        self._process.kill()
        self._reap()

    def log(self) -> str:
        """What it logged so far."""
        if self._log is None or self._log.closed:
            return ""
        self._log.seek(0)
        return self._log.read()

    def _reap(self) -> int:
        assert self._process is not None
        status = self._process.wait(_STOP_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._log is not None:
            self._log.close()
        return status
