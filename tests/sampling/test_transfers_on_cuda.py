"""On a GPU, torch itself tells of everything that is waited for: nothing but the one fetch.

What `test_transfers` shows on a pretended device, where there is a real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from outrider_runtime.model.arrays import on_device
from outrider_runtime.model.selection import select_tokens
from sampling.test_transfers import OPTIONS, batch

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:.*[Ss]ynchroniz"),
]


@contextmanager
def waiting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Whatever waits for the device raises, but for the fetch, which is counted."""
    fetched: list[int] = []
    side = on_device(torch.device("cuda", torch.cuda.current_device()))
    fetch: Any = side._to_host  # type: ignore[attr-defined]

    def to_host(x: torch.Tensor) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        fetched.append(x.numel())
        found = fetch(x)
        torch.cuda.set_sync_debug_mode("error")
        return found

    monkeypatch.setattr(side, "_to_host", to_host)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield fetched
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", OPTIONS)
def test_a_choice_waits_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    logits, groups = batch(name, masked=True, copies=3, vocab_size=5000)
    there = logits.cuda()
    select_tokens(there, groups)  # kernels are loaded and tables sent
    torch.cuda.synchronize()
    with waiting_is_an_error(monkeypatch) as fetched:
        found = select_tokens(there, groups)
    assert len(fetched) == 1
    here = select_tokens(logits, groups)
    alike = [a == b for a, b in zip(found.token_ids, here.token_ids, strict=True)]
    assert sum(alike) > 0.95 * len(alike)  # kernels round differently
