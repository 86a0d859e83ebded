"""Images per second from a folder: workers, decoders, and a transformers pipeline.

    python -m benchmarks.throughput MODEL PHOTOS [--repeat 10] [--rounds 3] [--large 24]

MODEL is an exported INT8 model, PHOTOS a folder, which is read `--repeat` times over. The peer has the shape
of ViT-S/16, random weights and all cores. The rounds alternate between the ways; the best of each counts.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from benchmarks.cold_start import make_peer
from benchmarks.timing import images_in
from runtime import find_images, read_metadata
from runtime.command.line import run_command
from runtime.command.parser import REQUIRED, Parser, argument, option, options_from
from runtime.cpu import available_cores
from runtime.model_file.artifact import METADATA_KEY
from runtime.writing import temporary_folder

OURS = """
import sys, time
from runtime import Classifier, find_images
classify = Classifier(sys.argv[1], threads=1)
paths = list(find_images(sys.argv[2])) * int(sys.argv[4])
classify.warm_up()
began = time.perf_counter()
failed = sum(result.error is not None for result in classify.stream(paths, workers=int(sys.argv[3])))
assert not failed, failed
print(len(paths) / (time.perf_counter() - began))
"""
PEER = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[3]))
from transformers import pipeline
from runtime import find_images
classify = pipeline("image-classification", model=sys.argv[1], batch_size=int(sys.argv[5]))
paths = list(map(str, find_images(sys.argv[2]))) * int(sys.argv[4])
classify(paths[:2])
began = time.perf_counter()
for _ in classify(path for path in paths): pass
print(len(paths) / (time.perf_counter() - began))
"""
MEGAPIXELS_12 = (4000, 3000)
NOISE_AND_QUALITY = ((4, 92), (2, 85), (0, 75))  # from a phone at night to an image that was retouched


def rate(script: str, *arguments: object) -> float:
    """Run a script in a new process and return the rate that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.split()[-1])


def best(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the highest rate of each way over interleaved rounds."""
    found = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, run in ways.items():
            found[name] = max(found[name], run())
    return found


def enlarge(
    photos: Path,
    folder: Path,
    count: int,
    size: tuple[int, int] = MEGAPIXELS_12,
    *,
    noise: float = 4,
    quality: int = 92,
) -> None:
    """JPEGs as a phone makes them: large, and with a sensor's noise, which is most of their bytes."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number, path in enumerate(islice(find_images(photos), count)):
        with Image.open(path) as photo:
            large = np.asarray(photo.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32)
        large += rng.normal(0, noise, large.shape[:2])[:, :, None]
        Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=quality)


def with_decode(model: Path, decode: str, folder: Path) -> Path:
    """The same model with another decode mode in its metadata."""
    metadata = read_metadata(model)
    changed = replace(metadata, preprocess=replace(metadata.preprocess, decode=decode))
    proto = onnx.load(model)
    onnx.helper.set_model_props(proto, {METADATA_KEY: changed.to_json()})
    path = folder / f"{decode}.onnx"
    onnx.save(proto, path)
    return path


@dataclass(frozen=True, kw_only=True)
class ThroughputOptions:
    """Measure images per second from a folder: workers, decoders, and a transformers pipeline."""

    model: Path = argument(REQUIRED, "exported INT8 model file", metavar="MODEL")
    photos: Path = argument(REQUIRED, "folder of photos", metavar="PHOTOS")
    repeat: int = option(10, "number of passes over the folder")
    rounds: int = option(3, "alternating rounds")
    large: int = option(24, "number of 12-megapixel JPEGs to compare the decoders with")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser(prog="python -m benchmarks.throughput", options=ThroughputOptions)
    options = options_from(ThroughputOptions, parser.parse_args(arguments))
    return run_command("benchmarks.throughput", lambda: _measure(options))


def _measure(options: ThroughputOptions) -> int:
    read_metadata(options.model)  # what cannot be used is told before minutes of work
    images_in(options.photos)
    with temporary_folder() as folder:
        compare_ways(options, folder)
        for noise, quality in NOISE_AND_QUALITY:
            compare_decoding(options, folder, noise, quality)
    return 0


def compare_ways(options: ThroughputOptions, folder: Path) -> None:
    """The photos as they are: one worker, a worker a core, and a transformers pipeline on all cores."""
    peer, cores = folder / "peer", available_cores()
    make_peer(str(peer), len(read_metadata(options.model).labels))

    def ours(workers: int) -> float:
        return rate(OURS, options.model, options.photos, workers, options.repeat)

    def pipeline(batch: int) -> float:
        return rate(PEER, peer, options.photos, cores, 1, batch)

    ways = {
        "one worker": lambda: ours(1),
        f"{cores} workers": lambda: ours(cores),
        "transformers pipeline": lambda: pipeline(1),
        "transformers pipeline, batches of 8": lambda: pipeline(8),
    }
    show("photos as they are", best(ways, options.rounds), f"{cores} workers")


def compare_decoding(options: ThroughputOptions, folder: Path, noise: float, quality: int) -> None:
    """12-megapixel JPEGs, decoded fully and in draft mode, by a worker a core."""
    jpegs = folder / f"noise-{noise}"
    enlarge(options.photos, jpegs, options.large, noise=noise, quality=quality)
    models = {way: with_decode(options.model, way, folder) for way in ("full", "draft")}

    def ours(way: str) -> float:
        return rate(OURS, models[way], jpegs, available_cores(), 2)

    ways = {"decoded fully": lambda: ours("full"), "decoded in draft mode": lambda: ours("draft")}
    title = f"12-megapixel JPEGs of {mean_megabytes(jpegs):.1f} MB"
    show(title, best(ways, options.rounds), "decoded in draft mode")


def mean_megabytes(folder: Path) -> float:
    """Return the mean size of the images of a folder, in megabytes."""
    sizes = [path.stat().st_size for path in find_images(folder)]
    return sum(sizes) / len(sizes) / 1e6


def show(title: str, rates: dict[str, float], reference: str) -> None:
    """Print the rates as a table in Markdown."""
    print(f"\n| {title} | images per second | {reference} is faster by |\n|---|---|---|")
    for name, found in rates.items():
        print(f"| {name} | {found:.1f} | {rates[reference] / found:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
