"""Prompts: random token ids of all lengths, and some that repeat themselves."""

from __future__ import annotations

import random

from exactness.model_pairs import VOCAB_SIZE


def random_prompt(chance: random.Random, *, longest: int = 40) -> list[int]:
    """A prompt of at least one token; every third one repeats itself, which prompt lookup likes."""
    length = chance.randint(1, longest)
    token_ids = [chance.randrange(VOCAB_SIZE) for _ in range(length)]
    if chance.random() < 1 / 3:
        period = max(1, length // 3)
        token_ids = (token_ids[:period] * 4)[:length]
    return token_ids


def random_prompts(count: int, *, seed: int, longest: int = 40) -> list[list[int]]:
    """Several of them, always the same for a seed."""
    chance = random.Random(seed)
    return [random_prompt(chance, longest=longest) for _ in range(count)]
