"""Measurements on the shipped pair. Every figure is a ratio of interleaved runs in one run."""
