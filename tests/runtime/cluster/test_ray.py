"""The command on a Ray cluster: the rows of one machine, from a disk and from a store."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]


def test_the_rows_are_those_of_one_machine_and_resume_adds_none(
    start: Start, photos: Path, tmp_path: Path, rows: Any, one_machine: Any
) -> None:
    code, said = start(photos, "--part-images", 8).wait()
    assert code == 1, said  # three have no label
    assert rows(tmp_path / "out") == one_machine(photos)
    first, *more = said.splitlines()
    assert re.fullmatch(
        r"63 images in [\d.]+ s \(the first part after [\d.]+ s\), [\d.]+ per second, 3 failed", first
    )
    assert "        2  failed: it is empty (zero bytes)" in more
    assert "        1  failed: it is no image" in said
    (photos / "new.png").write_bytes((photos / "000.jpg").read_bytes())
    code, said = start(photos, "--output", tmp_path / "out", "--resume").wait()
    assert code == 0, said
    assert "1 image in " in said
    assert "63 were done before" in said
    assert len(rows(tmp_path / "out")) == 64


def test_the_tool_compares_both_engines_on_two_nodes(launch: Start, model: Path, photos: Path) -> None:
    run = launch("-m", "benchmarks.compare_engines", "rate", model, photos)
    said, errors = run.process.communicate()
    assert run.process.returncode == 0, errors
    assert re.match(r"63 images, the same rows; one machine [\d.]+ s, [\d.]+ per second; two nodes ", said), (
        said
    )


@pytest.mark.parametrize("parts", [0, 2])
def test_an_interrupted_run_says_so_in_one_line(
    parts: int, start: Start, photos: Path, tmp_path: Path, rows: Any
) -> None:
    """Ctrl-C while the cluster starts, and while it labels."""
    run = start(photos, "--part-images", 2)
    while parts == 0 and run.running() and not run.children("raylet"):
        time.sleep(0.01)
    run.wait_for_parts(parts)
    run.interrupt()
    code, said = run.wait()
    assert code == 130, said
    summary, *classes, last = said.splitlines()
    assert " images in " in summary
    assert last == (
        f"runtime: interrupted; what is done is in {tmp_path / 'out'}, the same command with --resume goes on"
    )
    assert all(line.lstrip()[0].isdigit() for line in classes), said
    assert len(rows(tmp_path / "out")) >= parts  # every part can be read
    assert not list((tmp_path / "out").glob(".part-*"))


def test_a_bucket_is_listed_read_written_and_resumed(
    start: Start, photos: Path, tmp_path: Path, one_machine: Any
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
        code, said = start(*command, "--part-images", 5, **keys).wait()
        assert code == 1, said
        code, said = start(*command, "--resume", **keys).wait()
        assert (code, "63 were done before" in said) == (0, True), said
        found: list[dict[str, Any]] = []
        for entry in s3.list_objects_v2(Bucket="bucket", Prefix="out/part-")["Contents"]:
            place = tmp_path / Path(entry["Key"]).name
            s3.download_file("bucket", entry["Key"], str(place))
            found += pq.read_table(place).to_pylist()
        expected = one_machine(photos)
        assert sorted(row["path"] for row in found) == sorted(
            f"s3://bucket/in/{Path(path).name}" for path in expected
        )
        for row in found:
            assert row | {"path": ""} == expected[str(photos / Path(row["path"]).name)] | {"path": ""}
    finally:
        store.stop()


@pytest.mark.parametrize("fails", [4, 5])
def test_a_local_cluster_gets_five_attempts(fails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives up on a busy machine; nothing of an attempt stays, and what is found stays as it was."""
    module = pytest.importorskip("runtime.batch.cluster.ray_cluster", exc_type=ImportError)
    started: list[subprocess.Popen[bytes]] = []

    def init(**_: Any) -> None:
        started.append(subprocess.Popen(["sleep", "600"]))
        if len(started) <= fails:
            raise Exception("a trace\nThe current node timed out during startup.\n")

    monkeypatch.setattr(module.ray, "init", init)
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(module.ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = os.environ.get("PYTHONPATH")
    expected = pytest.raises(module.ClusterError, match="no Ray cluster at local: The current node timed")
    try:
        with (
            expected if fails == 5 else nullcontext(),
            module.cluster(None, workers=2, model_bytes=1) as cores,
        ):
            assert cores == 2
        assert [each.wait(10) for each in started[:fails]] == [-signal.SIGKILL] * fails
        assert len(started) == 5
        assert fails == 5 or started[4].poll() is None
    finally:
        for each in started:
            each.kill()
            each.wait()
    assert os.environ.get("PYTHONPATH") == before


def test_wrong_use_is_said_in_one_line(launch: Start, model: Path, photos: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([photos], "--engine ray needs --output DIR"),
        (["-", "--output", tmp_path / "out"], "reads no standard input"),
        ([photos, "--output", tmp_path / "out", "--sort-into", "x"], "--sort-into: not possible"),
        ([photos, "--output", tmp_path / "out", "--format", "csv"], "writes --format parquet or jsonl"),
        ([photos, "--output", tmp_path / "out", "--address", "127.0.0.1:9"], "no Ray cluster at 127.0.0.1:9"),
    ):
        code, said = launch("-m", "runtime", model, *arguments, "--engine", "ray").wait()
        assert (code, len(said.splitlines())) == (2, 1), said
        assert message in said
