"""Draft services that are killed, told to go, and stopped in their tracks while they are used."""

from __future__ import annotations

import collections
import os
import random
import signal
import socket
import threading

from outrider_demo.processes import Service
from soak.traffic import MODELS


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Restarting:
    """A draft service without a model at one address, killed or told to go at random times."""

    def __init__(self, seed: int, every: tuple[float, float]) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.done: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self._chance = random.Random(seed)
        self._every = every
        self._enough = threading.Event()
        self._service = self._start()
        self._thread = threading.Thread(target=self._trouble, name="drafter-trouble")

    def begin(self) -> None:
        """Trouble begins."""
        self._thread.start()

    def settle(self) -> None:
        """No more trouble; the service is alive afterwards."""
        self._enough.set()
        self._thread.join()

    def stop(self) -> None:
        """End it."""
        self._enough.set()
        if self._thread.is_alive():
            self._thread.join()
        self._service.stop()

    def _start(self) -> Service:
        port = self.address.rpartition(":")[2]
        service = Service("outrider_draft", ["--method", "prompt-lookup", "--port", port])
        service.start()
        return service

    def _trouble(self) -> None:
        while not self._enough.wait(self._chance.uniform(*self._every)):
            what = self._chance.choice(["killed", "told to go", "stopped for a while"])
            if what == "killed":
                self._service.kill()
            elif what == "told to go":
                if status := self._service.stop():
                    self.faults.append(f"a drafter that was told to go ended with {status}")
            else:
                hang(self._service, self._enough, 3.0)
            if what != "stopped for a while":
                self._service = self._start()
            self.done[what] += 1


def hang(service: Service, enough: threading.Event, seconds: float) -> None:
    """Stop a process and let it go on later."""
    os.kill(service.pid, signal.SIGSTOP)
    try:
        enough.wait(seconds)
    finally:
        os.kill(service.pid, signal.SIGCONT)


def steady(metrics_port: int) -> Service:
    """A draft service with the shipped draft model that nobody troubles."""
    return Service(
        "outrider_draft",
        ["--model", str(MODELS / "draft"), "--threads", "1", "--metrics-port", str(metrics_port)],
    )
