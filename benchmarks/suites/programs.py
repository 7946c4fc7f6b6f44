"""Suites that are programs of their own: `link` and `overhead`. They print their own tables."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.suites.options import Options


def link(options: Options) -> Iterator[dict[str, Any]]:
    """`benchmarks.links`: pacings of drafts over lines that take their time."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "links.json")
        arguments = ["--json", str(found), "--repetitions", str(options.repetitions)]
        if options.prompts is not None:
            arguments += ["--prompts", str(options.prompts)]
        if options.new_tokens is not None:
            arguments += ["--new-tokens", str(options.new_tokens)]
        subprocess.run([sys.executable, "-m", "benchmarks.links", *arguments], check=True)
        yield {"program": "links", "found": json.loads(found.read_text())}


def overhead(options: Options) -> Iterator[dict[str, Any]]:
    """`benchmarks.overhead`: time of a round outside the forward pass, a line of JSON a setting."""
    command = [sys.executable, "-m", "benchmarks.overhead"]
    if options.streams is not None:
        command += ["--streams", *map(str, options.streams)]
    for _ in range(options.repetitions):
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(ran.stdout, end="")
        lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
        yield {"program": "overhead", "found": [json.loads(line) for line in lines]}
