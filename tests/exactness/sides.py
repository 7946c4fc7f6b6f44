"""A property that holds here and not in transformers."""

from __future__ import annotations

import pytest


def sides(why: str) -> pytest.MarkDecorator:
    """Runs a test on both; theirs must fail."""
    broken = pytest.param("theirs", marks=pytest.mark.xfail(strict=True, reason=why))
    return pytest.mark.parametrize("side", ["ours", broken])
