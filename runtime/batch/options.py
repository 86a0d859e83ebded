"""Options of `python -m runtime`, and the combinations of them that are refused."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from ..command.file_kinds import Kind, detect_file_kind
from ..command.parser import REQUIRED, OptionGroup, argument, number, option
from ..cpu import available_cores
from ..devices import CHIPS, DEVICES, Chip, Device, DeviceOptions, Finalization, Performance, Precision
from ..errors import InputError
from ..images.find_images import is_folder
from ..writing import OTHER_FORMATS, refuse_file_name

_CHECKPOINT = "model.safetensors"  # in the folder of a run
_NO_MODEL: tuple[Kind, ...] = ("zip", "archive", "array", "pickle", "page", "pointer", "others", "empty")
_SUFFIXES = (".jsonl", ".csv")
_DEVICE = OptionGroup("on a device", "docs/concepts/devices.md lists the devices and what they need.")
_CLUSTER = OptionGroup(
    "on a cluster (docs/guides/cluster.md)",
    "With --engine ray, IMAGES may be URIs (s3://…) and Parquet files with a column path; --output is a "
    "folder or a URI.",
)


class UsageError(InputError):
    """A command line that cannot be carried out; the message says what to type instead."""


def _digest(text: str) -> str:
    if len(text) != 64 or set(text.lower()) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"expected 64 hexadecimal digits, found {text!r}")
    return text.lower()


def _chip(text: str) -> Chip | int:
    """Parse the name of a chip, or the number of one without a name here."""
    if text.isascii() and text.isdigit() and int(text):
        return int(text)
    if text not in CHIPS:
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(CHIPS)}, or the soc_model of another chip, found {text!r}"
        )
    return cast("Chip", text)


@dataclass(frozen=True, kw_only=True)
class DeviceChoice:
    """Choose a device, and how a model runs there."""

    device: Device = option(
        "auto",
        "where to predict (default: auto, CUDA where it works, else the CPU); others: "
        + ", ".join(name for name in DEVICES if name not in ("cpu", "cuda")),
        metavar="DEVICE",
    )
    precision: Precision = option(
        "exact", "exact: float32 where a layer is not INT8; fast: what the device prefers", group=_DEVICE
    )
    compile_cache: Path | None = option(
        None, "keep here what the device compiles; the folder holds native code", metavar="DIR", group=_DEVICE
    )
    partial: bool = option(
        False, "accept a device that runs less than 90 % of the multiply-adds", group=_DEVICE
    )
    chip: Chip | int | None = option(
        None,
        f"the NPU that QNN's simulator simulates: {', '.join(CHIPS)}, or the soc_model of another (default: "
        "the first)",
        metavar="CHIP",
        parse=_chip,
        group=_DEVICE,
    )
    performance: Performance | None = option(
        None, "clock and voltage of Qualcomm's NPU (default: its own)", group=_DEVICE
    )
    finalization: Finalization | None = option(
        None, "effort of QNN's compiler, 1 short to 3 long (default: its own)", group=_DEVICE
    )

    @property
    def device_options(self) -> DeviceOptions:
        """The options of the device."""
        same = ("precision", "partial", "chip", "performance", "finalization")
        return DeviceOptions(cache=self.compile_cache, **{name: getattr(self, name) for name in same})


@dataclass(frozen=True, kw_only=True)
class RunOptions(DeviceChoice):
    """Classify images with a model made by python -m export."""

    model: Path = argument(REQUIRED, "an .onnx file, or the folder that the export wrote", metavar="MODEL")
    images: tuple[str, ...] = argument(
        REQUIRED, "files and folders; - reads paths from standard input", metavar="IMAGES"
    )
    # A file, on a cluster any URI; None for standard output.
    output: str | None = option(
        None,
        "write the lines to this file (.jsonl or .csv); - is standard output, the default",
        metavar="FILE",
        parse=lambda text: None if text == "-" else text,
    )
    format: Literal["jsonl", "csv", "parquet"] | None = option(
        None, "default: by the name of the output, else jsonl; on a cluster parquet (or jsonl)"
    )
    embeddings: str | None = option(
        None,
        "write embeddings, not labels: FILE.npy with FILE.jsonl (the path of each row), or FILE.parquet",
        metavar="FILE",
    )
    resume: bool = option(False, "continue --output FILE after an interruption")
    overwrite: bool = option(False, "replace --output FILE")
    unordered: bool = option(False, "write results as they are ready, not in the order of the images")
    sort_into: Path | None = option(None, "link each image into DIR/<label>/", metavar="DIR")
    copy: bool = option(False, "with --sort-into: copy instead of link")
    top: int = option(5, "number of candidates per line")
    min_score: float | None = option(
        None,
        "below this score, 0 to 1, a line has no label and says unsure (default: every image gets one)",
        metavar="SCORE",
        parse=number(0, 1, what="a score"),
    )
    monitor: bool = option(
        False,
        "compare the images and scores with those at export: one line, and FILE.monitor.json beside --output",
    )
    keep_unsure: Path | None = option(
        None,
        "copy the images to label next into DIR/<label>/: the least sure (below --min-score, if it is given)",
        metavar="DIR",
    )
    limit: int | None = option(None, "with --keep-unsure: images, at most (default: 100)")
    check: bool = option(False, "check the device instead, without IMAGES; its options: MODEL --check --help")
    verbose: bool = option(False, "show the model, the device and where the nodes run, on standard error")
    workers: int | None = option(
        None, f"images in work at the same time (default: number of cores, here {available_cores()})"
    )
    max_pixels: int = option(89_478_485, "refuse images with more pixels")
    sha256: str | None = option(None, "refuse a model file with another digest", metavar="HEX", parse=_digest)
    all_files: bool = option(
        False,
        "try every file in a folder as an image, whatever its suffix (default: those that Pillow reads)",
    )
    null: bool = option(False, "paths on standard input end in zero bytes, not newlines")
    engine: Literal["local", "ray"] = option(
        "local", "local: this machine (default); ray: a cluster", group=_CLUSTER
    )
    address: str | None = option(
        None, "cluster to connect to (default: the variable RAY_ADDRESS)", metavar="HOST:PORT", group=_CLUSTER
    )
    part_images: int = option(1000, "images in a part of the output, at most", group=_CLUSTER)


def check_run_options(options: RunOptions) -> None:
    """Refuse options that do not go together on one machine, before anything is loaded or written."""
    _check_inputs(options)
    if options.resume and options.overwrite:
        raise UsageError("expected --resume (continue the file) or --overwrite (replace it), found both")
    if options.format == "parquet":
        raise UsageError("--format parquet needs --engine ray; on one machine: jsonl or csv")
    if options.output is not None:
        _check_output(Path(options.output), options)
    elif options.embeddings is None:
        if options.resume or options.overwrite:
            raise UsageError("--resume and --overwrite need --output FILE")
        if sys.stdout is None:
            raise UsageError("standard output is closed, and the lines go there; give --output FILE")
    if options.address is not None:
        raise UsageError("--address needs --engine ray")
    _check_sorting(options)
    if options.null and "-" not in options.images:
        raise UsageError("--null is about paths on standard input: add -")


def _check_inputs(options: RunOptions) -> None:
    # these need Pillow and NumPy: --help needs neither
    from ..images.find_images import image_suffixes, suffix_of
    from ..model_file.artifact import choose_model_file, missing_file

    if is_folder(options.model) and (options.model / _CHECKPOINT).is_file():
        raise UsageError(_not_exported(options.model, "the checkpoint of a run"))
    model = choose_model_file(options.model)
    if not os.path.lexists(model):
        raise missing_file(model)
    kind, words = detect_file_kind(model)
    if kind == "image" or suffix_of(model.name) in image_suffixes():
        raise UsageError(f"{model}: expected a model, found an image; first the model, then the images")
    if kind == "safetensors":
        raise UsageError(_not_exported(model, words))
    if kind in _NO_MODEL or (kind == "text" and suffix_of(model.name) != ".onnx"):
        raise UsageError(
            f"{model}: expected a model that python -m export made, found {words}; give its .onnx file"
        )
    for given in options.images:
        if given != "-" and not os.path.lexists(given):
            raise UsageError(f"{given}: no such image or folder")


def _not_exported(model: Path, found: str) -> str:
    return f"{model}: expected a model file, found {found}; export it first: python -m export {model}"


def _check_sorting(options: RunOptions) -> None:
    """Refuse a folder to sort into that cannot be one, or whose images are to be read."""
    into = options.sort_into
    if into is None:
        if options.copy:
            raise UsageError("--copy needs --sort-into DIR")
        return
    if os.path.lexists(into) and not is_folder(into):
        raise UsageError(f"{into}: expected a folder to sort into, found a file")
    refuse_file_name(into)
    for given in options.images:
        if given != "-" and _is_same(into, given):
            raise UsageError(
                f"{given}: its images would not be read, since --sort-into names it; give another folder"
            )


def _check_output(output: Path, options: RunOptions) -> None:
    """Refuse an output without a folder, one that is an input, and a suffix of another format."""
    if not is_folder(folder := output.absolute().parent):
        raise UsageError(f"{folder}: no such folder, make it first")
    for given in (str(options.model), *options.images):
        if given != "-" and _is_same(output, given):
            raise UsageError(f"{output}: it is an input of this command; give another --output")
    suffix = output.suffix.lower()
    if suffix in OTHER_FORMATS:
        raise UsageError(
            f"{output}: expected a name in .jsonl or .csv, the formats of an output; "
            "with another name, say --format jsonl or --format csv"
        )
    if options.format is not None and suffix in _SUFFIXES and suffix != (expected := f".{options.format}"):
        raise UsageError(
            f"{output}: expected a name in {expected} for --format {options.format}, found {suffix}; "
            "leave --format out, or change the name"
        )


def _is_same(one: str | Path, other: str | Path) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:  # one is not there
        return False
