"""Who may link: versions, tokenizers and vocabularies, and how a link begins."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from draft.harness import FINGERPRINT, ScriptedProposer, counting, draft_service, target
from google.rpc import error_details_pb2, status_pb2
from outrider.v1 import draft_pb2
from outrider_conformance.streams import LinkEnded
from outrider_contract.errors import DOMAIN, Reason
from outrider_draft.handshake import TRANSLATED, agree
from outrider_draft.proposer import Description
from outrider_runtime.draft_protocol import MAX_PROTOCOL_VERSION, PROTOCOL_VERSION
from outrider_runtime.errors import PreconditionFailed

MODEL = Description(
    kind="model", model_id="small", vocab_size=40, tokenizer_fingerprint=FINGERPRINT, max_length=64
)


def reason_of(end: LinkEnded) -> str:
    """The ErrorInfo's reason."""
    status = status_pb2.Status.FromString(dict(end.trailers)["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.domain == DOMAIN
    return str(info.reason)


async def test_the_welcome_says_what_the_drafter_is() -> None:
    proposer = ScriptedProposer(counting, description=MODEL)
    async with draft_service(proposer) as drafter, target(drafter) as scripted:
        assert scripted.welcome is not None
        assert scripted.welcome.protocol_version == PROTOCOL_VERSION
        said = scripted.welcome.drafter
        assert (said.kind, said.model_id, said.vocab_size) == ("model", "small", 40)
        assert (said.tokenizer_fingerprint, said.max_length) == (FINGERPRINT, 64)


@pytest.mark.parametrize("version", [0, MAX_PROTOCOL_VERSION + 1, 2**32 - 1])
async def test_a_version_outside_the_range_is_refused_with_the_range(version: int) -> None:
    async with (
        draft_service(ScriptedProposer(counting)) as drafter,
        target(drafter, hello=False) as scripted,
    ):
        with pytest.raises(LinkEnded, match="version") as refused:
            await scripted.hello(version=version)
        assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(refused.value) == Reason.PROTOCOL_MISMATCH


@pytest.mark.parametrize("fingerprint", ["another tokenizer", ""])
async def test_a_model_refuses_another_tokenizer(fingerprint: str) -> None:
    proposer = ScriptedProposer(counting, description=MODEL)
    async with draft_service(proposer) as drafter, target(drafter, hello=False) as scripted:
        with pytest.raises(LinkEnded, match="tokenizer") as refused:
            await scripted.hello(fingerprint=fingerprint)
        assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(refused.value) == Reason.TOKENIZER_MISMATCH
        assert drafter.metrics.links_refused.labels(Reason.TOKENIZER_MISMATCH)._value.get() == 1


async def test_prompt_lookup_works_with_any_tokenizer_and_with_none() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter:
        for fingerprint in ("one", "another", ""):
            async with target(drafter, hello=False) as scripted:
                await scripted.hello(fingerprint=fingerprint)
                await scripted.open(1, [1], window=1)
                assert await scripted.grown(1) == [2]


@pytest.mark.parametrize(
    "first",
    [
        draft_pb2.SpeculateRequest(),
        draft_pb2.SpeculateRequest(opens=[draft_pb2.Open(session=1, token_ids=[1])]),
        draft_pb2.SpeculateRequest(
            hello=draft_pb2.Hello(protocol_version=PROTOCOL_VERSION, vocab_size=9),
            closes=[draft_pb2.Close(session=1)],
        ),
        draft_pb2.SpeculateRequest(hello=draft_pb2.Hello(protocol_version=PROTOCOL_VERSION)),
    ],
    ids=["nothing", "updates before hello", "updates beside hello", "no vocabulary"],
)
async def test_a_link_begins_with_a_hello_alone(first: draft_pb2.SpeculateRequest) -> None:
    async with (
        draft_service(ScriptedProposer(counting)) as drafter,
        target(drafter, hello=False) as scripted,
    ):
        await scripted.send(first)
        error = await scripted.failure()
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "hello" in error.details
        assert drafter.service.worker.num_sessions == 0


async def test_a_second_hello_ends_the_link() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        hello = draft_pb2.Hello(protocol_version=PROTOCOL_VERSION, vocab_size=9)
        await scripted.send(draft_pb2.SpeculateRequest(hello=hello))
        await scripted.until_ended()
        assert await scripted.call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_frame_with_too_many_updates_ends_the_link() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        closes = [draft_pb2.Close(session=i) for i in range(20_000)]
        await scripted.send(draft_pb2.SpeculateRequest(closes=closes))
        await scripted.until_ended()
        assert await scripted.call.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_vocabularies_of_different_size_go_together() -> None:
    for vocab_size in (1, 39, 40, 41, 10_000):
        agree(
            MODEL,
            protocol_version=PROTOCOL_VERSION,
            tokenizer_fingerprint=FINGERPRINT,
            vocab_size=vocab_size,
        )


def test_a_model_without_a_tokenizer_goes_with_no_target() -> None:
    for fingerprint in ("", FINGERPRINT):
        with pytest.raises(PreconditionFailed, match="tokenizer"):
            agree(
                MODEL._replace(tokenizer_fingerprint=""),
                protocol_version=PROTOCOL_VERSION,
                tokenizer_fingerprint=fingerprint,
                vocab_size=40,
            )


def test_on_a_translated_link_the_drafter_speaks_the_targets_ids() -> None:
    drafter = MODEL._replace(translates=frozenset(["one", "another"]))
    for fingerprint in ("one", "another"):
        agreed = agree(
            drafter,
            protocol_version=PROTOCOL_VERSION,
            tokenizer_fingerprint=fingerprint,
            vocab_size=40,
        )
        assert (agreed.kind, agreed.tokenizer_fingerprint) == (TRANSLATED, fingerprint)
        assert agreed.vocab_size == 0  # any of the target's


def test_a_drafter_that_translates_goes_with_its_own_kind_as_ever() -> None:
    drafter = MODEL._replace(translates=frozenset(["one"]))
    said: dict[str, Any] = {"protocol_version": PROTOCOL_VERSION, "vocab_size": 40}
    assert agree(drafter, tokenizer_fingerprint=FINGERPRINT, **said) == drafter
    with pytest.raises(
        PreconditionFailed, match=r"or one of the 1 it translates.*--target-tokenizer"
    ):
        agree(drafter, tokenizer_fingerprint="a third", **said)
    with pytest.raises(PreconditionFailed):
        agree(drafter, tokenizer_fingerprint="", **said)
