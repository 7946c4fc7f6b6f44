"""One beam search on the target's rounds, without threads or gRPC, timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from outrider.v1 import generation_pb2
from outrider.v1.generation_config_pb2 import GenerationConfig, TokenIds
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.drafting.drafter import NullDrafter
from outrider_target.drafting.remote.patience import RoundPace
from outrider_target.engine.events import Event, RequestCompleted, TokensDecided
from outrider_target.engine.round import Rounds
from outrider_target.engine.scheduler import Scheduler
from outrider_target.engine.sequence import RequestState, new_state
from outrider_target.requests.request import DraftMethod
from outrider_target.requests.room import Room
from outrider_target.requests.tensor_rules import TensorSizes
from outrider_target.requests.validation import ServedModel, validate
from outrider_target.settings import SpeculationDefaults


class Timed(NamedTuple):
    """What a search found, and what it took."""

    token_ids: Sequence[int]
    seconds: float
    """Of the processor."""
    num_rounds: int
    num_drafted: int
    num_accepted: int


def timed_search(
    runner: RaggedRunner,
    prompt: Sequence[int],
    *,
    num_beams: int,
    new_tokens: int,
    guessing: bool,
) -> Timed:
    """Serve one request."""
    message = generation_pb2.GenerateRequest(
        generation_config=GenerationConfig(
            num_beams=num_beams, max_new_tokens=new_tokens, eos_token_id=TokenIds(ids=[0])
        ),
        beam_progress_interval=0,
    )
    message.token_ids.ids.extend(prompt)
    method = DraftMethod.PROMPT_LOOKUP if guessing else DraftMethod.NONE
    request = validate(
        message,
        request_id="beams",
        prompt=prompt,
        model=ServedModel(
            vocab_size=runner.vocab_size,
            max_model_len=runner.max_model_len,
            room=Room(16, runner.pool.num_blocks, runner.pool.block_size),
            has_tokenizer=False,
            generation_config=GenerationConfig(),
            tensors=TensorSizes(runner.vocab_size, None, 8, 1 << 20),
        ),
        defaults=SpeculationDefaults(draft_method=method),
    )
    pace = RoundPace()
    scheduler = Scheduler(runner.pool, pace, max_num_seqs=16, max_batched_tokens=512)
    events: list[Event] = []

    def deliver(_: RequestState, event: Event) -> None:
        events.append(event)

    rounds = Rounds(runner, scheduler, {DraftMethod.NONE: NullDrafter()}, deliver, pace)
    scheduler.submit(new_state(request, None))
    started = time.process_time()
    while not events or not isinstance(events[-1], RequestCompleted):
        rounds.step()
    seconds = time.process_time() - started
    (found,) = (event for event in events if isinstance(event, TokensDecided))
    totals = rounds.totals
    return Timed(
        list(found.token_ids),
        seconds,
        totals.num_rounds,
        totals.num_draft_tokens,
        totals.num_accepted_tokens,
    )
