"""The model pairs: the shipped one, and grown ones that say the same at a realistic cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from outrider_demo import DRAFT_DIR, TARGET_DIR

from benchmarks.pairs.cache import cached
from benchmarks.pairs.grown import Growth, grow


class Pair(NamedTuple):
    """A target and its draft, as folders."""

    name: str
    target: Path
    draft: Path


class _Recipe(NamedTuple):
    target: Growth
    draft: Growth | None
    """None: as shipped."""


_GROWN = {
    # 99M parameters; the draft has 1.4M.
    "100m": _Recipe(Growth(1024, 2048, layers=10, heads=16), None),
    # 481M; a draft of 10M keeps the ratio that large pairs have, 70B and 1B for instance.
    "500m": _Recipe(Growth(2048, 5632, layers=10, heads=32), Growth(384, 2048, layers=3, heads=6)),
}
PAIRS: Sequence[str] = ("shipped", *_GROWN)


def pair(name: str) -> Pair:
    """A pair by name; a grown one is built where it is not in the cache (up to a minute)."""
    if name == "shipped":
        return Pair(name, TARGET_DIR, DRAFT_DIR)
    recipe = _GROWN[name]
    draft = DRAFT_DIR if recipe.draft is None else _grown(DRAFT_DIR, recipe.draft)
    return Pair(name, _grown(TARGET_DIR, recipe.target), draft)


def _grown(source: Path, growth: Growth) -> Path:
    return cached(["grown", growth], source, lambda destination: grow(source, destination, growth))
