"""The order in which kernels for paged attention are asked for."""

from __future__ import annotations

import pytest
import structlog
import torch
from engine.plain_flex import PlainFlex, flex_kernel
from engine.plain_varlen import PlainVarlen, varlen_kernel
from outrider_runtime.model import paged_kernel
from outrider_runtime.model.paged_attention import KernelUnavailable, PagedKernel

CUDA = torch.device("cuda", 0)


def there_is(monkeypatch: pytest.MonkeyPatch, *kernels: str) -> None:
    """Makes a machine that has these kernels."""
    plain = {
        "varlen": lambda: varlen_kernel(PlainVarlen()),
        "flex": lambda: flex_kernel(PlainFlex()),
    }

    def load(name: str) -> PagedKernel:
        if name not in kernels:
            raise KernelUnavailable(f"no {name} here")
        return plain[name]()

    names = [name for name, _ in paged_kernel._CHOICES]
    assert names == ["varlen", "flex"]
    choices = [(name, lambda *, device, dtype, name=name: load(name)) for name in names]
    monkeypatch.setattr(paged_kernel, "_CHOICES", choices)


def names_of(kernel: PagedKernel | None) -> list[str]:
    """The first choice, and what follows where each is not used."""
    if kernel is None:
        return []
    return [kernel.attention.name, *names_of(kernel.otherwise())]


@pytest.mark.parametrize("names", [["varlen", "flex"], ["varlen"], ["flex"], []])
def test_what_there_is_in_order(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    there_is(monkeypatch, *names)
    with structlog.testing.capture_logs() as logs:
        found = paged_kernel.find(device=CUDA, dtype=torch.bfloat16)
        assert names_of(found) == names
    missing = [name for name in ("varlen", "flex") if name not in names]
    assert [(log["kernel"], log["why"]) for log in logs] == [
        (name, f"no {name} here") for name in missing
    ]


def test_the_next_choice_is_not_looked_for_before_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there_is(monkeypatch, "varlen")
    with structlog.testing.capture_logs() as logs:
        assert paged_kernel.find(device=CUDA, dtype=torch.bfloat16) is not None
    assert logs == []


def test_on_the_cpu_there_is_none_and_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    there_is(monkeypatch, "varlen", "flex")
    with structlog.testing.capture_logs() as logs:
        assert paged_kernel.find(device=torch.device("cpu"), dtype=torch.bfloat16) is None
    assert logs == []
