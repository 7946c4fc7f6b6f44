"""A peer seen from outside: starts its process, sends workloads, reads answers and its memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import IO, Any

from benchmarks.contenders import Arrival, Outcome, Workload
from benchmarks.memory import peak_megabytes
from benchmarks.pairs.catalogue import Pair
from benchmarks.peers.engine import Setting

_TOP_P = 0.9
_START_SECONDS = 600.0
"""The first start converts the model."""
_RUN_SECONDS = 300.0


class PeerFailed(Exception):
    """A peer does not start, or fails a workload; the text is its own."""


class PeerProcess:
    """One engine with the models of a pair. A context manager: leaving it ends the process."""

    def __init__(self, engine: str, pair: Pair) -> None:
        self._command = [
            sys.executable, "-m", "benchmarks.peers.worker",
            engine, str(pair.target), str(pair.draft),
        ]  # fmt: skip
        self._log: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - __exit__
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> PeerProcess:
        """Raises PeerFailed where it does not start."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self._answer(_START_SECONDS)
        except PeerFailed:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()

    def peak_megabytes(self) -> float:
        """The most memory it ever had in use."""
        assert self._process is not None
        return peak_megabytes(self._process.pid)

    def run(self, work: Workload, setting: Setting) -> Outcome:
        """Generate all of it.

        Raises:
            PeerFailed: It could not.
        """
        message = {
            "work": {
                "prompts": [list(prompt) for prompt in work.prompts],
                "streams": work.streams,
                "new_tokens": work.new_tokens,
                "temperature": work.temperature if work.sampled else 0.0,
                "top_p": _TOP_P,
            },
            "setting": setting,
        }
        assert self._process is not None
        assert self._process.stdin is not None
        print(json.dumps(message), file=self._process.stdin, flush=True)
        answer = self._answer(_RUN_SECONDS)
        if "error" in answer:
            raise PeerFailed(answer["error"])
        token_ids = [tuple(ids) for ids, _, _ in answer["generated"]]
        return Outcome(
            sum(map(len, token_ids)),
            answer["seconds"],
            answer["accepted"] / answer["drafted"] if answer["drafted"] else 0.0,
            token_ids,
            {},
            [Arrival(first, last) for _, first, last in answer["generated"]],
        )

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(seconds, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise PeerFailed(self._last_words() or f"no answer within {seconds:g} s")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else ""


@dataclass
class Peer:
    """One way to run a peer, as a contender."""

    name: str
    process: PeerProcess
    setting: Setting

    def run(self, work: Workload) -> Outcome:
        """Generate all of it; raises PeerFailed."""
        return self.process.run(work, self.setting)
