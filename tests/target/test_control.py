"""The control, over rounds with made-up costs and chances: it never costs and finds what pays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outrider_target.drafting.pricing.control import RoundTimes
from outrider_target.drafting.pricing.rows import allot
from outrider_target.drafting.pricing.runs import RUN
from outrider_target.drafting.pricing.step_costs import MEASURED_ROWS, Measured, RowCurve, StepCosts
from target.simulated_rounds import Machine, Simulation

CHEAP = Machine()
DEAR = Machine(row=0.3, sequence=0.1, wait=0.3, token_wait=0.1, contention=0.4)
WINDOWS = (1, 2, 4, 8, 16)
ROUNDS = 1000


def useless(stream: int, now: float) -> float:
    return 0.0


def perfect(stream: int, now: float) -> float:
    return 1.0


def mixed(stream: int, now: float) -> float:
    """Code, prose, repetition, and what no drafter knows."""
    return (0.8, 0.3, 0.95, 0.05)[stream % 4]


def best_fixed(machine: Machine, num_streams: int) -> float:
    """Tokens a second of the best window that never moves, plain decoding included."""
    return max(
        Simulation(machine, mixed, window).goodput(num_streams, ROUNDS) for window in (0, *WINDOWS)
    )


@pytest.mark.parametrize("machine", [CHEAP, DEAR], ids=["cheap", "dear"])
@pytest.mark.parametrize("num_streams", [1, 4, 16])
def test_a_useless_drafter_costs_three_percent_at_most(machine: Machine, num_streams: int) -> None:
    plain = Simulation(machine, useless, fixed=0).goodput(num_streams, ROUNDS)
    controlled = Simulation(machine, useless)
    controlled.goodput(num_streams, 100)  # what it takes to find out is paid once
    assert controlled.num_asked > 0
    assert controlled.goodput(num_streams, ROUNDS) > 0.97 * plain


@pytest.mark.parametrize("num_streams", [1, 4])
def test_a_perfect_drafter_is_used_nearly_as_far_as_it_can_be(num_streams: int) -> None:
    ceiling = max(
        Simulation(CHEAP, perfect, window).goodput(num_streams, ROUNDS) for window in WINDOWS
    )
    controlled = Simulation(CHEAP, perfect)
    controlled.goodput(num_streams, 100)
    # A request's first window is small and grows.
    assert controlled.goodput(num_streams, ROUNDS) > 0.8 * ceiling


@pytest.mark.parametrize("num_streams", [4, 8])
@pytest.mark.parametrize("machine", [CHEAP, DEAR], ids=["cheap", "dear"])
def test_over_mixed_texts_no_fixed_window_is_much_better(
    machine: Machine, num_streams: int
) -> None:
    controlled = Simulation(machine, mixed)
    controlled.goodput(num_streams, 100)
    assert controlled.goodput(num_streams, ROUNDS) > 0.95 * best_fixed(machine, num_streams)


@pytest.mark.parametrize("acceptance", [useless, mixed, perfect])
def test_batches_that_grow_and_shrink_meet_no_cliff(acceptance: object) -> None:
    """Each size does as well among others as it does by itself."""
    assert callable(acceptance)
    sizes = (1, 8, 2, 16, 3, 6)
    among_others = Simulation(CHEAP, acceptance)
    plain = {n: Simulation(CHEAP, acceptance, fixed=0).goodput(n, 300) for n in sizes}
    for n in sizes:
        among_others.goodput(n, 60)
    for n in sizes:
        assert among_others.goodput(n, 120) > 0.9 * plain[n]


def test_a_drafter_that_becomes_good_is_found_again() -> None:
    useful = [0.0]
    controlled = Simulation(CHEAP, lambda stream, now: useful[0])
    controlled.goodput(4, 2500)
    asked = controlled.num_asked
    controlled.goodput(4, 1000)
    assert controlled.num_asked - asked < 0.04 * 4 * 1000, "nobody asks a useless drafter"
    useful[0] = 0.9
    controlled.goodput(4, 1500)
    plain = Simulation(CHEAP, useless, fixed=0).goodput(4, 300)
    assert controlled.goodput(4, 300) > 1.5 * plain


def test_what_was_gained_is_told_only_when_it_was_measured() -> None:
    controlled = Simulation(CHEAP, perfect)
    controlled.goodput(4, 300)
    assert controlled.control.speedup(4) is None
    measured = Simulation(CHEAP, perfect, plain_share=0.05)
    plain = Simulation(CHEAP, perfect, fixed=0).goodput(4, 300)
    goodput = measured.goodput(4, 1500)
    speedup = measured.control.speedup(4)
    assert speedup is not None
    assert speedup == pytest.approx(goodput / plain, rel=0.15)


@given(
    st.lists(st.lists(st.floats(0, 1), max_size=5), min_size=1, max_size=4),
    st.floats(0.01, 0.9),
)
def test_rows_are_shared_out_for_most_tokens_a_second(
    chances: list[list[float]], price: float
) -> None:
    survivals = [[min(draft[: i + 1]) for i in range(len(draft))] for draft in chances]

    def seconds(num_tokens: int) -> float:
        return 1 + price * num_tokens

    def goodput(counts: list[int]) -> float:
        expected = sum(1 + sum(s[:n]) for s, n in zip(survivals, counts, strict=True))
        return expected / seconds(sum(counts))

    chosen = allot(survivals, seconds)
    assert all(n <= len(draft) for n, draft in zip(chosen, survivals, strict=True))
    for index, draft in enumerate(survivals):
        for other in range(len(draft) + 1):
            varied = [*chosen[:index], other, *chosen[index + 1 :]]
            assert goodput(chosen) >= goodput(varied) - 1e-9


def test_costs_of_rows_are_learned_from_neighbours() -> None:
    """Rows cost four times what was measured at load, on a machine that slows down meanwhile."""
    costs = StepCosts(RowCurve([Measured(n, 1 + 0.05 * (n - 1)) for n in MEASURED_ROWS]))
    for number in range(400):
        rows = 4 + (0, 8, 3, 12)[number % 4]
        costs.observe(4, rows, (1 + number / 200) * (1.15 + 0.2 * (rows - 4)))
    seconds = costs.seconds(4)
    marginal = (seconds(14) - seconds(4)) / seconds(4)
    assert marginal == pytest.approx(2.0 / 1.15, rel=0.2)


def test_rounds_of_others_bring_no_trial_nearer() -> None:
    """Else whoever takes turns with requests that do not draft meets a trial at each return."""
    controlled = Simulation(CHEAP, useless)
    controlled.goodput(4, 3000)  # trials are as rare as they get
    asked = controlled.num_asked
    for _ in range(20):
        for _ in range(1000):
            controlled.control.observe(RoundTimes(4, 4, 4, 1, 0.01, 0.01, 0, False))
        controlled.goodput(4, 50)
    assert controlled.num_asked - asked <= 2 * 4 * RUN


def test_where_nobody_asks_sequences_rest_until_the_next_trial_or_a_new_kind_of_request() -> None:
    controlled = Simulation(CHEAP, useless)
    controlled.goodput(4, 1000)
    gate = controlled.control.gate
    assert gate.resting
    gate.gain_of(3)  # the first sampled request: of those nothing is known
    assert not gate.resting
    asked = controlled.num_asked
    controlled.goodput(4, 3000)
    assert controlled.num_asked > asked, "trials go on"


def test_a_drafter_that_is_of_use_leaves_no_rest() -> None:
    controlled = Simulation(CHEAP, perfect)
    controlled.goodput(4, 500)
    assert not controlled.control.gate.resting
