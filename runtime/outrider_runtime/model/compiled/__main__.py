"""`python -m outrider_runtime.model.compiled [--step-back] RECIPE PACKAGE`, as `workshop` does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from outrider_runtime.model.compiled.compiler import compile_forward
from outrider_runtime.model.compiled.recipe import Recipe
from outrider_runtime.model.compiled.workshop import STEP_BACK, end_with_the_workshop


def main() -> None:
    """Compile."""
    end_with_the_workshop()
    if STEP_BACK in sys.argv:
        os.nice(19)
    torch.set_num_threads(1)
    recipe, package = map(Path, sys.argv[-2:])
    compile_forward(Recipe.read(recipe), package)


if __name__ == "__main__":
    main()
