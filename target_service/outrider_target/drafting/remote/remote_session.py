"""One sequence drafted by a remote draft service: its tree, and how long to wait for it.

Runs in the engine thread. Knows nothing of gRPC, and of other sessions only what they teach it
about their common link.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from outrider_runtime.draft_tree import DraftTree, Limits

from outrider_target.drafting.agreement import Agreement, num_agreeing
from outrider_target.drafting.drafter import NO_DRAFT, Draft, Outlook
from outrider_target.drafting.pricing.asking import Asking
from outrider_target.drafting.pricing.calibration import temperature_class
from outrider_target.drafting.pricing.confidence import ConfidenceThreshold
from outrider_target.drafting.pricing.tempering import DraftTemperatures
from outrider_target.drafting.remote.foresight import Foresight
from outrider_target.drafting.remote.link_state import LinkState
from outrider_target.drafting.remote.patience import Question, RoundPace, decide, patience
from outrider_target.drafting.remote.side_paths import best_side_paths
from outrider_target.drafting.remote.updates import CommitTokens, Growth, OpenSession
from outrider_target.drafting.silence import Silence
from outrider_target.requests.request import DraftMethod, GenerationRequest

MAX_NODES = 256
"""Nodes granted to a session's tree. Far above any window; a drafter that exceeds it floods."""

_SHARE_OF_WAIT = 0.5
"""Beside another drafter, or for a first token, the wait may take this share of what it saves: the
question costs rows, frames and, on a shared machine, time of the target as well."""

_MAX_UNANSWERED = 64
"""Commits of a session whose answers may be outstanding before the oldest is given up."""


