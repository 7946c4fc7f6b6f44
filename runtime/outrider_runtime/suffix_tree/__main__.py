"""`python -m outrider_runtime.suffix_tree`: compiles the suffix tree ahead of the first start."""

from __future__ import annotations

import argparse

from outrider_runtime.suffix_tree import native, prepare


def main() -> None:
    """Compile, unless that was done already; a machine without a compiler is told so, no more."""
    parser = argparse.ArgumentParser(description="Compiles the suffix tree.")
    parser.add_argument(
        "--for-others",
        action="store_true",
        help="for every machine of this architecture, into the package; fails without a compiler",
    )
    if parser.parse_args().for_others:
        print(native.compile_ahead())
    else:
        prepare()


if __name__ == "__main__":
    main()
