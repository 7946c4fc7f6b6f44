"""Rounds without a model: the control decides, a cost model and chance answer. Deterministic."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outrider_target.drafting.drafter import Draft
from outrider_target.drafting.pricing.asking import Asking
from outrider_target.drafting.pricing.calibration import SequenceCalibration
from outrider_target.drafting.pricing.control import Control, RoundTimes
from outrider_target.drafting.pricing.step_costs import MEASURED_ROWS, Measured, RowCurve
from outrider_target.drafting.window import AUTO, Window
from outrider_target.requests.request import DraftMethod
from target.batch import SPECULATION, request

_OWN = -1
"""A token that no draft has."""

REQUEST_TOKENS = 64
"""Tokens of a request; then its stream begins another one."""


@dataclass(frozen=True)
class Machine:
    """What things take, in units of a forward of one row.

    Attributes:
        row: Each row more.
        sequence: Each sequence more, beside its row.
        wait: For an answer.
        token_wait: For each token of the longest answer.
        contention: Share by which a round is slower because drafters work meanwhile.
        noise: Standard deviation of a round's time, as a share.
    """

    row: float = 0.06
    sequence: float = 0.05
    wait: float = 0.1
    token_wait: float = 0.04
    contention: float = 0.15
    noise: float = 0.1

    def forward(self, num_sequences: int, num_rows: int) -> float:
        return 1 + self.row * (num_rows - 1) + self.sequence * (num_sequences - 1)

    def curve(self) -> RowCurve:
        """As it is measured at load: forwards of one sequence."""
        return RowCurve([Measured(rows, self.forward(1, rows)) for rows in MEASURED_ROWS])


@dataclass
class Stream:
    """Requests of one client, one after the other."""

    asking: Asking
    calibration: SequenceCalibration
    window: Window
    left: int = REQUEST_TOKENS
    drafted: int = 0


@dataclass
class Simulation:
    """A target that serves streams for ever.

    Attributes:
        machine: What things take.
        acceptance: From stream and time to the probability that a draft token is accepted.
        fixed: A window that is always asked for and verified; None leaves it to the control.
        plain_share: Of rounds, to measure the gain.
    """

    machine: Machine
    acceptance: Callable[[int, float], float]
    fixed: int | None = None
    plain_share: float = 0.0
    control: Control = field(init=False)
    streams: list[Stream] = field(default_factory=list)
    seconds: float = 0.0
    num_tokens: int = 0
    num_rounds: int = 0
    num_asked: int = 0
    """Questions of sequences."""

    def __post_init__(self) -> None:
        self.control = Control(self.machine.curve(), plain_share=self.plain_share)
        self._chance = random.Random(5)

    def goodput(self, num_streams: int, num_rounds: int) -> float:
        """Tokens a second of so many rounds with so many streams."""
        while len(self.streams) < num_streams:
            self.streams.append(self._stream())
        del self.streams[num_streams:]
        seconds, tokens = self.seconds, self.num_tokens
        for _ in range(num_rounds):
            self._round()
        return (self.num_tokens - tokens) / (self.seconds - seconds)

    def _stream(self) -> Stream:
        speculation = dataclasses.replace(SPECULATION, schedule=AUTO)
        generation = request([1], speculation=speculation)
        stream = Stream(
            Asking(self.control.gate, generation),
            self.control.calibration_of(generation),
            Window(5, AUTO, 16),
        )
        self._ask(stream)
        return stream

    def _ask(self, stream: Stream) -> None:
        if self.fixed is not None:
            stream.drafted = self.fixed
        else:
            stream.drafted = stream.window.size if stream.asking.ask() else 0
        self.num_asked += stream.drafted > 0

    def _round(self) -> None:
        drafted = [stream.drafted for stream in self.streams]
        verified = self._verified(drafted)
        forward, cycle = self._times(drafted, verified)
        self.seconds += cycle
        self.num_rounds += 1
        num = len(self.streams)
        rows = num + sum(verified)
        self.control.observe(RoundTimes(num, num, rows, 1, forward, cycle, num, True))
        for index, (stream, count) in enumerate(zip(list(self.streams), verified, strict=True)):
            self._commit(index, stream, count)

    def _verified(self, drafted: Sequence[int]) -> list[int]:
        if self.fixed is not None:
            return list(drafted)
        survivals = [
            stream.calibration.survival(Draft(range(count), DraftMethod.REMOTE))
            for stream, count in zip(self.streams, drafted, strict=True)
        ]
        allotted = self.control.allot(survivals)
        for stream, count, paying in zip(self.streams, drafted, allotted, strict=True):
            if paying < count and not self.control.plain:
                stream.window.cut_to(paying)
        return allotted

    def _times(self, drafted: Sequence[int], verified: Sequence[int]) -> tuple[float, float]:
        machine = self.machine
        num = len(self.streams)
        forward = machine.forward(num, num + sum(verified))
        wait = 0.0
        if asked := sum(count > 0 for count in drafted):
            forward *= 1 + machine.contention * asked / num
            wait = machine.wait + machine.token_wait * max(drafted)
        forward *= max(0.5, self._chance.gauss(1, machine.noise))
        if self._chance.random() < 0.01:
            forward *= 5  # something else ran
        return forward, forward + wait

    def _commit(self, index: int, stream: Stream, count: int) -> None:
        acceptance = self.acceptance(index, self.seconds)
        agreed = 0
        while agreed < stream.drafted and self._chance.random() < acceptance:
            agreed += 1
        accepted = min(agreed, count)
        self.num_tokens += accepted + 1
        self.control.decided(accepted + 1, num_steps=1)
        draft = Draft(range(stream.drafted), DraftMethod.REMOTE)
        decided = [*range(accepted), _OWN if accepted == agreed else accepted]
        stream.calibration.observe(draft, decided)
        stream.window.observe(count, accepted)
        stream.asking.decided(accepted, 0)
        stream.left -= accepted + 1
        if stream.left <= 0:
            self.streams[index] = self._stream()
        else:
            self._ask(stream)
