"""Kills and full disks at any moment of an install and a rollback: the old or the new model opens, always."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Classifier
from runtime.update.folder import list_numbers, read_status

from .conftest import write_color_model

LABELS = tuple(f"label {index} {'x' * 200}" for index in range(3))
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Reads commands and forks for each, so that ONNX Runtime is imported once. `at` is the number of the call of
# the system on a file in the folder, from 0, where the process is killed, or the disk is full from then on.
SERVER = """
import errno, json, os, resource, shutil, signal, sys, threading, time
from pathlib import Path
import runtime.session
from runtime.update import install
from runtime.update.install import Conditions, install_model, roll_back

CALLS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.scandir"}
TAKES = {"open", "os.mkdir", "os.rename"}  # room on the disk

def is_for_writing(event, words):
    return event != "open" or (words[2] or 0) & (os.O_WRONLY | os.O_RDWR)

def work(do, folder, new, at, how):
    count = 0
    def watch(event, words):
        nonlocal count
        if event not in CALLS or not isinstance(words[0], (str, bytes, os.PathLike)):
            return
        if not os.fsdecode(words[0]).startswith(folder):
            return
        count += 1
        if how == "kill" and count == at + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "full" and count > at and event in TAKES and is_for_writing(event, words):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), words[0])
    sys.addaudithook(watch)
    if how == "large":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
    if how == "later":
        def kill():
            time.sleep(at)
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=kill, daemon=True).start()
    start = time.monotonic()
    try:
        install_model(Path(new), Path(folder), Conditions()) if do == "install" else roll_back(Path(folder))
        said = "done"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    return {"said": said, "calls": count, "seconds": time.monotonic() - start}

print("ready", flush=True)
for line in sys.stdin:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, json.dumps(work(*json.loads(line))).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    print(text or json.dumps({"said": "killed"}), flush=True)
"""


class Installer:
    """A process that installs and rolls back, and is killed or has a full disk at a chosen moment."""

    def __init__(self, place: Path) -> None:
        self.place, self.folder = place, place / "models"
        self.new = [write_color_model(place / f"{i}.onnx", gain=0.1 * (i + 1)) for i in range(3)]
        command = [sys.executable, "-W", "ignore", "-c", SERVER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def do(self, what: str, new: int = 0, at: float = 0, how: str = "") -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        words = [what, str(self.folder), str(self.new[new]), at, how]
        print(json.dumps(words), file=self.process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def begin(self) -> None:
        """Install the first two models into an empty folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for new in (0, 1):
            assert self.do("install", new)["said"] == "done"

    def check(self, old: str, new: str) -> str:
        """Return the SHA-256 of the model that opens: that of the old or the new one, and of status."""
        status, found = read_status(self.folder), Classifier(self.folder).info
        assert status["current"]["sha256"] == found.sha256
        assert status["current"]["file"] == found.path
        assert found.sha256 in (old, new)
        return found.sha256

    def check_recovery(self) -> None:
        """The next install works, and leaves nothing of the interrupted one."""
        assert self.do("install", 2)["said"] == "done"
        numbers = list_numbers(self.folder)
        assert len(numbers) == 2
        names = {each.name for each in self.folder.iterdir()}
        assert names == {*map(str, numbers), "current", "journal.jsonl"}
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def installer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installer]:
    made = Installer(tmp_path_factory.mktemp("installer"))
    yield made
    made.process.communicate()


def sha256_of(installer: Installer, new: int) -> str:
    return Classifier(installer.new[new]).info.sha256


