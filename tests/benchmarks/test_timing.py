from __future__ import annotations

import time

import numpy as np
import pytest

from benchmarks import timing
from benchmarks.engines import Opened
from benchmarks.timing import Timing, table, time_in_turn


def test_times_are_of_the_run_alone_and_in_turn():
    order = []

    def model(name, seconds):
        def prepare(pixels):
            time.sleep(0.05)
            return pixels

        def run(feed):
            order.append(name)
            time.sleep(seconds)
            return feed

        return Opened(prepare, run)

    found = time_in_turn({"slow": model("slow", 0.02), "fast": model("fast", 0.002)}, np.zeros(1), runs=3)
    assert order == ["slow", "fast"] + ["slow", "slow", "fast", "fast"] * 3
    assert 20 <= found["slow"].min <= found["slow"].median < 45
    assert 2 <= found["fast"].min <= found["fast"].median < 20


def test_no_runs_is_an_error():
    with pytest.raises(ValueError, match="runs must be 1 or more"):
        time_in_turn({}, np.zeros(1), runs=0)


def test_table_is_aligned_markdown():
    assert table(("", "ms"), [("a", "1.0"), ("bcd", "100.0")]).splitlines() == [
        "|     |    ms |",
        "|-----|------:|",
        "| a   |   1.0 |",
        "| bcd | 100.0 |",
    ]


def test_environment_says_whether_there_is_vnni(monkeypatch):
    monkeypatch.setattr(timing, "is_x86", lambda: True)
    monkeypatch.setattr(timing, "cpu_name", lambda: "Some CPU")
    monkeypatch.setattr(timing, "_family", lambda: "")
    for has, said in ((True, "(with VNNI, "), (False, "(without VNNI, ")):
        monkeypatch.setattr(timing, "has_vnni", lambda has=has: has)
        assert timing.environment().startswith(f"Some CPU {said}")
    assert "onnxruntime 1." in timing.environment()


def test_positive():
    assert timing.positive("3") == 3
    with pytest.raises(ValueError, match="invalid literal"):
        timing.positive("three")
    with pytest.raises(Exception, match="expected 1 or more, found 0"):
        timing.positive("0")


def test_latency_table_compares_with_the_baseline_and_with_ours():
    from benchmarks.latency import latency_table
    from benchmarks.peers import BASELINE, OURS

    times = {BASELINE: Timing(110, 100), "other": Timing(60, 50), OURS: Timing(30, 25)}
    rows = latency_table(times, {BASELINE: 4_000_000, "other": None, OURS: 1_000_000}).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells == [
        [BASELINE, "110.0", "100.0", "1.00x", "4.00x", "4.0"],
        ["other", "60.0", "50.0", "2.00x", "2.00x", ""],
        [OURS, "30.0", "25.0", "4.00x", "1.00x", "1.0"],
    ]
