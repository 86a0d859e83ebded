"""The formula of docs/concepts/scale.md against a simulation that knows nothing of it."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from runtime.batch.cluster_chunks import _CHUNKS_PER_CORE, _SMALLEST

# 33 ms each, with a tail: large images take ten times as long.
TIMES = np.where(np.random.default_rng(3).random(500) < 0.02, 0.3, 0.0275)
MEAN = float(TIMES.mean())


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A job and its cluster; rates per second, preemptions per worker and hour, overhead per chunk."""

    images: int
    workers: int
    chunk: int = 500
    list_rate: float = math.inf
    store_rate: float = math.inf
    slow_share: float = 0.0
    slow_factor: float = 3.0
    preempted: float = 0.0
    replaced_after: float = 120.0
    overhead: float = 0.05


def predict(cluster: Cluster) -> tuple[float, str]:
    """Return the seconds of the run by the formula, and what bounds it."""

    def stretch(seconds: float) -> float:
        rate = cluster.preempted / 3600
        return math.expm1(rate * seconds) * (1 / rate + cluster.replaced_after) if rate else seconds

    full = cluster.chunk * MEAN + cluster.overhead
    slow = full * cluster.slow_factor
    rate = (1 - cluster.slow_share) / stretch(full) + cluster.slow_share / stretch(slow)
    times = {
        "listing": cluster.images / cluster.list_rate,
        "store": cluster.images / cluster.store_rate,
        "workers": cluster.images / (cluster.chunk * cluster.workers * rate),
    }
    bound = max(times, key=times.__getitem__)
    last = (slow if cluster.slow_share else full) - full / 2
    return times[bound] + (last if bound == "workers" else 0.0), bound


def simulate(cluster: Cluster) -> tuple[float, int]:
    """Replay the times chunk by chunk; return the seconds of the run, and how many images were repeated."""
    random = np.random.default_rng(0)
    factors = np.where(random.random(cluster.workers) < cluster.slow_share, cluster.slow_factor, 1.0)
    free = [(0.0, worker) for worker in range(cluster.workers)]
    again: deque[tuple[float, int]] = deque()
    fresh = cut_chunks(cluster)
    end = store = 0.0
    repeated = 0
    while work := again.popleft() if again else next(fresh, None):
        available, size = work
        now, worker = heapq.heappop(free)
        began = max(now, available)
        seconds = np.take(TIMES, random.integers(len(TIMES)) + np.arange(size), mode="wrap").sum()
        needs = seconds * factors[worker] + cluster.overhead
        lost = random.exponential(3600 / cluster.preempted) if cluster.preempted else math.inf
        if lost < needs:
            repeated += int(size * lost / needs)
            again.append((began + lost, size))
            heapq.heappush(free, (began + lost + cluster.replaced_after, worker))
            continue
        store = max(store, now) + size / cluster.store_rate
        done = max(began + needs, store)
        end = max(end, done)
        heapq.heappush(free, (done, worker))
    return end, repeated


def cut_chunks(cluster: Cluster) -> Iterator[tuple[float, int]]:
    """Yield when each chunk is listed, and its size, as `--engine ray` cuts them."""
    listed = 0
    while listed < cluster.images:
        wanted = min(cluster.chunk, max(_SMALLEST, listed // (_CHUNKS_PER_CORE * cluster.workers)))
        size = min(wanted, cluster.images - listed)
        listed += size
        yield listed / cluster.list_rate, size


@pytest.mark.parametrize(
    ("bound", "changes"),
    [
        ("workers", {}),
        ("workers", {"slow_share": 0.1}),
        ("workers", {"preempted": 1.0}),
        ("workers", {"slow_share": 0.05, "preempted": 0.5, "slow_factor": 2.0}),
        ("workers", {"slow_share": 0.05, "preempted": 3.0, "slow_factor": 6.0}),
        ("listing", {"list_rate": 1500.0}),
        ("store", {"store_rate": 2000.0}),
    ],
)
def test_the_formula_says_what_the_simulation_shows(bound: str, changes: dict[str, float]) -> None:
    cluster = Cluster(images=2_000_000, workers=100, **changes)  # type: ignore[arg-type]
    seconds, found = predict(cluster)
    assert found == bound
    assert simulate(cluster)[0] == pytest.approx(seconds, rel=0.05)


def test_more_of_what_hurts_hurts_more() -> None:
    """The simulation alone: each trouble costs time, and only preemption repeats work."""
    calm, slow, taken = (
        simulate(Cluster(images=200_000, workers=50, slow_share=share, preempted=preempted))
        for share, preempted in ((0.0, 0.0), (0.2, 0.0), (0.0, 5.0))
    )
    assert calm[0] == pytest.approx(200_000 * MEAN / 50, rel=0.06)
    assert min(slow[0], taken[0]) > 1.05 * calm[0]
    assert (calm[1], slow[1]) == (0, 0)
    assert taken[1] > 0
