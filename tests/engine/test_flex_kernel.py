"""Paged attention through torch's FlexAttention: tiles, bits, what is compiled and what is refused.

Without a GPU, torch's own function runs here as it is not compiled (all queries with the whole
pool), and compiled for the CPU; a plain function stands in for what it does with block tables.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import torch
import torch._dynamo
from engine.mixed_batches import expected_logits, run_mixed_batches
from engine.plain_flex import PlainFlex, flex_kernel
from engine.plain_model import largest_difference, plain_model
from engine.tiny_models import build_tiny
from outrider_runtime.model import flex_kernel as kernel_module
from outrider_runtime.model import flex_tiles
from outrider_runtime.model.attention_weights import ScoreRule
from outrider_runtime.model.flex_kernel import FlexAttention
from outrider_runtime.model.flex_tiles import TileShape
from outrider_runtime.model.kv_storage import KVStorage, LayerKV
from outrider_runtime.model.paged_attention import KernelUnavailable, PagedKernel, PagedKeys
from outrider_runtime.model.ragged_runner import RaggedRunner
from torch.nn.attention.flex_attention import BlockMask, flex_attention

TOLERANCE = 1e-5
BLOCK_SIZE, NUM_BLOCKS = 4, 64

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


class Sequences:
    """Sequences of random keys and values in a pool, and random queries for their last rows.

    Args:
        lengths: positions of each.
        heads: of queries, and of keys.
        garbage: what is in every slot that belongs to no position.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        heads: tuple[int, int] = (4, 2),
        dims: tuple[int, int] = (16, 16),
        garbage: float = float("nan"),
    ) -> None:
        generator = torch.Generator().manual_seed(len(lengths))
        blocks = random.Random(1).sample(range(NUM_BLOCKS), NUM_BLOCKS)
        shape = [1, heads[1], NUM_BLOCKS * BLOCK_SIZE]
        keys, values = (torch.full((*shape, dim), garbage) for dim in dims)
        self.lengths, self.tables = lengths, []
        self.queries: list[torch.Tensor] = []
        for length in lengths:
            table = [blocks.pop() for _ in range(-(-length // BLOCK_SIZE))]
            slots = [table[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(length)]
            for tensor, dim in zip((keys, values), dims, strict=True):
                tensor[:, :, slots] = torch.randn(1, heads[1], length, dim, generator=generator)
            self.tables.append(table)
            self.queries.append(torch.randn(heads[0], length, dims[0], generator=generator))
        storage = KVStorage(NUM_BLOCKS, BLOCK_SIZE)
        self.kv: LayerKV = storage.write(
            0, keys, values=values, slots=torch.arange(NUM_BLOCKS * BLOCK_SIZE)
        )

    def attend(
        self, attention: FlexAttention, rows: Sequence[tuple[int, int]], rule: ScoreRule
    ) -> list[torch.Tensor]:
        """Of some sequences by number, so many last rows: [rows, heads, value_dim] of each."""
        counts = [count for _, count in rows]
        width = max(len(self.tables[number]) for number, _ in rows)
        tables = [self.tables[n] + [2**30] * (width - len(self.tables[n])) for n, _ in rows]
        keys = PagedKeys(
            row_starts=torch.tensor([0, *counts]).cumsum(0).int(),
            lengths=torch.tensor([self.lengths[number] for number, _ in rows]).int(),
            tables=torch.tensor(tables).int(),
            block_size=BLOCK_SIZE,
            most_rows=max(counts),
        )
        query = torch.cat([self.queries[number][:, -count:] for number, count in rows], 1)
        out: Any = attention.attend(query[None], self.kv, keys, rule)[0]
        return list(out.split(counts))

    def expected(self, number: int, count: int, rule: ScoreRule) -> torch.Tensor:
        """The same, written out."""
        length, kv = self.lengths[number], self.kv
        slots = [
            self.tables[number][i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE
            for i in range(length)
        ]
        repeats = self.queries[number].shape[0] // kv.num_heads
        keys = kv.keys[slots, :, 0].transpose(0, 1).repeat_interleave(repeats, 0)
        values = kv.values[slots, :, 0].transpose(0, 1).repeat_interleave(repeats, 0)
        scores = self.queries[number][:, -count:] @ keys.mT * rule.scaling
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        own, at = torch.arange(length - count, length)[:, None], torch.arange(length)
        hidden = (at > own) | (at <= own - (rule.window or length))
        scores = scores.masked_fill(hidden, float("-inf"))
        if rule.sinks is not None:
            sinks = rule.sinks[:, None, None].expand(-1, count, -1)
            scores = torch.cat([scores, sinks], 2)
        return (scores.softmax(2)[..., :length] @ values).transpose(0, 1)


def plain_attention() -> FlexAttention:
    attention = flex_kernel(PlainFlex()).attention
    assert isinstance(attention, FlexAttention)
    return attention


RULES = {
    "plain": ScoreRule(0.25, None, None, None),
    "window": ScoreRule(0.25, None, None, 6),
    "window of one": ScoreRule(0.25, None, None, 1),
    "softcap": ScoreRule(0.3, 2.0, None, None),
    "sinks": ScoreRule(0.25, None, torch.tensor([0.5, -1.0, 2.0, 0.0]), 6),
}
LENGTHS = (1, 4, 5, 37, 70, 8)
MIXED = ((0, 1), (3, 37), (1, 1), (4, 5), (2, 5), (5, 2))
"""Single rows, a whole text over more than one tile, verifications."""


class TestRows:
    """What rows attend to."""

    @pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
    def test_mixed_rows_are_as_written_out_and_garbage_does_not_matter(
        self, rule: ScoreRule
    ) -> None:
        sequences = Sequences(LENGTHS)
        found = sequences.attend(plain_attention(), MIXED, rule)
        for (number, count), rows in zip(MIXED, found, strict=True):
            assert largest_difference(rows, sequences.expected(number, count, rule)) < TOLERANCE

    @pytest.mark.parametrize("heads", [(4, 4), (6, 2), (7, 1), (40, 1)])
    def test_any_number_of_heads_will_do(self, heads: tuple[int, int]) -> None:
        sequences = Sequences(LENGTHS, heads=heads, dims=(16, 8))
        found = sequences.attend(plain_attention(), MIXED, RULES["window"])
        for (number, count), rows in zip(MIXED, found, strict=True):
            expected = sequences.expected(number, count, RULES["window"])
            assert largest_difference(rows, expected) < TOLERANCE

    @pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
    def test_the_bits_of_a_row_do_not_depend_on_its_company(self, rule: ScoreRule) -> None:
        sequences, attention = Sequences(LENGTHS), plain_attention()
        together = sequences.attend(attention, MIXED, rule)
        for (number, count), rows in zip(MIXED, together, strict=True):
            for fewer in {1, count // 2, count} - {0}:
                (alone,) = sequences.attend(attention, [(number, fewer)], rule)
                assert torch.equal(alone, rows[-fewer:])

    def test_what_lies_behind_a_sequence_is_cleared_and_nothing_else_is(self) -> None:
        sequences = Sequences(LENGTHS)
        before = sequences.kv.rows.clone()
        sequences.attend(plain_attention(), [(2, 1), (1, 1)], RULES["plain"])
        behind = [sequences.tables[2][1] * BLOCK_SIZE + i for i in (1, 2, 3)]
        after = sequences.kv.rows
        assert not after[behind].any()
        others = [slot for slot in range(len(after)) if slot not in behind]
        assert torch.equal(after[others].nan_to_num(7), before[others].nan_to_num(7))

    def test_sequences_and_rows_that_pad_a_batch_harm_nobody(self) -> None:
        sequences = Sequences(LENGTHS)
        attention, rule = plain_attention(), RULES["plain"]
        expected = sequences.expected(4, 3, rule)
        keys = PagedKeys(
            row_starts=torch.tensor([0, 3, 3, 3]).int(),
            lengths=torch.tensor([70, 0, 0]).int(),
            tables=torch.tensor([sequences.tables[4], [0] * 18, [0] * 18]).int(),
            block_size=BLOCK_SIZE,
            most_rows=3,
        )
        query = torch.cat([sequences.queries[4][:, -3:], torch.zeros(4, 5, 16)], 1)
        found = attention.attend(query[None], sequences.kv, keys, rule)[0]
        assert found.shape[0] == 8
        assert largest_difference(found[:3], expected) < TOLERANCE


class TestTiles:
    """How rows are laid out."""

    @pytest.mark.parametrize("repeats", [1, 3, 4, 8, 33])
    def test_shapes_alone_tell_how_many_tiles_are_enough(self, repeats: int) -> None:
        shape = TileShape.of(heads=repeats * 2, key_heads=2)
        assert shape.rows * repeats <= shape.slots
        assert shape.slots & (shape.slots - 1) == 0
        source = random.Random(repeats)
        for _ in range(50):
            counts = [source.choice([1, 1, 5, 40]) for _ in range(source.randint(1, 9))]
            keys = PagedKeys(
                row_starts=torch.tensor([0, *counts]).cumsum(0).int(),
                lengths=torch.tensor([count + 3 for count in counts]).int(),
                tables=torch.zeros(len(counts), 12).int(),
                block_size=BLOCK_SIZE,
                most_rows=40,
            )
            tiles = flex_tiles.lay_out(keys, num_rows=sum(counts), shape=shape)
            taken = (tiles.sequences < len(counts)).sum()
            assert taken == sum(-(-count // shape.rows) for count in counts)
            query = torch.arange(sum(counts) * repeats * 2).view(repeats * 2, -1, 1)
            assert torch.equal(tiles.take(tiles.fill(query)), query.transpose(0, 1))

    def test_decoding_takes_a_tile_for_each_row_and_no_more(self) -> None:
        shape = TileShape.of(heads=32, key_heads=8)
        keys = PagedKeys(
            row_starts=torch.arange(51).int(),
            lengths=torch.full((50,), 9).int(),
            tables=torch.zeros(50, 3).int(),
            block_size=BLOCK_SIZE,
            most_rows=1,
        )
        assert len(flex_tiles.lay_out(keys, num_rows=50, shape=shape).sequences) == 50

    def test_a_window_spares_the_blocks_before_it(self) -> None:
        keys = PagedKeys(
            row_starts=torch.tensor([0, 2]).int(),
            lengths=torch.tensor([20]).int(),
            tables=torch.tensor([[9, 8, 7, 6, 5]]).int(),
            block_size=BLOCK_SIZE,
            most_rows=2,
        )
        tiles = flex_tiles.lay_out(keys, num_rows=2, shape=TileShape.of(heads=2, key_heads=1))
        for window, blocks in ((None, [9, 8, 7, 6, 5]), (3, [5]), (4, [6, 5]), (7, [6, 5])):
            sight = flex_tiles.look(tiles, keys, window=window)
            count = int(sight.num_blocks[0])
            assert sight.blocks[0, 0, 0, :count].tolist() == blocks

    def test_what_is_worked_out_serves_all_layers_of_a_batch(self) -> None:
        keys = PagedKeys(
            row_starts=torch.tensor([0, 1]).int(),
            lengths=torch.tensor([3]).int(),
            tables=torch.tensor([[2]]).int(),
            block_size=BLOCK_SIZE,
            most_rows=1,
        )
        sequences, attention = Sequences([3]), plain_attention()
        for window in (None, 5, None, 5):
            rule = RULES["plain"]._replace(window=window)
            attention.attend(sequences.queries[0][None, :, -1:], sequences.kv, keys, rule)
        layouts = [one for one in keys.worked_out.values() if hasattr(one, "sight")]
        assert len(layouts) == 2
        assert not dataclasses.replace(keys).worked_out


class TestTorch:
    """Torch's own function."""

    @pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3"])
    def test_gives_the_same_where_it_is_not_compiled(self, name: str) -> None:
        kernel = PagedKernel(FlexAttention(kernel_module.functions(), compiled=False))
        runner = RaggedRunner(build_tiny(name), num_blocks=64, block_size=4, paged_kernel=kernel)
        assert runner.paged
        actual = run_mixed_batches(runner)
        assert largest_difference(actual, expected_logits(plain_model(name))) < TOLERANCE

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, in its compiler
    @torch.inference_mode()
    def test_is_compiled_once_for_all_shapes_windows_and_pools(self) -> None:
        # First of all: what transformers registers with torch once would be a reason to compile.
        of_model = expected_logits(plain_model("mistral"))
        torch._dynamo.reset()
        sequences = Sequences(LENGTHS)
        flex = kernel_module.functions()._replace(attend=_with_wide_tables)
        attention = FlexAttention(flex, compiled=True)
        try:
            sequences.attend(attention, [(3, 37), (0, 1)], RULES["plain"])
        except Exception as why:
            pytest.skip(f"torch does not compile it for this CPU: {str(why).splitlines()[0]}")
        with torch.compiler.set_stance("fail_on_recompile"):
            for name in ("plain", "window"):
                rule = RULES[name]
                together = sequences.attend(attention, MIXED, rule)
                for (number, count), rows in zip(MIXED, together, strict=True):
                    expected = sequences.expected(number, count, rule)
                    assert largest_difference(rows, expected) < TOLERANCE
                    (alone,) = sequences.attend(attention, [(number, 1)], rule)
                    assert torch.equal(alone, rows[-1:])
            runner = RaggedRunner(
                build_tiny("mistral"),
                num_blocks=50,
                block_size=BLOCK_SIZE,
                paged_kernel=PagedKernel(attention),
            )
            assert runner.paged
            assert largest_difference(run_mixed_batches(runner), of_model) < TOLERANCE


def _with_wide_tables(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, block_mask: Any, **others: Any
) -> Any:
    """Torch's function. Compiled for the CPU, it wants tables as wide as the pool."""
    mask: BlockMask = block_mask
    further = mask.kv_indices.new_zeros(query.shape[0], 1, 1, key.shape[2] // mask.BLOCK_SIZE[1])
    wide = _changed(
        mask, mask.kv_num_blocks, torch.cat([mask.kv_indices, further], 3), mask.mask_mod
    )
    return flex_attention(query, key, value, block_mask=wide, **others)


def _changed(
    mask: BlockMask, num_blocks: torch.Tensor, blocks: torch.Tensor, sees: Any
) -> BlockMask:
    """A mask like another, but for what is given."""
    return BlockMask(
        mask.seq_lengths,
        num_blocks,
        blocks,
        full_kv_num_blocks=None,
        full_kv_indices=None,
        q_num_blocks=None,
        q_indices=None,
        full_q_num_blocks=None,
        full_q_indices=None,
        BLOCK_SIZE=mask.BLOCK_SIZE,
        mask_mod=sees,
    )


class TestAtLoad:
    """A function that does something else with block masks is not used."""

    @pytest.mark.parametrize("fault", ["scale", "order", "window", "one less", "few", "lse"])
    def test_other_results_are_noticed(self, fault: str) -> None:
        plain = PlainFlex()

        def attend(query: torch.Tensor, *kv: Any, **options: Any) -> Any:
            mask: BlockMask = options["block_mask"]
            sees, num_blocks, blocks = mask.mask_mod, mask.kv_num_blocks, mask.kv_indices
            if fault == "scale":
                options["scale"] *= 1.1
            elif fault == "order":
                blocks = blocks[[0] * len(blocks)]
            elif fault == "window":
                sees = lambda b, h, q, k: mask.mask_mod(b, h, q, k) | (k % 4 == 3)  # noqa: E731
            elif fault == "one less":
                num_blocks = (num_blocks - 1).clamp(min=1)
            elif fault == "few":
                num_blocks = num_blocks.clamp(max=3)
            options["block_mask"] = _changed(mask, num_blocks, blocks, sees)
            found = plain(query, *kv, **options)
            return (found[0], found[1] + 1) if fault == "lse" else found

        flex = kernel_module.Flex(attend, BlockMask, {"return_lse": True}, {})
        kernel = PagedKernel(FlexAttention(flex, compiled=False))
        with structlog.testing.capture_logs() as logs:
            runner = RaggedRunner(
                build_tiny("gpt_oss"), num_blocks=64, block_size=4, paged_kernel=kernel
            )
        assert not runner.paged
        assert "off by" in logs[-1]["why"]
        expected = expected_logits(plain_model("gpt_oss"))
        assert largest_difference(run_mixed_batches(runner), expected) < TOLERANCE

    def test_errors_are_noticed(self) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise RuntimeError("out of shared memory\nby far")

        flex = kernel_module.Flex(refuse, BlockMask, {}, {})
        kernel = PagedKernel(FlexAttention(flex, compiled=False))
        with structlog.testing.capture_logs() as logs:
            runner = RaggedRunner(
                build_tiny("llama"), num_blocks=64, block_size=4, paged_kernel=kernel
            )
        assert not runner.paged
        assert logs[-1]["why"] == "out of shared memory"


class TestOptions:
    """What the kernel is not left to choose."""

    def options(
        self, *, block_size: int, dims: tuple[int, int] = (128, 128), item: int = 2
    ) -> dict[str, Any]:
        """On a GPU, with numbers of so many bytes."""
        rows = SimpleNamespace(is_cuda=True, element_size=lambda: item)
        kv: Any = SimpleNamespace(rows=rows, key_dim=dims[0], value_dim=dims[1])
        found = kernel_module._options(kernel_module.functions(), kv, block_size)
        assert found is not None
        return found

    @pytest.mark.parametrize(
        ("block_size", "item", "dim", "keys"),
        [(16, 2, 128, 16), (64, 2, 128, 32), (64, 2, 64, 64), (48, 2, 64, 16), (64, 4, 256, 16)],
    )
    def test_inner_blocks_divide_those_of_the_pool_and_fit_every_gpu(
        self, block_size: int, item: int, dim: int, keys: int
    ) -> None:
        found = self.options(block_size=block_size, dims=(dim, dim), item=item)
        assert found["BLOCK_N"] == keys
        assert found["BLOCK_M"] == 32
        step = found["BLOCK_M"] * dim + found["num_stages"] * keys * 2 * dim
        assert step * item <= 64 * 1024

    def test_one_kernel_for_few_rows_and_many(self) -> None:
        found = self.options(block_size=16)
        assert found.get("BACKEND") == "TRITON" or found["FORCE_USE_FLEX_ATTENTION"]

    def test_blocks_that_no_inner_block_divides_are_refused(self) -> None:
        with pytest.raises(ValueError, match="multiple of 16"):
            self.options(block_size=24)


class TestWhichTorch:
    """What of torch is asked for, and what is said where there is nothing."""

    cuda = torch.device("cuda", 0)

    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A GPU, and Triton."""
        self.capability, self.triton = (8, 6), True
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: self.capability)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if self.triton else None)

    def why_not(self, dtype: torch.dtype = torch.float32) -> str:
        with pytest.raises(KernelUnavailable) as why:
            kernel_module.load(device=self.cuda, dtype=dtype)
        return str(why.value)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_any_gpu_with_triton_has_it(self, dtype: torch.dtype) -> None:
        assert kernel_module.load(device=self.cuda, dtype=dtype).attention.name == "flex"

    def test_float64_is_not_for_it(self) -> None:
        assert "float32" in self.why_not(torch.float64)

    def test_old_gpus_and_machines_without_triton_have_none(self) -> None:
        self.triton = False
        assert "Triton" in self.why_not()
        self.capability = (6, 1)
        assert "6.1" in self.why_not()

    def test_another_torch_has_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = torch.nn.attention.flex_attention
        monkeypatch.setattr(module, "flex_attention", lambda query, key, value: query)
        assert "no block masks" in self.why_not()
        monkeypatch.delattr(module, "flex_attention")
        assert self.why_not() == "this torch has no FlexAttention"

    def test_the_sums_of_weights_are_asked_for_by_signature(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = torch.nn.attention.flex_attention

        def older(
            query: object,
            *,
            score_mod: object,
            block_mask: object,
            scale: object,
            kernel_options: object,
            return_lse: bool = False,
        ) -> None: ...

        assert "return_aux" in kernel_module.functions().lse_request
        monkeypatch.setattr(module, "flex_attention", older)
        monkeypatch.delattr(module, "FlexKernelOptions")
        flex = kernel_module.functions()
        assert flex.lse_request == {"return_lse": True}
        assert flex.one_kernel == {"FORCE_USE_FLEX_ATTENTION": True}
