"""Where branches lie in the KV pool: placed, fed, forked, dropped.

Knows nothing of requests, drafts or what a branch is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kv_pool import KVPool
from outrider_runtime.model.layer_reading import LayerReading

from outrider_target.decoding.branch import Branch, share_prefixes
from outrider_target.decoding.strategy import BranchRows
from outrider_target.drafting.agreement import num_agreeing
from outrider_target.engine.prefixes import PrefixNames


class _Fed(NamedTuple):
    """A draft in the pool: behind a branch or behind a copy of it."""

    handle: int
    draft: Sequence[int]


class BranchPlaces:
    """The branches' side of a KV pool."""

    def __init__(self, pool: KVPool, prefixes: PrefixNames) -> None:
        self._pool = pool
        self._fed: dict[Branch, list[_Fed]] = {}  # of branches with several drafts
        self._prefixes = prefixes

    def place(
        self, branches: Sequence[Branch], sources: Sequence[Branch] = (), *, scope: bytes = b""
    ) -> int:
        """Give branches their places.

        Args:
            branches: Branches without places.
            sources: For each, one whose tokens begin like its own and are cached; or nothing.
            scope: Among whom what earlier requests left is shared; empty: with nobody.

        Returns:
            The tokens that earlier requests left cached.
        """
        for branch, source in zip(branches, sources, strict=False):
            # Its own last token is fed again: that row's logits are its first ones.
            branch.source, branch.num_shared = source, len(branch.token_ids) - 1
        found = 0
        for branch in branches:
            if self._open(branch):
                found += self._adopt(branch, scope)
        return found

    def blocks_to_place(self, branches: Iterable[Branch], *, shared: bool) -> int:
        """Blocks for tokens not cached yet. `shared`: all but each one's last token are."""
        blocks = 0
        for branch in branches:
            length = len(branch.token_ids)
            if branch.handle is not None:
                blocks += self._pool.blocks_needed(
                    branch.handle, length - self._pool.length(branch.handle)
                )
            else:
                held = length - 1 if shared else branch.num_shared
                blocks += -(-(length - held) // self._pool.block_size)
        return blocks

    def num_pending(self, branches: Iterable[Branch]) -> int | None:
        """Tokens not cached yet; None while a branch waits for what it shares to be cached."""
        pending = 0
        for branch in branches:
            if branch.handle is None and not self._open(branch):
                return None
            assert branch.handle is not None
            pending += len(branch.token_ids) - self._pool.length(branch.handle)
        return pending

    def prefilled(self, branches: Iterable[Branch]) -> bool:
        """Whether each branch waits for the row of its last token only."""
        return all(
            branch.handle is not None
            and self._pool.length(branch.handle) >= len(branch.token_ids) - 1
            for branch in branches
        )

    def chunks(self, branches: Iterable[Branch], most: int) -> list[SequenceRows]:
        """Rows of at most so many tokens without logits, never a branch's last token."""
        rows: list[SequenceRows] = []
        for branch in branches:
            if branch.handle is None:
                continue
            cached = self._pool.length(branch.handle)
            chunk = branch.token_ids[cached : min(cached + most, len(branch.token_ids) - 1)]
            if chunk:
                rows.append(_rows(branch, cached, chunk, 0))
                most -= len(chunk)
        return rows

    def feeds(self, branches: Sequence[Branch], wanted: Sequence[BranchRows]) -> list[SequenceRows]:
        """What each branch has to be fed so that the wanted rows come out."""
        rows: list[SequenceRows] = []
        for branch, (draft, num_logits, reading, others) in zip(branches, wanted, strict=True):
            assert branch.handle is not None
            self._drop_copies(branch)  # of a round that never was
            cached = self._pool.length(branch.handle)
            own = branch.token_ids[cached:]
            rows.append(_rows(branch, cached, [*own, *draft], num_logits, reading))
            if others:
                fed = self._fed[branch] = [_Fed(branch.handle, draft)]
                for other in others:
                    copy = self._pool.fork(branch.handle, cached)
                    fed.append(_Fed(copy, other))
                    rows.append(SequenceRows(copy, [*own, *other], len(other)))
        return rows

    def follow(
        self, held: Sequence[Branch], wanted: Sequence[Branch], *, scope: bytes = b""
    ) -> None:
        """Fork new branches off their sources, drop those not wanted, roll back drafts.

        What is left is decided text, and its full blocks are named: by branches that stay, as the
        names of those that fork in every round are not worth their time.
        """
        if wanted is not held:
            for branch in wanted:
                if branch.handle is None:
                    self._fork(branch)
            self.free(branch for branch in held if branch not in wanted)
        for branch in held:
            if wanted is held and branch in self._fed:
                self._keep_furthest(branch)
            self._drop_copies(branch)
        for branch in wanted:
            assert branch.handle is not None
            cached, keep = self._pool.length(branch.handle), len(branch.token_ids) - 1
            if cached > keep:
                self._pool.truncate(branch.handle, keep)
            if wanted is held:
                self._publish(branch, scope, min(cached, keep))

    def free(self, branches: Iterable[Branch]) -> None:
        """Give their places back."""
        for branch in branches:
            self._drop_copies(branch)
            if branch.handle is not None:
                self._pool.free(branch.handle)
                branch.handle = None
                branch.block_names = []

    def vacate(self, branches: Sequence[Branch]) -> None:
        """Give their places back, to be placed again later: what they share stays shared."""
        self.free(branches)
        share_prefixes(branches, at_least=self._pool.block_size)

    def _adopt(self, branch: Branch, scope: bytes) -> int:
        """Share the blocks that an earlier text left, of one that began alike."""
        if not (self._prefixes.enabled and scope) or branch.reader is not None:
            return 0  # what is read of a forward needs the forward
        assert branch.handle is not None
        if self._pool.length(branch.handle):
            return 0
        names: list[bytes] = []
        self._prefixes.extend(names, scope, branch.token_ids, len(branch.token_ids) - 1)
        found = self._pool.adopt(branch.handle, names)
        branch.block_names = names[: found // self._pool.block_size]
        return found

    def _publish(self, branch: Branch, scope: bytes, end: int) -> None:
        """Name the full blocks before a position, where that was not done yet."""
        known = len(branch.block_names)
        if not (self._prefixes.enabled and scope) or end < (known + 1) * self._pool.block_size:
            return
        assert branch.handle is not None
        self._prefixes.extend(branch.block_names, scope, branch.token_ids, end)
        self._pool.publish(branch.handle, branch.block_names[known:], start=known)

    def _open(self, branch: Branch) -> bool:
        """Place a branch, unless what it shares is not cached yet."""
        source = branch.source
        if source is not None and (
            source.handle is None or self._pool.length(source.handle) < branch.num_shared
        ):
            return False
        self._fork(branch)
        return True

    def _fork(self, branch: Branch) -> None:
        source = branch.source
        if source is None:
            branch.handle = self._pool.create()
            return
        holder = self._holder(source, branch.token_ids[len(source.token_ids) : branch.num_shared])
        shared = min(branch.num_shared, self._pool.length(holder))
        branch.handle = self._pool.fork(holder, shared)
        branch.source, branch.num_shared = None, 0

    def _holder(self, source: Branch, draft: list[int]) -> int:
        """The branch, or that copy of it, behind which this draft was fed."""
        assert source.handle is not None
        for handle, fed in self._fed.get(source, ()):
            if list(fed[: len(draft)]) == draft:
                return handle
        return source.handle

    def _keep_furthest(self, branch: Branch) -> None:
        """Go on with the copy whose draft agrees with the branch's tokens furthest."""
        fed = self._fed[branch]

        def agreed(one: _Fed) -> int:
            base = self._pool.length(one.handle) - len(one.draft)
            return num_agreeing(one.draft, branch.token_ids[base:])

        furthest = max(fed, key=agreed)  # of equals the first, which is no copy
        fed.remove(furthest)
        fed.insert(0, furthest)
        branch.handle = furthest.handle

    def _drop_copies(self, branch: Branch) -> None:
        for copy, _ in self._fed.pop(branch, ())[1:]:
            self._pool.free(copy)


def _rows(
    branch: Branch,
    cached: int,
    token_ids: list[int],
    num_logits: int,
    reading: LayerReading | None = None,
) -> SequenceRows:
    assert branch.handle is not None
    readings = [] if reading is None else [reading]
    if branch.reader is not None:
        told = branch.reader.reading(cached, len(token_ids))
        readings += [] if told is None else [told]
    return SequenceRows(branch.handle, token_ids, num_logits, readings)
