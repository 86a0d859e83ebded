"""From a checkpoint or a foreign ONNX to measured model files: the work behind `python -m export`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from calibration.drift import Drift, measure_drift
from calibration.layers import layer_drift
from calibration.plan import PlanError, QuantizationPlan, Target
from calibration.quantize import Quantized, apply_plan, quantize
from export.environment import describe_environment, producer
from export.files import digest, model_bytes, staged
from export.half import to_float16
from export.logits import Progress, all_logits, batches, latencies
from export.pictures import ExportPictures, choose_pictures, relabelled
from export.results import Results, VariantResult
from export.source import Source, from_checkpoint
from runtime.artifact import FILE_NAMES, Metadata, Variant
from runtime.session import open_session
from vit.checkpoint import Checkpoint
from vit.data import DataError, Pictures

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
    half: bool = False
    target: Target = "avx2"
    keep_float: tuple[str, ...] = ()
    plan: Path | None = None  # write this plan, and calibrate nothing
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


def export(source: Source | Checkpoint, out: Path, options: Options, report: Reporter = silent) -> Results:
    """Export, quantise, measure and write the model files, `plan.json`, `report.json` and `report.html`.

    Raises:
        DataError: for pictures that cannot be used.
        ExportError: when the float model does not match its source, a layer fell back to float, or a variant
            drifts beyond the limits. Nothing is written then.
    """
    source = from_checkpoint(source) if isinstance(source, Checkpoint) else source
    pictures, exported = _pictures(source, options), source.exported
    variants = [_open("float32", exported.model, None, options)]
    parity = _check_parity(source, variants[0].session, pictures.evaluation)
    if options.quantize or options.plan is not None:
        chosen = _quantize(source, pictures.calibration, options, report)
        variants.append(_open("int8", chosen.model, chosen.plan.target, options, chosen))
    if options.half:
        variants.append(_open("float16", to_float16(exported.model), None, options))
    results = _measure(source, parity, pictures, variants, options, report)
    _check_limits(results, options)
    _write(source, results, variants, out)
    return results


def _quantize(source: Source, calibration: Pictures, options: Options, report: Reporter) -> Quantized:
    if options.plan is not None:
        return apply_plan(source.exported.model, read_plan(options.plan))
    with report("calibrating", len(calibration)) as progress:
        return quantize(
            source.exported.model,
            _counted(batches(calibration, source.preprocess), progress),
            target=options.target,
            keep_float=options.keep_float,
            threads=options.threads,
        )


def read_plan(path: Path) -> QuantizationPlan:
    """Raises PlanError, naming the file, when it is not a plan."""
    try:
        return QuantizationPlan.from_json(path.read_text(encoding="utf-8"))
    except (PlanError, OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: {error}") from error


def _pictures(source: Source, options: Options) -> ExportPictures:
    given = options.calibration or options.evaluation
    if given is None:
        raise DataError(
            "expected pictures like those the model will meet, found none given; add --calibration PICTURES"
        )
    chosen = choose_pictures(
        given, options.evaluation, samples=options.samples, evaluation_samples=options.evaluation_samples
    )
    targets = chosen.targets(source.labels)
    if options.max_drift is not None and targets is None:
        raise DataError(
            f"{chosen.evaluation.name}: --max-drift needs known classes, pictures in folders named as "
            "the classes; for loose pictures use --min-agreement"
        )
    evaluation = relabelled(chosen.evaluation, targets, source.labels)
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


def _check_parity(source: Source, session: ort.InferenceSession, pictures: Pictures) -> float:
    some = pictures.subset(range(min(PARITY_PICTURES, len(pictures))))
    batch = np.concatenate(list(batches(some, source.preprocess)))
    expected = source.reference(batch)
    (found,) = session.run(None, {session.get_inputs()[0].name: batch})
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    if not difference <= PARITY:
        raise ExportError(
            f"the exported float model differs from {source.reference_name} by {difference:.1e} of the "
            f"logits' scale, expected at most {PARITY:.0e}; please report this with: "
            f"{dict(source.description)}"
        )
    return difference


def _measure(
    source: Source,
    parity: float,
    pictures: ExportPictures,
    variants: list[_Variant],
    options: Options,
    report: Reporter,
) -> Results:
    evaluation = pictures.evaluation
    with report("measuring", len(evaluation)) as progress:
        logits = all_logits([each.session for each in variants], evaluation, source.preprocess, progress)
    some = evaluation.subset(range(min(LAYER_PICTURES, len(evaluation))))
    timed: dict[str, ort.InferenceSession] = {
        each.variant: open_session(
            model_bytes(each.model), device="cpu", threads=1, target=each.target or "any"
        )
        for each in variants
    }
    times = latencies(timed, next(batches(some, source.preprocess, size=1)))
    found = []
    for each, rows in zip(variants, logits, strict=True):
        drift = None if each.variant == "float32" else measure_drift(logits[0], rows, evaluation.targets)
        layers: Mapping[str, float] = {}
        if each.quantized is not None:
            feed = batches(some, source.preprocess)
            layers = layer_drift(
                source.exported.model, each.model, each.quantized.plan, feed, threads=options.threads
            )
        data = model_bytes(each.model, _metadata(source, each, drift, evaluation))
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
        source=source.description,
        environment=describe_environment(),
        labels=source.labels,
        passes=source.exported.passes,
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
        float_layers=source.float_layers + _kept_float(variants),
    )


def _metadata(source: Source, each: _Variant, drift: Drift | None, evaluation: Pictures) -> Metadata:
    measured: dict[str, Any] = {"pictures": len(evaluation), "source": evaluation.name}
    if drift is not None:
        measured["drift"] = drift.to_dict()
    return Metadata(
        variant=each.variant,
        preprocess=source.preprocess,
        labels=source.labels,
        target=each.target or "any",
        source=source.description,
        measured=measured,
        producer=producer(),
    )


def _kept_float(variants: list[_Variant]) -> tuple[str, ...]:
    """The linears and products that the plan leaves in float32."""
    plans = [each.quantized.plan for each in variants if each.quantized is not None]
    linears = [name for plan in plans for name, e in plan.linears.items() if e.precision == "float32"]
    return (*linears, *(n for plan in plans for n, e in plan.products.items() if e.precision == "float32"))


def _check_limits(results: Results, options: Options) -> None:
    for each in results.variants[1:]:
        drift = each.drift
        assert drift is not None  # every variant but float32 has one
        failures = []
        if options.max_drift is not None:
            assert drift.top1_drop is not None  # _pictures has looked
            if drift.top1_drop > options.max_drift:
                failures.append(
                    f"top-1 falls by {drift.top1_drop:.2f} points, allowed are {options.max_drift:g}"
                )
        if options.min_agreement is not None and drift.agreement < options.min_agreement:
            failures.append(f"agreement is {drift.agreement:.2f} %, asked for are {options.min_agreement:g}")
        if failures:
            advice = "leave --fp16 out"
            if each.variant == "int8":
                worst = ", ".join(f"{name} ({db:.1f} dB)" for name, db in worst_layers(each))
                failures.append(f"furthest from float: {worst}")
                advice = "give more calibration pictures or keep layers in float (--keep-float)"
            raise DriftError(
                f"{each.variant} drifts beyond the limit: {'; '.join(failures)}. Nothing was written; "
                f"{advice}"
            )


def worst_layers(result: VariantResult, count: int = 5) -> list[tuple[str, float]]:
    """The linears whose output is furthest from float, worst first."""
    return sorted(result.layers.items(), key=lambda item: item[1])[:count]


def _write(source: Source, results: Results, variants: list[_Variant], out: Path) -> None:
    from export.report_html import render

    with staged(out) as folder:
        for each, result in zip(variants, results.variants, strict=True):
            metadata = _metadata(source, each, result.drift, results.pictures)
            (folder / result.file).write_bytes(model_bytes(each.model, metadata))
            if each.quantized is not None:
                (folder / "plan.json").write_text(each.quantized.plan.to_json())
        (folder / "report.json").write_text(json.dumps(results.to_dict(), indent=1) + "\n")
        (folder / "report.html").write_text(render(results))
