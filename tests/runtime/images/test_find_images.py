"""Which files a command line means."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import find_images
from runtime.images.find_images import SkippedFiles, image_suffixes, is_folder


def names(root: Path, **options: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in find_images(root, **options)]


def test_walk(tmp_path: Path) -> None:
    for name in (
        "b.jpg",
        "a/z.PNG",
        "a/y.jpeg",
        "c.txt",
        "a.jpg/inner.webp",
        ".hidden/h.gif",
        "photo.HEIC",
        "x.pdf",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    # What is hidden a system left behind, or somebody hid: it is given only where it is named.
    assert names(tmp_path / ".hidden") == ["h.gif"]
    expected = ["a/y.jpeg", "a/z.PNG", "a.jpg/inner.webp", "b.jpg", "photo.HEIC"]
    assert names(tmp_path) == expected
    assert names(tmp_path, skip=tmp_path / "a") == [name for name in expected if not name.startswith("a/")]
    assert names(tmp_path, skip=tmp_path / "not there") == expected


def test_what_is_named_is_given(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    missing = tmp_path / "missing.jpg"
    assert list(find_images([tmp_path / "notes.txt", str(missing)])) == [tmp_path / "notes.txt", missing]
    assert list(find_images(str(missing))) == [missing]


def test_no_loop_catches_the_walk(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real.png")
    (tmp_path / "real.png").touch()
    assert names(tmp_path) == ["link.jpg", "real.png"]


@pytest.mark.parametrize(
    "target",
    ["self", "circle", "x" * 300, "nowhere", "real.png/below", "/proc/1/fd/none", "."],
)
def test_a_link_that_cannot_be_followed_hides_no_image_beside_it(target: str, tmp_path: Path) -> None:
    """To itself, in a circle, to a name that no disk allows, to nothing, below a file."""
    for number in range(5):
        (tmp_path / f"{number}.png").touch()
    (tmp_path / "real.png").touch()
    for name in ("self", "self.png"):
        (tmp_path / name).symlink_to(f"{name}" if target == "self" else target)
    (tmp_path / "circle").symlink_to("self")
    skipped = SkippedFiles()
    found = [path.name for path in find_images(tmp_path, skipped=skipped)]
    assert [name for name in found if name != "self.png"] == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "4.png",
        "real.png",
    ]
    # Both are counted: as what is given, as a file without a suffix, or as a link to a folder.
    assert len(found) - 6 + sum(skipped.counts.values()) == 3


@pytest.mark.parametrize("asked", ["is_symlink", "is_dir"])
def test_an_entry_that_may_not_be_looked_at_hides_no_image_beside_it(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link into a locked folder; an entry whose kind the disk does not tell, in a folder without x."""
    for name in ("a.png", "b.png", "locked", "locked.png"):
        (tmp_path / name).touch()
    scandir = os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name = entry.name

        def is_symlink(self) -> bool:
            return self._tell("is_symlink", self.name.startswith("locked"))

        def is_dir(self, *, follow_symlinks: bool = True) -> bool:
            return self._tell("is_dir", False)

        def _tell(self, question: str, answer: bool) -> bool:
            if question == asked and self.name.startswith("locked"):
                raise PermissionError(13, "Permission denied", self.name)
            return answer

    monkeypatch.setattr(
        os, "scandir", lambda path: contextlib.nullcontext([Entry(entry) for entry in scandir(path)])
    )
    skipped = SkippedFiles()
    found = [path.name for path in find_images(tmp_path, skipped=skipped)]
    assert found == ["a.png", "b.png", "locked.png"]
    assert skipped.counts == {"no suffix": 1}


def test_a_listing_that_breaks_off_gives_what_it_had_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    scandir = os.scandir

    def listing(path: Path) -> Iterator[os.DirEntry[str]]:
        yield from sorted(scandir(path), key=lambda entry: entry.name)[:1]
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "scandir", lambda path: contextlib.nullcontext(listing(path)))
    assert list(find_images(tmp_path)) == [tmp_path / "a.png", tmp_path]


