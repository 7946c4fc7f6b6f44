"""Tokens of a text and where in it each ends. Knows nothing of anchors or of the other side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from outrider_runtime.tokenizer import StreamDecoder


class Reading(NamedTuple):
    """Tokens of a piece of text."""

    token_ids: list[int]
    ends: list[int | None]
    """Offset behind each; None inside a character."""

    def begins_with(self, token_ids: list[int]) -> bool:
        """Whether these are its first tokens."""
        return self.token_ids[: len(token_ids)] == token_ids

    def starts(self, offset: int) -> list[int]:
        """Offset before each token; those of one character all begin with it.

        Args:
            offset: Where the piece begins.
        """
        starts = []
        for end in self.ends:
            starts.append(offset)
            offset = offset if end is None else end
        return starts

    def reach(self, offset: int) -> int:
        """Offset behind its last whole character, `offset` if it has none."""
        return next((end for end in reversed(self.ends) if end is not None), offset)

    def behind(self, num_tokens: int) -> Reading:
        """What is left without the first tokens."""
        return Reading(self.token_ids[num_tokens:], self.ends[num_tokens:])


class Spelled(NamedTuple):
    """The text of tokens."""

    text: str
    """Without a character that is not finished."""
    reading: Reading


def spell(decoder: StreamDecoder, token_ids: Sequence[int], offset: int) -> Spelled:
    """The text of tokens that stand at an offset.

    Args:
        decoder: Goes on from what is before them.
        token_ids: The tokens.
        offset: Where they stand.
    """
    pieces: list[str] = []
    ends: list[int | None] = []
    for token_id in token_ids:
        pieces.append(decoder.push([token_id]))
        offset += len(pieces[-1])
        ends.append(None if decoder.holds_back else offset)
    return Spelled("".join(pieces), Reading(list(token_ids), ends))


def runs(
    token_ids: Sequence[int], start: int, special: Mapping[int, str]
) -> Iterator[tuple[int, int]]:
    """Where runs of ordinary tokens begin and end; each special token is a run of none."""
    begin = start
    for i in range(start, len(token_ids)):
        if token_ids[i] in special:
            if i > begin:
                yield begin, i
            yield i, i
            begin = i + 1
    if len(token_ids) > begin:
        yield begin, len(token_ids)
