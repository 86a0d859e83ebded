"""The command `vit-edge COMMAND …`. Signals are handled before the imports."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from runtime.interrupts import run_interruptible


def main(arguments: Sequence[str] | None = None, *, prog: str = "vit-edge") -> int:
    """Run a command and return its exit code."""
    from vit_edge.command import main

    return main(arguments, prog=prog)


def console() -> int:
    """Run the command of a process: what the installed script calls."""
    return run_interruptible("vit-edge", main)


if __name__ == "__main__":
    sys.exit(run_interruptible("vit-edge", lambda: main(prog="python -m vit_edge")))
