"""What an operator may want of the compiler. Needs no torch."""

from __future__ import annotations

from enum import StrEnum


class Compile(StrEnum):
    """Whether a model that runs on the CPU kernels is compiled as a whole."""

    AUTO = "auto"
    """In another process, once the service has something to do; Python runs the model until then.
    What was compiled once is there at the next start."""
    ON = "on"
    """Before the service starts, or it does not start."""
    OFF = "off"
    """Python runs the model."""
