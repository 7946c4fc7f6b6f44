"""`python -m outrider_runtime.model.compiled RECIPE PACKAGE`: what `workshop` starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from outrider_runtime.model.compiled.compiler import compile_forward
from outrider_runtime.model.compiled.recipe import Recipe


def main() -> None:
    """Compile; whoever serves beside it goes first."""
    os.nice(19)
    torch.set_num_threads(1)
    recipe, package = map(Path, sys.argv[1:])
    compile_forward(Recipe.read(recipe), package)


if __name__ == "__main__":
    main()
