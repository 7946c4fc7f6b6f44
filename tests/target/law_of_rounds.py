"""The exact distribution of texts that rounds of draft and verification write, by enumeration.

A tiny world: three tokens, texts of a few tokens, distributions that are a fixed function of the
text so far. Every draw of the drafter, every length kept and every own token is followed, weighted
by its probability in float64; nothing is sampled.
"""

from __future__ import annotations

import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from outrider_runtime.sparse_distribution import SparseDistribution
from outrider_target.decoding.block_verification import Place, Probabilities, weigh
from outrider_target.decoding.speculative_sampling import residual

Text = tuple[int, ...]
Law = dict[Text, float]
Rule = Callable[[list[Place]], list[tuple[float, float]]]
"""From a draft to the probability of each number of tokens kept, from none to all, and the scale
of the residual behind them."""

VOCAB_SIZE = 3
EOS = 2


def by_block(places: list[Place]) -> list[tuple[float, float]]:
    """The rule that is served."""
    prefixes = weigh(places)
    chances, scales = [p.chance for p in prefixes], [1.0, *(p.scale for p in prefixes)]
    return [
        ((1.0 if kept == 0 else chances[kept - 1]) * _none_of(chances[kept:]), scales[kept])
        for kept in range(len(places) + 1)
    ]


def by_token(places: list[Place]) -> list[tuple[float, float]]:
    """Token by token, to the first that is not kept: Leviathan et al. 2023, the oracle."""
    chances = [min(1.0, place.target[place.drawn] / place.draft[place.drawn]) for place in places]
    return [
        (float(np.prod(chances[:kept])) * (1 - chances[kept] if kept < len(places) else 1.0), 1.0)
        for kept in range(len(places) + 1)
    ]


def by_block_with_early_end(places: list[Place]) -> list[tuple[float, float]]:
    """Wrong: looks no further than the first prefix that is not kept."""
    prefixes = weigh(places)
    chances, scales = [p.chance for p in prefixes], [1.0, *(p.scale for p in prefixes)]
    return [
        (
            float(np.prod(chances[:kept])) * (1 - chances[kept] if kept < len(places) else 1.0),
            scales[kept],
        )
        for kept in range(len(places) + 1)
    ]


def by_block_with_token_residual(places: list[Place]) -> list[tuple[float, float]]:
    """Wrong: draws the target's own token as token-level verification does."""
    return [(probability, 1.0) for probability, _ in by_block(places)]


def _none_of(chances: list[float]) -> float:
    return float(np.prod([1 - chance for chance in chances]))


