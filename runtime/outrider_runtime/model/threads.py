"""How many threads a forward on the CPU takes when nobody says.

More threads than cores wait for each other by spinning, which is worst where two services share a
machine: a forward then takes several times as long as with one thread. Knows nothing of models.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_ENVIRONMENT = "OMP_NUM_THREADS"  # who sets it has chosen


def choose(threads: int | None, *, neighbours: int = 0) -> None:
    """Sets the threads of this process's forwards.

    Args:
        threads: as many; None: a thread for each core that the process may use, less those of its
            neighbours, but two where there are two cores, unless the environment says how many.
        neighbours: threads of services that work beside it on the same machine.
    """
    if threads is None and _ENVIRONMENT not in os.environ:
        cores = usable_cores()
        # A drafter mostly works while the target waits for it: two cores are better shared.
        threads = max(cores - neighbours, min(cores, 2))
    if threads is not None:
        torch.set_num_threads(threads)


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by a container's quota (cgroup v2)."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # no such file, no such limit ("max")
        quota, period = map(int, _QUOTA.read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def on_this_machine(addresses: Iterable[str]) -> int:
    """How many of some addresses, HOST:PORT or dns:///HOST:PORT, are the machine's own."""
    return sum(map(_is_loopback, addresses))


def _is_loopback(address: str) -> bool:
    host = address.removeprefix("dns:///").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
