"""The noise is Philox4x32-10, laid out as documented, uniform, and the same however it is asked."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from outrider_runtime.model.arrays import NUMPY, Arrays, on_device
from outrider_runtime.model.noise import (
    MULTIPLIERS,
    NoiseRow,
    Stream,
    gumbel_of,
    gumbel_of_all,
    philox,
    round_keys,
)
from outrider_runtime.model.noise import uniforms as uniform_numbers
from sampling.chi_square import FALSE_ALARM, p_value

MASK = 0xFFFFFFFF
SIDES = [
    pytest.param(NUMPY, id="numpy"),
    pytest.param(on_device(torch.device("cpu")), id="torch"),
]


def reference_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """The algorithm as published, in Python integers, one counter at a time."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def reference_gumbel(token_id: int, row: NoiseRow) -> float:
    counter = (token_id >> 2, row.position, Stream.TARGET | row.sample_index << 8, 0)
    word = reference_philox(counter, (row.seed & MASK, row.seed >> 32))[token_id & 3]
    return -math.log(-math.log1p(-(word + 0.5) * 2.0**-32))


@pytest.mark.parametrize("xp", SIDES)
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((MASK,) * 4, (MASK, MASK), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(
    xp: Arrays, counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = counter
    keys = xp.integers(round_keys([key[0] | key[1] << 32]))
    multipliers = xp.integers(MULTIPLIERS[:, None])
    even, odd = philox(xp, xp.integers([[c0], [c2]]), xp.integers([[c1], [c3]]), keys, multipliers)
    assert (even[0, 0], odd[0, 0], even[1, 0], odd[1, 0]) == words
    assert reference_philox(counter, key) == words


@pytest.mark.parametrize("xp", SIDES)
def test_every_word_is_where_the_layout_says(xp: Arrays) -> None:
    rng = random.Random(1)
    rows = [
        NoiseRow(rng.getrandbits(64), rng.getrandbits(24), rng.getrandbits(32)) for _ in range(20)
    ]
    rows += [NoiseRow(0, 0, 0), NoiseRow(2**64 - 1, 2**24 - 1, 2**32 - 1)]
    token_ids = np.array([[rng.getrandbits(18) for _ in range(9)] for _ in rows])
    expected = [
        [reference_gumbel(int(token_id), row) for token_id in ids]
        for ids, row in zip(token_ids, rows, strict=True)
    ]
    actual = np.asarray(gumbel_of(xp, xp.integers(token_ids), rows))
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("xp", SIDES)
@pytest.mark.parametrize("vocab_size", [1, 5, 4096, 40_001])
def test_random_access_gives_the_words_of_the_whole_vocabulary(xp: Arrays, vocab_size: int) -> None:
    rows = [NoiseRow(7, 0, 5), NoiseRow(2**63 + 1, 3, 2**31)]
    whole = gumbel_of_all(xp, vocab_size, rows)
    assert tuple(whole.shape) == (2, vocab_size)
    rng = np.random.default_rng(2)
    token_ids = xp.integers(rng.integers(0, vocab_size, (2, 50)))
    np.testing.assert_array_equal(xp.take(whole, token_ids), gumbel_of(xp, token_ids, rows))


@pytest.mark.parametrize("xp", SIDES)
def test_streams_and_committed_lengths_have_words_of_their_own(xp: Arrays) -> None:
    rows = [NoiseRow(7, 2, 5, base) for base in (0, 4, 5)]
    seen = set()
    for stream in Stream:
        numbers = uniform_numbers(xp, rows, stream=stream)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            counter = (0, row.position, stream | row.sample_index << 8, row.base)
            word = reference_philox(counter, (row.seed & MASK, row.seed >> 32))[0]
            assert number == (word + 0.5) * 2.0**-32
        seen |= set(numbers.tolist())
    assert len(seen) == len(rows) * len(Stream)


def test_numpy_and_torch_compute_equal_words() -> None:
    rng = np.random.default_rng(3)
    even, odd = rng.integers(0, 2**32, (2, 2, 4, 100))
    keys = round_keys([int(seed) for seed in rng.integers(0, 2**63, 4)])[..., None]
    torch_side = on_device(torch.device("cpu"))
    words = even, odd, keys, MULTIPLIERS[:, None, None]
    in_numpy = philox(NUMPY, *words)
    in_torch = philox(torch_side, *map(torch.from_numpy, words))
    for ours, theirs in zip(in_numpy, in_torch, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())
        assert ours.min() >= 0
        assert ours.max() <= MASK


def uniforms(token_ids: range, rows: list[NoiseRow]) -> np.ndarray:
    """The uniform numbers behind the noise, [rows, tokens]."""
    noise = gumbel_of(NUMPY, np.tile(np.array(token_ids), (len(rows), 1)), rows)
    return np.asarray(-np.expm1(-np.exp(-noise)))


def test_noise_is_uniform_over_seeds_positions_and_tokens() -> None:
    rows = [NoiseRow(s, 0, t) for s, t in itertools.product(range(60), range(100, 160))]
    cells = (uniforms(range(80), rows) * 256).astype(int)
    assert p_value(np.bincount(cells.ravel(), minlength=256), np.full(256, 1 / 256)) > FALSE_ALARM


@pytest.mark.parametrize(
    "neighbour",
    [
        pytest.param(lambda seed, t: NoiseRow(seed, 0, t + 1), id="next position"),
        pytest.param(lambda seed, t: NoiseRow(seed + 1, 0, t), id="next seed"),
        pytest.param(lambda seed, t: NoiseRow(seed + 2**32, 0, t), id="other half of the seed"),
        pytest.param(lambda seed, t: NoiseRow(seed, 1, t), id="next sample"),
    ],
)
def test_neighbouring_noise_is_independent(neighbour: object) -> None:
    assert callable(neighbour)
    # Every second seed and position, so that no number is used twice.
    keys = list(itertools.product(range(0, 80, 2), range(50, 130, 2)))
    here = (uniforms(range(40), [NoiseRow(s, 0, t) for s, t in keys]) * 16).astype(int)
    there = (uniforms(range(40), [neighbour(s, t) for s, t in keys]) * 16).astype(int)
    counts = np.bincount((here * 16 + there).ravel(), minlength=256)
    assert p_value(counts, np.full(256, 1 / 256)) > FALSE_ALARM


def test_neighbouring_tokens_are_independent() -> None:
    cells = (uniforms(range(82), [NoiseRow(s, 0, 9) for s in range(2000)]) * 16).astype(int)
    for distance in (1, 2):  # within a counter and across two
        here = cells[:, : 82 - distance : distance + 1]
        there = cells[:, distance :: distance + 1][:, : here.shape[1]]
        counts = np.bincount((here[:, : there.shape[1]] * 16 + there).ravel(), minlength=256)
        assert p_value(counts, np.full(256, 1 / 256)) > FALSE_ALARM


def test_smallest_and_largest_words_give_finite_noise() -> None:
    smallest, largest = 0.5 * 2.0**-32, (MASK + 0.5) * 2.0**-32
    for uniform in (smallest, largest):
        assert 0 < uniform < 1
    # The bounds that follow for all noise; a draw beyond them would mean lost resolution.
    noise = gumbel_of_all(NUMPY, 100_000, [NoiseRow(s, 0, 1) for s in range(10)])
    assert noise.max() < -math.log(-math.log1p(-smallest))
    assert noise.min() > -math.log(-math.log1p(-largest))
    assert noise.max() > 10  # large noise exists: a 24-bit uniform would still allow it, 16 not
