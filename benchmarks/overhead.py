"""Time of a round outside the model's forward pass: `python -m benchmarks.overhead`.

A target service in a process of its own, with a clock in its engine thread: from the end of one
round to the end of the next, less the time within the model. Processor time of that thread beside
wall time, which also holds what the thread waited for: the interpreter's lock, and a busy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from outrider_client import Client, GenerationConfig, SpeculationConfig
from outrider_demo import DRAFT_DIR, TARGET_DIR, held_out_prompts
from outrider_demo.processes import Service
from outrider_runtime.model.batch import RaggedBatch, SequenceRows
from outrider_runtime.model.compiled.step import CompiledStep
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.model.runner import GreedySteps
from outrider_target import __main__ as command
from outrider_target.engine.round import Rounds

COMPILED = ("--compile", "on")
"""Compiled before it serves: compiling beside it would be measured as well."""
_FLAG = "--timings"
_MODULE = "benchmarks.overhead"
_WARM_UP = 10  # rounds of a wave that are not counted: prompts are read


class Round(NamedTuple):
    """What a round took, in seconds, wall time and processor time of the engine thread.

    Of several steps in one go each counts as a round of its own.
    """

    num_rows: int
    cycle: float
    forward: float
    """The model and what is laid out for it: what a bare loop of forwards takes, or where steps are
    done in one go, a loop of these without anything around it."""
    model: float
    cycle_cpu: float
    model_cpu: float


class Overhead(NamedTuple):
    """Medians over the rounds of one setting, in milliseconds."""

    streams: int
    drafts: bool
    num_rounds: int
    rows: float
    model_ms: float
    outside_ms: float
    """What a round takes beside the model."""
    outside_cpu_ms: float
    """The engine thread's own work in it."""
    over_bare_loop: float
    """What a round takes over what its forward does."""
    waited: float
    """Share of rounds that waited, for a draft or for the processor, more than they worked."""


def measure_overhead(
    streams: int,
    *,
    drafts: bool,
    model: Path = TARGET_DIR,
    draft: Path = DRAFT_DIR,
    new_tokens: int = 64,
    flags: Sequence[str] = COMPILED,
) -> Overhead:
    """Serve so many streams at a time, plainly or with a draft service, and time the rounds."""
    prompts = [prompt.text for prompt in held_out_prompts()]
    prompts = (prompts * streams)[: max(8, 2 * streams)]
    with ExitStack() as stack:
        timings = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "rounds.json"
        arguments = ["--model", str(model), "--max-num-seqs", str(max(16, streams)), *flags]
        if drafts:
            drafter = Service("outrider_draft", ["--model", str(draft), *COMPILED])
            stack.enter_context(drafter)
            arguments += ["--draft", drafter.address]
        target = Service(_MODULE, [*arguments, _FLAG, str(timings)])
        stack.enter_context(target)
        client = stack.enter_context(Client(target.address))
        speculation = SpeculationConfig() if drafts else SpeculationConfig(enabled=False)
        config = GenerationConfig(max_new_tokens=new_tokens)

        def one(prompt: str) -> None:
            client.generate(prompt, config, speculation=speculation, timeout=300)

        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(one, prompts))
        target.stop()
        rounds = [Round(*values) for values in json.loads(timings.read_text())]
    return _summary(rounds, streams=streams, drafts=drafts)


def _summary(rounds: Sequence[Round], *, streams: int, drafts: bool) -> Overhead:
    full = [one for one in rounds if streams <= one.num_rows <= 17 * streams][_WARM_UP:]

    def middle(values: Sequence[float]) -> float:
        return 1e3 * statistics.median(values)

    return Overhead(
        streams=streams,
        drafts=drafts,
        num_rounds=len(full),
        rows=statistics.mean(one.num_rows for one in full),
        model_ms=middle([one.model for one in full]),
        outside_ms=middle([one.cycle - one.model for one in full]),
        outside_cpu_ms=middle([one.cycle_cpu - one.model_cpu for one in full]),
        over_bare_loop=middle([one.cycle for one in full]) / middle([one.forward for one in full]),
        waited=statistics.mean(one.cycle > 2 * one.cycle_cpu for one in full),
    )


