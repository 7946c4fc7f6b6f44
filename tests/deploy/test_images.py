"""Dockerfile and compose file fit each other, the distribution and the commands."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
from deploy.deploy_files import DEPLOY, ROOT, dockerfile_stages, documents, flags_of, options

STAGES = dockerfile_stages()
(COMPOSE,) = documents(DEPLOY / "compose.yaml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMMANDS = {"target": "outrider-target", "draft": "outrider-draft"}
PORTS = {"target": "50051", "draft": "50052"}

both = pytest.mark.parametrize("stage", sorted(COMMANDS))


def ancestry(stage: str) -> list[str]:
    names = [stage]
    while (base := STAGES[names[-1]].base) in STAGES:
        names.append(base)
    return names


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = COMPOSE["services"][name]
    return found


@both
def test_every_image_descends_from_one_slim_python(stage: str) -> None:
    for name in (stage, f"build-{stage}"):
        # The same on both sides: the environment that is copied points to it.
        assert STAGES[ancestry(name)[-1]].base == "python:3.11-slim-bookworm"


@both
def test_no_image_runs_as_root(stage: str) -> None:
    (user,) = [user for name in ancestry(stage) for user in STAGES[name].of("USER")]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)


@both
def test_everything_is_installed_under_the_constraints(stage: str) -> None:
    installs = [
        command
        for name in (stage, *ancestry(f"build-{stage}"))
        for run in STAGES[name].of("RUN")
        for command in re.findall(r"pip install[^;]*", run)
    ]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in command for command in installs)
    assert re.search(r"^torch==[\d.]+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@both
def test_only_the_environment_of_its_own_build_goes_into_an_image(stage: str) -> None:
    assert STAGES[stage].of("COPY") == [f"--from=build-{stage} /opt/outrider /opt/outrider"]


def test_the_extras_that_are_installed_exist() -> None:
    known = PROJECT["project"]["optional-dependencies"].keys()
    assert {"service", "model", "structured"} <= known
    assert "pip install --constraint constraints.txt '.[service,model,structured]'" in "".join(
        STAGES["build-target"].of("RUN")
    )
    assert "DRAFT_EXTRAS=service,model" in STAGES["build-draft"].of("ARG")


@both
def test_the_entry_point_is_a_command_of_the_distribution_and_knows_its_flags(stage: str) -> None:
    (entry,) = STAGES[stage].of("ENTRYPOINT")
    (arguments,) = STAGES[stage].of("CMD")
    (command,) = json.loads(entry)
    assert command == COMMANDS[stage]
    assert command in PROJECT["project"]["scripts"]
    given = options(json.loads(arguments))
    assert given.keys() <= flags_of(command)
    assert given["--port"] == [PORTS[stage]]
    assert PORTS[stage] in STAGES[stage].of("EXPOSE")[0].split()


def test_the_build_context_has_what_the_distribution_is_built_from_and_little_else() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {package.split("/")[0] for package in packages}
    assert kept == needed | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in kept)


@both
def test_compose_builds_the_stage_and_calls_its_command_rightly(stage: str) -> None:
    build = service(stage)["build"]
    assert build["target"] in STAGES
    assert build["target"] == stage
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    declared = {arg.split("=")[0] for arg in STAGES[f"build-{stage}"].of("ARG")}
    assert build.get("args", {}).keys() <= declared
    given = options(service(stage)["command"])
    assert given.keys() <= flags_of(COMMANDS[stage])
    assert given["--port"] == [PORTS[stage]]
    assert given["--host"] == ["0.0.0.0"]


def test_composes_target_dials_composes_drafter() -> None:
    (address,) = options(service("target")["command"])["--draft"]
    name, _, port = address.partition(":")
    assert name in COMPOSE["services"]
    assert options(service(name)["command"])["--port"] == [port]


@both
def test_compose_mounts_a_model_of_this_repository_read_only_where_the_command_looks(
    stage: str,
) -> None:
    (volume,) = service(stage)["volumes"]
    match = re.fullmatch(r"\$\{(\w+):-([^}]+)\}:(/[^:]+):ro", volume)
    assert match
    assert (DEPLOY / match[2]).is_dir()
    assert options(service(stage)["command"])["--model"] == [match[3]]


@both
def test_compose_waits_longer_than_the_service_takes_to_drain(stage: str) -> None:
    (grace,) = options(service(stage)["command"])["--grace"]
    assert float(service(stage)["stop_grace_period"].removesuffix("s")) > float(grace)


@both
def test_compose_takes_away_what_no_service_needs(stage: str) -> None:
    assert service(stage)["read_only"] is True
    assert service(stage)["cap_drop"] == ["ALL"]
    assert service(stage)["tmpfs"] == ["/tmp"]


def test_only_the_target_is_published_and_to_this_machine_alone() -> None:
    assert "ports" not in service("draft")
    assert service("target")["ports"] == ["127.0.0.1:50051:50051"]


def test_the_gpu_overlay_changes_services_that_exist() -> None:
    (overlay,) = documents(DEPLOY / "compose.gpu.yaml")
    assert overlay["services"].keys() == {"target"}
    devices = overlay["services"]["target"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
