from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)
from outrider_runtime.model.kv_pool import BlockCopy, KVPool, OutOfBlocks


def snapshot(pool: KVPool, handles: list[int]) -> object:
    return (
        [(pool.length(h), list(pool.table(h))) for h in handles],
        pool.num_free_blocks,
        pool.num_sequences,
    )


class PoolAgainstPlainLists(RuleBasedStateMachine):
    """Every sequence reads back exactly its own tokens, whatever was shared, copied or freed."""

    handles = Bundle("handles")

    @initialize(num_blocks=st.integers(1, 14), block_size=st.integers(1, 5))
    def start(self, num_blocks: int, block_size: int) -> None:
        self.pool = KVPool(num_blocks, block_size)
        self.storage = [-1] * (num_blocks * block_size)
        self.tokens: dict[int, list[int]] = {}
        self.next_token = 0
        self.published: dict[bytes, list[int]] = {}

    def names(self, tokens: list[int]) -> list[bytes]:
        """Of the full blocks; a name says all tokens up to the block's end."""
        size = self.pool.block_size
        ends = range(size, len(tokens) + 1, size)
        return [repr(tokens[:end]).encode() for end in ends]

    def perform(self, copies: list[BlockCopy]) -> None:
        size = self.pool.block_size
        for src, dst in copies:
            self.storage[dst * size : (dst + 1) * size] = self.storage[
                src * size : (src + 1) * size
            ]

    def write(self, handle: int, count: int) -> None:
        tokens = self.tokens[handle]
        start = len(tokens)
        for slot in self.pool.slots(handle, start, start + count):
            self.storage[slot] = self.next_token
            tokens.append(self.next_token)
            self.next_token += 1

    @rule(target=handles)
    def create(self) -> int:
        handle = self.pool.create()
        self.tokens[handle] = []
        return handle

    @rule(handle=handles, count=st.integers(0, 12))
    def append(self, handle: int, count: int) -> None:
        before = snapshot(self.pool, list(self.tokens))
        needed, free = self.pool.blocks_needed(handle, count), self.pool.num_free_blocks
        if needed > free:
            with pytest.raises(OutOfBlocks) as caught:
                self.pool.append(handle, count)
            assert (caught.value.needed, caught.value.free) == (needed, free)
            assert snapshot(self.pool, list(self.tokens)) == before
            return
        copies = self.pool.append(handle, count)
        assert free - self.pool.num_free_blocks == needed
        self.perform(copies)
        self.write(handle, count)

    @rule(data=st.data(), counts=st.lists(st.integers(0, 7), max_size=6))
    def append_to_several(self, data: st.DataObject, counts: list[int]) -> None:
        order = data.draw(st.permutations(list(self.tokens)))
        appends = list(zip(order, counts, strict=False))
        before = snapshot(self.pool, list(self.tokens))
        needed, free = self.pool.blocks_needed_for(appends), self.pool.num_free_blocks
        if needed > free:
            with pytest.raises(OutOfBlocks):
                self.pool.append_all(appends)
            assert snapshot(self.pool, list(self.tokens)) == before
            return
        copies = self.pool.append_all(appends)
        assert free - self.pool.num_free_blocks == needed
        self.perform(copies)
        for handle, count in appends:
            self.write(handle, count)

    @rule(handle=handles, keep=st.floats(0, 1))
    def truncate(self, handle: int, keep: float) -> None:
        length = round(len(self.tokens[handle]) * keep)
        self.pool.truncate(handle, length)
        del self.tokens[handle][length:]

    @rule(target=handles, handle=handles, keep=st.floats(0, 1), whole=st.booleans())
    def fork(self, handle: int, keep: float, whole: bool) -> int:
        free = self.pool.num_free_blocks
        length = None if whole else round(len(self.tokens[handle]) * keep)
        forked = self.pool.fork(handle, length)
        assert self.pool.num_free_blocks == free
        self.tokens[forked] = self.tokens[handle][:length]
        return forked

    @rule(handle=handles)
    def publish(self, handle: int) -> None:
        tokens = self.tokens[handle]
        for name, end in zip(self.names(tokens), range(1, len(tokens) + 1), strict=False):
            self.published[name] = tokens[: end * self.pool.block_size]
        self.pool.publish(handle, self.names(tokens))

    @rule(target=handles, data=st.data(), known=st.booleans())
    def adopt(self, data: st.DataObject, known: bool) -> int:
        """What was published and not overwritten since; all of it, or nothing."""
        tokens = [-5] * self.pool.block_size
        if known and self.published:
            tokens = data.draw(st.sampled_from(sorted(self.published.values())))
        handle = self.pool.create()
        found = self.pool.adopt(handle, self.names(tokens))
        assert found % self.pool.block_size == 0
        self.tokens[handle] = tokens[:found]
        return handle

    @rule(handle=consumes(handles))
    def free(self, handle: int) -> None:
        self.pool.free(handle)
        del self.tokens[handle]
        with pytest.raises(KeyError):
            self.pool.length(handle)

    @invariant()
    def is_intact(self) -> None:
        self.pool.check_integrity()
        assert self.pool.num_sequences == len(self.tokens)

    @invariant()
    def every_sequence_reads_its_own_tokens(self) -> None:
        for handle, tokens in self.tokens.items():
            assert self.pool.length(handle) == len(tokens)
            slots = self.pool.slots(handle, 0, len(tokens))
            assert [self.storage[slot] for slot in slots] == tokens

    def teardown(self) -> None:
        for handle in self.tokens:
            self.pool.free(handle)
        self.pool.check_integrity()
        assert self.pool.num_free_blocks == self.pool.num_blocks


