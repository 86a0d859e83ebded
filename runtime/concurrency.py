"""Work on a long stream with several threads, and a bounded part of it in hand."""

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
    """Yield the results of `function` for the items, computed by `workers` threads.

    A result is given once an item after it was taken: of items that come slowly, it lags behind by one.

    Args:
        function: called with one item, on any of the threads.
        items: taken as they are needed; a stream without end is possible.
        workers: number of threads.
        ordered: give the results in the order of the items, and not as they are ready.
        ahead: how many items are in work, or ready, and kept so; None is up to four for each worker, which
            lets the others go on while one has a hard item.

    The first exception ends the stream and is raised. Closing the generator drops the items not yet begun.
    """
    window = max(ahead or 4 * workers, workers)
    with ThreadPoolExecutor(workers, thread_name_prefix="runtime") as pool:
        pending: list[Future[R]] = []
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                for _ in range(1 if ahead else 2):  # two: what has piled up behind a hard item melts
                    if future := _next(pending, ordered, wait_for_it=len(pending) >= window):
                        yield future.result()
            while future := _next(pending, ordered, wait_for_it=True):
                yield future.result()
        finally:
            for future in pending:
                future.cancel()


def _next(pending: list[Future[R]], ordered: bool, *, wait_for_it: bool) -> Future[R] | None:
    """Take the future whose result comes next out of the list; None where there is none yet."""
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
    """`run` on groups of `size` items, which `workers` threads prepare while the group before is running."""
    with closing(in_parallel(prepare, items, workers=workers, ahead=2 * size)) as prepared:
        while group := list(islice(prepared, size)):
            yield from run(group)
