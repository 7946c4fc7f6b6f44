"""The key by which draft services know the target, which may be replaced while links are open."""

from __future__ import annotations

from pathlib import Path

from outrider_contract.metadata import AUTHORIZATION, BEARER_PREFIX
from outrider_runtime.errors import StartupError
from outrider_runtime.watched_files import WatchedFiles, read_text


class LinkKey:
    """What the next link says; a link that is open was let in for good."""

    def __init__(self, api_key: str | None = None, key_file: Path | None = None) -> None:
        """Read the file.

        Args:
            api_key: The key itself; None: it is in a file, or drafters ask for none.
            key_file: Holds the key and nothing else. Read again when it changes.

        Raises:
            StartupError: There is one too many, or what there is cannot be a key.
        """
        if api_key is not None and key_file is not None:
            raise StartupError("give --draft-api-key or --draft-api-key-file, not both")
        self._own = None if api_key is None else _checked(api_key, "--draft-api-key")
        self._file: WatchedFiles[str] | None = None
        if key_file is not None:
            self._file = WatchedFiles(
                [key_file], lambda: _checked(read_text(key_file).strip(), str(key_file))
            )

    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """What goes with a call; None: nothing. Costs a `stat`, where there is a file."""
        key = self._own
        if self._file is not None:
            self._file.reread()
            key = self._file.value
        return None if key is None else ((AUTHORIZATION, BEARER_PREFIX + key),)


def _checked(key: str, where: str) -> str:
    if not (key and key.isascii() and key.isprintable()):
        raise StartupError(f"{where} is not one key of printable ASCII characters")
    return key
