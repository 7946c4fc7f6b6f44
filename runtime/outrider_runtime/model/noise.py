"""Gumbel noise keyed by what is sampled: seed, sample, position and token id, and nothing else.

Knows nothing of scores, requests or batches. Any word of the noise can be computed alone, so after
truncation only the kept ids pay for it, and a token's noise is the same in every batch, on every
service and after every restart.

The generator is Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC
2011) with the layout

    key     = (low half of the seed, high half of the seed)
    counter = (token_id >> 2, position, stream | sample_index << 8, base)
    word    = output[token_id & 3]

It is written out here because no dependency offers it: numpy's `Philox` is the 4x64 variant and a
stateful stream, torch's generators fill whole tensors in an order of their own, and torch's private
`_philox_*` operators (2.13) are experimental and return rounded uniforms of a (seed, offset) pair,
not the words of a counter. One function serves numpy arrays and torch tensors, with equal words:
int64 products wrap in both.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from outrider_runtime.model.arrays import Array, Arrays

_MASK = 0xFFFFFFFF
_ROUNDS = 10
MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.int64)
"""Constants of the published algorithm, of counter words 0 and 2."""
_KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.int64)
_ROUND_NUMBERS = np.arange(_ROUNDS, dtype=np.int64)
_WORDS = 4
"""Words of one counter, hence token ids that share it."""


class Stream(enum.IntEnum):
    """Which random stream a word belongs to; part of the counter, so streams are disjoint.

    Target and drafter both use `TARGET`, and that sharing is what makes drafts agree with the
    target. It is lawful only where a draft token is accepted if and only if it *equals* the
    target's own sample: then the draft's draw never enters the output. Under a ratio test it is
    not: given that a draft token won its race and was rejected, the noise of the others is no
    longer Gumbel, and a residual drawn from that noise is biased (63 percent instead of 60 in one
    published measurement). Under such a rule draft, acceptance and the target's own draws have
    streams of their own.
    """

    TARGET = 0
    DRAFT = 1
    """The drafter's draws, where a ratio decides."""
    ACCEPT = 2
    """What decides whether a draft token is kept."""
    RESIDUAL = 3
    """The target's own draws, where a ratio decides: recovered, bonus, and without a draft."""


class NoiseRow(NamedTuple):
    """What a row's noise depends on besides the token id."""

    seed: int
    """The request's seed, 64 bits."""
    sample_index: int
    """Which of the request's returned sequences; below 2**24."""
    position: int
    """Absolute index of the token being sampled, prompt included; below 2**32."""
    base: int = 0
    """Committed length at the time of the draw, where a position may be drawn for again: what
    became of a rejected draft depends on all its draws, so none of them may be met twice."""


class NoiseWords(NamedTuple):
    """What of the generator's input depends on the row alone, as the generator takes it."""

    keys: Array
    """Int64 [10, 2, rows, 1]: the keys of all rounds."""
    odd: Array
    """Int64 [2, rows, 1]: counter words 1 and 3, the position and the base."""
    streams: Array
    """Int64 [rows, 1]: counter word 2, stream and sample."""
    multipliers: Array
    """Int64 [2, 1, 1]: the algorithm's own, which have to be where the rest is."""

    @classmethod
    def of(cls, rows: Sequence[NoiseRow], stream: Stream = Stream.TARGET) -> NoiseWords:
        """Those of some rows, in numpy: to be sent to where they are needed."""
        words = [
            [row.position for row in rows],
            [row.base for row in rows],
            [stream | row.sample_index << 8 for row in rows],
        ]
        counters = np.array(words, np.int64)[..., None]
        keys = round_keys([row.seed for row in rows])[..., None]
        return cls(keys, counters[:2], counters[2], MULTIPLIERS[:, None, None])


