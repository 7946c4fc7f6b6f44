"""What became of a rule."""

from __future__ import annotations

import asyncio
import inspect
from typing import NamedTuple

from outrider_conformance.rules import Rule
from outrider_conformance.target import Violation
from outrider_conformance.trial import Trial

_TIMEOUT = 60.0
"""Seconds for a rule as a whole."""


class Outcome(NamedTuple):
    """A rule, and how the drafter broke it."""

    rule: str
    """What it says."""
    violation: str | None
    """What was seen; None when it was kept."""


async def judge(rule: Rule, trial: Trial) -> Outcome:
    """Try a rule."""
    says = inspect.getdoc(rule) or rule.__name__
    try:
        async with asyncio.timeout(_TIMEOUT):
            await rule(trial)
    except Violation as violation:
        return Outcome(says, str(violation))
    except TimeoutError:
        return Outcome(says, f"nothing came of it within {_TIMEOUT:g} s")
    except Exception as fault:  # whatever the drafter or the network did to the rule
        return Outcome(says, f"{type(fault).__name__}: {fault}")
    return Outcome(says, None)
