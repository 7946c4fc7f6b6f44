"""A sequence in the making: its strategy, its blocks, its drafter. Owned by the engine thread."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from outrider_target.constraints.constraint import Constraint, Form
from outrider_target.decoding.beams.guess_session import GuessSession
from outrider_target.decoding.beams.make import beam_strategy
from outrider_target.decoding.branch import Branch
from outrider_target.decoding.committed import Committed
from outrider_target.decoding.contrastive import ContrastiveStrategy
from outrider_target.decoding.dola import DolaStrategy
from outrider_target.decoding.guidance import GuidedStrategy
from outrider_target.decoding.scoring import WINDOW, ScoringSession, ScoringStrategy
from outrider_target.decoding.stopping import Criteria, StopCheck, StopStrings
from outrider_target.decoding.strategy import DecodingStrategy
from outrider_target.decoding.tensors import TensorReport
from outrider_target.decoding.token_strategy import TokenOptions, TokenStrategy
from outrider_target.drafting.drafter import NO_DRAFT, Draft, DraftSession
from outrider_target.drafting.pricing.calibration import SequenceCalibration
from outrider_target.drafting.window import AUTO, Window
from outrider_target.engine.round_trace import RoundTrace
from outrider_target.engine.statistics import SpeculationCounters
from outrider_target.requests.request import DraftMethod, Finish, GenerationRequest

_arrivals = itertools.count()


@dataclass(slots=True, eq=False)
class RequestState:
    """A request while it is served."""

    request: GenerationRequest
    sequences: list[Sequence] = field(default_factory=list)
    arrival: int = field(default_factory=lambda: next(_arrivals))
    """Order of arrival: of a caller's requests the earlier are admitted first; of all, they are
    preempted last."""
    arrived_at: float = field(default_factory=time.monotonic)
    admitted_at: float | None = None
    first_token_at: float | None = None
    trace: RoundTrace | None = None
    """What its trace shows of its rounds; None: it is not traced."""
    caller: str = ""
    """Name of who asked: callers take turns. Empty: it could be anybody."""
    account: str = ""
    """Under which name what it generates is charged."""
    aborted: bool = False
    """Whether somebody asked to end it. Belongs to the asyncio loop."""

    @property
    def finished(self) -> bool:
        """Whether all its sequences have ended."""
        return all(sequence.finish is not None for sequence in self.sequences)


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence of a request. Its tokens are its strategy's."""

    state: RequestState
    index: int
    strategy: DecodingStrategy
    window: Window
    constraint: Constraint | None = None
    """The form of its text and how far it has come; moved on by its strategy."""
    counters: SpeculationCounters = field(default_factory=SpeculationCounters)
    session: DraftSession | None = None
    """Its drafter's view of it; None until it runs for the first time."""
    offered: Draft = NO_DRAFT
    """What its drafter had for the round, more than was verified perhaps."""
    num_undrafted: int = 0
    """Tokens decided since its drafter last had anything for a round."""
    calibration: SequenceCalibration = field(default_factory=SequenceCalibration)
    """How its drafts fare."""
    branches: SequenceOf[Branch] = field(init=False)
    """What it holds, or would hold, in the KV pool."""
    controlled: bool = field(init=False)
    """Whether what it verifies is what pays."""
    finish: Finish | None = None
    num_generated: int = 0
    """Tokens of its output that are final."""
    last_decided_at: float | None = None
    """When the forward ended that decided its latest tokens, by `time.monotonic()`."""
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    """Tokens of its prompt that earlier requests had left in the KV pool."""

    def __post_init__(self) -> None:
        self.branches = self.strategy.branches
        speculation = self.request.speculation
        self.controlled = (
            self.window.schedule == AUTO
            and not speculation.synchronous
            and speculation.method is not DraftMethod.NONE
        )

    @property
    def request(self) -> GenerationRequest:
        """The request it belongs to."""
        return self.state.request

    @property
    def token_ids(self) -> SequenceOf[int]:
        """Committed tokens, prompt first."""
        return self.strategy.token_ids

    @property
    def length(self) -> int:
        """Committed length."""
        return len(self.token_ids)

    @property
    def placed(self) -> bool:
        """Whether it has a place in the KV pool: it does while it runs."""
        return self.branches[0].handle is not None

    @property
    def next_window(self) -> int:
        """Draft tokens wanted in its next round."""
        return self.window.next_size(self.length, self.request.parameters.max_length)


def new_state(
    request: GenerationRequest,
    tokenizer: PreTrainedTokenizerFast | None,
    form: Form | None = None,
    *,
    after: RequestState | None = None,
) -> RequestState:
    """A request and its sequences, ready to be scheduled.

    Args:
        request: A validated request.
        tokenizer: Finds its stop strings; may be None when it has none.
        form: Its compiled structure; None when its text is free.
        after: What was run for its sake before: its place in the queue and its time count on.
    """
    state = RequestState(request, trace=RoundTrace() if request.traceparent else None)
    if after is not None:
        state.arrival, state.arrived_at = after.arrival, after.arrived_at
    speculation = request.speculation
    for index in range(1 if request.beams else request.num_sequences):
        stop_strings = None
        if request.stop_strings:
            assert tokenizer is not None
            stop_strings = StopStrings(request.stop_strings, tokenizer, request.prompt)
        constraint = None
        if form is not None:
            constraint = form.start(request.parameters.eos_token_ids)
        criteria = None
        if request.plugins.criteria:
            criteria = Criteria(request.plugins.criteria, request.prompt)
        stop = StopCheck(
            request.parameters, stop_strings, constraint, criteria, heed_eos=not request.given
        )
        committed = Committed(request.prompt, stop)
        strategy: DecodingStrategy
        window = Window(speculation.window, speculation.schedule, speculation.max_window)
        if request.beams:
            beams = beam_strategy(request, request.beams, stop_strings, constraint)
            constant = Window(speculation.window, "constant", speculation.max_window)
            sequence = Sequence(state, index, beams, constant)
            if speculation.method is not DraftMethod.NONE:
                sequence.session = GuessSession(beams)
        elif request.given:
            strategy = ScoringStrategy(
                request.parameters,
                committed,
                request.given,
                num_top_log_probs=request.num_top_log_probs,
            )
            sequence = Sequence(state, index, strategy, Window(WINDOW, "constant", WINDOW))
            sequence.session = ScoringSession(request.given)
        else:
            strategy = _strategy(request, committed, index, constraint)
            sequence = Sequence(state, index, strategy, window, constraint)
        state.sequences.append(sequence)
    return state


def _strategy(
    request: GenerationRequest, committed: Committed, index: int, constraint: Constraint | None
) -> DecodingStrategy:
    """How a sequence of a request decodes."""
    tensors = None
    if request.tensors.kinds:
        tensors = TensorReport(request.tensors, len(request.prompt))
    options = TokenOptions(
        seed=request.seed,
        sample_index=index,
        num_top_log_probs=request.num_top_log_probs,
        constraint=constraint,
        tensors=tensors,
        processors=request.plugins.processors,
        by_ratio=request.speculation.by_ratio,
    )
    if request.dola_layers:
        return DolaStrategy(request.parameters, committed, request.dola_layers, options)
    if request.guidance is not None:
        return GuidedStrategy(request.parameters, committed, request.guidance, options)
    strategy = TokenStrategy(request.parameters, committed, options)
    if request.contrastive is not None:
        return ContrastiveStrategy(strategy, request.contrastive, tensors)
    return strategy
