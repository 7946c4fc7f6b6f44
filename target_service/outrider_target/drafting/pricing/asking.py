"""A sequence's leave to ask its remote drafter, round by round. Pure."""

from __future__ import annotations

from outrider_target.drafting.pricing.calibration import temperature_class
from outrider_target.drafting.pricing.gate import Gate
from outrider_target.drafting.pricing.runs import Regime
from outrider_target.drafting.window import AUTO
from outrider_target.requests.request import GenerationRequest


class Asking:
    """Asks the gate on behalf of one sequence, and tells it what came of that."""

    def __init__(self, gate: Gate, request: GenerationRequest) -> None:
        """Start; sequences that are not under control are always allowed to ask."""
        speculation = request.speculation
        self._gate: Gate | None = None
        if speculation.schedule == AUTO and not speculation.synchronous:
            self._gate = gate
        self._gain = gate.gain_of(temperature_class(request.parameters))
        self.allowed = False
        """Whether it may ask for its next round."""

    @property
    def rests(self) -> bool:
        """Whether it need not ask: it is settled that nobody may."""
        return self._gate is not None and self._gate.resting and not self.allowed

    def ask(self) -> bool:
        """Settle whether it may ask for its next round."""
        self.allowed = self._gate is None or self._gate.allows(self._gain, asking=self.allowed)
        return self.allowed

    def decided(self, num_accepted: int, at_hand: int) -> None:
        """A round decided.

        Args:
            num_accepted: Draft tokens accepted, whoever proposed them.
            at_hand: Those that would have been without the remote drafter.
        """
        if self._gate is None or self._gate.ended is Regime.PLAIN:
            return
        at_hand = min(at_hand, num_accepted)
        self._gate.at_hand.observe(at_hand)
        if self.allowed:
            self._gate.brought(self._gain, num_accepted - at_hand)
