"""What a request may ask for beside GenerationConfig, at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st
from outrider_client import Plugin, StructuredOutput
from parity.forms import TEXT_FORMS, Form

PLUGINS = ("alternate", "insist", "digest")
"""Those of `service.plugin_package` that are asked for."""


class Additions(NamedTuple):
    """See the client's arguments of these names."""

    negative_prompt: Sequence[int] | None = None
    logits_processors: Sequence[Plugin] = ()
    stopping_criteria: Sequence[Plugin] = ()
    form: Form | None = None
    """Of `structured_output`."""

    def arguments(self) -> dict[str, Any]:
        """For the client."""
        return {
            "negative_prompt": None if self.negative_prompt is None else list(self.negative_prompt),
            "logits_processors": list(self.logits_processors),
            "stopping_criteria": list(self.stopping_criteria),
            "structured_output": self.form and self.form.asked,
        }


def additions(
    continuation: Sequence[int], others: Sequence[Sequence[int]], vocab_size: int
) -> Mapping[str, st.SearchStrategy[Any]]:
    """Values for one text, by name.

    Args:
        continuation: What the model greedily writes.
        others: Other texts, to be guided away from.
        vocab_size: Number of tokens.
    """
    token = st.integers(0, vocab_size - 1)
    alternate = st.integers(1, 9).map(lambda by: Plugin("alternate", {"by": by}))
    insist = (token | st.sampled_from(continuation)).map(
        lambda token_id: Plugin("insist", {"token_id": token_id})
    )
    digest = st.integers(2, 9).map(lambda divisor: Plugin("digest", {"divisor": divisor}))
    beginning = st.integers(0, 5).map(lambda length: list(continuation[:length]))
    token_list = st.tuples(beginning, st.lists(token, min_size=1, max_size=4)).map(
        lambda parts: [*parts[0], *parts[1]]
    )
    token_form = st.lists(token_list, min_size=1, max_size=5).map(
        lambda lists: Form(StructuredOutput(token_choices=lists))
    )
    return {
        "negative_prompt": st.sampled_from(others) | st.lists(token, min_size=1, max_size=6),
        "logits_processors": st.lists(alternate | insist, min_size=1, max_size=2),
        "stopping_criteria": st.lists(digest, min_size=1, max_size=2),
        "form": st.sampled_from(TEXT_FORMS) | token_form,
    }