TestPoolAgainstPlainLists = PoolAgainstPlainLists.TestCase
TestPoolAgainstPlainLists.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None
)


def test_what_has_a_name_stays_until_its_block_is_needed() -> None:
    pool = KVPool(3, 2)
    first = pool.create()
    pool.append(first, 4)
    pool.publish(first, [b"a", b"ab"])
    table = list(pool.table(first))
    pool.free(first)
    assert pool.num_free_blocks == 3
    second = pool.create()
    assert pool.adopt(second, [b"a", b"ab", b"abc"]) == 4
    assert list(pool.table(second)) == table
    assert pool.num_free_blocks == 1
    third = pool.create()
    assert pool.adopt(third, [b"a", b"xy"]) == 2  # two share a block that nobody forked
    pool.free(third)
    pool.free(second)
    # Three blocks for somebody else: the end of the text goes first, then its beginning.
    other = pool.create()
    pool.append(other, 4)
    last = pool.create()
    assert pool.adopt(last, [b"a", b"ab"]) == 2
    pool.free(last)
    pool.append(other, 2)
    last = pool.create()
    assert pool.adopt(last, [b"a"]) == 0
    pool.check_integrity()


def test_a_block_that_is_written_again_loses_its_name() -> None:
    pool = KVPool(4, 2)
    first = pool.create()
    pool.append(first, 4)
    pool.publish(first, [b"a", b"ab"])
    pool.truncate(first, 3)
    pool.append(first, 1)
    second = pool.create()
    assert pool.adopt(second, [b"a", b"ab"]) == 2
    pool.check_integrity()


def test_only_full_blocks_have_names() -> None:
    pool = KVPool(4, 2)
    first = pool.create()
    pool.append(first, 3)
    with pytest.raises(ValueError, match="full blocks"):
        pool.publish(first, [b"a", b"ab"])
    with pytest.raises(ValueError, match="not empty"):
        pool.adopt(first, [b"a"])


def test_a_fork_shares_blocks_until_one_side_writes_into_the_shared_partial_block() -> None:
    pool = KVPool(8, 4)
    first = pool.create()
    pool.append(first, 6)
    second = pool.fork(first)
    assert pool.table(second) == pool.table(first)
    copies = pool.append(second, 1)
    assert copies == [BlockCopy(src=pool.table(first)[1], dst=pool.table(second)[1])]
    assert pool.table(second)[0] == pool.table(first)[0]
    assert pool.append(first, 1) == [], "the other side is alone with its block now"


def test_a_full_shared_block_is_never_copied() -> None:
    pool = KVPool(8, 4)
    first = pool.create()
    pool.append(first, 4)
    second = pool.fork(first)
    assert pool.append(second, 3) == []
    assert pool.append(first, 3) == []


