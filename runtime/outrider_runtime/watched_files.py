"""Files that are replaced while the service runs: certificates, keys of callers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from outrider_runtime.errors import StartupError

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class WatchedFiles(Generic[T]):
    """What some files say, read again when one of them changes.

    A Secret of Kubernetes is replaced as a whole behind a link; others write file after file. So
    what makes no sense is passed over with a warning, what was read before stays in force, and the
    next change is read again.
    """

    def __init__(self, paths: Iterable[Path], read: Callable[[], T]) -> None:
        """Read them.

        Args:
            paths: The files.
            read: Makes of them what they say; raises StartupError where they make no sense.

        Raises:
            StartupError: They make no sense now.
        """
        self._paths = list(paths)
        self._read = read
        self._seen = self._stamps()
        self.value = read()
        """What they said when they last made sense."""

    def reread(self) -> bool:
        """Look whether they changed; returns whether `value` is new. Costs a `stat` for each."""
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        names = [str(path) for path in self._paths]
        try:
            self.value = self._read()
        except StartupError as error:
            _log.warning("files_not_reloaded", files=names, reason=str(error))
            return False
        _log.info("files_reloaded", files=names)
        return True

    def _stamps(self) -> list[tuple[int, int, int]]:
        return [_stamp(path) for path in self._paths]


def read_text(path: Path) -> str:
    """The text of a file. No message quotes it: it may be a key.

    Raises:
        StartupError: It cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StartupError(f"{path} is not text") from None


def _stamp(path: Path) -> tuple[int, int, int]:
    """What differs when a file was replaced or written; zeros without one."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)
