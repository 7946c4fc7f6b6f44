"""A draft model as a proposer: all sessions of all targets in one ragged forward per step.

Knows nothing of threads or gRPC. The only module of the draft service that needs torch.

What is in the cache of a line is a prefix of its `tokens`, always. A commit shortens it to what
the tokens before and after have in common, and that is all the rollback there is. The last token of
a chain is not in the cache before the next step: after full acceptance the drafter has two tokens
to catch up with, the last it proposed and the bonus.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.drawing import draw_tokens
from outrider_runtime.model.kv_pool import OutOfBlocks
from outrider_runtime.model.runner import Runner
from outrider_runtime.model.selection import InvalidScores, select_tokens

from outrider_draft.chain_steps import ChainSteps, row_group
from outrider_draft.line import Line, Proposed
from outrider_draft.metrics import DraftMetrics
from outrider_draft.proposer import Description, Outcome, OutOfRoom, Share
from outrider_draft.side_line import SideLine
from outrider_draft.updates import SessionKey


@dataclass(slots=True)
class _Cached:
    """A line's part of the cache."""

    handle: int
    length: int = 0
    """So many of the line's tokens are in the cache."""


class ModelProposer:
    """Extends chains by the draft model's own choice under the request's processors and noise."""

    def __init__(
        self,
        runner: Runner,
        description: Description,
        metrics: DraftMetrics,
        *,
        rows_are_cheap: bool = False,
    ) -> None:
        """Take over a runner.

        Args:
            runner: Belongs to the proposer's thread from now on.
            description: What the drafter says of itself.
            metrics: Counters.
            rows_are_cheap: Whether it runs where another row in a step costs next to nothing.
        """
        self._rows_are_cheap = rows_are_cheap
        self._metrics = metrics
        self._runner = runner
        self._pool = runner.pool
        self._description = description
        self._chain_steps = ChainSteps(runner)
        self._cached: dict[SessionKey, _Cached] = {}

    @property
    def description(self) -> Description:
        """What it is."""
        return self._description

    @property
    def rows_are_cheap(self) -> bool:
        """On the CPU, two rows cost nearly twice what one costs, unless the kernels are ours."""
        return self._rows_are_cheap

    def pending(self, line: Line) -> int:
        """How many tokens are not in the cache; the last one, whose scores are needed, counts."""
        return len(line.tokens) - self._num_known(line)

    def extend(self, shares: Sequence[Share]) -> list[Outcome]:
        """Choose a token for every session that has caught up, or several for each of them.

        Raises:
            OutOfRoom: The cache is too full.
        """
        batch = [self._rows(share) for share in shares]
        steps = self._chain_steps.number(shares, batch)
        if steps > 1 and (proposed := self._extend_greedily(shares, batch, steps)) is not None:
            return [Outcome(tokens) for tokens in proposed]
        return self._extend_by_one(shares, batch)

    def _extend_greedily(
        self, shares: Sequence[Share], batch: Sequence[SequenceRows], steps: int
    ) -> list[list[Proposed]] | None:
        """Several forwards in one go; None where they have to be done one by one."""
        started = time.monotonic()
        proposed = self._chain_steps.propose(shares, batch, steps)
        if proposed is not None:
            num_steps = max(map(len, proposed))
            self._observe(batch, time.monotonic() - started, num_steps=num_steps)
            for share, rows, tokens in zip(shares, batch, proposed, strict=True):
                self._cached[share.line.key].length += len(rows.token_ids) + len(tokens) - 1
        return proposed

    def _extend_by_one(
        self, shares: Sequence[Share], batch: Sequence[SequenceRows]
    ) -> list[Outcome]:
        """Do one forward and choose a token for every session that has caught up."""
        started = time.monotonic()
        try:
            logits = self._runner.forward(batch)  # [sessions that have caught up, vocab]
        except OutOfBlocks as error:
            raise OutOfRoom(str(error)) from error
        self._observe(batch, time.monotonic() - started)
        for share, rows in zip(shares, batch, strict=True):
            self._cached[share.line.key].length += len(rows.token_ids)
        ready = [share for share, rows in zip(shares, batch, strict=True) if rows.num_logits]
        chosen = self._choose(ready, logits)
        return [
            chosen[share.line.key] if rows.num_logits else Outcome()
            for share, rows in zip(shares, batch, strict=True)
        ]

    def rewind(self, key: SessionKey, length: int) -> None:
        """Forget keys and values of tokens that are no longer true."""
        cached = self._cached.get(key)
        if cached is not None and length < cached.length:
            self._pool.truncate(cached.handle, length)
            cached.length = length

    def adopt(self, key: SessionKey, line: SessionKey) -> None:
        """Let the session go on with the line's blocks, if it has any."""
        if (cached := self._cached.pop(line, None)) is not None:
            self.forget(key)
            self._cached[key] = cached

    def holds(self, key: SessionKey) -> bool:
        """Whether the line has blocks."""
        return key in self._cached

    def forget(self, key: SessionKey) -> None:
        """Free a line's blocks."""
        if (cached := self._cached.pop(key, None)) is not None:
            self._pool.free(cached.handle)

    def _num_known(self, line: Line) -> int:
        """How many of a line's tokens are in the cache, its own or the one it is forked off."""
        if (cached := self._cached.get(line.key)) is not None:
            return min(cached.length, len(line.tokens) - 1)
        if isinstance(line, SideLine) and (source := self._cached.get(line.source)) is not None:
            return min(source.length, line.num_shared)
        return 0

    def _place(self, line: Line) -> _Cached:
        """The line's part of the cache. A side line shares the blocks of what it has in common."""
        cached = self._cached.get(line.key)
        if cached is None:
            known = self._num_known(line)
            if isinstance(line, SideLine) and known:
                handle = self._pool.fork(self._cached[line.source].handle, known)
            else:
                handle = self._pool.create()
            cached = self._cached[line.key] = _Cached(handle, known)
        return cached

    def _rows(self, share: Share) -> SequenceRows:
        """The next tokens of a line, and whether its scores are wanted behind them."""
        line = share.line
        cached = self._place(line)
        start = self._num_known(line)
        # Only after a failed step are all tokens in the cache, their scores lost.
        self.rewind(line.key, start)
        stop = min(len(line.tokens), start + share.num_rows)
        caught_up = stop == len(line.tokens)
        return SequenceRows(cached.handle, line.tokens[start:stop], int(caught_up))

    def _observe(
        self, batch: Sequence[SequenceRows], seconds: float, *, num_steps: int = 1
    ) -> None:
        self._chain_steps.observe(batch, seconds / num_steps)
        for _ in range(num_steps):
            self._metrics.num_forwards.inc()
            self._metrics.forward_time.observe(seconds / num_steps)
        self._metrics.kv_cache_usage.set(1 - self._pool.num_free_blocks / self._pool.num_blocks)

    def _choose(self, shares: Sequence[Share], logits: torch.Tensor) -> dict[SessionKey, Outcome]:
        """Choose a token per row: draw it, or use the noise that the target will use there."""
        alike: dict[tuple[int, bool], list[int]] = defaultdict(list)  # -> rows
        for row, share in enumerate(shares):
            alike[share.session.request.vocab_size, share.session.request.draws].append(row)
        chosen: dict[SessionKey, Outcome] = {}
        for (vocab_size, draws), rows in alike.items():
            own = logits
            if len(rows) < len(shares):  # a device would have to be waited for with `logits[rows]`
                own = torch.cat([logits[row : row + 1] for row in rows])
            members = [shares[row] for row in rows]
            choose = _draw_alike if draws else _choose_alike
            chosen |= choose(members, _as_wide_as(own, vocab_size))
        return chosen


