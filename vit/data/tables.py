"""Tables of images and their labels, several per image: CSV, or JSON Lines.

    file,labels,split             {"file": "a.jpg", "labels": ["rose", "tulip"], "split": "train"}
    a.jpg,rose;tulip,train        {"file": "b.jpg", "labels": [], "split": "test"}
    b.jpg,,test

Paths are relative to the table. `split` may be left out of every line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.images.find_images import suffix_of
from runtime.strict_json import parse_json, read_field
from vit.data.folders import DataError, split_of

FIELDS = ("file", "labels", "split")
COLUMNS = ["file", "labels"], ["file", "labels", "split"]
SEPARATOR = ";"


@dataclass(frozen=True)
class Row:
    """One image of a table."""

    file: Path
    labels: frozenset[str]
    split: str | None


def is_table(source: Path | str) -> bool:
    """Return whether a source of images is a table: a file that is named so."""
    return suffix_of(Path(source).name) in (".csv", ".jsonl") and Path(source).is_file()


def read_table(file: Path) -> list[Row]:
    """Return one row per image; none is decoded.

    Raises:
        DataError: naming the line, what was expected there and what was found.
    """
    rows, lines = list[Row](), dict[Path, int]()
    number = 1
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            for number, fields in (_read_csv if suffix_of(file.name) == ".csv" else _read_json_lines)(opened):
                row = _check_row(file.parent, fields)
                if (first := lines.setdefault(row.file, number)) != number:
                    raise ValueError(f"{row.file} is in line {first} already; write all its labels there")
                if rows and (row.split is None) != (rows[0].split is None):
                    raise ValueError("expected a split in every line or in none")
                rows.append(row)
    except (ValueError, OSError, csv.Error) as error:
        raise DataError(f"{file}, line {number}: {error}") from error
    if len(labels := frozenset[str]().union(*(row.labels for row in rows))) < 2:
        raise DataError(f"{file}: expected two or more labels, found {', '.join(labels) or 'none'}")
    return rows


def find_rarest_labels(sets: np.ndarray) -> np.ndarray:
    """Return each image's label that the fewest images have, int64 [N]; -1 for an image without any.

    Args:
        sets: the labels of images, bool [N, labels].
    """
    counts = np.where(sets, sets.sum(axis=0), len(sets) + 1)
    return np.where(sets.any(axis=1), counts.argmin(axis=1), -1)


def _read_csv(lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    """Yield the number of each line and its fields; a ValueError in the place of fields that are wrong."""
    rows = csv.reader(lines, strict=True)
    if (header := next(rows, [])) not in COLUMNS:
        expected = f"expected the columns {' or '.join(map(','.join, COLUMNS))}"
        yield 1, ValueError(f"{expected}, found {','.join(header)!r:.60}")
    for row in filter(None, rows):
        if len(row) != len(header):
            yield rows.line_num, ValueError(f"expected {len(header)} fields, found {len(row)}")
        listed = row[1].strip().split(SEPARATOR) if len(row) > 1 and row[1].strip() else []
        yield (
            rows.line_num,
            dict(zip(FIELDS, (row[0], [each.strip() for each in listed], *row[2:]), strict=False)),
        )


def _read_json_lines(lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line.strip()


def _check_row(folder: Path, fields: Any) -> Row:
    if isinstance(fields, ValueError):
        raise fields
    if isinstance(fields, str):
        try:
            fields = parse_json(fields)
        except ValueError as error:
            raise ValueError(f"expected a JSON object with {', '.join(FIELDS)}: {error}") from error
    name = read_field(fields, "file", str, where="line")
    labels = read_field(fields, "labels", list[str], where="line")
    split = read_field(fields, "split", str, where="line", default="")
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise ValueError(f"unknown field {unknown[0]!r:.60}; known: {', '.join(FIELDS)}")
    for label in labels:
        label.encode()  # JSON can hold half a character
        if not label.strip():
            raise ValueError("a label without a name")
    if not name or "\0" in name or not (path := folder / name).is_file():
        raise ValueError(f"no image {name!r:.200} in {folder}; paths are relative to the table")
    if split and split_of(split) is None:
        raise ValueError(f"expected the split train, val or test, found {split!r:.60}")
    return Row(path, frozenset(labels), split_of(split))
