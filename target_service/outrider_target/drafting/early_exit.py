"""The target's own first layers as drafter: layers 1 to N, then the final norm and the output head.

It needs no cache of its own. What the first layers keep of committed tokens is in the target's KV
pool already, and is the same; what they keep of drafted ones is rolled back before the round that
verifies them, which writes it again. All sequences that draft so do it together, once a round.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import structlog
from outrider_runtime.errors import InvalidRequest
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kv_pool import OutOfBlocks
from outrider_runtime.model.runner import Runner
from outrider_runtime.model.selection import InvalidScores, RowGroup, select_tokens

from outrider_target.constraints.constraint import Allowed
from outrider_target.drafting.drafter import NO_DRAFT, Draft, DraftSession, Outlook
from outrider_target.drafting.silence import Silence
from outrider_target.engine.sequence import Sequence
from outrider_target.requests.request import DraftMethod, GenerationRequest

log = structlog.get_logger()


class EarlyExitSession:
    """One sequence's draft, made anew after each commit."""

    active = True
    outlook = Outlook.EXPECTED
    silence = Silence.NOTHING_PROPOSED

    def __init__(self, forget: Callable[[], object]) -> None:
        self._forget = forget
        self.drafted: SequenceOf[int] | None = None
        """None: not since the last commit."""
        self.probabilities: SequenceOf[float] = ()
        """Of the drafted tokens."""

    def commit(self, token_ids: SequenceOf[int], *, window: int) -> None:
        """Whatever was drafted is decided."""
        self.drafted = None

    def waiting_until(self, window: int, now: float) -> float | None:
        """Never waits: it was drafted before the round was planned."""
        return None

    def proposal(self, window: int) -> Draft:
        """What was drafted."""
        token_ids = (self.drafted or ())[:window]
        if not token_ids:
            return NO_DRAFT
        return Draft(token_ids, DraftMethod.EARLY_EXIT, self.probabilities[:window])

    def close(self) -> None:
        """Forget the sequence."""
        self._forget()


@dataclass(slots=True)
class _Growing:
    """A sequence while it drafts."""

    sequence: Sequence
    session: EarlyExitSession
    handle: int
    drafted: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    done: bool = False
    """Whether nothing is worth drafting behind what it has."""

    def rows(self) -> SequenceRows:
        last = self.drafted[-1] if self.drafted else self.sequence.token_ids[-1]
        return SequenceRows(self.handle, [last], 1)

    def group(self) -> RowGroup:
        request = self.sequence.request
        return RowGroup(
            parameters=request.parameters,
            seed=request.seed,
            sample_index=self.sequence.index,
            token_ids=[*self.sequence.token_ids, *self.drafted],
            num_rows=1,
            num_prompt_tokens=len(request.prompt),
            draft_temperature=request.speculation.draft_temperature or 1.0,
            processors=request.plugins.processors,
            allowed=self._allowed(),
        )

    def take(self, token_id: int, log_prob: float) -> None:
        request = self.sequence.request
        self.drafted.append(token_id)
        self.probabilities.append(math.exp(log_prob))
        self.done = (
            len(self.drafted) >= self.sequence.next_window
            or self.probabilities[-1] < request.speculation.confidence_threshold
            or token_id in request.parameters.eos_token_ids
            or not self._goes_on()
        )

    def _goes_on(self) -> bool:
        """Whether the form, if there is one, has anything behind what was drafted."""
        allowed = self._allowed()
        return allowed is None or bool(allowed.any())

    def _allowed(self) -> Allowed | None:
        """[1, vocab], what the form lets follow; None without one."""
        constraint = self.sequence.constraint
        return None if constraint is None else constraint.allowed(self.drafted)[-1:]


class EarlyExitDrafter:
    """Drafts with the model that verifies."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._pool = runner.pool
        self._sessions: dict[tuple[str, int], EarlyExitSession] = {}  # by request and sequence

    def open(
        self,
        request: GenerationRequest,
        *,
        sample_index: int,
        token_ids: SequenceOf[int],
        window: int,
    ) -> DraftSession:
        """Nothing is computed before the prompt is cached."""
        key = request.id, sample_index
        self._sessions[key] = session = EarlyExitSession(lambda: self._sessions.pop(key, None))
        return session

    def draft(self, running: SequenceOf[Sequence]) -> None:
        """Draft for every running sequence whose last draft has been decided."""
        by_depth: defaultdict[int, list[_Growing]] = defaultdict(list)
        if not self._sessions:
            return
        for sequence in running:
            session = self._sessions.get((sequence.request.id, sequence.index))
            if session is not None and session.drafted is None:
                handle = self._handle(sequence)
                if handle is not None and sequence.next_window:
                    depth = sequence.request.speculation.early_exit
                    by_depth[depth].append(_Growing(sequence, session, handle))
        for depth, growing in by_depth.items():
            self._grow(growing, depth)

    def _handle(self, sequence: Sequence) -> int | None:
        """Its place in the pool, once everything but its last committed token is cached."""
        branch = sequence.branches[0]
        if branch.handle is None or len(branch.token_ids) != sequence.length:
            return None
        return branch.handle if self._pool.length(branch.handle) == sequence.length - 1 else None

    def _grow(self, growing: list[_Growing], depth: int) -> None:
        """A token for each that is not done, until all are. A fault costs drafts, nothing else."""
        try:
            while pending := [one for one in growing if not one.done]:
                logits = self._runner.forward([one.rows() for one in pending], num_layers=depth)
                chosen = select_tokens(logits, [one.group() for one in pending])
                found = zip(pending, chosen.token_ids, chosen.log_probs, strict=True)
                for one, token_id, log_prob in found:
                    one.take(token_id, log_prob)
        except (OutOfBlocks, InvalidScores, InvalidRequest):
            pass  # what there is will do
        except Exception:
            ids = sorted({one.sequence.request.id for one in growing})
            log.exception("early_exit_failed", request_ids=ids)
        finally:
            for one in growing:
                one.session.drafted = one.drafted
                one.session.probabilities = one.probabilities
                self._pool.truncate(one.handle, one.sequence.length - 1)
