"""Run-ahead: what the drafter adds while the target verifies is verified without a wait."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
from draft.harness import ScriptedProposer, counting
from target.batch import SPECULATION, request
from target.virtual_link import VirtualLink

WINDOW = 4

Truth = Callable[[Sequence[int]], int]
"""From a prefix to the target's own token."""


def decode(
    link: VirtualLink, truth: Truth, *, run_ahead: int, fan_out: int = 1, rounds: int = 20
) -> list[tuple[float, int, int]]:
    """Decode for some rounds; of each how long it waited, what it verified and what it accepted."""
    speculation = dataclasses.replace(
        SPECULATION, window=WINDOW, run_ahead=run_ahead, fan_out=fan_out
    )
    tokens = [0]
    asked = request(tokens, new_tokens=10_000, speculation=speculation)
    session = link.fleet.open(asked, sample_index=0, token_ids=tokens, window=WINDOW)
    link.flush()
    seen: list[tuple[float, int, int]] = []
    for _ in range(rounds):
        waited = 0.0
        if (deadline := session.waiting_until(WINDOW, link.now)) is not None:
            waited = link.run_until(
                lambda: session.waiting_until(WINDOW, link.now) is None, deadline=deadline
            )
        draft = session.proposal(WINDOW).token_ids
        link.run_for(link.round_seconds)
        decided: list[int] = []
        for proposed in [*draft, None]:
            decided.append(truth([*tokens, *decided]))
            if decided[-1] != proposed:
                break
        tokens += decided
        session.commit(decided, window=WINDOW)
        link.flush()
        seen.append((waited, len(draft), len(decided) - 1))
    assert tokens == [truth(tokens[:i]) if i else 0 for i in range(len(tokens))]
    return seen


def always_counts(prefix: Sequence[int]) -> int:
    return prefix[-1] + 1


def jumps_at_tens(prefix: Sequence[int]) -> int:
    """Counts, but leaves out what follows a multiple of ten."""
    return prefix[-1] + (2 if prefix[-1] % 10 == 0 else 1)


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.010])
def test_after_full_acceptance_the_next_round_need_not_wait(
    monkeypatch: pytest.MonkeyPatch, delay: float
) -> None:
    """As long as the steps of a window and the way there and back fit into a forward."""
    link = VirtualLink(
        monkeypatch,
        ScriptedProposer(counting),
        delay=delay,
        draft_seconds=0.002,
        round_seconds=0.030,
    )
    rounds = decode(link, always_counts, run_ahead=2 * (WINDOW + 1))
    waits = [round(waited, 9) for waited, _, _ in rounds[4:]]
    assert waits == [0.0] * len(waits)
    assert all(accepted == drafted == WINDOW for _, drafted, accepted in rounds[4:])


def test_without_run_ahead_each_round_waits_for_the_way_and_the_draft(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: the same drafter on the same line."""
    link = VirtualLink(
        monkeypatch,
        ScriptedProposer(counting),
        delay=0.005,
        draft_seconds=0.002,
        round_seconds=0.030,
    )
    rounds = decode(link, always_counts, run_ahead=0)
    assert all(accepted == WINDOW for _, _, accepted in rounds[4:])
    # Both ways, and one token a step.
    assert all(waited == pytest.approx(0.010 + WINDOW * 0.002) for waited, _, _ in rounds[4:])


def test_a_chain_that_was_corrected_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was run ahead on it does no harm, and the next draft goes on from the correction."""
    link = VirtualLink(
        monkeypatch,
        ScriptedProposer(counting),
        delay=0.005,
        draft_seconds=0.002,
        round_seconds=0.030,
    )
    rounds = decode(link, jumps_at_tens, run_ahead=2 * (WINDOW + 1), rounds=60)
    cut_short = [i for i, (_, drafted, accepted) in enumerate(rounds[:-1]) if accepted < drafted]
    assert len(cut_short) > 5
    after = [rounds[i + 1] for i in cut_short]
    assert all(accepted > 0 or drafted == 0 for _, drafted, accepted in after)
    assert sum(accepted for _, _, accepted in after) > len(after)
    waits = [waited for waited, drafted, _ in rounds if drafted]
    assert 0.0 in waits, "where it was right, nobody waited"
    assert max(waits) == pytest.approx(0.010 + WINDOW * 0.002), "where it was not, as without it"


def test_what_survived_is_verified_at_once_where_waiting_for_the_rest_does_not_pay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A drafter that is too slow to fill a window meanwhile."""
    link = VirtualLink(
        monkeypatch,
        ScriptedProposer(counting),
        delay=0.010,
        draft_seconds=0.008,
        round_seconds=0.030,
    )
    rounds = decode(link, always_counts, run_ahead=2 * WINDOW, rounds=40)
    partial = [(waited, drafted) for waited, drafted, _ in rounds[4:] if 0 < drafted < WINDOW]
    assert partial, "some rounds verify less than a window"
    assert all(waited == 0.0 for waited, _ in partial)


def test_nothing_waits_for_the_word_of_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a drafter that never answers, rounds go on at their own pace."""
    link = VirtualLink(
        monkeypatch,
        ScriptedProposer(counting),
        delay=0.005,
        draft_seconds=0.002,
        round_seconds=0.030,
        ways=lambda delay: [],
    )
    rounds = decode(link, always_counts, run_ahead=8, rounds=100)
    assert sum(waited > 0 for waited, _, _ in rounds) <= 3, "then it is taken for stalled"
