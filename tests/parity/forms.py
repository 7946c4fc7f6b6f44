"""Forms of few texts, all known: what may follow a prefix is seen by looking through them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outrider_client import StructuredOutput
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Form:
    """What a text has to look like.

    Args:
        asked: Of the service.
        texts: All texts of the form, ASCII; empty where it lists token ids.
    """

    asked: StructuredOutput
    texts: Sequence[str] = ()


_SIZES = ["1", "22", "333"]
_SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": [int(size) for size in _SIZES]}, "new": {"type": "boolean"}},
    "required": ["size", "new"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
_CHOICES = ["the target", "the target decides", "the draft", "d"]

TEXT_FORMS = (
    Form(
        StructuredOutput(regex="(ab|c){1,3}-?[01]{2,4}"),
        [
            "".join(head) + dash + "".join(tail)
            for i, j in itertools.product((1, 2, 3), (2, 3, 4))
            for head in itertools.product(("ab", "c"), repeat=i)
            for dash in ("", "-")
            for tail in itertools.product("01", repeat=j)
        ],
    ),
    Form(
        StructuredOutput(json_schema=_SCHEMA),
        [json.dumps({"size": int(size), "new": new}) for size in _SIZES for new in (False, True)],
    ),
    Form(StructuredOutput(choices=_CHOICES), _CHOICES),
    Form(
        StructuredOutput(grammar='start: "x"~2..6 ("yz" | "y")\n'),
        ["x" * number + end for number in range(2, 7) for end in ("yz", "y")],
    ),
)


class Followers:
    """What may follow in a form, by its list of texts.

    Args:
        form: It.
        pieces: Texts of the tokens, by id.
        eos_token_ids: Tokens that end a text.
    """

    def __init__(self, form: Form, pieces: Mapping[int, str], eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = set(eos_token_ids)
        self._lists = [tuple(each) for each in form.asked.token_choices or ()]
        self._pieces = pieces
        self._texts = set(form.texts)
        self._prefixes = {text[:end] for text in form.texts for end in range(1, len(text) + 1)}

    def allowed(self, token_ids: Sequence[int]) -> list[int]:
        """Tokens that may follow; none where the text must end and no token says so."""
        if self._lists:
            before, number = tuple(token_ids), len(token_ids)
            going_on = {each[number] for each in self._lists if each[:number] == before != each}
            complete = before in self._lists
        else:
            text = "".join(self._pieces.get(each, "\0") for each in token_ids)
            going_on = {
                token_id
                for token_id, piece in self._pieces.items()
                if text + piece in self._prefixes
            } - self._eos_token_ids
            complete = text in self._texts
        return sorted(going_on | (self._eos_token_ids if complete else set()))


def pieces_of(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    """The texts of those tokens that are ASCII."""
    texts = {token_id: tokenizer.decode([token_id]) for token_id in range(len(tokenizer))}
    special = set(tokenizer.all_special_ids)
    return {
        token_id: text
        for token_id, text in texts.items()
        if text and text.isascii() and token_id not in special
    }
