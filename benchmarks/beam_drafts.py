"""Who could draft for beams: guesses at the live beams of the next steps.

A guess is a set of texts for each of the next steps, all of whose rows one forward would compute.
The step is at hand if all beams that plain beam search then has are in its set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.prompt_lookup import PromptLookup
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_target.decoding.beams.beam import Beam
from outrider_target.decoding.beams.guesses import Guesser
from outrider_target.decoding.branch import Branch

from benchmarks.beam_trace import Live, Step

Guess = list[set[tuple[int, ...]]]
"""For each of the next steps the texts that may be its live beams."""


class BeamDrafter(Protocol):
    """One way to guess."""

    def guess(self, beams: Sequence[Live], depth: int) -> Guess:
        """The live beams of the next steps."""

    def learn(self, step: Step) -> None:
        """Hear what came of it."""

    def close(self) -> None:
        """Free what is held."""


class LookupChains:
    """Each beam goes on as its own text did before."""

    def guess(self, beams: Sequence[Live], depth: int) -> Guess:
        chains = [
            (beam.token_ids, PromptLookup(beam.token_ids).candidates(depth)) for beam in beams
        ]
        return [
            {text + tuple(found[:step]) for text, found in chains if len(found) >= step}
            for step in range(1, depth + 1)
        ]

    def learn(self, step: Step) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing to free."""


class OwnGuesses:
    """What the target guesses by itself."""

    def __init__(
        self, prompt: Sequence[int], eos_token_ids: tuple[int, ...], new_tokens: int
    ) -> None:
        parameters = SamplingParameters(
            max_length=len(prompt) + new_tokens, eos_token_ids=eos_token_ids
        )
        self._guesser = Guesser(prompt, parameters)

    def guess(self, beams: Sequence[Live], depth: int) -> Guess:
        if beams[0].token_ids == beams[-1].token_ids:
            return []  # all are the prompt
        likewise = [Beam(Branch([*beam.token_ids]), beam.score, (), None) for beam in beams]
        texts: Guess = [set() for _ in range(depth)]
        for index, path in self._guesser.guess(likewise, 1000).rows:
            if path:
                texts[len(path) - 1].add(beams[index].token_ids + path)
        return texts

    def learn(self, step: Step) -> None:
        self._guesser.learn(
            [Beam(Branch([*beam.token_ids]), beam.score, (), None) for beam in step.live],
            step.log_probs,
        )

    def close(self) -> None:
        """Nothing to free."""


class DraftBeams:
    """A draft model searches on with beams of its own, from the live beams and their scores.

    Args:
        runner: The draft model.
        width: Its beams.
        eos_token_ids: What ends a text, which then is no live beam.
        one_child: Each live beam keeps one beam of its own, its greedy continuation: a chain.
    """

    def __init__(
        self,
        runner: RaggedRunner,
        *,
        width: int,
        eos_token_ids: Sequence[int],
        one_child: bool = False,
    ) -> None:
        self._runner = runner
        self._width = width
        self._eos_token_ids = list(eos_token_ids)
        self._one_child = one_child
        self._cached: dict[tuple[int, ...], int] = {}

    def guess(self, beams: Sequence[Live], depth: int) -> Guess:
        held = self._cached
        live = list(beams)
        guess: Guess = []
        for _ in range(depth):
            live = self._step(live)
            guess.append({beam.token_ids for beam in live})
        self._cached = {text: handle for text, handle in self._cached.items() if text not in held}
        for handle in held.values():
            self._runner.pool.free(handle)
        return guess

    def learn(self, step: Step) -> None:
        """Nothing: it is asked again."""

    def close(self) -> None:
        """Free what is cached."""
        for handle in self._cached.values():
            self._runner.pool.free(handle)
        self._cached = {}

    def _step(self, live: Sequence[Live]) -> list[Live]:
        unlike = list(dict.fromkeys(beam.token_ids for beam in live))
        rows = [self._rows(text) for text in unlike]
        logits = self._runner.forward(rows)
        self._cached |= {text: row.handle for text, row in zip(unlike, rows, strict=True)}
        log_probs = logits.log_softmax(-1)
        log_probs[:, self._eos_token_ids] = -torch.inf
        scores = {beam.token_ids: beam.score for beam in reversed(live)}
        totals = log_probs + torch.tensor([scores[text] for text in unlike])[:, None]
        if self._one_child:
            best = totals.max(-1)
            return [
                Live((*text, token_id), score)
                for text, token_id, score in zip(
                    unlike, best.indices.tolist(), best.values.tolist(), strict=True
                )
            ]
        top = totals.flatten().topk(self._width)
        vocab_size = totals.shape[1]
        return [
            Live((*unlike[place // vocab_size], place % vocab_size), score)
            for place, score in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def _rows(self, text: tuple[int, ...]) -> SequenceRows:
        """What is not cached yet, forked off the cached text that has most in common with it."""
        pool = self._runner.pool
        found, shared = None, 0
        for other, handle in self._cached.items():
            common = _num_common(text[:-1], other)
            if common > shared:
                found, shared = handle, common
        handle = pool.create() if found is None else pool.fork(found, shared)
        return SequenceRows(handle, list(text[shared:]), 1)


def _num_common(some: Sequence[int], others: Sequence[int]) -> int:
    most = min(len(some), len(others))
    if some[:most] == others[:most]:
        return most
    return next(i for i in range(most) if some[i] != others[i])
