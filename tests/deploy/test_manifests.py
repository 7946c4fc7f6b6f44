"""The Kubernetes manifests are valid, agree with themselves, and with the commands they run."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest
from deploy.deploy_files import flags_of, manifests, options

MANIFESTS = manifests()
# From the first release that knows the sleep action of preStop without being asked to.
VERSIONS = ("1.30", "1.36")
SERVICES = {
    "outrider-target": "outrider.v1.GenerationService",
    "outrider-draft": "outrider.v1.DraftService",
}


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [m for m in MANIFESTS if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = named("Deployment", name)["spec"]["template"]["spec"]
    return spec


def container(name: str) -> dict[str, Any]:
    (only,) = pod(name)["containers"]
    found: dict[str, Any] = only
    return found


def grpc_port(name: str) -> int:
    (port,) = [p["containerPort"] for p in container(name)["ports"] if p["name"] == "grpc"]
    return int(port)


both = pytest.mark.parametrize("name", sorted(SERVICES))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "manifest", MANIFESTS, ids=lambda m: f"{m['kind']}-{m['metadata']['name']}"
)
def test_every_object_is_strictly_valid(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_notice_a_wrong_word_and_a_wrong_type() -> None:
    for change in ({"grpcs": {"port": 1}}, {"grpc": {"port": "http"}}):
        wrong = copy.deepcopy(named("Deployment", "outrider-target"))
        wrong["spec"]["template"]["spec"]["containers"][0]["startupProbe"] = change
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_everything_is_there_once_and_in_the_namespace() -> None:
    keys = [(m["kind"], m["metadata"]["name"]) for m in MANIFESTS]
    kinds = ("Deployment", "Service", "PodDisruptionBudget")
    assert sorted(keys) == sorted(
        [("Namespace", "outrider"), *((kind, name) for kind in kinds for name in SERVICES)]
    )
    assert all(
        m["metadata"].get("namespace") == "outrider" for m in MANIFESTS if m["kind"] != "Namespace"
    )


@both
def test_probes_are_grpc_for_the_service_on_the_port_that_is_served(name: str) -> None:
    served = options(container(name)["args"])["--port"]
    assert served == [str(grpc_port(name))]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(name)[probe]["grpc"] == {
            "port": grpc_port(name),
            "service": SERVICES[name],
        }


@both
def test_the_container_listens_to_more_than_itself(name: str) -> None:
    given = options(container(name)["args"])
    assert given["--host"] == ["0.0.0.0"]
    assert "--insecure" in given or "--ssl-certfile" in given


@both
def test_every_flag_is_one_the_command_knows(name: str) -> None:
    assert container(name)["image"].partition(":")[0] == name
    given = options(container(name)["args"])
    assert given.keys() <= flags_of(name)
    assert len(given) > 3


@both
def test_every_selector_matches_the_pods_labels(name: str) -> None:
    deployment = named("Deployment", name)
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        named("Service", name)["spec"]["selector"],
        named("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels


@both
def test_the_service_leads_to_the_grpc_port(name: str) -> None:
    (port,) = named("Service", name)["spec"]["ports"]
    assert port["targetPort"] == "grpc"
    assert port["port"] == grpc_port(name)


def test_the_drafters_service_is_headless_and_is_what_the_target_dials() -> None:
    service = named("Service", "outrider-draft")
    assert service["spec"]["clusterIP"] == "None"
    assert named("Deployment", "outrider-draft")["spec"]["replicas"] == 2
    (address,) = options(container("outrider-target")["args"])["--draft"]
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"
    assert address == f"dns:///{host}:{grpc_port('outrider-draft')}"


def test_the_target_has_a_gpu_and_the_drafter_needs_none() -> None:
    assert container("outrider-target")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in container("outrider-draft")["resources"]["limits"]


@both
def test_resources_are_requested_and_memory_is_not_overcommitted(name: str) -> None:
    resources = container(name)["resources"]
    assert resources["requests"]["cpu"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


@both
def test_the_pod_is_restricted(name: str) -> None:
    assert pod(name)["securityContext"]["runAsNonRoot"] is True
    assert pod(name)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod(name)["automountServiceAccountToken"] is False
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@both
def test_the_model_is_mounted_read_only_where_the_command_looks(name: str) -> None:
    mounts = {m["mountPath"]: m for m in container(name)["volumeMounts"]}
    (model,) = options(container(name)["args"])["--model"]
    assert model.startswith("/models/")
    assert mounts["/models"]["readOnly"] is True
    volumes = {v["name"] for v in pod(name)["volumes"]}
    assert {m["name"] for m in mounts.values()} == volumes
    assert "/tmp" in mounts  # the one place that may be written to


@both
def test_kubernetes_waits_longer_than_the_service_takes_to_drain(name: str) -> None:
    (grace,) = options(container(name)["args"])["--grace"]
    pause = container(name)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(name)["terminationGracePeriodSeconds"] > float(grace) + pause


def test_the_drafter_has_a_thread_per_requested_cpu() -> None:
    (threads,) = options(container("outrider-draft")["args"])["--threads"]
    assert container("outrider-draft")["resources"]["requests"]["cpu"] == threads
