"""Tables of images and their labels, several per image: CSV, or JSON Lines.

    file,labels,split             {"file": "a.jpg", "labels": ["rose", "tulip"], "split": "train"}
    a.jpg,rose;tulip,train        {"file": "b.jpg", "labels": [], "split": "test"}
    b.jpg,,test

Paths are relative to the table. `split` may be left out of every line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.images.find_images import suffix_of
from runtime.strict_json import parse_json, read_field
from vit.data.folders import DataError, split_of

SUFFIXES = (".csv", ".jsonl")
FIELDS = ("file", "labels", "split")
SEPARATOR = ";"


@dataclass(frozen=True)
class Row:
    """One image of a table."""

    file: Path
    labels: frozenset[str]
    split: str | None


@dataclass(frozen=True)
class Table:
    """The images of a table, with every label that one of them has, sorted."""

    rows: tuple[Row, ...]
    labels: tuple[str, ...]

    @property
    def splits(self) -> frozenset[str]:
        """The splits that the rows name."""
        return frozenset(row.split for row in self.rows if row.split is not None)

    def select(self, split: str) -> tuple[list[Path], np.ndarray]:
        """Return the images of a split, "all" for every image, and their labels, bool [N, labels]."""
        rows = [row for row in self.rows if split in ("all", row.split)]
        sets = [[label in row.labels for label in self.labels] for row in rows]
        return [row.file for row in rows], np.asarray(sets, bool).reshape(len(rows), len(self.labels))


def is_table(source: Path | str) -> bool:
    """Return whether a source of images is a table: a file that is named so."""
    return suffix_of(Path(source).name) in SUFFIXES and Path(source).is_file()


def read_table(file: Path) -> Table:
    """Read a table; no image is decoded.

    Raises:
        DataError: naming the line, what was expected there and what was found.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            read = _read_csv if suffix_of(file.name) == ".csv" else _read_json_lines
            rows = _check_rows(file, read(opened))
    except (ValueError, OSError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: it cannot be read ({error})") from error
    labels = tuple(sorted(frozenset[str]().union(*(row.labels for row in rows))))
    if len(labels) < 2:
        raise DataError(f"{file}: expected two or more labels, found {', '.join(labels) or 'none'}")
    return Table(rows, labels)


def find_rarest_labels(sets: np.ndarray) -> np.ndarray:
    """Return each image's label that the fewest images have, int64 [N]; -1 for an image without any.

    Args:
        sets: the labels of images, bool [N, labels].
    """
    counts = np.where(sets, sets.sum(axis=0), len(sets) + 1)
    return np.where(sets.any(axis=1), counts.argmin(axis=1), -1)


Fields = tuple[int, Any]  # number of the line, and its fields; a ValueError in their place where it has none


def _read_csv(lines: Iterator[str]) -> Iterator[Fields]:
    rows = csv.reader(lines, strict=True)
    header = next(rows, [])
    if not {"file", "labels"} <= set(header) <= set(FIELDS) or len(set(header)) < len(header):
        expected = f"expected the columns file,labels or {','.join(FIELDS)}"
        yield 1, ValueError(f"{expected}, found {','.join(header) or 'none'!r:.60}")
    for row in filter(None, rows):
        if len(row) != len(header):
            yield rows.line_num, ValueError(f"expected {len(header)} fields, found {len(row)}")
            continue
        fields: dict[str, Any] = dict(zip(header, row, strict=True))
        listed = fields["labels"].strip()
        fields["labels"] = [each.strip() for each in listed.split(SEPARATOR)] if listed else []
        yield rows.line_num, fields


def _read_json_lines(lines: Iterator[str]) -> Iterator[Fields]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, parse_json(line)
        except ValueError as error:
            yield number, ValueError(f"expected a JSON object with {', '.join(FIELDS)}: {error}")


def _check_rows(file: Path, found: Iterator[Fields]) -> tuple[Row, ...]:
    rows, places = list[Row](), dict[Path, int]()
    for number, fields in found:
        try:
            row = _read_row(file.parent, fields)
            if (first := places.setdefault(row.file, number)) != number:
                raise ValueError(f"{row.file} is in line {first} already; write all its labels there")
            if rows and (row.split is None) != (rows[0].split is None):
                raise ValueError("expected a split in every line or in none")
        except ValueError as error:
            raise DataError(f"{file}, line {number}: {error}") from error
        rows.append(row)
    return tuple(rows)


def _read_row(folder: Path, fields: Any) -> Row:
    if isinstance(fields, ValueError):
        raise fields
    name = read_field(fields, "file", str, where="line")
    labels = read_field(fields, "labels", list[str], where="line")
    split = read_field(fields, "split", str, where="line", default="") or None
    _check_names(fields, labels)
    if not name or "\0" in name or not (path := folder / name).is_file():
        raise ValueError(f"no image {name!r:.200} in {folder}; paths are relative to the table")
    if split is not None and (known := split_of(split)) is None:
        raise ValueError(f"expected the split train, val or test, found {split!r:.60}")
    return Row(path, frozenset(labels), split if split is None else known)


def _check_names(fields: Mapping[str, Any], labels: list[str]) -> None:
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise ValueError(f"unknown field {unknown[0]!r:.60}; known: {', '.join(FIELDS)}")
    for label in labels:
        label.encode()  # JSON can hold half a character
        if not label.strip():
            raise ValueError("a label without a name")
