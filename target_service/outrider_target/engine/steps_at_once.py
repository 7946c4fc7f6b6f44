"""How many steps of plain decoding a round takes in one go, without a word to the interpreter.

A small model decides a token in less time than the interpreter needs between two. Where no drafter
is asked and each row's highest score is the token, several steps need nothing of it; what they
decide is what rounds of one step would. Nobody can join, be cancelled or be told anything meanwhile,
so it is a few milliseconds' worth.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from outrider_runtime.model.kv_pool import KVPool
from outrider_runtime.model.runner import Runner

from outrider_target.decoding.own_tokens import TokenRows, select_own_tokens
from outrider_target.engine.scheduler import Work
from outrider_target.requests.request import DraftMethod

_SMOOTHING = 0.1


class StepsAtOnce:
    """Owned by the engine thread.

    Args:
        runner: The model.
        seconds: What the steps of a round may take; 0: each round is one step.
    """

    def __init__(self, runner: Runner, seconds: float) -> None:
        self._runner = runner
        self._seconds = seconds
        self._step_seconds: dict[int, float] = {}  # by sequences, smoothed

    def observe(self, num_sequences: int, seconds: float) -> None:
        """Learn what a step took in which each sequence had one row."""
        known = self._step_seconds.get(num_sequences, seconds)
        self._step_seconds[num_sequences] = known + _SMOOTHING * (seconds - known)

    def number(self, batch: SequenceOf[Work], *, anybody_else: bool) -> int:
        """Steps for a round, at least 1.

        Args:
            batch: The round.
            anybody_else: Whether others run that are not in it, or wait to.
        """
        if anybody_else or not self._seconds or not self._runner.runs_greedily:
            return 1
        step = self._step_seconds.get(len(batch))
        if step is None or not all(map(_is_plain, batch)):
            return 1
        # One that ends within the steps is carried along for nothing.
        left = min(w.sequence.request.parameters.max_length - w.sequence.length for w in batch)
        steps = max(1, min(int(self._seconds / step), left))
        return steps if _fit(self._runner.pool, batch, steps) else 1


def _is_plain(work: Work) -> bool:
    """Whether each next token is the highest score behind the one before, whatever that is."""
    rows, sequence = work.rows, work.sequence
    return (
        sequence.request.speculation.method is DraftMethod.NONE
        and sequence.constraint is None
        and sequence.strategy.selector is select_own_tokens
        and isinstance(rows, TokenRows)
        and rows.group.is_bare
        and rows.num_top_log_probs is None
        and not rows.tensors
        and len(work.feeds) == 1
        and len(work.feeds[0].token_ids) == 1
        and not work.feeds[0].readings
    )


def _fit(pool: KVPool, batch: SequenceOf[Work], steps: int) -> bool:
    needed = pool.blocks_needed_for((work.feeds[0].handle, steps) for work in batch)
    return needed <= pool.num_free_blocks
