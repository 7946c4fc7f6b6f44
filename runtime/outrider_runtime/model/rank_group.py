"""The processes that share one model: each has a part of every layer's weights and of the cache.

Rank 0 leads: before each forward it tells the others what to run, and all run it together, each on
its own part; the sums over ranks are made inside the model (transformers' tensor parallelism). What
is told goes over a channel of its own, on which rank 0 is also heard from while nothing is to be
done. So a process that dies is noticed at once, one that hangs after `PATIENCE`. Processes of a
group trust each other: neither channel nor sums are encrypted. Knows nothing of models.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.util import find_spec

import structlog
import torch
import torch.distributed as dist

from outrider_runtime.errors import StartupError
from outrider_runtime.model.device import resolve_device

PATIENCE = timedelta(minutes=2)
"""How long a process may keep the others waiting; the longest forward is well below."""

_SIGN_OF_LIFE_SECONDS = 5.0
_LOADING = timedelta(hours=2)
"""How long ranks may be apart while they read weights."""

_HEADER = 8
_FIRST = 4096
"""Bytes that every message begins with: a decoding round fits, and is sent in one go."""

_SIGN_OF_LIFE = b""
_END = b"\0"

_log = structlog.get_logger(__name__)


class RanksLost(BaseException):
    """The group cannot go on. Not an `Exception`: no request is at fault, and none can go on."""


class RankGroup:
    """The group, as seen by one of its processes. `join` makes it.

    Args:
        rank: which one this is; 0 leads.
        size: processes in all.
        device: where this one computes.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self._channel = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._sending = threading.Lock()
        self._closing = threading.Event()

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def lead(self, on_loss: Callable[[RanksLost], None]) -> None:
        """Lets the others hear from here from now on. Rank 0 alone.

        Args:
            on_loss: called, in a thread of its own, if one of them is gone.
        """

        def give_signs_of_life() -> None:
            while not self._closing.wait(_SIGN_OF_LIFE_SECONDS):
                try:
                    self._send(_SIGN_OF_LIFE)
                except RanksLost as lost:
                    _log.error("ranks_lost", rank=self.rank, why=str(lost))
                    on_loss(lost)
                    return

        threading.Thread(target=give_signs_of_life, name="outrider-ranks", daemon=True).start()

    def tell(self, step: bytes) -> None:
        """Sends what all are to run next. Rank 0 alone.

        Raises:
            RanksLost: one of them is gone.
        """
        self._send(step)

    def hear(self) -> bytes | None:
        """What to run next; None: rank 0 has ended. The others alone.

        Raises:
            RanksLost: rank 0 is gone, or one of the others.
        """
        while (message := self._receive()) == _SIGN_OF_LIFE:
            pass
        return None if message == _END else message

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Around what all run together: who fails there is out of step with the others for good.

        Raises:
            RanksLost: in place of any other error.
        """
        try:
            yield
        except Exception as fault:
            raise RanksLost(
                f"rank {self.rank} of {self.size} failed in a forward, or another did: {fault}"
            ) from fault

    def gather_heads(self, own: torch.Tensor) -> torch.Tensor:
        """Joins what each rank has of its heads: [own heads, ...] -> [heads, ...]."""
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    def close(self) -> None:
        """Tells the others that it was that, if they can still be told. Rank 0 alone."""
        self._closing.set()
        # Whoever died in the middle of sending holds the lock.
        if self._sending.acquire(timeout=1.0):
            self._sending.release()
            with suppress(RanksLost):
                self._send(_END)

    def _send(self, message: bytes) -> None:
        with self._sending:
            framed = len(message).to_bytes(_HEADER, "little") + message
            self._pass_on(bytearray(framed[:_FIRST].ljust(_FIRST, b"\0")))
            if len(framed) > _FIRST:
                self._pass_on(bytearray(framed[_FIRST:]))

    def _receive(self) -> bytes:
        first = bytearray(_FIRST)
        self._pass_on(first)
        size = _HEADER + int.from_bytes(first[:_HEADER], "little")
        rest = bytearray(max(0, size - _FIRST))
        if rest:
            self._pass_on(rest)
        return bytes(first[_HEADER:size] + rest)

    def _pass_on(self, buffer: bytearray) -> None:
        """Rank 0's bytes to all."""
        try:
            dist.broadcast(torch.frombuffer(buffer, dtype=torch.uint8), 0, group=self._channel)
        except RuntimeError as fault:
            raise RanksLost(f"rank {self.rank} of {self.size} lost another: {fault}") from fault


def join(size: int, *, device: str) -> RankGroup | None:
    """Joins the processes that torchrun started.

    Args:
        size: how many share the model.
        device: auto, cpu or cuda.

    Returns:
        The group; None where one process has the whole model.

    Raises:
        StartupError: there are not as many processes, or they do not find each other.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size != started:
        raise StartupError(
            f"--tensor-parallel-size {size} takes as many processes, and there "
            f"{'is 1' if started == 1 else f'are {started}'}: start it with torchrun "
            f"--nproc-per-node {size} -m outrider_target"
        )
    if size == 1:
        return None
    if find_spec("accelerate") is None:
        raise StartupError(
            "transformers shares out models with the help of accelerate, which is not installed: "
            "pip install 'outrider[tensor-parallel]'"
        )
    where = _own_device(device)
    try:
        dist.init_process_group(
            "gloo" if where.type == "cpu" else "nccl",
            timeout=_LOADING,
            device_id=None if where.type == "cpu" else where,
        )
        group = RankGroup(dist.get_rank(), size, where)
    except (RuntimeError, ValueError) as error:
        raise StartupError(f"the {size} processes do not find each other: {error}") from error
    _log.info("ranks_joined", rank=group.rank, size=size, device=str(where))
    return group


def _own_device(name: str) -> torch.device:
    """The GPU of this process, or the CPU."""
    where = resolve_device(name)
    if where.index is not None:
        raise StartupError(f"--device {name}: each of several ranks takes a GPU of its own")
    if where.type == "cpu":
        if torch.accelerator.is_available():
            raise StartupError(
                "transformers shares out a model over the GPUs where there are any: leave out "
                "--device, or hide them (CUDA_VISIBLE_DEVICES=)"
            )
        return where
    where = resolve_device(f"{where.type}:{dist.get_node_local_rank()}")
    torch.cuda.set_device(where)
    return where
