"""A text whose token ids are one of some lists: a trie as a constraint.

Needs no tokenizer and no library. Knows nothing of why the lists are what they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from outrider_runtime.errors import InvalidRequest

from outrider_target.constraints.constraint import Allowed


@dataclass(slots=True)
class _Node:
    """What may follow some tokens."""

    children: dict[int, _Node] = field(default_factory=dict)
    complete: bool = False
    """Whether the text may end here."""


_BEHIND_THE_END = _Node()


class TokenTrie:
    """The lists; see `constraint.Form`.

    Args:
        lists: Token ids below `vocab_size`; no list is empty.
        field: The request's field that asks for them, for errors.
        vocab_size: Number of tokens the model can choose from.
    """

    def __init__(self, lists: Iterable[Sequence[int]], *, field: str, vocab_size: int) -> None:
        self._root = _Node()
        self._field = field
        self._vocab_size = vocab_size
        for token_ids in lists:
            node = self._root
            for token_id in token_ids:
                node = node.children.setdefault(token_id, _Node())
            node.complete = True

    def start(self, eos_token_ids: Sequence[int]) -> TrieConstraint:
        """See `constraint.Form`."""
        return TrieConstraint(
            self._root,
            field=self._field,
            eos_token_ids=eos_token_ids,
            vocab_size=self._vocab_size,
        )


class TrieConstraint:
    """How far a sequence has come in a trie; see `constraint`, the port."""

    def __init__(
        self, root: _Node, *, field: str, eos_token_ids: Sequence[int], vocab_size: int
    ) -> None:
        self._node = root
        self._field = field
        self._eos_token_ids = [i for i in eos_token_ids if i < vocab_size]
        self._vocab_size = vocab_size

    def push(self, token_id: int) -> None:
        """See the port."""
        node = self._node.children.get(token_id)
        if node is None:
            raise InvalidRequest(self._field, "another option forces a token that it forbids")
        self._node = node

    @property
    def ended(self) -> bool:
        """See the port."""
        return not self._eos_token_ids and not self._node.children

    def admissible(self, draft: Sequence[int]) -> int:
        """See the port."""
        return len(self._path(draft)) - 1

    def allowed(self, draft: Sequence[int]) -> Allowed:
        """See the port."""
        path = self._path(draft)
        allowed = np.zeros((len(path), self._vocab_size), np.bool_)
        for row, node in zip(allowed, path, strict=True):
            if node is _BEHIND_THE_END:
                row[:] = True  # computed, but never looked at
                continue
            row[list(self._followers(node))] = True
        return allowed

    def forced(self, limit: int) -> list[int]:
        """See the port."""
        found: list[int] = []
        node: _Node | None = self._node
        while node is not None and len(found) < limit:
            possible = self._followers(node)
            if len(possible) != 1:
                break
            (token_id,) = possible
            found.append(token_id)
            node = self._next(node, token_id)
        return found

    def copy(self) -> TrieConstraint:
        """See the port."""
        return copy.copy(self)

    def _followers(self, node: _Node) -> set[int]:
        """Tokens that may follow; none behind the end."""
        return {*node.children, *(self._eos_token_ids if node.complete else ())}

    def _path(self, draft: Sequence[int]) -> list[_Node]:
        """The nodes before a draft and after each of its tokens, as far as it is allowed."""
        path = [self._node]
        for token_id in draft:
            node = self._next(path[-1], token_id)
            if node is None:
                break
            path.append(node)
        return path

    def _next(self, node: _Node, token_id: int) -> _Node | None:
        if token_id in self._eos_token_ids:
            ends = node.complete or token_id in node.children
            return _BEHIND_THE_END if ends else None
        child = node.children.get(token_id)
        if child is None or child.children or self._eos_token_ids:
            return child
        return _BEHIND_THE_END
