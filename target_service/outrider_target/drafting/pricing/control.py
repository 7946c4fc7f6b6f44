"""How much drafting pays at the moment: the one place where its parts meet.

Owned by the engine thread. Rounds tell what they took and what came of them; sequences ask whether
to ask their drafter, and the scheduler how many tokens of each draft to verify.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outrider_target.drafting.pricing.calibration import (
    Calibration,
    SequenceCalibration,
    temperature_class,
)
from outrider_target.drafting.pricing.gain import Gain
from outrider_target.drafting.pricing.gate import Gate
from outrider_target.drafting.pricing.rows import allot
from outrider_target.drafting.pricing.runs import Regime
from outrider_target.drafting.pricing.step_costs import RowCurve, StepCosts
from outrider_target.drafting.pricing.tempering import DraftTemperatures
from outrider_target.requests.request import GenerationRequest

_SMOOTHING = 0.05
_TRIAL_WINDOW = 1
_LONG_MEMORY = 4096.0


class RoundTimes(NamedTuple):
    """What a round was, and took."""

    num_running: int
    """Sequences that run."""
    num_sequences: int
    """Those that took part."""
    num_rows: int
    num_steps: int
    """Forwards in one go; of so many rows each."""
    forward_seconds: float
    """From the batch to what its rows decide; of all steps."""
    cycle_seconds: float | None
    """From the end of the last round's forward to this one's, waits included, and of all steps;
    None for a first."""
    num_controlled: int
    """Those of them that leave it to control what they ask and verify."""
    only_decodes: bool
    """Whether all that took part decoded, each under control."""


class Control:
    """Decides by measured costs what is drafted and verified."""

    def __init__(self, curve: RowCurve | None = None, *, plain_share: float = 0.0) -> None:
        """Start with what was measured at load.

        Args:
            curve: What rows cost.
            plain_share: Share of rounds that run plainly, to measure what drafts gain.
        """
        self.costs = StepCosts(curve)
        self.gate = Gate(plain_share=plain_share)
        self.calibration = Calibration()
        self.draft_temperatures = DraftTemperatures()
        # A round and sequence, but for plain runs; as far back as the runs it is compared with.
        self._tokens = Gain(memory=_LONG_MEMORY)
        self._beside = 0.0  # seconds of a cycle that are not its forward, smoothed

    def calibration_of(self, request: GenerationRequest) -> SequenceCalibration:
        """How a new sequence's drafts fare, to begin with: as others' at its temperature."""
        return SequenceCalibration(self.calibration, temperature_class(request.parameters))

    @property
    def plain(self) -> bool:
        """Whether the next round verifies nothing, to be measured."""
        return self.gate.regime is Regime.PLAIN

    @property
    def horizon(self) -> int:
        """Rounds to come, at least 1, in which nobody asks a drafter. See `Gate.horizon`."""
        return self.gate.horizon

    def observe(self, times: RoundTimes) -> None:
        """Learn from a round; several steps in one go are so many rounds.

        Not while all rests: what a trial costs would else be a larger share of steps that are
        quicker in one go.
        """
        if not times.num_controlled:
            # Not a round of ours, else each return from others' would be met by a trial.
            self.costs.interrupted()
            self.gate.interrupted()
            return
        if times.num_rows == times.num_sequences and self.gate.rest(times.num_running):
            self.costs.interrupted()
            return
        for _ in range(times.num_steps):
            self._observe(times)

    def _observe(self, times: RoundTimes) -> None:
        if not times.only_decodes or times.cycle_seconds is None:
            self.costs.interrupted()
            self.gate.observe(None, times.num_running)
            return
        if times.num_steps == 1:  # what a draft costs is what a round of its own does
            self.costs.observe(times.num_sequences, times.num_rows, times.forward_seconds)
            beside = max(0.0, times.cycle_seconds - times.forward_seconds)
            beside = min(beside, times.forward_seconds)  # idle clients are nobody's cost
            self._beside += _SMOOTHING * (beside - self._beside)
        # A batch of many costs more than one of few, but not in proportion.
        alike = times.num_running / self.costs.curve(times.num_running)
        seconds = times.cycle_seconds / times.num_steps
        self.gate.observe(seconds / times.num_sequences * alike, times.num_running)

    def decided(self, num_tokens: int, *, num_steps: int) -> None:
        """A round decided so many tokens for a sequence, in so many steps."""
        if self.gate.ended is not Regime.PLAIN:
            for _ in range(num_steps):
                self._tokens.observe(num_tokens / num_steps)

    def allot(self, survivals: Sequence[Sequence[float]]) -> list[int]:
        """For each sequence of the next round, how many tokens of its draft to verify.

        Args:
            survivals: Of each draft, as `rows.allot` takes them.
        """
        if self.plain:
            return [0] * len(survivals)
        num_sequences = len(survivals)
        forward, beside = self.costs.seconds(num_sequences), self._beside
        allotted = allot(survivals, lambda tokens: beside + forward(num_sequences + tokens))
        if self.gate.regime is not Regime.ASKED:
            return allotted
        # A trial of what is thought useless shows nothing where nothing is verified.
        return [
            max(count, min(len(draft), _TRIAL_WINDOW))
            for count, draft in zip(allotted, survivals, strict=True)
        ]

    def speedup(self, num_sequences: int) -> float | None:
        """Tokens a second as rounds are, over those of plain ones; None until it was measured."""
        ratio = self.gate.drafted_over_plain.value(num_sequences)
        return None if ratio is None else self._tokens.mean / ratio
