"""From a checkpoint to model files that were measured: the work behind `python -m export`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from calibration.drift import Drift, measure_drift
from calibration.graph import Array
from calibration.layers import layer_drift
from calibration.plan import Target
from calibration.quantize import Quantized, quantize
from export.environment import describe_environment, producer
from export.files import digest, model_bytes, staged
from export.logits import Progress, all_logits, batches, latencies
from export.pictures import ExportPictures, choose_pictures, relabelled
from export.results import Results, VariantResult
from export.torch_onnx import FloatModel, export_float
from runtime.artifact import FILE_NAMES, Metadata, Variant
from runtime.session import open_session
from vit.checkpoint import Checkpoint
from vit.data import Pictures

PARITY = 1e-4  # of the logits' scale: float32 rounding in another order, and no more
PARITY_PICTURES = 8
LAYER_PICTURES = 16  # enough for the drift of each layer


class ExportError(ValueError):
    """An export whose result must not be used; nothing was written."""


class DriftError(ExportError):
    """INT8 is further from float than allowed."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `python -m export` can be told. Drift limits are in percentage points and per cent."""

    calibration: str | Path | None = None
    evaluation: str | Path | None = None
    samples: int = 128
    evaluation_samples: int | None = None
    quantize: bool = True
    target: Target = "avx2"
    keep_float: tuple[str, ...] = ()
    max_drift: float | None = None
    min_agreement: float | None = None
    threads: int | None = None


Reporter = Callable[
    [str, int], AbstractContextManager[Progress]
]  # (what, how many pictures) → a progress bar


def silent(what: str, total: int) -> AbstractContextManager[Progress]:
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class _Variant:
    """A model file before it is measured."""

    variant: Variant
    model: Any  # ir.Model
    session: ort.InferenceSession
    target: Target | None
    quantized: Quantized | None = None


def export(checkpoint: Checkpoint, out: Path, options: Options, report: Reporter = silent) -> Results:
    """Export, quantise, measure and write the model files, `plan.json`, `report.json` and `report.html`.

    Raises:
        DataError: for pictures that cannot be used.
        ExportError: when the float model does not match torch, a layer fell back to float, or INT8 drifts
            beyond the limits. Nothing is written then.
    """
    pictures = _pictures(checkpoint, options)
    exported = export_float(checkpoint.model)
    variants = [_open("float32", exported.model, None, options)]
    parity = _check_parity(checkpoint, variants[0].session, pictures.evaluation)
    if options.quantize:
        with report("calibrating", len(pictures.calibration)) as progress:
            feed = _counted(batches(pictures.calibration, checkpoint.preprocess), progress)
            chosen = quantize(
                exported.model,
                feed,
                target=options.target,
                keep_float=options.keep_float,
                threads=options.threads,
            )
        variants.append(_open("int8", chosen.model, options.target, options, chosen))
    results = _measure(checkpoint, exported, parity, pictures, variants, options, report)
    _check_limits(results, options)
    _write(checkpoint, results, variants, out)
    return results


def _pictures(checkpoint: Checkpoint, options: Options) -> ExportPictures:
    source = options.calibration or options.evaluation
    if source is None:
        raise ExportError(
            "expected pictures like those the model will meet, found none given; add --calibration PICTURES"
        )
    chosen = choose_pictures(
        source, options.evaluation, samples=options.samples, evaluation_samples=options.evaluation_samples
    )
    targets = chosen.targets(checkpoint.labels)
    evaluation = relabelled(chosen.evaluation, targets, checkpoint.labels)
    return ExportPictures(chosen.calibration, evaluation, chosen.note)


def _counted(feed: Any, progress: Progress) -> Any:
    for batch in feed:
        yield batch
        progress(len(batch))


def _open(
    variant: Variant, model: Any, target: Target | None, options: Options, quantized: Quantized | None = None
) -> _Variant:
    session = open_session(model_bytes(model), device="cpu", threads=options.threads, target=target or "any")
    return _Variant(variant, model, session, target, quantized)


def _check_parity(checkpoint: Checkpoint, session: ort.InferenceSession, pictures: Pictures) -> float:
    some = pictures.subset(range(min(PARITY_PICTURES, len(pictures))))
    batch = np.concatenate(list(batches(some, checkpoint.preprocess)))
    with torch.inference_mode():
        expected = checkpoint.model(torch.from_numpy(batch)).numpy()
    (found,) = session.run(None, {session.get_inputs()[0].name: batch})
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    if not difference <= PARITY:
        raise ExportError(
            f"the exported float model differs from torch by {difference:.1e} of the logits' scale, expected "
            f"at most {PARITY:.0e}; please report this with the checkpoint's config"
        )
    return difference


