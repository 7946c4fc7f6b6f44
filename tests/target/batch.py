"""Drives the target's rounds without threads or gRPC: requests in, tokens and counters out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_runtime.model.log_probs import TokenLogProbs
from outrider_runtime.model.runner import Runner
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_target.constraints.constraint import Form
from outrider_target.decoding.beams.beam import BeamScore
from outrider_target.decoding.strategy import DecodingStrategy
from outrider_target.decoding.tensors import TokenTensor
from outrider_target.drafting.drafter import Drafter, NullDrafter
from outrider_target.drafting.lookup import LookupDrafter
from outrider_target.drafting.pricing.control import Control
from outrider_target.drafting.remote.patience import RoundPace
from outrider_target.engine.events import (
    BeamProgress,
    Event,
    RequestCompleted,
    RequestFailed,
    TokensDecided,
)
from outrider_target.engine.round import Rounds
from outrider_target.engine.scheduler import Scheduler
from outrider_target.engine.sequence import RequestState, Sequence, new_state
from outrider_target.engine.statistics import SpeculationCounters
from outrider_target.requests.request import (
    NO_TENSORS,
    ContrastiveSettings,
    DraftMethod,
    Finish,
    GenerationRequest,
    SpeculationSettings,
    TensorWishes,
)

_ids = itertools.count()

SPECULATION = SpeculationSettings(
    method=DraftMethod.REMOTE,
    synchronous=False,
    window=5,
    schedule="constant",
    max_window=64,
    run_ahead=0,
    fan_out=1,
    tree_rows=0,
    confidence_threshold=0.0,
    timeout_seconds=1.0,
    draft_temperature=1.0,
    max_matching_ngram_size=2,
    report_rounds=True,
    forced=True,
)


def request(
    prompt: SequenceOf[int],
    *,
    new_tokens: int = 24,
    seed: int = 0,
    num_sequences: int = 1,
    speculation: SpeculationSettings = SPECULATION,
    parameters: SamplingParameters | None = None,
    max_time: float | None = None,
    num_top_log_probs: int | None = None,
    dola_layers: SequenceOf[int] = (),
    contrastive: ContrastiveSettings | None = None,
    tensors: TensorWishes = NO_TENSORS,
    **sampling: object,
) -> GenerationRequest:
    """A request; `sampling` are fields of SamplingParameters."""
    if parameters is None:
        parameters = SamplingParameters(max_length=len(prompt) + new_tokens)
        parameters = dataclasses.replace(parameters, **sampling)  # type: ignore[arg-type]  # fields
    return GenerationRequest(
        id=f"request-{next(_ids)}",
        prompt=tuple(prompt),
        parameters=parameters,
        seed=seed,
        num_sequences=num_sequences,
        stop_strings=(),
        max_time=max_time,
        speculation=speculation,
        num_top_log_probs=num_top_log_probs,
        given=(),
        effective_config=GenerationConfig(),
        dola_layers=dola_layers,
        contrastive=contrastive,
        tensors=tensors,
    )


@dataclass
class Answer:
    """What came out of one request."""

    token_ids: list[list[int]]
    finishes: list[Finish | None]
    counters: SpeculationCounters | None = None
    num_preemptions: int = 0
    num_cached_prompt_tokens: int = 0
    tensors: list[TokenTensor] = field(default_factory=list)
    log_probs: list[TokenLogProbs] = field(default_factory=list)
    beams: list[BeamScore] = field(default_factory=list)
    progress: list[BeamProgress] = field(default_factory=list)
    error: Exception | None = None


@dataclass
class Batch:
    """A target engine on the caller's thread."""

    runner: Runner
    drafter: Drafter = field(default_factory=NullDrafter)
    max_num_seqs: int = 16
    max_batched_tokens: int = 512
    prefix_caching: bool = True
    control: Control = field(default_factory=Control)
    steps_seconds: float = 0.0
    before_round: Callable[[Batch], None] = lambda batch: None
    answers: dict[RequestState, Answer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        round_pace = RoundPace()
        self.scheduler = Scheduler(
            self.runner.pool,
            round_pace,
            max_num_seqs=self.max_num_seqs,
            max_batched_tokens=self.max_batched_tokens,
            control=self.control,
            prefix_caching=self.prefix_caching,
        )
        drafters: dict[DraftMethod, Drafter] = {
            DraftMethod.NONE: NullDrafter(),
            DraftMethod.GRAMMAR: NullDrafter(),
            DraftMethod.REMOTE: self.drafter,
            DraftMethod.PROMPT_LOOKUP: LookupDrafter(),
        }
        self.rounds = Rounds(
            self.runner,
            self.scheduler,
            drafters,
            self._take,
            round_pace,
            self.control,
            steps_seconds=self.steps_seconds,
        )
        self.num_rounds = 0

    def submit(
        self,
        generation: GenerationRequest,
        form: Form | None = None,
        strategy: DecodingStrategy | None = None,
    ) -> RequestState:
        """Put a request into the queue, its text bound to a form or free.

        Args:
            generation: The request.
            form: The form of its text.
            strategy: Decodes its one sequence instead of what it asks for.
        """
        state = new_state(generation, None, form)
        if strategy is not None:
            (sequence,) = state.sequences
            state.sequences = [Sequence(state, 0, strategy, sequence.window)]
        n = generation.num_sequences
        self.answers[state] = Answer([[] for _ in range(n)], [None] * n)
        self.scheduler.submit(state)
        return state

    def run(self, *generations: GenerationRequest, max_rounds: int = 5000) -> list[Answer]:
        """Serve requests to their end; the pool must be empty and whole afterwards."""
        states = [self.submit(generation) for generation in generations]
        self.finish(max_rounds=max_rounds)
        return [self.answers[state] for state in states]

    def finish(self, *, max_rounds: int = 5000) -> None:
        """Run rounds until everything has ended."""
        for _ in range(max_rounds):
            if not self.scheduler.running and not self.scheduler.waiting:
                break
            self.before_round(self)
            self.rounds.step()
            self.num_rounds += 1
            self.runner.pool.check_integrity()
        else:
            raise AssertionError("the batch does not end")
        pool = self.runner.pool
        assert pool.num_free_blocks == pool.num_blocks, "blocks leaked"

    def _take(self, state: RequestState, event: Event) -> None:
        answer = self.answers[state]
        match event:
            case TokensDecided(index, token_ids, drafted, finish, log_probs, tensors, beam):
                assert len(token_ids) == len(drafted)
                answer.token_ids[index] += token_ids
                answer.finishes[index] = finish
                answer.tensors += tensors
                answer.log_probs += log_probs
                if beam is not None:
                    answer.beams.append(beam)
            case BeamProgress() as progress:
                answer.progress.append(progress)
            case RequestCompleted() as end:
                answer.counters = end.speculation
                answer.num_preemptions = end.num_preemptions
                answer.num_cached_prompt_tokens = end.num_cached_prompt_tokens
            case RequestFailed(error):
                answer.error = error
