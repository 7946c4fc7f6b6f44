"""A draft model as a proposer to targets with other tokenizers. Needs torch; no threads, no gRPC.

The model writes on in ids of its own, one token a step; `bilingual_text` makes target ids of that.
Its next token is chosen among the target's: each is as probable as all the draft tokens that are or
begin with it, and the request's options and the shared noise are the very ones that the target will
apply to it. Then the most probable of those draft tokens is written.

What is in the cache of a session is a prefix of its draft ids, always.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kv_pool import OutOfBlocks
from outrider_runtime.model.runner import Runner
from outrider_runtime.model.selection import InvalidScores, RowGroup, select_tokens

from outrider_draft.line import Line, Proposed
from outrider_draft.metrics import DraftMetrics
from outrider_draft.proposer import Description, Outcome, OutOfRoom, Share
from outrider_draft.session import Session
from outrider_draft.translation.bilingual_text import BilingualText, Lookbehind
from outrider_draft.translation.choices import Choices, ChoicesKey
from outrider_draft.translation.shared_items import SharedItems
from outrider_draft.updates import SessionKey

MAX_SILENT_TOKENS = 16
"""Draft tokens in a row that bring no target token before a session is let alone."""


@dataclass(slots=True)
class _Held:
    """What is held of a session."""

    text: BilingualText
    handle: int
    cached: int = 0
    """So many of the draft ids are in the cache."""
    silent: int = 0
    """Draft tokens since one became a target token."""


class TranslatingProposer:
    """Extends chains by what the draft model would write, in the target's ids."""

    def __init__(
        self,
        runner: Runner,
        description: Description,
        metrics: DraftMetrics,
        *,
        items: Mapping[str, SharedItems],
        rows_are_cheap: bool = False,
    ) -> None:
        """Share a runner.

        Args:
            runner: Belongs to the drafting thread.
            description: What the drafter says of itself; lengths are in its own tokens.
            metrics: Counters.
            items: What the draft model has in common with each target, by the fingerprint of the
                target's tokenizer.
            rows_are_cheap: Whether it runs where another row in a step costs next to nothing.
        """
        self._runner = runner
        self._pool = runner.pool
        self._description = description
        self._metrics = metrics
        self._items = items
        self._rows_are_cheap = rows_are_cheap
        self._held: dict[SessionKey, _Held] = {}
        self._choices: dict[ChoicesKey, Choices] = {}

    @property
    def description(self) -> Description:
        """What it is."""
        return self._description

    @property
    def rows_are_cheap(self) -> bool:
        """As for the draft model's own tokenizer."""
        return self._rows_are_cheap

    def pending(self, line: Line) -> int:
        """How many draft tokens are not in the cache; 1 where there is something to propose."""
        held = self._bring_up(line)
        return max(1, len(held.text.draft_ids) - held.cached)

    def extend(self, shares: Sequence[Share]) -> list[Outcome]:
        """Do one forward for those that have nothing to propose, and read what came of it.

        Raises:
            OutOfRoom: The cache is too full.
        """
        outcomes: dict[SessionKey, Outcome] = {}
        writing: list[Share] = []
        for share in shares:
            outcome = self._without_writing(share.session)
            if outcome is None:
                writing.append(share)
            else:
                outcomes[share.session.key] = outcome
        if writing:
            outcomes |= self._write(writing)
        return [outcomes[share.session.key] for share in shares]

    def rewind(self, key: SessionKey, length: int) -> None:
        """Learn that target tokens from `length` on are no longer what they were."""
        if (held := self._held.get(key)) is not None:
            held.text.rewind(length)

    def adopt(self, key: SessionKey, line: SessionKey) -> None:
        """Nothing to learn: it has no side lines."""

    def holds(self, key: SessionKey) -> bool:
        """Whether the session has blocks."""
        return key in self._held

    def forget(self, key: SessionKey) -> None:
        """Free a session's blocks."""
        if (held := self._held.pop(key, None)) is not None:
            self._pool.free(held.handle)

    def _bring_up(self, session: Line) -> _Held:
        """The session's text, with all its target's tokens in it."""
        held = self._held.get(session.key)
        if held is None:
            request = session.request
            lookbehind = Lookbehind(request.assistant_lookbehind, request.target_lookbehind)
            text = BilingualText(self._items[request.tokenizer], lookbehind)
            held = self._held[session.key] = _Held(text, self._pool.create())
        kept = held.text.follow(session.tokens)
        # The scores behind the last token are always computed anew.
        self._truncate(held, max(0, min(kept, len(held.text.draft_ids) - 1)))
        return held

    def _truncate(self, held: _Held, length: int) -> None:
        if length < held.cached:
            self._pool.truncate(held.handle, length)
            held.cached = length

    def _without_writing(self, session: Session) -> Outcome | None:
        """What there is to say without the model, if anything."""
        held = self._bring_up(session)
        if held.text.ready:
            held.silent = 0
            return Outcome(held.text.ready)
        full = len(held.text.draft_ids) >= self._description.max_length
        if full or held.text.stuck or held.silent >= MAX_SILENT_TOKENS or not held.text.draft_ids:
            held.silent = 0
            return Outcome(held.text.rest(session.tokens) if full else (), exhausted=True)
        return None

    def _write(self, shares: Sequence[Share]) -> dict[SessionKey, Outcome]:
        batch = [self._rows(share) for share in shares]
        started = time.monotonic()
        try:
            logits = self._runner.forward(batch)  # [sessions that have caught up, draft vocabulary]
        except OutOfBlocks as error:
            raise OutOfRoom(str(error)) from error
        self._observe(time.monotonic() - started)
        ready: dict[ChoicesKey, list[tuple[int, Session]]] = defaultdict(list)
        outcomes: dict[SessionKey, Outcome] = {}
        row = 0
        for share, rows in zip(shares, batch, strict=True):
            session = share.session
            self._held[session.key].cached += len(rows.token_ids)
            if not rows.num_logits:
                outcomes[session.key] = Outcome()
                continue
            ready[_choices_key(session)].append((row, session))
            row += 1
        for key, members in ready.items():
            own = logits[[row for row, _ in members]]
            sessions = [session for _, session in members]
            outcomes |= self._choose(sessions, own, self._choices_of(key))
        return outcomes

    def _rows(self, share: Share) -> SequenceRows:
        """The next draft tokens of a session, and whether its scores are wanted behind them."""
        held = self._held[share.session.key]
        ids = held.text.draft_ids
        stop = min(len(ids), held.cached + share.num_rows)
        return SequenceRows(held.handle, ids[held.cached : stop], int(stop == len(ids)))

    def _observe(self, seconds: float) -> None:
        self._metrics.num_forwards.inc()
        self._metrics.forward_time.observe(seconds)
        self._metrics.kv_cache_usage.set(1 - self._pool.num_free_blocks / self._pool.num_blocks)

    def _choose(
        self, sessions: list[Session], logits: torch.Tensor, choices: Choices
    ) -> dict[SessionKey, Outcome]:
        """Choose a token per row and see what it says to the target."""
        scores = choices.scores(logits)  # [rows, choices]
        outcomes: dict[SessionKey, Outcome] = {}
        while sessions:
            try:
                selection = select_tokens(scores, [self._row_group(s) for s in sessions])
            except InvalidScores as error:
                # The request allows the drafter no token here; the others go on without that row.
                barren = error.group_index
                outcomes[sessions[barren].key] = Outcome(exhausted=True)
                sessions = sessions[:barren] + sessions[barren + 1 :]
                scores = torch.cat([scores[:barren], scores[barren + 1 :]])
                logits = torch.cat([logits[:barren], logits[barren + 1 :]])
                continue
            draft_ids = choices.draft_ids(logits, selection.token_ids)
            chosen = zip(sessions, selection.token_ids, draft_ids, selection.log_probs, strict=True)
            return outcomes | {s.key: self._say(s, t, d, p) for s, t, d, p in chosen}
        return outcomes

    def _say(self, session: Session, token_id: int, draft_id: int, log_prob: float) -> Outcome:
        """What the target is told of a choice."""
        held = self._held[session.key]
        if token_id in self._items[session.request.tokenizer].target.special:
            said = [*held.text.rest(session.tokens), Proposed(token_id, log_prob)]
            return Outcome(said, exhausted=True)
        held.text.write(draft_id, log_prob)
        held.silent += 1
        return self._without_writing(session) or Outcome()

    def _row_group(self, session: Session) -> RowGroup:
        request = session.request
        return RowGroup(
            parameters=request.parameters,
            seed=request.seed,
            sample_index=request.sample_index,
            token_ids=self._held[session.key].text.history,
            num_rows=1,
            num_prompt_tokens=request.num_prompt_tokens,
            draft_temperature=request.draft_temperature,
        )

    def _choices_of(self, key: ChoicesKey) -> Choices:
        found = self._choices.get(key)
        if found is None:
            found = Choices(self._items[key.tokenizer], key, num_logits=self._runner.vocab_size)
            self._choices[key] = found
        return found


def _choices_key(session: Session) -> ChoicesKey:
    request = session.request
    marked = request.parameters.watermark is not None
    return ChoicesKey(request.tokenizer, request.vocab_size, target_only=marked)
