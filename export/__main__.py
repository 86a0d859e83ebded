"""Command line `python -m export CHECKPOINT --quantize --calibration IMAGES`. Signals come before imports."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from runtime.interrupts import run_interruptible


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    from export.command_line import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(run_interruptible("export", main))
