"""Time that a cluster takes to label many images: a formula, and a simulation that checks it.

    python -m tools.simulate_scale measure model.int8.onnx photos/ times.json
    python -m tools.simulate_scale run times.json --images 1e9 --workers 4000

`measure` writes how many CPU seconds each image takes in one process. `run` replays these times over
simulated workers, chunk by chunk as `python -m runtime --engine ray` cuts them, with slow workers, workers
that are taken away, a listing and a store of limited rate; and prints the formula of docs/concepts/scale.md
beside it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SMALLEST, CHUNKS_PER_CORE = 16, 16  # as in runtime.batch.cluster_chunks


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A job and what it runs on.

    Args:
        images: in all.
        workers: processes, one per core.
        chunk: images in a chunk, at most.
        list_rate: keys per second that one listing gives.
        store_rate: images per second that the store and the network give to the whole cluster.
        slow_share: share of the workers that are slow, 0 to 1.
        slow_factor: how many times longer an image takes there.
        preempted: times per hour that a worker is taken away; its chunk begins again.
        replaced_after: seconds until it is back, its model open.
        overhead: seconds per chunk for the engine and the part.
    """

    images: int
    workers: int
    chunk: int = 1000
    list_rate: float = math.inf
    store_rate: float = math.inf
    slow_share: float = 0.0
    slow_factor: float = 3.0
    preempted: float = 0.0
    replaced_after: float = 120.0
    overhead: float = 0.05


@dataclass(frozen=True)
class Outcome:
    """Result: seconds from the first key to the last part, and what bounds it."""

    seconds: float
    bound: str
    repeated: int = 0  # images that were labeled again after a worker was taken away


def predict(cluster: Cluster, mean: float) -> Outcome:
    """Apply the formula: the slowest of the listing, the store and the workers, and the last chunks.

    A worker that is taken away λ times per second needs (e^λt − 1) · (1/λ + r) for a chunk of t seconds, r
    being the time until it is replaced (a restart from the beginning, exponential intervals).

    Args:
        cluster: sizes and rates of the cluster.
        mean: seconds per image in one process.
    """
    full = cluster.chunk * mean + cluster.overhead
    rate = 1 / _expected(full, cluster)
    slow = 1 / _expected(full * cluster.slow_factor, cluster)
    rate = (1 - cluster.slow_share) * rate + cluster.slow_share * slow
    times = {
        "listing": cluster.images / cluster.list_rate,
        "store": cluster.images / cluster.store_rate,
        "workers": cluster.images / (cluster.chunk * cluster.workers * rate),
    }
    bound = max(times, key=times.__getitem__)
    last = full * (cluster.slow_factor if cluster.slow_share else 1) - full / 2
    return Outcome(times[bound] + (last if bound == "workers" else 0.0), bound)


def simulate(cluster: Cluster, times: Sequence[float], seed: int = 0) -> Outcome:
    """Replay measured times: each chunk takes as long as that many measured images in a row.

    Args:
        cluster: sizes and rates of the cluster.
        times: seconds per image.
        seed: of the choice of slow workers, of the moments of preemption and of where the replay begins.
    """
    random = np.random.default_rng(seed)
    reached = np.concatenate([[0.0], np.cumsum(times)])
    factors = np.where(random.random(cluster.workers) < cluster.slow_share, cluster.slow_factor, 1.0)
    free = [(0.0, worker) for worker in range(cluster.workers)]
    again: deque[tuple[float, int]] = deque()
    fresh = _sizes(cluster)
    given = repeated = 0
    end = store = 0.0
    while True:
        work = again.popleft() if again else next(fresh, None)
        if work is None:
            return Outcome(end, "simulated", repeated)
        available, size = work
        now, worker = heapq.heappop(free)
        began = max(now, available)
        needs = (
            _replayed(reached, int(random.integers(len(times))), size) * factors[worker] + cluster.overhead
        )
        lost = random.exponential(3600 / cluster.preempted) if cluster.preempted else math.inf
        if lost < needs:
            repeated += int(size * lost / needs)
            again.append((began + lost, size))
            heapq.heappush(free, (began + lost + cluster.replaced_after, worker))
            continue
        given += size
        store = max(store, now) + size / cluster.store_rate
        done = max(began + needs, store)
        end = max(end, done)
        heapq.heappush(free, (done, worker))


