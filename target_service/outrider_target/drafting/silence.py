"""Why there was no draft to verify."""

from __future__ import annotations

from enum import Enum


class Silence(Enum):
    """Why a round verified no draft for a sequence."""

    NO_DRAFTER = "no drafter"
    NO_LINK = "no link"
    """No draft service can be reached that has room."""
    NOT_WORTH_ASKING = "not worth asking"
    LATE = "late"
    NOTHING_PROPOSED = "nothing proposed"
    NOT_WORTH_VERIFYING = "not worth verifying"
    MEASURING = "measuring"
    """The round ran plainly to measure what drafting gains."""
