"""Whether this machine can have the kernels at all."""

from __future__ import annotations

import shutil

import pytest
from outrider_runtime.model.kernels import library

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, library.COMPILERS)), reason="there is no C++ compiler here"
)
