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


class Quantization(StrEnum):
    """How the weights of a model's linear layers are held, whatever they were loaded as."""

    NONE = "none"
    """As loaded."""
    INT8 = "int8"
    """As integers of 8 bits with a scale for each output; only on the kernels. Another model."""
