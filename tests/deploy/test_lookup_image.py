"""What goes into the image of the drafter without a model: no torch, and it serves all the same."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import grpc
import pytest
from deploy.deploy_files import ROOT, dockerfile_stages
from grpc_health.v1 import health_pb2, health_pb2_grpc
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAVY = {"torch", "transformers", "numpy", "safetensors", "tokenizers"}
PATIENCE = 60


def needed(extras: set[str]) -> set[str]:
    """All distributions that ours needs with some extras, as they are installed here."""
    found: set[str] = set()
    waiting = [("outrider", frozenset(extras))]
    seen = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        found.add(name)
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in wanted or {""}):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def extras() -> list[str]:
    """Those of our distribution that the stage installs."""
    (install,) = [
        run for run in dockerfile_stages()["build-draft-lookup"].of("RUN") if "install" in run
    ]
    (found,) = re.findall(r"\.\[([\w,]+)\]", install)
    return str(found).split(",")


def test_what_the_image_installs_needs_no_torch() -> None:
    found = needed(set(extras()))
    assert {"grpcio", "prometheus-client", "structlog"} <= found
    assert not found & HEAVY
    assert needed({"service", "model"}) >= HEAVY, "this would notice"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the stage makes it: a virtual environment under the constraints."""
    folder = tmp_path_factory.mktemp("image") / "outrider"
    venv.create(folder, with_pip=True)
    install = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    install += ["--constraint", str(ROOT / "constraints.txt"), f"{ROOT}[{','.join(extras())}]"]
    run = subprocess.run(install, capture_output=True, text=True, timeout=600)
    if run.returncode and "No matching distribution" in run.stderr:
        pytest.skip("there is no package index here")
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def address(environment: Path) -> Iterator[str]:
    """A drafter of that environment."""
    command: list[str | Path] = [
        environment / "bin" / "outrider-draft",
        "--method",
        "prompt-lookup",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        (found,) = re.findall(r"127\.0\.0\.1:\d+", process.stdout.readline())
        yield found
        process.terminate()
        assert process.wait(PATIENCE) == 0


@pytest.mark.slow
class TestInstalled:
    def test_the_environment_has_nothing_heavy(self, environment: Path) -> None:
        listing = subprocess.run(
            [environment / "bin" / "pip", "list", "--format", "freeze"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        installed = {canonicalize_name(line.partition("==")[0]) for line in listing.split()}
        assert "outrider" in installed
        assert not installed & HEAVY
        assert installed - {"pip", "setuptools"} <= needed(set(extras())) | {"outrider"}

    def test_it_is_a_small_part_of_the_environment_with_a_model(self, environment: Path) -> None:
        def size(folder: Path) -> int:
            return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

        small = size(environment)
        assert small < 150 * 2**20
        assert small < size(Path(sys.prefix)) / 5

    def test_it_serves_and_keeps_to_the_protocol(self, address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            asked = health_pb2.HealthCheckRequest(service="outrider.v1.DraftService")
            assert health.Check(asked, timeout=PATIENCE).status == 1
        kit = Path(sys.prefix, "bin", "outrider-conformance")
        run = subprocess.run([kit, address], capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stdout + run.stderr
