"""Families of transformers and timm through `python -m export --onnx`: which come through, and how exactly.

    python -m tools.onnx_families --models data/onnx-families --table docs/reference/onnx-families.md

Each family is built small with random weights, exported by torch, read as an ONNX model, and its
canonical graph compared with the original file. Needs what `make .venv` installs.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from export.sources.onnx_description import OnnxDescription
from export.sources.onnx_file import read_onnx_file
from export.write_artifact import model_bytes
from runtime.errors import VitEdgeError
from runtime.images.preprocess import Preprocess
from runtime.session import open_session
from tools.lively import lively
from tools.onnx_family_models import SIDE, families

PARITY = 1e-5  # of the logits' scale
OPSET = 18
LARGER = {"crossvit_tiny_240": 240, "coat_tiny": 224, "efficientformer_l1": 224, "efficientformerv2_s0": 224}


@dataclass(frozen=True)
class Outcome:
    """Result of one family under one exporter and batch."""

    family: str
    exporter: str  # "torchscript" or "dynamo"
    batch: str  # "free" or a number
    error: str | None = None  # the first line of what was said, else None
    stage: str = ""  # "torch" when torch itself could not export it, else "load"
    parity: float = 0.0
    token_order: int = 0  # places that tokens_before_batch changed
    float_layers: int = 0  # layers with weights that stay float
    digest: str = ""  # of the canonical float model, so that two versions can be compared


def exported(model: nn.Module, side: int, exporter: str, batch: str) -> bytes:
    """Return the bytes of the .onnx file that torch writes."""
    free = batch == "free"
    images = torch.zeros(2 if free else int(batch), 3, side, side)
    file = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            shapes = ({0: torch.export.Dim("batch")},) if free else None
            program = torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=shapes, verbose=False)
            if program is None:
                raise RuntimeError("torch.onnx.export gave no model")
            program.save(file)
        else:
            axes = {"images": {0: "batch"}} if free else None
            torch.onnx.export(
                model, (images,), file, dynamo=False, opset_version=OPSET, dynamic_axes=axes,
                input_names=["images"], output_names=["scores"],
            )  # fmt: skip
    return file.getvalue()


def tried(name: str, make: Callable[[], nn.Module], exporter: str, batch: str, folder: Path) -> Outcome:
    """Export, load and compare one family; what stopped it is told, not raised."""
    outcome = Outcome(name, exporter, batch)
    side = LARGER.get(name.split()[-1], SIDE)
    file = folder / f"{name}-{exporter}-{batch}.onnx".replace(" ", "_")
    if not file.exists():
        try:
            file.write_bytes(exported(lively(make), side, exporter, batch))
        except Exception as error:  # whatever torch, transformers or timm raise
            return replace(outcome, stage="torch", error=first_line(error))
    description = OnnxDescription(Preprocess(size=(side, side)), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), None)
    try:
        found = read_onnx_file(file, description)
        data = model_bytes(found.exported.model)
        session = open_session(data, device="cpu", threads=1)
        pixels = np.random.default_rng(3).integers(0, 256, (3, side, side, 3), np.uint8)
        expected, logits = found.reference(pixels), session.run(None, {"pixels": pixels})[0]
        if not expected.std(axis=0).max() > 0:
            return replace(outcome, stage="load", error="the logits are the same for every image")
    except VitEdgeError as error:
        return replace(outcome, stage="load", error=first_line(error))
    except Exception as error:  # a bug: shown as such
        return replace(outcome, stage="load", error=f"TRACEBACK {type(error).__name__}: {first_line(error)}")
    return replace(
        outcome,
        parity=float(np.abs(logits - expected).max() / max(float(np.abs(expected).max()), 1e-12)),
        token_order=found.exported.passes.get("tokens_before_batch", 0),
        float_layers=len(found.float_layers),
        digest=hashlib.sha256(data).hexdigest()[:16],
    )


def first_line(error: Exception) -> str:
    """Return the first line of a message, without colors and without the folder of the model file."""
    text = re.sub(r"\x1b\[\d+m|\S*/(?=[^/\s]+\.onnx)", "", str(error))
    lines = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:300]


def passed(outcome: Outcome) -> bool:
    """Return whether the family came through, with the logits of the original."""
    return outcome.error is None and outcome.parity <= PARITY


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="families whose name has it")
    # torchscript alone: where it cannot, dynamo.
    parser.add_argument("--exporter", nargs="+", default=["torchscript"], choices=("torchscript", "dynamo"))
    parser.add_argument("--batch", nargs="+", default=["free"], help='"free", or numbers')
    parser.add_argument("--models", type=Path, required=True, help="where the .onnx files are kept")
    parser.add_argument("--json", type=Path, help="write every outcome here")
    parser.add_argument("--table", type=Path, help="write the table in Markdown here")
    options = parser.parse_args(arguments)
    options.models.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for name, make in families().items():
        if options.only and not any(text in name for text in options.only):
            continue
        for exporter in options.exporter:
            for batch in options.batch:
                start = time.perf_counter()
                outcome = tried(name, make, exporter, batch, options.models)
                if outcome.stage == "torch" and exporter == "torchscript" == options.exporter[-1]:
                    outcome = tried(name, make, "dynamo", batch, options.models)  # what the older cannot
                outcomes.append(outcome)
                if options.table:  # after each: a long run that is cut short leaves what it found
                    options.table.write_text(table(outcomes), encoding="utf-8")
                seconds = time.perf_counter() - start
                what = outcome.error or f"{outcome.parity:.1e}"
                extra = f"order {outcome.token_order}, float {outcome.float_layers}, {seconds:.0f} s"
                print(
                    f"{'ok  ' if passed(outcome) else 'FAIL'} {name:44} {exporter} {batch}: "
                    f"{outcome.stage} {what} [{extra}]",
                    flush=True,
                )
    print(f"{sum(map(passed, outcomes))} of {len(outcomes)}")
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in outcomes], indent=1), encoding="utf-8")
    return 0


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the page with one row for each outcome, and what was said where one did not come through."""
    whole = [each for each in outcomes if each.stage != "torch"]
    torch_failed = [each for each in outcomes if each.stage == "torch"]
    good = sum(map(passed, whole))
    worst = max((each.parity for each in whole if passed(each)), default=0.0)
    lines = [
        "# Families of transformers and timm through `--onnx`",
        "",
        f"{good} of {len(whole)} come through with the logits of the original file; the largest",
        f"difference is {worst:.1e} of the largest logit, the limit {PARITY:.0e}. Tiny models with random",
        f"weights, exported by torch {torch.__version__.split('+')[0]}; three images.",
        "Made by `python -m tools.onnx_families --models DIR --table FILE`.",
        "",
        "Order: places that the token-by-token row order changed; 0 where the model stays image by image.",
        "Float: layers with weights that INT8 leaves in float32, convolutions mostly.",
        "",
        "| family | exporter, batch | difference | order | float |",
        "|---|---|---|---|---|",
    ]
    for each in whole:
        how = f"{each.exporter}, {each.batch}"
        what = each.error.replace("|", "/") if each.error else f"{each.parity:.1e}"
        lines.append(f"| {each.family} | {how} | {what} | {each.token_order} | {each.float_layers} |")
    if torch_failed:
        lines += ["", "torch itself could not export, or these sizes do not suit:", ""]
        lines += [f"- {each.family} ({each.exporter}, {each.batch}): {each.error}" for each in torch_failed]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
