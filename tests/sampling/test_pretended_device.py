"""The record of the pretended device shows what makes a host wait, each by its own example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from outrider_runtime.model.arrays import on_device
from sampling.pretended_device import DEVICE, pretended_device, put

WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x[0, 0].item(),
    "int": lambda x: int(x[0, 0]),
    "bool": lambda x: bool((x > 1).any()),
    "if": lambda x: 1 if x[0, 0] > 1 else 0,
    "nonzero": lambda x: x.nonzero(),
    "where of one argument": lambda x: torch.where(x > 1),
    "masked_select": lambda x: x.masked_select(x > 1),
    "read by a mask": lambda x: x[x > 1],
    "written by a mask": lambda x: x.__setitem__(x > 1, x[0, 0]),
    "indices in a list": lambda x: x[[0, 2]],
    "indices in numpy": lambda x: x[np.array([0, 2])],
    "indices of the host": lambda x: x[torch.tensor([0, 2])],
    "written at indices in a list": lambda x: x.__setitem__([0, 2], x[:2] * 2),
    "a number written at indices": lambda x: x.__setitem__(x[0].long() % 2, 0.0),
    "torch.tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "torch.as_tensor": lambda x: torch.as_tensor(np.ones(3), device=x.device),
    "to": lambda x: torch.ones(3).to(x.device),
    "copy_": lambda x: x.copy_(torch.ones(3, 4)),
    "repeat_interleave": lambda x: x[0].repeat_interleave(x[0].long()),
    "unique_consecutive": lambda x: torch.unique_consecutive(x),
    "bincount": lambda x: x[0].long().bincount(),
    "equal": lambda x: torch.equal(x, x),
    "both sides": lambda x: torch.where(x > 1, x, torch.tensor(0.0)),
}

FETCHES: dict[str, Callable[[torch.Tensor], object]] = {
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", non_blocking=True),
    "copy_": lambda x: torch.empty(3, 4).copy_(x),
}

HARMLESS: dict[str, Callable[[torch.Tensor], object]] = {
    "slices": lambda x: x[1:, 2].clone(),
    "indices": lambda x: x[torch.arange(2, device=x.device)],
    "numbers": lambda x: torch.where(x > 1, x * 2 + 1, -torch.inf),
    "a number in a slice": lambda x: x.__setitem__((slice(None), -1), 0.0),
    "topk": lambda x: x.topk(2).values.sort().values.cumsum(-1),
    "fill": lambda x: x.index_fill_(0, torch.arange(2, device=x.device), 0.0),
    "to, without a wait": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=0),
}


def example() -> torch.Tensor:
    return put(torch.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_recorded(name: str) -> None:
    with pretended_device() as record:
        WAITS[name](example())
    assert record.waits


@pytest.mark.parametrize("name", FETCHES)
def test_a_fetch_is_recorded(name: str) -> None:
    with pretended_device() as record:
        FETCHES[name](example())
    assert record.fetched == [48]


@pytest.mark.parametrize("name", HARMLESS)
def test_what_runs_on_the_device_alone_is_not_recorded(name: str) -> None:
    with pretended_device() as record:
        HARMLESS[name](example())
    assert not record.waits
    assert not record.fetched


def test_numbers_are_those_of_a_cpu() -> None:
    with pretended_device():
        x = torch.arange(6, device=DEVICE).float().reshape(2, 3)
        x[torch.arange(1, device=DEVICE)] += 1
        assert x.device == DEVICE
        assert x.tolist() == [[1, 2, 3], [3, 4, 5]]


def test_all_arrays_of_a_value_are_sent_at_once_and_fetched_at_once() -> None:
    side = on_device(DEVICE)
    masks = np.random.default_rng(1).random((3, 1001)) < 0.3
    numbers = np.array([[1.5, -2.5]], np.float32)
    with pretended_device() as record:
        everything: Any = [np.arange(5), (masks, "name", None)]
        ids, (there, name, nothing) = side.send(everything)
        more = side.send(numbers)
        assert (name, nothing) == ("name", None)
        assert len(record.sent) == 2
        assert record.sent[0] <= 8 * 5 + 3 * 126 + 8
        fetched = side.fetch(ids, there, more)
    assert len(record.fetched) == 1
    assert not record.waits
    for ours, theirs in zip([np.arange(5), masks, numbers], fetched, strict=True):
        assert ours.shape == theirs.shape
        assert np.array_equal(ours, theirs)


def test_what_holds_no_array_is_not_sent() -> None:
    with pretended_device() as record:
        assert on_device(DEVICE).send([None, ("name", [])]) == [None, ("name", [])]
    assert not record.sent
