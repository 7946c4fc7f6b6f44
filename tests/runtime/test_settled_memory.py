"""Memory of services: small pages gathered into huge ones, and what loading left behind frozen."""

from __future__ import annotations

import gc
import mmap
import re
import subprocess
import sys
from pathlib import Path

import pytest
from outrider_runtime import settled_memory

MIB = 1 << 20
GRANTED = Path("/sys/kernel/mm/transparent_hugepage/enabled")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def test_what_belongs_to_the_process_alone() -> None:
    maps = (
        "00400000-00c00000 rw-p 00000000 08:01 77  /usr/bin/python3\n"
        "01000000-01a00000 rw-p 00000000 00:00 0                    [heap]\n"
        "7f0000100000-7f0000900000 rw-p 00000000 00:00 0 \n"
        "7f0001000000-7f0001400000 r--p 00000000 00:00 0 \n"
        "7f0002000000-7f0002400000 rw-s 00000000 00:01 9  /dev/shm/x\n"
        "7f0003000000-7f00031ff000 rw-p 00000000 00:00 0 \n"
        "7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0                    [stack]\n"
    )
    # Whole huge pages only, the smallest area first.
    assert settled_memory._own_memory(maps) == [
        range(0x7F0000200000, 0x7F0000800000),
        range(0x1000000, 0x1A00000),
    ]


@linux_only
def test_small_pages_become_huge_ones() -> None:
    if not GRANTED.exists() or "[never]" in GRANTED.read_text():
        pytest.skip("this system grants no huge pages")
    memory = mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(bytes(range(256)) * (8 * MIB // 256))
    areas = settled_memory._own_memory(settled_memory._MAPS.read_text())
    before = _huge_kib()
    gathered = settled_memory._gather(areas)
    if not gathered:
        pytest.skip("this kernel gathers no pages (before Linux 6.1)")
    assert _huge_kib() > before
    assert memory[:512] == bytes(range(256)) * 2


@linux_only
def test_no_more_is_gathered_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled_memory, "_MOST_BYTES", 0)
    areas = settled_memory._own_memory(settled_memory._MAPS.read_text())
    assert settled_memory._gather(areas) == 0


def test_the_collector_passes_over_what_was_there() -> None:
    script = (
        "import gc; from outrider_runtime import settled_memory as m\n"
        "m.settle(); first = gc.get_freeze_count(); m.settle()\n"
        "print(first, gc.get_freeze_count(), gc.isenabled())"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second, enabled = out.stdout.splitlines()[-1].split()
    assert int(first) > 1000
    assert second == first  # once a process
    assert enabled == "True"
    assert gc.isenabled()


def _huge_kib() -> int:
    found = re.search(r"AnonHugePages:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text())
    assert found is not None
    return int(found[1])
