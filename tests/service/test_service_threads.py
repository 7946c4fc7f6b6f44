"""Only one thread of a running service ever computes: others' helpers would slow its own down."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from outrider_client import Client, GenerationConfig
from outrider_runtime.model.ragged_runner import RaggedRunner
from service.harness import RunningService, settings_for


def test_of_all_threads_that_ran_forwards_the_engine_s_alone_lives_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing: set[threading.Thread] = set()
    forward = RaggedRunner.forward

    def recorded(runner: RaggedRunner, *batch: Any, **options: Any) -> torch.Tensor:
        computing.add(threading.current_thread())
        return forward(runner, *batch, **options)

    monkeypatch.setattr(RaggedRunner, "forward", recorded)
    with RunningService(settings_for(folder)) as service, Client(service.address) as client:
        client.generate([5, 6, 7], GenerationConfig(max_new_tokens=2))
        assert len(computing) > 1  # those that loaded and timed the model as well
        alive = [thread.name for thread in computing if thread.is_alive()]
        assert alive == ["outrider-engine"]
