"""What is continued: code, prose and repetition, short and long, as token ids of the pairs.

All pairs share one tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from outrider_demo import TARGET_DIR, held_out_prompts
from tokenizers import Tokenizer

PROSE = (
    "The harbour was quiet that morning, and the old ferry",
    "When the letter finally came, nobody in the house wanted to",
    "It is a truth that every gardener learns in the second year:",
    "The committee met on Tuesday to consider whether the bridge",
)
REPETITION = (
    "one two three four five six seven eight\n" * 6,
    "def get_name(self):\n    return self.name\n\n" * 4,
    '{"id": 1, "name": "a", "tags": []},\n' * 6,
    "self.assertEqual(first, second)\n" * 8,
)


def code(count: int) -> list[list[int]]:
    """The held-out prompts; beyond their number they come again, without their first lines."""
    texts = [prompt.text for prompt in held_out_prompts()]
    chosen = []
    for index in range(count):
        again, which = divmod(index, len(texts))
        lines = texts[which].splitlines(keepends=True)
        chosen.append("".join(lines[min(again, len(lines) - 1) :]))
    return _token_ids(chosen)


def prose() -> list[list[int]]:
    """The beginnings of four texts that are not code."""
    return _token_ids(PROSE)


def repetition() -> list[list[int]]:
    """Four texts that repeat themselves."""
    return _token_ids(REPETITION)


def long(tokens: int, count: int) -> list[list[int]]:
    """Code of so many tokens: held-out prompts one after another, each text beginning elsewhere."""
    everything = [ids for prompt in code(len(held_out_prompts())) for ids in prompt]
    while len(everything) < tokens + 61 * count:
        everything += everything
    return [everything[61 * index : 61 * index + tokens] for index in range(count)]


def _token_ids(texts: Sequence[str]) -> list[list[int]]:
    return [_tokenizer().encode(text).ids for text in texts]


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TARGET_DIR / "tokenizer.json"))
