"""What a caller gets for a request: its start, its tokens, its end, its numbers."""

from __future__ import annotations

from service.asking import LOOKUP, ask, collect
from service.harness import Caller


def test_first(caller: Caller) -> None:
    a = collect(caller.open(ask(max_new_tokens=40, speculation=LOOKUP)))
    print(a)
