"""`python -m outrider_runtime.model.kernels`: compiles the kernels ahead of the first start."""

from __future__ import annotations

from outrider_runtime.model.kernels import library


def main() -> None:
    """Compile, unless that was done already; a machine without a compiler is told so, no more."""
    try:
        library.load()
    except library.KernelsUnavailable as why:
        print(f"no kernels for the CPU: {why}")


if __name__ == "__main__":
    main()
