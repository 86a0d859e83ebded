"""Command line `python -m export.card FOLDER`: `vit-edge card`. Signals are handled first."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from runtime.interrupts import run_interruptible


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    from export.card.command import main

    return main(arguments, prog="python -m export.card")


if __name__ == "__main__":
    sys.exit(run_interruptible("export", main))
