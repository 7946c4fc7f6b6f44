"""The green-list watermark: a bias on tokens that a hash of the text before them picks.

A token's colour depends on the watermark's options and on the last few tokens, so a row is marked
by what it sees and nothing else. Random numbers are those of transformers on CPU, whatever device
the scores live on: its detector then finds the watermark. Kirchenbauer et al., 2023, arXiv
2306.04634.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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


def add_green_list(
    xp: Arrays,
    values: Array,
    token_ids: Array | None,
    rows: Sequence[MarkedRow],
    mark: GreenList,
    *,
    vocab_size: int,
) -> None:
    """Raise the scores of green tokens, in place. See `watermarking.add_watermarks`."""
    seeded = [one for one in rows if one.length >= mark.context_width]
    if not seeded:
        return
    if mark.seeding_scheme == "selfhash":
        _add_by_own_hash(xp, values, token_ids, seeded, mark, vocab_size)
    else:
        _add_by_last_token(xp, values, token_ids, seeded, mark, vocab_size)


def _add_by_last_token(
    xp: Arrays,
    values: Array,
    token_ids: Array | None,
    rows: Sequence[MarkedRow],
    mark: GreenList,
    vocab_size: int,
) -> None:
    """Algorithm 2: the token before decides who is green."""
    number = int(vocab_size * mark.greenlist_ratio)
    green = [
        _green(mark.hashing_key * int(group.token_ids[length - 1]) % _SEEDS, vocab_size, number)
        for _, group, length in rows
    ]
    indices = xp.integers([one.row for one in rows])
    biases = xp.floats(np.stack(green)) * mark.bias  # [rows, vocab]
    if token_ids is not None:
        biases = xp.take(biases, token_ids[indices])
    values[indices] += biases


def _add_by_own_hash(
    xp: Arrays,
    values: Array,
    token_ids: Array | None,
    rows: Sequence[MarkedRow],
    mark: GreenList,
    vocab_size: int,
) -> None:
    """Algorithm 3: each candidate is in or out of the green list that it seeds itself."""
    number = int(vocab_size * mark.greenlist_ratio)
    indices = xp.integers([one.row for one in rows])
    # Of equal scores the lower id goes first. What is dropped stays so, green or not.
    order = xp.argsort(-values[indices], stable=True)[:, :CANDIDATES]
    possible = (xp.take(values[indices], order) > -np.inf).tolist()
    named = order if token_ids is None else xp.take(token_ids[indices], order)
    marked: list[tuple[int, int]] = []  # (row, place)
    for one, places, ids, alive in zip(rows, order.tolist(), named.tolist(), possible, strict=True):
        seeds = _own_seeds(np.array(ids), one, mark)
        for place, token_id, seed, is_alive in zip(places, ids, seeds, alive, strict=True):
            if is_alive and _is_green(token_id, seed, vocab_size, number):
                marked.append((one.row, place))
    if marked:
        cells = xp.integers(marked)
        values[cells[:, 0], cells[:, 1]] += mark.bias


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
