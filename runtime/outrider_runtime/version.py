"""Which release this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """Version of the installed distribution; `0` from a source tree that was never installed."""
    try:
        return version("outrider")
    except PackageNotFoundError:
        return "0"