def test_a_folder_that_holds_itself_without_a_link_is_counted_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some mounted disks show it; here its number is that of the folder around it."""
    (tmp_path / "deep" / "again").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "deep", tmp_path / "deep" / "again"):
        (folder / "p.png").touch()
    stat = Path.stat
    monkeypatch.setattr(
        Path, "stat", lambda path, **options: stat(tmp_path if path.name == "again" else path, **options)
    )
    skipped = SkippedFiles()
    found = list(find_images(tmp_path, skipped=skipped))
    assert found == [tmp_path / "deep" / "p.png", tmp_path / "p.png"]
    assert skipped.counts == {"links to folders": 1}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_and_sockets_are_judged_by_their_names(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.png").touch()
    assert names(tmp_path) == ["a.png", "pipe.png"]


@pytest.mark.skipif(os.name == "nt", reason="needs chdir deeper than a path may be long")
def test_no_junction_of_windows_catches_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To Python it is a folder, and no symbolic link; the entry is made up where there are none."""
    (tmp_path / "a.png").touch()
    (tmp_path / "loop").mkdir()
    scandir = os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.is_dir, self.is_symlink = entry.name, entry.is_dir, entry.is_symlink

        def is_junction(self) -> bool:
            return self.name == "loop"

    def listing(path: Path) -> contextlib.AbstractContextManager[list[Entry]]:
        if Path(path).name == "loop":
            return listing(tmp_path)
        return contextlib.nullcontext([Entry(entry) for entry in scandir(path)])

    monkeypatch.setattr(os, "scandir", listing)
    skipped = SkippedFiles()
    assert list(itertools.islice(find_images(tmp_path, skipped=skipped), 3)) == [tmp_path / "a.png"]
    assert skipped.counts == {"links to folders": 1}


def test_depth_does_not_stop_the_walk(tmp_path: Path) -> None:
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1200):  # deeper than Python recurses, and in all longer than a path may be
            Path("deep").mkdir()
            os.chdir("deep")
        os.chdir(here)
        (unlisted,) = names(tmp_path)
        assert unlisted.startswith("deep/deep")
        assert unlisted.count("deep") > 700
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)  # pytest's own tidying would stumble


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_may_not_be_listed_is_given_itself(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert names(tmp_path) == ["closed"]


def test_a_folder_that_cannot_be_listed_is_given_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "p.png").touch()
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert names(tmp_path) == ["closed", "p.png"]


def test_a_folder_that_vanishes_is_given_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its own listing and that of the folder around it; --sort-into looks at each folder first."""
    for folder in ("a", "b", "sorted"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.png").touch()
    found = find_images(tmp_path, skip=tmp_path / "sorted")
    assert next(found) == tmp_path / "a" / "p.png"
    (tmp_path / "b" / "p.png").unlink()
    (tmp_path / "b").rmdir()
    assert list(found) == [tmp_path / "b"]


def test_what_no_disk_can_hold_is_given_all_the_same(tmp_path: Path) -> None:
    """So that it fails where every other failure is told, and not in the middle of a walk."""
    odd = ["a" * 300, str(tmp_path / ("b" * 5000)), "zero\0byte"]
    assert [str(path) for path in find_images(odd)] == odd
    assert not any(map(is_folder, odd))


def test_any_path_will_do(tmp_path: Path) -> None:
    (tmp_path / "p.png").touch()
    with os.scandir(tmp_path.parent) as listing:
        entry = next(each for each in listing if each.name == tmp_path.name)
    assert list(find_images(entry)) == list(find_images([entry])) == [tmp_path / "p.png"]


def test_names_that_are_not_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\n.png"
    Path(os.fsdecode(name)).touch()
    assert [os.fsencode(path) for path in find_images(tmp_path)] == [name]


def test_suffixes() -> None:
    assert {".jpg", ".png", ".webp", ".avif", ".gif", ".tif", ".heic"} <= image_suffixes()
    assert not {".pdf", ".eps", ".txt", ".mpg", ".h5"} & image_suffixes()


def test_what_systems_leave_is_passed_over_and_taken_when_named(tmp_path: Path) -> None:
    for name in ("a.png", "#snapshot/b.png", ".Trashes/c.png", "System Volume Information/d.png", "._a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(find_images(tmp_path)) == [tmp_path / "a.png"]
    assert list(find_images(tmp_path / "#snapshot")) == [tmp_path / "#snapshot" / "b.png"]
    assert list(find_images(tmp_path / "._a.png")) == [tmp_path / "._a.png"]
