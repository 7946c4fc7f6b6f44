"""Two plug-ins: a logits processor and a stopping criterion. Both are pure.

What they may look at is in `outrider_runtime.plugins`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from outrider_runtime.plugins import PluginContext
from transformers import PreTrainedTokenizerFast


class Avoid:
    """Takes a number off the scores of all tokens whose text has certain letters.

    Made once for each request: what depends on the parameters alone is found out here.
    """

    def __init__(self, context: PluginContext, *, letters: str, by: float = 10.0) -> None:
        if not letters:
            raise ValueError("letters must not be empty")
        texts = _texts(_tokenizer(context), range(context.vocab_size))
        self._avoided = [i for i, text in enumerate(texts) if set(letters) & set(text)]
        self._by = float(by)

    def __call__(
        self, token_ids: Sequence[int], prompt_length: int, scores: torch.Tensor
    ) -> torch.Tensor:
        """The scores, some of them lower."""
        scores[self._avoided] -= self._by
        return scores


class Sentences:
    """Ends the text after so many sentences."""

    def __init__(self, context: PluginContext, *, at_most: int, marks: str = ".!?") -> None:
        if at_most < 1:
            raise ValueError(f"at_most must be at least 1, got {at_most}")
        texts = _texts(_tokenizer(context), range(context.vocab_size))
        self._ends = {i for i, text in enumerate(texts) if text.strip().endswith(tuple(marks))}
        self._at_most = at_most

    def __call__(self, token_ids: Sequence[int], prompt_length: int) -> bool:
        """Whether the last token ends the last sentence that may be."""
        return sum(i in self._ends for i in token_ids[prompt_length:]) >= self._at_most


def _tokenizer(context: PluginContext) -> PreTrainedTokenizerFast:
    if context.tokenizer is None:
        raise ValueError("the model has no tokenizer")
    return context.tokenizer


def _texts(tokenizer: PreTrainedTokenizerFast, token_ids: range) -> list[str]:
    return [tokenizer.decode([i]) if i < len(tokenizer) else "" for i in token_ids]
