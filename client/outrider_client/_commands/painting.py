"""Streams text to the terminal, accepted draft tokens apart from the target's own.

A chunk says which of its tokens were drafted, and has one text for all of them: where they differ,
the server is asked what part of it the first ones make up. Knows nothing of the request.
"""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console

from outrider_client._completion import Chunk
from outrider_client._errors import OutriderError

_ACCEPTED = "\x1b[32m{}\x1b[0m"  # green
_CONTEXT = 8  # tokens before a chunk that may change how its first ones are written
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

Detokenize = Callable[[Sequence[int]], str]


class Painter:
    """Writes the chunks of one sequence to standard output."""

    def __init__(self, detokenize: Detokenize) -> None:
        console = Console()  # knows NO_COLOR, FORCE_COLOR, TERM and what old Windows cannot do
        self._terminal = console.is_terminal
        self._colours = (
            console.color_system is not None and not console.no_color and not console.legacy_windows
        )
        self._detokenize: Detokenize | None = detokenize
        self._seen: list[int] = []
        self._at_line_start = True

    def paint(self, chunk: Chunk) -> None:
        """Writes a chunk at once."""
        # Not through the console: it would turn tabs into spaces.
        if self._colours:
            for text, drafted in self._runs(chunk):
                sys.stdout.write(_ACCEPTED.format(text) if drafted else text)
        else:
            sys.stdout.write(visible(chunk.text) if self._terminal else chunk.text)
        sys.stdout.flush()
        self._seen = (self._seen + chunk.token_ids)[-_CONTEXT:]
        if chunk.text:
            self._at_line_start = chunk.text.endswith("\n")

    def finish(self) -> None:
        """Ends the last line."""
        if not self._at_line_start:
            sys.stdout.write("\n")
        sys.stdout.flush()

    def _runs(self, chunk: Chunk) -> Iterator[tuple[str, bool]]:
        start = 0
        for end, drafted in self._ends(chunk):
            if end > start:
                yield visible(chunk.text[start:end]), drafted
                start = end

    def _ends(self, chunk: Chunk) -> Iterator[tuple[int, bool]]:
        """Where in the text each run of tokens of one kind ends."""
        runs = [(kind, len(list(run))) for kind, run in itertools.groupby(chunk.drafted)]
        count = 0
        for kind, length in runs[:-1]:
            count += length
            yield self._length(chunk, count), kind
        yield len(chunk.text), runs[-1][0] if runs else False

    def _length(self, chunk: Chunk, count: int) -> int:
        """Length of the text of the first `count` tokens of a chunk."""
        if self._detokenize is None:
            return 0
        try:
            before = self._detokenize(self._seen).rstrip(_REPLACEMENT) if self._seen else ""
            upto = self._detokenize([*self._seen, *chunk.token_ids[:count]]).rstrip(_REPLACEMENT)
        except OutriderError:  # colours are not worth a failure, nor asking again
            self._detokenize = None
            return 0
        return min(max(len(upto) - len(before), 0), len(chunk.text))


def visible(text: str) -> str:
    """`text` with its control characters made visible: a model must not steer the terminal."""
    return "".join(
        letter
        if letter in "\n\t" or unicodedata.category(letter) != "Cc"
        else f"\\x{ord(letter):02x}"
        for letter in text
    )
