"""Decoded images in batches: kept in memory when they fit, else decoded again by threads.

Images that cannot be decoded are counted and listed, up to a share; their places in a batch are
black and marked, so that every batch keeps its size and its order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.concurrency import in_parallel
from runtime.images.preprocess import ImageError, Preprocess
from runtime.text import format_count
from vit.data.datasets import DataError, Images

MOST_MEMORY = 4 << 30  # bytes of decoded images that are kept at most
# One part in so many of the free memory: up to three splits are kept, and the model needs memory too.
SHARE = 4


class Store:
    """Images of a data set in batches `uint8 [n, H, W, 3]`.

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
        self.bad: dict[int, str] = {}  # index → why it cannot be decoded
        self.pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        self.cache: np.ndarray | None = None
        shape = (len(images), *preprocess.size, 3)
        if np.prod(shape, dtype=np.int64) <= (available_memory_share() if memory is None else memory):
            self.cache = np.zeros(shape, np.uint8)
            for start in range(0, len(images), 256):
                chosen = range(start, min(start + 256, len(images)))
                self.cache[start : chosen.stop] = self.decode(chosen)
                progress(chosen.stop)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the pixels `uint8 [n, H, W, 3]` at `indices`, and which of them are images, bool `[n]`."""
        pixels = self.decode(indices) if self.cache is None else self.cache[np.asarray(indices)]
        good = [int(index) not in self.bad for index in indices]
        return torch.from_numpy(pixels), torch.tensor(good)

    def batches(self, groups: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Yield for each group of indices the indices, the pixels and which are images, as `batch`.

        Two groups are decoded while one is in use.
        """
        if self.cache is not None:
            return ((group, *self.batch(group)) for group in groups)
        return in_parallel(lambda group: (group, *self.batch(group)), groups, workers=2, ahead=3)

    def decode(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decode the images at `indices`, `uint8 [n, H, W, 3]`; those that cannot be decoded are black.

        Raises:
            DataError: where more than the allowed share of all images cannot be decoded.
        """
        pixels = np.zeros((len(indices), *self.preprocess.size, 3), np.uint8)
        items = [self.images[int(index)] for index in indices]
        # Arrays cost less to convert than to hand to a thread.
        run = map if items and isinstance(items[0], np.ndarray) else self.pool.map
        for place, result in enumerate(run(self._decode_one, items)):
            if isinstance(result, str):
                self._mark(int(indices[place]), result)
            else:
                pixels[place] = result
        return pixels

    def _decode_one(self, item: object) -> np.ndarray | str:
        try:
            return self.preprocess(item)  # type: ignore[arg-type]
        except ImageError as error:
            return error.reason

    def _mark(self, index: int, reason: str) -> None:
        self.bad[index] = reason
        if len(self.bad) > self.bad_share * len(self.images):
            first = min(self.bad)
            why = f"{self.images.describe(first)}: {self.bad[first]}"
            count = f"{len(self.bad)} of {format_count(len(self.images), 'image')} cannot be decoded"
            raise DataError(f"{why} ({count}); remove or replace it")


# --- Free memory ---


UNKNOWN = 4 << 30  # bytes, where the system reports nothing: a small computer of today
# Files with the memory that a container may use, and that it uses: cgroup v2, then v1.
LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def available_memory_share() -> int:
    """Return the bytes of pixels that one split may keep: a share of the free memory, at most `MOST_MEMORY`.

    The processes of one machine, which torchrun counts, share it.
    """
    return min(MOST_MEMORY, free_memory() // SHARE // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def free_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that the machine has free, or that the container has left where that is less."""
    free = _read_available(proc / "meminfo")
    for limit, usage in LIMITS:
        allowed, taken = _read_number(cgroup / limit), _read_number(cgroup / usage)
        if allowed is not None and taken is not None:
            free = min(free, max(allowed - taken, 0))
    return free


def _read_available(meminfo: Path) -> int:
    with suppress(OSError, ValueError, StopIteration):
        lines = meminfo.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    with suppress(AttributeError, ValueError, OSError):  # macOS does not say how much is free: half of all
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return UNKNOWN


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or "max"
        return None
