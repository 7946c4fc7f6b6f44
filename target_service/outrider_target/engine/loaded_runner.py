"""The runner of a target service's model, as every process that has a part of it makes it."""

from __future__ import annotations

import signal

import structlog
from outrider_runtime.errors import StartupError
from outrider_runtime.model import paged_kernel, threads
from outrider_runtime.model.graphed import graph
from outrider_runtime.model.loader import LoadedModel, load
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.model.rank_group import RankGroup, RanksLost

from outrider_target.engine.cache_size import size_cache
from outrider_target.settings import TargetSettings

log = structlog.get_logger()


def load_model(settings: TargetSettings, group: RankGroup | None) -> LoadedModel:
    """The model, or this process's part of it.

    Raises:
        StartupError: One clear line says why not.
    """
    threads.choose(settings.model.threads, neighbours=threads.on_this_machine(settings.drafts))
    return load(
        settings.model.model,
        dtype=settings.model.dtype,
        device=settings.model.device,
        group=group,
    )


def make_runner(
    loaded: LoadedModel, settings: TargetSettings, group: RankGroup | None
) -> tuple[RaggedRunner, int]:
    """The runner, and the longest sequence that may be served.

    Raises:
        StartupError: One clear line says why not.
    """
    num_blocks, max_model_len = size_cache(loaded, settings)
    runner = RaggedRunner(
        loaded.model,
        num_blocks=num_blocks,
        block_size=settings.model.block_size,
        cpu_kernels=settings.model.cpu_kernels,
        quantization=settings.model.quantization,
        compiled=settings.model.compile,
        paged_kernel=paged_kernel.find(device=loaded.model.device, dtype=loaded.model.dtype),
        new_graph=graph.find(loaded.model.device),
        group=group,
    )
    return runner, max_model_len


def follow(settings: TargetSettings, group: RankGroup) -> None:
    """Run what rank 0 runs, until it ends: all that the other ranks of a service do.

    Raises:
        StartupError: One clear line says why it cannot, or no longer.
    """
    try:
        runner, _ = make_runner(load_model(settings, group), settings, group)
        # Whoever stops the service tells all of its processes; rank 0 still has requests to end.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        log.info("rank_follows", rank=group.rank)
        runner.follow()
    except RanksLost as lost:
        raise StartupError(str(lost)) from lost
    log.info("rank_ended", rank=group.rank)
