"""Forms of few texts, all known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from outrider_client import StructuredOutput


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
        [
            json.dumps({"size": int(size), "new": new}, separators=(",", ":"))
            for size in _SIZES
            for new in (False, True)
        ],
    ),
    Form(StructuredOutput(choices=_CHOICES), _CHOICES),
    Form(
        StructuredOutput(grammar='start: "x"~2..6 ("yz" | "y")\n'),
        ["x" * number + end for number in range(2, 7) for end in ("yz", "y")],
    ),
)


class Followers:
    """What may follow in lists of token ids."""

    def __init__(self, form: Form, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = set(eos_token_ids)
        self._lists = [tuple(each) for each in form.asked.token_choices or ()]

    def allowed(self, token_ids: Sequence[int]) -> list[int]:
        """Tokens that may follow; none where the text must end and no token says so."""
        before, number = tuple(token_ids), len(token_ids)
        going_on = {each[number] for each in self._lists if each[:number] == before != each}
        return sorted(going_on | (self._eos_token_ids if before in self._lists else set()))
