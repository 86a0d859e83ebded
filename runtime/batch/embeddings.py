"""python -m runtime MODEL IMAGES --embeddings FILE: an array with one row per image, written as it grows."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..command.line import PACKAGE
from ..command.locking import only_writer_of, refuse_being_written
from ..command.progress import Step
from ..errors import DONE, FAILED, InputError, MissingPackageError
from ..images.find_images import LeftOut, is_folder
from ..interrupts import careful
from ..text import counted, printable
from ..writing import Aside, explained_output
from .inputs import named_images, no_images
from .options import RunOptions
from .report import left_out_lines

if TYPE_CHECKING:
    import numpy.typing as npt

_SHOWN = 10  # failures that the summary names
_LONGEST = 200  # characters of a path there
_HEADER = 128  # bytes of a .npy header: room for any number of rows
_ROWS = 1024  # of a group in Parquet


class EmbeddingsError(InputError):
    """A command line that writes no embeddings; the message says what to type instead."""


class _Sink(Protocol):
    def put(self, path: str, row: npt.NDArray[np.float32]) -> None: ...

    def close(self) -> None: ...


def run(options: RunOptions, out: Path) -> int:
    """Embed the images, write the array, and return the exit code.

    The files appear when all images are done; an interrupted run leaves none of them. The list of the rows'
    paths comes last, so a .npy file without one is of a run that was cut off.

    Args:
        options: of `python -m runtime`.
        out: the file for the embeddings.

    Raises:
        EmbeddingsError: for options that have no meaning here, an output that is there, or no images.
        MissingPackageError: for .parquet without pyarrow.
    """
    _check(options, out)
    from ..embedder import Embedder

    embed = Embedder(
        options.model,
        device=options.device,
        threads=1,
        max_pixels=options.max_pixels,
        sha256=options.sha256,
    )
    began, done, failed = time.monotonic(), 0, 0
    failures, left_out = list[str](), LeftOut()
    features = embed.info.outputs["embedding"]
    with careful(), ExitStack() as stack:
        # One lock for FILE.npy and FILE.parquet, which share the list of what failed.
        stack.enter_context(only_writer_of(out.with_suffix("")))
        with explained_output(out):
            files = _Files(out, features, overwrite=options.overwrite)
        stack.enter_context(explained_output(out, begun=True))
        stack.callback(files.discard)
        step = stack.enter_context(Step(PACKAGE, "embedding"))
        for result in embed.stream(
            named_images(options, left_out), workers=options.workers, ordered=not options.unordered
        ):
            if result.embedding is None:
                failed += 1
                files.fail(str(result.image), str(result.error))
                path = printable(str(result.image), longest=_LONGEST)
                failures += [f"{path}: {result.error}"][: _SHOWN - len(failures)]
            else:
                done += 1
                files.put(str(result.image), result.embedding)
            step.update()
        if done + failed == 0:
            raise EmbeddingsError(no_images(options.images, left_out.counts))
        files.finish()
    what = f"{counted(done, 'embedding')} of {counted(features, 'feature')}"
    lines = [f"{what} in {time.monotonic() - began:.1f} s, {failed:,} failed"]
    lines += [f"   failed  {failure}" for failure in failures]
    if failed > len(failures):
        lines.append(f"      and  {failed - len(failures):,} more, listed in {files.failed_name}")
    lines += left_out_lines(left_out.counts)
    print("\n".join(lines), file=sys.stderr)
    return FAILED if failed else DONE


def _check(options: RunOptions, out: Path) -> None:
    if out.suffix.lower() not in (".npy", ".parquet"):
        raise EmbeddingsError(
            f"--embeddings: expected a name that ends in .npy or .parquet, found {out.name!r}"
        )
    wrong = [
        name
        for name in ("output", "resume", "sort_into", "copy", "format", "min_score")
        if _said(options, name)
    ]
    if wrong:
        names = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise EmbeddingsError(f"{names}: not possible with --embeddings, which labels nothing")
    if not is_folder(out.absolute().parent):
        raise EmbeddingsError(f"{out.absolute().parent}: no such folder, make it first")
    for path in _names(out).values():
        if is_folder(path):
            raise EmbeddingsError(f"{path}: expected a file to write to, found a folder; give another name")
        if os.path.lexists(path) and not options.overwrite:
            raise _there_already(path)


def _there_already(path: Path) -> EmbeddingsError:
    return EmbeddingsError(f"{path} is there already; --overwrite replaces it")


def _said(options: RunOptions, name: str) -> bool:
    value = getattr(options, name)
    return value is not None and value is not False


def _names(out: Path) -> dict[str, Path]:
    """Return the array, the paths of its rows (in Parquet a column), and the list of what failed."""
    paths = {} if out.suffix.lower() == ".parquet" else {"paths": out.with_suffix(".jsonl")}
    return {"array": out, **paths, "failed": out.with_suffix(".failed.jsonl")}


class _Files:
    """The array and the lists beside it, written aside and renamed at the end."""

    def __init__(self, out: Path, features: int, *, overwrite: bool = False) -> None:
        self._final, self._overwrite = _names(out), overwrite
        self._check()
        self._aside: dict[str, Aside] = {}
        self.failed_name = self._final["failed"].name
        self._open("array")
        try:
            parquet = out.suffix.lower() == ".parquet"
            self._sink: _Sink = (_Parquet if parquet else _Npy)(self._aside["array"].path, features)
            if "paths" in self._final:
                self._open("paths")
        except BaseException:
            self._aside["array"].discard()
            raise

    def put(self, path: str, row: npt.NDArray[np.float32]) -> None:
        self._sink.put(path, row)
        if "paths" in self._aside:
            self._aside["paths"].file.write(_line(path=path))

    def fail(self, path: str, error: str) -> None:
        if "failed" not in self._aside:
            self._open("failed")
        self._aside["failed"].file.write(_line(path=path, error=error))

    def finish(self) -> None:
        self._sink.close()
        for aside in self._aside.values():
            aside.settle()
        self._check()
        # Nothing that tells of other images may ever stand beside the new array, whenever a crash comes.
        for name in ("paths", "failed"):
            if name in self._final:
                self._final[name].unlink(missing_ok=True)
        for name in ("failed", "array", "paths"):
            if name in self._aside:
                self._aside[name].commit()

    def discard(self) -> None:
        """Take away what is not finished; nothing after `finish`."""
        with suppress(OSError):  # a full disk: what is left in memory is not wanted any more
            self._sink.close()
        for aside in self._aside.values():
            aside.discard()

    def _check(self) -> None:
        """Refuse to replace what the user has not given up, or what a run that labels is writing."""
        for path in self._final.values():
            if os.path.lexists(path) and not self._overwrite:
                raise _there_already(path)
            refuse_being_written(path)

    def _open(self, name: str) -> None:
        self._aside[name] = Aside(self._final[name])


class _Npy:
    """Rows behind a header that is written again when their number is known."""

    def __init__(self, path: Path, features: int) -> None:
        self._file = path.open("wb")
        self._features, self._rows = features, 0
        self._file.write(b" " * _HEADER)

    def put(self, _path: str, row: npt.NDArray[np.float32]) -> None:
        self._file.write(row.astype("<f4", copy=False).tobytes())
        self._rows += 1

    def close(self) -> None:
        if self._file.closed:
            return
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({self._rows}, {self._features}), }}"
        size = _HEADER - 10  # behind the magic, the version and the length itself
        with self._file:
            self._file.seek(0)
            self._file.write(b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little"))
            self._file.write(text.ljust(size - 1).encode() + b"\n")


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


def _line(**values: str) -> bytes:
    return (json.dumps(values) + "\n").encode()