class RemoteSession:
    """One sequence's draft tree, and the link that grows it, if any."""

    def __init__(
        self,
        number: int,
        request: GenerationRequest,
        sample_index: int,
        token_ids: Sequence[int],
        *,
        vocab_size: int,
        round_pace: RoundPace,
        agreement: Agreement,
        foresight: Foresight,
        asking: Asking,
        draft_temperatures: DraftTemperatures,
        forget: Callable[[RemoteSession], None],
    ) -> None:
        self.number = number
        self.link: LinkState | None = None
        self.refused_by: set[int] = set()
        self._vocab_size = vocab_size
        self._round_pace = round_pace
        self._forget = forget
        self._request = request
        self._sample_index = sample_index
        self._tree = DraftTree(token_ids)
        self._told_length = 0  # so much of the sequence the drafter has heard of
        self.agreement = Agreement(agreement)
        """Of its drafts with what was decided."""
        self._foresight = foresight
        self._asking = asking
        self._draft_temperatures = draft_temperatures
        self._temperature = temperature_class(request.parameters)
        asked_for = request.speculation.draft_temperature
        self._draft_temperature = (
            draft_temperatures.choose(self._temperature) if asked_for is None else asked_for
        )
        self.opened = False
        """Whether the link has heard of it: a drafter that may not be asked is told nothing."""
        self._confidence = ConfidenceThreshold(request.speculation.confidence_threshold)
        self._window = 1
        self._asked: dict[int, float] = {}  # committed length told -> when, until answered
        self._opening: tuple[int, float] | None = None  # the same of what it was opened with
        self._complete_at = -1  # committed length for which the drafter has nothing more
        self._deadline = 0.0  # until when to wait for the answer
        self._waiting = False

    @property
    def request_id(self) -> str:
        """Name of the request that it drafts for."""
        return self._request.id

    @property
    def active(self) -> bool:
        """Whether a link stands behind it."""
        return self.link is not None

    def commit(
        self,
        token_ids: Sequence[int],
        *,
        window: int,
        rival: float | None = None,
        rival_accepted: int = 0,
    ) -> None:
        """Walk the tree and ask the drafter for more, if that pays.

        Args:
            token_ids: The tokens decided in a round.
            window: Draft tokens wanted for the next.
            rival: Tokens expected to be accepted of another drafter's draft that is there already;
                None without another drafter.
            rival_accepted: Tokens of the other drafter's last draft that were the target's own.
        """
        rests = self._asking.rests
        if rival is not None or not rests:
            self._asking.decided(len(token_ids) - 1, rival_accepted)
        if self._waiting:
            if not self._answered and self.link is not None:
                self.link.pace.missed()  # the round gave up on it
            self._waiting = False
        if token_ids and len(self._tree):
            self._walk(token_ids)
        else:
            self._tree.commit(self._tree.committed_length, token_ids)
        if window == 0 or self.link is None:
            return  # a last token needs no draft, and nothing is asked afterwards
        self._window = window
        if rests or not self._asking.ask():
            return
        if not self.opened:
            self._open_on(self.link)
            return
        question = self._question(self.link, rival)
        if question.ask:  # else the drafter hears of these tokens with the next question
            self._ask(self.link, wait=question.wait)

    def waiting_until(self, window: int, now: float) -> float | None:
        """Until the answer is there, or waiting no longer pays."""
        if not self._waiting or window == 0 or self._answered or now >= self._deadline:
            return None
        return self._deadline

    def proposal(self, window: int) -> Draft:
        """The most probable path of the tree as it is now."""
        path = self._tree.best_path(window)
        if not path:
            return NO_DRAFT
        # A drafter may tell anything: above 0 there is no log-probability.
        probabilities = [math.exp(min(0.0, node.log_prob)) for node in path]
        rows = self._request.speculation.tree_rows
        return Draft(
            [node.token_id for node in path],
            DraftMethod.REMOTE,
            probabilities,
            [node.distribution for node in path],
            best_side_paths(self._tree, window=window, rows=rows) if rows else (),
        )

    @property
    def outlook(self) -> Outlook:
        """None where it was not asked for what comes next, and has not run ahead."""
        asked = self.silence not in (Silence.NO_LINK, Silence.NOT_WORTH_ASKING)
        return Outlook.EXPECTED if asked or len(self._tree) else Outlook.NONE

    @property
    def silence(self) -> Silence:
        """Why there is no proposal, when there is none."""
        if self.link is None:
            return Silence.NO_LINK
        if not self.opened or self._told_length < self._tree.committed_length:
            return Silence.NOT_WORTH_ASKING
        if self._complete_at == self._tree.committed_length:
            return Silence.NOTHING_PROPOSED
        return Silence.LATE

    def close(self) -> None:
        """Forget the sequence on both sides."""
        self._forget(self)

    def attach(self, link: LinkState, window: int | None = None) -> None:
        """Open the session on a link, with a tree of its own node ids."""
        self._window = window or self._window
        self.link = link
        link.sessions[self.number] = self
        if self._asking.ask():
            self._open_on(link)

    def detach(self) -> None:
        """Leave the link; what it proposed goes with it."""
        if self.link is not None:
            self.link.sessions.pop(self.number, None)
        self.link = None
        self.opened = self._waiting = False
        self._opening = None
        self._tree = DraftTree(self._tree.token_ids)

    def grow(self, growth: Growth, arrived_at: float) -> int:
        """Take in proposals; returns the number of offences among them."""
        outcome = self._tree.grow(
            growth.base_length,
            growth.proposals,
            vocab_size=self._vocab_size,
            max_nodes=MAX_NODES,
        )
        if growth.complete:
            self._complete_at = growth.base_length
        self._learn_opening(growth, arrived_at)
        # A late answer tells as much about the drafter's pace as one in time.
        asked_at = self._asked.get(growth.base_length)
        if asked_at is not None and (growth.complete or self._answered):
            if self.link is not None:
                self.link.pace.answered(max(0.0, arrived_at - asked_at))
            self._asked = {b: t for b, t in self._asked.items() if b > growth.base_length}
        return outcome.offences

    def _learn_opening(self, growth: Growth, arrived_at: float) -> None:
        if self._opening is None or self.link is None:
            return
        length, opened_at = self._opening
        if growth.base_length == length and (growth.complete or self._answered):
            self.link.pace.opened(max(0.0, arrived_at - opened_at), length)
            self._opening = None

    def resync(self, held_length: int) -> None:
        """Send what the drafter has lost."""
        assert self.link is not None
        if held_length == 0:
            self._open_on(self.link)
        elif held_length < self._tree.committed_length:
            self._told_length = held_length
            self._ask(self.link, wait=self._synchronous)

    def _walk(self, token_ids: Sequence[int]) -> None:
        """Judge what was proposed by what was decided, and go on from there."""
        path = self._tree.best_path(len(token_ids))
        draft = [node.token_id for node in path]
        self.agreement.observe(draft, token_ids)
        self._learn_temperature(draft, token_ids)
        self._confidence.observe(draft, [node.log_prob for node in path], token_ids)
        self._tree.commit(self._tree.committed_length, token_ids)
        followed = draft == list(token_ids[: len(draft)])
        self._foresight.observe(followed=followed, ready=bool(self._tree.children()))

    def _learn_temperature(self, draft: Sequence[int], decided: Sequence[int]) -> None:
        """What agrees with one draft temperature says something of it, whoever has chosen it."""
        agreed = num_agreeing(draft, decided)
        self._draft_temperatures.observe(
            self._temperature,
            self._draft_temperature,
            agreed=agreed,
            judged=min(agreed + 1, len(draft), len(decided)),
        )

    @property
    def _answered(self) -> bool:
        """Whether the tree is as deep as wanted, or will not get deeper."""
        if self._complete_at == self._tree.committed_length:
            return True
        return len(self._tree.best_path(self._window)) >= self._window

    @property
    def _synchronous(self) -> bool:
        return self._request.speculation.synchronous

    def _question(self, link: LinkState, rival: float | None) -> Question:
        """Whether to ask for the next draft, and whether to wait for it."""
        if self._synchronous:
            return Question(ask=True, wait=True)
        alone = rival is None
        # What was run ahead and survived is there as well, and may be worth verifying at once.
        survived = len(self._tree.best_path(self._window))
        at_hand = max(rival or 0.0, self.agreement.expected_accepted(survived))
        # Going on at once brings 1 + at_hand tokens in a round, waiting 1 + accepted in a round and
        # the wait: the rates are equal at this wait.
        gain = self.agreement.accepted_per_draft - at_hand
        worth = self._round_pace.seconds * gain / (1 + at_hand)
        return decide(
            link.pace,
            worth=worth if alone else _SHARE_OF_WAIT * worth,
            dispensable=not alone and self._request.speculation.run_ahead == 0,
        )

    def _open_on(self, link: LinkState) -> None:
        self.opened = True
        self._tree = DraftTree(self._tree.token_ids)
        self._complete_at = -1
        self._asked.clear()
        token_ids = tuple(self._tree.token_ids)
        opened = OpenSession(
            self.number,
            token_ids,
            self._request,
            self._sample_index,
            self._draft_temperature,
            self._limits(),
        )
        usual = link.pace.opening(len(token_ids))
        self._opening = len(token_ids), time.monotonic()
        self._tell(link, opened, wait=self._synchronous or self._awaits(usual), usual=usual)

    def _awaits(self, opening: float | None) -> bool:
        """Whether the first draft is waited for: the first token comes later, the next sooner."""
        worth = _SHARE_OF_WAIT * self._round_pace.seconds * self.agreement.accepted_per_draft
        return opening is not None and opening <= worth

    def _ask(self, link: LinkState, *, wait: bool) -> None:
        """Tell all tokens that the drafter has not heard of; that asks for more."""
        untold = tuple(self._tree.token_ids[self._told_length :])
        update = CommitTokens(self.number, self._told_length, untold, self._limits())
        self._tell(link, update, wait=wait, usual=link.pace.latency)

    def _tell(
        self,
        link: LinkState,
        update: OpenSession | CommitTokens,
        *,
        wait: bool,
        usual: float | None,
    ) -> None:
        """Put an update into the round's frame, and set the time until which to wait.

        Args:
            link: Where it goes.
            update: What is told.
            wait: Whether to wait for the answer.
            usual: Seconds that such an answer takes; None when that is not known.
        """
        link.pending.append(update)
        now = time.monotonic()
        self._told_length = self._tree.committed_length
        # Reading a whole prompt says nothing about the pace, nor does what was run ahead.
        if isinstance(update, CommitTokens) and not self._answered:
            self._asked[self._told_length] = now
        if len(self._asked) > _MAX_UNANSWERED:
            self._asked.pop(next(iter(self._asked)))
        timeout = self._request.speculation.timeout_seconds
        if not self._synchronous:
            pace = self._round_pace.seconds
            timeout = patience(usual or 0.0, round_seconds=pace, timeout=timeout)
        self._waiting = wait and timeout > 0 and not link.pace.stalled
        self._deadline = now + timeout

    def _limits(self) -> Limits:
        speculation = self._request.speculation
        return Limits(
            window=self._window,
            depth=self._window + speculation.run_ahead,
            max_nodes=MAX_NODES,
            confidence_threshold=self._confidence.value,
            fan_out=speculation.fan_out,
        )
