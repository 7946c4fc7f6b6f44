"""What a suffix tree says of a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MAX_DEPTH = 32
"""Longest window that is told apart."""


class Speculation(NamedTuple):
    """What probably follows a context."""

    token_ids: Sequence[int] = ()
    probabilities: Sequence[float] = ()
    """Of each token after those before it: its share of the counts, less the doubt whether the text
    goes on like those counted, which is the smaller the longer it did."""
    score: float = 0.0
    """How many of the tokens will be right, going by the probabilities."""
    match_size: int = 0
    """Tokens of context that were found."""


NOTHING = Speculation()
