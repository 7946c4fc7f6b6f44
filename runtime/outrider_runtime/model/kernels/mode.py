"""What an operator may want of the kernels. Needs no torch."""

from __future__ import annotations

from enum import StrEnum


class CpuKernels(StrEnum):
    """Whether a float32 model on the CPU runs on kernels of our own."""

    AUTO = "auto"
    """Where they can be compiled."""
    ON = "on"
    """Or the service does not start."""
    OFF = "off"
    """On torch's."""
