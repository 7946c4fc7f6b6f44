"""What a draft link costs: one frame each way a round, and few bytes per accepted token."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

import pytest
from draft.harness import RunningDrafter
from exactness.link_proxy import Request as RequestFrame
from exactness.link_proxy import Response, Script, link_proxy
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import ModelPair
from exactness.running import SYNCHRONOUS, Request, RunningTarget, num_accepted, target
from outrider_client import SpeculationConfig
from outrider_target.serving.link_metrics import LinkCollector


class Scales(Script):
    """Weighs what passes, but for the handshake."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []
        self.received: list[int] = []

    def request(self, frame: RequestFrame) -> Iterable[RequestFrame]:
        if not frame.HasField("hello"):
            self.sent.append(frame.ByteSize())
        return super().request(frame)

    def response(self, frame: Response) -> Iterable[Response]:
        if not frame.HasField("welcome"):
            self.received.append(frame.ByteSize())
        return super().response(frame)


def test_bytes_on_a_link_are_counted_and_few(
    threads: ServiceThreads, pair: ModelPair, perfect_draft: RunningDrafter
) -> None:
    scales = Scales()
    with (
        threads.drafters.entered(link_proxy(perfect_draft.address, lambda _: scales)) as proxy,
        target(threads, pair.target, drafts=[proxy.address]) as running,
    ):
        requests = [Request([5 + i, 6, 7], {"max_new_tokens": 40}) for i in range(4)]
        completions = running.generate_together(requests, SYNCHRONOUS)
        serving = running.service.serving
        assert serving is not None
        counted = {
            sample.name.removeprefix("outrider_draft_link_").removesuffix("_total"): sample.value
            for family in LinkCollector(serving.links, serving.fleet).collect()
            for sample in family.samples
        }
    assert counted["frames_received"] == len(scales.received)
    assert counted["received_bytes"] == sum(scales.received)
    # The last closes may have been on their way when the proxy's part was over.
    assert counted["frames_sent"] >= len(scales.sent) > 0
    assert counted["sent_bytes"] >= sum(scales.sent)
    most = sum(completion.speculation.num_rounds for completion in completions)
    assert len(scales.received) <= most, "at most one frame back for each round of a sequence"
    bytes_per_token = (sum(scales.sent) + sum(scales.received)) / num_accepted(completions)
    assert bytes_per_token < 60, "ids and log-probabilities, not distributions"


def test_a_draft_that_arrives_during_a_forward_counts_for_the_commit_that_ends_it(
    monkeypatch: pytest.MonkeyPatch, perfectly_drafted_target: RunningTarget
) -> None:
    running = perfectly_drafted_target
    monkeypatch.setattr(running.gate, "pass_through", lambda: time.sleep(0.03))
    serving = running.service.serving
    assert serving is not None
    before = dataclasses.replace(serving.fleet.foresight)
    request = Request([5, 6, 7], {"max_new_tokens": 60, "assistant_confidence_threshold": 0.0})
    completion = running.generate(request, SpeculationConfig(run_ahead=24))
    assert num_accepted([completion]) > 0
    after = serving.fleet.foresight
    followed = after.followed - before.followed
    assert followed > 2
    assert after.followed_ready - before.followed_ready >= followed / 2
