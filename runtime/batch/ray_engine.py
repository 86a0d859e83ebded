"""python -m runtime … --engine ray: the same labels, computed by a Ray cluster.

This module alone imports Ray. docs/guides/cluster.md says what Ray does and what this project does.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

from PIL import Image

from ..errors import DONE, FAILED, INTERRUPTED, FailureError, InputError, MissingPackageError, install_line
from ..images.other_formats import register_openers
from ..text import format_count
from ..writing import refuse_file_name
from .cluster_chunks import Chunk, Rows, label_chunk, list_chunks, name_image, read_and_label_chunk
from .cluster_output import PartFormat, Parts, open_parts
from .cluster_sources import StoreError, check_sources, hide_secrets, is_uri, list_stored_images
from .inputs import no_images, refuse_options
from .label_columns import Labels
from .options import RunOptions, UsageError
from .output import DoneImages
from .tally import Report, Tally

try:
    import ray
    from ray import exceptions as ray_errors
except ImportError as error:
    raise MissingPackageError(f"--engine ray needs Ray ({error}); {install_line('ray,cpu')}") from error

_CRASHES = 2  # of a process, each while it had the same image in work alone: then the image is left out
# Errors of processes, whatever they ran.
_LOST: tuple[type[Exception], ...] = (ray_errors.WorkerCrashedError, ray_errors.NodeDiedError)
_LOST += (ray_errors.LocalRayletDiedError, ray_errors.OutOfMemoryError)
_PACKAGE = Path(__file__).parents[__name__.count(".") - 1]  # the top-level package, whatever its name


class ClusterError(InputError):
    """A cluster that cannot be reached."""


class EngineError(FailureError):
    """Work on a cluster that broke off."""


def run_on_ray(options: RunOptions) -> int:
    """Label what the options of `python -m runtime` name, and return the exit code.

    Whatever cannot be used (an option, source, model, output or cluster) is an InputError.
    """
    _check_options(options)
    check_sources(options.images)
    register_openers()
    labels = Labels(options.model, sha256=options.sha256, top=options.top, max_pixels=options.max_pixels)
    labels.classifier().warm_up()
    parts = open_parts(
        str(options.output),
        labels.sha256,
        form=cast("PartFormat | None", options.format),  # csv is refused
        resume=options.resume,
        overwrite=options.overwrite,
        top=options.top,
    )
    report = Report()
    resume = f"what is done is in {hide_secrets(parts.uri)}, the same command with --resume continues"
    try:
        with connect_to_cluster(options.address) as cores:
            listed = list_stored_images(options.images, all_files=options.all_files, left_out=report.left_out)
            done = DoneImages(parts.read_paths(parts.list_earlier()))
            images = done.skip(listed, report, name_image)
            chunks = list_chunks(images, largest=options.part_images, cores=cores)
            for tally in label_on_cluster(chunks, parts, labels, processes=options.workers or cores):
                report.merge(tally)
    except KeyboardInterrupt:
        return report.end(INTERRUPTED, f"interrupted; {resume}")
    except (EngineError, StoreError, OSError) as error:  # OSError: a store that is listed or resumed from
        return report.end(FAILED, f"{getattr(error, 'strerror', None) or error}; {resume}")
    late = parts.remove_late()
    if report.found == 0:
        raise no_images(map(hide_secrets, options.images), report.left_out.counts)
    code = report.end(FAILED if report.tally.failed else DONE)
    if late:
        found = format_count(len(late), "part")
        print(f"removed {found} that the interrupted run wrote too late", file=sys.stderr)
    return code


def _check_options(options: RunOptions) -> None:
    if options.output is None:
        raise UsageError("--engine ray needs --output DIR (a folder that every node sees, or a URI)")
    if not is_uri(options.output):
        refuse_file_name(Path(options.output))
    if options.format == "csv":
        raise UsageError("--engine ray writes --format parquet or jsonl, found csv")
    if options.device not in ("auto", "cpu"):
        raise UsageError(f"--engine ray labels on CPU cores, found --device {options.device}")
    if "-" in options.images:
        raise UsageError("--engine ray reads no standard input; give a Parquet file with a column path")
    of_one_machine = ("sort_into", "copy", "null", "unordered", "verbose", "min_score", "embeddings")
    of_drift = ("monitor", "keep_unsure", "limit")
    of_devices = ("compile_cache", "partial", "chip", "performance", "finalization")
    refuse_options(options, of_one_machine + of_drift + of_devices, "--engine ray")


@contextmanager
def connect_to_cluster(address: str | None) -> Iterator[int]:
    """Connect to a running cluster, send this project's code to its nodes, and yield the number of cores."""
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        raise UsageError(
            "--engine ray needs --address HOST:PORT or the variable RAY_ADDRESS; to use one machine, leave "
            "--engine ray out"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        host, colon, port = address.rpartition(":")
        if colon and "/" not in address and port.isdecimal():
            # Where nothing listens, Ray itself would wait for minutes.
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        code = {"py_modules": [str(_PACKAGE)]}
        ray.init(address=address, runtime_env=code, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises bare ones too
        raise ClusterError(f"no Ray cluster at {address}: {_last_line(error)}") from error
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        ray.shutdown()


def label_on_cluster(
    chunks: Iterable[Chunk], parts: Parts, labels: Labels, *, processes: int
) -> Iterator[Tally]:
    """Label all chunks, as many at the same time as `processes`; yield the counts of each written part.

    The model file is of this machine, and travels to each node once. What is written before an EngineError
    stays.
    """
    # In a list Ray passes the reference and not the object: only a process without the model fetches it.
    model = [ray.put(Path(labels.model).read_bytes())]
    # A chunk is tried once. Then it is isolated, and Ray repeats that for as long as it loses the process.
    label = ray.remote(_label_chunk).options(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")
    isolate = ray.remote(_isolate_images).options(num_cpus=1, max_retries=-1, scheduling_strategy="SPREAD")
    running: dict[Any, Chunk] = {}
    waiting = iter(chunks)
    try:
        while True:
            for chunk in islice(waiting, processes - len(running)):
                running[label.remote(chunk, parts, labels, model)] = chunk
            if not running:
                return
            ray.wait(list(running))  # for the first; then all that are ready are taken at once
            for task in ray.wait(list(running), num_returns=len(running), timeout=0)[0]:
                chunk = running.pop(task)
                try:
                    tally = ray.get(task)
                except _LOST:
                    running[isolate.remote(chunk, parts, labels, model)] = chunk
                else:
                    yield tally
    except ray_errors.RayError as error:
        raise EngineError(_last_line(getattr(error, "cause", None) or error)) from error


def _label_chunk(chunk: Chunk, parts: Parts, labels: Labels, model: list[Any]) -> Tally:
    return label_chunk(chunk, parts, partial(_label_images, labels=labels, model=model))


def _label_images(chunk: Chunk, labels: Labels, model: list[Any]) -> Rows:
    register_openers()
    Image.MAX_IMAGE_PIXELS = labels.max_pixels  # Pillow's own limit is the process's
    labels.classifier(lambda: ray.get(model[0]))
    return read_and_label_chunk(chunk, labels)


def _isolate_images(chunk: Chunk, parts: Parts, labels: Labels, model: list[Any]) -> Tally:
    """Label a chunk whose process was lost, each image by a task of its own, which may be lost in turn."""
    task = ray.remote(_label_images).options(num_cpus=0, max_retries=0)

    def label_one(key: str) -> Rows:
        for _ in range(_CRASHES):
            with suppress(*_LOST):
                rows: Rows = ray.get(task.remote(chunk._replace(keys=[key]), labels, model))
                return rows
        reason = f"{_CRASHES} processes ended while they had it in work alone (no memory left, or a crash)"
        return [(labels.label(name_image((chunk.store, key)), None, reason), False)]

    return label_chunk(chunk, parts, lambda chunk: [row for key in chunk.keys for row in label_one(key)])


def _last_line(error: BaseException) -> str:
    """Return the line of a message that says what is wrong: Ray puts traces before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
