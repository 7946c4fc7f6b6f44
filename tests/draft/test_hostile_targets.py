"""Whatever one target sends, the drafter lives, and another target's answers stay right."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from draft.harness import FINGERPRINT, draft_service, target
from draft.reference import MAX_POSITIONS, VOCAB_SIZE, Reference, tiny_model
from outrider.v1 import draft_pb2, generation_config_pb2
from outrider_draft.metrics import DraftMetrics
from outrider_draft.model_proposer import ModelProposer
from outrider_draft.proposer import Description
from outrider_runtime.model.ragged_runner import RaggedRunner
from prometheus_client import CollectorRegistry

FLOATS = [0.0, 1.0, 0.5, -1.0, 1e-45, 1e38, math.inf, -math.inf, math.nan]
INTEGERS = [0, 1, 2, 7, VOCAB_SIZE - 1, VOCAB_SIZE, 2**31, 2**32 - 1]


def nonsense(message: Any, choice: random.Random, *, share: float = 0.3) -> None:
    """Fill some fields of a message with values of the right type, and of no sense."""
    for field in message.DESCRIPTOR.fields:
        if choice.random() > share or (
            field.containing_oneof is not None and choice.random() < 0.5
        ):
            continue
        if field.message_type is not None:
            parts = (
                [getattr(message, field.name).add() for _ in range(choice.randrange(3))]
                if field.is_repeated
                else [getattr(message, field.name)]
            )
            for part in parts:
                part.SetInParent()
                nonsense(part, choice)
        elif field.is_repeated:
            values = [value_for(field, choice) for _ in range(choice.randrange(5))]
            getattr(message, field.name).extend(values)
        else:
            setattr(message, field.name, value_for(field, choice))


def value_for(field: Any, choice: random.Random) -> object:
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return choice.choice(FLOATS)
    if field.cpp_type == field.CPPTYPE_BOOL:
        return choice.random() < 0.5
    if field.cpp_type == field.CPPTYPE_STRING:
        return choice.choice(["", "x", "\x00\x1b" * 99])
    return choice.choice(INTEGERS)


def frame(choice: random.Random) -> draft_pb2.SpeculateRequest:
    """Opens and commits that are half sense, half nonsense."""
    request = draft_pb2.SpeculateRequest()
    for number in range(choice.randrange(4)):
        opened = request.opens.add(
            session=choice.randrange(5),
            token_ids=choice.choices(range(VOCAB_SIZE), k=choice.randrange(1, 9)),
            num_prompt_tokens=1,
            seed=choice.choice([0, 2**64 - 1]),
            limits=draft_pb2.Limits(
                window=3, depth=choice.choice([3, 2**32 - 1]), max_nodes=2**32 - 1
            ),
        )
        config = generation_config_pb2.GenerationConfig()
        nonsense(config, choice, share=choice.choice([0.02, 0.1]))
        opened.generation_config.CopyFrom(config)
        if number == 3:
            nonsense(opened, choice)
    for _ in range(choice.randrange(3)):
        commit = request.commits.add(
            session=choice.randrange(7),
            base_length=choice.choice([0, 1, 3, 8, 2**32 - 1]),
            token_ids=choice.choices(range(VOCAB_SIZE), k=choice.randrange(5)),
        )
        if choice.random() < 0.2:
            nonsense(commit, choice)
    for _ in range(choice.randrange(2)):
        request.closes.add(session=choice.randrange(7))
    return request


@pytest.mark.parametrize("seed", range(4))
async def test_nonsense_from_one_target_reaches_no_other(seed: int) -> None:
    runner = RaggedRunner(tiny_model(), num_blocks=128, block_size=4)
    description = Description("model", "tiny", VOCAB_SIZE, FINGERPRINT, MAX_POSITIONS)
    model = ModelProposer(runner, description, DraftMetrics(CollectorRegistry()))
    reference = Reference(tiny_model())
    choice = random.Random(seed)
    async with draft_service(model) as drafter, target(drafter, vocab_size=VOCAB_SIZE) as honest:
        text = [1, 2, 3]
        await honest.open(1, text, window=3)
        async with target(drafter, vocab_size=VOCAB_SIZE) as hostile:
            for _ in range(12):
                for _ in range(4):
                    await hostile.send(frame(choice))
                chain = await honest.grown(1)
                assert chain == reference.greedy(text, 3)
                text += [*chain, 5]
                await honest.commit(1, [*chain, 5])
            assert hostile.error is None, hostile.error
            assert sum(len(answer.resyncs) for answer in hostile.frames) > 10
            assert sum(len(grow.node_ids) for a in hostile.frames for grow in a.grows) > 10
        await honest.grown(1)
        await honest.close(1)
        await drafter.until(lambda: drafter.service.worker.num_sessions == 0)
    runner.pool.check_integrity()
    assert runner.pool.num_free_blocks == runner.pool.num_blocks
