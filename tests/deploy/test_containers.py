"""The containers of the overlays, run as they are written, in network namespaces.

Their commands, flags, environment, mounts and users are the manifests'; so are the probes that are
asked, and the time they have to drain.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from deploy.cluster import CLIENT, STRANGER, Cluster, Pod, copy_with_checksums
from deploy.deploy_files import ROOT
from deploy.wire import why_not

from tools.deployment.render import KUBERNETES, Object, of_kind, render

if reason := why_not():
    pytest.skip(reason, allow_module_level=True)

# Mostly of waiting as long as a cluster would.
pytestmark = pytest.mark.timeout(300)

KEY, DRAFT_KEY = "open-sesame-open", "between-these-two"
TARGET, DRAFT, OTHER_DRAFT = "10.77.0.11", "10.77.0.21", "10.77.0.22"
MODELS = ROOT / "demo" / "outrider_demo" / "models"
PROMPT = "    def readline(self, size=-1):\n        if size == 0:\n            return "
SINGLE_NODE = KUBERNETES / "overlays" / "single-node"
SUFFIX = ".outrider.svc.cluster.local"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for compiled in ("outrider_runtime.model.kernels", "outrider_runtime.suffix_tree"):
        # For the pods to find: each would compile it for itself.
        subprocess.run([sys.executable, "-m", compiled], check=True)
    folder = tmp_path_factory.mktemp("models")
    folder.chmod(0o755)  # pods read it as another user
    copy_with_checksums(MODELS / "target", folder / "target")
    copy_with_checksums(MODELS / "draft", folder / "draft")
    copy_with_checksums(MODELS / "draft", folder / "draft-2")
    return folder


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secrets(authority: trustme.CA) -> Mapping[str, Mapping[str, bytes]]:
    found: dict[str, Mapping[str, bytes]] = {
        "outrider-callers": {"callers": f"someone {KEY}\n".encode()},
        "outrider-draft-keys": {
            "targets": f"targets {DRAFT_KEY}\n".encode(),
            "target": DRAFT_KEY.encode(),
        },
    }
    for name in ("outrider-target", "outrider-draft"):
        certificate = authority.issue_cert(f"{name}{SUFFIX}")
        found[f"{name}-tls"] = {
            "tls.crt": b"".join(blob.bytes() for blob in certificate.cert_chain_pems),
            "tls.key": certificate.private_key_pem.bytes(),
            "ca.crt": authority.cert_pem.bytes(),
        }
    return found


def started(cluster: Cluster, objects: list[Object]) -> tuple[Pod, Pod]:
    """A target and a drafter, ready."""
    target = cluster.add("outrider-target", objects, address=TARGET)
    draft = cluster.add("outrider-draft", objects, address=DRAFT)
    for pod in (draft, target):
        cluster.publish(pod)
        pod.start()
    for pod in (draft, target):
        pod.wait_until_started()
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
    return target, draft


class Client:
    """Calls a target through the cluster's node."""

    def __init__(self, cluster: Cluster, authority: Path | None = None) -> None:
        self._cluster = cluster
        self._target = {"address": f"{TARGET}:50051", "key": KEY}
        if authority is not None:
            self._target["authority"] = str(authority)

    def ask(self, do: str = "generate", *, tokens: int = 48, **target: Any) -> Any:
        return self._cluster.has(
            CLIENT, do, prompt=PROMPT, tokens=tokens, **(self._target | target)
        )

    def links(self) -> dict[str, str]:
        found: dict[str, str] = self._cluster.has(CLIENT, "links", **self._target)
        return found

    def finish(self, number: int) -> Any:
        return self._cluster.has(CLIENT, "finish", number=number)

    def wait_for_drafts(self, of: str = DRAFT) -> Any:
        """Asks until drafts of one address were accepted; the answer."""
        deadline = time.monotonic() + 60
        while True:
            answer = self.ask()
            if answer["accepted"] and f"{of}:50052" in self.links():
                return answer
            assert time.monotonic() < deadline, answer
            time.sleep(0.3)