def _choose_alike(shares: list[Share], logits: torch.Tensor) -> dict[SessionKey, Outcome]:
    """Choose a token per row for lines of targets with equal vocabularies."""
    chosen: dict[SessionKey, Outcome] = {}
    while shares:
        try:
            selection = select_tokens(
                logits,
                [row_group(share.line) for share in shares],
                num_runners_up=max(share.num_siblings for share in shares),
            )
        except InvalidScores as error:
            # The request allows the drafter no token here; what the target makes of it is its own
            # business. The others go on without that row.
            barren = error.group_index
            chosen[shares[barren].line.key] = Outcome(exhausted=True)
            shares = shares[:barren] + shares[barren + 1 :]
            logits = torch.cat([logits[:barren], logits[barren + 1 :]])
            continue
        proposed = map(Proposed, selection.token_ids, selection.log_probs)
        for row, (share, first) in enumerate(zip(shares, proposed, strict=True)):
            siblings = [
                Proposed(other.token_id, first.log_prob - other.margin)
                for other in (selection.runners_up[row] if share.num_siblings else ())
            ]
            chosen[share.line.key] = Outcome([first], siblings[: share.num_siblings])
        break
    return chosen


def _draw_alike(shares: list[Share], logits: torch.Tensor) -> dict[SessionKey, Outcome]:
    """Draw a token per row for lines of targets with equal vocabularies."""
    groups = [row_group(share.line) for share in shares]
    bases = [share.session.tree.committed_length for share in shares]
    return {
        share.line.key: Outcome([Proposed(*one)] if one else (), exhausted=one is None)
        for share, one in zip(shares, draw_tokens(logits, groups, bases), strict=True)
    }


def _as_wide_as(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Scores over exactly the ids a target can emit.

    Padded tails of the embedding differ between models of one family. Ids the target does not have
    are cut off; ids the drafter does not have get no chance, yet exist: the request's processors
    may name them.
    """
    missing = vocab_size - logits.shape[-1]
    if missing > 0:
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
    return logits[:, :vocab_size]
