"""What a process does with its memory once it has loaded all that it will keep.

A forward reads all weights. In pages of 4 KiB those of a small model already are more than the
processor keeps addresses of, so that it forgets those of everything else as well, and the round
between two forwards begins by looking up where the interpreter's objects are. In pages of 2 MiB
neither happens. Knows nothing of models.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)

_HUGE_PAGE = 2 << 20
_MOST_BYTES = 1 << 30
"""Gathering copies, about half a GiB a second. What large models take was huge from the start."""
_HUGEPAGE, _COLLAPSE = 14, 25  # of madvise(2); the second since Linux 6.1
_MAPS = Path("/proc/self/maps")
_OWN_MEMORY = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) rw.p \S+ \S+ 0\s*(?:\[heap\])?\n"
)


def prefer_huge_pages() -> None:
    """Makes torch ask for huge pages whenever it takes 2 MiB or more.

    To be called before tensors are made: torch looks once. Who has set its variable has chosen.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@cache
def settle() -> None:
    """Gathers small pages into huge ones, and takes what is there from the garbage collector.

    Once a process. Where the system grants no huge pages, they stay small.
    """
    gc.collect()
    # Else a full collection, in some round or other, goes through every object of every library.
    gc.freeze()
    if sys.platform == "linux":
        gathered = _gather(_own_memory(_MAPS.read_text()))
        _log.debug("memory_settled", huge_page_mib=gathered >> 20)


def _own_memory(maps: str) -> list[range]:
    """Writable private memory of no file, as far as huge pages fit in, the smallest first."""
    areas = [
        range(-(-int(area["start"], 16) // _HUGE_PAGE), int(area["end"], 16) // _HUGE_PAGE)
        for area in _OWN_MEMORY.finditer(maps)
    ]
    return sorted(
        (range(_HUGE_PAGE * area.start, _HUGE_PAGE * area.stop) for area in areas if area), key=len
    )


def _gather(areas: Iterable[range]) -> int:
    """Gathers page by page, up to the limit; returns the bytes that are huge by then."""
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    gathered = 0
    for area in areas:
        advise(area.start, len(area), _HUGEPAGE)
        for page in area[::_HUGE_PAGE]:
            if gathered >= _MOST_BYTES:
                return gathered
            # Refused where nothing is there yet, or something must not move: that stays as it is.
            gathered += _HUGE_PAGE * (advise(page, _HUGE_PAGE, _COLLAPSE) == 0)
    return gathered
