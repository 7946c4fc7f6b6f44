"""Each contender at its best: of several settings the one that is fastest on a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.contenders import Contender, Outcome, Workload


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
        """Choose the fastest on a trial."""
        if len(self.settings) > 1:
            self.chosen = max(self.settings, key=lambda setting: speed(setting, trial))

    def run(self, work: Workload) -> Outcome:
        """Generate all of it with the chosen setting."""
        return self.chosen.run(work)


def speed(contender: Contender, trial: Workload) -> float:
    """Tokens a second, the better of two runs: the first may have to warm up."""
    outcomes = [contender.run(trial) for _ in range(2)]
    return max(outcome.num_tokens / outcome.seconds for outcome in outcomes)
