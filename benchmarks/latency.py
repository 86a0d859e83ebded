"""Latency of one image: vit-edge and other tools, in one interleaved run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.engines import Peer, extra_graph
from benchmarks.peers import BASELINE, OURS, Bench, Skipped, build
from benchmarks.timing import Timing, add_merging, command, environment, positive, table, tell, time_in_turn
from runtime.cpu import available_cores, cpu_kind
from runtime.model_file.targets import choose_target
from runtime.writing import temporary_folder
from vit.config import SIZES
from vit.model import ViT

HEADS = ("", "median ms", "min ms", "speed", "vit-edge is", "MB")
NOTE = (
    "Batch 1 at 224x224, random weights. Speed is against the line marked 1.00x; "
    '"vit-edge is" is how many times as fast the INT8 file of vit-edge is in ONNX Runtime (minimum times).'
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    if options.target_graph is not None and len(options.sizes) != 1:
        print("--target-graph is a graph of one size: name that size alone with --sizes", file=sys.stderr)
        return 2
    if options.target_graph is not None and (complaint := _unfit(options.target_graph, options.sizes[0])):
        print(f"{options.target_graph}: {complaint}", file=sys.stderr)
        return 2
    print(f"`{command()}`\n\n{environment()}.\n{NOTE}", flush=True)
    for size in options.sizes:
        _measure(size, options)
    return 0


def _unfit(path: Path, size: str) -> str:
    """Why a graph cannot be timed on images of that size, found out before the rest; empty if it can."""
    if not path.is_file():
        return "expected an .onnx file, found none"
    try:
        opened = extra_graph(path, choose_target(cpu_kind())).open(1)
        opened.run(opened.prepare(np.zeros((1, *SIZES[size].image_size, 3), np.uint8)))
    except Exception as error:  # ONNX Runtime's own classes have no common one
        return " ".join(str(error).split())
    return ""


def _measure(size: str, options: argparse.Namespace) -> None:
    """Build every way to run a model of that size, then time them with each number of threads."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    model = ViT(SIZES[size]).eval()
    images = [random.integers(0, 256, (1, *model.config.image_size, 3), np.uint8) for _ in range(4)]
    with temporary_folder() as folder:
        tell(f"quantizing {size} in every way")
        built = list(
            build(
                Bench(model, images, folder, choose_target(cpu_kind()), options.merge_tokens),
                tools=options.tools,
            )
        )
        peers = [each for each in built if isinstance(each, Peer)]
        if options.target_graph is not None:
            peers.append(extra_graph(options.target_graph, choose_target(cpu_kind())))
        for threads in options.threads:
            opened = {peer.name: peer.open(threads) for peer in peers}
            times = time_in_turn(opened, images[0], runs=options.runs)
            print(f"\n**{size}, {threads} thread{'s' * (threads != 1)}**, {options.runs} runs\n")
            print(latency_table(times, {peer.name: peer.bytes for peer in peers}), flush=True)
            del opened
    for skipped in built:
        if isinstance(skipped, Skipped):
            print(f"\nLeft out: {skipped.name}, {skipped.reason}.", flush=True)


def latency_table(times: Mapping[str, Timing], sizes: Mapping[str, int | None]) -> str:
    """One row a model; ratios are of the least times, which other work on the machine disturbs least."""
    rows = []
    for name, time in times.items():
        speed, ours = times[BASELINE].min / time.min, time.min / times[OURS].min
        size = sizes[name]
        megabytes = "" if size is None else f"{size / 1e6:.1f}"
        rows.append(
            (name, f"{time.median:.1f}", f"{time.min:.1f}", f"{speed:.2f}x", f"{ours:.2f}x", megabytes)
        )
    return table(HEADS, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency",
        description=__doc__,
        epilog="OpenVINO and NNCF are timed where they are installed. Nothing else should run meanwhile.",
    )
    threads = sorted({1, available_cores()})
    add = parser.add_argument
    add(
        "--sizes",
        nargs="+",
        choices=list(SIZES),
        default=["tiny", "small", "base"],
        help="of ViTs (default: %(default)s)",
    )
    add(
        "--threads",
        nargs="+",
        type=positive,
        default=threads,
        help="one table for each (default: %(default)s)",
    )
    add(
        "--no-tools",
        dest="tools",
        action="store_false",
        help="leave out what other tools quantize; PyTorch, float32 and vit-edge's INT8 remain",
    )
    add("--runs", type=positive, default=20, help="rounds (default: %(default)s)")
    add(
        "--target-graph",
        type=Path,
        metavar="ONNX",
        help="time this graph too; it takes uint8 pixels of that size",
    )
    add_merging(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