def interrupt(installer: Installer, moments: int, how: str) -> set[str]:
    """Interrupt at random moments of an install and of a rollback; return what was open afterwards.

    A rollback has few calls, the switch of `current` among them: it is killed at each one.
    """
    pick, old = random.Random(moments), [sha256_of(installer, i) for i in range(3)]
    found, ended = set[str](), list[str]()
    for what, after in (("install", old[2]), ("rollback", old[0])):
        installer.begin()
        calls = installer.do(what, 2)["calls"]
        assert calls > 10
        for at in sorted(
            pick.sample(
                range(calls), calls if what == "rollback" and how == "kill" else min(moments // 2, calls)
            )
        ):
            installer.begin()
            said = installer.do(what, 2, at, how)["said"]
            ended.append(said.partition(":")[0])
            found.add(installer.check(old[1], after))
            installer.check_recovery() if what == "install" else shutil.rmtree(installer.folder)
    print(Counter(ended))
    # A run that takes fewer calls than the one that was counted is done before.
    assert ended.count("done") <= len(ended) // 4 or how == "full"
    assert set(ended) <= {"done", "killed" if how == "kill" else "DiskError"}
    return found


@pytest.mark.parametrize("moments", [6, pytest.param(80, marks=pytest.mark.slow)])
def test_a_kill_at_a_call_of_the_system(installer: Installer, moments: int) -> None:
    found = interrupt(installer, moments, "kill")
    assert len(found) > 1 or moments < 10  # in the long form both the old and the new one were left


@pytest.mark.slow
def test_a_kill_at_a_random_time(installer: Installer) -> None:
    pick, old = random.Random(0), [sha256_of(installer, i) for i in range(3)]
    for what, after in (("install", old[2]), ("rollback", old[0])):
        installer.begin()
        seconds = installer.do(what, 2)["seconds"]
        for _ in range(20):
            installer.begin()
            installer.do(what, 2, pick.uniform(0, seconds), "later")
            installer.check(old[1], after)


@pytest.mark.parametrize("moments", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_from_some_call_on(installer: Installer, moments: int) -> None:
    interrupt(installer, moments, "full")


def test_files_that_may_not_grow(installer: Installer) -> None:
    """Each write fails at some byte, in the middle of the copy of the model."""
    size = installer.new[2].stat().st_size
    old, new = sha256_of(installer, 1), sha256_of(installer, 2)
    installer.begin()
    for part in range(5):
        said = installer.do("install", 2, size * part // 5, "large")["said"]
        assert said.startswith("DiskError: "), said
        assert "\n" not in said
        assert installer.check(old, new) == old
    installer.check_recovery()


FILL = """
import os, shutil, sys
from pathlib import Path
from runtime import Classifier
from runtime.errors import VitEdgeError
from runtime.update.folder import read_status
from runtime.update.install import Conditions, install_model

place, *new = map(Path, sys.argv[1:])
folder, filler, real = place / "models", place / "filler", shutil.disk_usage
size = new[1].stat().st_size
found = {Classifier(each).info.sha256 for each in new}
for part in range(10):
    shutil.rmtree(folder, ignore_errors=True)
    install_model(new[0], folder, Conditions())
    left = int(size * 0.2 * 1.8**part)
    filler.write_bytes(bytes(max(real(place).free - left, 0) // 4096 * 4096))
    # Others may write between the check of the free space and the copy.
    shutil.disk_usage = lambda place: shutil._ntuple_diskusage(0, 0, 2**40)
    try:
        install_model(new[1], folder, Conditions())
        print("done")
    except VitEdgeError as error:
        print(type(error).__name__)
    shutil.disk_usage = real
    status = read_status(folder)["current"]
    assert status["sha256"] == Classifier(folder).info.sha256 in found
    filler.unlink()
    install_model(new[1], folder, Conditions())
    assert read_status(folder)["current"]["sha256"] == Classifier(new[1]).info.sha256
"""


def test_a_disk_with_too_little_room(installer: Installer, tmp_path: Path) -> None:
    """A file system of 4 MiB in memory with room for 0.2 to 40 times the model."""
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    script = 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"'
    if subprocess.run([*mount, script, str(tmp_path), "true"], capture_output=True).returncode:
        pytest.skip("needs unshare, and the right to mount")
    new = [
        write_color_model(installer.place / f"wide{i}.onnx", gain=0.1 * (i + 1), labels=LABELS)
        for i in (0, 1)
    ]
    command = [*mount, script, str(tmp_path), sys.executable, "-c", FILL, str(tmp_path), *map(str, new)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    print(said)
    assert len(said) == 10
    assert set(said) == {"DiskError", "done"}
