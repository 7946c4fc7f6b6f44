"""Which sequences run, and what each round computes for them. Knows nothing of models or gRPC.

Callers take turns; of a caller's own the first come is first served. A waiting sequence is admitted
when the KV pool has room for all of its tokens; a running one that needs a block when none is left
makes the youngest give up its own. That one is fed again later and continues with the same text,
because noise is keyed by position.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kv_pool import KVPool

from outrider_target.decoding.strategy import Rows
from outrider_target.drafting.drafter import NO_DRAFT, Draft
from outrider_target.drafting.pricing.control import Control
from outrider_target.drafting.remote.patience import RoundPace
from outrider_target.engine.branch_places import BranchPlaces
from outrider_target.engine.prefixes import PrefixNames
from outrider_target.engine.sequence import RequestState, Sequence
from outrider_target.engine.turns import Turns

_LINGER = 0.5
"""Share of a round that a ready sequence waits for others whose drafts are still on their way."""


class Work(NamedTuple):
    """A sequence's part of a round.

    Attributes:
        sequence: The sequence.
        feeds: Tokens to feed, branch by branch.
        rows: What is wanted from their logits; None for a prefill chunk that is not the last.
        draft: The draft.
    """

    sequence: Sequence
    feeds: SequenceOf[SequenceRows]
    rows: Rows | None
    draft: Draft


class Plan(NamedTuple):
    """A round, or until when there is none.

    Attributes:
        work: What to compute. Empty when nothing is ready.
        wait_until: When to plan again at the latest; None when only a new event can help.
        faults: Sequences whose own strategy or drafter failed to say what to compute, and how.
    """

    work: list[Work]
    wait_until: float | None
    faults: SequenceOf[tuple[Sequence, Exception]] = ()


@dataclass(slots=True)
class PrefixCacheCounters:
    """What the prefix cache was asked for and had. Read by any thread."""

    num_query_tokens: int = 0
    num_hit_tokens: int = 0

    def observe(self, num_query_tokens: int, num_hit_tokens: int) -> None:
        """Count a sequence that was placed."""
        self.num_query_tokens += num_query_tokens
        self.num_hit_tokens += num_hit_tokens


class Scheduler:
    """The running batch and the queue before it."""

    def __init__(
        self,
        pool: KVPool,
        round_pace: RoundPace,
        *,
        max_num_seqs: int,
        max_batched_tokens: int,
        control: Control | None = None,
        prefix_caching: bool = True,
    ) -> None:
        self._pool = pool
        self._places = BranchPlaces(pool, PrefixNames(pool.block_size, enabled=prefix_caching))
        self._round_pace = round_pace
        self._control = control or Control()
        self._drafts: dict[Sequence, Draft] = {}  # of the round, as far as they pay
        self._max_num_seqs = max_num_seqs
        self._max_batched_tokens = max_batched_tokens
        self._turns = Turns()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.prefix_cache = PrefixCacheCounters()
        self._ready_since: float | None = None  # when a round could have begun

    @property
    def num_free_blocks(self) -> int:
        """Blocks of the KV pool that no sequence holds."""
        return self._pool.num_free_blocks

    @property
    def num_waiting_requests(self) -> int:
        """Requests none of whose sequences was ever admitted. Any thread."""
        return len({s.state for s in tuple(self.waiting) if s.state.admitted_at is None})

    @property
    def waiting_since(self) -> float | None:
        """When the request arrived that has waited longest for admission; None: none waits.

        By `time.monotonic()`. Any thread.
        """
        arrivals = [s.state.arrived_at for s in tuple(self.waiting) if s.state.admitted_at is None]
        return min(arrivals, default=None)

    def submit(self, state: RequestState) -> None:
        """Put a request's sequences at the end of the queue."""
        self.waiting.extend(state.sequences)

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._places.free(sequence.branches)

    def follow(self, sequence: Sequence) -> None:
        """Let the KV pool follow what the sequence's strategy committed."""
        held, wanted = sequence.branches, sequence.strategy.branches
        if wanted is not held:
            sequence.branches = (*held, *wanted)  # whatever happens, what is placed is known
        self._places.follow(held, wanted, scope=sequence.request.speculation.tenant)
        sequence.branches = wanted

    def admit(self, now: float) -> list[Sequence]:
        """Move sequences from the queue into the batch while there is room; returns them."""
        admitted: list[Sequence] = []
        if not self.waiting:
            return admitted
        available = self._pool.num_free_blocks - self._promised_blocks()
        places = self._max_num_seqs - sum(s.strategy.width for s in self.running)
        if places <= 0 and self.running:
            return admitted
        for sequence in self._turns.order(tuple(self.waiting), tuple(self.running)):
            width = sequence.strategy.width
            if width > places and self.running:
                break
            source = self._fork_source(sequence)
            if source is not None and not self._places.prefilled(source.branches):
                places -= width  # its turn comes with its source's blocks: they hold its prompt
                continue
            needed = self._blocks_for(sequence, shared=source is not None)
            if needed > available and self.running:
                break  # nobody overtakes whose turn it is
            available -= needed
            places -= width
            self._place(sequence, source)
            if sequence.state.admitted_at is None:
                sequence.state.admitted_at = now
            admitted.append(sequence)
        return admitted

    def plan(self, now: float) -> Plan:
        """Compose a round from the sequences that are ready."""
        ready, deadlines = self._split_by_readiness(now)
        if not ready:
            self._ready_since = None
            return Plan([], min(deadlines, default=None))
        if deadlines and (until := self._linger_until(ready, min(deadlines), now)) is not None:
            return Plan([], until)
        self._ready_since = None
        self._drafts = self._paying(ready)
        faults: list[tuple[Sequence, Exception]] = []
        return Plan(list(self._compose(ready, faults)), None, faults)

    def without_draft(self, work: Work) -> Work:
        """The same sequence's part of the round as if nothing had been proposed."""
        return self._verification(work.sequence, NO_DRAFT)

    def _split_by_readiness(self, now: float) -> tuple[list[Sequence], list[float]]:
        """Sequences that can run now, and until when the others wait for their drafters."""
        ready: list[Sequence] = []
        deadlines: list[float] = []
        for sequence in self.running:
            assert sequence.session is not None
            deadline = sequence.session.waiting_until(sequence.next_window, now)
            if deadline is None:
                ready.append(sequence)
            else:
                deadlines.append(deadline)
        return ready, deadlines

    def _linger_until(
        self, ready: list[Sequence], first_deadline: float, now: float
    ) -> float | None:
        """Until when to hold a round back so that more drafts can join it; None to go now.

        A larger batch costs little more than a small one, so waiting a fraction of a round for a
        draft that is on its way pays; but nobody who does not speculate waits for those who do, nor
        does a first token.
        """
        for sequence in ready:
            assert sequence.session is not None
            if sequence.request.is_replay:
                continue  # nobody waits for it
            if not sequence.session.active or not self._places.prefilled(sequence.branches):
                return None
        if self._ready_since is None:
            self._ready_since = now
        until = min(first_deadline, self._ready_since + _LINGER * self._round_pace.seconds)
        return until if until > now else None

    def _compose(
        self, ready: list[Sequence], faults: list[tuple[Sequence, Exception]]
    ) -> Iterator[Work]:
        """Give each sequence its rows, oldest first, within the budgets of rows and blocks."""
        budget = self._max_batched_tokens
        reserved = 0
        for sequence in ready:
            if not sequence.placed:
                continue  # preempted by an older one a moment ago
            if budget <= 0:
                break
            try:
                work = self._work(sequence, budget)
            except Exception as fault:  # the others' rounds go on
                faults.append((sequence, fault))
                continue
            needed = self._reserve(work, reserved)
            if needed is None and work.draft.token_ids:
                work, needed = self._shortened(work, reserved)
            while needed is None:
                victim = self.running[-1]
                self._preempt(victim)
                if victim is sequence:
                    break
                needed = self._reserve(work, reserved)
            if needed is None:
                continue
            reserved += needed
            budget -= sum(len(feed.token_ids) for feed in work.feeds)
            yield work

    def _paying(self, ready: list[Sequence]) -> dict[Sequence, Draft]:
        """Drafts as far as they pay, of the sequences that leave that to measured costs."""
        offering: list[Sequence] = []
        for sequence in ready:
            sequence.offered = NO_DRAFT
            if sequence.controlled and self._places.prefilled(sequence.branches):
                with suppress(Exception):  # its own part of the round will meet it again
                    sequence.offered = self._draft(sequence, sequence.next_window)
                    offering.append(sequence)
        if not any(sequence.offered.token_ids for sequence in offering):
            return {}
        allotted = self._control.allot([s.calibration.survival(s.offered) for s in offering])
        for sequence, count in zip(offering, allotted, strict=True):
            if count < len(sequence.offered.token_ids) and not self._control.plain:
                sequence.window.cut_to(count)
        return {s: s.offered.cut(count) for s, count in zip(offering, allotted, strict=True)}

    def _work(self, sequence: Sequence, budget: int) -> Work:
        branches = sequence.branches
        pending = self._places.num_pending(branches)
        most = min(budget, sequence.request.prefill_chunk_size or budget)
        # Where nothing but last tokens is left, all of them go, even beyond the budget.
        if pending is None or pending > max(most, len(branches)):
            return Work(sequence, self._places.chunks(branches, most), None, NO_DRAFT)
        window = min(sequence.next_window, (budget - pending) // len(branches))
        if window <= 0:
            return self._verification(sequence, NO_DRAFT)
        if (paying := self._drafts.get(sequence)) is not None:
            return self._verification(sequence, paying.cut(window))
        return self._verification(sequence, self._draft(sequence, window))

    def _verification(self, sequence: Sequence, draft: Draft) -> Work:
        strategy = sequence.strategy
        if draft.others and not strategy.verifies_others:
            draft = draft._replace(others=())
        rows = strategy.rows(draft)
        return Work(sequence, self._places.feeds(sequence.branches, rows.branches), rows, draft)

    def _draft(self, sequence: Sequence, window: int) -> Draft:
        """What its drafter proposes, as far as it could be accepted."""
        assert sequence.session is not None
        draft = sequence.session.proposal(window)
        return draft.cut(sequence.strategy.admissible(draft.token_ids))

    def _shortened(self, work: Work, reserved: int) -> tuple[Work, int | None]:
        """The work with as much of its draft as fits, and the blocks it needs.

        A draft never costs another sequence its blocks. It is cut, not left out: whether it is left
        out would depend on its length, and so on its tokens.
        """
        needed = None
        for count in reversed(range(len(work.draft.token_ids))):
            work = self._verification(work.sequence, work.draft.cut(count))
            if (needed := self._reserve(work, reserved)) is not None:
                break
        return work, needed

    def _reserve(self, work: Work, reserved: int) -> int | None:
        """Blocks the work needs, or None when they are not free."""
        needed = self._pool.blocks_needed_for(
            (feed.handle, len(feed.token_ids)) for feed in work.feeds
        )
        return needed if needed <= self._pool.num_free_blocks - reserved else None

    def _promised_blocks(self) -> int:
        """Blocks that running sequences need to be fed what they have, plus some to grow."""
        return sum(self._blocks_for(sequence, shared=False) for sequence in self.running)

    def _fork_source(self, sequence: Sequence) -> Sequence | None:
        """A running sequence of the same request whose prompt blocks can be shared."""
        if sequence.length > len(sequence.request.prompt):
            return None  # preempted with output of its own
        if any(branch.reader for branch in sequence.branches):
            return None  # it tells of its own prompt as well
        for sibling in sequence.state.sequences[: sequence.index]:
            if sibling.placed:
                return sibling
        return None

    def _blocks_for(self, sequence: Sequence, *, shared: bool) -> int:
        """Blocks for what is not cached yet; `shared`: all but the last token of each branch is."""
        branches = sequence.branches
        # One block a branch more than the tokens need: to grow into, or to copy a shared one.
        growth = max(sequence.strategy.width, len(branches))
        return growth + self._places.blocks_to_place(branches, shared=shared)

    def _place(self, sequence: Sequence, source: Sequence | None) -> None:
        found = self._places.place(
            sequence.branches,
            source.branches if source else (),
            scope=sequence.request.speculation.tenant,
        )
        if not sequence.request.is_replay:
            self.prefix_cache.observe(sum(len(b.token_ids) for b in sequence.branches), found)
        if not sequence.num_preemptions:
            sequence.num_cached_tokens = min(found, len(sequence.request.prompt))
        self.waiting.remove(sequence)
        self.running.append(sequence)
        self.running.sort(key=lambda s: (s.state.arrival, s.index))

    def _preempt(self, victim: Sequence) -> None:
        self.running.remove(victim)
        self._places.vacate(victim.branches)
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(victim)
