"""Compiles a forward: from a recipe to a package. Runs in a process of its own.

The compiler is torch's inductor, ahead of time. It is told to leave alone whatever it would round
in another way than torch does when Python runs the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch._inductor
import torch.fx.experimental._config as shape_settings
from torch import nn
from torch._inductor import decomposition, lowering
from torch.export import Dim, ExportedProgram
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from outrider_runtime.model.attention import ATTENTION_NAME, forward_context
from outrider_runtime.model.batch import Pages, RaggedBatch
from outrider_runtime.model.compiled.joined_products import join_products
from outrider_runtime.model.compiled.recipe import Recipe
from outrider_runtime.model.kernels import library
from outrider_runtime.model.kernels.mode import Quantization
from outrider_runtime.model.kernels.quantization import to_int8
from outrider_runtime.model.kernels.replacement import Replacement
from outrider_runtime.model.kv_storage import KVStorage

_aten = torch.ops.aten
_INEXACT = (
    # Functions that a vector library computes, and another one where the compiler does.
    _aten.cos, _aten.sin, _aten.exp, _aten.log, _aten.tanh, _aten.sigmoid, _aten.erf, _aten.pow,
    _aten.silu, _aten.gelu, _aten.rsqrt, _aten.softplus, _aten.mish,
    # Sums, in another order.
    _aten.sum, _aten.mean, _aten.softmax, _aten._softmax, _aten.var, _aten.var_mean, _aten.cumsum,
    _aten.native_layer_norm, _aten.mm, _aten.bmm, _aten.addmm,
)  # fmt: skip
"""Left to torch. What is not listed and matters is found when bits are compared."""


class Inputs(NamedTuple):
    """What a compiled forward is called with, in this order."""

    input_ids: torch.Tensor  # int64 [1, rows]
    position_ids: torch.Tensor  # int64 [1, rows]
    write_slots: torch.Tensor  # int64 [rows]
    rows_of: torch.Tensor  # int64 [2, rows]
    tables: torch.Tensor  # int64 [sequences, blocks]
    logits_rows: torch.Tensor  # int64 [wanted rows]
    layers: Sequence[torch.Tensor]  # of each layer the rows of its KV storage


class Forward(nn.Module):
    """A model on the paged pool, as a function of tensors alone."""

    def __init__(self, model: PreTrainedModel, block_size: int) -> None:
        super().__init__()
        self.model = model
        self._block_size = block_size

    def forward(self, *inputs: Any) -> torch.Tensor:
        """`Inputs` -> logits [1, wanted rows, vocab]."""
        given = Inputs(*inputs)
        batch = _TracedBatch(given, self._block_size)
        storage = _TracedStorage(given.layers)
        with forward_context(
            cast("RaggedBatch", batch), cast("KVStorage", storage), None, kernels=True
        ):
            output = self.model(
                input_ids=given.input_ids,
                position_ids=given.position_ids,
                use_cache=False,
                logits_to_keep=given.logits_rows,
            )
        logits: torch.Tensor = output.logits
        return logits


class _TracedBatch:
    """What attention on the kernels asks a batch for."""

    def __init__(self, given: Inputs, block_size: int) -> None:
        self.write_slots = given.write_slots
        self.pages = Pages(given.rows_of, given.tables, block_size)


class _TracedLayer(NamedTuple):
    rows: torch.Tensor


class _TracedStorage:
    """What attention on the kernels asks the storage for."""

    def __init__(self, layers: Sequence[torch.Tensor]) -> None:
        self._layers = layers

    def layer(self, index: int, keys: torch.Tensor, *, values: torch.Tensor) -> _TracedLayer:
        return _TracedLayer(self._layers[index])


def compile_forward(recipe: Recipe, package: Path) -> None:
    """Writes the compiled forward.

    Args:
        recipe: What to compile.
        package: The file to write, named *.pt2.

    Raises:
        Exception: Whatever transformers, torch or the C++ compiler have against it.
    """
    library.load()
    _leave_rounding_to_torch()
    # One row is not a shape of its own: all numbers of rows share one program.
    shape_settings.backed_size_oblivious = True
    program = _trace(_model_without_weights(recipe), recipe)
    join_products(program)
    torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(package),
        inductor_configs={
            "aot_inductor.package_constants_in_so": False,
            "cpp.dynamic_threads": True,  # as many as whoever runs it has
        },
    )


def _leave_rounding_to_torch() -> None:
    """Makes the compiler call torch for what it would compute otherwise; it stays so."""
    for operator in _INEXACT:
        for overload in operator.overloads():  # type: ignore[no-untyped-call]
            decomposition.decompositions.pop(getattr(operator, overload), None)
        lowering.make_fallback(  # type: ignore[no-untyped-call]
            operator, warn=False, override_decomp=True
        )


def _model_without_weights(recipe: Recipe) -> PreTrainedModel:
    """The model, its weights any numbers, but for those that are a part of the program."""
    values = json.loads(recipe.config)
    with torch.device("meta"):
        config = AutoConfig.for_model(**values)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.set_attn_implementation(ATTENTION_NAME)
    Replacement(model)
    if recipe.quantization is Quantization.INT8:
        to_int8(model)
    model = cast("PreTrainedModel", model.to_empty(device="cpu").eval())
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, values in recipe.small_tensors.items():
            own[name].copy_(torch.tensor(values))
    return model


def _trace(model: PreTrainedModel, recipe: Recipe) -> ExportedProgram:
    """The model's operators, for any number of rows, sequences and blocks."""
    rows, sequences, blocks, slots = 5, 3, 7, 11 * recipe.block_size
    example = Inputs(
        input_ids=torch.zeros(1, rows, dtype=torch.int64),
        position_ids=torch.arange(rows)[None],
        write_slots=torch.arange(rows),
        rows_of=torch.stack([torch.zeros(rows, dtype=torch.int64), torch.arange(rows)]),
        tables=torch.zeros(sequences, blocks, dtype=torch.int64),
        logits_rows=torch.arange(4),
        layers=[torch.zeros(slots, width) for width in recipe.kv_widths],
    )
    shapes = Inputs(
        input_ids={1: Dim.DYNAMIC},  # type: ignore[arg-type]
        position_ids={1: Dim.DYNAMIC},  # type: ignore[arg-type]
        write_slots={0: Dim.DYNAMIC},  # type: ignore[arg-type]
        rows_of={1: Dim.DYNAMIC},  # type: ignore[arg-type]
        tables={0: Dim.DYNAMIC, 1: Dim.DYNAMIC},  # type: ignore[arg-type]
        logits_rows={0: Dim.DYNAMIC},  # type: ignore[arg-type]
        layers=[{0: Dim.DYNAMIC} for _ in recipe.kv_widths],  # type: ignore[misc]
    )
    with torch.no_grad():
        return torch.export.export(
            Forward(model, recipe.block_size),
            tuple(example),
            dynamic_shapes=(tuple(shapes),),
            strict=False,
        )
