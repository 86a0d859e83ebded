"""Decoded images on their way into batches: kept in memory when they fit, else decoded again by threads.

Images that cannot be decoded are counted and listed, up to a share; their places in a batch are
black and marked, so that every batch keeps its size and its order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from runtime.images.preprocess import ImageError, Preprocess
from runtime.text import format_count
from vit.data.datasets import DataError, Images

# --- Memory that this process may still take ---


UNKNOWN = 4 << 30  # bytes, where the system does not say: a small computer of today, with its own needs met
# What a container may take, and what of it is taken: cgroup v2, then v1.
LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def free_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that the machine has free, or that the container has left where that is less."""
    free = _available(proc / "meminfo")
    for limit, usage in LIMITS:
        allowed, taken = _number(cgroup / limit), _number(cgroup / usage)
        if allowed is not None and taken is not None:
            free = min(free, max(allowed - taken, 0))
    return free


def _available(meminfo: Path) -> int:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return _physical()


def _physical() -> int:
    """Half of what is built in, where it is not known what is free (macOS)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or "max"
        return None


# --- Decoded images on their way into batches: kept in memory when they fit, else decoded again by thre---


T = TypeVar("T")
MEMORY = 4 << 30  # bytes of decoded images that are kept at most
# One part in so many of the free memory: up to three splits are kept, and the model needs memory too.
SHARE = 4


class Store:
    """The images of a data set as `uint8 [n, H, W, 3]` batches.

    Args:
        images: what to decode.
        preprocess: how; its size is the size of the batches.
        bad_share: the share of undecodable images above which `DataError` is raised.
        memory: bytes of pixels that may be kept; a larger data set is decoded anew each time. None: a quarter
            of what the machine or the container has left, 4 GiB at most, shared by its processes.
        progress: called with the number of images decoded so far, while filling the memory.
    """

    def __init__(
        self,
        images: Images,
        preprocess: Preprocess,
        *,
        bad_share: float = 0.0,
        memory: int | None = None,
        progress: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.images, self.preprocess, self.bad_share = images, preprocess, bad_share
        self.bad: dict[int, str] = {}  # index to what was wrong
        self.pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        self.kept: np.ndarray | None = None
        shape = (len(images), *preprocess.size, 3)
        if np.prod(shape, dtype=np.int64) <= (affordable() if memory is None else memory):
            self.kept = np.zeros(shape, np.uint8)
            for start in range(0, len(images), 256):
                chosen = range(start, min(start + 256, len(images)))
                self.kept[start : chosen.stop] = self.decode(chosen)
                progress(chosen.stop)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """The pixels `uint8 [n, H, W, 3]` at `indices`, and which of them are images, `bool [n]`."""
        pixels = self.decode(indices) if self.kept is None else self.kept[np.asarray(indices)]
        good = [int(index) not in self.bad for index in indices]
        return torch.from_numpy(pixels), torch.tensor(good)

    def batches(self, groups: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """`indices, pixels, good` of each group, the next two being decoded while one is in use."""
        if self.kept is not None:
            yield from ((group, *self.batch(group)) for group in groups)
            return
        with ThreadPoolExecutor(2, thread_name_prefix="prefetch") as ahead:
            yield from _ahead(ahead, lambda group: (group, *self.batch(group)), groups)

    def decode(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        pixels = np.zeros((len(indices), *self.preprocess.size, 3), np.uint8)
        items = [self.images[int(index)] for index in indices]
        # Arrays cost less to convert than to hand to a thread.
        run = map if items and isinstance(items[0], np.ndarray) else self.pool.map
        for place, result in enumerate(run(self._one, items)):
            if isinstance(result, str):
                self._mark(int(indices[place]), result)
            else:
                pixels[place] = result
        return pixels

    def _one(self, item: object) -> np.ndarray | str:
        try:
            return self.preprocess(item)  # type: ignore[arg-type]
        except ImageError as error:
            return error.reason

    def _mark(self, index: int, reason: str) -> None:
        self.bad[index] = reason
        if len(self.bad) > self.bad_share * len(self.images):
            first = min(self.bad)
            count = f"{len(self.bad)} of {format_count(len(self.images), 'image')} cannot be decoded"
            raise DataError(
                f"{self.images.describe(first)}: {self.bad[first]} ({count}); remove or replace it"
            )


def affordable() -> int:
    """Bytes of pixels that one split may keep: a share of the free memory, and never more than `MEMORY`.

    The processes of one machine, which torchrun counts, share it.
    """
    return min(MEMORY, free_memory() // SHARE // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _ahead(
    pool: ThreadPoolExecutor, make: Callable[[np.ndarray], T], groups: Iterable[np.ndarray]
) -> Iterator[T]:
    waiting: list[Future[T]] = []
    source = iter(groups)
    try:
        waiting.extend(pool.submit(make, group) for group in islice(source, 2))
        while waiting:
            done = waiting.pop(0).result()
            waiting.extend(pool.submit(make, group) for group in islice(source, 1))
            yield done
    finally:
        for future in waiting:
            future.cancel()
