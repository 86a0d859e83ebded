"""Time several models in one run, in turn, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from benchmarks.engines import Opened
from calibration.graph.edit import Array
from runtime import find_images
from runtime.cpu import available_cores, cpu_name, has_vnni, is_x86
from runtime.errors import InputError

SETTLE = 0.02  # seconds: a framework's waiting threads are asleep by then


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one image."""

    median: float
    min: float


def time_in_turn(models: Mapping[str, Opened], pixels: Array, *, runs: int) -> dict[str, Timing]:
    """Time each model on the same image `uint8 [1, H, W, 3]`, `runs` rounds of all of them.

    In a turn a model first runs once untimed: the others have just swept its weights out of the caches,
    and on a device nobody does.
    """
    if runs < 1:
        raise ValueError(f"runs must be 1 or more, found {runs}")
    feeds = {name: model.prepare(pixels) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for name, model in models.items():  # memory and threads are had before the first round
        model.run(feeds[name])
    for round_ in range(runs):
        tell(f"timing, round {round_ + 1} of {runs}")
        for name, model in models.items():
            time.sleep(SETTLE)
            model.run(feeds[name])
            start = time.perf_counter()
            model.run(feeds[name])
            times[name].append((time.perf_counter() - start) * 1000)
    tell("")
    return {name: Timing(float(np.median(found)), min(found)) for name, found in times.items()}


def images_in(path: Path) -> list[Path]:
    """Return the images in a folder, or the one image that is named.

    Raises:
        InputError: when there is none.
    """
    found = list(find_images(path)) if path.exists() else []
    if not found:
        raise InputError(f"{path}: expected an image or a folder of images, found none")
    return found


def tell(what: str) -> None:
    """Say on a terminal what takes so long; nothing anywhere else. The next line overwrites it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, aligned for whoever reads it as text: the first column left, the others right."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = [
        "| " + " | ".join(f"{c:{'<' if i == 0 else '>'}{widths[i]}}" for i, c in enumerate(row)) + " |"
        for row in [heads, *rows]
    ]
    rule = (
        "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def environment() -> str:
    """One line: what was measured on."""
    kind = f"{'with' if has_vnni() else 'without'} VNNI" if is_x86() else platform.machine()
    packages = ("onnxruntime", "openvino", "nncf", "torch")
    versions = [f"{name} {found}" for name in packages if (found := _version(name))]
    cores = available_cores()
    return f"{cpu_name()}{_family()} ({kind}, {cores} core{'s' * (cores != 1)}), {', '.join(versions)}"


def command() -> str:
    """The command line of this process, for readers who want to repeat it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return " ".join(["python -m", spec.name if spec else "benchmarks", *sys.argv[1:]])


def _family() -> str:
    """A Linux server's CPU often calls itself "AMD EPYC" and no more; its family and model tell which."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f", family {entries['cpu family']} model {entries['model']}" if "cpu family" in entries else ""


def positive(text: str) -> int:
    """For argparse: a whole number that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {number}")
    return number


def add_merging(parser: argparse.ArgumentParser) -> None:
    """Add the option --merge-tokens."""
    parser.add_argument(
        "--merge-tokens",
        nargs="+",
        type=positive,
        default=(),
        metavar="R",
        help="also an INT8 file of vit-edge that merges R tokens per middle block; several may be given",
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
