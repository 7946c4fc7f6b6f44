"""The overlays keep to the schemas and the rules, and the rules notice when they do not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # no stubs among the dependencies

from tools.deployment import __main__ as command
from tools.deployment import schemas
from tools.deployment.render import KUBERNETES, OVERLAYS, Object, of_kind, render
from tools.deployment.rules import RULES

RENDERED = {overlay.name: render(overlay) for overlay in OVERLAYS}


def problems(objects: list[Object], *, valid: list[Object] | None = None) -> list[str]:
    """Those of all objects together; those known to be valid are not held to the schemas again."""
    return [
        *(
            problem
            for found in objects
            if found not in (valid or ())
            for problem in schemas.problems(found)
        ),
        *(problem for rule in RULES for problem in rule(objects)),
    ]


@pytest.mark.parametrize("name", sorted(RENDERED))
def test_an_overlay_has_no_problems(name: str) -> None:
    assert problems(RENDERED[name]) == []


def test_each_component_is_in_some_overlay() -> None:
    used = {
        (overlay / component).resolve().name
        for overlay in OVERLAYS
        for component in yaml.safe_load((overlay / "kustomization.yaml").read_text())["components"]
    }
    assert used == {folder.name for folder in (KUBERNETES / "components").iterdir()}


# --- the rules


def pod(objects: list[Object], name: str) -> Any:
    return of_kind(objects, "Deployment")[name]["spec"]["template"]["spec"]


def main(objects: list[Object], name: str) -> Any:
    return pod(objects, name)["containers"][0]


def argument(old: str, new: str) -> Callable[[list[Object]], None]:
    def change(objects: list[Object]) -> None:
        arguments = main(objects, "outrider-target")["args"]
        arguments[arguments.index(old)] = new

    return change


def in_target(**changes: Any) -> Callable[[list[Object]], None]:
    return lambda objects: main(objects, "outrider-target").update(changes)


def in_target_pod(**changes: Any) -> Callable[[list[Object]], None]:
    return lambda objects: pod(objects, "outrider-target").update(changes)


def in_policy(**changes: Any) -> Callable[[list[Object]], None]:
    return lambda objects: of_kind(objects, "NetworkPolicy")["outrider-draft"]["spec"].update(
        changes
    )


def in_port(**changes: Any) -> Callable[[list[Object]], None]:
    return lambda objects: of_kind(objects, "Service")["outrider-target"]["spec"]["ports"][
        0
    ].update(changes)


def in_scaler(path: str, value: Any) -> Callable[[list[Object]], None]:
    def change(objects: list[Object]) -> None:
        at: Any = of_kind(objects, "HorizontalPodAutoscaler")["outrider-target"]["spec"]
        *words, last = path.split(".")
        for word in words:
            at = at[int(word) if word.isdigit() else word]
        at[last] = value

    return change


def without(kind: str, name: str) -> Callable[[list[Object]], None]:
    def change(objects: list[Object]) -> None:
        objects[:] = [
            found for found in objects if (found["kind"], found["metadata"]["name"]) != (kind, name)
        ]

    return change


def with_replicas(objects: list[Object]) -> None:
    of_kind(objects, "Deployment")["outrider-target"]["spec"]["replicas"] = 1


def capable(objects: list[Object]) -> None:
    context = main(objects, "outrider-target")["securityContext"]
    context["capabilities"] = {"drop": ["ALL"], "add": ["NET_ADMIN"]}


def in_the_clear(objects: list[Object]) -> None:
    container = main(objects, "outrider-target")
    container["env"] = [e for e in container["env"] if not e["name"].startswith("OUTRIDER_SSL")]
    container["args"].append("--insecure")


def probed_behind_tls(objects: list[Object]) -> None:
    main(objects, "outrider-target")["readinessProbe"]["grpc"]["port"] = 50051


def unknown_variable(objects: list[Object]) -> None:
    main(objects, "outrider-target")["env"].append({"name": "OUTRIDER_MAX_SEQS", "value": "3"})


def host_path(objects: list[Object]) -> None:
    volume = pod(objects, "outrider-target")["volumes"][0]
    volume.clear()
    volume.update({"name": "certificates", "hostPath": {"path": "/"}})


def unwatched(objects: list[Object]) -> None:
    of_kind(objects, "ServiceMonitor")["outrider"]["spec"]["endpoints"][0]["port"] = "http"


def misspelt_monitor(objects: list[Object]) -> None:
    of_kind(objects, "ServiceMonitor")["outrider"]["spec"]["endpoints"][0]["prt"] = "metrics"


CLIENTS = [{"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": "grpc"}]}]
OPEN = [{"ports": [{"protocol": "TCP", "port": "grpc"}]}]

BROKEN: dict[str, tuple[Callable[[list[Object]], None], str]] = {
    "a word of no schema": (in_target(startupProb={}), "startupProb"),
    "a type of no schema": (in_target(tty="yes"), "'yes' is not of type"),
    "a word the operator does not know": (misspelt_monitor, "operator does not know"),
    "root": (in_target_pod(securityContext={"runAsNonRoot": False}), "may run as root"),
    "the node's network": (in_target_pod(hostNetwork=True), "shares hostNetwork"),
    "the node's files": (host_path, "restricted pods may not have"),
    "a token": (in_target_pod(automountServiceAccountToken=True), "gets a token"),
    "service links": (in_target_pod(enableServiceLinks=True), "OUTRIDER_* variables"),
    "no spread": (in_target_pod(topologySpreadConstraints=[]), "is not spread"),
    "a capability": (capable, "keeps capabilities"),
    "no security context": (in_target(securityContext={}), "may gain privileges"),
    "the latest image": (in_target(image="outrider-target:latest"), "not version"),
    "no tag": (in_target(image="outrider-target"), "does not build"),
    "another image": (in_target(image="nginx:0.1.0"), "does not build"),
    "no resources": (in_target(resources={}), "requests no CPU"),
    "no probe": (in_target(livenessProbe={}), "livenessProbe does not ask"),
    "a probe that TLS keeps out": (probed_behind_tls, "the one without TLS is 50060"),
    "a flag that is not there": (argument("--grace=120", "--grase=120"), "No such option"),
    "a value of no sense": (argument("--grace=120", "--grace=long"), "Invalid value for"),
    "a variable that is not read": (unknown_variable, "reads no OUTRIDER_MAX_SEQS"),
    "another port": (argument("--port=50051", "--port=50053"), "listens on 50053"),
    "a model nowhere": (argument("--model=/models/$(MODEL)", "--model=/m"), "nothing is mounted"),
    "no keys": (argument("--api-keys-file=/keys/callers", "--log-level=info"), "asks for no keys"),
    "too little time to drain": (argument("--grace=120", "--grace=200"), "before its drain"),
    "no pause": (in_target(lifecycle={}), "does not wait for balancers"),
    "plaintext to one side": (in_the_clear, "speaks kubernetes.io/h2c"),
    "a drafter nowhere": (
        argument(
            "--draft=dns:///outrider-draft.outrider.svc.cluster.local:50052",
            "--draft=dns:///drafts.outrider.svc.cluster.local:50052",
        ),
        "which is no Service here",
    ),
    "a Service to nowhere": (in_port(targetPort="http2"), "leads to a port http2"),
    "another protocol": (in_port(appProtocol="kubernetes.io/h2c"), "speaks https"),
    "no Service": (without("Service", "outrider-draft"), "Services ['outrider-target']"),
    "no policy": (without("NetworkPolicy", "outrider-nothing-else"), "no NetworkPolicy forbids"),
    "drafters open to clients": (in_policy(ingress=CLIENTS), "others than targets"),
    "drafters open to all": (in_policy(ingress=OPEN), "others than targets"),
    "drafters open to none": (in_policy(ingress=[]), "cannot be reached"),
    "nothing scraped": (unwatched, "no port http"),
    "a metric that is not exported": (
        in_scaler("metrics.0.pods.metric.name", "outrider_queue_length"),
        "which is no gauge",
    ),
    "a counter to scale by": (
        in_scaler("metrics.0.pods.metric.name", "outrider_generation_tokens_total"),
        "which is no gauge",
    ),
    "a single pod": (in_scaler("minReplicas", 1), "a single pod"),
    "replicas and an autoscaler": (with_replicas, "either replicas or an autoscaler"),
    "no budget": (without("PodDisruptionBudget", "outrider-draft"), "0 disruption budgets"),
    "a claim that is not there": (without("PersistentVolumeClaim", "outrider-models"), "not there"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_noticed(name: str) -> None:
    break_it, said = BROKEN[name]
    objects = copy.deepcopy(RENDERED["gpu-pool"])
    break_it(objects)
    assert said in "\n".join(problems(objects, valid=RENDERED["gpu-pool"]))


def test_what_kustomize_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]\n")
    with pytest.raises(ValueError, match=r"missing\.yaml"):
        render(tmp_path)


# --- the command


def test_the_command_prints_what_is_wrong_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "kubernetes" / "broken"
    overlay.mkdir(parents=True)
    (overlay / "kustomization.yaml").write_text("resources: [map.yaml]\n")
    (overlay / "map.yaml").write_text(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: one}, dta: {}}\n"
    )
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /\n")
    monkeypatch.setattr(command, "OVERLAYS", (overlay,))
    monkeypatch.setattr(command, "KUBERNETES", overlay.parent)
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 1
    said = capsys.readouterr().out
    assert "broken: ConfigMap one" in said
    assert "'dta' was unexpected" in said
    assert "broken: no NetworkPolicy forbids" in said
    assert "DL3007" in said, "the linter's word for latest"
