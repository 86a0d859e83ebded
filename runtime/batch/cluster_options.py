"""The options of `python -m runtime` that mean a cluster."""

from __future__ import annotations

import argparse

from runtime.command import positive


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add them as a group of their own."""
    add = parser.add_argument_group(
        "a cluster (docs/guides/cluster.md)",
        "IMAGES are then also URIs (s3://…) and Parquet files with a column path; --output is a folder or "
        "a URI.",
    ).add_argument
    add("--engine", choices=["local", "ray"], default="local", help="ray: over a cluster (default local)")
    add("--address", metavar="HOST:PORT", help="default RAY_ADDRESS, else a cluster on this machine")
    add(
        "--part-images",
        type=positive,
        default=1000,
        metavar="N",
        help="images in a part of the output, at most (default %(default)s)",
    )