class Encrypted(NamedTuple):
    """The overlay with mutual TLS, a client of it, and a text as it should always be."""

    cluster: Cluster
    objects: list[Object]
    target: Pod
    draft: Pod
    client: Client
    text: str


@pytest.fixture(scope="module")
def encrypted(
    tmp_path_factory: pytest.TempPathFactory,
    models: Path,
    secrets: Mapping[str, Mapping[str, bytes]],
    authority: trustme.CA,
) -> Iterator[Encrypted]:
    folder = tmp_path_factory.mktemp("encrypted")
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    objects = render(KUBERNETES / "overlays" / "gpu-target-cpu-drafters")
    with Cluster(folder, models, secrets) as cluster:
        target, draft = started(cluster, objects)
        client = Client(cluster, folder / "authority.pem")
        text = client.wait_for_drafts()["text"]
        assert text
        yield Encrypted(cluster, objects, target, draft, client, text)


def test_a_client_needs_a_key(encrypted: Encrypted) -> None:
    assert encrypted.client.ask(key="a-guess-of-sixteen") == {"error": "AuthenticationError"}
    assert encrypted.client.ask(key=None) == {"error": "AuthenticationError"}
    assert encrypted.client.ask()["text"] == encrypted.text


def test_the_processes_are_as_restricted_as_the_manifests_say(encrypted: Encrypted) -> None:
    for pod in (encrypted.target, encrypted.draft):
        assert pod.running is not None
        status = dict(line.split(":", 1) for line in pod.running.of_process("status").splitlines())
        assert set(status["Uid"].split()) == {str(pod.spec["securityContext"]["runAsUser"])}
        assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"].strip() == "1"
        mounts = [line.split() for line in pod.running.of_process("mounts").splitlines()]
        options = {mount[1]: mount[3].split(",")[0] for mount in mounts}
        assert options["/"] == "ro"
        declared = {m["mountPath"]: m.get("readOnly", False) for m in pod.container["volumeMounts"]}
        assert {place: options[place] == "ro" for place in declared} == declared


def test_only_targets_reach_drafters_and_only_clients_targets(encrypted: Encrypted) -> None:
    """By the overlay's own policies. A refused probe would be answered; a dropped one is not."""

    def reaches(who: str, address: str, port: int) -> bool:
        told: bool = encrypted.cluster.has(who, "connect", address=address, port=port, timeout=0.5)
        return told

    assert encrypted.client.links(), "the target reaches its drafter"
    assert reaches(CLIENT, TARGET, 50051)
    for who, address, port in (
        (CLIENT, DRAFT, 50052),
        (CLIENT, TARGET, 9090),
        (CLIENT, TARGET, 50060),
        (STRANGER, TARGET, 50051),
        (STRANGER, DRAFT, 50052),
    ):
        assert not reaches(who, address, port), (who, address, port)


def test_drafts_cross_a_slow_line(encrypted: Encrypted) -> None:
    quick = encrypted.client.ask()
    encrypted.cluster.wire.delay(TARGET, DRAFT, 0.01)
    try:
        slow = encrypted.client.ask()
    finally:
        encrypted.cluster.wire.delay(TARGET, DRAFT, 0.0)
    assert slow["text"] == quick["text"] == encrypted.text
    assert slow["accepted"] > 0
    # Each round waits for the line there and back.
    assert slow["seconds"] > slow["rounds"] * 0.02
    assert slow["seconds"] > quick["seconds"]


def test_a_cut_line_costs_drafts_alone_and_they_come_back_with_it(encrypted: Encrypted) -> None:
    wire = encrypted.cluster.wire
    wire.cut(TARGET, DRAFT)
    try:
        while (answer := encrypted.client.ask())["accepted"]:
            assert answer["text"] == encrypted.text
        assert answer["text"] == encrypted.text
        assert encrypted.target.probe("readinessProbe"), "a target is ready without a drafter"
    finally:
        wire.mend(TARGET, DRAFT)
    assert encrypted.client.wait_for_drafts()["text"] == encrypted.text


