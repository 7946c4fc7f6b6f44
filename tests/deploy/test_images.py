"""Dockerfile and compose file fit each other, the distribution and the commands."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
from deploy.deploy_files import DEPLOY, ROOT, dockerfile_stages, documents, options

from tools.deployment import services

STAGES = dockerfile_stages()
(COMPOSE,) = documents(DEPLOY / "compose.yaml")
(LOOKUP,) = documents(DEPLOY / "compose.lookup.yaml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {
    "target": "'.[service,model,structured,tensor-parallel,tracing]'",
    "draft": "'.[service,model,tracing]'",
    "draft-lookup": "'.[service,tracing]'",
}
PORTS = {"target": "50051", "draft": "50052", "draft-lookup": "50052"}

images = pytest.mark.parametrize("stage", sorted(EXTRAS))
with_models = pytest.mark.parametrize("stage", ["target", "draft"])


def ancestry(stage: str) -> list[str]:
    names = [stage]
    while (base := STAGES[names[-1]].base) in STAGES:
        names.append(base)
    return names


def commands_of(stage: str, keyword: str = "RUN") -> list[str]:
    return [text for name in ancestry(f"build-{stage}") for text in STAGES[name].of(keyword)]


def service(name: str) -> dict[str, Any]:
    """As compose sees it; of the drafter without a model, what its file changes."""
    if name == "draft-lookup":
        base, changes = COMPOSE["services"]["draft"], LOOKUP["services"]["draft"]
        return {**base, **changes, "build": {**base["build"], **changes["build"]}}
    found: dict[str, Any] = COMPOSE["services"][name]
    return found


def settings_of(stage: str, arguments: list[str]) -> dict[str, Any]:
    return dict(services.settings(services.BY_IMAGE[f"outrider-{stage}"], arguments, {}))


@images
def test_every_image_descends_from_one_slim_python_pinned_by_its_digest(stage: str) -> None:
    # The same on both sides: the environment that is copied points to it.
    bases = {STAGES[ancestry(name)[-1]].base for name in (stage, f"build-{stage}")}
    (base,) = bases
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base)


@images
def test_no_image_runs_as_root(stage: str) -> None:
    (user,) = [user for name in ancestry(stage) for user in STAGES[name].of("USER")]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)


@images
def test_everything_is_installed_under_the_constraints(stage: str) -> None:
    installs = [found for run in commands_of(stage) for found in re.findall(r"pip install.*", run)]
    assert len(installs) == (1 if stage == "draft-lookup" else 2)
    assert all("--constraint constraints.txt" in command for command in installs)
    assert re.search(r"^torch==[\d.]+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@images
def test_an_image_has_the_extras_it_needs_and_they_exist(stage: str) -> None:
    assert any(EXTRAS[stage] in command for command in commands_of(stage))
    known = PROJECT["project"]["optional-dependencies"].keys()
    assert set(re.findall(r"[\w-]+", EXTRAS[stage])) <= known


def test_the_drafter_without_a_model_is_built_without_torch() -> None:
    assert "torch" not in " ".join(commands_of("draft-lookup"))


@with_models
def test_kernels_are_compiled_into_the_images_that_run_models(stage: str) -> None:
    text = " ".join(commands_of(stage))
    assert "python -m outrider_runtime.model.kernels --for-others" in text


@images
def test_the_suffix_tree_is_compiled_into_every_image(stage: str) -> None:
    text = " ".join(commands_of(stage))
    assert "python -m outrider_runtime.suffix_tree --for-others" in text
    # Of a Debian of one release: what it links with is in the image as well.
    assert re.search(r"apt-get install --yes --no-install-recommends g\+\+=[\w:.-]+ ", text)


@images
def test_only_the_environment_of_its_own_build_goes_into_an_image(stage: str) -> None:
    assert STAGES[stage].of("COPY") == [f"--from=build-{stage} /opt/outrider /opt/outrider"]
    assert not [run for name in ancestry(stage) for run in STAGES[name].of("RUN") if "apt" in run]


@images
def test_the_entry_point_is_a_command_of_the_distribution_and_knows_its_flags(stage: str) -> None:
    (entry,) = STAGES[stage].of("ENTRYPOINT")
    (arguments,) = STAGES[stage].of("CMD")
    (command,) = json.loads(entry)
    assert command == services.BY_IMAGE[f"outrider-{stage}"].command
    assert command in PROJECT["project"]["scripts"]
    assert str(settings_of(stage, json.loads(arguments))["port"]) == PORTS[stage]
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


@images
def test_compose_builds_the_stage_and_calls_its_command_rightly(stage: str) -> None:
    assert service(stage)["image"] == f"outrider-{stage}:{PROJECT['project']['version']}"
    build = service(stage)["build"]
    assert build["target"] == stage
    assert stage in STAGES
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    told = settings_of(stage, service(stage)["command"])
    assert str(told["port"]) == PORTS[stage]
    assert told["host"] == "0.0.0.0"


@with_models
def test_the_build_arguments_of_compose_are_declared(stage: str) -> None:
    declared = {text.split("=")[0] for text in commands_of(stage, "ARG")}
    assert service(stage)["build"]["args"].keys() <= declared


def test_composes_target_dials_composes_drafter() -> None:
    (address,) = options(service("target")["command"])["--draft"]
    name, _, port = address.partition(":")
    assert name in COMPOSE["services"]
    assert options(service(name)["command"])["--port"] == [port]


@with_models
def test_compose_mounts_a_model_of_this_repository_read_only_where_the_command_looks(
    stage: str,
) -> None:
    (volume,) = service(stage)["volumes"]
    match = re.fullmatch(r"\$\{(\w+):-([^}]+)\}:(/[^:]+):ro", volume)
    assert match
    assert (DEPLOY / match[2]).is_dir()
    assert options(service(stage)["command"])["--model"] == [match[3]]


@images
def test_compose_waits_longer_than_the_service_takes_to_drain(stage: str) -> None:
    (grace,) = options(service(stage)["command"])["--grace"]
    assert float(service(stage)["stop_grace_period"].removesuffix("s")) > float(grace)


@images
def test_compose_takes_away_what_no_service_needs(stage: str) -> None:
    assert service(stage)["read_only"] is True
    assert service(stage)["cap_drop"] == ["ALL"]
    assert service(stage)["tmpfs"] == ["/tmp"]


def test_only_the_target_is_published_and_to_this_machine_alone() -> None:
    assert "ports" not in service("draft")
    assert "ports" not in service("draft-lookup")
    assert service("target")["ports"] == ["127.0.0.1:50051:50051"]


def test_the_gpu_overlay_changes_services_that_exist() -> None:
    (overlay,) = documents(DEPLOY / "compose.gpu.yaml")
    assert overlay["services"].keys() == {"target"}
    devices = overlay["services"]["target"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
