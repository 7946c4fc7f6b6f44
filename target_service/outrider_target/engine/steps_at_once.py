"""How many steps of plain decoding a round takes in one go, without a word to the interpreter.

A small model decides a token in little more time than the interpreter needs between two. Where no
draft can come and each row's highest score is the token, several steps need nothing of it; what
they decide is what rounds of one step would. Nobody can join, be cancelled or be told anything
meanwhile, so it is a few milliseconds' worth. In all that is counted and learned they are so many
rounds.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from outrider_runtime.model.kv_pool import KVPool
from outrider_runtime.model.runner import Runner

from outrider_target.decoding.own_tokens import TokenRows, select_own_tokens
from outrider_target.drafting.drafter import Outlook
from outrider_target.drafting.pricing.control import Control
from outrider_target.engine.scheduler import Work

_SMOOTHING = 0.1
_SHARE_UNSEEN = 4
"""Tokens without a draft for each further step in which none is looked for."""


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

    def number(self, batch: SequenceOf[Work], control: Control) -> int:
        """Steps for a round in which all take part that run, while nobody waits to; at least 1.

        Args:
            batch: The round.
            control: Knows for how long nobody asks a drafter.
        """
        if not self._seconds or not self._runner.runs_greedily:
            return 1
        step = self._step_seconds.get(len(batch))
        if step is None or not all(map(_is_plain, batch)):
            return 1
        horizon = control.horizon
        steps = min(
            int(self._seconds / step),
            *(_most_steps(work, horizon, plain=control.plain) for work in batch),
        )
        return steps if steps > 1 and _fit(self._runner.pool, batch, steps) else 1


def _is_plain(work: Work) -> bool:
    """Whether each next token is the highest score behind the one before, whatever that is."""
    rows, sequence = work.rows, work.sequence
    return (
        sequence.constraint is None
        and sequence.strategy.selector is select_own_tokens
        and isinstance(rows, TokenRows)
        and rows.group.is_bare
        and rows.num_top_log_probs is None
        and not rows.tensors
        and len(work.feeds) == 1
        and len(work.feeds[0].token_ids) == 1
        and not work.feeds[0].readings
    )


def _most_steps(work: Work, horizon: int, *, plain: bool) -> int:
    """Steps after which a sequence may have ended, or its drafter have something to say.

    Args:
        work: Its part of the round.
        horizon: Rounds in which nobody asks, of sequences under control.
        plain: Whether these verify nothing whatever there is.
    """
    sequence = work.sequence
    assert sequence.session is not None
    # One that ends within the steps is carried along for nothing.
    left = sequence.request.parameters.max_length - sequence.length
    if sequence.controlled:
        left = min(left, horizon)
        if plain:
            return left
    match sequence.session.outlook:
        case Outlook.NONE:
            return left
        case Outlook.POSSIBLE:
            # The longer nothing was found, the longer nothing is looked for.
            return min(left, 1 + sequence.num_undrafted // _SHARE_UNSEEN)
        case Outlook.EXPECTED:
            return 1


def _fit(pool: KVPool, batch: SequenceOf[Work], steps: int) -> bool:
    needed = pool.blocks_needed_for((work.feeds[0].handle, steps) for work in batch)
    return needed <= pool.num_free_blocks
