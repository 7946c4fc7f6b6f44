"""Write the benchmark prompts: places in held-out files, and a few openings written by hand."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import corpus
from transformers import AutoTokenizer, PreTrainedTokenizerFast

FROM_FILES = 28
FEWEST, MOST = 40, 150
BY_HAND = (
    "def main(",
    "import os\n",
    'class Stack:\n    """',
    "def read_lines(path):\n    with open(path) as file:",
)
OPENING = re.compile(r"^ *(?:async def|def|class) ", re.MULTILINE)


def prefix(document: corpus.Document, tokenizer: PreTrainedTokenizerFast) -> tuple[str, int] | None:
    """A run of whole lines from the start of a definition, and how many tokens it has.

    The file's hash picks the definition and the length; None if no definition is long enough.
    """
    number = int(document.rank, 16)
    starts = [found.start() for found in OPENING.finditer(document.text)]
    wanted = FEWEST + number % (MOST - FEWEST)
    for turn in range(len(starts)):
        begin = starts[(number + turn) % len(starts)]
        best = None
        for line in re.finditer(r"(?<=\S)\n", document.text[begin : begin + 1500]):
            text = document.text[begin : begin + line.start()]
            count = len(tokenizer(text)["input_ids"])
            if count > wanted:
                break
            best = (text, count) if count >= FEWEST else None
        if best:
            return best
    return None


def main() -> None:
    """Write the prompts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path, help="folder of the tokenizer")
    parser.add_argument("out", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    held_out = corpus.split(corpus.documents())[1]
    rows: list[dict[str, str | int]] = []
    for document in sorted(held_out, key=lambda document: document.is_test):
        if len(rows) < FROM_FILES and (found := prefix(document, tokenizer)):
            rows.append({"source": document.name, "tokens": found[1], "text": found[0]})
    for text in BY_HAND:
        count = len(tokenizer(text)["input_ids"])
        rows.append({"source": "by hand", "tokens": count, "text": text})
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} prompts of {sum(int(row['tokens']) for row in rows)} tokens")


if __name__ == "__main__":
    main()
