"""The formula of docs/concepts/scale.md against a simulation that knows nothing of it."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.batch import cluster_chunks
from tools.simulate_scale import CHUNKS_PER_CORE, SMALLEST, Cluster, predict, simulate

# 33 ms each, with a tail: large images take ten times as long.
TIMES = np.where(np.random.default_rng(3).random(500) < 0.02, 0.3, 0.0275)
MEAN = float(TIMES.mean())


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
    cluster = Cluster(images=2_000_000, workers=100, chunk=500, **changes)  # type: ignore[arg-type]
    told, seen = predict(cluster, MEAN), simulate(cluster, TIMES)
    assert told.bound == bound
    assert seen.seconds == pytest.approx(told.seconds, rel=0.05)


def test_more_of_what_hurts_hurts_more() -> None:
    """The simulation alone: each trouble costs time, and only preemption repeats work."""
    calm = simulate(Cluster(images=200_000, workers=50, chunk=500), TIMES)
    slow = simulate(Cluster(images=200_000, workers=50, chunk=500, slow_share=0.2), TIMES)
    taken = simulate(Cluster(images=200_000, workers=50, chunk=500, preempted=5.0), TIMES)
    assert calm.seconds == pytest.approx(200_000 * MEAN / 50, rel=0.06)
    assert min(slow.seconds, taken.seconds) > 1.05 * calm.seconds
    assert (calm.repeated, slow.repeated) == (0, 0)
    assert taken.repeated > 0


def test_chunks_are_cut_as_the_command_cuts_them() -> None:
    assert (SMALLEST, CHUNKS_PER_CORE) == (cluster_chunks._SMALLEST, cluster_chunks._CHUNKS_PER_CORE)
