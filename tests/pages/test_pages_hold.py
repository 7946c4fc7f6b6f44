"""What the pages point at is there: links, headings, files, targets of make."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")]
SOURCES = [
    f"/{file.relative_to(ROOT)}"
    for top in ROOT.iterdir()
    if top.is_dir() and not top.name.startswith(".")
    for ending in ("py", "proto", "mjs", "cpp")
    for file in top.rglob(f"*.{ending}")
    if "node_modules" not in file.parts
]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def headings(page: Path) -> set[str]:
    """The names that links call them by."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", link):
            continue
        path, _, heading = link.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), link
        assert not heading or heading in headings(to), link


@each_page
def test_every_file_that_is_named_is_there(page: Path) -> None:
    """However much of its path is told."""
    for named in re.findall(r"`([\w./-]+\.(?:py|proto|mjs|cpp))`", page.read_text()):
        assert any(source.endswith(f"/{named}") for source in SOURCES), named


@each_page
def test_every_target_of_make_that_is_named_is_there(page: Path) -> None:
    targets = re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = {target for line in targets for target in line.split()}
    assert known >= {"test", "check", "field-table-check"}
    for named in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE):
        assert named in known, named
