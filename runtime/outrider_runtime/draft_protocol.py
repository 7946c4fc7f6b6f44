"""Versions of the draft link's protocol (`protos/outrider/v1/draft.proto`).

Knows nothing of gRPC: both ends compare plain numbers.
"""

from __future__ import annotations

PROTOCOL_VERSION = 1
"""The version this release speaks."""

MIN_PROTOCOL_VERSION = 1
"""The oldest version of a peer that this release still understands."""

MAX_PROTOCOL_VERSION = PROTOCOL_VERSION
"""The newest version of a peer that this release understands."""


def is_supported(version: int) -> bool:
    """Whether a peer that speaks `version` is understood."""
    return MIN_PROTOCOL_VERSION <= version <= MAX_PROTOCOL_VERSION
