"""An output in parts that many processes write at once: each part whole or absent, each image in one part."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import FailureError
from ..strict_json import read_field
from ..writing import OutputError
from .cluster_sources import hide_secrets, is_uri, open_location
from .output import check_settings, format_line

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

PartFormat = Literal["parquet", "jsonl"]
_NOTE = "_run.json"
# Object stores, in which a file appears with all of its bytes or not at all.
_WHOLE_WHEN_CLOSED = {"s3", "gcs", "abfs"}


class StaleRunError(FailureError):
    """A later run has taken the output over: this one must not write to it any more."""


@dataclass(frozen=True)
class Parts:
    """The folder, or URI, that a run writes its parts into. It can be sent to other machines, which see it.

    `run` is 1 for the run that began the output, one more for each that resumed it.
    """

    uri: str
    form: PartFormat
    run: int

    def write(self, number: int, rows: Sequence[Mapping[str, Any]]) -> str:
        """Write the records of chunk `number` (from 1) as a part, replacing another; return its name."""
        parquet = self.form == "parquet"
        data = _to_parquet(rows) if parquet else b"".join(format_line(row, "jsonl") for row in rows)
        name = f"part-{self.run:04}-{number:09}.{self.form}"
        _put(*self._open(), name, data)
        return name

    def list_all(self) -> list[str]:
        """List the names of the parts that exist, of all runs, sorted."""
        return [name for name in _list_names(*open_location(self.uri)) if _is_part(name)]

    def list_earlier(self) -> list[str]:
        """List the names of the parts that existed when this run began."""
        return list(_read_json(*open_location(self.uri), _name_list(self.run)))

    def read_paths(self, names: Iterable[str]) -> Iterator[str]:
        """Yield the `path` of every row of the named parts, one part at a time."""
        import pyarrow.parquet as pq

        system, folder = open_location(self.uri)
        for name in names:
            with system.open_input_file(f"{folder}/{name}") as file:
                if name.endswith(".parquet"):
                    yield from pq.read_table(file, columns=["path"]).column("path").to_pylist()
                else:
                    yield from (json.loads(line)["path"] for line in file.readall().splitlines())

    def remove_late(self) -> list[str]:
        """Remove and return parts that earlier runs wrote after this one began: it labels their images."""
        system, folder = self._open()
        new = set(self.list_all()) - set(self.list_earlier())
        late = [name for name in new if name < f"part-{self.run:04}-"]
        _remove(system, folder, late)
        return late

    def _open(self) -> tuple[FileSystem, str]:
        """Open the folder to change it; raise StaleRunError if another run has resumed it meanwhile."""
        system, folder = open_location(self.uri)
        if (found := _read_json(system, folder, _NOTE)["run"]) != self.run:
            raise StaleRunError(f"run {found} has taken over {hide_secrets(self.uri)} from run {self.run}")
        return system, folder


def open_parts(
    location: str, model: str, *, form: PartFormat | None, resume: bool, overwrite: bool, top: int = 5
) -> Parts:
    """Begin or resume an output in a folder, made if it is missing, or at a URI.

    `_run.json` in it names the model by its SHA-256, so that no output mixes the answers of two, and counts
    the runs. `_known-<run>.json` lists the parts that a run found. A `form` of None keeps the form of an
    output that is resumed, and is Parquet for a new one. What is refused is an OutputError.
    """
    location = location if is_uri(location) else os.path.abspath(location)  # noqa: PTH100 (links stay as typed)
    shown = hide_secrets(location)
    try:
        system, folder = open_location(location)
        system.create_dir(folder, recursive=True)
        names = _list_names(system, folder)
        before = _read_note(system, folder) if _NOTE in names else None
        earlier = [name for name in names if _is_part(name)]
        last = Parts(location, form or "parquet", before["run"] if before else 0)
        if resume and earlier:
            anew = "so it cannot be resumed; --overwrite begins anew"
            if before is None:
                raise OutputError(f"{shown}/{_NOTE} is gone or damaged, {anew}")
            check_settings(before, {"model": model, "top": top}, shown)
            kept = before["format"]
            if form not in (None, kept):
                raise OutputError(f"{shown} is {kept}, found --format {form}; leave --format out to resume")
            form = kept
            try:
                late = last.remove_late()  # if the last run was interrupted before it could
            except FileNotFoundError:
                raise OutputError(f"{shown}/{_name_list(last.run)} is gone, {anew}") from None
            # Not listed anew: what appears from now on is removed at the end of this run.
            earlier = [name for name in earlier if name not in late]
        elif earlier and not overwrite:
            raise OutputError(
                f"{shown} holds results already: --resume continues with them, --overwrite begins anew"
            )
        else:
            _remove(system, folder, earlier)
            earlier.clear()
        # Processes of an earlier run that was interrupted stop writing when the number grows.
        parts = Parts(location, form or "parquet", last.run + 1)
        _put(system, folder, _name_list(parts.run), json.dumps(earlier).encode())
        note = {"model": model, "format": parts.form, "top": top, "run": parts.run}
        _put(system, folder, _NOTE, (json.dumps(note) + "\n").encode())
        left_over = re.compile(r"_known-.*|\.(part-|_).*\.tmp", re.DOTALL)
        _remove(system, folder, filter(left_over.fullmatch, names))
    except OSError as error:
        raise OutputError(f"{shown}: it cannot be written to: {error.strerror or error}") from error
    return parts


def _read_note(system: FileSystem, folder: str) -> dict[str, Any] | None:
    types: dict[str, type[Any]] = {"model": str, "format": str, "run": int, "top": int}
    try:
        note = _read_json(system, folder, _NOTE)
        note = {name: read_field(note, name, kind, where=_NOTE) for name, kind in types.items()}
    except (OSError, ValueError):
        return None
    return note if note["format"] in get_args(PartFormat) else None


def _read_json(system: FileSystem, folder: str, name: str) -> Any:
    with system.open_input_file(f"{folder}/{name}") as file:
        return json.loads(file.readall())


def _name_list(run: int) -> str:
    return f"_known-{run:04}.json"


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith((".parquet", ".jsonl"))


def _list_names(system: FileSystem, folder: str) -> list[str]:
    from pyarrow.fs import FileSelector

    return sorted(info.base_name for info in system.get_file_info(FileSelector(folder)) if info.is_file)


def _remove(system: FileSystem, folder: str, names: Iterable[str]) -> None:
    for name in names:
        system.delete_file(f"{folder}/{name}")


def _put(system: FileSystem, folder: str, name: str, data: bytes) -> None:
    """Write a file of which no reader finds a half, and no crash leaves one, under its name."""
    aside = f"{folder}/.{name}.{os.urandom(4).hex()}.tmp"
    if system.type_name == "local":
        with Path(aside).open("xb") as local:  # follows no link
            local.write(data)
            local.flush()
            os.fsync(local.fileno())
        Path(aside).replace(f"{folder}/{name}")
        return
    direct = system.type_name in _WHOLE_WHEN_CLOSED
    with system.open_output_stream(f"{folder}/{name}" if direct else aside) as file:
        file.write(data)
    if not direct:
        system.move(aside, f"{folder}/{name}")


def _to_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    candidate = [("label", pa.string()), ("index", pa.int64()), ("score", pa.float64())]
    top = ("top", pa.list_(pa.struct(candidate)))
    schema = pa.schema([("path", pa.string()), *candidate, top, ("error", pa.string())])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), sink)
    return sink.getvalue()
