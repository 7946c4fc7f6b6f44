"""The one thread that owns the target model.

The asyncio loop and this thread meet in two queues: commands come in through `submit`, `cancel` and
`report_link`, events go out through `deliver`, which must not block. asyncio never runs a forward
pass, and a slow reader never holds the batch. Knows nothing of gRPC.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import structlog

from outrider_target.drafting.remote.fleet import DraftFleet
from outrider_target.drafting.remote.updates import LinkEvent
from outrider_target.engine.explanation import Figures
from outrider_target.engine.round import Rounds
from outrider_target.engine.round_tallies import RoundTallies
from outrider_target.engine.scheduler import PrefixCacheCounters, Scheduler
from outrider_target.engine.sequence import RequestState
from outrider_target.engine.statistics import SpeculationCounters

log = structlog.get_logger()


class Submit(NamedTuple):
    """Serve a request."""

    state: RequestState


class Cancel(NamedTuple):
    """End a request."""

    state: RequestState
    report: bool


class Stop(NamedTuple):
    """End the thread; what still runs is cancelled."""


Command = Submit | Cancel | Stop | LinkEvent


class Loads(NamedTuple):
    """How busy the engine is."""

    num_running_sequences: int
    num_waiting_requests: int
    waiting_since: float | None
    """When the longest waiting request arrived, by `time.monotonic()`; None: none waits."""
    num_free_blocks: int
    num_generated_tokens: int
    num_preemptions: int
    prefix_cache: PrefixCacheCounters
    speculation: SpeculationCounters
    speedup_ratio: float | None
    """Tokens a second over those of plain decoding; None until it was measured."""


class Engine:
    """Runs rounds until it is stopped."""

    def __init__(
        self,
        rounds: Rounds,
        scheduler: Scheduler,
        fleet: DraftFleet,
        *,
        flush: Callable[[], None],
        in_spare_time: Callable[[], bool],
        on_death: Callable[[BaseException], None],
    ) -> None:
        """Tie the parts together.

        Args:
            rounds: The batch.
            scheduler: The queue before it.
            fleet: The draft links.
            flush: Called before each forward and before waiting: passes on what was delivered.
            in_spare_time: Called while nothing else is to be done, until it says that nothing is
                left. Must be brief.
            on_death: Called when the thread ends by a fault of its own.
        """
        self._rounds = rounds
        self._scheduler = scheduler
        self._fleet = fleet
        self._flush = flush
        self._in_spare_time = in_spare_time
        self._on_death = on_death
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._live: set[RequestState] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="outrider-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread and wait for it."""
        self._commands.put(Stop())
        self._thread.join(timeout)

    def submit(self, state: RequestState) -> None:
        """Serve a request. Any thread."""
        self._commands.put(Submit(state))

    def cancel(self, state: RequestState, *, report: bool) -> None:
        """End a request in the next round. Any thread."""
        self._commands.put(Cancel(state, report))

    def report_link(self, event: LinkEvent) -> None:
        """Take in what a draft link reports. Any thread."""
        self._commands.put(event)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def loads(self) -> Loads:
        """A snapshot; any thread."""
        return Loads(
            num_running_sequences=len(self._scheduler.running),
            num_waiting_requests=self._scheduler.num_waiting_requests,
            waiting_since=self._scheduler.waiting_since,
            num_free_blocks=self._scheduler.num_free_blocks,
            num_generated_tokens=self._rounds.num_generated_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            prefix_cache=self._scheduler.prefix_cache,
            speculation=self._rounds.totals,
            speedup_ratio=self._rounds.control.speedup(max(1, len(self._scheduler.running))),
        )

    @property
    def tallies(self) -> RoundTallies:
        """How long rounds took, and how much was in them; any thread."""
        return self._rounds.tallies

    @property
    def figures(self) -> Figures:
        """What is known of what limits the speed; any thread."""
        control = self._rounds.control
        running = max(1, len(self._scheduler.running))
        answers = [link.pace.latency for link in self._fleet.links if link.up and link.pace.latency]
        return Figures(
            recent=self._rounds.log.recent(),
            answer_seconds=min(answers, default=None),
            asking_cost_ratio=control.gate.asked_over_quiet.value(running),
            speedup_ratio=control.speedup(running),
        )

    def _run(self) -> None:
        try:
            come_back_at: float | None = None
            while not self._stopping:
                self._take_commands(come_back_at)
                come_back_at = self._rounds.step(
                    before=self._pass_on, meanwhile=self._take_commands_now
                )
                self._fleet.flush()
                if come_back_at != 0.0:
                    self._flush()
                self._live = {state for state in self._live if not state.finished}
        except BaseException as fault:  # the thread's last word: nobody is above it
            log.exception("engine_died")
            self._on_death(fault)

    def _pass_on(self) -> None:
        """What drafters and callers are told, right before a forward.

        Who is woken by it needs the interpreter, which is free while the model computes. Told any
        sooner, they would be in the way of preparing the round, or keep its forward waiting.
        """
        self._fleet.flush()
        self._flush()

    def _take_commands(self, come_back_at: float | None) -> None:
        """Take in all commands there are; wait for one when there is nothing else to do."""
        try:
            if come_back_at == 0.0:
                self._obey(self._commands.get_nowait())
            elif come_back_at is None:
                while self._commands.empty() and self._in_spare_time():
                    pass
                self._obey(self._commands.get())
            else:
                self._obey(self._commands.get(timeout=max(0.0, come_back_at - time.monotonic())))
            self._take_commands_now()
        except queue.Empty:
            return

    def _take_commands_now(self) -> None:
        """Take in all commands there are."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._obey(self._commands.get_nowait())

    def _obey(self, command: Command) -> None:
        match command:
            case Submit(state):
                self._live.add(state)
                self._scheduler.submit(state)
            case Cancel(state, report):
                if state in self._live and not state.finished:
                    self._rounds.cancel(state, report=report)
            case Stop():
                self._stopping = True
                for state in self._live:
                    if not state.finished:
                        self._rounds.cancel(state, report=True)
                self._flush()
            case _:
                self._fleet.handle(command)
