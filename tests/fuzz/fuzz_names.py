"""Fuzz the names of files, folders and labels: paths come back from the output, no label leads outside.

pip install atheris
python tests/fuzz/fuzz_names.py CORPUS -max_total_time=600
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports():
    from runtime.batch.output import choose_output_format, open_output
    from runtime.batch.sorting import Sorter, name_sort_folders
    from runtime.classifier import Result
    from runtime.images.find_images import find_images
    from runtime.text import make_printable

ROOT = Path(tempfile.mkdtemp(prefix="fuzz-names-"))


def one_input(data: bytes) -> None:
    root = ROOT / "round"
    (root / "images").mkdir(parents=True)
    try:
        made = make_images(root / "images", data.split(b"\0")[:8])
        found = list(find_images(root / "images"))
        assert sorted(found) == sorted(made), (found, made)
        for name in ("x.jsonl", "x.csv"):
            check_output(root / name, found)
        labels = [part.decode("utf-8", "surrogateescape") for part in data.split(b"\0")[:8]]
        check_labels(root, labels)
    finally:
        shutil.rmtree(root)


def make_images(folder: Path, names: list[bytes]) -> set[Path]:
    made = set()
    for name in names:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name.strip(b"/.") + b".png"))
        try:
            if os.path.commonpath([os.path.normpath(path), folder]) != str(folder) or ".." in path.parts:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except (OSError, ValueError):  # too long, or in a folder that is a file
            continue
        made.add(path)
    return {path for path in made if path.suffix == ".png"}


def check_output(file: Path, paths: list[Path]) -> None:
    form = choose_output_format(file)
    lines, _ = open_output(file, form, {"model": "none"}, resume=False, overwrite=False)
    for path in paths:
        lines.write(Result(path, None, "none"))
        assert make_printable(str(path)).isprintable()
    lines.close()
    size = file.stat().st_size
    again, done = open_output(file, form, {"model": "none"}, resume=True, overwrite=False)
    again.close()
    assert file.stat().st_size == size
    assert all(done.take(path) for path in paths)
    assert not any(done.take(path) for path in paths)


def check_labels(root: Path, labels: list[str]) -> None:
    names = name_sort_folders(labels)
    assert len({name.casefold() for name in names}) == len(labels)
    source = root / "source.png"
    source.touch()
    sorter = Sorter(root / "sorted", labels, copy=False)
    for index in range(len(labels)):
        place = sorter.put(source, index)
        assert place.parent.parent == root / "sorted"
        assert place.parent.resolve().parent == (root / "sorted").resolve()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
    shutil.rmtree(ROOT)