def _measure(
    checkpoint: Checkpoint,
    exported: FloatModel,
    parity: float,
    pictures: ExportPictures,
    variants: list[_Variant],
    options: Options,
    report: Reporter,
) -> Results:
    evaluation = pictures.evaluation
    with report("measuring", len(evaluation)) as progress:
        logits = all_logits([each.session for each in variants], evaluation, checkpoint.preprocess, progress)
    some = evaluation.subset(range(min(LAYER_PICTURES, len(evaluation))))
    timed: dict[str, ort.InferenceSession] = {
        each.variant: open_session(
            model_bytes(each.model), device="cpu", threads=1, target=each.target or "any"
        )
        for each in variants
    }
    times = latencies(timed, next(batches(some, checkpoint.preprocess, size=1)))
    found = []
    for each, rows in zip(variants, logits, strict=True):
        drift = None if each.variant == "float32" else measure_drift(logits[0], rows, evaluation.targets)
        layers: Mapping[str, float] = {}
        if each.quantized is not None:
            feed = batches(some, checkpoint.preprocess)
            layers = layer_drift(
                exported.model, each.model, feed, target=options.target, threads=options.threads
            )
        data = model_bytes(each.model, _metadata(checkpoint, each, drift, evaluation))
        kernels = each.quantized.kernels if each.quantized is not None else None
        found.append(
            VariantResult(
                variant=each.variant,
                file=FILE_NAMES[each.variant],
                bytes=len(data),
                sha256=digest(data),
                logits=rows,
                latency=times[each.variant],
                drift=drift,
                kernels=kernels.counts if kernels else {},
                integer_kernels=kernels.summary() if kernels else "",
                layers=layers,
            )
        )
    return Results(
        producer=producer(),
        source=_source(checkpoint),
        environment=describe_environment(),
        labels=checkpoint.labels,
        passes=exported.passes,
        parity=parity,
        calibration={
            "source": pictures.calibration.name,
            "pictures": len(pictures.calibration),
            "target": options.target,
        },
        evaluation={
            "source": evaluation.name,
            "pictures": len(evaluation),
            "labelled": evaluation.targets is not None,
            "chosen": pictures.note,
        },
        pictures=evaluation,
        targets=evaluation.targets,
        variants=tuple(found),
    )


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint.path.name,
        "sha256": checkpoint.digest,
        "config": checkpoint.model.config.to_dict(),
    }


def _metadata(checkpoint: Checkpoint, each: _Variant, drift: Drift | None, evaluation: Pictures) -> Metadata:
    measured: dict[str, Any] = {"pictures": len(evaluation), "source": evaluation.name}
    if drift is not None:
        measured["drift"] = drift.to_dict()
    return Metadata(
        variant=each.variant,
        preprocess=checkpoint.preprocess,
        labels=checkpoint.labels,
        target=each.target or "any",
        source=_source(checkpoint),
        measured=measured,
        producer=producer(),
    )


def _check_limits(results: Results, options: Options) -> None:
    for each in results.variants[1:]:
        drift = each.drift
        assert drift is not None  # every variant but float32 has one
        failures = []
        if options.max_drift is not None:
            if drift.top1_drop is None:
                raise ExportError(
                    "--max-drift needs pictures whose classes are known: folders named as the classes; "
                    "for loose pictures use --min-agreement"
                )
            if drift.top1_drop > options.max_drift:
                failures.append(
                    f"top-1 falls by {drift.top1_drop:.2f} points, allowed are {options.max_drift:g}"
                )
        if options.min_agreement is not None and drift.agreement < options.min_agreement:
            failures.append(f"agreement is {drift.agreement:.2f} %, asked for are {options.min_agreement:g}")
        if failures:
            worst = ", ".join(f"{name} ({db:.1f} dB)" for name, db in worst_layers(each))
            raise DriftError(
                f"{each.variant} drifts beyond the limit: {'; '.join(failures)}. Furthest from float: "
                f"{worst}. Nothing was written; give more calibration pictures or keep layers in float "
                "(--keep-float)"
            )


def worst_layers(result: VariantResult, count: int = 5) -> list[tuple[str, float]]:
    """The linears whose output is furthest from float, worst first."""
    return sorted(result.layers.items(), key=lambda item: item[1])[:count]


def _write(checkpoint: Checkpoint, results: Results, variants: list[_Variant], out: Path) -> None:
    from export.report_html import render

    with staged(out) as folder:
        for each, result in zip(variants, results.variants, strict=True):
            metadata = _metadata(checkpoint, each, result.drift, results.pictures)
            (folder / result.file).write_bytes(model_bytes(each.model, metadata))
            if each.quantized is not None:
                (folder / "plan.json").write_text(each.quantized.plan.to_json())
        (folder / "report.json").write_text(json.dumps(results.to_dict(), indent=1) + "\n")
        (folder / "report.html").write_text(render(results))


def logits_of(session: ort.InferenceSession, batch: Array) -> Array:
    """The logits of one batch `uint8 [N, H, W, 3]`."""
    (found,) = session.run(None, {session.get_inputs()[0].name: batch})
    return np.asarray(found)
