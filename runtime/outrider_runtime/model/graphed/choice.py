"""Whether forwards of few rows run as graphs: which sizes there are, and that they prove right.

Everything happens at load. A size recorded in the middle of traffic would stall every request for
as long as some forwards in Python take, at a moment that nobody chose; a start takes that much
longer instead, and what is to go wrong goes wrong before anybody is served.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog
import torch

from outrider_runtime.model.causal_bias import CausalBias
from outrider_runtime.model.device import is_out_of_memory
from outrider_runtime.model.graphed.graph import MakeGraph
from outrider_runtime.model.graphed.proof import Proof
from outrider_runtime.model.graphed.sizes import SIZES
from outrider_runtime.model.graphed.static_memory import StaticMemory
from outrider_runtime.model.graphed.step import GraphedStep, RunModel
from outrider_runtime.model.kv_storage import KVStorage

_log = structlog.get_logger(__name__)

SPARE_BLOCKS = 1
"""Blocks of the storage behind those of the pool, for what rows of padding write."""


class _Unfit(Exception):
    """The model does without graphs; says why in one line."""


@torch.inference_mode()
def adopt(
    new_graph: MakeGraph,
    model: RunModel,
    *,
    storage: KVStorage,
    num_blocks: int,
    block_size: int,
    token_ids: Sequence[int],
    bias: CausalBias,
    max_model_len: int,
    vocab_size: int,
) -> GraphedStep | None:
    """Records graphs and takes them if they give what the model gives; else the log says why.

    Args:
        new_graph: makes graphs.
        model: runs a forward in Python.
        storage: of `num_blocks` blocks, and `SPARE_BLOCKS` behind them. Its content is lost.
        num_blocks: blocks of the pool.
        block_size: positions per block.
        token_ids: at least one, to make texts of.
        bias: tables of the device and the precision of the model.
        max_model_len: positions that the model has.
        vocab_size: columns of the logits.
    """
    began = time.monotonic()
    device, precise = bias.device, torch.promote_types(bias.dtype, torch.float32)
    try:
        step = GraphedStep(
            model,
            storage=storage,
            memory=StaticMemory(
                device=device,
                most_rows=SIZES[-1],
                most_blocks=min(num_blocks, -(-max_model_len // block_size)),
                block_size=block_size,
                spare_block=num_blocks,
            ),
            new_graph=new_graph,
            logits=torch.zeros(SIZES[-1], vocab_size, dtype=precise, device=device),
        )
        proof = Proof(
            step,
            model,
            storage=storage,
            num_blocks=num_blocks,
            block_size=block_size,
            token_ids=token_ids,
            bias=bias,
            max_model_len=max_model_len,
        )
        _record(step, [size for size in SIZES if proof.possible(size)])
        # Not before all are there, so that none is disturbed by another's.
        for size in step.sizes:
            if (why := proof.fault(size)) is not None:
                raise _Unfit(why)
    except Exception as fault:  # models and drivers raise what they like
        _log.warning("graphs_rejected", why=str(fault).partition("\n")[0])
        return None
    _log.info(
        "graphs_adopted",
        rows=step.sizes,
        off=round(proof.worst, 6),
        seconds=round(time.monotonic() - began, 1),
    )
    return step


def _record(step: GraphedStep, sizes: Sequence[int]) -> None:
    """Records as many of the sizes as memory holds.

    Raises:
        _Unfit: none.
        Exception: the model cannot be recorded.
    """
    for size in reversed(sizes):  # the smaller ones find their scratch memory in the larger ones'
        try:
            step.record(size)
        except Exception as fault:
            if not is_out_of_memory(fault):
                raise
    if not step.sizes:
        raise _Unfit("there is no memory for any" if sizes else "the KV cache is too small")
