"""python -m runtime: what can be known first is refused first, and nothing that exists is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from runtime.__main__ import main


@pytest.fixture
def photo(images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(images / "a.png", tmp_path / "a.png"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("runtime: ")
    return line


def test_resume_and_overwrite_exclude_each_other(
    model: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = photo.with_name("labels.jsonl")
    line = refused(capsys, model, photo, "--output", output, "--resume", "--overwrite")
    assert "--resume (continue the file) or --overwrite (replace it)" in line
    assert not output.exists()


@pytest.mark.parametrize("kind", ["image", "model", "link to the image"])
def test_an_input_is_never_overwritten(
    kind: str, model: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = {"image": photo, "model": model, "link to the image": photo.with_name("link.jsonl")}[kind]
    if kind.startswith("link"):
        target.symlink_to(photo)
    before = target.read_bytes()
    assert "is an input of this command" in refused(capsys, model, photo, "--output", target, "--overwrite")
    assert target.read_bytes() == before


def test_names_that_no_disk_can_hold_are_one_line(
    model: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a" * 300
    assert "cannot be written (File name too long)" in refused(capsys, model, photo, "--output", long)
    assert "there is no such model file" in refused(capsys, long, photo)
    assert f"{long}: no such image or folder" in refused(capsys, model, long)
    assert main([str(model), str(photo), "--sort-into", long]) == 2
    assert "File name too long" in capsys.readouterr().err


def test_zero_bytes_between_paths_ask_for_the_option(
    model: Path, photo: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `find -print0` writes them: without the option they would be one long path."""
    listed = photo.with_name("list")
    listed.write_bytes(os.fsencode(photo) + b"\0" + os.fsencode(photo) + b"\0")
    for options, code in (([], 2), (["--null"], 0)):
        with listed.open("rb") as file:
            monkeypatch.setattr("sys.stdin", file)
            assert main([str(model), "-", *options]) == code
    said = capfd.readouterr()
    assert said.out.count("\n") == 2
    assert "add --null" in said.err


def test_an_output_of_a_dash_is_standard_output(
    model: Path, photo: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    assert main([str(model), str(photo), "--output", "-"]) == 0
    assert b'"label": "red"' in capfdbinary.readouterr().out
    assert not Path("-").exists()


def test_an_output_that_cannot_be_written_is_one_line(
    model: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "found a folder" in refused(capsys, model, photo, "--output", photo.parent)
    if os.geteuid() == 0:
        return  # root may write anywhere
    locked = photo.parent / "locked"
    locked.mkdir(mode=0o500)
    assert "cannot be written" in refused(capsys, model, photo, "--output", locked / "a.jsonl")


def test_a_device_is_written_to_and_keeps_no_note(
    model: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(model), str(photo), "--output", "/dev/null"]) == 0
    assert not Path("/dev/null.run").exists()
    capsys.readouterr()
    assert "keeps nothing" in refused(capsys, model, photo, "--output", "/dev/null", "--resume")


def test_a_pipe_gets_the_lines(model: Path, photo: Path) -> None:
    pipe = photo.with_name("pipe.csv")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert main([str(model), str(photo), "--output", str(pipe)]) == 0
    lines = os.read(reader, 2**16).decode().splitlines()
    os.close(reader)
    assert [line.split(",")[0] for line in lines] == ["path", str(photo)]
    assert pipe.is_fifo()
    assert not photo.with_name("pipe.csv.run").exists()


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_path_lists_of_windows(
    start: bytes,
    model: Path,
    photo: Path,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = Path(shutil.copy(photo, tmp_path / "b.png"))
    listed = tmp_path / "list.txt"
    listed.write_bytes(start + f"{photo}\r\n\r\n{second}\r\n".encode())
    with listed.open("rb") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main([str(model), "-"]) == 0
    assert capfdbinary.readouterr().out.count(b'"error": null') == 2
