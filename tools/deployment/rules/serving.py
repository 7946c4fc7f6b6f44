"""What the containers run: flags the commands know, probes they answer, time to drain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from tools.deployment.render import Object, of_kind
from tools.deployment.rules.pods import expanded
from tools.deployment.services import BY_IMAGE, Service, settings

_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_FILES = ("model", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "api_keys_file",
          "draft_ca_certs", "draft_ssl_keyfile", "draft_ssl_certfile",
          "draft_api_key_file")  # fmt: skip


class Served(NamedTuple):
    """What a Deployment's pods run."""

    service: Service
    container: Object
    told: Mapping[str, Any]
    """The command's settings, by flag."""


def problems(objects: list[Object]) -> Iterator[str]:
    """What is wrong with the services in the pods."""
    for name, deployment in of_kind(objects, "Deployment").items():
        try:
            served = _served(deployment, objects)
        except ValueError as error:
            yield f"{name}: {error}"
            continue
        found = (
            *_of_listening(served.container, served.told),
            *_of_files(served.container, served.told),
            *_of_probes(served.container, served.service, served.told),
            *_of_patience(deployment, served.container, served.told),
        )
        for problem in found:
            yield f"{name}: {problem}"


def all_served(objects: list[Object]) -> dict[str, Served]:
    """By the Deployment's name, as far as its command line can be understood."""
    found = {}
    for name, deployment in of_kind(objects, "Deployment").items():
        with contextlib.suppress(ValueError):
            found[name] = _served(deployment, objects)
    return found


def _served(deployment: Object, objects: list[Object]) -> Served:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    image = container["image"].rpartition(":")[0].rpartition("/")[2]
    if image not in BY_IMAGE:
        raise ValueError(f"nothing is known of what {container['image']} runs")
    service = BY_IMAGE[image]
    return Served(service, container, settings(service, *command_line(container, objects)))


def command_line(container: Object, objects: list[Object]) -> tuple[list[str], Mapping[str, str]]:
    """Arguments and environment as the container gets them; what Secrets hold is a dot."""
    environment = {}
    maps = of_kind(objects, "ConfigMap")
    for variable in container.get("env", ()):
        source = variable.get("valueFrom", {})
        if reference := source.get("configMapKeyRef"):
            value = maps[reference["name"]]["data"][reference["key"]]
        else:
            value = "." if source else variable["value"]
        environment[variable["name"]] = value
    return [expanded(argument, environment) for argument in container["args"]], environment


def _of_listening(container: Object, told: Mapping[str, Any]) -> Iterator[str]:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    flags = {"grpc": "port", "metrics": "metrics_port", "health": "health_port"}
    for name, flag in flags.items():
        if ports.get(name) != told[flag]:
            yield f"port {name} is {ports.get(name)}, but the command listens on {told[flag]}"
    if told["host"] != "0.0.0.0":
        yield "listens to itself alone"
    if told["insecure"] == (told["ssl_certfile"] is not None):
        yield "needs one of components/tls and components/plaintext"
    if told["api_keys_file"] is None:
        yield "asks for no keys"


def _of_files(container: Object, told: Mapping[str, Any]) -> Iterator[str]:
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for flag in _FILES:
        if (value := told.get(flag)) is None:
            continue
        places = [str(parent) for parent in PurePosixPath(str(value)).parents]
        if not any(mounts.get(place, {}).get("readOnly") for place in places):
            yield f"{flag} is {value}, where nothing is mounted read-only"
    if "/tmp" not in mounts:
        yield "has no place for temporary files"


def _of_probes(container: Object, service: Service, told: Mapping[str, Any]) -> Iterator[str]:
    plain = told["port"] if told["ssl_certfile"] is None else told["health_port"]
    for probe in _PROBES:
        asked = container.get(probe, {}).get("grpc", {})
        if asked.get("service") != service.grpc_name:
            yield f"{probe} does not ask for the health of {service.grpc_name}"
        if asked.get("port") != plain:
            yield f"{probe} asks port {asked.get('port')}; the one without TLS is {plain}"


def _of_patience(deployment: Object, container: Object, told: Mapping[str, Any]) -> Iterator[str]:
    pod = deployment["spec"]["template"]["spec"]
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if not pause:
        yield "does not wait for balancers to hear that it goes"
    if pod["terminationGracePeriodSeconds"] <= pause + told["grace"]:
        yield "is killed before its drain is over"
    start = container.get("startupProbe", {})
    loading = start.get("periodSeconds", 0) * start.get("failureThreshold", 0)
    if deployment["spec"].get("progressDeadlineSeconds", 600) <= loading:
        yield "is given up by its rollout before its start-up probe gives up"
