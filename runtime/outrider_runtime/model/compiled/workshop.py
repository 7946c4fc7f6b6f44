"""Has a forward compiled in another process, beside whoever serves meanwhile.

Knows nothing of models or compilers: a recipe goes in, a package comes out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path

import structlog

from outrider_runtime.cpp import CannotCompile, cache_folder, compiler
from outrider_runtime.model.compiled.recipe import Recipe

_log = structlog.get_logger(__name__)

STEP_BACK = "--step-back"
_MAKING = "making-"
_LEFT_SECONDS = 3600.0


class CompilationFailed(Exception):
    """There will be no package; says why in one line.

    Attributes:
        again: whether it may succeed another time.
    """

    def __init__(self, why: str, *, again: bool) -> None:
        super().__init__(why)
        self.again = again


class Workshop:
    """One compilation under way. It ends with this process, or when nobody waits for it any more.

    Args:
        recipe: what to compile; the package goes to its place in the cache.
        step_back: whether somebody is served meanwhile, who goes first.

    Raises:
        CompilationFailed: there is no compiler.
        OSError: the process cannot be started.
    """

    def __init__(self, recipe: Recipe, *, step_back: bool) -> None:
        self._place = recipe.place
        try:
            compiler()
        except CannotCompile as why:
            raise CompilationFailed(str(why), again=True) from None
        self._began = time.monotonic()
        _remove_what_was_left(self._place.parent)
        # Beside its place: it is then renamed, and whoever looks sees all of it or nothing.
        self._folder = Path(tempfile.mkdtemp(prefix=_MAKING, dir=self._place.parent))
        self._recipe = self._folder / "recipe.json"
        recipe.write(self._recipe)
        command = [sys.executable, "-m", __package__, *[STEP_BACK] * step_back]
        command += [str(self._recipe), str(self._package)]
        with (self._folder / "log").open("w") as said:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # never written to: see `end_with_the_workshop`
                stdout=said,
                stderr=said,
                start_new_session=True,  # so that compilers it starts end with it
                env={
                    **os.environ,
                    # Headers that are compiled once for all models.
                    "TORCHINDUCTOR_CACHE_DIR": str(cache_folder("inductor")),
                },
            )
        self._clear = weakref.finalize(self, _clear, self._process, self._folder)
        _log.info("forward_compiling", pid=self._process.pid)

    def finished(self) -> Path | None:
        """Returns the package if it is ready, None if not yet. Cheap enough to ask each round.

        Raises:
            CompilationFailed: it never will be.
        """
        if self._process.poll() is None:
            return None
        return self._take()

    def wait(self) -> Path:
        """Returns the package.

        Raises:
            CompilationFailed: there is none.
        """
        self._process.wait()
        return self._take()

    @property
    def _package(self) -> Path:
        return self._folder / self._place.name

    def _take(self) -> Path:
        try:
            if self._process.returncode or not self._package.exists():
                killed = self._process.returncode < 0
                raise CompilationFailed(_last_line(self._folder / "log"), again=killed)
            self._package.replace(self._place)
        finally:
            self._clear()
        _log.info("forward_compiled", seconds=round(time.monotonic() - self._began, 1))
        return self._place


def end_with_the_workshop() -> None:
    """In the process that compiles: ends it, with its compilers, when nobody waits any more.

    However the service ended: its end of the pipe is closed then.
    """

    def watch() -> None:
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _remove_what_was_left(folder: Path) -> None:
    """What compilations left behind that could not clear up."""
    for left in folder.glob(f"{_MAKING}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _clear(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.stdin is not None
    process.stdin.close()
    shutil.rmtree(folder, ignore_errors=True)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
