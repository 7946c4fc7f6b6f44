"""Token streams of the two parts of the corpus, and batches cut from them."""

from __future__ import annotations

from pathlib import Path

import corpus
import torch
from torch import Tensor
from transformers import AutoTokenizer

LIBRARY_REPEATS = 2


def stream(found: list[corpus.Document], folder: Path, repeats: int = 1) -> Tensor:
    """All documents as one row of tokens, each after an end-of-text token.

    Files that are no tests appear `repeats` times, so that test suites do not drown the library.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids: list[int] = []
    for document in found:
        row = tokenizer(document.text, verbose=False)["input_ids"]
        for _ in range(1 if document.is_test else repeats):
            ids.append(tokenizer.bos_token_id)
            ids.extend(row)
    return torch.tensor(ids)


def parts(folder: Path) -> tuple[Tensor, Tensor]:
    """The training stream and the held-out stream, with the tokenizer of the folder."""
    training, held_out = corpus.split(corpus.documents())
    return stream(training, folder, LIBRARY_REPEATS), stream(held_out, folder)


def crops(tokens: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """A batch of windows of length + 1 tokens at random places."""
    starts = torch.randint(0, len(tokens) - length - 1, (batch, 1), generator=generator)
    return tokens[starts + torch.arange(length + 1)]


def windows(tokens: Tensor, length: int) -> Tensor:
    """The stream cut into neighbouring windows of length + 1 tokens, the remainder dropped."""
    count = (len(tokens) - 1) // length
    return tokens[torch.arange(count)[:, None] * length + torch.arange(length + 1)]
