"""The example drafter in another language, as a process."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "examples" / "node_drafter"


@contextmanager
def node_drafter() -> Iterator[str]:
    """Run it until the block ends; gives its address."""
    node = shutil.which("node")
    assert node is not None, "the tests of other languages need node"
    assert (FOLDER / "node_modules").is_dir(), "run `make node-peers` first"
    command = [node, str(FOLDER / "drafter.mjs")]
    # A session of its own: what is on the path may be a wrapper, which would leave node behind.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            listening = re.fullmatch(r"listening on (\S+)\n", line)
            assert listening is not None, line
            yield listening[1]
        finally:
            os.killpg(process.pid, signal.SIGKILL)
