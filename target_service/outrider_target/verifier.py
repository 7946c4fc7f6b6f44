"""A round's forward: rows of all sequences in, the target's own tokens out.

Knows nothing of drafting or scheduling: what a row is for does not matter to it.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from outrider_runtime.model.runner import Runner, SequenceRows

from outrider_target.scheduler import Work
from outrider_target.strategy import OwnTokens, Rows, Selector


class Verifier:
    """Runs the target model over a round's work."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def verify(self, batch: SequenceOf[Work]) -> list[OwnTokens]:
        """One ragged forward, then one selection per selector.

        Returns:
            For each work the target's own token of each of its wanted rows; empty for a prefill
            chunk.

        Raises:
            Exception: Whatever the model or a processor raises; the KV pool is then as before.
        """
        lengths = [self._runner.pool.length(_handle(work)) for work in batch]
        try:
            return self._forward(batch)
        except Exception:
            for work, length in zip(batch, lengths, strict=True):
                if self._runner.pool.length(_handle(work)) > length:
                    self._runner.pool.truncate(_handle(work), length)
            raise

    def _forward(self, batch: SequenceOf[Work]) -> list[OwnTokens]:
        logits = self._runner.forward(
            [
                SequenceRows(
                    _handle(work),
                    work.token_ids,
                    work.rows.group.num_rows if work.rows else 0,
                    [work.reading] if work.reading else (),
                )
                for work in batch
            ]
        )
        own = [OwnTokens([]) for _ in batch]
        by_selector = _by_selector(batch)
        for selector, members in by_selector.items():
            wanted = [wanted for _, wanted, _ in members]
            rows = logits
            if len(by_selector) > 1:
                rows = logits[[row for _, _, span in members for row in span]]
            selected = selector(rows, wanted)
            for (index, _, _), tokens in zip(members, selected, strict=True):
                own[index] = tokens
        return own


def _by_selector(
    batch: SequenceOf[Work],
) -> dict[Selector, list[tuple[int, Rows, range]]]:
    """For each selector its works: index in the batch, what it wants, rows of the logits."""
    members: dict[Selector, list[tuple[int, Rows, range]]] = {}
    row = 0
    for index, work in enumerate(batch):
        if work.rows is not None:
            span = range(row, row + work.rows.group.num_rows)
            members.setdefault(work.sequence.strategy.selector, []).append((index, work.rows, span))
            row = span.stop
    return members


def _handle(work: Work) -> int:
    assert work.sequence.handle is not None
    return work.sequence.handle
