"""Files that a walk skips: counted by every command, and named."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from export.image_sets import choose_images
from runtime import find_images
from runtime.__main__ import main
from runtime.images.find_images import SkippedFiles, describe_skipped
from vit.data.datasets import DataError, open_images
from vit.data.training_images import open_data

NAMES = ("a.dng", "b.DNG", "c.jxl", "notes", "d.svg", ".hidden.exr", "Thumbs.db", "archive.tar.gz")
LINE = "skipped 6 files: .dng 2, .gz 1, .jxl 1, .svg 1, no suffix 1"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with one image, files of other suffixes, and a link to a folder."""
    folder = tmp_path / "mixed"
    (folder / "deeper").mkdir(parents=True)
    Image.new("RGB", (9, 9), "red").save(folder / "deeper" / "red.png")
    for name in NAMES:
        (folder / name).write_bytes(b"no image")
    return folder


def walk(folder: Path, **options: bool) -> tuple[list[str], dict[str, int]]:
    skipped = SkippedFiles()
    found = [path.name for path in find_images(folder, skipped=skipped, **options)]
    return found, dict(skipped.counts)


def test_files_of_other_suffixes_are_counted_and_links_to_folders(mixed: Path) -> None:
    found, counts = walk(mixed)
    assert found == ["red.png"]
    assert describe_skipped(counts) == LINE
    (mixed / "again").symlink_to(mixed)
    (mixed / "gone").symlink_to(mixed / "nowhere")
    _, counts = walk(mixed)
    assert (
        describe_skipped(counts)
        == LINE.replace("6 files", "7 files")
        .replace("suffix 1", "suffix 2")
        .replace(".dng 2, .gz 1, .jxl 1, .svg 1, no suffix 2", ".dng 2, no suffix 2, .gz 1, .jxl 1, .svg 1")
        + "; 1 link to a folder"
    )


def test_all_files_leaves_out_what_systems_left_behind_alone(mixed: Path) -> None:
    found, counts = walk(mixed, all_files=True)
    assert sorted(found) == ["a.dng", "archive.tar.gz", "b.DNG", "c.jxl", "d.svg", "notes", "red.png"]
    assert counts == {}


def test_the_line_is_short_whatever_the_files_are_called() -> None:
    skipped = SkippedFiles()
    for number in range(5000):
        skipped.add_file(f"file.x{number}")
    skipped.add_file("file." + "y" * 100)
    skipped.add_file("file.\x1b[2J")
    assert len(skipped.counts) <= 201
    line = describe_skipped(skipped.counts)
    assert line.startswith("skipped 5,002 files: other 4,802, .x0 1, .x1 1,")
    assert line.endswith(", others 191")
    skipped = SkippedFiles()
    skipped.add_file("a.\x1b[2J")
    assert describe_skipped(skipped.counts) == "skipped 1 file: .\\x1b[2j 1"
    assert describe_skipped({}) == ""


def test_a_million_names_take_no_memory() -> None:
    skipped = SkippedFiles()
    tracemalloc.start()
    for number in range(20_000):
        skipped.add_file(f"{number}.s{number}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


def test_the_summary_names_them(model: Path, mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), str(mixed)]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"{LINE} (--all-files tries each as an image)"
    assert main([str(model), str(mixed), "--all-files"]) == 1
    error = capsys.readouterr().err
    assert "7 images in" in error
    assert "skipped" not in error


def test_the_summary_of_embeddings_names_them(
    make_embedding_model: object, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_embedding_model()  # type: ignore[operator]
    assert main([str(model), str(mixed), "--embeddings", str(tmp_path / "e.npy")]) == 0
    assert capsys.readouterr().err.splitlines()[-1].startswith(LINE)


def test_a_folder_with_nothing_else_says_so(
    model: Path, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mixed / "deeper" / "red.png").unlink()
    (mixed / "deeper").rmdir()
    assert main([str(model), str(mixed)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"runtime: no images in {mixed}; {LINE}; --all-files tries each as an image"
    with pytest.raises(DataError, match=r"no images here \(skipped 6 files: \.dng 2"):
        open_images(mixed)


def test_training_and_calibration_count_them_once(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        (folder / "raw.cr2").touch()
    expected = "skipped 2 files: .cr2 2; to use them, convert them to JPEG or PNG"
    data = open_data(tmp_path / "photos", holdout=0.2)  # train and val are parts of one walk
    assert data.val is not None
    assert expected in data.notes
    chosen = choose_images(tmp_path / "photos", None, samples=4, evaluation_samples=None)
    assert chosen.notes == (expected,)
    for path in tmp_path.rglob("*.cr2"):
        path.unlink()
    assert not [note for note in open_data(tmp_path / "photos", holdout=0.2).notes if "skipped" in note]
