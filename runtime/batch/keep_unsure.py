"""The images to label next: the least sure of a run, spread over classes and time (--keep-unsure)."""

from __future__ import annotations

import csv
import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from math import log
from pathlib import Path
from typing import Any

from ..errors import ImageError
from ..images.find_images import is_folder
from ..text import format_count
from ..writing import explain_output_errors, temporary_folder
from .options import UsageError
from .output import Format, format_line
from .sorting import Sorter

MOST_KEPT = 100  # images, unless --limit says otherwise
LINES = "unsure.jsonl"  # beside the folders of the labels
_LEAST_DOUBT = 1e-6


class UnsureImages:
    """A reservoir of the least sure images of a run.

    An image's chance to stay grows with the square of its doubt (1 - score), so that those that stay are
    unsure and of all times of the run (weighted reservoir sampling: Efraimidis and Spirakis, 2006). No class
    has two images more than another one that has lost some. The random numbers are hashes of the paths: a
    run that is resumed keeps what one without a break keeps.

    Args:
        limit: images, at most.
        min_score: an image with this score or more is no candidate; None: every one is.
    """

    def __init__(self, limit: int, min_score: float | None) -> None:
        self._limit, self._min_score = limit, min_score
        self._classes: dict[int, list[tuple[float, str, Mapping[str, Any]]]] = {}  # heaps, by class index
        self._paths = set[str]()  # of those that are kept

    def offer(self, record: Mapping[str, Any]) -> None:
        """Keep an image, or not; `record` holds the fields of its line."""
        if not record["top"]:  # it could not be read
            return
        best = record["top"][0]
        if self._min_score is not None and best["score"] >= self._min_score:
            return
        path = record["path"]
        digest = blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        chance = (int.from_bytes(digest, "little") + 1) / (2**64 + 1)
        key = log(chance) / max(1 - best["score"], _LEAST_DOUBT) ** 2
        kept = self._classes.setdefault(best["index"], [])
        if path in self._paths:  # it is listed twice
            return
        heapq.heappush(kept, (key, path, record))
        self._paths.add(path)
        if len(self._paths) > self._limit:
            self._paths.remove(heapq.heappop(max(self._classes.values(), key=len))[1])

    def write(self, folder: Path, labels: Sequence[str]) -> str:
        """Copy the images into a new folder, each below its label, with their lines; return what was kept.

        The folder appears when it is complete.

        Raises:
            OutputError: when it cannot be written.
        """
        kept = [(index, record) for index, heap in self._classes.items() for _, _, record in heap]
        kept.sort(key=lambda each: each[1]["path"])
        lines, gone = [], 0
        folder = folder.absolute()
        with explain_output_errors(folder, begun=True), temporary_folder(folder.parent) as aside:
            made = aside / "kept"
            sorter = Sorter(made, labels, copy=True)
            for index, record in kept:
                try:
                    place = sorter.put(Path(record["path"]), index)
                except ImageError:  # it was removed after it was read
                    gone += 1
                    continue
                lines.append(format_line({**record, "file": place.relative_to(made).as_posix()}, "jsonl"))
            (made / LINES).write_bytes(b"".join(lines))
            if folder.exists():
                folder.rmdir()  # it is empty, or this fails: Windows renames to no existing folder
            made.rename(folder)
        missing = f", {gone:,} were gone" if gone else ""
        return f"kept {format_count(len(lines), 'image')} to label in {folder}{missing}"


def check_keep_unsure(folder: Path | None, limit: int | None) -> None:
    """Refuse a folder for --keep-unsure that is not new or empty, before anything is read."""
    if folder is None:
        if limit is not None:
            raise UsageError("--limit needs --keep-unsure DIR")
        return
    if not is_folder(folder.absolute().parent):
        raise UsageError(f"{folder.absolute().parent}: no such folder, make it first")
    if is_folder(folder):
        if next(folder.iterdir(), None) is not None:
            raise UsageError(f"{folder}: expected a new or empty folder for --keep-unsure, found files in it")
    elif folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder}: expected a new or empty folder for --keep-unsure, found a file")


def read_records(output: Path, form: Format) -> Iterator[dict[str, Any]]:
    """Yield the fields of the lines that an earlier run has written."""
    with output.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if form == "jsonl":
            yield from map(json.loads, filter(str.strip, file))
            return
        for row in csv.DictReader(file):
            top = json.loads(row["top"]) if row["top"] else None
            yield {**{name: value or None for name, value in row.items()}, "top": top}
