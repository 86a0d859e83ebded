"""examples/lookalikes.py: numpy alone finds what is alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "lookalikes.py"


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    """Six hundred random directions, of which 3 and 500 are nearly one, and 7 and 20 quite alike."""
    rows = np.random.default_rng(0).normal(size=(600, 64))
    rows[500] = rows[3] + 0.05 * rows[500]
    rows[20] = rows[7] + 0.6 * rows[20]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    path = tmp_path / "photos.npy"
    np.save(path, rows.astype(np.float32))
    lines = [json.dumps({"path": f"photos/{index}.jpg"}) for index in range(600)]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run the script where nothing but numpy can be imported from the project."""
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, cwd="/", check=False
    )


def test_pairs_are_found_once_the_most_alike_first(embedded: Path) -> None:
    assert [line.split()[1:] for line in run(embedded).stdout.splitlines()] == [
        ["photos/3.jpg", "photos/500.jpg"]
    ]
    lines = [line.split() for line in run(embedded, "--least", "0.7").stdout.splitlines()]
    assert [line[1:] for line in lines] == [
        ["photos/3.jpg", "photos/500.jpg"],
        ["photos/7.jpg", "photos/20.jpg"],
    ]
    assert float(lines[0][0]) > 0.99 > float(lines[1][0]) > 0.7


def test_no_pair_is_said(embedded: Path) -> None:
    done = run(embedded, "--least", "0.9999")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "no pair has a cosine of 0.9999 or more (images: 600); try a lower --least\n"
    np.save(embedded, np.load(embedded)[:1])
    lines = embedded.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    embedded.with_suffix(".jsonl").write_text(lines[0] + "\n", encoding="utf-8")
    assert "(images: 1)" in run(embedded).stderr
    done = run(embedded, "--like", "photos/0.jpg")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "photos/0.jpg is the only image; embed more of them\n"


def test_what_is_most_like_one(embedded: Path) -> None:
    lines = run(embedded, "--like", "photos/500.jpg", "--count", "4").stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("photos/3.jpg")
    assert not any(line.endswith("photos/500.jpg") for line in lines)
    assert sorted(lines, reverse=True) == lines


def test_what_does_not_fit_is_said(embedded: Path) -> None:
    done = run(embedded, "--like", "photos/600.jpg")
    assert done.returncode == 2
    assert "is not among the 600 embedded images" in done.stderr
    for name, words in (("nowhere.npy", "no such file"), ("photos.jsonl", "expected the .npy file")):
        done = run(embedded.with_name(name))
        assert done.returncode == 2
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    embedded.with_suffix(".jsonl").write_text('{"path": "photos/0.jpg"}\n', encoding="utf-8")
    done = run(embedded)
    assert done.returncode == 2
    assert "expected 600 paths" in done.stderr
    embedded.with_suffix(".jsonl").unlink()
    done = run(embedded)
    assert done.returncode == 2
    assert "photos.jsonl: no such file" in done.stderr