@dataclass
class World:
    """Distributions, a drafter's habits, and a rule."""

    seed: int
    rule: Rule = by_block
    num_tokens: int = 4
    window: int = 3
    run_ahead: int = 0
    stops: bool = False
    """Whether the drafter stops where its distribution is flat, before or after a token."""
    support: int = 2
    certain: float = 0.0
    """Share of positions at which the drafter proposes without drawing."""
    drops_unlikely: bool = False
    """Wrong: a drawn token is left out when it was improbable."""
    tells_another: bool = False
    """Wrong: the distribution told is not the one drawn from."""
    _laws: dict[tuple[Text, Text], Law] = field(default_factory=dict)

    def target(self, text: Text) -> Probabilities:
        """The target's distribution; some tokens are impossible, as after top_k."""
        chance = self._chance("target", text)
        values = np.array([chance.random() ** 2 for _ in range(VOCAB_SIZE)])
        if chance.random() < 0.3:
            values[chance.randrange(VOCAB_SIZE)] = 0.0
        normalised: Probabilities = values / values.sum()
        return normalised

    def draft(self, text: Text) -> SparseDistribution | None:
        """The drafter's distribution; None where it draws nothing."""
        chance = self._chance("draft", text)
        if chance.random() < self.certain:
            return None
        token_ids = chance.sample(range(VOCAB_SIZE), self.support)
        return SparseDistribution(token_ids, [chance.randint(1, 9) for _ in token_ids])

    def plain_law(self) -> Law:
        """What the target writes by itself."""
        law: Law = {(): 1.0}
        for _ in range(self.num_tokens):
            longer: defaultdict[Text, float] = defaultdict(float)
            for text, probability in law.items():
                if EOS in text:
                    longer[text] += probability
                    continue
                for token_id, share in enumerate(self.target(text)):
                    longer[(*text, token_id)] += probability * float(share)
            law = longer
        return {text: probability for text, probability in law.items() if probability}

    def law(self, text: Text = (), chain: Text = ()) -> Law:
        """What rounds write behind a text, with these draft tokens left from earlier."""
        if len(text) >= self.num_tokens or EOS in text:
            return {text: 1.0}
        if (text, chain) not in self._laws:
            total: defaultdict[Text, float] = defaultdict(float)
            for probability, longer, left in self._round(text, chain):
                for whole, share in self.law(longer, left).items():
                    total[whole] += probability * share
            self._laws[text, chain] = dict(total)
        return self._laws[text, chain]

    def expected_accepted(self) -> float:
        """Draft tokens kept in the first round."""
        return sum(
            drawn * kept * probability
            for drawn, chain in self.drafts((), ())
            for kept, (probability, _) in enumerate(self.outcomes((), chain))
        )

    def _round(self, text: Text, chain: Text) -> Iterator[tuple[float, Text, Text]]:
        """(probability, text afterwards, draft tokens that are left)."""
        size = min(self.window, self.num_tokens - len(text) - 1)
        for drawn, whole in self.drafts(text, chain):
            verified = whole[:size]
            for kept, (probability, own) in enumerate(self.outcomes(text, verified)):
                for token_id, share in enumerate(own):
                    agrees = whole[kept : kept + 1] == (token_id,)
                    left = whole[kept + 1 :] if agrees else ()
                    longer = self._ended((*text, *verified[:kept], token_id))
                    if share and probability:
                        yield drawn * probability * share, longer, left

    def outcomes(self, text: Text, draft: Text) -> Iterator[tuple[float, list[float]]]:
        """By number of tokens kept: its probability, and the law of the target's own token."""
        for kept, (probability, scale) in enumerate(self.rule(self._places(text, draft))):
            yield probability, self._own(text, draft, kept, scale)

    def drafts(self, text: Text, chain: Text) -> Iterator[tuple[float, Text]]:
        """(probability, chain), once the drafter has gone as far as it goes."""
        here = (*text, *chain)
        distribution = self.draft(here)
        if len(chain) >= self.window + self.run_ahead or EOS in chain or self._stop(here):
            yield 1.0, chain
            return
        if distribution is None:
            certain = self._chance("certain", here).randrange(VOCAB_SIZE)
            yield from self.drafts(text, (*chain, certain))
            return
        for token_id, weight in zip(*distribution, strict=True):
            drawn = weight / sum(distribution.weights)
            if self.drops_unlikely and drawn < 0.4:
                yield drawn, chain
                continue
            for probability, whole in self.drafts(text, (*chain, token_id)):
                yield drawn * probability, whole

    def _stop(self, text: Text) -> bool:
        return self.stops and self._chance("stop", text).random() < 0.4

    def _places(self, text: Text, draft: Text) -> list[Place]:
        places: list[Place] = []
        for number, token_id in enumerate(draft):
            here = (*text, *draft[:number])
            told = self._told(here, token_id)
            target = self.target(here)[list(told.token_ids)]
            weights = np.array(told.weights, np.float64)
            drawn = list(told.token_ids).index(token_id)
            places.append(Place(drawn, weights / weights.sum(), target))
        return places

    def _told(self, text: Text, token_id: int) -> SparseDistribution:
        told = self.draft(text) or SparseDistribution([token_id], [1])
        if self.tells_another:
            return SparseDistribution(told.token_ids, [weight**2 for weight in told.weights])
        return told

    def _own(self, text: Text, draft: Text, kept: int, scale: float) -> list[float]:
        """[vocab]: the law of the target's own token behind what is kept."""
        here = (*text, *draft[:kept])
        weights = torch.from_numpy(self.target(here))
        if kept < len(draft):
            weights = residual(weights, scale, self._told(here, draft[kept]))
        values: list[float] = (weights / weights.sum()).tolist()
        return values

    def _ended(self, text: Text) -> Text:
        for length, token_id in enumerate(text, start=1):
            if token_id == EOS:
                return text[:length]
        return text[: self.num_tokens]

    def _chance(self, purpose: str, text: Text) -> random.Random:
        return random.Random(zlib.crc32(f"{self.seed} {purpose} {text}".encode()))


def distance(law: Law, other: Law) -> float:
    """Total variation."""
    return sum(abs(law.get(t, 0.0) - other.get(t, 0.0)) for t in law.keys() | other.keys()) / 2
