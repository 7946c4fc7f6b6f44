"""How many tokens of a drawn draft are kept: speculative sampling with block verification.

The output has the target's distribution exactly, whatever the drafter's; which output it is
depends on the draft, unlike with agreement (`acceptance`). Of all rules for one path this keeps
most tokens. Source: Sun et al. 2024, "Block Verification Accelerates Speculative Decoding", arXiv
2403.10444, algorithm 2; after Leviathan et al. 2023, arXiv 2211.17192. Pure; knows nothing of
models or noise.

It holds only if each token was drawn from exactly the distribution told, and if nothing that
depends on a drawn token decided whether that token is here: a draft may end anywhere, but what was
drawn and could have come first is never left out. What was drawn behind the tokens kept has had its
say and is spent; the target's own token never leads there: where it could be the draft token that
was not kept, that one is kept for certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]


class Place(NamedTuple):
    """A draft token, and what both sides say of its position.

    Attributes:
        drawn: The token, as an index into the tokens that its distribution holds.
        draft: [tokens], the drafter's probabilities: all of them, they add up to 1.
        target: [tokens], the target's probabilities of the same tokens, after all processors.
    """

    drawn: int
    draft: Probabilities
    target: Probabilities


class Prefix(NamedTuple):
    """The first tokens of a draft.

    Attributes:
        scale: p_i of the paper: with this probability they, or more, are kept.
        chance: h_i of the paper: with this probability they are kept where no longer prefix is.
    """

    scale: float
    chance: float


class Verdict(NamedTuple):
    """What is kept.

    Attributes:
        num_accepted: Draft tokens kept.
        scale: Behind them, and before a draft token that is not kept, the target's own token comes
            from `max(scale * target - draft, 0)`, normalised. Without effect after the whole draft:
            there it comes from the target's distribution.
    """

    num_accepted: int
    scale: float


def verify_block(places: Sequence[Place], uniforms: Sequence[float]) -> Verdict:
    """Decide how much of a draft is kept.

    Args:
        places: The draft.
        uniforms: For each place an independent number in (0, 1), used for nothing else ever.
    """
    prefixes = weigh(places)
    num_accepted = 0
    for length, (prefix, uniform) in enumerate(zip(prefixes, uniforms, strict=True), start=1):
        # No early end: a block whose first tokens alone would not be kept can be kept as a whole.
        if uniform <= prefix.chance:
            num_accepted = length
    return Verdict(num_accepted, prefixes[num_accepted - 1].scale if num_accepted else 1.0)


def weigh(places: Sequence[Place]) -> list[Prefix]:
    """For each length of a draft, from one token on, how it fares."""
    prefixes: list[Prefix] = []
    scale = 1.0
    for length, place in enumerate(places, start=1):
        ratio = place.target[place.drawn] / place.draft[place.drawn]
        scale = min(1.0, scale * float(ratio))
        whole = length == len(places)
        prefixes.append(Prefix(scale, scale if whole else _chance(places[length], scale)))
    return prefixes


def _chance(following: Place, scale: float) -> float:
    """The probability h_i to keep a prefix of this scale and nothing behind it, or more."""
    if scale == 1.0:
        return 1.0
    outside = max(0.0, 1.0 - float(following.target.sum()))
    excess = np.maximum(scale * following.target - following.draft, 0.0)
    left = scale * outside + float(excess.sum())
    return left / (left + 1.0 - scale)
