"""Folders for labels, and images that are put into them, whatever both are called and whatever goes wrong."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import ImageError
from runtime.__main__ import main
from runtime.batch.sorting import Sorter, name_sort_folders
from runtime.command.locking import only_writer


def noise(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    "labels",
    [
        ["cat", "cat", "cat [1]"],
        ["cat [1]", "cat", "cat", "cat [1]", "cat [1] [0]"],
        ["", "[0]", "", "[2]"],
        ["caf\u00e9", "cafe\u0301"],
        ["\U00020000" * 100, "\U00020000" * 100],
        ["\x9b31m", "\x9c31m", "\u202ecat", "cat", "\u2066cat", "ca\u200bt"],
    ],
)
def test_every_label_has_a_folder_of_its_own(labels: list[str], tmp_path: Path) -> None:
    image = noise(tmp_path / "p.png")
    sorter = Sorter(tmp_path / "sorted", labels, copy=False)
    assert len({sorter.put(image, index).parent for index in range(len(labels))}) == len(labels)
    if "cat [1]" in labels:
        assert len({name.casefold() for name in name_sort_folders(labels)}) == len(labels)
    if "caf\u00e9" in labels:
        assert name_sort_folders(labels) == [
            "caf\u00e9 [0]",
            "cafe\u0301 [1]",
        ]  # macOS takes both names for one


@pytest.mark.parametrize("copy", [True, False])
def test_an_image_that_was_edited_is_put_again(copy: bool, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    image, other = noise(tmp_path / "p.png"), noise(tmp_path / "a" / "p.png", seed=1)
    sorter = Sorter(tmp_path / "sorted", ["x"], copy=copy)
    sorter.put(other, 0)
    for seed in (2, 3):
        place = sorter.put(noise(image, seed), 0)
        assert place.name.startswith("p~")
        assert place.read_bytes() == image.read_bytes()
    assert len(list((tmp_path / "sorted" / "x").iterdir())) == 2


def test_two_images_with_one_long_name(tmp_path: Path) -> None:
    name = "\u00e9" * 123 + ".png"  # 250 bytes
    places = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        places.add(Sorter(tmp_path / "s", ["x"], copy=False).put(noise(tmp_path / folder / name), 0))
    assert len(places) == 2


def test_an_image_that_vanishes_before_it_is_copied_is_no_end_of_the_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError, match="it cannot be copied: No such file"):
        Sorter(tmp_path / "sorted", ["x"], copy=True).put(tmp_path / "gone.png", 0)
    images = tmp_path / "images"
    images.mkdir()
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        noise(images / name, seed)
    real = Sorter.put

    def put(self: Sorter, image: Path, index: int) -> Path:
        if image.name == "b.png":
            image.unlink()
        return real(self, image, index)

    monkeypatch.setattr(Sorter, "put", put)
    out = tmp_path / "x.jsonl"
    command = [str(model), str(images), "--sort-into", str(tmp_path / "s"), "--copy", "--output", str(out)]
    assert main(command) == 1
    errors = [json.loads(line)["error"] for line in out.read_text().splitlines()]
    assert errors == [None, "it cannot be copied: No such file or directory", None]


def full_disk(limit: int, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run the command where no file can grow beyond `limit` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    command: Sequence[str] = [sys.executable, "-m", "runtime", *map(str, arguments)]
    limits = (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    return subprocess.run(
        command, capture_output=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    )


def test_a_full_disk_leaves_no_half_of_a_copy(model: Path, tmp_path: Path) -> None:
    image = noise(tmp_path / "p.png")  # 12 KiB
    done = full_disk(4096, model, image, "--sort-into", tmp_path / "s", "--copy")
    assert done.returncode == 1
    assert b"File too large" in done.stderr
    assert [path for path in (tmp_path / "s").rglob("*") if path.is_file()] == []


def test_a_full_disk_leaves_no_half_of_the_embeddings(make_embedding_model: object, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    image = noise(tmp_path / "p.png")
    model = make_embedding_model()  # type: ignore[operator]
    done = full_disk(100, model, *[image] * 30, "--embeddings", folder / "e.npy")
    assert done.returncode == 1
    assert b"File too large" in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert os.listdir(folder) == []  # noqa: PTH208


def test_names_of_folders_only_show(tmp_path: Path) -> None:
    """No C0, C1, mark of direction, separator, invisible or private character, none that is half a pair."""
    odd = "\x1b\x85\x9b\u202e\u2066\u061c\u2028\u200b\ufeff\ue000\ud800\U000e0041\x00\n"
    names = name_sort_folders([f"a{each}b" for each in odd] + ["100\u00a0%", "häuschen", "犬", "🦉 owl"])
    assert all(name.isprintable() for name in names)
    assert len(set(names)) == len(names)
    assert names[-4:] == ["100 %", "häuschen", "犬", "🦉 owl"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EPERM, "Operation not permitted"),  # FAT
        (errno.EINVAL, "A required privilege is not held by the client"),  # Windows
        (errno.ENOSYS, "Function not implemented"),
        (errno.EOPNOTSUPP, "Operation not supported"),
    ],
)
def test_where_no_links_can_be_made_copy_is_named_before_any_image(
    number: int,
    words: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, words)

    monkeypatch.setattr(os, "symlink", refuse)
    image, out = noise(tmp_path / "p.png"), tmp_path / "x.jsonl"
    command = [str(model), str(image), "--output", str(out), "--sort-into", str(tmp_path / "s")]
    assert main(command) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"({words}); add --copy" in line
    assert not out.exists()
    assert main([*command, "--copy"]) == 0
    assert [path.name for path in (tmp_path / "s").rglob("*.png")] == ["p.png"]


def test_a_folder_of_a_label_on_a_disk_without_links_names_copy(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.symlink

    def refuse(source: Path, target: Path, *rest: object) -> None:
        if Path(target).name == "p.png":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(source, target)

    monkeypatch.setattr(os, "symlink", refuse)
    assert main([str(model), str(noise(tmp_path / "p.png")), "--sort-into", str(tmp_path / "s")]) == 1
    assert "add --copy" in capsys.readouterr().err


def test_a_name_that_the_other_disk_does_not_allow_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image called `a:b.png` on a card: every other image would wait behind it."""
    image = noise(tmp_path / "a:b?.png")
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if ":" in target.name:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    place = Sorter(tmp_path / "s", ["x"], copy=True).put(image, 0)
    assert place.name.startswith("a_b_~")
    assert place.suffix == ".png"
    assert place.read_bytes() == image.read_bytes()


