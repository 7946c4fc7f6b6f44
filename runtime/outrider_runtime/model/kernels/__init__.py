"""Kernels of our own for the CPU: matrix products and attention of few rows.

Compiled from the C++ beside this file by the machine's own compiler, for its own processor. Whoever
has no compiler runs on torch's kernels: slower, above all when drafts are verified.
"""
