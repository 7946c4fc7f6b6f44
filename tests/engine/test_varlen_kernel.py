"""Paged attention through torch's `varlen_attn`: what it is told, and where it is to be had.

The kernel is torch's on a GPU; here a plain function stands in for it.
"""

from __future__ import annotations

import pytest
import structlog
import torch
from engine.mixed_batches import expected_logits, run_mixed_batches
from engine.plain_model import largest_difference, plain_model
from engine.plain_varlen import PlainVarlen, varlen_kernel
from engine.tiny_models import WINDOW, build_tiny
from outrider_runtime.model import varlen_kernel as kernel_module
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.paged_attention import KernelUnavailable, PagedKernel
from outrider_runtime.model.ragged_runner import RaggedRunner

TOLERANCE = 1e-5
"""Of logits of size 2 to 5, in float32."""

OTHER_LAYERS = ["gemma2", "gpt_oss", "deepseek_v3"]
"""Soft cap, sinks, keys wider than values: nothing for the kernel."""


def runner_on(name: str, plain: PlainVarlen) -> RaggedRunner:
    return RaggedRunner(
        build_tiny(name), num_blocks=64, block_size=4, paged_kernel=varlen_kernel(plain)
    )


@pytest.mark.parametrize("name", OTHER_LAYERS)
def test_layers_that_ask_for_more_stay_as_they_were(name: str) -> None:
    plain = PlainVarlen()
    with structlog.testing.capture_logs() as logs:
        runner = runner_on(name, plain)
    assert not runner.paged
    assert not plain.calls
    assert [log["why"] for log in logs] == ["no layer of this model can use it"]
    expected = expected_logits(plain_model(name))
    assert largest_difference(run_mixed_batches(runner), expected) < TOLERANCE


def test_the_kernel_is_told_the_same_of_every_batch_but_for_what_is_in_it() -> None:
    plain = PlainVarlen()
    runner = runner_on("gemma3_text", plain)
    plain.calls.clear()
    run_mixed_batches(runner)
    assert {(call.max_q, call.max_k, call.num_splits) for call in plain.calls} == {(256, 256, 1)}
    # The row itself is no part of the kernel's window.
    assert {call.window_size for call in plain.calls} == {(-1, 0), (WINDOW - 1, 0)}


def test_block_tables_reach_beyond_a_window_whatever_the_texts() -> None:
    """A window that is wider than all tables would be left alone, which shows in a row's bits."""
    plain = PlainVarlen()
    runner = runner_on("gemma3_text", plain)
    plain.calls.clear()
    runner.forward([SequenceRows(runner.pool.create(), [1, 2, 3], 1)])
    reach = {call.window_size: call.reach for call in plain.calls}
    assert reach[-1, 0] == 4
    assert reach[WINDOW - 1, 0] > WINDOW


class TestWhichKernel:
    """What of torch is asked for, and what is said where there is nothing."""

    cuda = torch.device("cuda", 0)

    @pytest.fixture(autouse=True)
    def _torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A GPU of the right kind, and a torch that has its kernels."""
        self.activated: list[str | None] = []
        self.active: str | None = None
        choice = torch.nn.attention
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
        monkeypatch.setattr(
            choice, "activate_flash_attention_impl", self.activated.append, raising=False
        )
        monkeypatch.setattr(
            choice,
            "restore_flash_attention_impl",
            lambda: self.activated.append(None),
            raising=False,
        )
        monkeypatch.setattr(
            choice, "current_flash_attention_impl", lambda: self.active, raising=False
        )
        varlen = pytest.importorskip("torch.nn.attention.varlen")
        monkeypatch.setattr(varlen, "varlen_attn", PlainVarlen.__call__)
        self.varlen = varlen

    def load(self, dtype: torch.dtype = torch.bfloat16) -> tuple[PagedKernel | None, str]:
        try:
            return kernel_module.load(device=self.cuda, dtype=dtype), ""
        except KernelUnavailable as why:
            return None, str(why)

    def test_on_hopper_it_is_flash_attention_3_until_it_is_released(self) -> None:
        found, _ = self.load()
        assert found is not None
        assert self.activated == ["FA3"]
        found.release()
        assert self.activated == ["FA3", None]

    def test_what_somebody_else_activated_is_left(self) -> None:
        self.active = "FA4"
        found, _ = self.load()
        assert found is not None
        found.release()
        assert self.activated == []

    def test_float32_is_not_for_it(self) -> None:
        found, why = self.load(torch.float32)
        assert found is None
        assert "bfloat16" in why

    def test_other_gpus_have_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
        found, why = self.load()
        assert found is None
        assert "8.9" in why

    def test_without_its_package_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> None:
            raise ModuleNotFoundError("No module named 'flash_attn_interface'")

        monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", missing)
        found, why = self.load()
        assert found is None
        assert why == "FA3 cannot be had: No module named 'flash_attn_interface'"

    def test_an_older_torch_has_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(self.varlen, "varlen_attn", lambda query, key, *, scale=None: query)
        found, why = self.load()
        assert found is None
        assert "reads no block tables" in why
        monkeypatch.delattr(self.varlen, "varlen_attn")
        assert self.load() == (None, "this torch has no attention for ragged batches")
