"""What routers ask: how busy a target and a draft service are, and whether they take more."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from observability.pages import REMOTE, Pair
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider_client import Client, GenerationConfig
from service.asking import ENDLESS, ask
from service.harness import PATIENCE, Caller, RunningService, settings_for, until
from service.tiny_folder import save_tiny_folder


def describe(address: str) -> draft_pb2.DescribeResponse:
    with grpc.insecure_channel(address) as channel:
        stub = draft_pb2_grpc.DraftServiceStub(channel)
        return stub.Describe(draft_pb2.DescribeRequest(), timeout=PATIENCE)


def test_an_idle_pair_tells_what_there_is_room_for(pair: Pair) -> None:
    loads, info = pair.client.loads(), pair.client.server_info()
    assert not loads.draining
    assert (loads.num_running_sequences, loads.max_num_seqs) == (0, 4)
    assert (loads.num_waiting_requests, loads.max_waiting_requests) == (0, 4)
    assert loads.num_free_kv_cache_tokens == info.kv_cache_tokens == 4096
    assert loads.oldest_waiting_seconds == 0
    assert loads.num_ready_draft_links == 1
    assert info.device == "cpu"
    assert 0 < info.uptime_seconds < pair.client.server_info().uptime_seconds
    told = describe(pair.draft.address)
    assert told.version == info.version
    assert (told.num_sessions, told.max_sessions, told.num_links) == (0, 1024, 1)
    assert not told.draining
    assert told.num_waiting_frames == 0


def test_a_session_is_told_while_it_is_held(pair: Pair) -> None:
    config = GenerationConfig(max_new_tokens=400, clear_fields=ENDLESS)
    with pair.client.stream("abc", config, speculation=REMOTE) as stream:
        for chunk in stream:
            if any(chunk.drafted):
                break
        assert describe(pair.draft.address).num_sessions == 1
        (link,) = pair.client.server_info().draft_links
        assert link.num_sessions == 1
        assert pair.client.loads().num_free_kv_cache_tokens < 4096

        def latency() -> float:
            (link,) = pair.client.server_info().draft_links
            return link.latency_seconds

        until(latency, lambda seconds: seconds > 0)  # not learned from what a session opens with
    until(lambda: describe(pair.draft.address).num_sessions, lambda held: held == 0)


def test_a_full_and_then_a_draining_target_says_so(tmp_path: Path) -> None:
    with (
        RunningService(settings_for(save_tiny_folder(tmp_path / "tiny"))) as service,
        Client(service.address) as client,
        Caller(service.address) as caller,
    ):
        health = health_pb2_grpc.HealthStub(caller.channel)
        watched: list[int] = []
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))

        def read() -> None:
            with suppress(grpc.RpcError):  # it is cancelled in the end
                watched.extend(each.status for each in watch)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        with service.gate.held(after=1):
            calls = [caller.open(ask("abc", max_new_tokens=30)) for _ in range(10)]
            for call in calls:
                next(call)
            service.gate.wait_until_held()
            service.gate.let(3)  # the engine hears of the others between two forwards
            loads = until(client.loads, lambda loads: loads.num_waiting_requests == 2)
            assert loads.num_running_sequences == loads.max_num_seqs == 8
            waited = client.loads().oldest_waiting_seconds
            assert 0 < waited < client.loads().oldest_waiting_seconds
            service.begin_to_drain()
            assert until(client.loads, lambda loads: loads.draining).num_running_sequences == 8
            for name in ("", SERVICE):
                answer = health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        for call in calls:
            assert list(call)[-1].HasField("complete"), "what was accepted is finished"
        watch.cancel()
        reader.join(PATIENCE)
    serving, gone = (
        health_pb2.HealthCheckResponse.SERVING,
        health_pb2.HealthCheckResponse.NOT_SERVING,
    )
    assert watched == [serving, gone]


SERVICE = "outrider.v1.GenerationService"
