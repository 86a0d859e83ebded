"""Faults that only show after long use: memory that grows, images lost or done twice (-m slow)."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import Classifier

pytestmark = pytest.mark.slow


def mixed_images(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    folder.mkdir()
    sizes = [(20, 30), (90, 40), (33, 250), (400, 300), (300, 400), (64, 64), (1, 500), (640, 480)]
    for number, (size, suffix) in enumerate(zip(sizes, itertools.cycle(["jpg", "png"]), strict=False)):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number}.{suffix}")
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:200])
    return sorted(folder.iterdir())


def test_memory_over_50_000_classifications(model: Path, tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    images = mixed_images(tmp_path / "mixed")
    classify = Classifier(model, threads=1)
    results = classify.stream(itertools.islice(itertools.cycle(images), 50_000), workers=4)
    sizes = []
    for number, _ in enumerate(results, start=1):
        if number % 1000 == 0:
            sizes.append(psutil.Process().memory_info().rss / 2**20)
    growth = max(sizes) - sizes[0]
    print(f"\n{sizes[0]:.1f} MiB after 1,000, at most {max(sizes):.1f}, {sizes[-1]:.1f} after {number:,}")
    assert number == 50_000
    assert growth < 10


def test_twenty_kills_lose_nothing_and_repeat_nothing(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    images = mixed_images(folder)
    for number in range(600):
        (folder / f"link-{number:04}{images[number % 9].suffix}").symlink_to(images[number % 9])
    command = [sys.executable, "-m", "runtime", model, folder, "--workers", "2", "--output"]
    whole = tmp_path / "whole.jsonl"
    assert subprocess.run([*command, whole], capture_output=True).returncode == 1
    for name, extra in (("ordered.jsonl", []), ("unordered.jsonl", ["--unordered"])):
        out, kills, rng = tmp_path / name, 0, random.Random(0)
        for _ in range(20):
            process = subprocess.Popen(
                [*command, out, "--resume", *extra], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            before = size_of(out)
            while process.poll() is None and size_of(out) == before:  # until it is at work
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.03))
            kills += process.poll() is None
            process.kill()
            process.wait()
        done = subprocess.run([*command, out, "--resume", *extra], capture_output=True)
        print(f"\n{name}: {kills} kills while at work; then {done.stderr.decode().splitlines()[0]}")
        assert kills >= 5
        lines, expected = out.read_bytes().splitlines(), whole.read_bytes().splitlines()
        assert (lines == expected) if not extra else (sorted(lines) == sorted(expected))


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