def philox(
    xp: Arrays, even: Array, odd: Array, keys: Array, multipliers: Array
) -> tuple[Array, Array]:
    """The ten rounds of Philox4x32-10, elementwise.

    Args:
        xp: where the arrays live.
        even: int64 [2, ...], counter words 0 and 2.
        odd: int64 [2, ...], counter words 1 and 3.
        keys: int64, broadcastable to [10, 2, ...]: the key words of every round (`round_keys`).
        multipliers: int64, broadcastable to [2, ...]: `NoiseWords.multipliers`.

    Returns:
        Output words 0 and 2, and output words 1 and 3, in the same form.
    """
    for key in keys:
        product = xp.swap(even * multipliers)
        # The mask comes last: it also clears what an arithmetic shift and the unmasked low words
        # (the previous product) carry above bit 31.
        even = ((product >> 32) ^ odd ^ key) & _MASK
        odd = product
    return even, odd & _MASK


def round_keys(seeds: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Int64 [10, 2, rows]: both key words of each round, for every row's seed."""
    words = np.array([[s & _MASK for s in seeds], [(s >> 32) & _MASK for s in seeds]], np.int64)
    steps = _ROUND_NUMBERS[:, None] * _KEY_STEPS
    return (words + steps[:, :, None]) & _MASK


def gumbel_of(
    xp: Arrays, token_ids: Array, rows: Sequence[NoiseRow], *, stream: Stream = Stream.TARGET
) -> Array:
    """Noise of the given tokens: float64 like `token_ids`, int64 [rows, n]."""
    return gumbel_from(xp, token_ids, xp.send(NoiseWords.of(rows, stream)))


def gumbel_from(xp: Arrays, token_ids: Array, words: NoiseWords) -> Array:
    """`gumbel_of`, where the rows' words are already."""
    even = xp.pairs(token_ids >> 2, words.streams)
    even, odd = philox(xp, even, words.odd, words.keys, words.multipliers)
    found = xp.where(token_ids & 1 == 1, odd, even)  # [2, rows, n]
    return _gumbel(xp, xp.where(token_ids & 2 == 2, found[1], found[0]))


def gumbel_of_all(
    xp: Arrays, vocab_size: int, rows: Sequence[NoiseRow], *, stream: Stream = Stream.TARGET
) -> Array:
    """Noise of the whole vocabulary: float64 [rows, vocab_size], each id's as in `gumbel_of`."""
    return gumbel_from_all(xp, vocab_size, xp.send(NoiseWords.of(rows, stream)))


def gumbel_from_all(xp: Arrays, vocab_size: int, words: NoiseWords) -> Array:
    """`gumbel_of_all`, where the rows' words are already."""
    keys, odd, streams, multipliers = words
    counters = xp.arange((vocab_size + _WORDS - 1) // _WORDS)
    step = max(1, xp.at_once // (_WORDS * len(streams)))
    pieces = []
    for start in range(0, len(counters), step):
        some = counters[start : start + step] + streams * 0
        evens, odds = philox(xp, xp.pairs(some, streams), odd, keys, multipliers)
        pieces.append(_gumbel(xp, xp.interleave([evens[0], odds[0], evens[1], odds[1]])))
    return xp.concatenate(pieces)[:, :vocab_size]


def uniforms(xp: Arrays, rows: Sequence[NoiseRow], *, stream: Stream) -> Array:
    """One uniform number in (0, 1) a row: float64 [rows]."""
    keys, odd, streams, multipliers = xp.send(NoiseWords.of(rows, stream))
    even, _ = philox(xp, xp.pairs(streams * 0, streams), odd, keys, multipliers)
    return _uniform(xp, even[0, :, 0])


def _gumbel(xp: Arrays, words: Array) -> Array:
    """Standard Gumbel from 32-bit words.

    Winners have small exponentials, that is small words: log1p keeps their resolution.
    """
    return -xp.log(-xp.log1p(-_uniform(xp, words)))


def _uniform(xp: Arrays, words: Array) -> Array:
    return (xp.doubles(words) + 0.5) * 2.0**-32  # in (0, 1), exact
