"""What the command line may change about a suite."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """None: as the suite has it by default."""

    output: Path
    repetitions: int = 5
    pairs: Sequence[str] | None = None
    streams: Sequence[int] | None = None
    temperatures: Sequence[float] | None = None
    prompts: int | None = None
    new_tokens: int | None = None
    only: Sequence[str] = ()
    """Regular expressions, one of which a contender's name has to match; all take part if empty."""

    def wanted(self, name: str) -> bool:
        """Whether a contender takes part."""
        return not self.only or any(re.search(part, name, re.I) for part in self.only)
