"""python -m runtime as people run it: another process, its exit code, and what it prints."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime.batch.sorting import Sorter, name_sort_folders

MakeModel = Callable[..., Path]
FIELDS = ["path", "label", "index", "score", "top", "error"]


def run(*arguments: Any, stdin: bytes | None = None, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [
        sys.executable,
        "-m",
        "runtime",
        *(os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments),
    ]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, **options)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def parse(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def wrong_use(*arguments: Any) -> str:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_folder_gives_a_line_an_image(model: Path, images: Path) -> None:
    done = run(model, images, "--top", "2")
    assert done.returncode == 1
    records = parse(done.stdout)
    assert [list(record) for record in records] == [FIELDS] * 5
    assert [record["label"] for record in records] == ["red", "green", "blue", None, None]
    first = records[0]
    assert first["path"] == str(images / "a.png")
    assert first["index"] == 0
    assert first["top"][0] == {"label": "red", "index": 0, "score": first["score"]}
    assert len(first["top"]) == 2
    assert first["error"] is None
    assert "empty" in records[3]["error"]
    summary = done.stderr.decode()
    assert "5 images" in summary
    assert "2 failed" in summary
    assert "empty.jpg: it is empty" in summary
    assert "\r" not in summary  # no progress bar where there is no terminal


def test_all_is_well(model: Path, images: Path) -> None:
    done = run(model, images / "a.png", images / "deeper")
    assert done.returncode == 0
    assert [record["label"] for record in parse(done.stdout)] == ["red", "blue"]


def test_csv_holds_the_same(model: Path, images: Path, tmp_path: Path) -> None:
    lines = parse(run(model, images).stdout)
    assert run(model, images, "--output", tmp_path / "x.csv").stdout == b""
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [FIELDS] * 5
    for row, line in zip(rows, lines, strict=True):
        assert row["path"] == line["path"]
        assert row["label"] == (line["label"] or "")
        assert (json.loads(row["top"]) if row["top"] else None) == line["top"]
    assert run(model, images, "--format", "csv").stdout == (tmp_path / "x.csv").read_bytes()


def test_paths_on_standard_input(model: Path, images: Path) -> None:
    names = f"{images / 'a.png'}\n\n{images / 'deeper'}".encode()
    assert [r["label"] for r in parse(run(model, "-", stdin=names).stdout)] == ["red", "blue"]
    newline = images / "new\nline.png"
    shutil.copy(images / "a.png", newline)
    done = run(model, "-", "--null", stdin=os.fsencode(newline) + b"\0")
    assert parse(done.stdout)[0]["path"] == str(newline)
    assert run(model, "-", stdin=b"/no/such/image.jpg\n").returncode == 1


def test_odd_names(model: Path, images: Path, tmp_path: Path) -> None:
    odd = [
        b"carriage\rreturn.png",  # found by fuzzing: csv quoted the newline only
        b"new\nline.png",
        b"\xff\xfe.png",
        "häuschen \u2028.png".encode(),
        b"esc\x1b[31m.png",
        b'quo"te,.png',
    ]
    for name in odd:
        shutil.copy(images / "a.png", tmp_path / os.fsdecode(b"odd-" + name))
    wanted = sorted(str(path) for path in tmp_path.glob("odd-*"))
    done = run(model, *wanted)
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout + done.stderr
    assert sorted(record["path"] for record in parse(done.stdout)) == wanted
    out = tmp_path / "x.csv"
    assert run(model, *wanted, "--output", out).returncode == 0
    with out.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert sorted(row["path"] for row in csv.DictReader(file)) == wanted
    assert "0 images" in run(model, *wanted, "--output", out, "--resume").stderr.decode()


def test_csv_does_nothing_to_a_terminal_and_loses_no_label(
    make_model: MakeModel, images: Path, tmp_path: Path
) -> None:
    """On standard output no path either; in a file a path stays as it is, so that it can be found."""
    odd = "\x9b31m\u202ecat\x1b[2J\u2066\x7f\x85"
    fine = "chat\u00a0noir \u200d\n"
    model = make_model(labels=(odd, fine, "blue"))
    image = images / "esc\x1b[31m\u202e\r.png"
    image.write_bytes((images / "a.png").read_bytes())
    out = tmp_path / "x.csv"
    assert run(model, image, images / "b.jpg", "--output", out).returncode == 0
    shown = run(model, image, images / "b.jpg", "--format", "csv")
    for text in (out.read_bytes().decode(), shown.stdout.decode(), shown.stderr.decode()):
        rest = text.replace(str(image), "") if text == out.read_bytes().decode() else text
        assert not set(rest) & set(odd) - set("31mcat[2J")
    for data in (out.read_bytes(), shown.stdout):
        first, second = csv.DictReader(io.StringIO(data.decode(), newline=""))
        assert first["label"] == "\\x9b31m\\u202ecat\\x1b[2J\\u2066\\x7f\\x85"
        assert json.loads(first["top"])[0]["label"] == odd
        assert second["label"] == fine
    assert "\\x1b[31m\\u202e\\r.png" in shown.stdout.decode()
    resumed = run(model, image, images / "b.jpg", "--output", out, "--resume")
    assert "2 were done before" in resumed.stderr.decode()


def test_long_names_are_shortened_where_they_are_printed(
    make_model: MakeModel, images: Path, tmp_path: Path
) -> None:
    model = make_model(labels=("r" * 100_000, "g" * 100_000, "b" * 100_000))
    done = run(model, images, "--output", tmp_path / "x.jsonl")
    assert len(done.stderr) < 5000
    assert max(len(record["label"] or "") for record in parse((tmp_path / "x.jsonl").read_bytes())) == 100_000
    assert len(run(model, "x" * 100_000).stderr) < 5000
    assert len(run(model, images, "--top", "9" * 50_000 + "x").stderr) < 5000


def test_wrong_use_is_one_line_and_exit_2(model: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(model.read_bytes()[:100])
    assert "no such model file" in wrong_use(tmp_path / "no.onnx", images)
    assert "expected a model that python -m export made, found text" in wrong_use(
        images / "notes.txt", images
    )
    assert "damaged" in wrong_use(cut, images)
    assert "no such image" in wrong_use(model, images, tmp_path / "missing.jpg")
    assert "no images in" in wrong_use(model, tmp_path / "nothing")
    assert "--output" in wrong_use(model, images, "--resume")
    assert "--sort-into" in wrong_use(model, images, "--copy")
    assert "make it first" in wrong_use(model, images, "--output", tmp_path / "no" / "x.jsonl")
    assert "SHA-256" in wrong_use(model, images, "--sha256", "0" * 64)
    assert "no cuda" in wrong_use(model, images, "--device", "cuda")
    assert run().returncode == 2
    assert run(model, images, "--workers", "0").returncode == 2


def test_help_is_enough() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in (b"MODEL", b"--resume", b"Exit codes", b"examples", b"score"):
        assert word in done.stdout


def test_an_output_that_is_there_is_not_lost(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    run(model, images, "--output", out)
    before = out.read_bytes()
    assert "--overwrite" in wrong_use(model, images, "--output", out)
    assert out.read_bytes() == before
    assert run(model, images / "a.png", "--output", out, "--overwrite").returncode == 0
    assert len(parse(out.read_bytes())) == 1


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_resume_from_anywhere(model: Path, images: Path, tmp_path: Path, name: str) -> None:
    """Cut the output anywhere: going on gives the very same file."""
    from runtime.__main__ import main

    shutil.copy(images / "a.png", images / "new\nline.png")
    out = tmp_path / name
    command = [str(model), str(images), str(images / "a.png"), "--output", str(out)]  # a.png comes twice
    assert main(command) == 1
    whole = out.read_bytes()
    ends = {at + step for at, byte in enumerate(whole) if byte in b'\n"' for step in (0, 1)}
    for length in sorted({0, *range(5, len(whole), 97), *sorted(ends)[::7], *sorted(ends)[-4:], len(whole)}):
        out.write_bytes(whole[:length])
        main([*command, "--resume"])
        assert out.read_bytes() == whole, length


def test_resume_sees_new_images_and_keeps_its_hands_off_what_is_not_its_own(
    model: Path, make_model: MakeModel, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.jsonl"
    command = (model, images, "--output", out, "--resume")
    run(*command)  # nothing to resume: a beginning
    shutil.copy(images / "b.jpg", images / "aa.jpg")
    done = run(*command)
    assert "1 image in" in done.stderr.decode()
    assert "5 were done before" in done.stderr.decode()
    assert parse(out.read_bytes())[-1]["path"] == str(images / "aa.jpg")

    damaged = b"x" * 100 + out.read_bytes() + b"\n" * 2**22
    out.write_bytes(damaged)
    assert "damaged at byte 0" in wrong_use(*command)
    assert out.read_bytes() == damaged
    make_model(labels=("r", "g", "b"))
    assert "another model" in wrong_use(*command)
    (tmp_path / "x.jsonl.run").unlink()
    assert "cannot be resumed" in wrong_use(*command)


def test_killed_and_resumed(model: Path, images: Path, tmp_path: Path) -> None:
    for number in range(150):
        shutil.copy(images / "b.jpg", images / f"more-{number:03}.jpg")
    out, whole = tmp_path / "x.jsonl", tmp_path / "whole.jsonl"
    run(model, images, "--output", whole)
    command = [sys.executable, "-m", "runtime", model, images, "--output", out, "--resume"]
    for _ in range(3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        before = out.stat().st_size if out.exists() else 0
        while process.poll() is None and (not out.exists() or out.stat().st_size < before + 2000):
            time.sleep(0.002)
        process.kill()
        process.wait()
    run(*command[3:])
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to send")
def test_ctrl_c_ends_cleanly(model: Path, images: Path, tmp_path: Path) -> None:
    for number in range(400):
        shutil.copy(images / "b.jpg", images / f"more-{number:03}.jpg")
    out = tmp_path / "x.jsonl"
    command = [sys.executable, "-m", "runtime", model, images, "--output", out]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )
    while process.poll() is None and (not out.exists() or out.stat().st_size < 1000):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert b"--resume continues" in stderr
    assert out.read_bytes().endswith(b"\n")
    assert 0 < len(parse(out.read_bytes())) < 405


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_says_so(model: Path, images: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "runtime", model, images]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 1
    assert b"the disk is full" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_reader_that_goes_away(model: Path, images: Path) -> None:
    command = f"'{sys.executable}' -m runtime '{model}' '{images}' '{images}' | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=60)
    assert len(done.stdout.splitlines()) == 1
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_without_order_all_the_same(model: Path, images: Path) -> None:
    ordered, unordered = (
        run(model, images, *extra).stdout for extra in ([], ["--unordered", "--workers", "3"])
    )
    assert sorted(ordered.splitlines()) == sorted(unordered.splitlines())


@pytest.mark.parametrize("way", [[], ["--copy"]])
def test_sorting(model: Path, images: Path, way: list[str]) -> None:
    shutil.copy(images / "a.png", images / "deeper" / "a.png")
    Image.new("RGB", (9, 9), "red").save(images / "a.gif")
    target = images / "sorted"
    for _ in range(2):  # again, with the sorted ones inside the folder that is walked: nothing changes
        done = run(model, images, "--sort-into", target, *way)
        assert len(parse(done.stdout)) == 7
        found = {folder.name: sorted(p.name for p in folder.iterdir()) for folder in target.iterdir()}
        assert found["green"] == ["b.jpg"]
        assert found["blue"] == ["c.png"]
        assert found["red"][:2] == ["a.gif", "a.png"]
        same_content_is_one_copy = 2 if way else 3
        assert len(found["red"]) == same_content_is_one_copy
        assert set(found) == {"red", "green", "blue"}
    link = target / "green" / "b.jpg"
    assert link.is_symlink() == (not way)
    assert link.read_bytes() == (images / "b.jpg").read_bytes()


def test_labels_make_harmless_folders(tmp_path: Path) -> None:
    labels = ["crane", "Crane", "../../etc", "", ".", "..", "a/b", "nul", "tab\there", "x" * 300, "häuschen"]
    names = name_sort_folders(labels)
    assert len({name.casefold() for name in names}) == len(labels)
    root = tmp_path / "sorted"
    image = tmp_path / "p.png"
    Image.new("RGB", (1, 1)).save(image)
    sorter = Sorter(root, labels, copy=False)
    for index in range(len(labels)):
        place = sorter.put(image, index)
        assert place.resolve() == image
        assert place.parent.parent == root
        assert place.parent.name not in (".", "..", "")
    assert names[-1] == "häuschen"
    assert names[0] == "crane [0]"


def test_progress_on_a_terminal(model: Path, images: Path) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "runtime", model, images]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    seen = b""
    try:
        while chunk := os.read(master, 4096):
            seen += chunk
    except OSError:
        pass
    finally:
        os.close(master)
    assert process.wait(30) == 1
    assert b"of 5 images" in seen
    assert b"left" in seen
