"""Packages of plug-ins, installed for a test: what pip would leave in a folder on the path."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"

SOURCE = '''
"""Plug-ins that follow the rules, and some that do not."""

import torch


class Alternate:
    """Favours a token that depends on how many there are.

    The rest of the docstring is not shown.
    """

    def __init__(self, context, *, by=5.0):
        self._by = by
        self._size = context.vocab_size

    def __call__(self, token_ids, prompt_length, scores):
        favoured = (7 * len(token_ids) + token_ids[-1] + prompt_length) % self._size
        scores[favoured] += self._by
        return scores


def insist(context, *, token_id):
    """Wants one token whenever the last one is odd."""
    def processor(token_ids, prompt_length, scores):
        if token_ids[-1] % 2:
            scores = torch.full_like(scores, -torch.inf)
            scores[token_id] = 1.0
        return scores
    return processor


def digest(context, *, divisor):
    """Ends where the sum of the generated tokens can be divided."""
    return lambda token_ids, prompt_length: sum(token_ids[prompt_length:]) % divisor == 0


def fail_late(context, *, at):
    """Raises at a length."""
    def either(token_ids, prompt_length, scores=None):
        if len(token_ids) >= prompt_length + at:
            raise RuntimeError("secret of the server")
        return False if scores is None else scores
    return either


def fail_at_once(context):
    raise OSError("secret of the server")


def wrong_shape(context):
    return lambda token_ids, prompt_length, scores: scores[:-1]


def nothing(context):
    return lambda token_ids, prompt_length, scores=None: None


NOT_CALLABLE = 5
'''
ENTRY_POINTS = """
[outrider.logits_processors]
alternate = awkward_plugins:Alternate
insist = awkward_plugins:insist
fail-late = awkward_plugins:fail_late
fail-at-once = awkward_plugins:fail_at_once
wrong-shape = awkward_plugins:wrong_shape
nothing = awkward_plugins:nothing
not-callable = awkward_plugins:NOT_CALLABLE
not-there = awkward_plugins:Missing
hidden = awkward_plugins:Alternate

[outrider.stopping_criteria]
digest = awkward_plugins:digest
fail-late = awkward_plugins:fail_late
"""
NAMES = (
    *("alternate", "insist", "digest", "fail-late", "fail-at-once", "wrong-shape", "nothing"),
    *("avoid", "sentences"),
)
"""What may be offered; "hidden" is installed and not among them."""


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """The package above and the one of the examples are installed."""
    (folder / "awkward_plugins.py").write_text(SOURCE)
    project = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())["project"]
    example = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    )
    _write_metadata(folder, {"awkward": ENTRY_POINTS, "example": example})
    before = list(sys.path)
    sys.path[:0] = [str(folder), str(EXAMPLES)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _write_metadata(folder: Path, entry_points: Mapping[str, str]) -> None:
    for name, text in entry_points.items():
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(text)
