"""Prompts that begin alike, and chats: when the first token comes, prefix cache or not.

Two targets take turns, one with its prefix cache and one without. Each repetition has tokens of its
own, so that the cache knows nothing of it but what the repetition itself has asked.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from outrider_client import SpeculationConfig

from benchmarks import outrider_services
from benchmarks.contenders import Outcome, Outrider, Workload
from benchmarks.pairs.catalogue import pair
from benchmarks.suites.options import Options

_COMMON = (128, 256, 512, 896)
_OWN = 32
_REQUESTS = 4
_TURNS = 6
_MESSAGE = 64
_ANSWER = 32
_NEW_TOKENS = 8
_PLAIN = SpeculationConfig(enabled=False)


class _Turn(NamedTuple):
    """One request of a conversation, or of several with the same beginning."""

    x: int
    seconds: float
    text: tuple[int, ...]


_Conversation = Callable[[Outrider, random.Random], list[_Turn]]


def run(options: Options) -> Iterator[dict[str, Any]]:
    """A series by the length of what is common, and one by the turns of a chat, for each pair."""
    for name in options.pairs or ("shipped",):
        with (
            outrider_services.alone(pair(name).target, []) as caching,
            outrider_services.alone(pair(name).target, ["--no-prefix-caching"]) as reading,
        ):
            both = [Outrider("cached", caching, _PLAIN), Outrider("read again", reading, _PLAIN)]
            yield _series("common prefix", "tokens in common", _beginning_alike, both, options)
            yield _series("chat", "turn of a chat", _chat, both, options)


def _series(
    name: str, unit: str, talk: _Conversation, both: Sequence[Outrider], options: Options
) -> dict[str, Any]:
    runs: list[list[list[_Turn]]] = [[], []]
    for repetition in range(options.repetitions + 1):  # the first warms up
        for contender, own in zip(both, runs, strict=True):
            own.append(talk(contender, random.Random(f"{name} {repetition}")))
    points = []
    for x in sorted({turn.x for turn in runs[0][0]}):
        cached, read = (
            [statistics.median(t.seconds for t in turns if t.x == x) for turns in own[1:]]
            for own in runs
        )
        ratios = [b / a for a, b in zip(cached, read, strict=True)]
        texts = [[turn.text for turns in own for turn in turns if turn.x == x] for own in runs]
        points.append(
            {
                "x": x,
                "times_as_fast": statistics.median(ratios),
                "times_as_fast_runs": ratios,
                "first_token_ms": 1000 * statistics.median(cached),
                "read_again_ms": 1000 * statistics.median(read),
                "same_text": statistics.fmean(a == b for a, b in zip(*texts, strict=True)),
            }
        )
    return {"series": name, "unit": unit, "points": points}


def _beginning_alike(contender: Outrider, numbers: random.Random) -> list[_Turn]:
    """A first request for each length, which is not counted, and then others like it."""
    turns = []
    for common in _COMMON:
        beginning = _random_ids(numbers, common)
        prompts = [[*beginning, *_random_ids(numbers, _OWN)] for _ in range(1 + _REQUESTS)]
        turns += [_ask(contender, common, prompt, _NEW_TOKENS) for prompt in prompts][1:]
    return turns


def _chat(contender: Outrider, numbers: random.Random) -> list[_Turn]:
    """Each request holds all that was said before."""
    turns: list[_Turn] = []
    said: list[int] = []
    for number in range(1, _TURNS + 1):
        said += _random_ids(numbers, _MESSAGE)
        turns.append(_ask(contender, number, said, _ANSWER))
        said += turns[-1].text
    return turns


def _ask(contender: Outrider, x: int, prompt: Sequence[int], new_tokens: int) -> _Turn:
    outcome: Outcome = contender.run(Workload([list(prompt)], 1, False, new_tokens))
    return _Turn(x, outcome.arrivals[0].first, outcome.token_ids[0])


def _random_ids(numbers: random.Random, count: int) -> list[int]:
    return [numbers.randrange(1, 4096) for _ in range(count)]
