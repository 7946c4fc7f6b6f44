"""What a plug-in is: code of one's own that requests may name, found through entry points.

A package offers plug-ins in its pyproject.toml:

    [project.entry-points."outrider.logits_processors"]
    avoid = "my_package:Avoid"

    [project.entry-points."outrider.stopping_criteria"]
    sentences = "my_package:Sentences"

The name is what requests say and what the server's `--plugin` allows. Behind it stands a *maker*: a
class or function that takes a `PluginContext` and, as keyword arguments, the request's parameters,
and returns the plug-in for that request. A `TypeError` or `ValueError` of the maker tells the
sender that the parameters are wrong; the first line of its docstring is what `GetServerInfo` shows.

Plug-ins are pure: what they return depends on their arguments and on nothing else, no earlier call,
clock or random number. Drafts are verified many tokens at a time, rejected, and computed again, and
the text must be the same; so nothing may be remembered between calls. They run in the engine's
thread, for every token of the requests that name them: all others wait for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

LOGITS_PROCESSORS = "outrider.logits_processors"
STOPPING_CRITERIA = "outrider.stopping_criteria"
"""Entry point groups."""


@dataclass(frozen=True, slots=True)
class PluginContext:
    """What a plug-in may know of the server and the request."""

    vocab_size: int
    """Number of token ids the model can emit."""
    eos_token_ids: Sequence[int]
    """The request's end-of-sequence tokens."""
    tokenizer: PreTrainedTokenizerFast | None
    """The served model's; None when it has none."""


class LogitsProcessor(Protocol):
    """Changes the scores of one row."""

    def __call__(
        self, token_ids: Sequence[int], prompt_length: int, scores: torch.Tensor
    ) -> torch.Tensor:
        """The scores of the next token.

        Runs after transformers' processors and before temperature and truncations, where
        transformers puts a caller's own.

        Args:
            token_ids: All tokens before it, prompt first.
            prompt_length: How many of them are the prompt's.
            scores: Float32 [vocab], on the model's device; the plug-in's own, to be changed freely.

        Returns:
            [vocab]; minus infinity forbids a token.
        """


class StoppingCriterion(Protocol):
    """Decides whether a sequence ends."""

    def __call__(self, token_ids: Sequence[int], prompt_length: int) -> bool:
        """Whether the sequence ends with its last token; asked at each generated token.

        Args:
            token_ids: All tokens, prompt first.
            prompt_length: How many of them are the prompt's; at least one more is there.
        """
