"""Accuracy of a real model: vit-edge and other tools, on the same photos."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.engines import Opened, Peer
from benchmarks.peers import BASELINE, Bench, Skipped, build
from benchmarks.timing import Timing, add_merging, command, environment, positive, table, tell, time_in_turn
from calibration.graph.edit import Array
from calibration.measure.drift import Drift, measure_drift
from export.measure.inference import batches
from runtime.command.line import run_command
from runtime.cpu import available_cores, cpu_kind
from runtime.images.preprocess import Preprocess
from runtime.model_file.targets import choose_target
from runtime.writing import temporary_folder
from vit.checkpoint import load_checkpoint
from vit.data.datasets import DataError, Images

MAX_DROP = 0.01  # NNCF's default
HEADS = ("", "top-1 %", "agreement %", "SQNR dB")


@dataclass(frozen=True)
class Photos:
    """Images to calibrate with and, apart from them, images to measure on; each uint8 [1, H, W, 3]."""

    calibration: Sequence[Array]
    evaluation: Sequence[Array]
    targets: Array  # int64, of the evaluation images


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    return run_command("benchmarks.accuracy", lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    """Quantize in every way, and print the accuracy of each, then the speed."""
    checkpoint = load_checkpoint(options.checkpoint)
    images = labeled(options.photos, options.labels, classes=len(checkpoint.labels))
    photos = divide(images, checkpoint.preprocess, calibrate=options.calibrate, seed=options.seed)
    print(f"`{command()}`\n\n{environment()}.", flush=True)
    print(
        f"{len(photos.calibration)} photos to calibrate, {len(photos.evaluation)} others to measure.\n",
        flush=True,
    )
    with temporary_folder() as folder:
        bench = Bench(
            checkpoint.model,
            photos.calibration,
            folder,
            choose_target(cpu_kind()),
            options.merge_tokens,
            options.accuracy_aware,
        )
        tell("quantizing in every way, minutes")
        built = list(build(bench, variations=True))
        peers = [each for each in built if isinstance(each, Peer)]
        print(accuracy_table(drifts(peers, photos)), flush=True)
        if options.runs > 0:
            opened = {peer.name: peer.open(options.threads) for peer in peers}
            times = time_in_turn(opened, photos.evaluation[0], runs=options.runs)
            print(f"\nOne photo, threads: {options.threads}.\n\n{speed_table(times)}")
    for peer in peers:
        if peer.note:
            print(f"\n{peer.name}: {peer.note}.")
    for skipped in built:
        if isinstance(skipped, Skipped):
            print(f"\nLeft out: {skipped.name}, {skipped.reason}.")
    return 0


def labeled(folder: Path, labels: Path, *, classes: int) -> Images:
    """The photos that a CSV file (columns `file` and `class_index`) names, with their classes.

    Raises:
        DataError: naming the file or the line that is not as expected.
    """
    try:
        with labels.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{labels}: expected a CSV file, {error.strerror}") from error
    if not rows or {"file", "class_index"} - set(rows[0]):
        raise DataError(f"{labels}: expected the columns file and class_index, and at least one line")
    targets = []
    for number, row in enumerate(rows, start=2):
        path, index = folder / row["file"], row["class_index"]
        if not index.isdigit() or int(index) >= classes:
            raise DataError(f"{labels}, line {number}: expected a class, 0 to {classes - 1}, found {index!r}")
        if not path.is_file():
            raise DataError(f"{labels}, line {number}: {path}: no such photo")
        targets.append(int(index))
    return Images([folder / row["file"] for row in rows], np.array(targets, np.int64), None, folder.name)


def divide(images: Images, preprocess: Preprocess, *, calibrate: int, seed: int) -> Photos:
    """Choose the calibration images at random, the same for the same seed, and decode everything.

    Raises:
        DataError: when nothing is left to measure on, or an image cannot be read.
    """
    if not 0 < calibrate < len(images):
        raise DataError(f"expected 1 to {len(images) - 1} photos to calibrate with, found {calibrate}")
    order = np.random.default_rng(seed).permutation(len(images))
    parts = [images.subset(np.sort(part)) for part in (order[:calibrate], order[calibrate:])]
    calibration, evaluation = (list(batches(part, preprocess, size=1)) for part in parts)
    targets = parts[1].targets
    assert targets is not None  # `labeled` gives them
    return Photos(calibration, evaluation, targets)


def drifts(peers: Sequence[Peer], photos: Photos) -> dict[str, Drift]:
    """Drift of each program from the first one, the float32 model in torch."""
    logits = {}
    for peer in peers:
        tell(f"measuring {peer.name}")
        logits[peer.name] = _logits(peer.open(available_cores()), photos.evaluation)
    tell("")
    reference = logits[peers[0].name]
    return {name: measure_drift(reference, found, photos.targets) for name, found in logits.items()}


def _logits(model: Opened, images: Sequence[Array]) -> Array:
    return np.concatenate([model.run(model.prepare(pixels)) for pixels in images])


def accuracy_table(found: Mapping[str, Drift]) -> str:
    """Return the drift of each way as a table."""
    rows = [
        (name, f"{drift.top1:.1f}", f"{drift.agreement:.1f}", "" if drift.sqnr > 90 else f"{drift.sqnr:.1f}")
        for name, drift in found.items()
    ]
    return table(HEADS, rows)


def speed_table(times: Mapping[str, Timing]) -> str:
    """Return the latency of each way as a table, beside that of the baseline."""
    rows = [
        (name, f"{time.median:.1f}", f"{time.min:.1f}", f"{times[BASELINE].min / time.min:.2f}x")
        for name, time in times.items()
    ]
    return table(("", "median ms", "min ms", "speed"), rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="file or folder, from python -m vit")
    add("--photos", type=Path, required=True, metavar="DIR", help="folder of photos")
    add("--labels", type=Path, required=True, metavar="CSV", help="columns file and class_index")
    add(
        "--calibrate",
        type=positive,
        default=64,
        metavar="N",
        help="photos to calibrate with (default: %(default)s)",
    )
    add("--seed", type=positive, default=1, help="which photos those are (default: %(default)s)")
    add("--threads", type=positive, default=1, help="of the timing (default: %(default)s)")
    add("--runs", type=int, default=10, help="rounds of the timing, 0 for none (default: %(default)s)")
    add_merging(parser)
    add(
        "--accuracy-aware",
        type=float,
        nargs="?",
        const=MAX_DROP,
        metavar="DROP",
        help="also NNCF's accuracy-aware quantization, which takes long; DROP is how much of 1 minus the "
        f"noise-to-signal ratio it may lose (default: {MAX_DROP}, 20 dB)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
