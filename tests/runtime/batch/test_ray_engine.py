"""The command on a Ray cluster: the rows of one machine, from a disk and from a store."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
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
    """Ctrl-C while it connects to the cluster, and while it labels."""
    run = start(photos, "--part-images", 2)
    while run.running() and not (tmp_path / "out" / "_run.json").exists():
        time.sleep(0.01)
    run.wait_for_parts(parts)
    run.interrupt()
    code, said = run.wait()
    assert code == 130, said
    summary, *classes, last = said.splitlines()
    assert " images in " in summary
    done = f"what is done is in {tmp_path / 'out'}"
    assert last == f"runtime: interrupted; {done}, the same command with --resume continues"
    assert all(line.lstrip()[0].isdigit() for line in classes), said
    assert len(rows(tmp_path / "out")) >= parts  # every part can be read
    assert not list((tmp_path / "out").glob(".part-*"))


def test_a_bucket_is_listed_read_written_and_resumed(
    start: Start, photos: Path, tmp_path: Path, one_machine: Any
) -> None:
    server = pytest.importorskip("moto.server", reason='needs a local S3: pip install "moto[server]"')
    import boto3
    import pyarrow.parquet as pq

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
        code, said = start(*command, "--part-images", 5).wait()
        assert code == 1, said
        code, said = start(*command, "--resume").wait()
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


def test_ray_itself_starts_a_cluster_where_it_is_asked_to(
    launch: Start, model: Path, images: Path, tmp_path: Path, rows: Any, one_machine: Any
) -> None:
    command = ["-m", "runtime", model, images, "--output", tmp_path / "out", "--format", "jsonl"]
    code, said = launch(*command, "--engine", "ray", "--address", "local").wait()
    assert code == 1, said
    assert rows(tmp_path / "out") == one_machine(images)


def test_wrong_use_is_said_in_one_line(launch: Start, model: Path, photos: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([photos], "--engine ray needs --output DIR"),
        (["-", "--output", tmp_path / "out"], "reads no standard input"),
        ([photos, "--output", tmp_path / "out", "--sort-into", "x"], "--sort-into: not possible"),
        ([photos, "--output", tmp_path / "out", "--format", "csv"], "writes --format parquet or jsonl"),
        ([photos, "--output", tmp_path / "out", "--address", "127.0.0.1:9"], "no Ray cluster at 127.0.0.1:9"),
        ([photos, "--output", tmp_path / "out"], "needs --address HOST:PORT or the variable RAY_ADDRESS"),
    ):
        code, said = launch("-m", "runtime", model, *arguments, "--engine", "ray").wait()
        assert (code, len(said.splitlines())) == (2, 1), said
        assert message in said
