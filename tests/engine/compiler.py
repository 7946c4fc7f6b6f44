"""Whether this machine can have the kernels, and the suffix tree compiled, at all."""

from __future__ import annotations

import shutil

import pytest
from outrider_runtime import cpp

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, cpp.COMPILERS)), reason="there is no C++ compiler here"
)
