"""A text and the places in it where a token ends on both sides.

Knows nothing of tokenizers. Offsets count characters from where the text began, also of those that
are not kept any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

MAX_ANCHORS = 512
"""More are forgotten down to half, and the text before them."""


class Anchor(NamedTuple):
    """A place where a token ends on both sides."""

    target: int
    """Target tokens before it."""
    draft: int
    """Draft tokens before it."""
    offset: int
    """Characters of the text before it."""


class AnchoredText:
    """The text since the last special token, as far as it may be needed again."""

    def __init__(self) -> None:
        self.anchors: list[Anchor] = []
        """In order; empty before anything was read."""
        self._text = ""  # from the first anchor on
        self._begin = 0  # the first anchor's offset

    @property
    def last(self) -> Anchor:
        """What comes behind it is not aligned yet."""
        return self.anchors[-1]

    @property
    def end(self) -> int:
        """Offset behind the last character."""
        return self._begin + len(self._text)

    def begin(self, target: int, draft: int) -> None:
        """Begin another text behind so many tokens of each side."""
        self.anchors = [Anchor(target, draft, 0)]
        self._text = ""
        self._begin = 0

    def since(self, offset: int) -> str:
        """The text from an offset on."""
        return self._text[offset - self._begin :]

    def says(self, piece: str, offset: int) -> bool:
        """Whether that is what stands there."""
        return self._text.startswith(piece, offset - self._begin)

    def add(self, piece: str) -> None:
        """Go on."""
        self._text += piece

    def cut(self) -> None:
        """Drop what is behind the last anchor."""
        self._text = self._text[: self.last.offset - self._begin]

    def rewind(self, num_target: int) -> bool:
        """Drop anchors behind so many target tokens; returns whether there were any."""
        kept = len(self.anchors)
        while kept and self.anchors[kept - 1].target > num_target:
            kept -= 1
        found = kept < len(self.anchors)
        del self.anchors[kept:]
        return found

    def drop_behind(self, anchor: Anchor) -> None:
        """Drop the anchors behind one of them; the text stays."""
        while self.last != anchor:
            self.anchors.pop()

    def put(self, anchors: Sequence[Anchor]) -> None:
        """Add anchors behind the last one, forgetting the oldest if they become too many."""
        self.anchors += anchors
        if len(self.anchors) > MAX_ANCHORS:
            del self.anchors[: -MAX_ANCHORS // 2]
            self._text = self.since(self.anchors[0].offset)
            self._begin = self.anchors[0].offset

    def window(self, tokens: Callable[[Anchor], int], index: int) -> Anchor:
        """The last anchor with at most `index` tokens before it, of either side; else the first."""
        found = (anchor for anchor in reversed(self.anchors) if tokens(anchor) <= index)
        return next(found, self.anchors[0])


def of_target(anchor: Anchor) -> int:
    """Target tokens before an anchor."""
    return anchor.target


def of_draft(anchor: Anchor) -> int:
    """Draft tokens before an anchor."""
    return anchor.draft
