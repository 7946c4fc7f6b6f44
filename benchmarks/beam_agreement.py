"""Beam search with speculation: who could guess the next beams, what rows cost, what it brings.

A step is at hand if all beams that it leads to were guessed. Steps a round are counted offline, on
plain searches; times are those of the engine without gRPC, with and without its own guesses, in
turns, in processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from outrider_demo import DRAFT_DIR, TARGET_DIR, held_out_prompts
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kernels.mode import CpuKernels
from outrider_runtime.model.loader import load
from outrider_runtime.model.ragged_runner import RaggedRunner
from transformers import AutoTokenizer

from benchmarks.beam_drafts import BeamDrafter, DraftBeams, LookupChains, OwnGuesses
from benchmarks.beam_engine import Timed, timed_search
from benchmarks.beam_trace import Step, trace

_DEPTHS = (1, 2, 3, 5)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--beams", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--json", type=Path, default=Path("build/beam_agreement.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    target, draft = _runner(TARGET_DIR), _runner(DRAFT_DIR)
    report: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "kernels": target.kernels,
        "row_costs_ms": {"target": _row_costs(target), "draft": _row_costs(draft)},
        "workloads": [],
    }
    print("rows: ms of a forward", report["row_costs_ms"])
    for name, prompts in _workloads(options.prompts).items():
        for num_beams in options.beams:
            result = _measure(target, draft, prompts, num_beams, options)
            report["workloads"].append({"name": name, "num_beams": num_beams, **result})
            print(json.dumps(report["workloads"][-1], indent=1))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {options.json}")


def _runner(folder: Path) -> RaggedRunner:
    model = load(str(folder), dtype="float32", device="cpu").model
    return RaggedRunner(model, num_blocks=1500, block_size=16, cpu_kernels=CpuKernels.AUTO)


def _workloads(number: int) -> dict[str, list[list[int]]]:
    """Held-out code, and code that was there twice and begins a third time."""
    tokenizer = AutoTokenizer.from_pretrained(TARGET_DIR)
    texts = [prompt.text for prompt in held_out_prompts()[:number]]
    return {
        "held-out": [tokenizer(text)["input_ids"] for text in texts],
        "copying": [
            tokenizer((text + "\n\n") * 2 + text[: len(text) // 3])["input_ids"] for text in texts
        ],
    }


def _row_costs(runner: RaggedRunner) -> dict[int, float]:
    """Milliseconds of a forward by rows, behind 128 tokens that all share, as beams do."""
    counts = (1, 2, 4, 6, 8, 12, 16, 24, 32)
    prompt = runner.pool.create()
    runner.forward([SequenceRows(prompt, range(5, 133), 1)])
    handles = [runner.pool.fork(prompt, 128) for _ in range(counts[-1])]
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(25):
        for count in counts:
            batch = [SequenceRows(handle, [7], 1) for handle in handles[:count]]
            started = time.process_time()
            runner.forward(batch)
            seconds[count].append(time.process_time() - started)
            for handle in handles[:count]:
                runner.pool.truncate(handle, 128)
    for handle in [prompt, *handles]:
        runner.pool.free(handle)
    return {count: round(1e3 * statistics.median(runs), 3) for count, runs in seconds.items()}


def _measure(
    target: RaggedRunner,
    draft: RaggedRunner,
    prompts: Sequence[Sequence[int]],
    num_beams: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    eos = (0,)
    searches = [
        trace(target, prompt, num_beams=num_beams, new_tokens=options.new_tokens, eos_token_ids=eos)
        for prompt in prompts
    ]
    steps = [step for search in searches for step in search]

    def searching(width: int, *, one_child: bool = False) -> Callable[..., BeamDrafter]:
        return lambda _: DraftBeams(draft, width=width, eos_token_ids=eos, one_child=one_child)

    drafters: dict[str, Callable[[Sequence[int]], BeamDrafter]] = {
        "lookup, a chain for each beam": lambda _: LookupChains(),
        "draft model, a chain for each beam": searching(num_beams, one_child=True),
        "draft model, as many beams": searching(num_beams),
        "draft model, twice as many beams": searching(2 * num_beams),
        "draft model, four times as many beams": searching(4 * num_beams),
        "its own guesses": lambda prompt: OwnGuesses(prompt, eos, options.new_tokens),
    }
    return {
        "num_steps": len(steps),
        "one_child_each": round(sum(step.one_child_each for step in steps) / len(steps), 3),
        "steps_per_round": {
            name: _steps_per_round(
                [
                    _accepted(make(prompt), search)
                    for prompt, search in zip(prompts, searches, strict=True)
                ]
            )
            for name, make in drafters.items()
        },
        "engine": _time(target, prompts, num_beams, options),
    }


def _accepted(drafter: BeamDrafter, search: Sequence[Step]) -> list[int]:
    """From each step on, how many further ones would be at hand."""
    accepted = []
    for index, step in enumerate(search):
        guess = drafter.guess(step.live, max(_DEPTHS))
        count = 0
        for texts, later in zip(guess, search[index + 1 :], strict=False):
            if not all(beam.token_ids in texts for beam in later.live):
                break
            count += 1
        accepted.append(count)
        drafter.learn(step)
    drafter.close()
    return accepted


def _steps_per_round(searches: Sequence[Sequence[int]]) -> dict[int, float]:
    """By the depth of the guesses."""
    found = {}
    for depth in _DEPTHS:
        num_rounds = 0
        for accepted in searches:
            step = 0
            while step < len(accepted):
                step += 1 + min(accepted[step], depth)
                num_rounds += 1
        found[depth] = round(sum(map(len, searches)) / num_rounds, 3)
    return found


class _Way(NamedTuple):
    """With guesses or without."""

    seconds: list[float]
    last: list[Timed]


def _time(
    target: RaggedRunner,
    prompts: Sequence[Sequence[int]],
    num_beams: int,
    options: argparse.Namespace,
) -> Mapping[str, Any]:
    """The engine's own rounds, in turns."""
    ways = {guessing: _Way([], []) for guessing in (False, True)}
    for repetition in range(options.repetitions + 1):
        for guessing, way in ways.items():
            outcomes = [
                timed_search(
                    target,
                    prompt,
                    num_beams=num_beams,
                    new_tokens=options.new_tokens,
                    guessing=guessing,
                )
                for prompt in prompts
            ]
            if repetition:  # the first one is to warm up
                way.seconds.append(sum(one.seconds for one in outcomes))
            way.last[:] = outcomes
    plain, guessed = ways[False], ways[True]
    return {
        "speed_up": round(
            statistics.median(a / b for a, b in zip(plain.seconds, guessed.seconds, strict=True)),
            3,
        ),
        "seconds_plain": [round(one, 3) for one in plain.seconds],
        "seconds_with_guesses": [round(one, 3) for one in guessed.seconds],
        "num_rounds_plain": sum(one.num_rounds for one in plain.last),
        "num_rounds_with_guesses": sum(one.num_rounds for one in guessed.last),
        "num_guessed_tokens": sum(one.num_drafted for one in guessed.last),
        "num_accepted_steps": sum(one.num_accepted for one in guessed.last),
        "same_texts": sum(
            a.token_ids == b.token_ids for a, b in zip(plain.last, guessed.last, strict=True)
        ),
        "num_texts": len(prompts),
    }


if __name__ == "__main__":
    main()