def main() -> None:
    """Print a line for each number of streams, plain and with drafts."""
    if _FLAG in sys.argv:
        serve_timed()
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--model", type=Path, default=TARGET_DIR)
    parser.add_argument("--draft", type=Path, default=DRAFT_DIR)
    parser.add_argument("--flags", default=" ".join(COMPILED), help="further flags of the target")
    options = parser.parse_args()
    for streams in options.streams:
        for drafts in (False, True):
            found = measure_overhead(
                streams,
                drafts=drafts,
                model=options.model,
                draft=options.draft,
                flags=options.flags.split(),
            )
            print(json.dumps(found._asdict()), flush=True)


def serve_timed() -> None:
    """Serve as `outrider-target` does, timing rounds; `--timings FILE` is written at the end."""
    place = sys.argv.index(_FLAG)
    file = Path(sys.argv[place + 1])
    del sys.argv[place : place + 2]
    rounds: list[Round] = []
    clock = _Clock(rounds)
    run, forward, step = RaggedRunner._run, RaggedRunner.forward, Rounds.step
    forward_greedily, run_greedily = RaggedRunner.forward_greedily, CompiledStep.run_greedily

    def timed_run(self: RaggedRunner, batch: RaggedBatch, *others: Any) -> torch.Tensor:
        with clock.in_model(batch.num_rows):
            return run(self, batch, *others)

    def timed_run_greedily(self: CompiledStep, inputs: list[torch.Tensor], *others: Any) -> Any:
        with clock.in_model(inputs[0].shape[1]):
            return run_greedily(self, inputs, *others)

    def timed_forward(self: RaggedRunner, *args: Any, **options: Any) -> torch.Tensor:
        with clock.in_forward(num_steps=1):
            return forward(self, *args, **options)

    def timed_forward_greedily(
        self: RaggedRunner, batch: Sequence[SequenceRows], num_steps: int, **options: Any
    ) -> GreedySteps | None:
        with clock.in_forward(num_steps=num_steps):
            return forward_greedily(self, batch, num_steps, **options)

    def timed_step(self: Rounds, **options: Any) -> float | None:
        come_back_at = step(self, **options)
        clock.round_ended()
        return come_back_at

    with (
        mock.patch.object(RaggedRunner, "_run", timed_run),
        mock.patch.object(CompiledStep, "run_greedily", timed_run_greedily),
        mock.patch.object(RaggedRunner, "forward", timed_forward),
        mock.patch.object(RaggedRunner, "forward_greedily", timed_forward_greedily),
        mock.patch.object(Rounds, "step", timed_step),
    ):
        try:
            command.main()
        finally:
            file.write_text(json.dumps(rounds))


class _Clock:
    """Adds up a round's time, in the engine thread."""

    def __init__(self, rounds: list[Round]) -> None:
        self._rounds = rounds
        self._forward = 0.0
        self._num_steps = 1
        self._began = (0.0, 0.0)
        self._model = (0.0, 0.0)
        self._num_rows = 0

    @contextmanager
    def in_model(self, num_rows: int) -> Iterator[None]:
        self._num_rows = num_rows
        entered = _now()
        yield
        now = _now()
        self._model = (now[0] - entered[0], now[1] - entered[1])

    @contextmanager
    def in_forward(self, *, num_steps: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._forward, self._num_steps = time.perf_counter() - began, num_steps

    def round_ended(self) -> None:
        if self._model == (0.0, 0.0):
            return  # nothing ran
        now = _now()
        wall, cpu = now[0] - self._began[0], now[1] - self._began[1]
        model, model_cpu = self._model
        steps = self._num_steps
        seconds = (wall, self._forward, model, cpu, model_cpu)
        self._rounds += [Round(self._num_rows, *(each / steps for each in seconds))] * steps
        self._model = (0.0, 0.0)
        self._began = now


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


if __name__ == "__main__":
    main()
