"""The command on a Ray cluster: the same rows as one machine, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray", reason='needs Ray: pip install ".[ray]"; make ray does so in .venv-ray')

import psutil

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "RAY_ADDRESS": "",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # 15 otherwise: on a machine with other work a test would take for ever
}
Start = Callable[..., subprocess.Popen[str]]


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
def start(model: Path) -> Iterator[Start]:
    """Start the command, and leave nothing of it behind."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: Any, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "runtime", str(model), *map(str, arguments), "--engine", "ray"]
        started.append(
            subprocess.Popen(
                command, env=ENVIRONMENT | environment, stderr=subprocess.PIPE, text=True, cwd=ROOT
            )
        )
        return started[-1]

    yield begin
    for process in started:
        for child in children(process.pid):
            child.kill()
        process.kill()
        process.wait()
        process.stderr.close()


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else []


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for part in sorted(out.glob("part-*")) for line in part.read_bytes().splitlines()
    ]


def rows_of_one_machine(model: Path, source: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "runtime", str(model), str(source)],
        env=ENVIRONMENT,
        capture_output=True,
        cwd=ROOT,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_path(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert max(Counter(row["path"] for row in rows).values()) == 1  # none twice
    return {row["path"]: row for row in rows}


def wait_for_parts(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    while len(list(out.glob("part-*"))) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def test_the_rows_are_those_of_one_machine_and_resume_adds_none(
    start: Start, model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = start(photos, "--output", out, "--format", "jsonl", "--part-images", 8)
    said = run.communicate()[1]
    assert run.returncode == 1, said  # three have no label
    assert by_path(rows_of(out)) == by_path(rows_of_one_machine(model, photos))
    assert "63 images" in said
    assert "2  failed: it is empty (zero bytes)" in said
    assert "1  failed: it is no image" in said
    (photos / "new.png").write_bytes((photos / "000.jpg").read_bytes())
    again = start(photos, "--output", out, "--resume")
    said = again.communicate()[1]
    assert again.returncode == 0, said
    assert "1 image in" in said
    assert "63 were done before" in said
    assert len(by_path(rows_of(out))) == 64


def test_two_nodes_of_which_one_is_lost_and_a_process_is_killed(
    start: Start, model: Path, photos: Path, tmp_path: Path
) -> None:
    cluster = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("local_cluster.py"))],
        env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        address = cluster.stdout.readline().strip()
        out = tmp_path / "out"
        run = start(photos, "--output", out, "--format", "jsonl", "--part-images", 2, "--address", address)
        wait_for_parts(out, 2, run)
        workers = [each for each in children(cluster.pid) if "MapWorker" in " ".join(each.cmdline())]
        assert workers
        workers[0].kill()
        cluster.stdin.write("kill\n")
        cluster.stdin.flush()
        said = run.communicate()[1]
        assert run.returncode == 1, said
        assert by_path(rows_of(out)) == by_path(rows_of_one_machine(model, photos))
    finally:
        for child in children(cluster.pid):
            child.kill()
        cluster.kill()
        cluster.wait()
        cluster.stdin.close()
        cluster.stdout.close()


def test_a_killed_driver_is_resumed(start: Start, model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = start(photos, "--output", out, "--format", "jsonl", "--part-images", 2)
    wait_for_parts(out, 3, run)
    run.send_signal(signal.SIGKILL)
    run.wait()
    again = start(photos, "--output", out, "--resume")
    said = again.communicate()[1]
    assert again.returncode in (0, 1), said
    assert by_path(rows_of(out)) == by_path(rows_of_one_machine(model, photos))


FATAL = """
import os, sys
from runtime.batch.chunks import Job, Summary
from runtime.batch.columns import Labels
from runtime.batch.parts import begin
from runtime.batch.ray_engine import cluster, label_on_cluster

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
print(total.images, total.failed)
"""


def test_an_image_that_kills_every_process_is_a_row_in_the_end(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", FATAL, str(model), str(photos), str(out)],
        env=ENVIRONMENT, capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert done.stdout.split() == ["63", "4"], done.stderr
    (fatal,) = [row for row in rows_of(out) if row["path"].endswith("007.jpg")]
    assert fatal["label"] is None
    assert "2 processes ended while they had it in work alone" in fatal["error"]


def test_a_bucket_is_listed_read_written_and_resumed(
    start: Start, model: Path, photos: Path, tmp_path: Path
) -> None:
    server = pytest.importorskip("moto.server", reason='needs a local S3: pip install "moto[server]"')
    import boto3
    import pyarrow.parquet as pq

    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "secret-y", "AWS_DEFAULT_REGION": "us-east-1"}
    store = server.ThreadedMotoServer(port=0, verbose=False)
    store.start()
    try:
        _, port = store.get_host_and_port()
        s3 = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
            aws_access_key_id="x", aws_secret_access_key="y",
        )  # fmt: skip
        s3.create_bucket(Bucket="bucket")
        for path in photos.iterdir():
            s3.upload_file(str(path), "bucket", f"in/{path.name}")
        query = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        command = [f"s3://bucket/in{query}", "--output", f"s3://bucket/out{query}"]
        run = start(*command, "--part-images", 5, **keys)
        said = run.communicate()[1]
        assert run.returncode == 1, said
        again = start(*command, "--resume", **keys)
        said = again.communicate()[1]
        assert (again.returncode, "63 were done before" in said) == (0, True), said
        found: list[dict[str, Any]] = []
        for entry in s3.list_objects_v2(Bucket="bucket", Prefix="out/part-")["Contents"]:
            place = tmp_path / Path(entry["Key"]).name
            s3.download_file("bucket", entry["Key"], str(place))
            found += pq.read_table(place).to_pylist()
        expected = by_path(rows_of_one_machine(model, photos))
        for path, row in by_path(found).items():
            assert path.startswith("s3://bucket/in/")
            assert row | {"path": ""} == expected[str(photos / Path(path).name)] | {"path": ""}
        assert len(found) == len(expected)
    finally:
        store.stop()


def test_wrong_use_is_said_in_one_line(start: Start, photos: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([photos], "--engine ray needs --output DIR"),
        (["-", "--output", tmp_path / "out"], "reads no standard input"),
        ([photos, "--output", tmp_path / "out", "--sort-into", "x"], "--sort-into: not possible"),
        ([photos, "--output", tmp_path / "out", "--format", "csv"], "writes --format parquet or jsonl"),
        ([photos, "--output", tmp_path / "out", "--address", "127.0.0.1:9"], "no Ray cluster at 127.0.0.1:9"),
    ):
        run = start(*arguments)
        said = run.communicate()[1].strip().splitlines()
        assert (run.returncode, len(said)) == (2, 1), said
        assert message in said[0]
