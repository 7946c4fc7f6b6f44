"""C++ of our own, compiled by the machine's own compiler once and kept in the user's cache.

Knows nothing of what is compiled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)

COMPILERS = ("g++", "clang++", "c++")
"""The first of them that is there is taken."""
_COMPILE_SECONDS = 300.0


class CannotCompile(Exception):
    """There is no compiler on this machine, or it fails; says why in one line."""


def compiler() -> str:
    """Returns the C++ compiler.

    Raises:
        CannotCompile: There is none.
    """
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise CannotCompile(f"there is no C++ compiler ({', '.join(COMPILERS)})")
    return found


def run(command: Sequence[str], workplace: Path) -> bytes:
    """Have a compiler do something in a folder; returns what it prints.

    Raises:
        CannotCompile: It fails, or takes minutes.
    """
    try:
        finished = subprocess.run(
            command, cwd=workplace, check=True, capture_output=True, timeout=_COMPILE_SECONDS
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").splitlines()
        complaint = ([line for line in said if "error" in line] or said or [str(error)])[0]
        raise CannotCompile(f"it cannot be compiled: {complaint}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotCompile(f"it cannot be compiled: {error}") from error
    return finished.stdout


def kept(name: str, parts: Iterable[bytes], make: Callable[[str, Path], Path]) -> Path:
    """A library made here, from the user's cache if it is there.

    Args:
        name: Folder in the cache.
        parts: What it is made of, beside the compiler.
        make: Makes it, given the compiler and an empty folder; returns the file.

    Returns:
        The library; its name changes with all that it was made of.

    Raises:
        CannotCompile: No compiler, or it fails.
    """
    found = compiler()
    try:
        folder = cache_folder(name)
        print_of_parts = digest(run([found, "--version"], folder), *parts)
        library = folder / f"{print_of_parts}.so"
        if library.exists():
            return library
        _log.info("compiling", what=name, folder=str(folder))
        # Under a name of its own, then renamed: whoever starts beside us sees all of it or nothing.
        with tempfile.TemporaryDirectory(dir=folder) as workplace:
            return make(found, Path(workplace)).replace(library)
    except OSError as error:
        raise CannotCompile(f"it cannot be compiled: {error}") from error


def digest(*parts: bytes) -> str:
    """A name that changes with each of the parts."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def processor() -> bytes:
    """What the processor can do."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    return b"\n".join(
        sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))})
    )


@cache
def cache_folder(name: str) -> Path:
    """The user's cache; where that cannot be written, a folder for this process."""
    try:
        folder = Path.home() / ".cache" / "outrider" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.mkdtemp(prefix=f"outrider-{name}-"))
