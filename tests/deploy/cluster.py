"""The pods of a rendered overlay on this machine: what kubelet, DNS and clients do with them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.container import USER, Container, Image, Mount
from deploy.policies import Peer, allows, pod_of
from deploy.wire import Wire

from tools.deployment.render import Object, of_kind
from tools.deployment.rules.serving import command_line

PATIENCE = 60.0
NODE, CLIENT, STRANGER = "10.77.0.1", "10.77.0.2", "10.77.0.3"
"""Addresses of others than pods: in a namespace of clients, and in any other."""


class Pod:
    """One pod of a Deployment, at an address of its own."""

    def __init__(self, cluster: Cluster, name: str, objects: list[Object], address: str) -> None:
        self._cluster = cluster
        self._objects = objects
        self.name = name
        self.address = address
        self.spec: Object = of_kind(objects, "Deployment")[name]["spec"]["template"]["spec"]
        (self.container,) = self.spec["containers"]
        self._folder = cluster.folder / address
        self._folder.mkdir()
        self._namespace = cluster.wire.add(address)
        self._volumes = {volume["name"]: self._volume(volume) for volume in self.spec["volumes"]}
        self.running: Container | None = None

    def start(self) -> None:
        """Runs the init steps, each to its end, then the service.

        Raises:
            AssertionError: An init step fails.
        """
        for step in self.spec.get("initContainers", ()):
            done = self._run(step)
            assert done.wait(PATIENCE) == 0, done.log
        self.running = self._run(self.container)

    def probe(self, name: str) -> bool:
        """Asks once what the kubelet would ask, for as long as it would wait."""
        probe = self.container[name]
        asked = probe["grpc"]
        status = self._cluster.has(
            NODE,
            "health",
            address=f"{self.address}:{asked['port']}",
            service=asked["service"],
            timeout=probe["timeoutSeconds"],
        )
        return bool(status == "SERVING")

    def wait_until_started(self) -> None:
        """As the start-up probe does: within its failures, or the pod would be killed."""
        assert self.running is not None
        probe = self.container["startupProbe"]
        for _ in range(min(probe["failureThreshold"], int(PATIENCE / probe["periodSeconds"]))):
            if self.probe("startupProbe"):
                return
            assert self.running.running, self.running.log
            time.sleep(probe["periodSeconds"])
        raise AssertionError(f"{self.name} did not start:\n{self.running.log}")

    def terminate(self) -> tuple[int, float]:
        """As the kubelet ends a pod; returns its status and how long it took.

        Raises:
            subprocess.TimeoutExpired: It is not gone when the grace period is over.
        """
        assert self.running is not None
        began = time.monotonic()
        time.sleep(self.container["lifecycle"]["preStop"]["sleep"]["seconds"])
        self.running.signal(signal.SIGTERM)
        left = self.spec["terminationGracePeriodSeconds"] - (time.monotonic() - began)
        return self.running.wait(left), time.monotonic() - began

    def _run(self, container: Object) -> Container:
        image = Image.of(container["image"])
        environment = dict(image.environment) | self._environment(container)
        if "command" in container:
            command = [*container["command"], *container["args"]]
        else:
            arguments, _ = command_line(container, self._objects)
            command = [*image.entry_point, *arguments]
        folder = self._folder / f"{container['name']}-{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        mounts = [
            Mount(self._volumes[m["name"]], m["mountPath"], m.get("readOnly", False))
            for m in container["volumeMounts"]
        ]
        return Container(
            command,
            environment,
            mounts,
            namespace=self._namespace,
            hosts=self._cluster.hosts,
            folder=folder,
        )

    def _environment(self, container: Object) -> dict[str, str]:
        # Several of them share this machine; and images have no compiler, so that nothing is
        # compiled while they run.
        found = {"OMP_NUM_THREADS": "1", "OUTRIDER_COMPILE": "off"}
        maps = of_kind(self._objects, "ConfigMap")
        for source in container.get("envFrom", ()):
            found |= maps[source["configMapRef"]["name"]]["data"]
        if "args" in container and "command" not in container:
            found |= command_line(container, self._objects)[1]
        for variable in container.get("env", ()):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                secret = self._cluster.secrets[reference["name"]]
                found[variable["name"]] = secret[reference["key"]].decode()
        return found

    def _volume(self, volume: Object) -> Path:
        if "persistentVolumeClaim" in volume:
            return self._cluster.models
        folder = self._folder / f"volume-{volume['name']}"
        folder.mkdir()
        if secret := volume.get("secret"):
            held = self._cluster.secrets[secret["secretName"]]
            keys = [item["key"] for item in secret.get("items", ())] or list(held)
            for key in keys:
                (folder / key).write_bytes(held[key])
                (folder / key).chmod(secret["defaultMode"])
                os.chown(folder / key, 0, USER)
        else:
            os.chown(folder, USER, USER)
            if volume["name"] == "tmp":
                _bring_compiled(folder)
        return folder


class Cluster:
    """A network with pods, and a node that probes them. Leaving it ends everything."""

    def __init__(
        self, folder: Path, models: Path, secrets: Mapping[str, Mapping[str, bytes]]
    ) -> None:
        self.folder = folder
        self.models = models
        self.secrets = secrets
        self.wire = Wire()
        self.hosts = folder / "hosts"
        self._names: list[tuple[str, str]] = []
        self.pods: list[Pod] = []
        self._agents: dict[str, _Agent] = {}
        self._objects: list[Object] = []
        self._peers = {
            CLIENT: Peer({}, {"outrider-clients": "true"}, {}),
            STRANGER: Peer({}, {}, {}),
        }

    def __enter__(self) -> Cluster:
        self.wire.__enter__()
        self.wire.may_connect = self._may_connect
        self._write_hosts()
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self._agents.values():
            agent.end()
        for pod in self.pods:
            if pod.running is not None:
                pod.running.kill()
        self.wire.__exit__(None, None, None)

    def add(self, name: str, objects: list[Object], *, address: str) -> Pod:
        """A pod of a Deployment, not started."""
        pod = Pod(self, name, objects, address)
        self.pods.append(pod)
        self._objects = objects
        self._peers[address] = pod_of(of_kind(objects, "Deployment")[name])
        return pod

    def publish(self, pod: Pod) -> None:
        """The name of its Service leads to it as well."""
        self._names.append((pod.address, f"{pod.name}.outrider.svc.cluster.local"))
        self._write_hosts()

    def withdraw(self, pod: Pod) -> None:
        """The name leads to it no more."""
        self._names = [named for named in self._names if named[0] != pod.address]
        self._write_hosts()

    def _write_hosts(self) -> None:
        lines = ["127.0.0.1 localhost", *(" ".join(named) for named in self._names)]
        # In place: containers have the file itself mounted.
        self.hosts.write_text("\n".join(lines) + "\n")

    def has(self, who: str, do: str, **arguments: Any) -> Any:
        """Has the node, a client or a stranger do something."""
        if who not in self._agents:
            self._agents[who] = _Agent(self.wire.add(who))
        return self._agents[who].does(do, **arguments)

    def _may_connect(self, source: str, sink: str, port: int) -> bool:
        """By the overlay's policies; the node's probes are always let through."""
        return source == NODE or allows(self._objects, self._peers[source], self._peers[sink], port)


class _Agent:
    """A process in a namespace that does as it is told."""

    def __init__(self, namespace: str) -> None:
        program = Path(__file__).with_name("node_agent.py")
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def does(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


def _bring_compiled(home: Path) -> None:
    """What images have compiled ahead: here it is what this machine compiled for itself."""
    for name in ("kernels", "suffix-tree"):
        compiled = Path(".cache", "outrider", name)
        if (Path.home() / compiled).is_dir():
            shutil.copytree(Path.home() / compiled, home / compiled)
            os.chown(home / compiled, USER, USER)


def copy_with_checksums(model: Path, folder: Path) -> None:
    """A folder of a model as docs/deployment.md has it."""
    shutil.copytree(model, folder)
    names = sorted(path.name for path in folder.iterdir())
    run = subprocess.run(["sha256sum", *names], cwd=folder, check=True, capture_output=True)
    (folder / "SHA256SUMS").write_bytes(run.stdout)
