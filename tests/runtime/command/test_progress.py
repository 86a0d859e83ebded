"""Progress where standard error is a log and where it is a terminal, with a clock of the test's own."""

from __future__ import annotations

import threading

import pytest

from runtime.batch.tally import Report, count_others
from runtime.command import progress
from runtime.command.progress import VARIABLE, Cadence, Step, format_duration, print_for_people
from runtime.errors import InputError
from runtime.text import format_count


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval of a log as users have it; the other tests have none."""
    monkeypatch.delenv(VARIABLE)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_log_has_a_line_every_thirty_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    step = Step("export", "calibrating", 200, cadence=Cadence(clock, live=False), clock=clock)
    for _ in range(100):  # of a second each
        clock.now += 1
        step.update()
    assert capsys.readouterr().err.splitlines() == [
        "export: calibrating: 30 of 200 images, 0:02:50 left",
        "export: calibrating: 60 of 200 images, 0:02:20 left",
        "export: calibrating: 90 of 200 images, 0:01:50 left",
    ]


def test_a_step_without_a_count_says_how_long_it_takes(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Step("vit", "importing x", cadence=Cadence(clock, live=False), clock=clock)
    for seconds in (10, 19, 2, 29, 1):
        clock.now += seconds
        step.tick()
    assert capsys.readouterr().err.splitlines() == ["vit: importing x, 31 s", "vit: importing x, 61 s"]


def test_a_step_goes_on_from_where_it_was(clock: Clock) -> None:
    step = Step("vit", "training", 100, "step", done=40, cadence=Cadence(clock, live=False), clock=clock)
    clock.now += 10
    step.detail = "epoch 3, loss 0.500"
    step.update(20)
    assert step.line() == "vit: training: 60 of 100 steps, epoch 3, loss 0.500, 0:00:20 left"
    step.to(100)
    assert step.line() == "vit: training: 100 of 100 steps, epoch 3, loss 0.500, 10 s"


def test_a_count_without_a_total(clock: Clock) -> None:
    step = Step("export", "searching", unit="plan", cadence=Cadence(clock, live=False), clock=clock)
    step.update()
    assert step.line() == "export: searching: 1 plan, 0 s"


def test_a_terminal_has_one_line_that_changes(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    cadence = Cadence(clock, live=True)
    step = Step("export", "measuring", 1, cadence=cadence, clock=clock)
    for seconds in (0.0, 0.1, 0.15, 0.1, 0.2):
        clock.now += seconds
        step.tick()
    cadence.clear()
    line = "\r\x1b[Kmeasuring: 0 of 1 image"
    assert capsys.readouterr().err == f"{line}, 0 s{line}, 0 s{line}, 1 s\r\x1b[K"


def test_a_quiet_step_and_one_that_is_over_print_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = Step("vit", "training", 9, quiet=True, cadence=Cadence(clock, live=False), clock=clock)
    over = Step("vit", "training", 9, cadence=Cadence(clock, live=False), clock=clock)
    with over:
        pass
    clock.now += 99
    quiet.update()
    over.update()
    assert capsys.readouterr().err == ""


def test_one_long_call_is_seen_from_a_thread(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = threading.Event()

    class Telling(Cadence):
        def print(self, line: str) -> None:
            assert line == "export: writing the graph, 40 s"
            seen.set()

    monkeypatch.setattr(progress, "_TICK", 0.001)
    with Step("export", "writing the graph", cadence=Telling(clock, live=False), clock=clock):
        clock.now += 40
        assert seen.wait(60)


def test_the_batch_command_in_a_log(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(None, clock=clock, cadence=Cadence(clock, live=False))
    for index in range(4):
        clock.now += 20
        report.add(f"{index}.png", error="it is empty")
    assert capsys.readouterr().err.splitlines() == [
        "2 images, 0.1 per second, 2 failed",
        "4 images, 0.1 per second, 4 failed",
    ]


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_the_interval_is_checked(text: str, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(InputError, match=f"{VARIABLE}: expected seconds .* found '{text}'"):
        Cadence(clock, live=False)


@pytest.mark.parametrize(("text", "lines"), [("0", 0), ("5", 4), ("", 0)])
def test_the_interval_can_be_set(
    text: str, lines: int, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    cadence = Cadence(clock, live=False)
    due = 0
    for _ in range(20):
        clock.now += 1
        due += cadence.due()
    assert due == lines


@pytest.mark.parametrize(("text", "lines"), [("", [5, 35]), ("2", [*range(2, 41, 2)]), ("0", [])])
def test_the_first_line_can_come_sooner(
    text: str, lines: list[int], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """One clock for several steps: short ones in a row are not silent for long."""
    monkeypatch.setenv(VARIABLE, text)
    cadence, start, seen = Cadence(clock, live=False, first=5.0), clock.now, []
    for second in range(1, 41):
        clock.now = start + second
        if cadence.due():
            seen.append(second)
    assert seen == lines


def test_messages_take_the_place_of_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_for_people("note: this")  # captured output is no terminal
    assert capsys.readouterr().err == "note: this\n"


def test_one_and_many() -> None:
    assert [format_count(n, "image") for n in (0, 1, 2, 2000)] == [
        "0 images",
        "1 image",
        "2 images",
        "2,000 images",
    ]
    assert [format_count(n, "class", "classes") for n in (1, 3)] == ["1 class", "3 classes"]
    assert count_others(0, "label") == []
    assert count_others(1, "label") == ["      and  1 more label"]
    assert count_others(2, "failure", ", listed in x") == ["      and  2 more failures, listed in x"]


def test_durations() -> None:
    assert [format_duration(seconds) for seconds in (0.4, 59.6, 3661)] == ["0:00:00", "0:01:00", "1:01:01"]
