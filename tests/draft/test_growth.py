"""Which sessions a step serves: windows first, the probable before the improbable, nobody never."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from outrider_conformance.target import MAX_NODES
from outrider_draft.growth import SHORT_CATCH_UP, Want, age, fan_out, plan
from outrider_draft.line import Proposed
from outrider_draft.session import Session
from outrider_draft.settings import StepSettings
from outrider_draft.updates import Opened, SessionKey, SessionRequest
from outrider_runtime.draft_tree import Limits
from outrider_runtime.sampling_parameters import SamplingParameters


def session(
    number: int,
    *log_probs: float,
    window: int = 4,
    depth: int = 16,
    waited: int = 0,
    fan_out: int = 1,
) -> Session:
    """A session whose chain has these log-probabilities."""
    request = SessionRequest(SamplingParameters(max_length=1000), num_prompt_tokens=1)
    limits = Limits(window, depth, MAX_NODES, 0.0, fan_out)
    opened = Opened(SessionKey(1, number), [1], request, limits)
    made = Session.open(opened, max_length=1000)
    made.extend(Proposed(7, log_prob) for log_prob in log_probs)
    made.waited = waited
    return made


def served(
    *wanting: tuple[Session, int], seqs: int = 64, rows: int = 512, rows_are_cheap: bool = True
) -> list[tuple[int, int]]:
    """(session, rows) in order of precedence."""
    step = StepSettings(max_num_seqs=seqs, max_num_batched_tokens=rows)
    wants = [Want(*want) for want in wanting]
    shares = plan(wants, step, rows_are_cheap=rows_are_cheap)
    return [(share.session.key.number, share.num_rows) for share in shares]


def test_whoever_is_below_the_window_precedes_run_ahead_however_probable() -> None:
    ahead = session(1, 0.0, 0.0, window=2)
    below = session(2, -9.0, window=2)
    assert served((ahead, 1), (below, 1)) == [(2, 1), (1, 1)]
    assert served((ahead, 1), (below, 1), seqs=1) == [(2, 1)]


def test_where_rows_cost_run_ahead_waits_until_all_windows_are_there() -> None:
    ahead, below = session(1, 0.0, window=1), session(2, window=1)
    assert served((ahead, 1), (below, 1), rows_are_cheap=False) == [(2, 1)]
    assert served((ahead, 1), rows_are_cheap=False) == [(1, 1)]


def test_the_most_probable_frontier_comes_first() -> None:
    a, b, c = session(1, -0.5, -0.5), session(2, -0.9), session(3)
    assert served((a, 1), (b, 1), (c, 1)) == [(3, 1), (2, 1), (1, 1)]


def test_one_long_prompt_after_the_other_shares_the_rows_and_short_ones_are_not_kept_waiting() -> (
    None
):
    long = [(session(i, waited=9 - i), 300) for i in range(3)]
    short = (session(7), SHORT_CATCH_UP)
    assert served(*long, short, rows=512) == [(0, 300), (1, 212), (7, SHORT_CATCH_UP)]


def test_guesses_beside_the_chains_shrink_with_load() -> None:
    """And windows come first, whatever guesses there are."""
    rows = StepSettings().enumeration_rows
    granted = {n: fan_out(4, n, rows) for n in (1, 2, 3, 6, 20)}
    assert granted == {1: 4, 2: 3, 3: 2, 6: 1, 20: 1}
    crowd = [session(i, window=2) for i in range(rows)]
    below, ahead = session(98, window=2), session(99, 0.0, window=1, fan_out=3)
    ahead.extend([Proposed(8, -0.1)], [Proposed(9, -0.2), Proposed(10, -0.3)])
    (first, second) = ahead.growing_sides()
    wants = [Want(ahead, 1, first), Want(ahead, 1), Want(ahead, 1, second), Want(below, 1)]
    shares = plan(wants, StepSettings(), rows_are_cheap=True)
    assert shares[0].session is below
    assert {share.side for share in shares} == {None, first, second}
    assert [share.session for share in plan(wants, StepSettings(), rows_are_cheap=False)] == [below]
    crowded = plan([*wants, *(Want(one, 1) for one in crowd)], StepSettings(), rows_are_cheap=True)
    assert all(share.side is None for share in crowded)


def test_an_improbable_frontier_is_served_in_the_end() -> None:
    """However many certain ones arrive, waiting outweighs them."""
    improbable = session(0, -20.0)
    alone = StepSettings(max_num_seqs=1)
    for step in range(1, 100):
        wanting = [Want(improbable, 1), Want(session(step), 1)]
        shares = plan(wanting, alone, rows_are_cheap=True)
        age(wanting, shares)
        if shares[0].session is improbable:
            assert step > 1
            assert improbable.waited == 0
            return
    raise AssertionError("never served")


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 2000), st.integers(0, 50)), max_size=30),
    st.integers(1, 8),
    st.integers(1, 600),
    st.booleans(),
)
def test_a_step_keeps_its_limits_and_is_never_empty_when_somebody_waits(
    wants: list[tuple[int, int, int]], seqs: int, rows: int, rows_are_cheap: bool
) -> None:
    wanting = [
        Want(session(i, *[-0.1] * depth, waited=waited), pending)
        for i, (depth, pending, waited) in enumerate(wants)
    ]
    shares = plan(
        wanting,
        StepSettings(max_num_seqs=seqs, max_num_batched_tokens=rows),
        rows_are_cheap=rows_are_cheap,
    )
    pending = {want.session.key: want.pending for want in wanting}
    assert bool(shares) == bool(wanting)
    assert len(shares) <= seqs
    assert len({share.session.key for share in shares}) == len(shares)
    assert all(1 <= share.num_rows <= pending[share.session.key] for share in shares)
    long = [s.num_rows for s in shares if pending[s.session.key] > SHORT_CATCH_UP]
    assert sum(long) <= rows
