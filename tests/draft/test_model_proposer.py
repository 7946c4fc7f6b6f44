"""A draft model behind the real service proposes its own continuation, whatever happened before."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from draft.harness import FINGERPRINT, RunningDrafter, ScriptedTarget, draft_service, target
from draft.reference import MAX_POSITIONS, VOCAB_SIZE, Reference, gumbel, tiny_model
from outrider.v1 import draft_pb2
from outrider_draft.line import Proposed
from outrider_draft.metrics import DraftMetrics
from outrider_draft.model_proposer import ModelProposer
from outrider_draft.proposer import Description, Share
from outrider_draft.session import Session
from outrider_draft.settings import SessionSettings, StepSettings
from outrider_draft.updates import Opened, SessionKey, SessionRequest
from outrider_runtime.draft_tree import Limits
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.sampling_parameters import SamplingParameters
from prometheus_client import CollectorRegistry

SAMPLED = {"do_sample": True, "max_new_tokens": 200}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(tiny_model())


def proposer(
    *, num_blocks: int = 256, vocab_size: int = VOCAB_SIZE, max_length: int = MAX_POSITIONS
) -> ModelProposer:
    runner = RaggedRunner(tiny_model(vocab_size=vocab_size), num_blocks=num_blocks, block_size=4)
    description = Description("model", "tiny", vocab_size, FINGERPRINT, max_length)
    return ModelProposer(runner, description, DraftMetrics(CollectorRegistry()))


def prompt(length: int, *, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(1, VOCAB_SIZE), k=length)


async def test_a_greedy_chain_is_the_models_own_continuation(reference: Reference) -> None:
    async with (
        draft_service(proposer()) as drafter,
        target(drafter, vocab_size=VOCAB_SIZE) as scripted,
    ):
        for length in (1, 2, 7, 40):
            tokens = prompt(length)
            await scripted.open(length, tokens, window=9)
            assert await scripted.grown(length) == reference.greedy(tokens, 9)


async def test_log_probabilities_are_the_models(reference: Reference) -> None:
    async with (
        draft_service(proposer()) as drafter,
        target(drafter, vocab_size=VOCAB_SIZE) as scripted,
    ):
        tokens = prompt(5)
        session = await scripted.open(1, tokens, window=6)
        for token_id in await scripted.grown(1):
            node = session.tree.best_path()[len(tokens) - 5]
            assert node.token_id == token_id
            expected = reference.log_probs(tokens)[token_id]
            assert node.log_prob == pytest.approx(float(expected), abs=1e-4)
            tokens.append(token_id)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.4, "top_k": 7},
        {"top_p": 0.7},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    ],
    ids=str,
)
async def test_a_sampled_chain_takes_the_noise_of_its_absolute_positions(
    options: dict[str, Any], reference: Reference
) -> None:
    async with (
        draft_service(proposer()) as drafter,
        target(drafter, vocab_size=VOCAB_SIZE) as scripted,
    ):
        chains = set()
        for number, (seed, sample) in enumerate([(0, 0), (1, 0), (2**64 - 1, 0), (0, 1)]):
            tokens = prompt(11)
            await scripted.open(
                number,
                tokens,
                window=8,
                config={**SAMPLED, **options},
                seed=seed,
                sample_index=sample,
            )
            chain = await scripted.grown(number)
            assert chain == reference.sampled(tokens, 8, seed=seed, sample_index=sample, **options)
            chains.add(tuple(chain))
        assert len(chains) == 4


async def test_the_draft_temperature_divides_the_scores_before_the_noise(
    reference: Reference,
) -> None:
    async with (
        draft_service(proposer()) as drafter,
        target(drafter, vocab_size=VOCAB_SIZE) as scripted,
    ):
        tokens = prompt(6)
        for number, tau in enumerate((0.25, 1.0, 2.0)):
            await scripted.open(
                number, tokens, window=8, config=SAMPLED, seed=3, draft_temperature=tau
            )
        for number, tau in enumerate((0.25, 1.0, 2.0)):
            expected = reference.sampled(tokens, 8, seed=3, draft_temperature=tau)
            assert await scripted.grown(number) == expected


async def test_guesses_beside_a_chain_are_the_runners_up_under_the_shared_noise(
    reference: Reference,
) -> None:
    tokens, seed = prompt(6), 77
    async with (
        draft_service(proposer()) as drafter,
        target(drafter, vocab_size=VOCAB_SIZE) as scripted,
    ):
        session = await scripted.open(
            1, tokens, window=3, run_ahead=3, fan_out=3, config=SAMPLED, seed=seed
        )
        await scripted.grown(1)
        # Each of the four positions has two guesses, continued by a window at most.
        await scripted.until(lambda: len(session.tree) > 20)
        text = list(tokens)
        for node in [None, *session.tree.best_path(3)]:
            if node is not None:
                text.append(node.token_id)
            own = reference.log_probs(text) + gumbel(seed, 0, len(text), VOCAB_SIZE)
            best = own.topk(3)
            children = session.tree.children(0 if node is None else node.id)
            ranked = sorted(children, key=lambda child: -child.log_prob)
            assert [child.token_id for child in ranked] == best.indices.tolist()
            margins = [ranked[0].log_prob - child.log_prob for child in ranked]
            assert margins == pytest.approx((best.values[0] - best.values).tolist(), abs=1e-3)
            for child in ranked[1:]:
                after = session.tree.children(child.id)
                if after:
                    behind = [*text, child.token_id]
                    own = reference.log_probs(behind) + gumbel(seed, 0, len(behind), VOCAB_SIZE)
                    assert after[0].token_id == int(own.argmax())


async def test_a_session_that_was_interrupted_goes_on_with_the_same_noise(
    reference: Reference,
) -> None:
    """Seeds are keyed by absolute position: text that comes as prompt is as good as committed."""
    tokens = prompt(5)
    expected = reference.sampled(tokens, 12, seed=9)
    for cut in (1, 4, 7):
        async with (
            draft_service(proposer()) as drafter,
            target(drafter, vocab_size=VOCAB_SIZE) as scripted,
        ):
            await scripted.open(
                1,
                [*tokens, *expected[:cut]],
                num_prompt_tokens=5,
                window=12 - cut,
                config=SAMPLED,
                seed=9,
            )
            assert await scripted.grown(1) == expected[cut:]


@pytest.mark.parametrize("fan_out", [1, 3])
async def test_whatever_was_committed_the_chain_is_that_of_a_fresh_start(
    reference: Reference, fan_out: int
) -> None:
    """Accepted in part, in full, not at all, with run-ahead and without: the cache is right."""
    choice = random.Random(5)
    model = proposer()
    async with (
        draft_service(model, step=StepSettings(enumeration_rows=16)) as drafter,
        target(drafter, vocab_size=VOCAB_SIZE) as scripted,
    ):
        texts: dict[int, list[int]] = {}
        outcomes = set()
        num_foreseen = 0
        for number, run_ahead in enumerate((0, 0, 3, 6)):
            texts[number] = prompt(4 + number, seed=number)
            await scripted.open(
                number, texts[number], window=4, run_ahead=run_ahead, fan_out=fan_out
            )
        for _ in range(14):
            for number, text in texts.items():
                chain = await scripted.grown(number)
                window = chain[:4]
                accepted = choice.choice([0, 1, 2, 3, 4, 4, 4])
                own = chain[accepted] if accepted < len(chain) and choice.random() < 0.6 else None
                own = choice.randrange(1, VOCAB_SIZE) if own is None else own
                tree = scripted.sessions[number].tree
                path = [0, *(node.id for node in tree.best_path())]
                others = [n.token_id for n in tree.children(path[accepted])][1:]
                if others and choice.random() < 0.5:
                    own = choice.choice(others)
                    num_foreseen += 1
                text += [*window[:accepted], own]
                outcomes.add((accepted, own in chain[accepted : accepted + 1]))
                await scripted.commit(number, [*window[:accepted], own])
            for number, text in texts.items():
                depth = 4 + (0, 0, 3, 6)[number]
                assert await scripted.grown(number) == reference.greedy(text, depth)
        assert len(outcomes) >= 8  # the walk took many turns
        assert (num_foreseen > 5) == (fan_out > 1)
        for number in texts:
            await scripted.close(number)
        await drafter.until(lambda: drafter.service.worker.num_sessions == 0)
    pool = model._pool
    pool.check_integrity()
    assert pool.num_free_blocks == pool.num_blocks


def own_session(tokens: Sequence[int], *, depth: int = 4) -> Session:
    request = SessionRequest(
        SamplingParameters(max_length=MAX_POSITIONS),
        num_prompt_tokens=len(tokens),
        vocab_size=VOCAB_SIZE,
    )
    limits = Limits(depth, depth, 64, 0.0)
    opened = Opened(SessionKey(1, 1), tokens, request, limits)
    return Session.open(opened, max_length=MAX_POSITIONS)


def test_after_full_acceptance_two_tokens_are_new_to_the_cache() -> None:
    """The last token of a chain was proposed and never processed: the classic off-by-one."""
    model = proposer()
    session = own_session(prompt(6))
    assert model.pending(session) == 6
    while session.room():
        (outcome,) = model.extend([Share(session, model.pending(session))])
        session.extend(outcome.proposed)
    chain = [node.token_id for node in session.chain]
    assert len(chain) == 4
    unchanged = session.commit(6, [*chain, 1], None).unchanged
    model.rewind(session.key, unchanged)
    assert model.pending(session) == 2
    # None accepted: the same again, but with only the target's own token to process.
    session.commit(11, [2], None)
    model.rewind(session.key, 11)
    model.extend([Share(session, model.pending(session))])
    session.extend([Proposed(5, 0.0), Proposed(6, 0.0)])
    model.rewind(session.key, session.commit(12, [9], None).unchanged)
    assert model.pending(session) == 1


async def test_many_sessions_at_once_get_what_each_would_get_alone(reference: Reference) -> None:
    step = StepSettings(max_num_seqs=6, max_num_batched_tokens=48)
    prompts = {i: prompt(1 + (i * 37) % 150, seed=i) for i in range(20)}

    def options(number: int) -> dict[str, Any]:
        return {"config": SAMPLED, "seed": number} if number % 2 else {}

    async with (
        draft_service(proposer(num_blocks=1024), step=step) as drafter,
        target(drafter, vocab_size=VOCAB_SIZE) as first,
        target(drafter, vocab_size=VOCAB_SIZE) as second,
    ):
        for scripted in (first, second):
            opens = [
                scripted.open_message(i, tokens, window=4, run_ahead=i % 3, **options(i))
                for i, tokens in prompts.items()
            ]
            await scripted.send(draft_pb2.SpeculateRequest(opens=opens))
        for i, tokens in prompts.items():
            depth = 4 + i % 3
            expected = (
                reference.sampled(tokens, depth, seed=i)
                if i % 2
                else reference.greedy(tokens, depth)
            )
            assert await first.grown(i) == expected
            assert await second.grown(i) == expected


async def test_ids_the_target_does_not_have_are_never_proposed(reference: Reference) -> None:
    small = 20
    async with (
        draft_service(proposer()) as drafter,
        target(drafter, vocab_size=small) as scripted,
        target(drafter, vocab_size=VOCAB_SIZE) as other,
    ):
        tokens = [t % small for t in prompt(8)]
        whole = reference.greedy(tokens, 12)
        assert max(whole) >= small  # else the test shows nothing
        await scripted.open(1, tokens, window=12)
        await other.open(1, tokens, window=12)  # in the same steps
        assert await scripted.grown(1) == reference.greedy(tokens, 12, vocab_size=small)
        assert await other.grown(1) == whole


async def test_a_target_with_a_longer_padded_vocabulary_is_served(reference: Reference) -> None:
    async with (
        draft_service(proposer()) as drafter,
        target(drafter, vocab_size=VOCAB_SIZE + 30) as scripted,
    ):
        tokens = prompt(8)
        # Names an id that only the target has.
        config = {
            "max_new_tokens": 99,
            "suppress_tokens": [VOCAB_SIZE + 7],
            "repetition_penalty": 1.0001,
        }
        await scripted.open(1, tokens, window=5, config=config)
        assert await scripted.grown(1) == reference.greedy(tokens, 5)
        await scripted.open(2, tokens, window=5, config={**config, **SAMPLED}, seed=4)
        assert await scripted.grown(2) == reference.sampled(tokens, 5, seed=4)
        await scripted.commit(1, [VOCAB_SIZE + 3])
        resync = await scripted.resynced(1)
        assert resync.refused
        assert "vocabulary" in resync.reason


async def test_options_that_leave_the_drafter_no_token_concern_that_session_alone(
    reference: Reference,
) -> None:
    async with (
        draft_service(proposer()) as drafter,
        target(drafter, vocab_size=VOCAB_SIZE) as scripted,
    ):
        tokens = prompt(8)
        barren = {"max_new_tokens": 9, "suppress_tokens": list(range(VOCAB_SIZE))}
        opens = [
            scripted.open_message(1, tokens, window=3),
            scripted.open_message(2, tokens, window=3, config=barren),
            scripted.open_message(3, prompt(5), window=3),
        ]
        await scripted.send(draft_pb2.SpeculateRequest(opens=opens))
        assert await scripted.grown(1) == reference.greedy(tokens, 3)
        assert await scripted.grown(2) == []
        assert await scripted.grown(3) == reference.greedy(prompt(5), 3)


async def test_a_confidence_threshold_stops_behind_the_first_improbable_token(
    reference: Reference,
) -> None:
    async with (
        draft_service(proposer()) as drafter,
        target(drafter, vocab_size=VOCAB_SIZE) as scripted,
    ):
        lengths = set()
        # A typical probability of this model: some tokens lie above it, some below.
        threshold = 0.4
        for number in range(6):
            tokens = prompt(5, seed=number)
            expected: list[int] = []
            for _ in range(8):
                log_probs = reference.log_probs([*tokens, *expected])
                expected.append(int(log_probs.argmax()))
                if float(log_probs.max().exp()) < threshold:
                    break
            await scripted.open(number, tokens, window=8, confidence_threshold=threshold)
            assert await scripted.grown(number) == expected
            lengths.add(len(expected))
        assert len(lengths) > 1


async def settled(scripted: ScriptedTarget, number: int, text: list[int]) -> bool:
    """Wait for a session's growth, opening it again when asked to; False once it is refused."""
    for _ in range(20):
        session = scripted.sessions[number]
        await scripted.settled(number)
        if not session.resyncs:
            return True
        if session.resyncs[-1].refused:
            return False
        await scripted.open(number, text, window=3)
    raise AssertionError("pushed out again and again")