@pytest.mark.parametrize("copy", [[], ["--copy"]])
def test_two_runs_never_sort_into_one_folder(
    copy: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two images with one name each run would replace the other's link."""
    into = tmp_path / "s"
    command = [str(model), str(noise(tmp_path / "p.png")), "--sort-into", str(into), *copy]
    found: list[int] = []
    with only_writer(into):
        other = threading.Thread(target=lambda: found.append(main(command)))
        other.start()
        other.join()
    assert found == [2]
    assert f"{into}: another process is writing to it; wait" in capsys.readouterr().err
    assert main(command) == 0


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_copy_that_was_killed_is_removed_by_the_next_run(tmp_path: Path) -> None:
    image = noise(tmp_path / "p.png")
    script = (
        "import os, shutil, signal, sys\nfrom pathlib import Path\nfrom runtime.batch.sorting import Sorter\n"
        "shutil.copyfileobj = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Sorter(Path(sys.argv[1]), ['x'], copy=True).put(Path(sys.argv[2]), 0)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "s", image], check=False)
    (left,) = (tmp_path / "s" / "x").iterdir()
    assert left.name.endswith(".tmp")
    Sorter(tmp_path / "s", ["x"], copy=True).put(image, 0)
    assert [path.name for path in (tmp_path / "s" / "x").iterdir()] == ["p.png"]
