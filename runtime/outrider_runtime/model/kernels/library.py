"""Compiles the kernels once per machine and version, keeps the result, and loads it.

Where they were compiled ahead of time (`ahead.py`), no compiler is needed. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import structlog
import torch

from outrider_runtime.model.kernels import ahead

_log = structlog.get_logger(__name__)

COMPILERS = ("g++", "clang++", "c++")
"""The first of them that is there is taken."""
_COMPILE_SECONDS = 300.0
_FLAGS = (
    "-std=c++20",
    "-O3",
    # A product and a sum are one instruction, in every loop: else equal rows might round apart.
    "-ffp-contract=fast",
    "-fPIC",
    "-fopenmp",
    "-c",
)


class KernelsUnavailable(Exception):
    """There are no kernels on this machine; says why in one line."""


@cache
def load() -> Path:
    """Makes `torch.ops.outrider` work in this process.

    Returns:
        The library; its name changes with all that it was made of.

    Raises:
        KernelsUnavailable: no compiler, or it fails.
    """
    try:
        library = ahead.find() or _library(compiler())
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]  # torch's own
        return library
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelsUnavailable(f"they cannot be compiled: {_first_line(error)}") from error


def compile_ahead() -> list[Path]:
    """Compiles the kernels for all levels of this architecture, for machines without a compiler.

    Returns:
        The libraries.

    Raises:
        KernelsUnavailable: No compiler, or it fails.
    """
    found = compiler()
    ahead.FOLDER.mkdir(exist_ok=True)
    libraries = []
    try:
        for level in ahead.LEVELS:
            with tempfile.TemporaryDirectory(dir=ahead.FOLDER) as workplace:
                finished = _compile(found, Path(workplace), processor=level.name)
                libraries.append(finished.replace(ahead.place(level)))
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelsUnavailable(f"they cannot be compiled: {_first_line(error)}") from error
    return libraries


def compiler() -> str:
    """Returns the C++ compiler.

    Raises:
        KernelsUnavailable: there is none.
    """
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise KernelsUnavailable(f"there is no C++ compiler ({', '.join(COMPILERS)})")
    return found


def _library(compiler: str) -> Path:
    """The compiled library, from the cache if it is there."""
    folder = cache_folder("kernels")
    library = folder / f"{_fingerprint(compiler)}.so"
    if library.exists():
        return library
    _log.info("kernels_compiling", folder=str(folder))
    # Under a name of its own, then renamed: whoever starts beside us sees all of it or nothing.
    with tempfile.TemporaryDirectory(dir=folder) as workplace:
        finished = _compile(compiler, Path(workplace), processor="native")
        finished.replace(library)
    return library


def _compile(compiler: str, workplace: Path, *, processor: str) -> Path:
    torch_folder = Path(torch.__file__).parent
    include = torch_folder / "include"
    flags = [*_FLAGS, f"-march={processor}"]
    flags += [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    sources = [str(Path(__file__).parent / name) for name in ahead.SOURCES]
    _run([compiler, *flags, *sources], workplace)
    # Linked without -fopenmp: its functions are those of the library that torch brings along, whose
    # number of threads torch sets.
    objects = [str(workplace / Path(name).with_suffix(".o")) for name in ahead.SOURCES]
    finished = workplace / "kernels.so"
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    _run([compiler, "-shared", *objects, "-o", str(finished), *libraries], workplace)
    return finished


def _run(command: list[str], workplace: Path) -> None:
    subprocess.run(
        command,
        cwd=workplace,
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_COMPILE_SECONDS,
    )


def _fingerprint(compiler: str) -> str:
    """Changes with everything that the compiled library depends on."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True)
    parts = [version.stdout, torch.__version__.encode(), processor(), repr(_FLAGS).encode()]
    parts += map(ahead.source, ahead.SOURCES + ahead.HEADERS)
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


def _first_line(error: Exception) -> str:
    """What the compiler complained of first, or the error itself."""
    if isinstance(error, subprocess.CalledProcessError):
        said: list[str] = error.stderr.splitlines()
        return ([line for line in said if "error" in line] or said or [str(error)])[0]
    return str(error)
