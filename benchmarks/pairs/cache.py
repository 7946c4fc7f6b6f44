"""Where grown and converted models are kept between runs: made once, found by what they are of."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def cached(recipe: Sequence[object], model: Path, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills from a model; only made where it is not there.

    Args:
        recipe: All that decides the result, beside the model.
        model: The folder of the model.
        make: Fills an empty folder.
    """
    home = Path.home() / ".cache" / "outrider" / "benchmarks"
    folder = home / f"{model.name}-{recipe[0]}-{_fingerprint(recipe, model)}"
    if not folder.exists():
        home.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=home))
        try:
            make(unfinished)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished)
            raise
    return folder


def _fingerprint(recipe: Sequence[object], model: Path) -> str:
    """Weights by size and age: reading gigabytes would take longer than it is worth."""
    weights = (model / "model.safetensors").stat()
    digest = hashlib.sha256(repr(list(recipe)).encode())
    digest.update(f"{model.name} {weights.st_size} {weights.st_mtime_ns}".encode())
    digest.update((model / "config.json").read_bytes())
    return digest.hexdigest()[:12]
