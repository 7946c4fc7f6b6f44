"""Compiles the kernels once per machine and version, keeps the result, and loads it.

Where they were compiled ahead of time (`ahead.py`), no compiler is needed. Knows nothing of models.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch

from outrider_runtime import cpp
from outrider_runtime.cpp import CannotCompile
from outrider_runtime.model.kernels import ahead

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
        library = ahead.find() or compiled()
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]  # torch's own
        return library
    except (CannotCompile, OSError) as error:
        raise KernelsUnavailable(str(error)) from error


def compiled() -> Path:
    """The library for this machine's processor, compiled unless that was done before.

    Raises:
        CannotCompile: no compiler, or it fails.
    """
    parts = [torch.__version__.encode(), cpp.processor(), repr(_FLAGS).encode()]
    parts += map(ahead.source, ahead.SOURCES + ahead.HEADERS)

    def make(compiler: str, workplace: Path) -> Path:
        return _compile(compiler, workplace, processor="native")

    return cpp.kept("kernels", parts, make)


def compile_ahead() -> list[Path]:
    """Compiles the kernels for all levels of this architecture, for machines without a compiler.

    Returns:
        The libraries.

    Raises:
        CannotCompile: No compiler, or it fails.
    """
    compiler = cpp.compiler()
    ahead.FOLDER.mkdir(exist_ok=True)
    libraries = []
    for level in ahead.LEVELS:
        with tempfile.TemporaryDirectory(dir=ahead.FOLDER) as workplace:
            finished = _compile(compiler, Path(workplace), processor=level.name)
            libraries.append(finished.replace(ahead.place(level)))
    return libraries


def _compile(compiler: str, workplace: Path, *, processor: str) -> Path:
    torch_folder = Path(torch.__file__).parent
    include = torch_folder / "include"
    flags = [*_FLAGS, f"-march={processor}"]
    flags += [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    sources = [str(Path(__file__).parent / name) for name in ahead.SOURCES]
    cpp.run([compiler, *flags, *sources], workplace)
    # Linked without -fopenmp: its functions are those of the library that torch brings along, whose
    # number of threads torch sets.
    objects = [str(workplace / Path(name).with_suffix(".o")) for name in ahead.SOURCES]
    finished = workplace / "kernels.so"
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    cpp.run([compiler, "-shared", *objects, "-o", str(finished), *libraries], workplace)
    return finished
