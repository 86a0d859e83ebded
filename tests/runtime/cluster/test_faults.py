"""Kills on a Ray cluster cost time: no image is lost, and none is labeled twice."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]
KILLS = int(os.environ.get("KILLS", "6"))  # 20 take some minutes


class Nodes:
    """A cluster of two nodes on this machine."""

    def __init__(self, command: Any) -> None:
        self._command = command
        self.address = self._answer()

    def order(self, word: str) -> None:
        self._command.process.stdin.write(f"{word}\n")
        self._command.process.stdin.flush()
        assert self._answer() == "done"

    def workers(self) -> list[Any]:
        return self._command.children("MapWorker")

    def _answer(self) -> str:
        answer = self._command.process.stdout.readline().strip()
        assert answer, self._command.wait()[1]
        return answer


@pytest.fixture
def nodes(launch: Start) -> Nodes:
    return Nodes(launch("-m", "tests.support.local_cluster"))


def test_a_lost_process_and_a_lost_node_cost_no_row(
    nodes: Nodes, start: Start, photos: Path, tmp_path: Path, rows: Any, one_machine: Any
) -> None:
    run = start(photos, "--part-images", 2, "--address", nodes.address)
    run.wait_for_parts(2)
    assert run.running(), run.wait()
    nodes.workers()[0].kill()
    nodes.order("kill")
    code, said = run.wait()
    assert code == 1, said
    assert rows(tmp_path / "out") == one_machine(photos)


def test_a_killed_driver_is_resumed(
    start: Start, photos: Path, tmp_path: Path, rows: Any, one_machine: Any
) -> None:
    run = start(photos, "--part-images", 2)
    run.wait_for_parts(3)
    assert run.running(), run.wait()
    run.kill()
    before = len(rows(tmp_path / "out"))
    assert 6 <= before < 63
    code, said = start(photos, "--output", tmp_path / "out", "--resume").wait()
    assert code in (0, 1), said
    assert f"{before} were done before" in said
    assert rows(tmp_path / "out") == one_machine(photos)


FATAL = """
import os, sys
from runtime.batch.cluster.chunks import Job, Summary
from runtime.batch.cluster.parts import begin
from runtime.batch.cluster.ray_cluster import cluster
from runtime.batch.cluster.ray_engine import label_on_cluster
from runtime.batch.columns import Labels

class Fatal(Labels):
    '''What the kernel does to a process that an image makes too large.'''
    def __call__(self, columns):
        if any(path.endswith("007.jpg") and data for path, data in zip(columns["path"], columns["bytes"])):
            os.kill(os.getpid(), 9)
        return super().__call__(columns)

model, photos, out = sys.argv[1:]
labels = Fatal(model)
parts, known = begin(out, labels.sha256, form="jsonl", resume=False, overwrite=False)
total = Summary()
with cluster(None, workers=2, model_bytes=1) as cores:
    for summary in label_on_cluster(Job([photos], "/", parts, 1000, cores), known, labels, workers=2):
        total.add(summary)
print(total.images, total.failed, file=sys.stderr)
"""


def test_an_image_that_kills_every_process_is_a_row_in_the_end(
    launch: Start, model: Path, photos: Path, tmp_path: Path, rows: Any, one_machine: Any
) -> None:
    code, said = launch("-c", FATAL, model, photos, tmp_path / "out").wait()
    assert (code, said.splitlines()[-1:]) == (0, ["63 4"]), said
    found, expected = rows(tmp_path / "out"), one_machine(photos)
    fatal = found.pop(str(photos / "007.jpg"))
    del expected[str(photos / "007.jpg")]
    assert found == expected
    assert fatal["label"] is None
    assert "2 processes ended while they had it in work alone" in fatal["error"]


INSTALL = """
import hashlib, os, sys, time
from runtime.batch.cluster.ray_engine import _install

data = bytes(2**26)
print(flush=True)
sys.stdin.readline()
place = _install(data, hashlib.sha256(data).hexdigest())
number = place.stat().st_ino
time.sleep(1)
print(number == place.stat().st_ino, file=sys.stderr)
"""


@pytest.mark.parametrize("found", ["nothing", "a damaged file"])
def test_a_model_is_not_replaced_while_another_process_opens_it(
    found: str, launch: Start, tmp_path: Path
) -> None:
    if found != "nothing":
        digest = hashlib.sha256(bytes(2**26)).hexdigest()
        damaged = tmp_path / f"vit-edge-models-{os.getuid()}" / f"{digest}.onnx"
        damaged.parent.mkdir(mode=0o700)
        damaged.write_bytes(b"damaged")
    processes = [launch("-c", INSTALL, TMPDIR=str(tmp_path)) for _ in range(4)]
    for each in processes:
        each.process.stdout.readline()  # all are about to begin
    for each in processes:
        each.process.stdin.write("\n")
        each.process.stdin.flush()
    assert [each.wait() for each in processes] == [(0, "True\n")] * 4


def test_kills_at_random_moments_lose_nothing_and_repeat_nothing(
    nodes: Nodes, start: Start, photos: Path, tmp_path: Path, rows: Any, one_machine: Any
) -> None:
    """A process, a node and the command, in any order; what ends early begins again with another output."""
    for number in range(600):
        (photos / f"more-{number:03}.jpg").symlink_to(photos / f"{number % 60:03}.jpg")
    expected = one_machine(photos)
    rng = random.Random(0)
    left = [("process", "node", "driver")[at % 3] for at in range(KILLS)]
    rng.shuffle(left)
    rounds = 0
    while left:
        rounds += 1
        out = tmp_path / f"out-{rounds}"
        begin = partial(start, photos, "--part-images", 8, "--resume", "--address", nodes.address, out=out)
        code, said = run_with_kills(begin, nodes, left, rng)
        assert code in (0, 1), said
        assert rows(out) == expected
    print(f"\n{KILLS} kills in {rounds} runs of {len(expected)} images")


def run_with_kills(begin: Callable[[], Any], nodes: Nodes, left: list[str], rng: random.Random) -> Any:
    """Run to the end, killing what `left` names while it is at work, and give how the last command ended."""
    run = begin()
    while left:
        run.wait_for_parts(run.parts() + 1)
        time.sleep(rng.uniform(0, 1))
        if not run.running():
            break
        match what := left[-1]:
            case "process":
                if not (workers := nodes.workers()):
                    continue
                rng.choice(workers).kill()
            case "node":
                nodes.order("kill")
                nodes.order("add")
            case "driver":
                run.process.kill()
                run.process.wait()
                run = begin()
        left.remove(what)
    return run.wait()
