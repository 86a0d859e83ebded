"""Options of an export: one field each, with the text of --help. Nothing heavy is imported."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runtime.command.parser import argument, number, option, positive
from runtime.cpu import cpu_kind
from runtime.model_file.targets import TARGETS, Target, choose_target, unknown_target

if TYPE_CHECKING:
    from calibration.search import Budget

MERGE_FLOOR = 20.0  # dB; a ViT-B/16 on ImageNet photos: 16 tokens per block 22.9 dB, 27 16.0 dB


def _parse_target(text: str) -> str:
    """Parse the name of an INT8 target; a former name gets an error with its new name."""
    if text == "auto" or text in TARGETS:
        return text
    raise argparse.ArgumentTypeError(f"{unknown_target(text)}; auto takes the one for this CPU")


def _parse_tokens(text: str) -> int | str:
    """Parse the value of --merge-tokens: a number from 1, or "auto"."""
    try:
        return text if text == "auto" else positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"expected a number of tokens from 1 or auto, found {text!r}; "
            "write --merge-tokens behind the checkpoint"
        ) from error


def _limit(metavar: str, failure: str, parse: Callable[[str], float], default: str = "") -> Any:
    """Return the option of a limit, which fails where the whole 95 % interval is beyond it."""
    return option(None, f"{failure}, with 95 % confidence{default}", metavar=metavar, parse=parse)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn a checkpoint into ONNX files for a device; measure them against the float model.

    `export.pipeline.export` takes the source and the folder as arguments of its own: it reads none of
    `checkpoint`, `onnx`, `preprocess` and `out`.
    """

    checkpoint: Path | None = argument(
        None,
        "checkpoint or its folder, or weights of another project (hf:OWNER/NAME: on the Hugging Face hub; "
        "default: the digits example)",
        metavar="CHECKPOINT",
    )
    onnx: Path | None = option(
        None,
        "float32 ONNX model of another project, instead of a checkpoint: an .onnx file, the folder of "
        "optimum or transformers.js, or hf:OWNER/NAME[/FILE.onnx] on the Hugging Face hub",
        metavar="MODEL",
    )
    preprocess: Path | None = option(
        None,
        "description of the --onnx model: JSON with preprocess, mean, std and labels, or a "
        "preprocessor_config.json (default: the one beside the model)",
        metavar="SPEC",
    )
    fp16: bool = option(False, "also write model.fp16.onnx, for GPUs")
    quantize: bool = option(False, "also write model.int8.onnx (static INT8)")
    calibration: str | Path | None = option(
        None,
        "images for calibration, required with a model: an image folder, an IDX folder, fashion-mnist "
        "or digits",
        metavar="IMAGES",
    )
    evaluate: str | Path | None = option(
        None, "images to measure drift on (default: images that did not calibrate)", metavar="IMAGES"
    )
    out: Path | None = option(None, "folder for the files (default: artifacts/NAME)", metavar="DIR")
    samples: int = option(128, "number of calibration images")
    evaluation_samples: int | None = option(None, "number of images to measure on (default: all)")
    max_drift: float | None = _limit(
        "POINTS", "fail if top-1 falls by more percentage points", number(0, 100)
    )
    min_agreement: float | None = _limit("PERCENT", "fail if fewer images keep their label", number(0, 100))
    min_sqnr: float | None = _limit(
        "DB",
        "fail if the signal-to-noise ratio of the logits is lower",
        number(),
        " (default: 20 with --merge-tokens and no R, else none)",
    )
    embedding: bool = option(
        False,
        "also write the embedding as an output: what the last linear layer reads; a model without "
        "classes has no other output",
    )
    min_cosine: float | None = _limit(
        "COSINE", "fail if the mean cosine of the embeddings to those of float32 is lower", number(-1, 1)
    )
    merge_tokens: int | Literal["auto"] | None = option(
        None,
        "merge similar patches in the INT8 model, an approximation: R per block in the middle half of "
        "the blocks; without R, as many as --max-drift, --min-agreement and --min-sqnr allow",
        metavar="R",
        parse=_parse_tokens,
        alone="auto",
    )
    target: Target | Literal["auto"] = option(
        "auto",
        "form of the INT8 weights: any-cpu is exact at full speed on every CPU, full-range is more "
        "precise and needs VNNI, ARM64 or WebAssembly for full speed; auto selects the one for this CPU; npu "
        "writes model.npu.onnx in the place of model.int8.onnx, for a Hexagon or another NPU",
        metavar="TARGET",
        parse=_parse_target,
    )
    plan: Path | None = option(None, "quantize by this plan.json instead of calibrating", metavar="PLAN")
    keep_float: tuple[str, ...] = option(
        (), "layer to leave in float32; may be repeated; plan.json lists the names", metavar="LAYER"
    )
    self_test: Path | None = option(
        None,
        "put up to 8 photos of this folder into every model file, as small JPEGs, to test devices with; "
        "whoever has the file can see them (default: made images)",
        metavar="FOLDER",
    )
    npu_minutes: float | None = option(
        None,
        "minutes for Qualcomm's simulator of an NPU, where onnxruntime-qnn is installed: it runs the files "
        "for an NPU and float16 on as many images as fit (default: 5 with --target npu, else 0)",
        metavar="MINUTES",
        parse=number(0),
    )
    threads: int | None = option(None, "CPU threads (default: all cores)")
    verbose: bool = option(False, "also list the layers that each rewrite left alone, and why")
    command: str = ""  # the command line for the report, with nothing private in it

    @property
    def writes_int8(self) -> bool:
        """True if an INT8 file is made, by calibration or by a given plan."""
        return self.quantize or self.plan is not None

    @property
    def int8_target(self) -> Target:
        """The form of the INT8 weights, the one for this CPU in the place of "auto"."""
        return choose_target(cpu_kind()) if self.target == "auto" else self.target

    @property
    def budget(self) -> Budget:
        """Limits for the drift of the logits."""
        from calibration.search import Budget

        return Budget(max_drift=self.max_drift, min_agreement=self.min_agreement, min_sqnr=self.min_sqnr)

    @property
    def merge_budget(self) -> Budget | None:
        """Limits for a search of a merging schedule; None where nothing is searched.

        Few images cannot show half a point of top-1, so the noise of the logits is always limited.
        """
        if self.merge_tokens != "auto":
            return None
        return replace(self.budget, min_sqnr=MERGE_FLOOR if self.min_sqnr is None else self.min_sqnr)

    @property
    def searches(self) -> bool:
        """True if a plan within the limits is searched for; a given plan is only checked against them."""
        return self.quantize and self.plan is None and (self.merge_budget or self.budget).limits
