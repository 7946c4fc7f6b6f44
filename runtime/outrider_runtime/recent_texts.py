"""Recent texts of each tenant, for drafting: nobody is shown what another tenant wrote.

A text is handed over whole and indexed little by little, by whoever calls `digest`: indexing costs
up to some microseconds a token, which a round can spare and the end of a long text cannot. Knows
nothing of requests, models or gRPC.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

from outrider_runtime.suffix_tree import MAX_DEPTH, SuffixTree, new_suffix_tree, prepare

Tenant = bytes
"""Opaque name of whoever may see a text again; empty: nobody."""

MIN_TOKENS = 2 * MAX_DEPTH
"""Fewer than these hold no text worth the name."""


_A_LITTLE = 64


class RecentTexts:
    """A suffix tree for each tenant; together they hold a limited number of tokens.

    When the limit is reached, the tenant whose tree was asked for longest ago is forgotten; a
    single one forgets its oldest texts.
    """

    def __init__(self, max_tokens: int) -> None:
        """Start empty.

        Args:
            max_tokens: Tokens indexed at most, of all tenants, and as many again that wait for it;
                0 holds nothing.

        Raises:
            ValueError: Neither 0 nor at least `MIN_TOKENS`.
        """
        if max_tokens and max_tokens < MIN_TOKENS:
            raise ValueError(f"{max_tokens} tokens are too few; 0 is off, else from {MIN_TOKENS}")
        prepare()  # it may have to be compiled, which no round should wait for
        self._max_tokens = max_tokens
        self._trees: OrderedDict[Tenant, SuffixTree] = OrderedDict()
        self._waiting: deque[tuple[Tenant, list[int]]] = deque()  # texts, last token first
        self._num_waiting = 0
        self._num_indexed = 0

    def __len__(self) -> int:
        """Tokens held, waiting ones included."""
        return self._num_waiting + self._num_indexed

    @property
    def num_waiting(self) -> int:
        """Tokens that are not indexed yet."""
        return self._num_waiting

    @property
    def num_tenants(self) -> int:
        """Tenants of whom something is indexed."""
        return len(self._trees)

    def tree(self, tenant: Tenant) -> SuffixTree | None:
        """What is known of a tenant's texts, if anything is."""
        tree = self._trees.get(tenant)
        if tree is not None:
            self._trees.move_to_end(tenant)
        return tree

    def add(self, tenant: Tenant, token_ids: Sequence[int]) -> None:
        """Remember a text; of a long one the end. It costs next to nothing before `digest`."""
        if not tenant or not self._max_tokens:
            return
        text = list(token_ids[-(self._max_tokens // 2) :])
        text.reverse()
        if not text:
            return
        self._waiting.append((tenant, text))
        self._num_waiting += len(text)
        while self._num_waiting > self._max_tokens:
            dropped, rest = self._waiting.popleft()
            self._num_waiting -= len(rest)
            if (tree := self._trees.get(dropped)) is not None:
                before = len(tree)
                tree.close()  # a part of it may be in there
                self._num_indexed += len(tree) - before
                self._make_room(dropped)

    def digest_some(self) -> bool:
        """Index a little, within a millisecond or so; returns whether more is left."""
        self.digest(_A_LITTLE)
        return self._num_waiting > 0

    def digest(self, num_tokens: int) -> None:
        """Index so many tokens of the texts that wait, oldest first."""
        while num_tokens > 0 and self._waiting:
            tenant, text = self._waiting[0]
            tree = self._trees.get(tenant)
            if tree is None:
                tree = self._trees[tenant] = new_suffix_tree(max_tokens=self._max_tokens)
            size, before = min(num_tokens, len(text)), len(tree)
            tree.extend(text.pop() for _ in range(size))
            num_tokens -= size
            self._num_waiting -= size
            if not text:
                tree.close()
                self._waiting.popleft()
            self._num_indexed += len(tree) - before
            self._make_room(tenant)

    def _make_room(self, tenant: Tenant) -> None:
        while self._num_indexed > self._max_tokens:
            oldest = next(other for other in self._trees if other != tenant)
            self._num_indexed -= len(self._trees.pop(oldest))
