"""The last safety net: at load, the ragged engine is compared with the model's own attention.

A model may break the engine's assumptions without any error (see `support`). So every model, listed
or not, has to show on a few random tokens that a mixed ragged batch, with a prefill in two parts,
several rows at once and a rollback, gives the logits of plain forwards on the same tokens. One of
the two sequences lies at the far end of the model's positions, where rotary scaling that follows
the largest position of a batch shows. Six forwards of at most 14 rows: well below a second for
small models, a few seconds for large ones on a CPU.

Two things it cannot see on so few tokens, and which are checked another way: whether a sliding
window reaches the attention function (the windows asked for are compared with the config), and
attention that selects keys by content (such models hand over arguments that `ragged_attention` does
not know, and it refuses them).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from outrider_runtime.errors import StartupError
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.model_facts import (
    max_model_len,
    num_input_ids,
    windows,
)
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.model.support import UnsupportedModel

_NEAR = 11
_FAR = 13
_FEWEST = 4
_FAR_POSITION = 1 << 16
"""Farthest position tried where the model states no limit or a larger one."""

_TOLERANCE = {
    torch.float64: 1e-5,  # stock attention computes its softmax in float32
    torch.float32: 1e-3,
    torch.bfloat16: 5e-2,
    torch.float16: 2e-2,
}
"""Largest difference of a logit, relative to the row's largest; mistakes show at 0.03 to 1."""


def self_check(model: PreTrainedModel) -> int:
    """Compares the ragged engine with the model's own attention on the same weights.

    Args:
        model: a model that `check_supported` let pass. Its attention is the engine's afterwards.

    Returns:
        Bytes that one position takes in the KV cache, as measured.

    Raises:
        UnsupportedModel: the results differ, or the model cannot run on ragged batches at all.
    """
    config = model.config
    room = min(max_model_len(config), _FAR_POSITION)
    if room < _FEWEST:
        raise UnsupportedModel(config, f"it has only {room} positions")
    near, far = _tokens(model, lengths=(min(_NEAR, room), min(_FAR, room)))
    shift = room - len(far)
    try:
        # Left to count by itself, a model shows whether it counts as the engine does (RoBERTa
        # and its kin do not begin at 0).
        expected = _plain(model, near, shift=None), _plain(model, far, shift=shift)
        runner = RaggedRunner(model, num_blocks=16, block_size=4)
        actual = _ragged(runner, near, far=far, shift=shift)
    except StartupError:
        raise
    except Exception as error:  # raised anywhere in a model's own code
        raise UnsupportedModel(config, f"it cannot run on ragged batches: {error}") from error
    if any(logits.isnan().any() for logits in expected):
        raise UnsupportedModel(config, "its logits are not numbers; are the weights damaged?")
    if ignored := windows(config) - runner.windows:
        raise UnsupportedModel(
            config,
            f"its attention functions are not told the sliding window {min(ignored, key=str)}",
        )
    off = _worst_error(actual, expected, dtype=runner.dtype)
    if not off <= _TOLERANCE[runner.dtype]:
        raise UnsupportedModel(
            config,
            f"on ragged batches its logits are off by {off:.1%} of the largest: they depend on "
            "more than tokens, positions and attention",
        )
    return runner.bytes_per_token


def _tokens(model: PreTrainedModel, *, lengths: Sequence[int]) -> list[list[int]]:
    """Random ids that the model gives no special meaning to (images, padding)."""
    config = model.config
    special = {
        value
        for name, value in config.to_dict().items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    limit = min(num_input_ids(model), 1000)
    ordinary = [token for token in range(limit) if token not in special] or list(range(limit))
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(ordinary), (sum(lengths),), generator=generator).tolist()
    chosen = iter(ordinary[pick] for pick in picks)
    return [[next(chosen) for _ in range(length)] for length in lengths]


@torch.inference_mode()
def _plain(model: PreTrainedModel, token_ids: Sequence[int], *, shift: int | None) -> torch.Tensor:
    """Logits [len(token_ids), vocab] of one ordinary forward.

    Args:
        model: the model, put on its own attention.
        token_ids: the sequence.
        shift: position of its first token; None: as the model counts by itself.
    """
    model.set_attn_implementation("eager")
    positions = None
    if shift is not None:
        positions = torch.arange(shift, shift + len(token_ids), device=model.device)[None]
    output = model(
        input_ids=torch.tensor([list(token_ids)], device=model.device),
        position_ids=positions,
        use_cache=False,
    )
    logits: torch.Tensor = output.logits[0]
    return logits


def _ragged(
    runner: RaggedRunner, near: Sequence[int], *, far: Sequence[int], shift: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The last logits of `near` and all of `far`, each in the parts they were computed in."""
    pool = runner.pool
    first, second = pool.create(), pool.create()
    first_positions = {second: shift}
    half, most = len(near) // 2, len(far) * 2 // 3

    def step(*rows: SequenceRows) -> torch.Tensor:
        return runner.forward(rows, first_positions=first_positions)

    prefill = step(SequenceRows(first, near[:half], 0), SequenceRows(second, far[:most], most))
    wrong = near[: len(far) - most]
    decode = step(SequenceRows(first, [near[half]], 1), SequenceRows(second, wrong, 0))
    pool.truncate(second, most)
    rest_near, rest_far = near[half + 1 :], far[most:]
    last = step(
        SequenceRows(first, rest_near, len(rest_near)),
        SequenceRows(second, rest_far, len(rest_far)),
    )
    return [decode, last[: len(rest_near)]], [prefill, last[len(rest_near) :]]


def _worst_error(
    actual: tuple[list[torch.Tensor], list[torch.Tensor]],
    expected: tuple[torch.Tensor, torch.Tensor],
    *,
    dtype: torch.dtype,
) -> float:
    """The largest relative error over the parts of both sequences."""
    errors = []
    for parts, plain in zip(actual, expected, strict=True):
        rows = plain[-sum(len(part) for part in parts) :].double()
        wanted = torch.split(rows, [len(part) for part in parts])
        for part, reference in zip(parts, wanted, strict=True):
            error = _row_errors(part.double(), reference)
            # In 16 bit a near tie between experts may send single rows another way: not an error of
            # the engine. Its errors show in every row of a part.
            errors.append(error.median() if dtype.itemsize < 4 else error.max())
    return float(torch.stack(errors).max())


def _row_errors(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Per row: largest difference over largest logit. [rows, vocab] -> [rows]."""
    finite = expected.isfinite()  # some heads mask ids with -inf
    difference = torch.where(finite, actual - expected, 0.0).abs().amax(1)
    difference[((actual != expected) & ~finite).any(1)] = float("inf")
    scale = torch.where(finite, expected, 0.0).abs().amax(1)
    return difference / scale.clamp(min=torch.finfo(torch.float64).tiny)
