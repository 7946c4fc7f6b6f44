"""The green-list watermark: a bias on tokens that a hash of the text before them picks.

A token's colour depends on the watermark's options and on the last few tokens, so a row is marked
by what it sees and nothing else. Random numbers are those of transformers on CPU, whatever device
the scores live on: its detector then finds the watermark. Kirchenbauer et al., 2023, arXiv
2306.04634.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.model.processors.marked_row import MarkedRow
from outrider_runtime.watermarks import GreenList

CANDIDATES = 40
"""selfhash looks at this many of the highest scores only, as in transformers."""
_TABLE_SIZE = 1_000_003
_SEEDS = (1 << 64) - 1


class _Green(NamedTuple):
    """Rows and who is green in them (algorithm 2: the token before decides)."""

    rows: Array
    """Int64 [marked rows]."""
    green: Array
    """Bool [marked rows, vocab]."""
    bias: float

    def apply(self, xp: Arrays, values: Array, token_ids: Array | None) -> None:
        """See `watermarking.Marking`."""
        biases = xp.to_floats(self.green) * self.bias
        if token_ids is not None:
            biases = xp.take(biases, token_ids[self.rows])
        values[self.rows] += biases


class _OwnGreen(NamedTuple):
    """Rows whose candidates each seed a green list of their own (algorithm 3).

    A seed cannot be turned into a colour but by a generator on the host, and there are too many
    tokens to do so before the candidates are known: so a device is waited for here.
    """

    rows: Array
    """Int64 [marked rows]."""
    colours: _OwnColours

    def apply(self, xp: Arrays, values: Array, token_ids: Array | None) -> None:
        """See `watermarking.Marking`."""
        # Of equal scores the lower id goes first. What is dropped stays so, green or not.
        order = xp.argsort(-values[self.rows], stable=True)[:, :CANDIDATES]
        possible = xp.take(values[self.rows], order) > -np.inf
        named = order if token_ids is None else xp.take(token_ids[self.rows], order)
        marked = self.colours.marked(*xp.lists(*(x.reshape(-1) for x in (order, named, possible))))
        if marked:
            rows, places = xp.send(np.array(marked, np.int64).T)
            values[rows, places] += self.colours.mark.bias


@dataclass(frozen=True, slots=True)
class _OwnColours:
    """Who is green among the candidates of some rows."""

    rows: Sequence[MarkedRow]
    mark: GreenList
    vocab_size: int

    def marked(
        self, places: Sequence[int], token_ids: Sequence[int], possible: Sequence[bool]
    ) -> list[tuple[int, int]]:
        """Row and place of the green ones; all lists are the rows' candidates, row by row."""
        number = int(self.vocab_size * self.mark.greenlist_ratio)
        width = len(places) // len(self.rows)
        marked = []
        for index, one in enumerate(self.rows):
            span = slice(index * width, (index + 1) * width)
            ids = token_ids[span]
            seeds = _own_seeds(np.array(ids), one, self.mark)
            for place, token_id, seed, is_alive in zip(
                places[span], ids, seeds, possible[span], strict=True
            ):
                if is_alive and _is_green(token_id, seed, self.vocab_size, number):
                    marked.append((one.row, place))
        return marked


def green_list_of(
    rows: Sequence[MarkedRow], mark: GreenList, vocab_size: int
) -> _Green | _OwnGreen | None:
    """What raises the scores of green tokens, as a `watermarking.Marking`."""
    seeded = [one for one in rows if one.length >= mark.context_width]
    if not seeded:
        return None
    indices = np.array([one.row for one in seeded], np.int64)
    if mark.seeding_scheme == "selfhash":
        return _OwnGreen(indices, _OwnColours(seeded, mark, vocab_size))
    number = int(vocab_size * mark.greenlist_ratio)
    green = [
        _green(mark.hashing_key * int(group.token_ids[length - 1]) % _SEEDS, vocab_size, number)
        for _, group, length in seeded
    ]
    return _Green(indices, np.stack(green), mark.bias)


def _own_seeds(candidates: npt.NDArray[np.int64], one: MarkedRow, mark: GreenList) -> list[int]:
    """The seed that each candidate makes with the tokens before it."""
    table = _hash_table(mark.hashing_key)
    before = one.group.token_ids[one.length - mark.context_width + 1 : one.length]
    own = table[candidates % _TABLE_SIZE]
    # Products of 64 bits, which wrap as they do in torch.
    lowest = own * own * np.int64(mark.hashing_key)
    if len(before):
        others = table[np.asarray(before, np.int64) % _TABLE_SIZE]
        products = np.int64(mark.hashing_key) * others[:, None] * own
        lowest = np.minimum(lowest, products.min(axis=0))
    return [seed % _SEEDS for seed in lowest.tolist()]


@lru_cache(maxsize=8)
def _hash_table(hashing_key: int) -> npt.NDArray[np.int64]:
    """A permutation of the integers from 1, 8 MB."""
    generator = torch.Generator().manual_seed(hashing_key)
    table: npt.NDArray[np.int64] = torch.randperm(_TABLE_SIZE, generator=generator).numpy()
    return table + 1


def _permutation(seed: int, vocab_size: int) -> torch.Tensor:
    return torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed))


@lru_cache(maxsize=128)
def _green(seed: int, vocab_size: int, number: int) -> npt.NDArray[np.bool_]:
    """Which of the vocabulary are green. Texts repeat tokens, and draft and verification meet."""
    green = np.zeros(vocab_size, dtype=np.bool_)
    green[_permutation(seed, vocab_size)[:number].numpy()] = True
    return green


@lru_cache(maxsize=1 << 16)
def _is_green(token_id: int, seed: int, vocab_size: int, number: int) -> bool:
    return bool((_permutation(seed, vocab_size)[:number] == token_id).any())
