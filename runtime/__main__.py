"""Command line `python -m runtime MODEL IMAGES`: classify images. Signals are handled before the imports."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .interrupts import run_interruptible


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    from .command_line import main

    return main(arguments)


def _process() -> int:
    from .command_line import run_quietly

    return run_quietly()


if __name__ == "__main__":
    sys.exit(run_interruptible(str(__package__), _process))
