"""python -m runtime MODEL IMAGES --embeddings FILE: an array with one row per image, written as it grows."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from ..command.line import PACKAGE
from ..command.locking import only_writer_of, refuse_busy_output
from ..command.progress import Step
from ..errors import DONE, FAILED, MissingPackageError
from ..images.find_images import SkippedFiles, is_folder
from ..interrupts import raise_on_signal
from ..text import format_count
from ..writing import AtomicFile, explain_output_errors
from .field_report import start_monitor, write_field_report
from .inputs import list_images, no_images, refuse_options
from .options import RunOptions, UsageError
from .tally import Tally, describe_left_out, print_model

if TYPE_CHECKING:
    import numpy.typing as npt

_ROWS = 1024  # of a group in Parquet


def embed_images(options: RunOptions, out: Path) -> int:
    """Embed the images, write the array to `out`, and return the exit code.

    The files appear when all images are done; an interrupted run leaves none of them. The list of the rows'
    paths comes last, so a .npy file without one is of a run that was cut off.
    """
    _check_options(options, out)
    from ..embedder import Embedder

    embed = Embedder(
        options.model,
        device=options.device,
        threads=1,
        max_pixels=options.max_pixels,
        sha256=options.sha256,
        device_options=options.device_options,
    )
    if options.monitor:
        start_monitor(embed, "embedding")
    if options.verbose:
        print_model(embed.info)
    began, tally, left_out = time.monotonic(), Tally(), SkippedFiles()
    features = embed.info.outputs["embedding"]
    with raise_on_signal(), ExitStack() as stack:
        # One lock for FILE.npy and FILE.parquet, which share the list of what failed.
        stack.enter_context(only_writer_of(out.with_suffix("")))
        with explain_output_errors(out):
            files = _Files(out, features, overwrite=options.overwrite)
        stack.enter_context(explain_output_errors(out, begun=True))
        stack.callback(files.discard)
        step = stack.enter_context(Step(PACKAGE, "embedding"))
        images = list_images(
            options.images, null=options.null, all_files=options.all_files, left_out=left_out
        )
        for result in embed.stream(images, workers=options.workers, ordered=not options.unordered):
            tally.add(result.image, error=result.error)
            if result.embedding is None:
                files.fail(str(result.image), str(result.error))
            else:
                files.put(str(result.image), result.embedding)
            step.update()
        if tally.images == 0:
            raise no_images(options.images, left_out.counts)
        files.finish()
    embeddings = format_count(tally.images - tally.failed, "embedding")
    seconds = time.monotonic() - began
    lines = [
        f"{embeddings} of {format_count(features, 'feature')} in {seconds:.1f} s, {tally.failed:,} failed"
    ]
    lines += tally.list_failures(files.failed_name) + describe_left_out(left_out.counts)
    print("\n".join(lines), file=sys.stderr)
    write_field_report(embed, out)
    return FAILED if tally.failed else DONE


def _check_options(options: RunOptions, out: Path) -> None:
    if out.suffix.lower() not in (".npy", ".parquet"):
        raise UsageError(f"--embeddings: expected a name that ends in .npy or .parquet, found {out.name!r}")
    of_labels = ("output", "resume", "sort_into", "copy", "format", "min_score", "keep_unsure", "limit")
    refuse_options(options, of_labels, "--embeddings, which labels nothing")
    if not is_folder(out.absolute().parent):
        raise UsageError(f"{out.absolute().parent}: no such folder, make it first")
    for path in _name_files(out).values():
        if is_folder(path):
            raise UsageError(f"{path}: expected a file to write to, found a folder; give another name")
        _check_overwrite(path, options.overwrite)


def _check_overwrite(path: Path, overwrite: bool) -> None:
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{path} is there already; --overwrite replaces it")


def _name_files(out: Path) -> dict[str, Path]:
    """Return the array, the paths of its rows (in Parquet a column), and the list of what failed."""
    paths = {} if out.suffix.lower() == ".parquet" else {"paths": out.with_suffix(".jsonl")}
    return {"array": out, **paths, "failed": out.with_suffix(".failed.jsonl")}


class _Files:
    """The array and the lists beside it, written aside and renamed at the end."""

    def __init__(self, out: Path, features: int, *, overwrite: bool = False) -> None:
        self._final, self._overwrite = _name_files(out), overwrite
        self._check()
        self._aside: dict[str, AtomicFile] = {}
        self.failed_name = self._final["failed"].name
        self._open("array")
        try:
            parquet = out.suffix.lower() == ".parquet"
            self._sink = (_Parquet if parquet else _Npy)(self._aside["array"].path, features)
            if "paths" in self._final:
                self._open("paths")
        except BaseException:
            self._aside["array"].discard()
            raise

    def put(self, path: str, row: npt.NDArray[np.float32]) -> None:
        self._sink.put(path, row)
        if "paths" in self._aside:
            self._write_line("paths", path=path)

    def fail(self, path: str, error: str) -> None:
        if "failed" not in self._aside:
            self._open("failed")
        self._write_line("failed", path=path, error=error)

    def finish(self) -> None:
        self._sink.close()
        for aside in self._aside.values():
            aside.flush_to_disk()
        self._check()
        # No list of other images may stand beside the new array, whenever a crash comes.
        for name in ("paths", "failed"):
            if name in self._final:
                self._final[name].unlink(missing_ok=True)
        for name in ("failed", "array", "paths"):
            if name in self._aside:
                self._aside[name].commit()

    def discard(self) -> None:
        """Remove what is not finished; nothing after `finish`."""
        with suppress(OSError):  # a full disk: what is left in memory is not wanted any more
            self._sink.close()
        for aside in self._aside.values():
            aside.discard()

    def _check(self) -> None:
        """Refuse to replace what the user has not given up, or what a run that labels is writing."""
        for path in self._final.values():
            _check_overwrite(path, self._overwrite)
            refuse_busy_output(path)

    def _open(self, name: str) -> None:
        self._aside[name] = AtomicFile(self._final[name])

    def _write_line(self, name: str, **values: str) -> None:
        self._aside[name].file.write((json.dumps(values) + "\n").encode())


class _Npy:
    """Rows behind a header that is written again when their number is known."""

    def __init__(self, path: Path, features: int) -> None:
        self._file = path.open("wb")
        self._shape = [0, features]
        self._write_header()

    def put(self, _path: str, row: npt.NDArray[np.float32]) -> None:
        self._file.write(row.astype("<f4", copy=False).tobytes())
        self._shape[0] += 1

    def close(self) -> None:
        if not self._file.closed:
            with self._file:
                self._write_header()

    def _write_header(self) -> None:
        # NumPy leaves room in it for the digits of any number of rows, so that its size stays the same.
        self._file.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": tuple(self._shape)}
        npy.write_array_header_1_0(self._file, header)


class _Parquet:
    """Columns `path` and `embedding`, a fixed-size list of float32, in groups of rows."""

    def __init__(self, path: Path, features: int) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise MissingPackageError(
                "--embeddings FILE.parquet needs pyarrow: pip install pyarrow; FILE.npy does not"
            ) from error
        self._pa: Any = pa
        self._type = pa.list_(pa.float32(), features)
        self._writer = pq.ParquetWriter(path, pa.schema([("path", pa.string()), ("embedding", self._type)]))
        self._paths: list[str] = []
        self._rows: list[npt.NDArray[np.float32]] = []

    def put(self, path: str, row: npt.NDArray[np.float32]) -> None:
        self._paths.append(path.encode("utf-8", "backslashreplace").decode())
        self._rows.append(row)
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        with self._writer:
            if self._rows:
                self._flush()

    def _flush(self) -> None:
        paths, rows = self._paths, self._rows
        self._paths, self._rows = [], []  # before they are written, which may fail and is not tried again
        flat = self._pa.array(np.concatenate(rows), self._pa.float32())
        lists = self._pa.FixedSizeListArray.from_arrays(flat, type=self._type)
        self._writer.write_table(self._pa.table([paths, lists], schema=self._writer.schema))
