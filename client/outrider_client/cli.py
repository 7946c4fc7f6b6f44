"""The command `outrider`: where it starts.

What it does is in `_commands`, which needs typer and rich; the library itself does not, so they are
imported here and not before.
"""

from __future__ import annotations

import sys

_EXTRA = ("typer", "rich", "click", "shellingham")


def main() -> None:
    """Runs the command line, or says how to install what it needs."""
    try:
        from outrider_client._commands.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print("outrider: the command line needs: pip install 'outrider[cli]'", file=sys.stderr)
        raise SystemExit(1) from None
    run()


if __name__ == "__main__":
    main()
