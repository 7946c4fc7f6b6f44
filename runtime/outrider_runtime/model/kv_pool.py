"""Who owns which block of the key/value cache: tables, lengths, reference counts and names.

A full block may have a name, which says what is in it: whoever needs the same shares it. What
nobody uses any more stays as long as its block is not needed for something else.

Pure bookkeeping. Knows nothing of tensors, layers or models: `append` *names* the copies that copy
on write needs, and whoever holds the tensors performs them before it writes.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class OutOfBlocks(Exception):
    """There are not enough free blocks; nothing was changed.

    Attributes:
        needed: blocks the call needed, copies on write included.
        free: blocks that were free.
    """

    def __init__(self, *, needed: int, free: int) -> None:
        super().__init__(f"{needed} KV blocks needed, {free} free")
        self.needed = needed
        self.free = free


class BlockCopy(NamedTuple):
    """The content of block `src` has to reach block `dst` before anything is written to `dst`."""

    src: int
    dst: int


@dataclass(slots=True)
class _Sequence:
    """Block i of the table holds positions [i * block_size, (i + 1) * block_size)."""

    table: array[int] = field(default_factory=lambda: array("q"))  # read without converting it
    length: int = 0


class KVPool:
    """Allocator of fixed-size KV blocks, shared by sequences through reference counts.

    A sequence is known by its handle, an integer that is never used twice. Position p of a sequence
    lives in *slot* `table[p // block_size] * block_size + p % block_size`. Not thread-safe: the
    engine thread owns it.

    Args:
        num_blocks: blocks in the pool, at least 1.
        block_size: positions per block, at least 1.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"num_blocks and block_size are at least 1, not {num_blocks}, {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A dict as an ordered set: any block is taken in O(1), `popitem` takes the last (lowest).
        self._free: dict[int, None] = dict.fromkeys(reversed(range(num_blocks)))
        # Where new sequences begin: 0, 1/2, 1/4, 3/4, 1/8... of the pool, as long as there is room.
        self._starts = _spread(num_blocks)
        self._refs = [0] * num_blocks
        self._block_named: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}
        # Named blocks that no sequence uses, least recently used first.
        self._idle: dict[int, None] = {}
        self._sequences: dict[int, _Sequence] = {}
        self._next_handle = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence uses, named ones among them."""
        return len(self._free) + len(self._idle)

    @property
    def num_sequences(self) -> int:
        """Live handles."""
        return len(self._sequences)

    def create(self) -> int:
        """Returns the handle of a new sequence of length 0; takes no block."""
        return self._add(_Sequence())

    def length(self, handle: int) -> int:
        """Returns how many positions the sequence holds."""
        return self._sequence(handle).length

    def table(self, handle: int) -> array[int]:
        """Returns the sequence's own block table, in position order. Read it, never change it."""
        return self._sequence(handle).table

    def blocks_needed(self, handle: int, count: int) -> int:
        """Returns how many free blocks `append(handle, count)` would take, copies included."""
        return self.blocks_needed_for([(handle, count)])

    def blocks_needed_for(self, appends: Iterable[tuple[int, int]]) -> int:
        """Returns how many free blocks `append_all(appends)` would take.

        May be less than the sum over single appends: of n sequences that share a partial block, the
        last one to write keeps it.

        Raises:
            KeyError: no such sequence.
            ValueError: a negative count, or a sequence named twice.
        """
        needed = 0
        seen: set[int] = set()
        copied: dict[int, int] = {}  # how often each shared block is
        for handle, count in appends:
            sequence = self._sequence(handle)
            if count < 0:
                raise ValueError(f"cannot append {count} positions")
            if handle in seen:
                raise ValueError(f"sequence {handle} is named twice")
            seen.add(handle)
            needed += self._blocks_for(sequence.length + count) - len(sequence.table)
            partial = self._partial_block(sequence)
            if count and partial is not None and self._refs[partial] > 1:
                already = copied.get(partial, 0)
                if self._refs[partial] - already > 1:
                    copied[partial] = already + 1
                    needed += 1
        return needed

    def append(self, handle: int, count: int) -> list[BlockCopy]:
        """Makes room for `count` more positions; all or nothing.

        Returns:
            The copies to perform before writing: one where the sequence would write into a block
            it shares, else none.

        Raises:
            OutOfBlocks: too few free blocks; nothing was changed.
            KeyError: no such sequence.
            ValueError: a negative count.
        """
        return self.append_all([(handle, count)])

    def append_all(self, appends: Iterable[tuple[int, int]]) -> list[BlockCopy]:
        """Makes room in several different sequences at once; all or nothing, as `append`."""
        appends = list(appends)
        needed = self.blocks_needed_for(appends)
        if needed > self.num_free_blocks:
            raise OutOfBlocks(needed=needed, free=self.num_free_blocks)
        copies: list[BlockCopy] = []
        for handle, count in appends:
            if count == 0:
                continue
            sequence = self._sequence(handle)
            partial = self._partial_block(sequence)
            if partial is not None and self._refs[partial] > 1:
                own = self._take(after=partial)
                self._refs[partial] -= 1
                sequence.table[-1] = own
                copies.append(BlockCopy(src=partial, dst=own))
            elif partial is not None:
                self._unname(partial)  # what it said is overwritten
            sequence.length += count
            table = sequence.table
            missing = self._blocks_for(sequence.length) - len(table)
            if missing and not table:
                table.append(self._take_start(missing))
                missing -= 1
            for _ in range(missing):
                table.append(self._take(after=table[-1]))
        return copies

    def truncate(self, handle: int, length: int) -> None:
        """Shortens the sequence to `length` positions: rollback, without touching any tensor.

        Raises:
            ValueError: `length` is negative or beyond the present length.
        """
        sequence = self._sequence(handle)
        if not 0 <= length <= sequence.length:
            raise ValueError(f"cannot truncate a sequence of length {sequence.length} to {length}")
        sequence.length = length
        keep = self._blocks_for(length)
        self._release(sequence.table[keep:])
        del sequence.table[keep:]

    def fork(self, handle: int, length: int | None = None) -> int:
        """Returns a new sequence that shares the first `length` positions (default: all).

        Takes no block.

        Raises:
            ValueError: `length` is negative or beyond the present length.
        """
        sequence = self._sequence(handle)
        length = sequence.length if length is None else length
        if not 0 <= length <= sequence.length:
            raise ValueError(f"cannot fork a sequence of length {sequence.length} at {length}")
        table = sequence.table[: self._blocks_for(length)]
        for block in table:
            self._refs[block] += 1
        return self._add(_Sequence(table=table, length=length))

    def publish(self, handle: int, names: Sequence[bytes], *, start: int = 0) -> None:
        """Names full blocks of a sequence, from block `start` on. Who has a name first keeps it.

        Args:
            handle: The sequence.
            names: One for each block; equal names mean equal content, positions before it included.
            start: Index of the first of them in the sequence.

        Raises:
            ValueError: There are fewer full blocks.
        """
        sequence = self._sequence(handle)
        if start + len(names) > sequence.length // self.block_size:
            raise ValueError(f"sequence {handle} does not have {start + len(names)} full blocks")
        for block, name in zip(sequence.table[start:], names, strict=False):
            if name not in self._block_named and block not in self._names:
                self._block_named[name] = block
                self._names[block] = name

    def adopt(self, handle: int, names: Iterable[bytes]) -> int:
        """Lets a new sequence share the blocks that have these names, up to the first that is not.

        Returns:
            The positions that the sequence holds now.

        Raises:
            ValueError: The sequence is not empty.
        """
        sequence = self._sequence(handle)
        if sequence.length:
            raise ValueError(f"sequence {handle} is not empty")
        for name in names:
            block = self._block_named.get(name)
            if block is None:
                break
            self._idle.pop(block, None)
            self._refs[block] += 1
            sequence.table.append(block)
            sequence.length += self.block_size
        return sequence.length

    def free(self, handle: int) -> None:
        """Forgets the sequence; blocks that nobody else uses become free."""
        sequence = self._sequence(handle)
        del self._sequences[handle]
        self._release(sequence.table)

    def slots(self, handle: int, start: int, stop: int) -> list[int]:
        """Returns the slots of positions [start, stop).

        Raises:
            ValueError: the range is not within the sequence.
        """
        sequence = self._sequence(handle)
        if not 0 <= start <= stop <= sequence.length:
            raise ValueError(
                f"positions [{start}, {stop}) are not within a sequence of length {sequence.length}"
            )
        return slots_of(sequence.table, self.block_size, range(start, stop))

    def check_integrity(self) -> None:
        """Verifies every invariant of the pool; O(num_blocks), for tests and idle moments.

        Raises:
            RuntimeError: naming the first invariant that does not hold.
        """
        uses: Counter[int] = Counter()
        for handle, sequence in self._sequences.items():
            if len(sequence.table) != self._blocks_for(sequence.length):
                raise RuntimeError(
                    f"sequence {handle}: {len(sequence.table)} blocks for length {sequence.length}"
                )
            if len(set(sequence.table)) != len(sequence.table):
                raise RuntimeError(f"sequence {handle}: a block occurs twice in its table")
            uses.update(sequence.table)
        for block in range(self.num_blocks):
            if self._refs[block] != uses[block]:
                raise RuntimeError(
                    f"block {block}: {self._refs[block]} references, {uses[block]} uses"
                )
            listed = (block in self._free) + (block in self._idle)
            if listed != (uses[block] == 0):
                raise RuntimeError(f"block {block}: {uses[block]} uses, yet listed as free or not")
            if block in self._idle and block not in self._names:
                raise RuntimeError(f"block {block} is kept without a name")
            if block in self._free and block in self._names:
                raise RuntimeError(f"block {block} has a name and is free")
        if self.num_free_blocks + len(uses) != self.num_blocks:
            raise RuntimeError("a block outside the pool is free or in use")
        if {name: block for block, name in self._names.items()} != self._block_named:
            raise RuntimeError("names and blocks do not belong together")

    def _add(self, sequence: _Sequence) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self._sequences[handle] = sequence
        return handle

    def _sequence(self, handle: int) -> _Sequence:
        try:
            return self._sequences[handle]
        except KeyError:
            raise KeyError(f"no sequence with handle {handle}") from None

    def _blocks_for(self, length: int) -> int:
        return -(-length // self.block_size)

    def _partial_block(self, sequence: _Sequence) -> int | None:
        """The block that the next append writes into, if it already exists."""
        return sequence.table[-1] if sequence.length % self.block_size else None

    def _take(self, *, after: int) -> int:
        """A free block, the one next to `after` if possible: runs are read without a gather."""
        block = after + 1
        if block in self._free:
            del self._free[block]
        elif self._free:
            block, _ = self._free.popitem()
        else:
            block = next(iter(self._idle))
            self._unname(block)
            del self._free[block]
        self._refs[block] = 1
        return block

    def _unname(self, block: int) -> None:
        """What is in a block is not known any more."""
        name = self._names.pop(block, None)
        if name is None:
            return
        del self._block_named[name]
        if block in self._idle:
            del self._idle[block]
            self._free[block] = None

    def _take_start(self, count: int) -> int:
        """The first block of a new sequence that will take `count`, with room to grow behind it."""
        for start in self._starts:
            if all(block in self._free for block in range(start, start + count)):
                return self._take(after=start - 1)
        return self._take(after=-2)  # whichever is free

    def _release(self, blocks: Sequence[int]) -> None:
        # Backwards, so that the lowest is taken first again and runs stay consecutive; and the end
        # of a text is forgotten before its beginning, without which it is of no use.
        for block in reversed(blocks):
            self._refs[block] -= 1
            if not self._refs[block]:
                (self._idle if block in self._names else self._free)[block] = None


def slots_of(table: Sequence[int], size: int, positions: Iterable[int]) -> list[int]:
    """Returns the slots of positions of the sequence that has this table of blocks of this size."""
    return [table[p // size] * size + p % size for p in positions]


def _spread(num_blocks: int) -> list[int]:
    """Up to 64 different blocks, each about as far from all before it as can be."""
    fractions = [0.0]
    for depth in range(1, 7):
        step = 0.5**depth
        fractions += [odd * step for odd in range(1, 2**depth, 2)]
    return list(dict.fromkeys(int(fraction * num_blocks) for fraction in fractions))
