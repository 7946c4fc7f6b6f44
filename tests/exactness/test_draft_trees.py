"""Growth policies and tree shapes change nothing: guesses beside drafts, verified or only kept."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest
from draft.harness import RunningDrafter
from exactness.link_proxy import Death, Dies, Response, Script, link_proxy
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import ModelPair
from exactness.option_mixes import Case, cases
from exactness.running import (
    PLAIN,
    RunningTarget,
    num_accepted,
    num_drafted,
    outcome,
    target,
)
from outrider_client import Completion, SpeculationConfig

GROWTH = [
    pytest.param(SpeculationConfig(run_ahead=8), id="run-ahead"),
    pytest.param(SpeculationConfig(run_ahead=8, draft_fan_out=3), id="enumeration"),
    pytest.param(SpeculationConfig(run_ahead=8, draft_fan_out=3, draft_tree_rows=16), id="tree"),
    pytest.param(SpeculationConfig(draft_fan_out=4, draft_tree_rows=32), id="wide-tree"),
]

Work = list[tuple[Case, object]]


@pytest.fixture(scope="module")
def work(threads: ServiceThreads, pair: ModelPair) -> Work:
    """Cases and what plain decoding makes of each alone."""
    drawn = cases(16, seed=11)
    with target(threads, pair.target) as running:
        plain = [running.generate(case.request, PLAIN) for case in drawn]
    assert num_drafted(plain) == 0
    return [(case, outcome(completion)) for case, completion in zip(drawn, plain, strict=True)]


def serve(
    running: RunningTarget, work: Work, speculation: SpeculationConfig
) -> Sequence[Completion]:
    completions = running.generate_together([case.request for case, _ in work], speculation)
    for (case, plain), completion in zip(work, completions, strict=True):
        assert outcome(completion) == plain, case
    running.assert_nothing_left()
    return completions


@pytest.mark.parametrize("speculation", GROWTH)
def test_growth_changes_nothing(
    drafted_target: RunningTarget, work: Work, speculation: SpeculationConfig
) -> None:
    completions = serve(drafted_target, work, speculation)
    assert 0 < num_accepted(completions) < num_drafted(completions)


class Troubled(Script):
    """Frames are late, and the link is cut after some of them."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self._held: list[Response] = []
        self._left = chance.randint(8, 40)

    def response(self, frame: Response) -> Iterable[Response]:
        self._left -= 1
        if self._left == 0:
            raise Dies(Death.CUT)
        if frame.HasField("welcome"):
            return [frame]
        self._held.append(frame)
        if self._chance.random() < 0.4:
            return []  # until another one comes
        held, self._held = self._held, []
        return held


@pytest.mark.parametrize("speculation", GROWTH[1:3])
def test_late_frames_and_cut_links_change_nothing(
    threads: ServiceThreads,
    pair: ModelPair,
    model_draft: RunningDrafter,
    work: Work,
    speculation: SpeculationConfig,
) -> None:
    chance = random.Random(3)
    with (
        threads.drafters.entered(
            link_proxy(model_draft.address, lambda _: Troubled(chance))
        ) as proxy,
        target(threads, pair.target, drafts=[proxy.address]) as running,
    ):
        completions = serve(running, work, speculation)
        assert len(proxy.links) > 1
    assert num_drafted(completions) > 0
