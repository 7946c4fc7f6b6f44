"""One sequence in two tokenizations. Knows nothing of models, trees or sessions.

The target's ids are the truth; the draft model reads their text in ids of its own and goes on
writing. *Anchors* are places where a token ends on both sides. What was written behind the last one
is read as target ids again and again, each time from a few tokens before it, because how a piece of
text falls into tokens depends on what stands around it. Where two readings contradict each other,
the target's tokens stand and the draft model's are read anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from outrider_runtime.tokenizer import StreamDecoder

from outrider_draft.session import Proposed
from outrider_draft.translation.lexicon import Encoded
from outrider_draft.translation.shared_items import SharedItems

_CONTEXT = 8
"""Tokens before a piece of text that decide what text it is; they must not begin in a character."""

_MAX_ANCHORS = 512
"""More are forgotten down to half; what reaches further back is read from the start."""

_AT_ONCE = 128
"""Of a longer text only the last so many target tokens are looked at one by one."""


class Lookbehind(NamedTuple):
    """How many tokens before new ones are read again with them."""

    draft: int
    """Of the draft model, when its text becomes target ids: `assistant_lookbehind`."""
    target: int
    """Of the target, when its text becomes draft ids: `target_lookbehind`."""


class _Anchor(NamedTuple):
    """A place where a token ends on both sides."""

    target: int
    """Target tokens before it."""
    draft: int
    """Draft tokens before it."""
    offset: int
    """Characters before it, of the text that is kept."""


class _Written(NamedTuple):
    """A draft token behind the last anchor."""

    start: int
    """Characters before it, of the text that is kept."""
    end: int | None
    """Characters before the next; None inside a character."""
    log_prob: float


class BilingualText:
    """The target's tokens, the draft model's of the same text, and what the latter adds."""

    def __init__(self, items: SharedItems, lookbehind: Lookbehind) -> None:
        self.draft_ids: list[int] = []
        """What the draft model has to see."""
        self.history: list[int] = []
        """The target's tokens, and those that the text written since would be."""
        self.ready: list[Proposed] = []
        """Target tokens that may be proposed now."""
        self.stuck = False
        """Nothing will come of what is written, nor of what would follow it."""
        self._items = items
        self._lookbehind = lookbehind
        self._text = ""  # from the first anchor on
        self._anchors: list[_Anchor] = []
        self._begins_text = True  # whether the first anchor is where text begins
        self._written: list[_Written] = []  # behind the last anchor
        self._decoder: StreamDecoder = items.draft.decoder([])
        self._reading: tuple[list[int], list[int | None]] | None = None  # of what is written

    def rewind(self, length: int) -> None:
        """Learn that target tokens from position `length` on are no longer what they were."""
        if not self._anchors or length >= self._anchors[-1].target:
            return  # what is written behind the anchor is compared anyway
        while self._anchors and self._anchors[-1].target > length:
            self._anchors.pop()
        self._written.clear()
        self._reading = None
        if self._anchors:
            self._text = self._text[: self._anchors[-1].offset]
            del self.draft_ids[self._anchors[-1].draft :]
            self._decoder = self._draft_decoder()

    def follow(self, tokens: Sequence[int]) -> int:
        """Bring both sides together.

        Args:
            tokens: The target's, committed and proposed.

        Returns:
            How many of the draft ids are what they were.
        """
        kept = len(self.draft_ids)
        if not self._anchors or not self._goes_on(tokens):
            kept = self._read_anew(tokens)
            self._reading = None
        self._look(tokens)
        return kept

    def write(self, draft_id: int, log_prob: float) -> None:
        """Add a token of the draft model; `follow` tells what becomes of it."""
        start = len(self._text)
        self.draft_ids.append(draft_id)
        self._text += self._decoder.push([draft_id])
        end = None if self._decoder.holds_back else len(self._text)
        self._written.append(_Written(start, end, log_prob))
        self._reading = None

    def end(self, token_id: int, log_prob: float, tokens: Sequence[int]) -> list[Proposed]:
        """What is left to propose where the draft model ends the text by a special token."""
        return [*self.rest(tokens), Proposed(token_id, log_prob)]

    def rest(self, tokens: Sequence[int]) -> list[Proposed]:
        """What is left to propose where the draft model writes no more."""
        return self._new(tokens, settled=False)

    def _goes_on(self, tokens: Sequence[int]) -> bool:
        """Whether the target's tokens are a beginning of what is written behind the anchor."""
        anchor = self._anchors[-1]
        behind = list(tokens[anchor.target :])
        if self._reading is not None and self._reading[0][: len(behind)] == behind:
            return True
        if any(i in self._items.target.special for i in behind):
            return False
        decoder = self._target_decoder(tokens)
        if not self._text.startswith(decoder.push(behind), anchor.offset):
            return False
        if decoder.holds_back and self._written:  # is it the character that was written?
            self._reading = self._read_back(tokens)
            return self._reading is not None
        return True

    def _look(self, tokens: Sequence[int]) -> None:
        """Read what is written as target ids, move the anchor up, and see what is new."""
        if self._reading is None:
            self._reading = self._read_back(tokens)
        if self._reading is not None:
            self._move_anchor(len(tokens))
        reading = self._reading
        behind = tokens[self._anchors[-1].target :]
        self.history = [*tokens[: len(tokens) - len(behind)], *(reading[0] if reading else behind)]
        self.ready = self._new(tokens, settled=True)
        self.stuck = not self.ready and self._is_cut(reading)

    def _is_cut(self, reading: tuple[list[int], list[int | None]] | None) -> bool:
        """Whether not all that is written can be said in target ids."""
        if reading is None:
            return True
        anchor = self._anchors[-1]
        reached = next((e for e in reversed(reading[1]) if e is not None), anchor.offset)
        return bool(self._written) and reached < len(self._text)

    def _new(self, tokens: Sequence[int], *, settled: bool) -> list[Proposed]:
        """Target tokens that what is written adds, as probable as the draft tokens in them.

        Args:
            tokens: Those that are there already.
            settled: Only those that would be the same whatever is written next.
        """
        if self._reading is None:
            return []
        ids, ends = self._reading
        known = len(tokens) - self._anchors[-1].target
        starts = _starts(self._anchors[-1].offset, ends)
        proposed = []
        for i in range(known, len(ids)):
            if settled and self._items.may_grow(self._text[starts[i] :]):
                break
            stop = starts[i + 1] if i + 1 < len(ids) else len(self._text) + 1
            log_prob = sum((w.log_prob for w in self._written if starts[i] <= w.start < stop), 0.0)
            proposed.append(Proposed(ids[i], log_prob))
        return proposed

    def _read_back(self, tokens: Sequence[int]) -> tuple[list[int], list[int | None]] | None:
        """What is written behind the anchor as target ids that go on from `tokens`.

        Returns:
            The ids, as far as their text is what is written, and where each ends in the text; None
            where they do not begin with the target's own.
        """
        target, anchor = self._items.target, self._anchors[-1]
        behind = list(tokens[anchor.target :])
        start = self._window(anchor.draft - self._lookbehind.draft, "draft")
        encoded = target.encode(self._text[start.offset :])
        first = encoded.boundary(anchor.offset - start.offset)
        ids = list(encoded.ids[first:]) if first is not None else None
        decoder = self._target_decoder(tokens)
        if ids is None or ids[: len(behind)] != behind:
            text, ends = _spell(decoder.copy(), behind, anchor.offset)
            if not self._text.startswith(text, anchor.offset):
                return None
            rest = self._text[anchor.offset + len(text) :]
            if not rest:
                return behind, ends
            ids = [*behind, *target.encode(rest).ids]
        return self._as_far_as_true(decoder, ids, len(behind))

    def _as_far_as_true(
        self, decoder: StreamDecoder, ids: list[int], known: int
    ) -> tuple[list[int], list[int | None]] | None:
        """Cut ids off where their text is not what is written."""
        offset = self._anchors[-1].offset
        ends: list[int | None] = []
        true = 0
        for token_id in ids:
            if token_id in self._items.target.special:
                break
            piece = decoder.push([token_id])
            if not self._text.startswith(piece, offset):
                break
            offset += len(piece)
            ends.append(None if decoder.holds_back else offset)
            if not decoder.holds_back:
                true = len(ends)
        return None if true < known else (ids[:true], ends[:true])

    def _move_anchor(self, num_tokens: int) -> None:
        """Put anchors wherever tokens of both sides end, as far as the target's tokens go."""
        assert self._reading is not None
        ids, ends = self._reading
        anchor = self._anchors[-1]
        places = {w.end: i + 1 for i, w in enumerate(self._written)}
        last = anchor
        for i, end in enumerate(ends[: num_tokens - anchor.target]):
            if end is not None and end in places:
                last = _Anchor(anchor.target + i + 1, anchor.draft + places[end], end)
                self._anchors.append(last)
        self._reading = (ids[last.target - anchor.target :], ends[last.target - anchor.target :])
        del self._written[: last.draft - anchor.draft]
        self._forget_old_anchors()

    def _forget_old_anchors(self) -> None:
        if len(self._anchors) <= _MAX_ANCHORS:
            return
        del self._anchors[: -_MAX_ANCHORS // 2]
        gone = self._anchors[0].offset
        self._begins_text = False
        self._text = self._text[gone:]
        self._anchors = [a._replace(offset=a.offset - gone) for a in self._anchors]
        self._written = [
            w._replace(start=w.start - gone, end=None if w.end is None else w.end - gone)
            for w in self._written
        ]
        if self._reading is not None:
            ids, ends = self._reading
            self._reading = ids, [None if end is None else end - gone for end in ends]

    def _target_decoder(self, tokens: Sequence[int]) -> StreamDecoder:
        """Goes on from the last anchor; nothing before the text began is heard."""
        end = self._anchors[-1].target
        start = self._window(end - _CONTEXT, "target").target
        return self._items.target.decoder(tokens[start:end])

    def _draft_decoder(self) -> StreamDecoder:
        """Goes on from the last draft token."""
        start = self._window(len(self.draft_ids) - _CONTEXT, "draft").draft
        return self._items.draft.decoder(self.draft_ids[start:])

    def _window(self, index: int, side: str) -> _Anchor:
        """The last anchor that is no later than a token; else the first."""
        found = (a for a in reversed(self._anchors) if getattr(a, side) <= index)
        return next(found, self._anchors[0])

    def _read_anew(self, tokens: Sequence[int]) -> int:
        """Read the target's tokens behind the last anchor; returns how many draft ids stay."""
        old = self.draft_ids
        if not self._anchors or not self._read_on(tokens):
            self._begin(tokens)
        self._decoder = self._draft_decoder()
        return next(
            (i for i, (a, b) in enumerate(zip(old, self.draft_ids, strict=False)) if a != b),
            min(len(old), len(self.draft_ids)),
        )

    def _begin(self, tokens: Sequence[int]) -> None:
        """Read all of the target's tokens."""
        prefix = self._items.draft.prefix
        self.draft_ids = [*prefix]
        self._begin_text(0)
        skipped = 0
        if prefix and tokens and self._items.specials.get(tokens[0]) == prefix[-1]:
            skipped = 1  # both put one before a text, and one is enough
            self._begin_text(1)
        read = self._read_runs(tokens, skipped)
        assert read, "nothing was kept that could contradict"

    def _begin_text(self, target: int) -> None:
        """Set the first anchor: text begins here."""
        self._text = ""
        self._begins_text = True
        self._anchors = [_Anchor(target, len(self.draft_ids), 0)]
        self._written = []

    def _read_on(self, tokens: Sequence[int]) -> bool:
        """Read on from the last anchor; False if it cannot be told where to join."""
        anchor = self._anchors[-1]
        self.draft_ids = self.draft_ids[: anchor.draft]
        self._text = self._text[: anchor.offset]
        self._written = []
        return self._read_runs(tokens, anchor.target)

    def _read_runs(self, tokens: Sequence[int], start: int) -> bool:
        """Read tokens from `start` on: runs of text, and special tokens between them."""
        for begin, end in _runs(tokens, start, self._items.target.special):
            if end > begin:
                if not self._read_run(tokens[:end], begin):
                    return False
            else:
                meant = self._items.specials.get(tokens[end])
                if meant is not None:
                    self.draft_ids.append(meant)
                self._begin_text(end + 1)
        return True

    def _read_run(self, tokens: Sequence[int], begin: int) -> bool:
        """Read text behind the last anchor, up to the end of `tokens`."""
        ends = self._take_text(tokens, begin)
        anchor = self._anchors[-1]
        window = self._window(anchor.target - self._lookbehind.target, "target")
        encoded = self._items.draft.encode(self._text[window.offset :])
        join = self._join(window, encoded)
        if join is None:
            return False
        at, first = join
        del self._anchors[self._anchors.index(at) + 1 :]
        self.draft_ids = [*self.draft_ids[: at.draft], *encoded.ids[first:]]
        for i, end in enumerate(ends):
            if end is not None:
                place = encoded.boundary(end - window.offset)
                if place is not None and place > first:
                    draft = at.draft + place - first
                    self._anchors.append(_Anchor(begin + i + 1, draft, end))
        last = self._anchors[-1]
        self._written = [
            _Written(start + window.offset, end + window.offset, 0.0)
            for start, end in zip(encoded.starts, encoded.ends, strict=True)
        ][first + last.draft - at.draft :]
        return True

    def _take_text(self, tokens: Sequence[int], begin: int) -> list[int | None]:
        """Add the text of tokens; returns where each ends, as far as it was looked at."""
        run = tokens[begin:]
        late = len(run) - _AT_ONCE if len(run) > 2 * _AT_ONCE else 0
        decoder = self._target_decoder(tokens)
        if late:
            # Where this cuts a character, the pieces are not those of the whole text: rare, and as
            # harmless as any other wrong guess.
            self._text += self._items.target.decode(run[:late])
            decoder = self._items.target.decoder(run[late - _CONTEXT : late])
        text, ends = _spell(decoder, run[late:], len(self._text))
        self._text += text
        return [*[None] * late, *ends]

    def _join(self, window: _Anchor, encoded: Encoded) -> tuple[_Anchor, int] | None:
        """The last anchor at which a new reading agrees with the old; and its tokens before it."""
        for anchor in reversed(self._anchors):
            if anchor.offset < window.offset:
                break
            place = encoded.boundary(anchor.offset - window.offset)
            if place is None:
                continue
            if anchor is self._anchors[0] and self._begins_text:
                return anchor, 0
            alike = place and encoded.ids[place - 1] == self.draft_ids[anchor.draft - 1]
            if alike or self._lookbehind.target == 0:
                return anchor, place
        return None


def _runs(tokens: Sequence[int], start: int, special: dict[int, str]) -> Iterator[tuple[int, int]]:
    """Places where runs of ordinary tokens begin and end; each special token as an empty run."""
    begin = start
    for i in range(start, len(tokens)):
        if tokens[i] in special:
            if i > begin:
                yield begin, i
            yield i, i
            begin = i + 1
    if len(tokens) > begin:
        yield begin, len(tokens)


def _spell(decoder: StreamDecoder, ids: Sequence[int], offset: int) -> tuple[str, list[int | None]]:
    """The text of tokens, and where in it each ends; None inside a character."""
    pieces: list[str] = []
    ends: list[int | None] = []
    for token_id in ids:
        pieces.append(decoder.push([token_id]))
        offset += len(pieces[-1])
        ends.append(None if decoder.holds_back else offset)
    return "".join(pieces), ends


def _starts(offset: int, ends: Sequence[int | None]) -> list[int]:
    """Where each token's text begins: those of one character all begin with it."""
    starts = []
    for end in ends:
        starts.append(offset)
        offset = offset if end is None else end
    return starts
