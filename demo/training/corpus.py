"""The corpus: the Python source files of the running interpreter's own standard library."""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_SHARE = 0.05
MAX_BYTES = 200_000
MAX_LINE = 400
MIN_LETTERS = 0.45
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "encodings", "pydoc_data", "cjkencodings"}
)
SKIPPED_PREFIXES = ("_sysconfigdata", "bad_coding", "badsyntax", "bad_")


@dataclass(frozen=True)
class Document:
    """One source file: its path below the library's folder, and its text."""

    name: str
    text: str

    @property
    def is_test(self) -> bool:
        """Whether the file belongs to one of the library's test suites."""
        return any(part in {"test", "tests", "idle_test"} for part in self.name.split("/"))

    @property
    def rank(self) -> str:
        """The key that orders files: the SHA-256 of the file's name."""
        return hashlib.sha256(self.name.encode()).hexdigest()


def library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_prose_like(text: str) -> bool:
    """False for generated tables and data: very long lines, or few letters among the characters."""
    visible = [char for char in text if not char.isspace()]
    if not visible or max(map(len, text.splitlines())) > MAX_LINE:
        return False
    return sum(char.isalpha() for char in visible) / len(visible) >= MIN_LETTERS


def documents(root: Path | None = None) -> list[Document]:
    """Every file kept, without duplicates, ordered by the SHA-256 of its name."""
    root = root or library()
    kept: dict[str, Document] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED_FOLDERS & set(name.parts) or name.name.startswith(SKIPPED_PREFIXES):
            continue
        if not 200 <= path.stat().st_size <= MAX_BYTES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if is_prose_like(text):
            digest = hashlib.sha256(text.encode()).hexdigest()
            kept.setdefault(digest, Document(name.as_posix(), text))
    return sorted(kept.values(), key=lambda document: document.rank)


def split(found: list[Document]) -> tuple[list[Document], list[Document]]:
    """The training files, and the held-out ones: the last 5 percent in the order of the hash."""
    cut = len(found) - round(len(found) * HELD_OUT_SHARE)
    return found[:cut], found[cut:]


def main() -> None:
    """Print how large the two parts are."""
    for label, part in zip(("training", "held out"), split(documents()), strict=True):
        size = sum(len(document.text.encode()) for document in part)
        tests = sum(document.is_test for document in part)
        print(f"{label}: {len(part)} files ({tests} of them tests), {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
