"""A process that was forked after ONNX Runtime was imported ends in an ordinary exit, with its own code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime import loaded_model

SCRIPT = """
import os, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
import numpy as np
from runtime import Classifier

def unused(): pass
def used(): print(inherited(black).label)
def opened(): print(Classifier(path, threads=threads)(black).label)
def closed(): inherited.close()
def forks_again():
    if pid_of(used): sys.exit(9)

def pid_of(work):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        work()
        sys.exit(3)
    for _ in range(2000):  # not by the clock: both may be frozen for a while
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) - 3
        time.sleep(0.01)
    os.kill(child, 9)
    return "hangs"

path, black = sys.argv[1], np.zeros((8, 8, 3), np.uint8)
inherited = None
for threads in (1, 2):
    for work in (opened, unused, used, closed, forks_again):
        if work is not opened and inherited is None:
            inherited = Classifier(path, threads=threads)
            inherited.warm_up()
        print(threads, work.__name__, pid_of(work))
    inherited = None
"""


@pytest.mark.skipif(loaded_model._on_exit is None, reason="needs glibc's on_exit")
def test_forked_processes_end_in_an_ordinary_exit(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines() if " " in line]
    works = ("opened", "unused", "used", "closed", "forks_again")
    assert found == [[threads, work, "0"] for threads in ("1", "2") for work in works]
    assert len(done.stdout.splitlines()) == len(found) + 6  # what used, opened and forks_again print
