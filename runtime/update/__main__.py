"""Command line `python -m runtime.update COMMAND …`: vit-edge sign and others. Signals come first."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..interrupts import run_interruptible


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    from .command import main

    return main(arguments, prog=f"python -m {__package__}")


if __name__ == "__main__":
    sys.exit(run_interruptible(str(__package__).partition(".")[0], main))
