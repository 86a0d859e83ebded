"""Streams whose items come slowly, all at once, or never end; and what a fork finds."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from runtime import Classifier
from runtime.concurrency import in_batches, in_parallel

IMAGE = np.full((9, 9, 3), (250, 10, 10), np.uint8)


@pytest.mark.parametrize("ordered", [True, False])
def test_of_items_that_come_slowly_the_stream_lags_by_one(ordered: bool) -> None:
    """A camera, or a list of paths that another program goes on writing."""
    taken: list[int] = []
    done = threading.Semaphore(0)

    def slow() -> Iterator[int]:
        for number in range(10):
            if number:
                done.acquire()  # the item before is done when the next one comes
                time.sleep(0.001)
            taken.append(number)
            yield number

    def work(number: int) -> int:
        done.release()
        return number

    lag = [len(taken) - given for given in in_parallel(work, slow(), workers=2, ordered=ordered)]
    assert max(lag) <= 3
    assert lag[5] <= 2


def test_what_piles_up_behind_a_hard_item_melts() -> None:
    hard = threading.Event()
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            if number == 7:
                hard.set()
            yield number

    def work(number: int) -> int:
        if number == 0:
            hard.wait(10)
        return number

    lag = []
    for given in in_parallel(work, items(), workers=2):
        time.sleep(0.002)  # all that is in hand is ready
        lag.append(taken - given)
    assert lag[0] == 8  # four for each worker
    assert min(lag[:30]) <= 2


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_than_the_window_is_taken(workers: int, ordered: bool) -> None:
    taken = count()
    stream = in_parallel(lambda number: number, taken, workers=workers, ordered=ordered)
    with closing(stream):
        for given in range(50):
            found = next(stream)
            assert not ordered or found == given
    assert next(taken) <= 50 + 4 * workers + 1


def test_a_group_is_prepared_while_the_one_before_is_run() -> None:
    prepared: list[int] = []

    def run(group: list[int]) -> list[int]:
        for _ in range(500):
            if len(prepared) >= min(100, group[-1] + 1 + 8):
                break
            time.sleep(0.01)
        assert len(prepared) >= min(100, group[-1] + 1 + 8)
        return group

    def prepare(number: int) -> int:
        prepared.append(number)
        return number

    assert list(in_batches(prepare, run, range(100), workers=2, size=8)) == list(range(100))


def in_a_fork(work: Callable[[], None]) -> int:
    """Run something in a forked process, and return its exit code, or -9 where it did not end."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)  # whatever was raised
    for _ in range(2000):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9


FORK = "fork" not in multiprocessing.get_all_start_methods()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(FORK, reason="no fork on this system")
@pytest.mark.parametrize("threads", [1, 4])
def test_a_fork_takes_down_no_session_of_its_parent(threads: int, model: Path) -> None:
    """Its threads are not there, and would be waited for, for ever."""

    def ended_after(use: Callable[[Classifier], object]) -> None:
        classify = Classifier(model, threads=threads)
        list(classify.stream([IMAGE] * 3))

        def work() -> None:
            nonlocal classify
            use(classify)
            classify.close()
            del classify

        assert in_a_fork(work) == 0
        assert classify(IMAGE).label == "red"

    ended_after(lambda classify: None)
    ended_after(lambda classify: classify(IMAGE))
    ended_after(lambda classify: list(classify.stream([IMAGE] * 3)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(FORK, reason="no fork on this system")
def test_a_fork_waits_for_no_thread_that_is_not_there(model: Path) -> None:
    from runtime import loaded_model
    from runtime.batch import label_columns

    classify = Classifier(model, threads=1)
    labels = label_columns.Labels(model)
    held = threading.Event()

    def hold() -> None:
        with loaded_model._changing, label_columns._opening:
            held.set()
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    def work() -> None:
        classify(IMAGE)
        classify.close()
        labels({"path": ["a"], "bytes": [IMAGE]})

    assert in_a_fork(work) == 0
    thread.join()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(FORK, reason="no fork on this system")
def test_many_threads_of_a_fork_open_the_model_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classify = Classifier(model, threads=2)
    opened = count()
    real = Classifier._open_again

    def again(self: Classifier, state: object, threads: int | None) -> object:
        next(opened)
        return real(self, state, threads)  # type: ignore[arg-type]

    def work() -> None:
        monkeypatch.setattr(Classifier, "_open_again", again)
        threads = [threading.Thread(target=classify, args=(IMAGE,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os._exit(3 + next(opened))

    assert in_a_fork(work) == 4
