"""`python -m tools.sizing.measure FILE`: measures real services for the model and the simulator.

Targets and drafters are the services themselves with the shipped pair; their forwards are slowed to
known times (`slowed`), so that several of them fit on one machine. The first two points say what
steps, rounds and the line between cost; all others are there to be predicted.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from outrider_client import Client, GenerationConfig, SpeculationConfig
from outrider_demo import DRAFT_DIR, TARGET_DIR, held_out_prompts
from outrider_demo.processes import Service

from benchmarks.links import MetricsPage
from tools.sizing.deployment import Cost
from tools.sizing.slowed import FLAG

WINDOW = 5
SETTLING_SECONDS, SECONDS, TRIES = 4.0, 5.0, 3
VERIFY = Cost(0.030, 0.0002)
STEP = Cost(0.005, 0.0003)
PATIENCE = 120.0


class Point(NamedTuple):
    """How many there are, and how targets wait."""

    targets: int
    drafters: int
    sequences: int
    adaptive: bool = False


ALONE, TOGETHER = Point(1, 1, 1), Point(1, 1, 8)
POINTS = (
    ALONE,
    TOGETHER,
    Point(1, 1, 4),
    Point(1, 2, 8),
    Point(2, 1, 4),
    Point(2, 1, 8),
    Point(2, 2, 8),
    Point(1, 1, 8, adaptive=True),
    Point(2, 1, 8, adaptive=True),
    Point(2, 1, 16, adaptive=True),
)


def main() -> None:
    """Measure all points, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="JSON, written")
    file: Path = parser.parse_args().file
    points = []
    for point in POINTS:
        counted = measure(point)
        points.append({**point._asdict(), **counted})
        print(point, {name: round(value, 5) for name, value in counted.items()}, flush=True)
        file.write_text(json.dumps({"window": WINDOW, "points": points}, indent=1) + "\n")


def measure(point: Point) -> dict[str, float]:
    """What the services count in the best of a few whiles: means, and tokens a second of all."""
    with ExitStack() as stack:
        pages, links = [], []
        for _ in range(point.drafters):
            service, page = _slowed("draft", STEP, ["--model", str(DRAFT_DIR)])
            pages.append(page)
            links += ["--draft", stack.enter_context(service).address]
        ending = threading.Event()
        streams = []
        for _ in range(point.targets):
            flags = ["--model", str(TARGET_DIR), "--threads", "1", *links]
            service, page = _slowed("target", VERIFY, flags)
            pages.append(page)
            address = stack.enter_context(service).address
            streams += [
                threading.Thread(target=_stream, args=(address, number, point, ending))
                for number in range(point.sequences)
            ]
        for stream in streams:
            stream.start()
        time.sleep(SETTLING_SECONDS)
        found = [_count(pages) for _ in range(TRIES)]
        ending.set()
        for stream in streams:
            stream.join(PATIENCE)
    # What else the machine does can only slow it down.
    return max(found, key=lambda counted: counted["tokens_per_second"])


def _count(pages: Sequence[MetricsPage]) -> dict[str, float]:
    began = time.monotonic()
    before = [page.read() for page in pages]
    time.sleep(SECONDS)
    seconds = time.monotonic() - began
    total: Counter[str] = Counter()
    for page, old in zip(pages, before, strict=True):
        total.update({name: value - old[name] for name, value in page.read().items()})
    speed = total["outrider_generation_tokens_total"] / seconds
    return _means(total) | {"tokens_per_second": speed}


def _means(total: Counter[str]) -> dict[str, float]:
    def mean(name: str) -> float:
        count = total[f"outrider_{name}_count"]
        return total[f"outrider_{name}_sum"] / count if count else 0.0

    links = [name for name in total if name.startswith("outrider_draft_link_answer_seconds_sum")]
    answers = sum(total[name.replace("_sum", "_count")] for name in links)
    drafts = total["outrider_spec_decode_num_drafts_total"]
    return {
        "round_seconds": mean("round_seconds"),
        "round_rows": mean("round_rows"),
        "step_seconds": mean("draft_forward_seconds"),
        "step_lines": mean("draft_step_lines"),
        "answer_seconds": mean("draft_answer_seconds"),
        "link_answer_seconds": sum(total[name] for name in links) / answers if answers else 0.0,
        "accepted_per_draft": total["outrider_spec_decode_num_accepted_tokens_total"] / drafts
        if drafts
        else 0.0,
    }


def _stream(address: str, number: int, point: Point, ending: threading.Event) -> None:
    prompts = held_out_prompts()
    config = GenerationConfig(
        max_new_tokens=400,
        min_new_tokens=400,
        num_assistant_tokens=WINDOW,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )
    speculation = SpeculationConfig(
        method="remote", pacing="adaptive" if point.adaptive else "synchronous"
    )
    with Client(address, timeout=PATIENCE) as client:
        while not ending.is_set():
            prompt = prompts[number % len(prompts)].text
            with client.stream(prompt, config, speculation=speculation) as stream:
                for _ in stream:
                    if ending.is_set():
                        return


def _slowed(role: str, cost: Cost, flags: Sequence[str]) -> tuple[Service, MetricsPage]:
    page = MetricsPage()
    words = [*flags, "--metrics-port", str(page.port), FLAG, role]
    words += [str(cost.fixed * 1e3), str(cost.per_row * 1e3)]
    return Service("tools.sizing.slowed", words), page


if __name__ == "__main__":
    main()
