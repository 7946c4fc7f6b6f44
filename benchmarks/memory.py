"""Memory of processes, from /proc."""

from __future__ import annotations

import re
from pathlib import Path


def peak_megabytes(pid: int) -> float:
    """The most memory that a process ever had in use (VmHWM); 0 where the system does not tell."""
    return _megabytes(pid, "VmHWM")


def used_megabytes(pid: int) -> float:
    """The memory it has in use now (VmRSS)."""
    return _megabytes(pid, "VmRSS")


def _megabytes(pid: int, field: str) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.M)
    return int(found[1]) / 1024 if found else 0.0
