"""Kills on a Ray cluster cost time: no image is lost, and none is labeled twice."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Start = Callable[..., Any]
KILLS = int(os.environ.get("KILLS", "6"))  # 20 take some minutes


def test_a_lost_process_and_a_lost_node_cost_no_row(
    nodes: Any, start: Start, photos: Path, tmp_path: Path, rows: Any, one_machine: Any
) -> None:
    run = start(photos, "--part-images", 2)
    run.wait_for_parts(2)
    assert run.running(), run.wait()
    while not (workers := nodes.workers()):
        assert run.running(), run.wait()
    workers[0].kill()
    nodes.order("kill")
    nodes.order("add")
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
from pathlib import Path
from runtime.batch.cluster_chunks import list_chunks
from runtime.batch.cluster_output import open_parts
from runtime.batch.cluster_sources import list_stored_images
from runtime.batch.label_columns import Labels
from runtime.batch.ray_engine import connect, label_on_cluster
from runtime.batch.tally import Tally

class Fatal(Labels):
    '''What the kernel does to a process that an image makes too large.'''
    def label(self, path, content, error=None):
        if path.endswith("007.jpg") and content:
            os.kill(os.getpid(), 9)
        return super().label(path, content, error)

model, photos, out, address = sys.argv[1:]
labels = Fatal(model)
parts = open_parts(out, labels.sha256, form="jsonl", resume=False, overwrite=False)
total = Tally()
with connect(address) as cores:
    chunks = list_chunks(list_stored_images([photos]), largest=1000, cores=cores)
    for tally in label_on_cluster(chunks, parts, labels, processes=cores):
        total.merge(tally)
print(total.images, total.failed, file=sys.stderr)
"""


def test_an_image_that_kills_every_process_is_a_row_in_the_end(
    launch: Start, nodes: Any, model: Path, photos: Path, tmp_path: Path, rows: Any, one_machine: Any
) -> None:
    code, said = launch("-c", FATAL, model, photos, tmp_path / "out", nodes.address).wait()
    assert (code, said.splitlines()[-1:]) == (0, ["63 4"]), said
    found, expected = rows(tmp_path / "out"), one_machine(photos)
    fatal = found.pop(str(photos / "007.jpg"))
    del expected[str(photos / "007.jpg")]
    assert found == expected
    assert fatal["label"] is None
    assert "2 processes ended while they had it in work alone" in fatal["error"]


def test_kills_at_random_moments_lose_nothing_and_repeat_nothing(
    nodes: Any, start: Start, photos: Path, tmp_path: Path, rows: Any, one_machine: Any
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
        begin = partial(start, photos, "--part-images", 8, "--resume", out=out)
        code, said = run_with_kills(begin, nodes, left, rng)
        assert code in (0, 1), said
        assert rows(out) == expected
    print(f"\n{KILLS} kills in {rounds} runs of {len(expected)} images")


def run_with_kills(begin: Callable[[], Any], nodes: Any, left: list[str], rng: random.Random) -> Any:
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
