"""Each contender at its best: of several settings the one that is fastest on a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.contenders import Contender, Outcome, Workload

# Also what has to warm up in its first run.
_NEAR = 0.5


@dataclass
class Tuned:
    """A contender with settings to choose from; until it is tuned, the first."""

    name: str
    settings: Sequence[Contender]
    samples: bool = True
    """Whether it can be used with sampling."""

    def __post_init__(self) -> None:
        self.chosen = self.settings[0]

    def tune(self, trial: Workload) -> None:
        """Choose the fastest on a trial: a run of each, and one more of those that came near."""
        if len(self.settings) == 1:
            return
        speeds = [speed(setting, trial) for setting in self.settings]
        near = [n for n, each in enumerate(speeds) if each > _NEAR * max(speeds)]
        for number in near:
            speeds[number] = max(speeds[number], speed(self.settings[number], trial))
        self.chosen = self.settings[speeds.index(max(speeds))]

    def run(self, work: Workload) -> Outcome:
        """Generate all of it with the chosen setting."""
        return self.chosen.run(work)


def speed(contender: Contender, trial: Workload) -> float:
    """Tokens a second."""
    outcome = contender.run(trial)
    return outcome.num_tokens / outcome.seconds
