"""A command prints what its terminal cannot show as escapes: it does not end with a traceback for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SAYS = """
import sys
from runtime.interrupts import run_interruptible

def work():
    print("float32 10.7 \u2192 2.0 %")
    print("3.9\u00d7 smaller", file=sys.stderr)
    return 0

sys.exit(run_interruptible("command", work))
"""


@pytest.mark.parametrize(
    ("encoding", "out", "err"),
    [
        ("ascii", r"10.7 \u2192 2.0", r"3.9\xd7 smaller"),
        ("cp1252", r"10.7 \u2192 2.0", "3.9\u00d7 smaller"),
        ("utf-8", "10.7 \u2192 2.0", "3.9\u00d7 smaller"),
    ],
)
def test_every_encoding_prints(encoding: str, out: str, err: str, root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAYS],
        cwd=root,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert out in done.stdout.decode(encoding)
    assert err in done.stderr.decode(encoding)
