"""Labels of a Ray cluster beside those of one machine: the same rows, the time, the memory of the driver.

    python -m benchmarks.compare_engines rate model.int8.onnx photos/
    python -m benchmarks.compare_engines memory model.int8.onnx --paths 1000000

`rate` labels the photos with `python -m runtime` and on a cluster of two nodes with one core each, in turns,
and compares the rows path by path. `memory` labels a list of paths that do not exist on a local cluster, and
prints how the memory of the driver grows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from runtime.writing import temporary_folder


def compare(model: Path, photos: Path, turns: int) -> None:
    """Print images per second of both, whole commands and from the first part on."""
    command = [sys.executable, "-m", "runtime", str(model), str(photos), "--output"]
    nodes = subprocess.Popen(
        [sys.executable, "-m", "tests.support.local_cluster"],
        env=os.environ | {"RAY_worker_niceness": "0"},  # 15 otherwise: other work would slow one side alone
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert nodes.stdin is not None
    assert nodes.stdout is not None
    address = nodes.stdout.readline().strip()
    with temporary_folder() as folder:
        for turn in range(turns):
            one, many = folder / f"{turn}.jsonl", folder / str(turn)
            alone = _timed([*command, str(one), "--workers", "2"])
            on_ray = ["--engine", "ray", "--format", "jsonl", "--address", address]
            whole = _timed([*command, str(many), *on_ray])
            parts = sorted(many.glob("part-*"), key=lambda part: part.stat().st_mtime)
            expected = _rows([one])
            found = _rows(parts)
            count, first = len(expected), len(_rows(parts[:1]))
            steady = (count - first) / (parts[-1].stat().st_mtime - parts[0].stat().st_mtime)
            print(
                f"{count:,} images, {'the same' if found == expected else 'OTHER'} rows; "
                f"one machine {alone:.1f} s, {count / alone:.1f} per second; "
                f"two nodes {whole:.1f} s, {count / whole:.1f} per second ({alone / whole:.2f}×), "
                f"from the first part on {steady:.1f} ({steady * alone / count:.2f}×)",
                flush=True,
            )
    nodes.stdin.close()
    nodes.wait()


def measure_memory(model: Path, paths: int) -> None:
    """Print the memory of the driver, at the first part and at most."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from runtime.batch.cluster_chunks import list_chunks
    from runtime.batch.cluster_output import open_parts
    from runtime.batch.cluster_sources import list_stored_images
    from runtime.batch.label_columns import Labels
    from runtime.batch.ray_engine import connect_to_cluster, label_on_cluster
    from runtime.batch.tally import Tally

    labels = Labels(model)
    with temporary_folder() as folder:
        source = folder / "list.parquet"
        with pq.ParquetWriter(source, pa.schema([("path", pa.string())])) as file:
            for start in range(0, paths, 10_000):  # in pieces: the memory of this process is what is measured
                numbers = range(start, min(start + 10_000, paths))
                names = [f"/nowhere/camera-{i % 97:03}/2026/11/25/image-{i:012}.jpg" for i in numbers]
                file.write_table(pa.table({"path": names}))
        parts = open_parts(f"{folder}/out", labels.sha256, form=None, resume=False, overwrite=False)
        began, first, most, total = time.monotonic(), 0.0, 0.0, Tally()
        with connect_to_cluster("local") as cores:
            chunks = list_chunks(list_stored_images([str(source)]), largest=1000, cores=cores)
            for tally in label_on_cluster(chunks, parts, labels, processes=2):
                total.merge(tally)
                most = max(most, _resident())
                first = first or most
        print(
            f"{total.images:,} paths in {len(parts.list_all()):,} parts, {time.monotonic() - began:.0f} s; "
            f"the driver had {first:.1f} MiB at the first part, at most {most:.1f} MiB: "
            f"{most - first:.1f} more"
        )


def _timed(command: list[str]) -> float:
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: images without a label
        raise SystemExit(done.stderr)
    return time.monotonic() - began


def _rows(files: list[Path]) -> dict[str, Any]:
    rows = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
    found = {row["path"]: row for row in rows}
    if len(found) < len(rows):
        raise SystemExit("a path is there twice")
    return found


def _resident() -> float:
    """Memory of this process in MiB, as Linux counts it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    rate = commands.add_parser("rate", help="images per second, and whether the rows are the same")
    rate.add_argument("model", type=Path)
    rate.add_argument("photos", type=Path)
    rate.add_argument("--turns", type=int, default=1)
    memory = commands.add_parser("memory", help="memory of the driver")
    memory.add_argument("model", type=Path)
    memory.add_argument("--paths", type=int, default=1_000_000)
    options = parser.parse_args()
    if options.command == "rate":
        compare(options.model, options.photos, options.turns)
    else:
        measure_memory(options.model, options.paths)


if __name__ == "__main__":
    main()