def measure(model: Path, photos: Path) -> list[float]:
    """Label every image once in this process and return the seconds of each.

    They are seconds of CPU, which other work on the machine does not stretch. Waiting for a store is not
    among them: a run reads ahead.
    """
    from runtime.batch.label_columns import Labels
    from runtime.images.find_images import find_images

    labels = Labels(model)
    labels.classifier().warm_up()
    times = []
    for path in find_images(photos):
        began = time.process_time()
        labels({"path": [str(path)], "bytes": [path.read_bytes()]})
        times.append(time.process_time() - began)
    return times


def _expected(seconds: float, cluster: Cluster) -> float:
    rate = cluster.preempted / 3600
    return math.expm1(rate * seconds) * (1 / rate + cluster.replaced_after) if rate else seconds


def _sizes(cluster: Cluster) -> Iterator[tuple[float, int]]:
    """When each chunk is listed, and its size."""
    seen = 0
    while seen < cluster.images:
        wanted = min(cluster.chunk, max(SMALLEST, seen // (CHUNKS_PER_CORE * cluster.workers)))
        size = min(wanted, cluster.images - seen)
        seen += size
        yield seen / cluster.list_rate, size


def _replayed(reached: np.ndarray, start: int, size: int) -> float:
    """The seconds of `size` measured images from `start`, around the end as often as that needs."""
    count = len(reached) - 1
    rounds, rest = divmod(start + size, count)
    return float(rounds * reached[-1] + reached[rest] - reached[start])


def _run(options: argparse.Namespace) -> None:
    times = json.loads(options.times.read_text())
    mean = float(np.mean(times))
    print(f"{len(times)} measured images, {1000 * mean:.1f} ms each; {options.images:,.0f} images")
    print("| workers | chunk | slow | preempted per hour | formula | bound by | simulated | repeated |")
    print("|---|---|---|---|---|---|---|---|")
    for slow, preempted in ((0.0, 0.0), (0.05, 0.0), (0.0, 0.1), (0.05, 0.1)):
        cluster = Cluster(
            images=int(options.images),
            workers=options.workers,
            chunk=options.chunk,
            list_rate=options.list_rate,
            store_rate=options.store_rate,
            slow_share=slow,
            preempted=preempted,
        )
        told, seen = predict(cluster, mean), simulate(cluster, times)
        cells = (
            f"{cluster.workers:,}",
            f"{cluster.chunk:,}",
            f"{slow:.0%}",
            str(preempted),
            f"{told.seconds / 3600:.2f} h",
            told.bound,
            f"{seen.seconds / 3600:.2f} h",
            f"{100 * seen.repeated / cluster.images:.2f} %",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="write the seconds of each image")
    measuring.add_argument("model", type=Path)
    measuring.add_argument("photos", type=Path)
    measuring.add_argument("times", type=Path)
    running = commands.add_parser("run", help="print the formula beside the simulation")
    running.add_argument("times", type=Path)
    running.add_argument("--images", type=float, default=1e9)
    running.add_argument("--workers", type=int, default=4000)
    running.add_argument("--chunk", type=int, default=1000)
    running.add_argument("--list-rate", type=float, default=math.inf, help="keys per second")
    running.add_argument("--store-rate", type=float, default=math.inf, help="images per second")
    options = parser.parse_args()
    if options.command == "run":
        _run(options)
    else:
        options.times.write_text(json.dumps(measure(options.model, options.photos)))


if __name__ == "__main__":
    main()
