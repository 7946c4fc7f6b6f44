"""Write docs/generation_config.md from the capability table, or `--check` that it is true."""

from __future__ import annotations

import sys
from pathlib import Path

from outrider_target.capabilities import CAPABILITIES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "generation_config.md"

_INTRODUCTION = """\
# GenerationConfig, field by field

The request's `generation_config` has every field of transformers' `GenerationConfig` (releases 4.57 and 5.23), by its
name. A field left unset is taken from the model's `generation_config.json`, then from transformers' global defaults; a
field named in `clear_fields` is "explicitly none" and takes neither. The configuration in force comes back with the
first chunk.

- **honoured**: transformers' meaning, with speculation on or off.
- **refused**: `INVALID_ARGUMENT` naming the field, unless the value asks for nothing (last column).

What a model's own `generation_config.json` asks for beyond that is left out with a warning at start-up.

This page is generated from the table that `GetServerInfo` returns: `make field-table`.

| field | support | remark | also accepted |
|---|---|---|---|
"""


def page() -> str:
    """The page's text."""
    rows = [
        f"| `{name}` | {c.support.value} | {c.note} | "
        f"{', '.join(f'`{str(value).lower()}`' for value in c.neutral)} |"
        for name, c in CAPABILITIES.items()
    ]
    return _INTRODUCTION + "\n".join(rows) + "\n"


def main() -> int:
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") != page():
        print("docs/generation_config.md is not what the code says; run `make field-table`")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
