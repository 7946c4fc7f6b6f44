"""A round's forward: rows of all sequences in, what their selectors decide out.

Knows nothing of drafting or scheduling: what a row is for does not matter to it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch
from outrider_runtime.model.runner import Runner

from outrider_target.decoding.own_tokens import OwnTokens
from outrider_target.decoding.strategy import Rows, Selector
from outrider_target.engine.scheduler import Work


class Verifier:
    """Runs the target model over a round's work."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def verify(self, batch: SequenceOf[Work], before: Callable[[], None]) -> list[Any]:
        """One ragged forward, then one selection per selector.

        Args:
            batch: The round's work.
            before: Called when the model is about to run.

        Returns:
            For each work what its selector made of its rows; None for a prefill chunk.

        Raises:
            Exception: Whatever the model or a processor raises; the KV pool is then as before.
        """
        pool = self._runner.pool
        lengths = [(feed.handle, pool.length(feed.handle)) for work in batch for feed in work.feeds]
        try:
            return self._forward(batch, before)
        except Exception:  # passed on; the pool must not look as if the rows were there
            for handle, length in lengths:
                if pool.length(handle) > length:
                    pool.truncate(handle, length)
            raise

    def verify_steps(
        self, batch: SequenceOf[Work], num_steps: int, before: Callable[[], None]
    ) -> list[Any]:
        """As `verify`, several steps in one go, for work that is nothing but plain decoding."""
        feeds = [feed for work in batch for feed in work.feeds]
        found = self._runner.forward_greedily(feeds, num_steps, before=before)
        if found is None:
            # Step by step, it is found out whose scores they are, and what is wrong with them.
            return self.verify(batch, before)
        return [OwnTokens(token_ids, num_accepted=0) for token_ids in found.token_ids]

    def _forward(self, batch: SequenceOf[Work], before: Callable[[], None]) -> list[Any]:
        feeds = [feed for work in batch for feed in work.feeds]
        logits = self._runner.forward(feeds, before=before)
        decided: list[Any] = [None] * len(batch)
        by_selector = _by_selector(batch)
        for selector, members in by_selector.items():
            wanted = [wanted for _, wanted, _ in members]
            rows = logits
            if len(by_selector) > 1:
                # Not by a list of rows, which a device would have to be waited for with.
                rows = torch.cat([logits[span.start : span.stop] for _, _, span in members])
            selected = selector(rows, wanted)
            for (index, _, _), choice in zip(members, selected, strict=True):
                decided[index] = choice
        return decided


def _by_selector(
    batch: SequenceOf[Work],
) -> dict[Selector, list[tuple[int, Rows, range]]]:
    """For each selector its works: index in the batch, what it wants, rows of the logits."""
    members: dict[Selector, list[tuple[int, Rows, range]]] = {}
    row = 0
    for index, work in enumerate(batch):
        if work.rows is not None:
            span = range(row, row + sum(feed.num_logits for feed in work.feeds))
            members.setdefault(work.sequence.strategy.selector, []).append((index, work.rows, span))
            row = span.stop
    return members
