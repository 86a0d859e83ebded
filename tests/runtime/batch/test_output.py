"""An output that an interrupted run resumes: the same settings, one run at a time, nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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
        "import sys\nfrom pathlib import Path\nfrom runtime.batch.output import open_output\n"
        "lines, _ = open_output(Path(sys.argv[1]), 'jsonl', {}, resume=False, overwrite=True)\n"
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


def labeled(model: Path, images: Path, out: Path) -> list[bytes]:
    main([str(model), str(images), "--output", str(out)])
    return out.read_bytes().splitlines(keepends=True)


def resumed(model: Path, images: Path, out: Path) -> bytes:
    assert main([str(model), str(images), "--output", str(out), "--resume"]) in (0, 1)
    return out.read_bytes()


LINE = b'{"path": "a.png", "label": null, "index": null, "score": null, "top": null, "error": "no"}\n'


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x.jsonl", lambda lines: [*lines[:2], b"\n", *lines[2:]]),
        ("x.jsonl", lambda lines: [*lines[:2], b"# checked up to here\n", *lines[2:]]),
        ("x.jsonl", lambda lines: [*lines[:2], b"  \r\n", *lines[2:]]),
        ("x.jsonl", lambda lines: [*lines[:2], lines[2][:30], *lines[3:]]),  # two lines in one
        ("x.jsonl", lambda lines: [*lines[:2], b"\0" * 512, *lines[3:]]),  # a block that was never written
        ("x.jsonl", lambda lines: [*lines[:2], b'{"path": "a.png"}\n', *lines[2:]]),
        ("x.jsonl", lambda lines: [*lines[:2], LINE.replace(b"a.png", b"\\u0000"), *lines[2:]]),
        ("x.jsonl", lambda lines: [*lines[:2], b'"a.png"\n', *lines[2:]]),
        ("x.jsonl", lambda lines: [*lines[:2], b"[" * 100_000 + b"\n", *lines[2:]]),
        ("x.jsonl", lambda lines: [*lines[:2], *(line.replace(b"\n", b"\r") for line in lines[2:])]),
        ("x.jsonl", lambda lines: [*lines[:2], b"path,label\n"]),
        ("x.jsonl", lambda lines: [*lines[:2], b"\xff\xfe\n", *lines[2:]]),
        ("x.csv", lambda lines: [*lines[:2], b"\r\n", *lines[2:]]),
        ("x.csv", lambda lines: [*lines[:2], b"# checked up to here\r\n", *lines[2:]]),
        ("x.csv", lambda lines: [*lines[:2], b",,,,,\r\n", *lines[2:]]),
        ("x.csv", lambda lines: [*lines[:2], b"\0" * 512, *lines[3:]]),
        ("x.csv", lambda lines: [*lines[:2], *(line.replace(b"\r\n", b"\r") for line in lines[2:])]),
        ("x.csv", lambda lines: [*lines[:2], b'"odd.png,,,,,it is gone\r\n', *lines[2:]]),
        ("x.csv", lambda lines: [*lines[:2], b'"odd.png,,,,,it is gone\r\n', b"b.png,,,,,it is gone\r\n"]),
        ("x.csv", lambda lines: [*lines[:2], lines[2].rstrip() + b",more\r\n", *lines[3:]]),
    ],
)
def test_only_an_unfinished_last_line_is_cut(
    name: str,
    change: Callable[[list[bytes]], list[bytes]],
    model: Path,
    images: Path,
    tmp_path: Path,
    capsys: Err,
) -> None:
    """Whatever else stands in the file was put there by someone: the results behind it are not lost."""
    out = tmp_path / name
    lines = labeled(model, images, out)
    changed = b"".join(change(lines))
    out.write_bytes(changed)
    capsys.readouterr()
    said = refused(capsys, model, images, "--output", out, "--resume")
    assert f"damaged at byte {len(b''.join(lines[:2])):,}: expected a {out.suffix[1:]} line" in said
    assert "resume, or use a new --output" in said
    assert out.read_bytes() == changed


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b",", b";"),
        lambda data: data.replace(b",", b"\t"),
        lambda data: b"sep=,\r\n" + data,
        lambda data: data.replace(b"path,label", b"label,path", 1),
        lambda data: data.replace(b"score,", b"", 1),
        lambda data: data.decode().encode("utf-16"),
        lambda data: b"\n" + data,
        lambda data: LINE * 3,
        lambda data: b"\xef\xbb\xbf" + data.replace(b",", b";"),
        lambda data: b"not a result",
        lambda data: data.replace(b"\r\n", b"\r"),
    ],
)
def test_a_table_saved_by_another_program_is_refused_at_its_first_line(
    change: Callable[[bytes], bytes], model: Path, images: Path, tmp_path: Path, capsys: Err
) -> None:
    out = tmp_path / "x.csv"
    labeled(model, images, out)
    changed = change(out.read_bytes())
    out.write_bytes(changed)
    capsys.readouterr()
    at = 3 if changed.startswith(b"\xef\xbb\xbf") else 0
    assert f"damaged at byte {at}: " in refused(capsys, model, images, "--output", out, "--resume")
    assert out.read_bytes() == changed


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
@pytest.mark.parametrize("zeros", [1, 4096])
@pytest.mark.parametrize("cut", [0, 1, 2, 30])
def test_zeros_that_a_power_cut_leaves_are_an_unfinished_line(
    name: str, zeros: int, cut: int, model: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / name
    whole = b"".join(labeled(model, images, out))
    out.write_bytes(whole[: len(whole) - cut] + b"\0" * zeros)
    assert resumed(model, images, out) == whole
    out.write_bytes(b"\0" * zeros)
    assert resumed(model, images, out) == whole


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_mark_and_ends_of_lines_of_an_editor_are_read(
    name: str, mark: bytes, end: bytes, model: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / name
    lines = [line.rstrip(b"\r\n") for line in labeled(model, images, out)]
    edited = mark + b"".join(line + end for line in lines[:-1])
    out.write_bytes(edited + lines[-1][:20])
    found = resumed(model, images, out)
    assert found.startswith(edited)
    assert found[len(edited) :].rstrip() == lines[-1]
    if name.endswith("csv"):
        out.write_bytes(mark)
        assert len(resumed(model, images, out).splitlines()) == len(lines)  # with the names of the columns


def test_names_with_ends_of_lines_and_quotes_are_resumed_at_any_byte(
    model: Path, images: Path, tmp_path: Path
) -> None:
    for name in ('new\nline,,,,,"quoted".png', "cut\r\nhere.png"):
        (images / name).write_bytes((images / "a.png").read_bytes())
    out = tmp_path / "x.csv"
    whole = b"".join(labeled(model, images, out))
    for cut in range(len(whole) - 1, 60, -23):
        out.write_bytes(whole[:cut])
        assert resumed(model, images, out) == whole


def test_labels_longer_than_the_csv_module_reads_are_resumed(
    make_model: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    model = make_model(labels=("r" * 200_000, "g", "b"))
    out = tmp_path / "x.csv"
    whole = b"".join(labeled(model, images, out))
    out.write_bytes(whole[:-5])
    assert resumed(model, images, out) == whole


def test_images_that_are_to_be_sorted_are_not_left_unsorted(
    model: Path, images: Path, tmp_path: Path, capsys: Err
) -> None:
    """The lines that are there would be taken for sorted images."""
    out = tmp_path / "x.jsonl"
    labeled(model, images, out)
    capsys.readouterr()
    command = [model, images, "--output", out, "--resume", "--sort-into", tmp_path / "sorted"]
    assert "was written with --sort-into not given" in refused(capsys, *command)


def test_embeddings_are_not_resumed(model: Path, images: Path, tmp_path: Path, capsys: Err) -> None:
    command = [model, images, "--embeddings", tmp_path / "e.npy", "--resume"]
    assert "--resume" in refused(capsys, *command)


@pytest.mark.parametrize("suffix", [".json", ".tsv", ".ODS", ".feather", ".gz", ".png", ".onnx", ".md"])
def test_a_name_that_promises_another_format_is_refused(
    suffix: str, model: Path, images: Path, tmp_path: Path, capsys: Err
) -> None:
    out = tmp_path / f"labels{suffix}"
    assert "expected a name in .jsonl or .csv" in refused(capsys, model, images, "--output", out)
    assert not out.exists()
    assert main([str(model), str(images), "--output", str(tmp_path / "labels.2026-01-05")]) == 1


def test_standard_output_by_its_name_is_written_behind_what_is_there(
    model: Path, images: Path, tmp_path: Path
) -> None:
    """`--output /dev/stdout >> FILE`: nothing is cut, and no note is put into /dev."""
    if not Path("/dev/stdout").exists():
        pytest.skip("no /dev/stdout")
    out = tmp_path / "lines"
    out.write_bytes(b"first\n")
    command = [sys.executable, "-m", "runtime", model, images / "a.png", "--output", "/dev/stdout"]
    with out.open("ab") as file:
        subprocess.run(command, stdout=file, check=True)
    assert [line[:6] for line in out.read_bytes().splitlines()] == [b"first", b'{"path']
    assert not Path("/dev/stdout.run").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_promises_no_way_to_go_on(model: Path, images: Path, capsys: Err) -> None:
    assert main([str(model), str(images / "a.png"), "--output", "/dev/full"]) == 1
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "--resume" not in said
