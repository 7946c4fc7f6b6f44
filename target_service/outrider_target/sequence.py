"""A sequence in the making: its tokens, its blocks, its drafter. Owned by the engine thread."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from outrider_target.constraint import Form
from outrider_target.drafting.drafter import DraftSession
from outrider_target.given import WINDOW, GivenSession, GivenStrategy
from outrider_target.request import Finish, GenerationRequest
from outrider_target.statistics import SpeculationCounters
from outrider_target.stopping import StopCheck, StopStrings
from outrider_target.strategy import DecodingStrategy, TokenStrategy
from outrider_target.tensors import TensorReport
from outrider_target.window import Window

_arrivals = itertools.count()


@dataclass(slots=True, eq=False)
class RequestState:
    """A request while it is served."""

    request: GenerationRequest
    sequences: list[Sequence] = field(default_factory=list)
    arrival: int = field(default_factory=lambda: next(_arrivals))
    """Order of arrival: earlier requests are admitted first and preempted last."""
    arrived_at: float = field(default_factory=time.monotonic)
    admitted_at: float | None = None
    first_token_at: float | None = None
    aborted: bool = False
    """Whether somebody asked to end it. Belongs to the asyncio loop."""

    @property
    def finished(self) -> bool:
        """Whether all its sequences have ended."""
        return all(sequence.finish is not None for sequence in self.sequences)


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence of a request.

    Invariant: while it runs, the KV pool holds `token_ids[:-1]` or less; the last committed token
    is fed in the next round, together with the draft.
    """

    state: RequestState
    index: int
    token_ids: list[int]
    """Committed tokens, prompt first."""
    strategy: DecodingStrategy
    stop: StopCheck
    window: Window
    tensors: TensorReport
    counters: SpeculationCounters = field(default_factory=SpeculationCounters)
    session: DraftSession | None = None
    """Its drafter's view of it; None until it runs for the first time."""
    handle: int | None = None
    """Its entry in the KV pool; None while it waits."""
    finish: Finish | None = None
    num_preemptions: int = 0

    @property
    def request(self) -> GenerationRequest:
        """The request it belongs to."""
        return self.state.request

    @property
    def length(self) -> int:
        """Committed length."""
        return len(self.token_ids)

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
    state = RequestState(request)
    if after is not None:
        state.arrival, state.arrived_at = after.arrival, after.arrived_at
    speculation = request.speculation
    for index in range(request.num_sequences):
        stop_strings = None
        if request.stop_strings:
            assert tokenizer is not None
            stop_strings = StopStrings(request.stop_strings, tokenizer, request.prompt)
        constraint = None
        if form is not None:
            constraint = form.start(request.parameters.eos_token_ids)
        strategy = TokenStrategy(
            request.parameters,
            seed=request.seed,
            sample_index=index,
            num_prompt_tokens=len(request.prompt),
            num_top_log_probs=request.num_top_log_probs,
            constraint=constraint,
            tensors=request.tensors.kinds,
        )
        sequence = Sequence(
            state=state,
            index=index,
            token_ids=list(request.prompt),
            strategy=strategy,
            stop=StopCheck(
                request.parameters, stop_strings, constraint, heed_eos=not request.given
            ),
            window=Window(speculation.window, speculation.schedule, speculation.max_window),
            tensors=TensorReport(request.tensors, len(request.prompt)),
        )
        if request.given:
            sequence.strategy = GivenStrategy(strategy, request.given, len(request.prompt))
            sequence.session = GivenSession(request.given)
            sequence.window = Window(WINDOW, "constant", WINDOW)
        state.sequences.append(sequence)
    return state
