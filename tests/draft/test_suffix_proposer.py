"""The suffix tree behind the draft service: it drafts from texts of the same tenant alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import grpc
import pytest
from draft.harness import draft_service
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider_draft.engine import DraftEngine
from outrider_draft.frames import MAX_TENANT_SIZE
from outrider_draft.metrics import DraftMetrics
from outrider_draft.settings import SessionSettings, StepSettings, SuffixSettings
from outrider_draft.suffix_proposer import SuffixProposer
from outrider_draft.updates import Closed, Committed, Grown, Opened, SessionKey, SessionRequest
from outrider_runtime.draft_protocol import PROTOCOL_VERSION
from outrider_runtime.draft_tree import Limits, Proposal
from outrider_runtime.sampling_parameters import SamplingParameters
from prometheus_client import CollectorRegistry

TEXT = random.Random(0).sample(range(10, 1000), 60)


class Engine:
    """A draft engine with a suffix tree, and sessions in it."""

    def __init__(self, **settings: int) -> None:
        self.engine = DraftEngine(
            SuffixProposer(SuffixSettings(**settings)),
            sessions=SessionSettings(),
            steps=StepSettings(),
            metrics=DraftMetrics(CollectorRegistry()),
        )
        self.number = 0

    def open(
        self, token_ids: Sequence[int], tenant: bytes, *, threshold: float = 0.0, depth: int = 4
    ) -> SessionKey:
        self.number += 1
        request = SessionRequest(
            SamplingParameters(max_length=10_000),
            num_prompt_tokens=len(token_ids),
            vocab_size=1000,
            tenant=tenant,
        )
        key = SessionKey(1, self.number)
        limits = Limits(min(4, depth), depth, 64, threshold)
        self.engine.apply(Opened(key, list(token_ids), request, limits))
        return key

    def proposals(self) -> list[Proposal]:
        while self.engine.has_growth:
            self.engine.step()
        return [
            proposal
            for message in self.engine.take_messages()
            if isinstance(message, Grown)
            for proposal in message.proposals
        ]

    def drafted(self) -> list[int]:
        return [proposal.token_id for proposal in self.proposals()]

    def write(self, tenant: bytes, text: Sequence[int]) -> int:
        """Have a session write a text; returns how many tokens were foretold."""
        key, foretold, position = self.open([5], tenant), 0, 0
        while position < len(text):
            draft = self.drafted()
            right = 0
            while right < len(draft) and draft[: right + 1] == list(text[position:][: right + 1]):
                right += 1
            foretold += right
            decided = text[position : position + right + 1]
            self.engine.apply(Committed(key, 1 + position, decided, None))
            position += len(decided)
        self.drafted()
        self.engine.apply(Closed(key))
        return foretold


def test_an_output_is_foretold_to_its_tenant_and_to_nobody_else() -> None:
    engine = Engine()
    assert engine.write(b"anna", TEXT) == 0
    assert engine.write(b"bert", TEXT) == 0
    assert engine.write(b"anna", TEXT) > 0.7 * len(TEXT)


def test_whoever_has_no_name_remembers_nothing() -> None:
    engine = Engine()
    assert engine.write(b"", TEXT) == engine.write(b"", TEXT) == 0


def test_without_a_cache_there_is_the_text_alone() -> None:
    engine = Engine(cache_tokens=0)
    assert engine.write(b"anna", TEXT) == engine.write(b"anna", TEXT) == 0
    engine.open([1, 2, 3, 4, 1, 2], b"anna", depth=2)
    assert engine.drafted() == [3, 4]


def test_probabilities_are_those_of_the_counts_and_end_a_path_below_the_threshold() -> None:
    text = [3, 4, 5, 6, 1, 7, 3, 4, 5, 6, 2, 8, 3, 4, 5, 6, 2, 9, 3, 4, 5, 6]
    engine = Engine()
    engine.open(text, b"")
    first, second, *_ = engine.proposals()
    assert (first.token_id, second.token_id) == (2, 9)
    assert first.log_prob == pytest.approx(math.log(2 / 3 * 4 / 6))
    assert second.log_prob == pytest.approx(math.log(1 / 2 * 5 / 7))
    engine.open(text, b"", threshold=0.4)
    assert engine.drafted() == [2, 9], "the first that is not sure enough is the last"


def test_a_target_that_changes_its_mind_is_followed() -> None:
    engine = Engine()
    key = engine.open([1, 2, 3, 4, 1, 2], b"", depth=3)
    assert engine.drafted() == [3, 4, 1]
    engine.engine.apply(Committed(key, 2, [7, 8, 1, 2], None))
    assert engine.drafted()[:2] == [7, 8]


async def test_a_name_that_is_too_long_costs_its_session() -> None:
    async with (
        draft_service(SuffixProposer(SuffixSettings())) as drafter,
        grpc.aio.insecure_channel(drafter.address) as channel,
    ):
        call = draft_pb2_grpc.DraftServiceStub(channel).Speculate()
        hello = draft_pb2.Hello(protocol_version=PROTOCOL_VERSION, vocab_size=1000)
        await call.write(draft_pb2.SpeculateRequest(hello=hello))
        await call.read()
        limits = draft_pb2.Limits(window=2, depth=2, max_nodes=8)
        opens = [
            draft_pb2.Open(
                session=number,
                token_ids=[1, 2, 1],
                num_prompt_tokens=3,
                limits=limits,
                tenant=b"x" * size,
            )
            for number, size in enumerate((MAX_TENANT_SIZE, MAX_TENANT_SIZE + 1))
        ]
        await call.write(draft_pb2.SpeculateRequest(opens=opens))
        grown: list[int] = []
        refused: list[int] = []
        while not (grown and refused):
            answer = await call.read()
            assert isinstance(answer, draft_pb2.SpeculateResponse)
            grown += [grow.session for grow in answer.grows]
            refused += [resync.session for resync in answer.resyncs if resync.refused]
        assert (grown, refused) == ([0], [1])
