"""The compiled suffix tree: `suffix_tree.cpp`, called through ctypes.

The interpreter's lock is kept in every call: the longest lasts microseconds, less than it may take
to get the lock back.
"""

from __future__ import annotations

import ctypes
import platform
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from outrider_runtime import cpp
from outrider_runtime.suffix_tree.speculation import MAX_DEPTH, NOTHING, Speculation

AHEAD = Path(__file__).parent / "built"
"""Where a library that was compiled ahead of time lies: beside its source, for images."""

_SOURCE = Path(__file__).parent / "suffix_tree.cpp"
# Products and sums stay apart, as in Python: equal doubles on any machine.
_FLAGS = ("-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared")
_TOKENS = "I"
"""Of `array`: 32 bits, without a sign, as in the protocol."""

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "new": (_POINTER, [_NUMBER, _NUMBER]),
    "delete": (None, [_POINTER]),
    "size": (_NUMBER, [_POINTER]),
    "num_nodes": (_NUMBER, [_POINTER]),
    "open_match": (_NUMBER, [_POINTER]),
    "extend": (None, [_POINTER, _POINTER, _NUMBER]),
    "close": (None, [_POINTER]),
    "count": (_NUMBER, [_POINTER, _POINTER, _NUMBER]),
    "longest_match": (_NUMBER, [_POINTER, _POINTER, _NUMBER]),
    "speculate": (
        _NUMBER,
        [_POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER, _POINTER, _POINTER, _POINTER],
    ),
}


class NativeSuffixTree:
    """`PythonSuffixTree`, compiled: equal in all that it says."""

    def __init__(self, *, max_tokens: int, max_depth: int = MAX_DEPTH) -> None:
        """Start empty; the arguments are those of `PythonSuffixTree`.

        Raises:
            ValueError: `max_depth` is less than 2 or `max_tokens` less than twice as much.
            CannotCompile: There is no library, nor a compiler to make it.
        """
        if max_depth < 2 or max_tokens < 2 * max_depth:
            raise ValueError(f"a depth of {max_depth} does not fit {max_tokens} tokens")
        self._library = library()
        self._tree = self._library.suffix_tree_new(max_tokens, max_depth)
        self._room = _Room(0)
        weakref.finalize(self, self._library.suffix_tree_delete, self._tree).atexit = False

    def __len__(self) -> int:
        """Suffixes held; at most `max_tokens`, and at most two nodes for each."""
        return int(self._library.suffix_tree_size(self._tree))

    @property
    def num_nodes(self) -> int:
        """Nodes below the root."""
        return int(self._library.suffix_tree_num_nodes(self._tree))

    @property
    def open_match(self) -> int:
        """Tokens at the end of the open text that occurred before, at most `max_depth` - 1."""
        return int(self._library.suffix_tree_open_match(self._tree))

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append to the open text."""
        tokens = array(_TOKENS, token_ids)
        self._library.suffix_tree_extend(self._tree, *tokens.buffer_info())

    def close(self) -> None:
        """End the open text; the next token begins another."""
        self._library.suffix_tree_close(self._tree)

    def count(self, token_ids: Sequence[int]) -> int:
        """Counted suffixes that begin with these tokens, at most `max_depth` of them."""
        tokens = array(_TOKENS, token_ids)
        return int(self._library.suffix_tree_count(self._tree, *tokens.buffer_info()))

    def longest_match(self, context: Sequence[int]) -> int:
        """How many tokens at the end of a context are held somewhere, at most `max_depth` - 1."""
        tokens = array(_TOKENS, context)
        return int(self._library.suffix_tree_longest_match(self._tree, *tokens.buffer_info()))

    def speculate(
        self, context: Sequence[int], num_tokens: int, *, match_size: int | None = None
    ) -> Speculation:
        """See `PythonSuffixTree.speculate`."""
        tokens = array(_TOKENS, context)
        room = self._room
        if num_tokens > room.num_tokens:
            room = self._room = _Room(num_tokens)
        room.match_size.value = -1 if match_size is None else match_size
        length = self._library.suffix_tree_speculate(
            self._tree, *tokens.buffer_info(), num_tokens, *room.addresses
        )
        if not length:
            return NOTHING
        return Speculation(
            room.token_ids[:length],
            room.probabilities[:length],
            room.score.value,
            room.match_size.value,
        )


class _Room:
    """Where an answer is written to. Kept: to make it would take longer than to find a path."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.match_size = ctypes.c_int64()
        self.token_ids = (ctypes.c_uint32 * num_tokens)()
        self.probabilities = (ctypes.c_double * num_tokens)()
        self.score = ctypes.c_double()
        fields = self.match_size, self.token_ids, self.probabilities, self.score
        self.addresses = tuple(map(ctypes.addressof, fields))


@cache
def library() -> ctypes.PyDLL:
    """The compiled tree: from the package, else from the user's cache, else compiled now.

    Raises:
        CannotCompile: It is in neither, and there is no compiler, or that fails.
    """
    ahead = place_ahead()
    try:
        loaded = ctypes.PyDLL(str(ahead if ahead.exists() else _compiled()))
    except OSError as error:
        raise cpp.CannotCompile(f"what was compiled cannot be loaded: {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = loaded[f"suffix_tree_{name}"]
        function.restype, function.argtypes = result, arguments
        setattr(loaded, function.__name__, function)
    return loaded


def compile_ahead() -> Path:
    """Compile it into the package, for machines of this architecture without a compiler.

    Raises:
        CannotCompile: No compiler, or it fails.
    """
    AHEAD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=AHEAD) as workplace:
        return _compile(cpp.compiler(), Path(workplace)).replace(place_ahead())


def place_ahead() -> Path:
    """Where a library compiled ahead of time lies, or would: another source has another."""
    return AHEAD / f"{platform.machine()}-{cpp.digest(*_parts())}.so"


def _compiled() -> Path:
    return cpp.kept("suffix-tree", [platform.machine().encode(), *_parts()], _compile)


def _parts() -> list[bytes]:
    return [_SOURCE.read_bytes(), repr(_FLAGS).encode()]


def _compile(compiler: str, workplace: Path) -> Path:
    finished = workplace / "suffix_tree.so"
    cpp.run([compiler, *_FLAGS, str(_SOURCE), "-o", str(finished)], workplace)
    return finished
