"""The lossless canary: some finished requests are decoded again plainly and compared.

Lives in the asyncio loop. One replay at a time, while there is room and nobody waits; it is the
last to get rows, the first to lose its blocks, and gives up when somebody has to wait.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import structlog
from prometheus_client import CollectorRegistry, Counter
from transformers import PreTrainedTokenizerFast

from outrider_target.constraints.constraint import Form
from outrider_target.engine.admission import LiveRequests
from outrider_target.engine.events import RequestCompleted, RequestFailed, TokensDecided
from outrider_target.engine.sequence import RequestState, new_state
from outrider_target.engine.thread import Engine
from outrider_target.requests.replay import is_replayable, replay_of
from outrider_target.requests.request import GenerationRequest
from outrider_target.serving.comparison import NUM_TOP, Comparison, Result

log = structlog.get_logger()

MAX_PENDING = 4
"""Texts that may wait for their replay; of more it is only counted that they were skipped."""

_LOOK_SECONDS = 0.05
"""How often it looks whether it has room, or is in the way."""

_LAST = 2**62
"""Added to a replay's place in the order of arrival."""


class Served(NamedTuple):
    """A finished request and the tokens of its sequences."""

    request: GenerationRequest
    form: Form | None
    token_ids: Sequence[Sequence[int]]


class Canary:
    """Samples finished requests and replays them."""

    def __init__(
        self,
        engine: Engine,
        requests: LiveRequests,
        tokenizer: PreTrainedTokenizerFast | None,
        registry: CollectorRegistry,
        *,
        rate: float,
        tolerance: float,
        max_num_seqs: int,
    ) -> None:
        """Tie the parts together.

        Args:
            engine: Decodes the replays.
            requests: Passes on their events.
            tokenizer: Finds stop strings; may be None where there are none.
            registry: Where results are counted.
            rate: Share of the finished requests, 0 to 1.
            tolerance: See `comparison.TOLERANCES`.
            max_num_seqs: Sequences that may run at once.
        """
        self._engine = engine
        self._requests = requests
        self._tokenizer = tokenizer
        self._rate = rate
        self._tolerance = tolerance
        self._max_num_seqs = max_num_seqs
        self._pending: asyncio.Queue[Served] = asyncio.Queue(MAX_PENDING)
        self._random = random.Random()
        self._task: asyncio.Task[None] | None = None
        self._results = Counter(
            "outrider_canary",
            "Finished requests that the canary looked at, by what it found.",
            ("result",),
            registry=registry,
        )
        for result in Result:
            self._results.labels(result.value)

    def start(self) -> None:
        """Begin to replay, if there is anything to be sampled."""
        if self._rate:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End, with what is under way."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def consider(self, served: Served, *, drafted: bool, cut: bool) -> None:
        """Perhaps have a finished request replayed.

        Args:
            served: The request and its text.
            drafted: Whether any draft was verified for it.
            cut: Whether time or somebody else ended it, which a replay cannot repeat.
        """
        if self._random.random() >= self._rate:
            return
        if cut or not drafted or not is_replayable(served.request):
            self._count(Result.INCONCLUSIVE)
            return
        try:
            self._pending.put_nowait(served)
        except asyncio.QueueFull:
            self._count(Result.SKIPPED)

    def _count(self, result: Result) -> None:
        self._results.labels(result.value).inc()

    async def _run(self) -> None:
        while True:
            served = await self._pending.get()
            while not self._has_room(served.request.num_sequences):
                await asyncio.sleep(_LOOK_SECONDS)
            try:
                result = await self._replay(served)
            except Exception:  # the next one may fare better
                log.exception("canary_failed", request_id=served.request.id)
                result = Result.INCONCLUSIVE
            self._count(result)

    def _has_room(self, num_sequences: int) -> bool:
        if self._requests.draining:
            return False
        loads = self._engine.loads
        running = loads.num_running_sequences
        fits = running + num_sequences <= self._max_num_seqs or not running
        return fits and not loads.num_waiting_requests

    async def _replay(self, served: Served) -> Result:
        request = served.request
        state = await asyncio.to_thread(
            new_state, replay_of(request, num_top_log_probs=NUM_TOP), self._tokenizer, served.form
        )
        state.arrival += _LAST
        comparison = Comparison(request, served.token_ids, tolerance=self._tolerance)
        await self._compare(state, comparison)
        if comparison.result is Result.DIFFERENT:
            difference = next(each for each in comparison.differences if not each.near_tie)
            log.warning(
                "canary_different",
                request_id=request.id,
                sequence_index=difference.sequence_index,
                position=difference.position,
                draft_method=request.speculation.method.value,
            )
        return comparison.result

    async def _compare(self, state: RequestState, comparison: Comparison) -> None:
        """Run a replay until it has said enough or is in the way."""
        events = self._requests.add_replay(state)
        self._engine.submit(state)
        try:
            while not comparison.settled and not self._is_in_the_way(state):
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        match await events.get():
                            case TokensDecided() as event:
                                comparison.take(event)
                            case RequestCompleted() | RequestFailed():
                                return
        finally:
            self._requests.remove(state)
            self._engine.cancel(state, report=False)

    def _is_in_the_way(self, state: RequestState) -> bool:
        own = state.admitted_at is None  # looked at first: until then it is one of those that wait
        return self._requests.draining or self._engine.loads.num_waiting_requests > own
