"""What an operator may want of the compiler. Needs no torch."""

from __future__ import annotations

from enum import StrEnum


class Compile(StrEnum):
    """Whether forwards run as one program rather than in Python.

    On the CPU kernels that is a library (`compiled`), on a GPU a graph for each of a few numbers of
    rows (`graphed`).
    """

    AUTO = "auto"
    """A library in another process, once the service has something to do; Python runs the model
    until then. What was compiled once is there at the next start. Graphs at load, which takes
    seconds; where there can be none, Python runs the model."""
    ON = "on"
    """Either before the service starts, or it does not start."""
    OFF = "off"
    """Python runs the model."""