def test_another_draft_model_is_rolled_out_beside_a_running_target(encrypted: Encrypted) -> None:
    """As the rollout does: a new pod, ready, in the name; the old one out of it, then ended."""
    target, cluster = encrypted.target, encrypted.cluster
    assert target.running is not None
    began = len(target.running.log)
    objects = [with_draft_model(found, "draft-2") for found in encrypted.objects]
    new = cluster.add("outrider-draft", objects, address=OTHER_DRAFT)
    new.start()
    new.wait_until_started()
    cluster.publish(new)
    encrypted.client.wait_for_drafts(of=OTHER_DRAFT)
    running = encrypted.client.ask("begin", tokens=600)
    cluster.withdraw(encrypted.draft)
    status, seconds = encrypted.draft.terminate()
    assert status == 0
    assert seconds < encrypted.draft.spec["terminationGracePeriodSeconds"]
    assert encrypted.client.finish(running)["text"].startswith(encrypted.text)
    assert encrypted.client.wait_for_drafts(of=OTHER_DRAFT)["text"] == encrypted.text
    assert list(encrypted.client.links()) == [f"{OTHER_DRAFT}:50052"]
    assert target.running.running
    assert '"level": "error"' not in target.running.log[began:]


def with_draft_model(found: Object, name: str) -> Object:
    if found["kind"] == "ConfigMap" and found["metadata"]["name"].startswith("outrider-draft"):
        return {**found, "data": {"MODEL": name}}
    return found


def test_a_terminated_target_finishes_what_runs_within_its_grace_period(
    encrypted: Encrypted,
) -> None:
    """The last of this cluster."""
    target, client = encrypted.target, encrypted.client
    running = client.ask("begin", tokens=900)
    with ThreadPoolExecutor() as pool:
        ending = pool.submit(target.terminate)
        while target.probe("readinessProbe"):
            time.sleep(0.1)
        assert client.ask() == {"error": "UnavailableError"}
        finished = client.finish(running)
        status, seconds = ending.result()
    assert finished["text"].startswith(encrypted.text)
    assert status == 0
    assert seconds < target.spec["terminationGracePeriodSeconds"]


def test_a_model_that_is_not_what_its_checksums_say_is_not_served(
    tmp_path: Path, models: Path, secrets: Mapping[str, Mapping[str, bytes]]
) -> None:
    broken = tmp_path / "models"
    shutil.copytree(models / "draft", broken / "draft")
    broken.chmod(0o755)
    with (broken / "draft" / "config.json").open("a") as file:
        file.write(" ")
    with Cluster(tmp_path, broken, secrets) as cluster:
        draft = cluster.add("outrider-draft", render(SINGLE_NODE), address=DRAFT)
        with pytest.raises(AssertionError, match=r"config\.json: FAILED"):
            draft.start()


@pytest.mark.parametrize(
    ("overlay", "kind"),
    [
        pytest.param("single-node", "model", marks=pytest.mark.slow),
        ("lookup-drafters", "suffix"),
    ],
)
def test_the_other_overlays_start_draft_and_drain(
    tmp_path: Path,
    models: Path,
    secrets: Mapping[str, Mapping[str, bytes]],
    authority: trustme.CA,
    overlay: str,
    kind: str,
) -> None:
    objects = render(KUBERNETES / "overlays" / overlay)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    encrypted = any("tls" in secret for secret in mounted_secrets(objects))
    with Cluster(tmp_path, models, secrets) as cluster:
        target, draft = started(cluster, objects)
        client = Client(cluster, tmp_path / "authority.pem" if encrypted else None)
        client.wait_for_drafts()
        assert client.links() == {f"{DRAFT}:50052": kind}
        assert draft.running is not None
        assert ("libtorch" in draft.running.of_process("maps")) == (kind == "model")
        with ThreadPoolExecutor() as pool:
            for pod, (status, seconds) in zip(
                (target, draft), pool.map(Pod.terminate, (target, draft)), strict=True
            ):
                assert status == 0
                assert seconds < pod.spec["terminationGracePeriodSeconds"]


def mounted_secrets(objects: list[Object]) -> set[str]:
    return {
        volume["secret"]["secretName"]
        for deployment in of_kind(objects, "Deployment").values()
        for volume in deployment["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
