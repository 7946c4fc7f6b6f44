"""Looks the pinned dependencies up in the advisories of known vulnerabilities.

Fails on a vulnerability. Where the advisories cannot be reached, it says so and does not fail:
what is checked must not depend on a network.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
TIMEOUT = 120


def main() -> int:
    if importlib.util.find_spec("pip_audit") is None:
        print("pip-audit is not installed: `make setup` does that", file=sys.stderr)
        return 1
    command = [
        sys.executable, "-m", "pip_audit", "--format", "json", "--no-deps", "--disable-pip",
        "--progress-spinner", "off", "--requirement", str(CONSTRAINTS),
    ]  # fmt: skip
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        found: list[dict[str, Any]] = json.loads(run.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        print("dependencies not audited: the advisories do not answer")
        return 0
    except (json.JSONDecodeError, KeyError):
        *_, why = run.stderr.strip().splitlines() or ["no reason given"]
        print(f"dependencies not audited: {why}")
        return 0
    audited = [each for each in found if "skip_reason" not in each]
    vulnerable = [each for each in audited if each["vulns"]]
    for each in vulnerable:
        names = ", ".join(vulnerability["id"] for vulnerability in each["vulns"])
        print(f"{each['name']} {each['version']}: {names}")
    print(f"{len(audited)} of {len(found)} dependencies audited, {len(vulnerable)} vulnerable")
    if not audited:
        print("the package index in use knows no advisories")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
