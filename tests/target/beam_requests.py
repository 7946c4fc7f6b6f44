"""Requests for beams, made from transformers' options as a server makes them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from engine.tiny_models import MAX_POSITIONS, VOCAB_SIZE
from outrider.v1 import generation_pb2
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.generation_config import from_json_dict
from outrider_target.requests.request import DraftMethod, GenerationRequest
from outrider_target.requests.room import Room
from outrider_target.requests.tensor_rules import TensorSizes
from outrider_target.requests.validation import ServedModel, validate
from outrider_target.settings import SpeculationDefaults

_ids = itertools.count()

ROOM = Room(max_num_seqs=16, num_blocks=1000, block_size=4)
SERVED = ServedModel(
    vocab_size=VOCAB_SIZE,
    max_model_len=MAX_POSITIONS,
    room=ROOM,
    has_tokenizer=False,
    generation_config=GenerationConfig(),
    tensors=TensorSizes(VOCAB_SIZE, None, 8, 1 << 20),
)


def beam_request(
    prompt: Sequence[int],
    options: Mapping[str, Any],
    *,
    seed: int = 0,
    progress: int = 0,
    room: Room = ROOM,
    token_choices: Sequence[Sequence[int]] = (),
) -> GenerationRequest:
    """A validated request with transformers' options."""
    message = generation_pb2.GenerateRequest(
        generation_config=from_json_dict(dict(options)), seed=seed, beam_progress_interval=progress
    )
    message.token_ids.ids.extend(prompt)
    for token_ids in token_choices:
        message.structured_output.token_choices.lists.add().ids.extend(token_ids)
    return validate(
        message,
        request_id=f"beams-{next(_ids)}",
        prompt=prompt,
        model=dataclasses.replace(SERVED, room=room),
        defaults=SpeculationDefaults(draft_method=DraftMethod.PROMPT_LOOKUP),
    )
