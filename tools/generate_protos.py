"""Generate protos/gen from the contract, or check (`--check`) that it is up to date."""

from __future__ import annotations

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = PROTOS / "gen"


def generate(out: Path) -> None:
    """Write message classes, service stubs and their types into `out`."""
    sources = sorted(str(p.relative_to(PROTOS)) for p in (PROTOS / "outrider").rglob("*.proto"))
    plugins = Path(sys.executable).parent
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I.",
            f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *sources,
        ],
        cwd=PROTOS,
        check=True,
    )
    for package in (out / "outrider", out / "outrider" / "v1"):
        (package / "__init__.py").touch()
        (package / "py.typed").touch()


def differences(left: Path, right: Path) -> list[str]:
    """Relative names of the files that differ between two trees."""
    names = {
        str(path.relative_to(tree))
        for tree in (left, right)
        for path in tree.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    same, _, _ = filecmp.cmpfiles(left, right, names, shallow=False)
    return sorted(names - set(same))


def main() -> int:
    if "--check" not in sys.argv:
        generate(GENERATED)
        return 0
    with tempfile.TemporaryDirectory() as fresh:
        generate(Path(fresh))
        if stale := differences(GENERATED, Path(fresh)):
            print("protos/gen is not what the contract generates; run `make proto`:", *stale)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
