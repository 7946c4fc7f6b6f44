"""Builds the proposer that the settings ask for.

Only the draft model's needs torch; it is imported here, when there is one.
"""

from __future__ import annotations

from typing import NamedTuple

from outrider_runtime.metrics import DraftMetrics

from outrider_draft.lookup_proposer import LookupProposer
from outrider_draft.proposer import Proposer
from outrider_draft.settings import LookupSettings, ModelSettings


class Drafter(NamedTuple):
    """A proposer, and how to speak of it."""

    proposer: Proposer
    title: str
    """For the line that says what serves."""


def build(settings: ModelSettings | LookupSettings, metrics: DraftMetrics) -> Drafter:
    """Load the model, or set up prompt lookup.

    Raises:
        StartupError: The model cannot be had.
    """
    if isinstance(settings, LookupSettings):
        return Drafter(LookupProposer(settings), "prompt lookup")
    from outrider_draft import model_drafter

    return model_drafter.build(settings, metrics)
