"""`python -m outrider_runtime.model.kernels`: compiles the kernels ahead of the first start."""

from __future__ import annotations

import argparse

from outrider_runtime.model.kernels import library


def main() -> None:
    """Compile, unless that was done already; a machine without a compiler is told so, no more."""
    parser = argparse.ArgumentParser(description="Compiles the kernels for the CPU.")
    parser.add_argument(
        "--for-others",
        action="store_true",
        help="for every processor of this architecture, into the package; fails without a compiler",
    )
    if parser.parse_args().for_others:
        for path in library.compile_ahead():
            print(path)
        return
    try:
        library.load()
    except library.KernelsUnavailable as why:
        print(f"no kernels for the CPU: {why}")


if __name__ == "__main__":
    main()
