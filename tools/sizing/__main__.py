"""`python -m tools.sizing`: what each number of drafters brings, and which is enough."""

from __future__ import annotations

import argparse
import dataclasses

from tools.sizing.capacity import capacity
from tools.sizing.deployment import Cost, Deployment
from tools.sizing.simulation import Simulation

ENOUGH = 0.95
"""Share of the speed with as many drafters as sequences."""


def main() -> None:
    """Print the table."""
    options = _parser().parse_args()
    one = Deployment(
        targets=options.targets,
        drafters=1,
        sequences=options.sequences,
        window=options.window,
        agreement=options.agreement,
        verify=Cost(options.verify_ms / 1e3, options.verify_ms_per_row / 1e3),
        step=Cost(options.step_ms / 1e3, options.step_ms_per_line / 1e3),
        round_trip=options.round_trip_ms / 1e3,
        max_lines=options.max_lines,
    )
    found = enough(one, at_most=options.max_drafters)
    print(f"targets: {one.targets}, sequences on each: {one.sequences}")
    print(f"plain: {one.plain:.0f} tokens/s")
    print(f"{'drafters':>8} {'tokens/s':>9} {'x plain':>8} {'model':>7} {'drafters busy':>14}")
    for drafters in range(1, found + 2):
        deployment = dataclasses.replace(one, drafters=drafters)
        simulated, expected = Simulation(deployment).run(), capacity(deployment)
        print(
            f"{drafters:8} {simulated.tokens_per_second:9.0f} "
            f"{simulated.tokens_per_second / one.plain:8.2f} "
            f"{expected.tokens_per_second:7.0f} {simulated.drafter_busy:14.0%}"
        )
    fastest = Simulation(dataclasses.replace(one, drafters=found)).run().tokens_per_second
    if fastest <= one.plain:
        print("not worth it: the targets are as fast without drafters")
    else:
        print(f"enough: {found} drafters")


def enough(one: Deployment, *, at_most: int) -> int:
    """The least number of drafters that brings nearly all that drafters can bring."""
    most = min(at_most, one.all_sequences)
    limit = Simulation(dataclasses.replace(one, drafters=most)).run().tokens_per_second
    for drafters in range(1, most):
        deployment = dataclasses.replace(one, drafters=drafters)
        if Simulation(deployment).run().tokens_per_second >= ENOUGH * limit:
            return drafters
    return most


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.sizing", description=__doc__.partition("\n")[0]
    )
    number = parser.add_argument
    number("--targets", type=_positive, default=1)
    number("--sequences", type=_positive, required=True, help="that run on each target")
    number("--window", type=_positive, default=5, help="tokens verified of a draft")
    number("--agreement", type=_share, required=True, help="acceptance rate of a token, 0 to 1")
    number("--verify-ms", type=_time, required=True, help="a round of the target, its fixed part")
    number("--verify-ms-per-row", type=_time, default=0.0, help="and what each row adds")
    number("--step-ms", type=_time, required=True, help="a step of the drafter, its fixed part")
    number("--step-ms-per-line", type=_time, default=0.0, help="and what each line adds")
    number("--round-trip-ms", type=_time, default=0.0, help="of the line between them")
    number("--max-lines", type=_positive, default=64, help="of a step of the drafter")
    number("--max-drafters", type=_positive, default=32, help="where to give up")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _time(text: str) -> float:
    if not 0 <= (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError("must be a time, 0 or more")
    return value


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return value


if __name__ == "__main__":
    main()
