"""Which draft tokens of a round are kept. Pure; knows nothing of models, gRPC or scheduling.

The words, as in the papers: a draft token is *accepted* when it equals the target's own token at
its position. At the first disagreement the target's own token is emitted instead: the *recovered*
token. After full acceptance the target's token for the position behind the draft comes for free:
the *bonus* token. Either way a round emits at least one token, decided by the target alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Acceptance(NamedTuple):
    """What a round decided for one sequence.

    Attributes:
        token_ids: The decided tokens: accepted draft tokens, then the recovered or bonus token.
        num_accepted: How many of them the drafter had proposed.
    """

    token_ids: list[int]
    num_accepted: int


def accept(draft: Sequence[int], own: Sequence[int]) -> Acceptance:
    """Agreement with the target's own sample ("exact" verification).

    Args:
        draft: k proposed tokens x_1..x_k.
        own: The target's own tokens y_1..y_{k+1}, where y_t was computed for the prefix ending in
            x_{t-1}; what follows the first disagreement was computed for a prefix that does not
            exist and is ignored.

    Returns:
        y_1..y_{n+1}, where n is the length of the longest common prefix of draft and own.
    """
    num_accepted = 0
    for proposed, decided in zip(draft, own, strict=False):
        if proposed != decided:
            break
        num_accepted += 1
    return Acceptance(list(own[: num_accepted + 1]), num_accepted)


def accept_furthest(
    draft: Sequence[int],
    own: Sequence[int],
    others: Sequence[Sequence[int]],
    own_on_others: Sequence[Sequence[int]],
) -> Acceptance:
    """`accept` for several paths: the one that agrees furthest.

    Paths agree with the target's own tokens as far as these go along them, so two that agree
    equally far decide the same tokens.

    Args:
        draft: The first path.
        own: As for `accept`.
        others: Further paths from the same committed tokens.
        own_on_others: For each the target's own tokens behind its tokens, the first included.
    """
    best = accept(draft, own)
    for path, behind in zip(others, own_on_others, strict=True):
        found = accept(path, [own[0], *behind])
        if found.num_accepted > best.num_accepted:
            best = found
    return best
