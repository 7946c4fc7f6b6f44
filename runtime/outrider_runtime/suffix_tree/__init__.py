"""A suffix tree over recent texts: what followed the last tokens before, and how often.

The structure behind SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975). Compiled where there is
a compiler, or was one when an image was made; else in Python. Knows nothing of models, requests or
gRPC.
"""

from __future__ import annotations

from functools import cache

import structlog

from outrider_runtime.cpp import CannotCompile
from outrider_runtime.suffix_tree import native
from outrider_runtime.suffix_tree.in_python import PythonSuffixTree
from outrider_runtime.suffix_tree.native import NativeSuffixTree
from outrider_runtime.suffix_tree.speculation import MAX_DEPTH, NOTHING, Speculation

__all__ = ["MAX_DEPTH", "NOTHING", "Speculation", "SuffixTree", "new_suffix_tree", "prepare"]

_log = structlog.get_logger(__name__)

SuffixTree = NativeSuffixTree | PythonSuffixTree


def new_suffix_tree(*, max_tokens: int) -> SuffixTree:
    """An empty tree that tells windows of `MAX_DEPTH` tokens apart.

    Args:
        max_tokens: Suffixes, that is tokens, held at most; at least `2 * MAX_DEPTH`. Half of it is
            the longest text: what is longer is cut.

    Raises:
        ValueError: `max_tokens` is less.
    """
    return prepare()(max_tokens=max_tokens)


@cache
def prepare() -> type[NativeSuffixTree] | type[PythonSuffixTree]:
    """The kind of tree there is on this machine; it is compiled when first asked for."""
    try:
        native.library()
    except CannotCompile as why:
        _log.info("suffix_tree_in_python", why=str(why))
        return PythonSuffixTree
    return NativeSuffixTree
