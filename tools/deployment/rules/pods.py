"""Pods: the restricted profile of the Pod Security Standards, images, resources, volumes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.deployment.render import Object, of_kind
from tools.deployment.services import BY_IMAGE

_PROJECT = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())
VERSION: str = _PROJECT["project"]["version"]

SECRETS: Mapping[str, frozenset[str]] = {
    "outrider-callers": frozenset(("callers",)),
    "outrider-draft-keys": frozenset(("targets", "target")),
    "outrider-target-tls": frozenset(("tls.crt", "tls.key", "ca.crt")),
    "outrider-draft-tls": frozenset(("tls.crt", "tls.key", "ca.crt")),
}
"""What an operator brings, as docs/deployment.md says."""

# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
_VOLUMES = frozenset(
    ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
     "projected", "secret")
)  # fmt: skip
_OF_THE_HOST = ("hostNetwork", "hostPID", "hostIPC", "hostUsers")


def problems(objects: list[Object]) -> Iterator[str]:
    """What is wrong with the pods."""
    maps = of_kind(objects, "ConfigMap").keys()
    claims = of_kind(objects, "PersistentVolumeClaim").keys()
    for name, deployment in of_kind(objects, "Deployment").items():
        pod = deployment["spec"]["template"]["spec"]
        for problem in (*_of_pod(pod), *_of_volumes(pod), *_of_references(pod, maps, claims)):
            yield f"{name}: {problem}"
        for container in all_containers(pod):
            for problem in (*_of_container(container), *_of_resources(container)):
                yield f"{name}/{container['name']}: {problem}"


def all_containers(pod: Object) -> list[Object]:
    """Those of the init steps as well."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def _of_pod(pod: Object) -> Iterator[str]:
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "has no seccomp profile"
    if context.get("sysctls"):
        yield "sets sysctls"
    if shared := [word for word in _OF_THE_HOST if pod.get(word)]:
        yield f"shares {', '.join(shared)} with its node"
    if pod.get("automountServiceAccountToken") is not False:
        yield "gets a token for the cluster that it does not need"
    if pod.get("enableServiceLinks") is not False:
        yield "gets OUTRIDER_* variables from Services that happen to be called so"
    if not pod.get("topologySpreadConstraints"):
        yield "is not spread over nodes"


def _of_container(container: Object) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "may write to its root file system"
    capabilities = context.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield "keeps capabilities"
    if context.get("privileged") or context.get("procMount") or context.get("runAsUser") == 0:
        yield "is privileged"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "takes a port of its node"
    name, _, tag = container["image"].rpartition(":")
    if name.rpartition("/")[2] not in BY_IMAGE:
        yield f"runs {container['image']}, which deploy/Dockerfile does not build"
    if tag != VERSION:
        yield f"runs {container['image']}, not version {VERSION}"


def _of_resources(container: Object) -> Iterator[str]:
    requests = container.get("resources", {}).get("requests", {})
    limits = container.get("resources", {}).get("limits", {})
    if "cpu" not in requests:
        yield "requests no CPU"
    if "memory" not in limits or requests.get("memory") != limits["memory"]:
        yield "has a memory limit other than its request: it may be killed for others"
    if "cpu" in limits:
        yield "has a CPU limit: throttling adds tenths of a second to single tokens"


def _of_volumes(pod: Object) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    mounted = set()
    for container in all_containers(pod):
        mounts = container.get("volumeMounts", ())
        mounted |= {mount["name"] for mount in mounts}
        paths = [mount["mountPath"] for mount in mounts]
        if len(paths) != len(set(paths)):
            yield f"{container['name']} mounts two volumes in one place"
    if mounted != volumes.keys():
        yield f"volumes and mounts differ: {sorted(mounted ^ volumes.keys())}"
    for name, volume in volumes.items():
        if not (volume.keys() - {"name"}) <= _VOLUMES:
            yield f"volume {name} is of a kind that restricted pods may not have"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {name} may fill its node"


def _of_references(pod: Object, maps: Any, claims: Any) -> Iterator[str]:
    for kind, name, keys in _references(pod):
        if kind == "Secret" and not keys <= SECRETS.get(name, frozenset()):
            yield f"reads {sorted(keys)} of Secret {name}, which nobody is told to make"
        if kind == "ConfigMap" and name not in maps:
            yield f"reads ConfigMap {name}, which is not there"
        if kind == "PersistentVolumeClaim" and name not in claims:
            yield f"mounts claim {name}, which is not there"


def _references(pod: Object) -> Iterator[tuple[str, str, frozenset[str]]]:
    for volume in pod.get("volumes", ()):
        if secret := volume.get("secret"):
            keys = frozenset(item["key"] for item in secret.get("items", ()))
            yield "Secret", secret["secretName"], keys
        if claim := volume.get("persistentVolumeClaim"):
            yield "PersistentVolumeClaim", claim["claimName"], frozenset()
    for container in all_containers(pod):
        for variable in container.get("env", ()):
            for word, source in variable.get("valueFrom", {}).items():
                kind = {"secretKeyRef": "Secret", "configMapKeyRef": "ConfigMap"}[word]
                yield kind, source["name"], frozenset((source["key"],))
        for source in container.get("envFrom", ()):
            yield "ConfigMap", source["configMapRef"]["name"], frozenset()


def expanded(text: str, environment: Mapping[str, str]) -> str:
    """An argument as the kubelet expands it: $(NAME) where NAME is known."""
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)
