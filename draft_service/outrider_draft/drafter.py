"""Builds the proposer that the settings ask for.

Only the draft model's needs torch; it is imported here, when there is one.
"""

from __future__ import annotations

from typing import NamedTuple

from outrider_draft.lookup_proposer import LookupProposer
from outrider_draft.metrics import DraftMetrics
from outrider_draft.proposer import Proposer
from outrider_draft.settings import LookupSettings, ProposerSettings, SuffixSettings
from outrider_draft.suffix_proposer import SuffixProposer


class Drafter(NamedTuple):
    """A proposer, and how to speak of it."""

    proposer: Proposer
    title: str
    """For the line that says what serves."""


def build(settings: ProposerSettings, metrics: DraftMetrics) -> Drafter:
    """Load the model, or set up what needs none.

    Raises:
        StartupError: The model cannot be had.
    """
    if isinstance(settings, LookupSettings):
        return Drafter(LookupProposer(settings), "prompt lookup")
    if isinstance(settings, SuffixSettings):
        return Drafter(SuffixProposer(settings), "suffix tree")
    from outrider_draft import model_drafter

    return model_drafter.build(settings, metrics)
