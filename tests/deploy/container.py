"""Runs a container of a rendered manifest as processes, as a node would, without images.

A root file system that cannot be written to, the mounts that are declared and no others, the user
and the environment of the image, no capabilities, process 1 of its own. What the image would bring
is this environment itself: Python, its packages and the system's libraries.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deploy.deploy_files import ROOT, dockerfile_stages

USER = 10001
_OF_THE_SYSTEM = ("bin", "sbin", "lib", "lib64", "usr", "etc", "dev")


class Mount(NamedTuple):
    """A folder of this machine at a place in the container."""

    source: Path
    place: str
    read_only: bool


class Image(NamedTuple):
    """What the Dockerfile says of a stage."""

    environment: Mapping[str, str]
    entry_point: Sequence[str]

    @classmethod
    def of(cls, reference: str) -> Image:
        """Of an image by its name, such as `outrider-target:0.1.0`."""
        stages = dockerfile_stages()
        stage = stages[reference.partition(":")[0].removeprefix("outrider-")]
        words = shlex.split(" ".join(stages[stage.base].of("ENV")))
        environment = dict(word.split("=", 1) for word in words)
        environment["PATH"] = environment["PATH"].replace("$PATH", "/usr/bin:/bin")
        (entry,) = stage.of("ENTRYPOINT")
        return cls(environment, json.loads(entry))


class Container:
    """A container that was started."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        mounts: Sequence[Mount],
        *,
        namespace: str,
        hosts: Path,
        folder: Path,
    ) -> None:
        """Start it.

        Args:
            command: What becomes process 1.
            environment: All of its environment.
            mounts: What it sees beside the system.
            namespace: Its network.
            hosts: Names it can look up, as in /etc/hosts; may change while it runs.
            folder: For its log and its root file system, which nobody else uses.
        """
        self._log = folder / "log"
        (folder / "root").mkdir()
        script = _script(folder / "root", [Mount(hosts, "/etc/hosts", True), *mounts])
        inside = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        inside += ["--bounding-set=-all", "--no-new-privs", "env", "--ignore-environment"]
        inside += [f"{name}={value}" for name, value in environment.items()]
        outside = ["ip", "netns", "exec", namespace, "unshare", "--mount", "--pid", "--ipc"]
        outside += ["--fork", "--kill-child", "sh", "-euc", script, "sh", *inside, *command]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                outside, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        """What it said so far."""
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to its process 1."""
        os.kill(self._process_1(), number)

    def of_process(self, file: str) -> str:
        """What the kernel tells of its process 1, such as `status` and `maps`."""
        return Path(f"/proc/{self._process_1()}", file).read_text()

    def wait(self, seconds: float) -> int:
        """Waits for its end; returns its status.

        Raises:
            subprocess.TimeoutExpired: It takes longer.
        """
        return self._process.wait(seconds)

    def kill(self) -> None:
        """Ends it, whatever it does."""
        with contextlib.suppress(OSError, IndexError):  # it ends, or has not begun
            self.signal(signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def _process_1(self) -> int:
        me = self._process.pid
        children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
        return int(children[0])


def _script(root: Path, mounts: Sequence[Mount]) -> str:
    """Makes the root file system and becomes what its arguments say, inside it."""
    lines = ["mount --make-rprivate /", f"mount -t tmpfs -o mode=755 root {root}"]
    read_only = []
    paths = {Path(sys.base_prefix), Path(sys.prefix), ROOT}
    python = [path for path in paths if not paths & set(path.parents)]
    system = [Mount(Path("/", name), f"/{name}", True) for name in _OF_THE_SYSTEM]
    environment = Mount(Path(sys.prefix), "/opt/outrider", True)
    outermost_first = sorted(
        (*system, *(Mount(path, str(path), True) for path in python), environment, *mounts),
        key=lambda mount: mount[1].count("/"),  # else /tmp would hide a checkout below it
    )
    for source, place, fixed in outermost_first:
        there = f"{root}{place}"
        if source.is_dir():
            lines.append(f"mkdir -p {there}")
        lines.append(f"mount --{'rbind' if place == '/dev' else 'bind'} {source} {there}")
        if fixed and place != "/dev":
            read_only.append(there)
    lines.append(f"mkdir {root}/proc && mount -t proc proc {root}/proc")
    lines += [f"mount -o remount,bind,ro {there}" for there in read_only]
    lines.append(f"mount -o remount,ro {root}")
    # Not every user's path has it.
    chroot = shutil.which("chroot", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    lines.append(f'exec {chroot} {root} "$@"')
    return "\n".join(lines)
