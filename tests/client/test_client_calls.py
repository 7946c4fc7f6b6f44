"""The calls beside generation, both clients' likeness, encryption, and sharing between threads."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from client.fake_server import (
    PATIENCE,
    FakeServer,
    Responses,
    chunk,
    complete,
    endless,
    started,
    two_rounds,
)
from client.twins import Twin
from outrider_client import (
    AsyncClient,
    AsyncStream,
    Client,
    DraftLinkState,
    FieldSupport,
    GenerationConfig,
    Stream,
    TLSConfig,
    TokenLogProb,
    UnavailableError,
)

CERTIFICATES = Path(__file__).parents[1] / "runtime" / "certificates"


async def test_the_model_is_told(twin: Twin) -> None:
    model = await twin.call("model_info")
    assert (model.served_model_name, model.architecture) == ("fake", "FakeForCausalLM")
    assert (model.vocab_size, model.max_model_len, model.dtype) == (1000, 2048, "float32")
    assert (model.has_tokenizer, model.tokenizer_fingerprint) == (True, "f00")
    assert model.default_generation_config == GenerationConfig(temperature=0.7, eos_token_id=2)


async def test_the_set_up_of_the_server_is_told(twin: Twin) -> None:
    info = await twin.call("server_info")
    ready, refused = info.draft_links
    assert (ready.state, ready.kind, ready.num_sessions) == (DraftLinkState.READY, "model", 2)
    assert (refused.state, refused.reason) == (DraftLinkState.REFUSED, "the tokenizers differ")
    assert [(line.field, line.support) for line in info.capabilities] == [
        ("top_p", FieldSupport.HONOURED),
        ("num_beams", FieldSupport.REFUSED),
    ]
    assert (info.version, info.draft_protocol_version) == ("0.1.0", 1)
    assert (info.max_num_seqs, info.max_waiting_requests) == (8, 64)
    assert info.kv_cache_tokens == 65536


async def test_the_load_is_told(twin: Twin) -> None:
    loads = await twin.call("loads")
    assert (loads.num_running_sequences, loads.num_waiting_requests) == (3, 1)
    assert (loads.kv_cache_usage, loads.num_generated_tokens) == (0.25, 1234)
    assert loads.num_preemptions == 5
    assert loads.draining
    assert (loads.max_num_seqs, loads.max_waiting_requests) == (16, 8)
    assert (loads.oldest_waiting_seconds, loads.num_ready_draft_links) == (2.5, 2)
    assert loads.num_free_kv_cache_tokens == 4096
    assert loads.speculation.num_accepted_tokens == 2


async def test_what_limits_the_speed_is_told(twin: Twin) -> None:
    found = await twin.call("explain")
    assert (found.num_rounds, found.num_sequence_rounds, found.num_tokens) == (10, 20, 26)
    assert found.silences == {"not-worth-asking": 14, "reason-77": 1}
    assert (found.asking_cost_ratio, found.speedup_ratio, found.answer_seconds) == (1.5, None, None)
    assert found.findings == (("Asking costs.", "Do not."),)


async def test_text_becomes_tokens_and_back(twin: Twin, server: FakeServer) -> None:
    assert await twin.call("tokenize", "ab") == [97, 98]
    assert await twin.call("detokenize", [1, 2]) == "<1><2>"
    await twin.call("tokenize", "", add_special_tokens=False)
    await twin.call("detokenize", (), skip_special_tokens=False)
    plain_text, plain_ids, text, ids = [call.request for call in server.received]
    assert not plain_text.HasField("add_special_tokens")
    assert not plain_ids.HasField("skip_special_tokens")
    assert text.HasField("add_special_tokens")
    assert not text.add_special_tokens
    assert ids.HasField("skip_special_tokens")
    assert not ids.skip_special_tokens


async def test_a_text_is_scored(twin: Twin, server: FakeServer) -> None:
    scores = await twin.call("score", [4, 5, 6], first_position=2, log_probs=1, request_id="a")
    assert scores.token_ids == [6]
    assert scores.log_likelihood == -1.0
    (known,) = scores.log_probs
    assert (known.raw, known.processed, known.score) == (-1.0, -0.5, 3.0)
    assert known.top_raw == (TokenLogProb(7, -0.25),)
    assert known.top_processed == ()
    await twin.call("score", "text", GenerationConfig(temperature=0.5))
    ids, text = [call.request for call in server.received]
    assert (list(ids.token_ids.ids), ids.first_position, ids.request_id) == ([4, 5, 6], 2, "a")
    assert (text.text, text.HasField("first_position")) == ("text", False)
    assert text.request_id
    assert text.generation_config.temperature == 0.5
    for wrong in ({"first_position": -1}, {"log_probs": 2**32}, {"request_id": "line\nbreak"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            await twin.call("score", [1, 2], **wrong)


async def test_requests_are_aborted_by_id(twin: Twin, server: FakeServer) -> None:
    assert await twin.call("abort", ["known-1", "other", "known-2"]) == ["known-1", "known-2"]
    assert await twin.call("abort", "known-3") == ["known-3"]
    assert list(server.received[1].request.request_ids) == ["known-3"]
    with pytest.raises(ValueError, match="request_id"):
        await twin.call("abort", ["line\nbreak"])


async def test_a_closed_client_says_so(twin: Twin) -> None:
    await twin.call("loads")
    await twin.call("close")
    await twin.call("close")
    with pytest.raises(RuntimeError, match="the client is closed"):
        await twin.call("loads")
    with pytest.raises(RuntimeError, match="the client is closed"):
        await twin.call("generate", "x")


def _public(cls: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }


@pytest.mark.parametrize(("sync", "twin"), [(Client, AsyncClient), (Stream, AsyncStream)])
def test_both_clients_have_the_same_methods_and_arguments(sync: type, twin: type) -> None:
    assert _public(sync).keys() == _public(twin).keys()
    for name, method in _public(sync).items():
        other = _public(twin)[name]
        assert isinstance(method, property) == isinstance(other, property)
        if isinstance(method, property):
            continue
        ours, theirs = inspect.signature(method), inspect.signature(other)
        assert str(ours.replace(return_annotation="")) == str(theirs.replace(return_annotation=""))
        assert (inspect.getdoc(method) or "").splitlines()[:1] == (
            inspect.getdoc(other) or ""
        ).splitlines()[:1]


def test_an_asyncio_client_can_be_made_before_there_is_a_loop(server: FakeServer) -> None:
    client = AsyncClient(server.address)

    async def use() -> list[int]:
        async with client:
            return (await client.generate("x")).token_ids

    assert asyncio.run(use()) == [10, 11, 12, 13]


async def test_closing_an_asyncio_client_ends_its_calls_without_cancelling_the_task(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, release = threading.Event(), threading.Event()
    original = server._receive

    def never(*args: Any) -> None:
        original(*args)
        reached.set()
        release.wait(PATIENCE)

    monkeypatch.setattr(server, "_receive", never)
    client = AsyncClient(server.address)
    call = asyncio.create_task(client.loads())
    assert await asyncio.to_thread(reached.wait, PATIENCE)
    await client.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        await asyncio.wait_for(call, PATIENCE)
    release.set()


def test_many_threads_share_one_client(server: FakeServer, client: Client) -> None:
    """Each gets its own answer; streams overlap, since none ends before all have begun."""
    barrier = threading.Barrier(8)

    def echo(request: Any, context: Any) -> Responses:
        yield started(request)
        barrier.wait(PATIENCE)
        yield chunk(list(request.token_ids.ids))
        yield complete((len(request.token_ids.ids),))

    server.script = echo
    prompts = [[number, number + 1000] for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: client.generate(prompt).token_ids, prompts))
    assert answers == prompts


async def test_many_tasks_share_one_client(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        answers = await asyncio.gather(*(client.generate([n]) for n in range(32)))
    assert all(answer.token_ids == [10, 11, 12, 13] for answer in answers)
    assert sorted(call.request.token_ids.ids[0] for call in server.received) == list(range(32))


def test_streams_leave_no_threads_behind(server: FakeServer, client: Client) -> None:
    """Whether read to the end, left early, or broken off."""
    client.loads()
    before = set(threading.enumerate())
    for _ in range(5):
        client.generate("x")
        server.script = endless
        with client.stream("x") as stream:
            next(stream)
        server.script = _breaking
        with pytest.raises(UnavailableError):
            client.generate("x")
        server.script = two_rounds
    left = [thread for thread in set(threading.enumerate()) - before if not _is_servers(thread)]
    for thread in left:
        thread.join(PATIENCE)
    assert not [thread for thread in left if thread.is_alive()]


def _breaking(request: Any, context: Any) -> Responses:
    context.abort(grpc.StatusCode.UNAVAILABLE, "no")
    yield started(request)


def _is_servers(thread: threading.Thread) -> bool:
    return thread.name.startswith("ThreadPoolExecutor")


def _pem(name: str) -> bytes:
    return (CERTIFICATES / name).read_bytes()


@pytest.fixture(params=[False, True], ids=["TLS", "mTLS"])
def encrypted(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    credentials = grpc.ssl_server_credentials(
        [(_pem("server.key"), _pem("server.pem"))],
        root_certificates=_pem("authority.pem"),
        require_client_auth=request.param,
    )
    with FakeServer(credentials=credentials) as server:
        yield server


@pytest.fixture
async def trusted(connect: Callable[..., Any], encrypted: FakeServer) -> AsyncIterator[Twin]:
    tls = TLSConfig(
        ca=CERTIFICATES / "authority.pem",
        cert=str(CERTIFICATES / "client.pem"),
        key=CERTIFICATES / "client.key",
    )
    async with connect(encrypted.address, tls=tls, api_key="s3cret") as twin:
        yield twin


async def test_an_encrypted_connection_works_like_any_other(
    trusted: Twin, encrypted: FakeServer
) -> None:
    assert (await trusted.call("generate", "x")).token_ids == [10, 11, 12, 13]
    assert encrypted.received[0].metadata["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    "tls",
    [
        None,
        TLSConfig(ca=CERTIFICATES / "stranger.pem"),
        TLSConfig(ca=CERTIFICATES / "authority.pem", server_name="elsewhere.example"),
    ],
    ids=["plain text", "unknown authority", "other name"],
)
async def test_a_server_that_cannot_prove_who_it_is_gets_no_request(
    connect: Callable[..., Any], encrypted: FakeServer, tls: TLSConfig | None
) -> None:
    async with connect(encrypted.address, tls=tls) as twin:
        with pytest.raises(UnavailableError):
            await twin.call("generate", "x", timeout=10)
    assert encrypted.received == []


async def test_certificates_that_cannot_be_read_are_reported_at_once(
    connect: Callable[..., Any],
) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        async with connect("127.0.0.1:1", tls=TLSConfig(ca="missing.pem")):
            pass
    with pytest.raises(ValueError, match="belong together"):
        TLSConfig(cert="client.pem")
