"""One sequence in two tokenizations. Knows nothing of models, trees or sessions.

The target's ids are the truth; the draft model reads their text in ids of its own and goes on
writing. *Anchors* are places where a token ends on both sides. What was written behind the last one
is read as target ids again and again, each time from a few tokens before it, because how a piece of
text falls into tokens depends on what stands around it. Where the two contradict each other, the
target's tokens stand and the draft model's are read anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outrider_runtime.tokenizer import StreamDecoder

from outrider_draft.line import Proposed
from outrider_draft.translation.anchored_text import Anchor, AnchoredText, of_draft, of_target
from outrider_draft.translation.lexicon import Encoded
from outrider_draft.translation.reading import Reading, runs, spell
from outrider_draft.translation.shared_items import SharedItems

_CONTEXT = 8
"""Tokens before a piece of text that decide what text it is; they must not begin in a character."""

_LOOKED_AT = 128
"""Of a longer text only the last so many target tokens are looked at one by one."""


class Lookbehind(NamedTuple):
    """How many tokens before new ones are read again with them."""

    draft: int
    """Of the draft model, when its text becomes target ids: `assistant_lookbehind`."""
    target: int
    """Of the target, when its text becomes draft ids: `target_lookbehind`."""


class _Written(NamedTuple):
    """A draft token behind the last anchor."""

    start: int
    """Offset before it."""
    end: int | None
    """Offset behind it; None inside a character."""
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
        self._text = AnchoredText()
        self._written: list[_Written] = []
        self._decoder: StreamDecoder = items.draft.decoder([])
        self._reading: Reading | None = None  # of what is behind the last anchor

    def rewind(self, length: int) -> None:
        """Learn that target tokens from position `length` on are no longer what they were."""
        if not self._text.rewind(length):
            return  # what is behind the last anchor is compared anyway
        self._written.clear()
        self._reading = None
        if self._text.anchors:
            self._text.cut()
            del self.draft_ids[self._text.last.draft :]
            self._decoder = self._draft_decoder()

    def follow(self, tokens: Sequence[int]) -> int:
        """Bring both sides together.

        Args:
            tokens: The target's, committed and proposed.

        Returns:
            How many of the draft ids are what they were.
        """
        kept = len(self.draft_ids)
        if not self._text.anchors or not self._goes_on(tokens):
            kept = self._read_anew(tokens)
            self._reading = None
        if self._reading is None:
            self._reading = self._read_back(tokens)
        if self._reading is not None:
            self._move_anchor(self._reading, len(tokens))
        self._take_stock(tokens)
        return kept

    def write(self, draft_id: int, log_prob: float) -> None:
        """Add a token of the draft model; `follow` tells what becomes of it."""
        start = self._text.end
        self.draft_ids.append(draft_id)
        self._text.add(self._decoder.push([draft_id]))
        end = None if self._decoder.holds_back else self._text.end
        self._written.append(_Written(start, end, log_prob))
        self._reading = None

    def rest(self, tokens: Sequence[int]) -> list[Proposed]:
        """What is left to propose where the draft model writes no more."""
        return self._new(tokens, settled=False)

    def _goes_on(self, tokens: Sequence[int]) -> bool:
        """Whether the target's tokens are a beginning of what stands behind the anchor."""
        behind = list(tokens[self._text.last.target :])
        if self._reading is not None and self._reading.begins_with(behind):
            return True
        if not self._items.target.special.keys().isdisjoint(behind):
            return False
        decoder = self._target_decoder(tokens)
        if not self._text.says(decoder.push(behind), self._text.last.offset):
            return False
        if decoder.holds_back and self._written:  # is it the character that was written?
            self._reading = self._read_back(tokens)
            return self._reading is not None
        return True

    def _take_stock(self, tokens: Sequence[int]) -> None:
        """See what there is to propose."""
        anchor, reading = self._text.last, self._reading
        behind = tokens[anchor.target :]
        read = behind if reading is None else reading.token_ids
        self.history = [*tokens[: len(tokens) - len(behind)], *read]
        self.ready = self._new(tokens, settled=True)
        unsaid = bool(self._written) and (
            reading is None or reading.reach(anchor.offset) < self._text.end
        )
        self.stuck = unsaid and not self.ready

    def _new(self, tokens: Sequence[int], *, settled: bool) -> list[Proposed]:
        """Target tokens that what is written adds, as probable as the draft tokens in them.

        Args:
            tokens: Those that are there already.
            settled: Only those that would be the same whatever is written next.
        """
        if self._reading is None:
            return []
        token_ids = self._reading.token_ids
        starts = [*self._reading.starts(self._text.last.offset), self._text.end + 1]
        proposed = []
        for i in range(len(tokens) - self._text.last.target, len(token_ids)):
            start, stop = starts[i], starts[i + 1]
            if settled and self._items.may_grow(self._text.since(start)):
                break
            log_prob = sum((w.log_prob for w in self._written if start <= w.start < stop), 0.0)
            proposed.append(Proposed(token_ids[i], log_prob))
        return proposed

    def _read_back(self, tokens: Sequence[int]) -> Reading | None:
        """What stands behind the anchor as target ids that go on from `tokens`.

        Returns:
            The ids, as far as their text is what stands there; None where they do not begin with
            the target's own.
        """
        target, anchor = self._items.target, self._text.last
        behind = list(tokens[anchor.target :])
        start = self._text.window(of_draft, anchor.draft - self._lookbehind.draft)
        encoded = target.encode(self._text.since(start.offset))
        first = encoded.boundary(anchor.offset - start.offset)
        token_ids = None if first is None else list(encoded.ids[first:])
        decoder = self._target_decoder(tokens)
        if token_ids is None or token_ids[: len(behind)] != behind:
            own = spell(decoder.copy(), behind, anchor.offset)
            if not self._text.says(own.text, anchor.offset):
                return None
            rest = self._text.since(anchor.offset + len(own.text))
            if not rest:
                return own.reading
            token_ids = [*behind, *target.encode(rest).ids]
        return self._as_far_as_true(decoder, token_ids, len(behind))

    def _as_far_as_true(
        self, decoder: StreamDecoder, token_ids: list[int], known: int
    ) -> Reading | None:
        """Cut ids off where their text is not what stands there; None if the known ones are cut."""
        offset = self._text.last.offset
        ends: list[int | None] = []
        true = 0
        for token_id in token_ids:
            piece = decoder.push([token_id])
            if token_id in self._items.target.special or not self._text.says(piece, offset):
                break
            offset += len(piece)
            ends.append(None if decoder.holds_back else offset)
            if not decoder.holds_back:
                true = len(ends)
        return None if true < known else Reading(token_ids[:true], ends[:true])

    def _move_anchor(self, reading: Reading, num_tokens: int) -> None:
        """Put anchors wherever tokens of both sides end, as far as the target's tokens go."""
        old = self._text.last
        places = {written.end: i for i, written in enumerate(self._written, start=1)}
        known = enumerate(reading.ends[: num_tokens - old.target], start=1)
        self._text.put(
            [
                Anchor(old.target + i, old.draft + places[end], end)
                for i, end in known
                if end is not None and end in places
            ]
        )
        self._reading = reading.behind(self._text.last.target - old.target)
        del self._written[: self._text.last.draft - old.draft]

    def _target_decoder(self, tokens: Sequence[int]) -> StreamDecoder:
        """Goes on from the last anchor; nothing before the text began is heard."""
        end = self._text.last.target
        start = self._text.window(of_target, end - _CONTEXT).target
        return self._items.target.decoder(tokens[start:end])

    def _draft_decoder(self) -> StreamDecoder:
        """Goes on from the last draft token."""
        start = self._text.window(of_draft, len(self.draft_ids) - _CONTEXT).draft
        return self._items.draft.decoder(self.draft_ids[start:])

    def _read_anew(self, tokens: Sequence[int]) -> int:
        """Read the target's tokens behind the last anchor; returns how many draft ids stay."""
        old = self.draft_ids
        if not self._text.anchors or not self._read_on(tokens):
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
        # Both may put a special token before a text, and one is enough.
        twice = prefix and tokens and self._items.specials.get(tokens[0]) == prefix[-1]
        self._begin_text(1 if twice else 0)
        self._read_runs(tokens)

    def _begin_text(self, target: int) -> None:
        """Text begins here: behind so many target tokens, and all draft tokens."""
        self._text.begin(target, len(self.draft_ids))
        self._written = []

    def _read_on(self, tokens: Sequence[int]) -> bool:
        """Read on from the last anchor; False if it cannot be told where to join."""
        self.draft_ids = self.draft_ids[: self._text.last.draft]
        self._text.cut()
        self._written = []
        return self._read_runs(tokens)

    def _read_runs(self, tokens: Sequence[int]) -> bool:
        """Read on from the last anchor: runs of text, and special tokens between them."""
        target = self._items.target
        for begin, end in runs(tokens, self._text.last.target, target.special):
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
        window = self._text.window(of_target, begin - self._lookbehind.target)
        encoded = self._items.draft.encode(self._text.since(window.offset))
        join = self._join(window, encoded)
        if join is None:
            return False
        at, first = join
        self._text.drop_behind(at)
        self.draft_ids = [*self.draft_ids[: at.draft], *encoded.ids[first:]]
        anchors = []
        for i, end in enumerate(ends, start=begin + 1):
            place = None if end is None else encoded.boundary(end - window.offset)
            if end is not None and place is not None and place > first:
                anchors.append(Anchor(i, at.draft + place - first, end))
        self._text.put(anchors)
        behind = first + self._text.last.draft - at.draft
        spans = zip(encoded.starts[behind:], encoded.ends[behind:], strict=True)
        self._written = [
            _Written(start + window.offset, end + window.offset, 0.0) for start, end in spans
        ]
        return True

    def _take_text(self, tokens: Sequence[int], begin: int) -> list[int | None]:
        """Add the text of tokens; returns where each ends, as far as it was looked at."""
        run = tokens[begin:]
        decoder = self._target_decoder(tokens)
        unseen = len(run) - _LOOKED_AT if len(run) > 2 * _LOOKED_AT else 0
        if unseen:
            # Where this cuts a character, the pieces are not those of the whole text: rare, and as
            # harmless as any other wrong guess.
            self._text.add(self._items.target.decode(run[:unseen]))
            decoder = self._items.target.decoder(run[unseen - _CONTEXT : unseen])
        text, reading = spell(decoder, run[unseen:], self._text.end)
        self._text.add(text)
        return [*[None] * unseen, *reading.ends]

    def _join(self, window: Anchor, encoded: Encoded) -> tuple[Anchor, int] | None:
        """The last anchor at which a new reading agrees with the old; and its tokens before it."""
        for anchor in reversed(self._text.anchors):
            if anchor.offset < window.offset:
                break
            place = encoded.boundary(anchor.offset - window.offset)
            if place is None:
                continue
            if anchor.offset == 0:
                return anchor, 0
            alike = place and encoded.ids[place - 1] == self.draft_ids[anchor.draft - 1]
            if alike or self._lookbehind.target == 0:
                return anchor, place
        return None
