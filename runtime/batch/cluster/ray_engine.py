"""Chunks of images over a Ray cluster: a listing, one process per core, a ledger of crashes.

Nothing else of the project but `ray_cluster` imports Ray.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FailureError, MissingPackageError, install_line
from ...images.other_formats import register_openers
from ...writing import write_atomically
from ..columns import Labels
from .chunks import Chunk, Job, Ledger, Summary, chunks, label_chunk
from .ray_cluster import last_line

try:
    import pyarrow as pa
    import ray
    from ray.data import DataContext
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise MissingPackageError(f"--engine ray needs Ray Data ({error}); {install_line('ray,cpu')}") from error

_QUEUED = 2**28  # bytes of the object store that names waiting to be labeled may take


class EngineError(FailureError):
    """Work on a cluster that broke off."""


def label_on_cluster(job: Job, known: list[str], labels: Labels, *, workers: int | None) -> Iterator[Summary]:
    """Label all that a job lists, and give a summary of each part as it is written.

    Args:
        job: what to do; `ray` is connected already.
        known: parts of earlier runs, whose images are left out.
        labels: what labels the images, with a model file of this machine; each node gets a copy of it.
        workers: processes in all; None is one for each core of the cluster.

    Raises:
        EngineError: if the work broke off; what is written stays.
    """
    _quiet()
    size = workers or job.cores
    model = ray.put(np.fromfile(labels.model, np.uint8))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    ledger = ray.remote(Ledger).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
    )
    attempts = ledger.remote()
    try:
        rows = (
            ray.data.read_datasource(_Listing(job, ray.put(known)), num_cpus=0, override_num_blocks=1)
            .map_batches(
                _Worker,
                batch_size=None,
                num_cpus=1,
                compute=ray.data.ActorPoolStrategy(
                    min_size=min(size, job.cores), max_size=size, max_tasks_in_flight_per_actor=2
                ),
                fn_constructor_args=(labels, [model], job, attempts),
            )
            .iter_rows()
        )
        for row in rows:
            yield pickle.loads(row["summary"])  # of our own processes
    except RayError as error:
        raise EngineError(_cause(error)) from error


class _Listing(Datasource):  # type: ignore[misc]  # Ray has no types here
    """The chunks of a job, one in each block, listed on the cluster: the driver holds none of them."""

    def __init__(self, job: Job, known: Any) -> None:
        super().__init__()
        self._job, self._known = job, known

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    # Ray gives `parallelism` by name.
    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:  # noqa: ARG002
        job, known = self._job, self._known

        def read() -> Iterator[pa.Table]:
            register_openers()
            for chunk in chunks(job, ray.get(known)):
                yield pa.table({"chunk": [pickle.dumps(chunk)]})

        size = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, size)]


class _Worker:
    """One process of the cluster: the model, open, and the chunks that come."""

    def __init__(self, labels: Labels, model: list[Any], job: Job, ledger: Any) -> None:
        from PIL import Image

        register_openers()
        Image.MAX_IMAGE_PIXELS = labels.max_pixels  # Pillow's own limit is the process's
        self._labels = labels.at(_install(ray.get(model[0]), labels.sha256))
        self._labels.classifier().warm_up()
        self._job, self._attempts = job, _Remote(ledger)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        done = [label_chunk(_chunk(each), self._job, self._labels, self._attempts) for each in batch["chunk"]]
        return {"summary": [pickle.dumps(summary) for summary in done]}


class _Remote:
    """A ledger that is another process."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger

    def begin(self, chunk: int) -> tuple[bool, list[int]]:
        careful, crashing = ray.get(self._ledger.begin.remote(chunk))
        return careful, crashing

    def note(self, chunk: int, at: int) -> None:
        ray.get(self._ledger.note.remote(chunk, at))

    def end(self, chunk: int) -> None:
        self._ledger.end.remote(chunk)


def _chunk(data: bytes) -> Chunk:
    chunk: Chunk = pickle.loads(data)
    return chunk


def _install(data: Any, sha256: str) -> Path:
    """Write the model to this node's disk, unless another process here has done so.

    Raises:
        EngineError: if what came is not what was sent, or the folder belongs to another user.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir(), f"vit-edge-models-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or (hasattr(os, "getuid") and folder.stat().st_uid != user):
        raise EngineError(f"{folder} belongs to another user; remove it, or set TMPDIR on this node")
    place = folder / f"{sha256}.onnx"
    with _alone(folder):
        if not place.is_file() or hashlib.sha256(place.read_bytes()).hexdigest() != sha256:
            if (found := hashlib.sha256(data).hexdigest()) != sha256:
                raise EngineError(f"the model arrived with SHA-256 {found}, expected {sha256}")
            write_atomically(place, data)
    return place


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time into a folder: none must replace what another opens."""
    try:
        import fcntl
    except ImportError:  # Windows: Ray has no clusters there, and a file that is open is not replaced
        yield
        return
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when it is closed, or its process ends
        yield


def _quiet() -> None:
    """Leave standard error to the command: Ray Data logs its plan and draws bars of its own."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # one row, which is one chunk, in each block
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=_QUEUED
    )
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised as well


def _cause(error: BaseException) -> str:
    """Return what a process on the cluster said last, without the trace of the engine around it."""
    while (inner := getattr(error, "cause", None)) is not None and inner is not error:
        error = inner
    return last_line(error)
