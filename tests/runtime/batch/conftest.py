"""The command on a cluster of two nodes on this machine: watched, killed, and compared with one machine."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
NEEDS_RAY = 'needs Ray: pip install ".[ray]"; make ray does so in .venv-ray'
Rows = dict[str, dict[str, Any]]


class Command:
    """The command, running in a process group of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str], out: Path | None) -> None:
        self.out = out
        # A shell starts what it puts into the background deaf to Ctrl-C, and that is inherited.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        signal.signal(signal.SIGINT, before)

    def wait(self) -> tuple[int, str]:
        """Return the exit code and what it said."""
        said = self.process.communicate()[1]
        return self.process.returncode, said

    def running(self) -> bool:
        return self.process.poll() is None

    def parts(self) -> int:
        return len(list(self.out.glob("part-*")))

    def wait_for_parts(self, count: int) -> None:
        """Wait until there are so many, or it has ended."""
        while self.parts() < count and self.running():
            time.sleep(0.02)

    def interrupt(self) -> None:
        """Do what Ctrl-C in a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def children(self, name: str = "") -> list[Any]:
        """Processes below it whose command line has this in it."""
        import psutil

        found = []
        if psutil.pid_exists(self.process.pid):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if name in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def kill(self) -> None:
        """End it as a power cut does; nothing of it stays."""
        import psutil

        for each in (*self.children(), self.process):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()


class Nodes:
    """A cluster of two nodes on this machine."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self.address = self._answer()

    def order(self, word: str) -> None:
        self._command.process.stdin.write(f"{word}\n")
        self._command.process.stdin.flush()
        assert self._answer() == "done"

    def workers(self) -> list[Any]:
        """The processes that label, as Ray names them."""
        return self._command.children("ray::_")

    def _answer(self) -> str:
        answer = self._command.process.stdout.readline().strip()
        assert answer, self._command.wait()[1]
        return answer


@pytest.fixture(scope="session")
def nodes(environment: dict[str, str]) -> Iterator[Nodes]:
    """One cluster for all tests: to start it takes half a minute. Whoever kills a node adds one."""
    command = Command(["-m", "tests.support.local_cluster"], environment, None)
    yield Nodes(command)
    command.close()


@pytest.fixture(scope="session")
def environment() -> Iterator[dict[str, str]]:
    """Variables of a process. Ray's files go to a folder of their own; its name is short for the sockets."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip(NEEDS_RAY)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    yield os.environ | {
        "PYTHONPATH": str(ROOT),
        "AWS_ACCESS_KEY_ID": "x",  # of the local S3; the nodes of the cluster read these
        "AWS_SECRET_ACCESS_KEY": "secret-y",
        "AWS_DEFAULT_REGION": "us-east-1",
        "RAY_ADDRESS": "",
        "RAY_AUTH_MODE": "token",  # as a local cluster has it, with a token that is not left at home
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # 15 otherwise: on a machine with other work a test would take for ever
    }
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def launch(environment: dict[str, str]) -> Iterator[Callable[..., Command]]:
    """Start a Python program, and leave nothing of it behind."""
    started: list[Command] = []

    def begin(*arguments: Any, out: Path | None = None, **changes: str) -> Command:
        started.append(Command(list(map(str, arguments)), environment | changes, out))
        return started[-1]

    yield begin
    for command in started:
        command.close()


@pytest.fixture
def start(
    launch: Callable[..., Command], nodes: Nodes, model: Path, tmp_path: Path
) -> Callable[..., Command]:
    """Start the command on the cluster, with an output in JSON Lines, or another one that is given."""

    def begin(*arguments: Any, out: Path = tmp_path / "out", **changes: str) -> Command:
        given = [*map(str, arguments), "--engine", "ray", "--address", nodes.address]
        if "--output" not in given:
            given += ["--output", str(out), "--format", "jsonl"]
        return launch("-m", "runtime", model, *given, out=out, **changes)

    return begin


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Enough images that a run lasts some seconds, and three that are broken in two ways."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    for number in range(60):
        noise[:, :, number % 3] |= 0x40
        Image.fromarray(np.roll(noise, number, 0)).save(folder / f"{number:03}.jpg")
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(b"")
    (folder / "c.jpg").write_text("no image")
    return folder


@pytest.fixture
def rows() -> Callable[[Path], Rows]:
    """Read the rows of all parts, by path; none is there twice."""

    def read(out: Path) -> Rows:
        found: Rows = {}
        for part in sorted(out.glob("part-*")):
            for line in part.read_bytes().splitlines():
                row = json.loads(line)
                assert row["path"] not in found, f"{row['path']} is there twice"
                found[row["path"]] = row
        return found

    return read


@pytest.fixture
def one_machine(model: Path, environment: dict[str, str]) -> Callable[[Path], Rows]:
    """Run the command without a cluster, and give its rows by path."""

    def run(source: Path) -> Rows:
        command = [sys.executable, "-m", "runtime", str(model), str(source)]
        done = subprocess.run(command, env=environment, capture_output=True, cwd=ROOT)
        return {row["path"]: row for row in map(json.loads, done.stdout.splitlines())}

    return run
