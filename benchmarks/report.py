"""A run as JSON: what was measured, where, with what. One dated file for each run of a suite."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = (
    "torch",
    "transformers",
    "openvino-genai",
    "onnxruntime-genai",
    "llama-cpp-python",
)


def report(suite: str, cells: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """All that is worth keeping of a run."""
    return {
        "suite": suite,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "machine": {"cores": os.cpu_count(), "processor": _processor()},
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "cells": cells,
    }


def write(result: Mapping[str, Any], folder: Path) -> Path:
    """Write it under a name that sorts by date within its suite."""
    folder.mkdir(parents=True, exist_ok=True)
    moment = datetime.fromisoformat(result["date"])
    path = folder / f"{result['suite']}-{moment:%Y-%m-%d-%H%M%S}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def dated(suite: str, folder: Path) -> list[Path]:
    """The files of a suite, the newest last."""
    # The date begins with a digit; another suite's name may begin with this one's.
    return sorted(folder.glob(f"{suite}-[0-9]*.json"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
