"""An output that an interrupted run goes on with: the same settings, one run at a time, nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.__main__ import main

Err = pytest.CaptureFixture[str]


def refused(err: Err, *arguments: object) -> str:
    assert main([str(each) for each in arguments]) == 2
    line = err.readouterr().err
    assert line.count("\n") == 1
    return line


def test_the_format_that_was_typed_is_the_one_that_is_read_again(
    model: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels.txt"
    command = [str(model), str(images), "--output", str(out), "--format", "csv"]
    main(command)
    whole = out.read_bytes()
    out.write_bytes(whole[:-20])
    kept = whole.splitlines(keepends=True)[:-1]
    seen = Path(images, "empty.jpg")
    seen.unlink()  # its line is kept all the same: nothing was begun anew
    main([*command, "--resume"])
    assert out.read_bytes().splitlines(keepends=True)[:-1] == kept
    assert str(seen).encode() in out.read_bytes()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--top", "2"], "was written with --top 5, found 2"),
        (["--min-score", "0.5"], "was written with --min-score not given, found 0.5"),
        (["--format", "csv"], "was written with --format jsonl, found csv"),
    ],
)
def test_lines_of_two_kinds_never_share_a_file(
    changed: list[str], words: str, model: Path, images: Path, tmp_path: Path, capsys: Err
) -> None:
    out = tmp_path / "lines"
    main([str(model), str(images), "--output", str(out)])
    before = out.read_bytes()
    capsys.readouterr()
    assert words in refused(capsys, model, images, "--output", out, "--resume", *changed)
    assert out.read_bytes() == before
    assert main([str(model), str(images), "--output", str(out), "--overwrite", *changed]) == 1


@contextmanager
def another_run(out: Path) -> Iterator[None]:
    """Hold the output as another process of this command does."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom runtime.batch.resume import begin\n"
        "lines, _ = begin(Path(sys.argv[1]), 'jsonl', {}, resume=False, overwrite=True)\n"
        "print(flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", script, out]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield


@pytest.mark.skipif(os.name == "nt", reason="no locks there")
def test_two_runs_never_write_one_file(model: Path, images: Path, tmp_path: Path, capsys: Err) -> None:
    """As two jobs of a timer may, where the first takes longer than the time between them."""
    out = tmp_path / "x.jsonl"
    with another_run(out):
        for way in ("--resume", "--overwrite"):
            assert "another run is writing it" in refused(capsys, model, images, "--output", out, way)
    assert main([str(model), str(images), "--output", str(out), "--resume"]) == 1
    assert out.read_bytes().count(b"\n") == 5


def test_a_disk_that_is_full_at_the_end_says_so(
    model: Path, images: Path, tmp_path: Path, capsys: Err, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network disks refuse what they have taken when the file is synced."""
    out = tmp_path / "x.jsonl"
    real = os.fsync

    def full(descriptor: int) -> None:
        if out.stat().st_size:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert main([str(model), str(images / "a.png"), "--output", str(out)]) == 1
    assert "the disk is full" in capsys.readouterr().err
