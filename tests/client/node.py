"""Runs the Node client, which knows the contract by its .proto files alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[1] / "node_client"
TIMEOUT = 60.0


class NodeRun(NamedTuple):
    """How the Node client ended."""

    code: int
    lines: list[dict[str, Any]]
    errors: str


def run_node_client(address: str, *arguments: str) -> NodeRun:
    """Runs `client.mjs ADDRESS ARGUMENTS...`: (stream | cancel) PROMPT [N]."""
    return run_node(FOLDER / "client.mjs", address, *arguments)


def run_node(script: Path, *arguments: str) -> NodeRun:
    """Runs a script with node; each line it prints is JSON."""
    node = shutil.which("node")
    assert node is not None, "the tests of other languages need node"
    assert (FOLDER / "node_modules").is_dir(), "run `make node-peers` first"
    done = subprocess.run(
        [node, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return NodeRun(done.returncode, lines, done.stderr)
