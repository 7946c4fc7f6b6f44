"""Remake everything: the tokenizer, the target, the draft and the prompts; then measure them."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "outrider_demo"


def run(script: str, *arguments: str | Path) -> None:
    """Run one of the scripts beside this one."""
    subprocess.run([sys.executable, HERE / script, *arguments], check=True)


def main() -> None:
    """Run every step in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, default=PACKAGE, help="the folder to write into")
    parser.add_argument("--target-minutes", default="84")
    parser.add_argument("--draft-minutes", default="17.5", help="of the draft on the text alone")
    parser.add_argument("--distil-minutes", default="19", help="of the draft against the target")
    parser.add_argument("--threads", default="1")
    parser.add_argument(
        "--compile", action="store_true", help="the target's steps; needs a C++ compiler"
    )
    options = parser.parse_args()
    models: Path = options.package / "models"
    target, draft = models / "target", models / "draft"
    compiled = ["--compile"] if options.compile else []

    run("tokenizer.py", target, draft)
    for name, out, minutes, more in (
        ("target", target, options.target_minutes, compiled),
        ("draft", draft, options.draft_minutes, []),
        ("draft", draft, options.distil_minutes, ["--init", draft, "--teacher", target]),
    ):
        places = ["--out", out, "--tokenizer", target, "--minutes", minutes]
        run("train.py", name, *places, *more, "--threads", options.threads)
    run("prompts.py", target, options.package / "prompts.json")
    run("evaluate.py", models)


if __name__ == "__main__":
    main()
