"""One round of the target: admit, draft, plan, verify, commit, retire.

Owned by the engine thread. Knows nothing of gRPC, threads or text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any

import structlog
from outrider_runtime.errors import InvalidRequest
from outrider_runtime.model.runner import Runner
from outrider_runtime.model.selection import InvalidScores

from outrider_target.decoding.strategy import Decision
from outrider_target.drafting.drafter import Draft, Drafter
from outrider_target.drafting.early_exit import EarlyExitDrafter
from outrider_target.drafting.forced import ForcedSession
from outrider_target.drafting.pricing.control import Control, RoundTimes
from outrider_target.drafting.pricing.runs import Regime
from outrider_target.drafting.remote.patience import RoundPace
from outrider_target.drafting.silence import Silence
from outrider_target.engine.events import Event, RequestCompleted, RequestFailed
from outrider_target.engine.round_log import RoundLog, RoundRecord
from outrider_target.engine.round_tallies import RoundTallies
from outrider_target.engine.round_trace import TracedRound
from outrider_target.engine.scheduler import Scheduler, Work
from outrider_target.engine.sequence import RequestState, Sequence
from outrider_target.engine.statistics import SpeculationCounters
from outrider_target.engine.steps_at_once import StepsAtOnce
from outrider_target.engine.verifier import Verifier
from outrider_target.requests.request import DraftMethod, Finish, FinishReason

log = structlog.get_logger()

Deliver = Callable[[RequestState, Event], None]


class Rounds:
    """The running batch, round after round."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        drafters: Mapping[DraftMethod, Drafter],
        deliver: Deliver,
        round_pace: RoundPace,
        control: Control | None = None,
        *,
        steps_seconds: float = 0.0,
    ) -> None:
        self._verifier = Verifier(runner)
        self._steps_at_once = StepsAtOnce(runner, steps_seconds)
        self._scheduler = scheduler
        self._early_exit = EarlyExitDrafter(runner)
        self._drafters = {**drafters, DraftMethod.EARLY_EXIT: self._early_exit}
        self._deliver = deliver
        self._round_pace = round_pace
        self.control = control or Control()
        self._began = 0.0  # when the round under way did
        self._last_verified: float | None = None  # when; None: nothing ran since
        self.totals = SpeculationCounters()
        self.log = RoundLog()
        self.tallies = RoundTallies()
        self._silences: list[Silence] = []  # of the round under way
        self.num_generated_tokens = 0

    def step(
        self,
        *,
        before: Callable[[], None] = lambda: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> float | None:
        """Run one round if any sequence is ready.

        Args:
            before: Sends what drafters are told, when the model is about to run: sessions that
                were opened a moment ago are then drafted for while their prompts are read here.
            meanwhile: Takes in what arrived during the forward, before its tokens are committed:
                drafts that are there already are then neither asked for nor waited for.

        Returns:
            0 when there may be more to do at once, else the time (`time.monotonic()`) to come back
            at; None when only a new event can help.
        """
        self._began = started = time.monotonic()
        self._expire(started)
        for sequence in self._scheduler.admit(started):
            try:
                self._open_session(sequence)
            except Exception as fault:
                self._blame(sequence.state, fault)
        self._early_exit.draft(self._scheduler.running)
        plan = self._scheduler.plan(started)
        for sequence, why in plan.faults:
            self._blame(sequence.state, why)
        batch = [work for work in plan.work if work.sequence.finish is None]
        if not batch:
            if not self._scheduler.running:
                self._last_verified = None
            return 0.0 if plan.faults else self._come_back_at(plan.wait_until)
        num_accepted, num_tokens = self.totals.num_accepted_tokens, self.num_generated_tokens
        self._silences.clear()
        verified, times = self._timed_verify(batch, before)
        meanwhile()
        for work, own in verified:
            try:
                self._commit(work, own, num_steps=times.num_steps)
            except Exception as fault:
                self._blame(work.sequence.state, fault)
        self._record(
            [work for work in batch if work.rows is not None],
            times,
            num_accepted=self.totals.num_accepted_tokens - num_accepted,
            num_tokens=self.num_generated_tokens - num_tokens,
        )
        seconds = time.monotonic() - started
        self._round_pace.observe(seconds / times.num_steps)
        self.tallies.round_ended(times, seconds)
        return 0.0

    def cancel(self, state: RequestState, *, report: bool) -> None:
        """End a request's sequences now. `report`: its caller is still listening."""
        for sequence in state.sequences:
            if sequence.finish is None:
                self._end(sequence, FinishReason.CANCELLED, report=report)
        if report:
            self._complete(state)

    def fail(self, state: RequestState, error: Exception) -> None:
        """End a request because of a fault; the others go on."""
        for sequence in state.sequences:
            # Those that had ended as well: the fault may lie between an end and its clearing up.
            self._finish(sequence, sequence.finish or Finish(FinishReason.CANCELLED))
        refusal = None
        if isinstance(error, InvalidScores) and error.options_at_fault:
            refusal = error.why
        self._deliver(state, RequestFailed(error, refusal))

    def _blame(self, state: RequestState, fault: Exception) -> None:
        """A fault in one request's own processing ends that request alone."""
        if not isinstance(fault, InvalidRequest | InvalidScores):
            log.error("request_faulted", request_id=state.request.id, exc_info=fault)
        self.fail(state, fault)

    def _expire(self, now: float) -> None:
        """End what has run out of time, in the batch or still in the queue."""
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            max_time = sequence.request.max_time
            if max_time is not None and now - sequence.state.arrived_at >= max_time:
                self._end(sequence, FinishReason.TIME, report=True)
                self._retire(sequence.state)

    def _come_back_at(self, wait_until: float | None) -> float | None:
        """When to look again: a drafter is waited for no longer than a request has time."""
        times = [
            sequence.state.arrived_at + sequence.request.max_time
            for sequence in [*self._scheduler.running, *self._scheduler.waiting]
            if sequence.request.max_time is not None
        ]
        return min(times if wait_until is None else [*times, wait_until], default=None)

    def _open_session(self, sequence: Sequence) -> None:
        if sequence.session is None:
            drafter = self._drafters[sequence.request.speculation.method]
            window = sequence.next_window
            session = drafter.open(
                sequence.request,
                sample_index=sequence.index,
                token_ids=sequence.token_ids,
                window=window,
            )
            if sequence.constraint is not None and sequence.request.speculation.forced:
                session = ForcedSession(session, sequence.constraint, window=window)
            sequence.session = session
            sequence.calibration = self.control.calibration_of(sequence.request)

    def _record(
        self, decided: SequenceOf[Work], times: RoundTimes, *, num_accepted: int, num_tokens: int
    ) -> None:
        """Keep what the round was and took."""
        if not decided or any(work.sequence.request.is_replay for work in decided):
            return
        cycle = times.cycle_seconds
        self.log.add(
            RoundRecord(
                num_steps=times.num_steps,
                num_sequences=len(decided),
                num_rows=times.num_rows,
                num_drafts=sum(bool(work.draft.token_ids) for work in decided),
                num_draft_tokens=sum(len(work.draft.token_ids) for work in decided),
                num_accepted_tokens=num_accepted,
                num_tokens=num_tokens,
                forward_seconds=times.forward_seconds,
                between_seconds=0.0 if cycle is None else max(0.0, cycle - times.forward_seconds),
                silences=tuple(self._silences),
            )
        )

    def _silence(self, sequence: Sequence) -> Silence:
        """Why the round verified no draft for it."""
        assert sequence.session is not None
        if sequence.controlled and self.control.gate.ended is Regime.PLAIN:
            return Silence.MEASURING
        if sequence.offered.token_ids:
            return Silence.NOT_WORTH_VERIFYING
        return sequence.session.silence

    def _timed_verify(
        self, batch: SequenceOf[Work], before: Callable[[], None]
    ) -> tuple[list[tuple[Work, Any]], RoundTimes]:
        """Verify, and let the control learn what it took."""
        waiting = len(batch) < len(self._scheduler.running) or bool(self._scheduler.waiting)
        num_steps = 1
        if not waiting:
            num_steps = self._steps_at_once.number(batch, self.control)
        began = time.monotonic()
        verified = self._verify(batch, before, num_steps)
        now = time.monotonic()
        last, self._last_verified = self._last_verified, now
        times = RoundTimes(
            num_running=len(self._scheduler.running),
            num_sequences=len(batch),
            num_rows=sum(len(feed.token_ids) for work in batch for feed in work.feeds),
            num_steps=num_steps,
            forward_seconds=now - began,
            cycle_seconds=None if last is None else now - last,
            num_controlled=sum(work.sequence.controlled for work in batch),
            only_decodes=all(work.rows is not None and work.sequence.controlled for work in batch),
        )
        self.control.observe(times)
        if times.num_rows == times.num_sequences:
            self._steps_at_once.observe(len(batch), times.forward_seconds / num_steps)
        return verified, times

    def _verify(
        self, batch: SequenceOf[Work], before: Callable[[], None], num_steps: int = 1
    ) -> list[tuple[Work, Any]]:
        """What the round's logits decide. A fault in one request's rows ends that request alone."""
        try:
            if num_steps > 1:
                decided = self._verifier.verify_steps(batch, num_steps, before)
            else:
                decided = self._verifier.verify(batch, before)
            return list(zip(batch, decided, strict=True))
        except InvalidScores as fault:
            cause: Exception = fault
        except Exception as fault:
            log.exception(
                "round_failed", request_ids=sorted({work.sequence.request.id for work in batch})
            )
            cause = fault
        if len(batch) == 1:
            (work,) = batch
            if work.draft.token_ids:
                # What is wrong with a row behind a draft token may be wrong with that draft alone.
                return self._verify([self._scheduler.without_draft(work)], before)
            self.fail(work.sequence.state, cause)
            return []
        # Somebody's rows are at fault: one by one, the others go on.
        return [
            result
            for work in batch
            if work.sequence.finish is None
            for result in self._verify([work], before)
        ]

    def _commit(self, work: Work, own: Any, *, num_steps: int) -> None:
        """Take what the round decided for a sequence."""
        sequence = work.sequence
        if sequence.finish is not None:
            return
        if work.rows is None:
            for event in sequence.strategy.fed():
                self._deliver(sequence.state, event)
            return
        assert sequence.session is not None
        decision = sequence.strategy.commit(work.draft.token_ids, own)
        if sequence.request.is_counted:
            # Of several steps in one go those count that decided something.
            self._count(
                sequence,
                work.draft,
                decision.num_accepted,
                num_steps=len(decision.token_ids) if num_steps > 1 else 1,
            )
        if not work.draft.token_ids:
            self._silences.append(self._silence(sequence))
        if sequence.controlled:
            self.control.decided(len(decision.token_ids), num_steps=num_steps)
            sequence.calibration.observe(sequence.offered, decision.token_ids)
        # What the form forces is always accepted, which says nothing of a drafter beside it.
        if work.draft.method is not DraftMethod.GRAMMAR or not sequence.session.active:
            length = len(work.draft.token_ids)
            sequence.window.observe(length, min(length, decision.num_accepted))
        if sequence.state.first_token_at is None:
            sequence.state.first_token_at = time.monotonic()
        if sequence.state.trace is not None:
            self._trace(sequence, work.draft, decision)
        self._report(sequence, decision)
        # What several steps decided would else look like a draft that was accepted.
        rounds = [[one] for one in decision.token_ids] if num_steps > 1 else [decision.token_ids]
        if decision.finish is not None:
            for token_ids in rounds[:-1]:
                sequence.session.commit(token_ids, window=0)
            self._finish(sequence, decision.finish)
            self._retire(sequence.state)
            return
        self._scheduler.follow(sequence)
        sequence.num_undrafted += len(decision.token_ids)
        if sequence.offered.token_ids or work.draft.token_ids:
            sequence.num_undrafted = 0
        for token_ids in rounds:
            sequence.session.commit(token_ids, window=sequence.next_window)

    def _trace(self, sequence: Sequence, draft: Draft, decision: Decision) -> None:
        """Keep what a request that is traced had of the round."""
        trace = sequence.state.trace
        if trace is not None and (number := trace.next_number(sequence.index)) is not None:
            trace.rounds.append(
                TracedRound(
                    sequence.index,
                    number,
                    self._began,
                    time.monotonic(),
                    draft.method,
                    draft.num_tokens,
                    decision.num_accepted,
                    len(decision.token_ids),
                )
            )

    def _report(self, sequence: Sequence, decision: Decision) -> None:
        sequence.num_generated += decision.num_generated
        if sequence.request.is_counted:
            self.num_generated_tokens += decision.num_generated
            if self._last_verified is not None:
                self.tallies.tokens_decided(sequence, decision.num_generated, self._last_verified)
        for event in decision.events:
            self._deliver(sequence.state, event)

    def _end(self, sequence: Sequence, reason: FinishReason, *, report: bool) -> None:
        """End a sequence from outside. `report`: its caller is still listening."""
        finish = Finish(reason)
        self._finish(sequence, finish)
        if report:
            self._report(sequence, sequence.strategy.end(finish))

    def _count(
        self, sequence: Sequence, draft: Draft, num_accepted: int, *, num_steps: int
    ) -> None:
        """Count a round of a sequence, for itself and for the whole server."""
        assert sequence.session is not None
        for counters, keep_round in (
            (sequence.counters, sequence.request.speculation.report_rounds),
            (self.totals, False),
        ):
            counters.observe(
                draft.num_tokens,
                num_accepted,
                method=draft.method,
                has_drafter=sequence.session.active,
                keep_round=keep_round,
                num_steps=num_steps,
            )

    def _finish(self, sequence: Sequence, finish: Finish) -> None:
        """Free everything a sequence holds, in the same round."""
        sequence.finish = finish
        self._scheduler.release(sequence)
        if sequence.session is not None:
            sequence.session.close()

    def _retire(self, state: RequestState) -> None:
        """Complete a request when its last sequence has ended."""
        if state.finished:
            self._complete(state)

    def _complete(self, state: RequestState) -> None:
        now = time.monotonic()
        speculation = SpeculationCounters()
        for sequence in state.sequences:
            speculation.add(sequence.counters)
        first_token_at = state.first_token_at or now
        admitted_at = state.admitted_at or now
        self._deliver(
            state,
            RequestCompleted(
                queue_seconds=admitted_at - state.arrived_at,
                time_to_first_token_seconds=first_token_at - state.arrived_at,
                total_seconds=now - state.arrived_at,
                num_completion_tokens=sum(s.num_generated for s in state.sequences),
                num_preemptions=sum(s.num_preemptions for s in state.sequences),
                num_cached_prompt_tokens=max(s.num_cached_tokens for s in state.sequences),
                speculation=speculation,
            ),
        )
