"""A caller with many requests does not hold up another, on a service that runs one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from outrider_runtime.server import ServerSettings
from outrider_target.settings import BatchSettings
from service.asking import ask
from service.harness import PATIENCE, Caller, RunningService, settings_for


def test_one_request_of_another_caller_overtakes_a_flood(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("flood the-secret-key-of-flood\nanna the-secret-key-of-anna\n")
    settings = settings_for(
        folder,
        server=ServerSettings(api_keys_file=keys, grace_seconds=PATIENCE),
        batch=BatchSettings(max_num_seqs=1, max_waiting_requests=8),
    )
    with RunningService(settings) as service, Caller(service.address) as caller:

        def opened(name: str) -> Any:
            key = (("authorization", f"Bearer the-secret-key-of-{name}"),)
            call = caller.stub.Generate(ask(max_new_tokens=100), timeout=PATIENCE, metadata=key)
            next(call)  # now it waits, or runs
            return call

        with service.gate.held():
            flood = [opened("flood")]
            service.gate.wait_until_held()  # the first one runs
            flood += [opened("flood") for _ in range(4)]
            anna = opened("anna")

        def waited(call: Any) -> float:
            *_, last = call
            seconds: float = last.complete.usage.queue_seconds
            return seconds

        in_flood = [waited(call) for call in flood]
        assert in_flood == sorted(in_flood)
        assert waited(anna) < in_flood[1]
