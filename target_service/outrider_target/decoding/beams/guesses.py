"""Guesses at the live beams of the next steps, by what the target itself said in like places.

A step of beam search is at hand only if the rows of *all* beams that it leads to are, so one chain
for each beam is seldom enough: mostly one beam has two children and another has none. So a guess is
a small beam search of its own, from the scores of the live beams, with what the target thought of
the tokens behind the same two tokens (or the same one) the last time. Beams have much of their text
in common, so there nearly always was a last time. It costs no forward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.decoding.beams.beam import Beam

_DEPTH = 2
"""Steps to guess at. A third one was worth less than its rows."""
_MARGIN = 0.5
"""How much worse than the worst beam to be, in nats, a guess may be to be worth a row."""
_NUM_FOLLOWERS = 8
"""Continuations to keep of each row."""
_IN_PROMPT = math.log(0.7)
"""What to think of the token that follows in the prompt, whose rows say nothing."""
_ROW_PRICE = 0.04
"""What a further row costs, in rounds: as measured on the kernels of our own behind the sixth."""
_TRY_AGAIN = 10
"""Each such round guesses although it has not paid lately, in case it does again."""


class Node(NamedTuple):
    """A text that may be a live beam.

    Attributes:
        beam: The live beam that it continues.
        path: By which tokens.
    """

    beam: int
    path: tuple[int, ...]

    def followed_by(self, token_id: int) -> Node:
        """Its continuation."""
        return Node(self.beam, (*self.path, token_id))


class _Kind(NamedTuple):
    """How far off a guessed step is, and whether all of it rests on two tokens, not on one."""

    step: int
    sure: bool


class Guess(NamedTuple):
    """Beams that may be.

    Attributes:
        paths: For each live beam the longest continuations.
        rows: Of each text, live beams and all that is between them and the longest, its first row
            in the order in which branches and copies of them are fed.
    """

    paths: Sequence[Sequence[tuple[int, ...]]]
    rows: Mapping[Node, int]


NO_GUESS = Guess((), {})


class Guesser:
    """Guesses for one sequence of beams.

    Args:
        prompt: Its prompt.
        parameters: The request's.
    """

    def __init__(self, prompt: Sequence[int], parameters: SamplingParameters) -> None:
        self._parameters = parameters
        self._followers: dict[tuple[int, ...], Mapping[int, float]] = {}
        for position in range(1, len(prompt)):
            self._remember(prompt[:position][-2:], {prompt[position]: _IN_PROMPT})
        # How often a step was at hand, by its number and how sure the guess was: moving averages.
        self._at_hand: dict[_Kind, float] = {}
        self._kinds: list[_Kind] = []  # of the steps of the last guess
        self._num_rounds = 0

    def learn(self, beams: Sequence[Beam], log_probs: torch.Tensor) -> None:
        """Take in what the target thinks of the continuations of live beams, [beams, vocab]."""
        log_probs = _allowed(beams, log_probs)
        top = log_probs.topk(min(_NUM_FOLLOWERS, log_probs.shape[1]))
        for beam, token_ids, values in zip(
            beams, top.indices.tolist(), top.values.tolist(), strict=True
        ):
            pairs = zip(token_ids, values, strict=True)
            followers = {token_id: value for token_id, value in pairs if value > -math.inf}
            for token_id in self._parameters.eos_token_ids:
                followers.pop(token_id, None)
            self._remember(beam.branch.token_ids[-2:], followers)

    def observe(self, num_accepted: int) -> None:
        """Hear how many steps a guess was good for."""
        for step, kind in enumerate(self._kinds):
            before = self._at_hand.get(kind, 0.5)
            self._at_hand[kind] = before + 0.1 * ((step < num_accepted) - before)

    def guess(self, beams: Sequence[Beam], most_rows: int) -> Guess:
        """The beams of the next steps, as far as they are worth their rows.

        Args:
            beams: The live beams.
            most_rows: Rows that it may cost, beside those of the live beams.
        """
        self._num_rounds += 1
        self._kinds = []
        sure = True
        paths: list[list[tuple[int, ...]]] = [[] for _ in beams]
        nodes = {Node(index, ()): beam.score for index, beam in enumerate(beams)}
        depth = min(_DEPTH, self._parameters.max_length - 1 - len(beams[0].branch.token_ids))
        for step in range(depth):
            sure = sure and self._is_sure(beams, nodes)
            nodes = self._next(beams, nodes)
            longer = [list(known) for known in paths]
            for index, path in nodes:
                if path[:-1] in longer[index]:
                    longer[index].remove(path[:-1])
                longer[index].append(path)
            kind = _Kind(step, sure)
            num_rows = _num_rows(longer)
            if not nodes or num_rows > most_rows:
                break
            if not self._pays(kind, num_rows - _num_rows(paths)):
                break
            self._kinds.append(kind)
            paths = longer
        return guess_of(paths) if any(paths) else NO_GUESS

    def _pays(self, kind: _Kind, num_rows: int) -> bool:
        """Whether a step is at hand often enough for what its rows cost."""
        trying = self._num_rounds % _TRY_AGAIN == 0
        return trying or self._at_hand.get(kind, 0.5) >= _ROW_PRICE * num_rows

    def _is_sure(self, beams: Sequence[Beam], nodes: Mapping[Node, float]) -> bool:
        """Whether all texts end with two tokens that were there before."""
        return all(_tail(beams, node) in self._followers for node in nodes)

    def _next(self, beams: Sequence[Beam], nodes: Mapping[Node, float]) -> dict[Node, float]:
        """One step of the small search; nothing where a text has no like."""
        grown: list[tuple[float, Node]] = []
        for node, score in nodes.items():
            tail = _tail(beams, node)
            followers = self._followers.get(tail) or self._followers.get(tail[-1:])
            if not followers:
                return {}
            grown += [(score + value, node.followed_by(one)) for one, value in followers.items()]
        grown.sort(reverse=True)
        if len(grown) < len(beams):
            return {}
        worst = grown[len(beams) - 1][0] - _MARGIN
        return {node: score for score, node in grown[: 2 * len(beams)] if score >= worst}

    def _remember(self, tail: Sequence[int], followers: Mapping[int, float]) -> None:
        self._followers[tuple(tail)] = self._followers[tuple(tail[-1:])] = followers


def _allowed(beams: Sequence[Beam], log_probs: torch.Tensor) -> torch.Tensor:
    """What the forms of the beams' texts leave of it; the rest is minus infinity."""
    forms = [None if beam.form is None else beam.form.allowed() for beam in beams]
    if all(allowed is None for allowed in forms):
        return log_probs
    rows = [
        torch.ones_like(row, dtype=torch.bool)
        if allowed is None
        else torch.from_numpy(allowed[0]).to(row.device)
        for row, allowed in zip(log_probs, forms, strict=True)
    ]
    return log_probs.where(torch.stack(rows), -torch.inf)


def _tail(beams: Sequence[Beam], node: Node) -> tuple[int, ...]:
    return (*beams[node.beam].branch.token_ids[-2:], *node.path)[-2:]


def _num_rows(paths: Sequence[Sequence[tuple[int, ...]]]) -> int:
    """Rows beside those of the live beams; a copy of a branch is fed its last token again."""
    return sum(sum(map(len, own)) + max(0, len(own) - 1) for own in paths)


def guess_of(paths: Sequence[Sequence[tuple[int, ...]]]) -> Guess:
    """A guess at these continuations of the live beams; at all that is on the way to them, too."""
    rows: dict[Node, int] = {}
    row = 0
    for index, own in enumerate(paths):
        for number, path in enumerate(own or [()]):
            for length in range(int(number > 0), len(path) + 1):
                rows.setdefault(Node(index, path[:length]), row)
                row += 1
    return Guess(paths, rows)
