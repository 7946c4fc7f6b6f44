"""A suffix tree inside the target service: no link, no model, always answered at once."""

from __future__ import annotations

from collections.abc import Sequence

from outrider_runtime.recent_texts import RecentTexts
from outrider_runtime.suffix_lookup import SuffixLookup
from outrider_runtime.suffix_tree import NOTHING, Speculation

from outrider_target.drafting.drafter import NO_DRAFT, Draft, DraftSession, Outlook
from outrider_target.drafting.silence import Silence
from outrider_target.requests.request import DraftMethod, GenerationRequest


class SuffixSession:
    """One sequence, its own text and its tenant's recent outputs."""

    active = True
    outlook = Outlook.POSSIBLE
    silence = Silence.NOTHING_PROPOSED

    def __init__(
        self, request: GenerationRequest, token_ids: Sequence[int], texts: RecentTexts
    ) -> None:
        self._lookup = SuffixLookup(
            texts,
            request.speculation.tenant,
            token_ids,
            num_prompt_tokens=len(request.prompt),
        )
        self._found = NOTHING

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        """Index the new tokens, and some of those that wait for it."""
        self._lookup.extend(token_ids)

    def waiting_until(self, window: int, now: float) -> float | None:
        """Never waits."""
        return None

    def proposal(self, window: int) -> Draft:
        """What followed most often, there where it is the surest."""
        self._found = self._lookup.speculate(window)
        if not self._found.token_ids:
            return NO_DRAFT
        return Draft(self._found.token_ids, DraftMethod.SUFFIX, self._found.probabilities)

    @property
    def evidence(self) -> tuple[int, int]:
        """Size of the match, in powers of two, and how sure the counts are, in quarters."""
        return _match_class(self._found), _sureness_class(self._found)

    def close(self) -> None:
        """Leave the output to the tenant's later requests."""
        self._lookup.close()


def _match_class(found: Speculation) -> int:
    return found.match_size.bit_length()


def _sureness_class(found: Speculation) -> int:
    return min(3, int(4 * found.score / max(1, len(found.token_ids))))


class SuffixDrafter:
    """Opens suffix sessions."""

    def __init__(self, texts: RecentTexts) -> None:
        self._texts = texts

    def open(
        self,
        request: GenerationRequest,
        *,
        sample_index: int,
        token_ids: Sequence[int],
        window: int,
    ) -> DraftSession:
        """Begin to index the committed tokens."""
        return SuffixSession(request, token_ids, self._texts)