def test_the_last_of_several_writers_keeps_the_shared_block_without_a_copy() -> None:
    pool = KVPool(3, 4)
    first = pool.create()
    pool.append(first, 2)
    forks = [pool.fork(first) for _ in range(2)]
    appends = [(handle, 1) for handle in (first, *forks)]
    assert pool.blocks_needed_for(appends) == 2
    assert len(pool.append_all(appends)) == 2
    assert pool.num_free_blocks == 0
    pool.check_integrity()


def test_rolling_back_and_appending_again_gives_the_same_slots() -> None:
    pool = KVPool(16, 4)
    handle = pool.create()
    pool.append(handle, 30)
    before = pool.slots(handle, 0, 30)
    pool.truncate(handle, 13)
    pool.append(handle, 17)
    assert pool.slots(handle, 0, 30) == before


def test_a_sequence_that_grows_alone_lies_in_consecutive_slots() -> None:
    pool = KVPool(16, 4)
    handle = pool.create()
    for _ in range(16):
        pool.append(handle, 4)
    assert pool.slots(handle, 0, 64) == list(range(64))


@pytest.mark.parametrize("num_sequences", [2, 5, 8])
def test_sequences_that_grow_side_by_side_lie_in_consecutive_slots_while_there_is_room(
    num_sequences: int,
) -> None:
    pool = KVPool(8 * 12, 4)
    handles = [pool.create() for _ in range(num_sequences)]
    for _ in range(12):
        pool.append_all([(handle, 4) for handle in handles])
    for handle in handles:
        slots = pool.slots(handle, 0, 48)
        assert slots == list(range(slots[0], slots[0] + 48))


def test_every_block_can_be_used_whatever_the_order() -> None:
    pool = KVPool(7, 2)
    handles = [pool.create() for _ in range(3)]
    for _ in range(2):
        pool.append_all([(handle, 2) for handle in handles])
    pool.append(handles[1], 2)
    assert pool.num_free_blocks == 0
    pool.check_integrity()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda pool, h: pool.append(h, -1), ValueError),
        (lambda pool, h: pool.truncate(h, 6), ValueError),
        (lambda pool, h: pool.truncate(h, -1), ValueError),
        (lambda pool, h: pool.fork(h, 6), ValueError),
        (lambda pool, h: pool.fork(h, -1), ValueError),
        (lambda pool, h: pool.slots(h, 0, 6), ValueError),
        (lambda pool, h: pool.slots(h, 3, 2), ValueError),
        (lambda pool, h: pool.append_all([(h, 1), (h, 1)]), ValueError),
        (lambda pool, h: pool.append(h + 1, 1), KeyError),
        (lambda pool, h: pool.append_all([(h, 1), (h + 1, 1)]), KeyError),
        (lambda pool, h: pool.free(h + 1), KeyError),
    ],
)
def test_a_wrong_call_is_refused_and_changes_nothing(
    call: Callable[[KVPool, int], object], error: type[Exception]
) -> None:
    pool = KVPool(8, 4)
    handle = pool.create()
    pool.append(handle, 5)
    before = snapshot(pool, [handle])
    with pytest.raises(error):
        call(pool, handle)
    assert snapshot(pool, [handle]) == before
    pool.check_integrity()


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0), (-1, 4)])
def test_a_pool_without_room_is_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        KVPool(num_blocks, block_size)


@pytest.mark.parametrize(
    "damage",
    [
        lambda pool, h: pool.table(h).append(7),
        lambda pool, h: pool.table(h).pop(),
        lambda pool, h: pool.table(h).__setitem__(0, 7),
        lambda pool, h: pool.table(h).__setitem__(0, pool.table(h)[1]),
        lambda pool, h: pool.table(h).__setitem__(0, 99),
    ],
)
def test_the_integrity_check_notices_damage(damage: Callable[[KVPool, int], object]) -> None:
    pool = KVPool(8, 4)
    handle = pool.create()
    pool.append(handle, 7)
    pool.check_integrity()
    damage(pool, handle)
    with pytest.raises(RuntimeError):
        pool.check_integrity()
