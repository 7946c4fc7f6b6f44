"""Checks `deploy/` and says what is wrong with it; exits with 1 if anything is."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tools.deployment import schemas
from tools.deployment.render import KUBERNETES, OVERLAYS, render
from tools.deployment.rules import RULES


def main() -> None:
    """Check everything."""
    found = [*_of_images(), *(problem for overlay in OVERLAYS for problem in _of_overlay(overlay))]
    for problem in found:
        print(problem)
    if found:
        sys.exit(1)
    print(f"deploy: {', '.join(overlay.name for overlay in OVERLAYS)}: no problems")


def _of_overlay(overlay: Path) -> Iterator[str]:
    try:
        objects = render(overlay)
    except ValueError as error:
        yield str(error)
        return
    for one in objects:
        for problem in schemas.problems(one):
            yield f"{overlay.name}: {one['kind']} {one['metadata']['name']}: {problem}"
    for rule in RULES:
        yield from (f"{overlay.name}: {problem}" for problem in rule(objects))


def _of_images() -> Iterator[str]:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    dockerfile = KUBERNETES.parent / "Dockerfile"
    run = subprocess.run([hadolint, "--no-color", dockerfile], capture_output=True, text=True)
    yield from (run.stdout + run.stderr).splitlines()
    if run.returncode and not run.stdout + run.stderr:
        yield f"hadolint ended with {run.returncode}"


if __name__ == "__main__":
    main()