async def fill(scripted: ScriptedTarget, drafter: RunningDrafter, reference: Reference) -> int:
    """Keep more sessions going than fit; returns how many answers were right."""
    answers = 0
    texts = {number: prompt(30, seed=number) for number in range(6)}
    for number, text in texts.items():
        await scripted.open(number, text, window=3)
    for _ in range(4):
        for number, text in texts.items():
            if await settled(scripted, number, text):
                chain = scripted.sessions[number].chain
                assert chain == reference.greedy(text, 3)
                answers += 1
                text += [*chain, 1]
                await scripted.commit(number, [*chain, 1])
    return answers


@pytest.mark.parametrize("idle_seconds", [0.0, 3600.0])
async def test_a_small_cache_makes_room_and_never_a_mistake(
    idle_seconds: float, reference: Reference
) -> None:
    model = proposer(num_blocks=24)  # 96 tokens, for six sessions of 30 to 46
    settings = SessionSettings(idle_seconds=idle_seconds)
    async with (
        draft_service(model, sessions=settings) as drafter,
        target(drafter, vocab_size=VOCAB_SIZE) as scripted,
    ):
        assert await fill(scripted, drafter, reference) >= 4
        model._pool.check_integrity()


async def test_a_long_text_is_extended_up_to_the_models_maximum(reference: Reference) -> None:
    async with (
        draft_service(proposer()) as drafter,
        target(drafter, vocab_size=VOCAB_SIZE) as scripted,
    ):
        tokens = prompt(MAX_POSITIONS - 3)
        await scripted.open(1, tokens, window=8, config={"max_new_tokens": 1000})
        assert await scripted.grown(1) == reference.greedy(tokens, 3)
        await scripted.open(2, [*tokens, 1, 2, 3], window=8)
        assert await scripted.grown(2) == []
        await scripted.open(3, [*tokens, 1, 2, 3, 4], window=8)
        assert (await scripted.resynced(3)).refused


def test_the_references_noise_is_that_of_the_published_test_vectors() -> None:
    """Known answers of the Random123 distribution; and shared noise differs between positions."""
    from draft.reference import philox

    assert philox(0, [0, 0, 0, 0]) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 2**32 - 1
    assert philox(2**64 - 1, [ones] * 4) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert not torch.equal(gumbel(0, 0, 1, 8), gumbel(0, 0, 2, 8))
