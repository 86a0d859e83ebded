"""Process a stream of any length with several threads and bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")


def in_parallel(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int,
    ordered: bool = True,
    ahead: int | None = None,
) -> Generator[R, None, None]:
    """Yield the results of `function` for the items, computed by several threads.

    A result is yielded after the next item was taken, so slow items delay it by one item. Closing the
    generator drops the items that no thread has begun.

    Args:
        function: called with one item, in any of the threads. Its first exception ends the stream.
        items: taken as they are needed; they may be endless.
        workers: number of threads.
        ordered: yield the results in the order of the items; False: as soon as they are ready.
        ahead: number of items that are in work or ready; None: up to four per worker, so that the other
            workers continue while one has a slow item.
    """
    window = max(ahead or 4 * workers, workers)
    with ThreadPoolExecutor(workers, thread_name_prefix="runtime") as pool:
        pending: list[Future[R]] = []
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                for _ in range(1 if ahead else 2):  # two: works off results that wait for a slow item
                    if future := _next(pending, ordered, wait_for_it=len(pending) >= window):
                        yield future.result()
            while future := _next(pending, ordered, wait_for_it=True):
                yield future.result()
        finally:
            for future in pending:
                future.cancel()


def _next(pending: list[Future[R]], ordered: bool, *, wait_for_it: bool) -> Future[R] | None:
    """Remove the future whose result comes next from the list and return it; None where none is ready."""
    choice = pending[:1] if ordered else pending
    if wait_for_it and choice:
        wait(choice, return_when=FIRST_COMPLETED)
    future = next((each for each in choice if each.done()), None)
    if future is not None:
        pending.remove(future)
    return future


def in_batches(
    prepare: Callable[[T], R],
    run: Callable[[list[R]], Iterable[S]],
    items: Iterable[T],
    *,
    workers: int,
    size: int,
) -> Iterator[S]:
    """Yield the results of `run` for groups of items; threads `prepare` a group while the last one runs."""
    with closing(in_parallel(prepare, items, workers=workers, ahead=2 * size)) as prepared:
        while group := list(islice(prepared, size)):
            yield from run(group)
