"""Run the variants of a model on the same images: outputs, top-1 and the latency of one image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array
from calibration.graph.memory import open_graph_session, release_memory
from calibration.measure.label_sets import predict_answers
from calibration.measure.multiply_adds import count_multiply_adds
from calibration.quantize_model import QuantizedModel
from calibration.search import PlanSearch
from calibration.write import write_plan
from export.image_sets import ExportImages
from export.options import Options
from export.sources.source import Source
from export.write_artifact import clear_metadata
from runtime.errors import FailureError
from runtime.images.preprocess import ImageSource, Pixels, Preprocess
from runtime.model_file.artifact import Variant
from runtime.model_file.targets import Target
from runtime.monitor.measure import measure_image
from runtime.onnx_runtime import onnxruntime as ort
from runtime.placement import Placement, read_placement
from runtime.text import format_count
from vit.data.datasets import DataError, Images

BATCH = 8  # images per run; a CPU gains nothing from more
FEW_IMAGES = 16  # enough for figures of each layer
WARM_UPS, TIMED_RUNS = 2, 15  # of each session; the first pay for memory and caches and are not timed
# Models that are measured beside the variants and not written.
BEFORE_SEARCH = "int8 before the search"
DENSE = "int8 without merging"
ADVICE: Mapping[Variant, str] = {  # for outputs that are not finite
    "float32": "the model itself gives them; look at that image, and at the weights",
    "int8": "keep layers in float (--keep-float), or give other calibration images",
    "float16": "float16 ends at 65,504; leave --fp16 out",
}

Progress = Callable[[int], object]
T = TypeVar("T")


class NotFiniteError(FailureError):
    """A model whose outputs are NaN or infinite."""


class ShowStep(Protocol):
    """Shows one long step: what is done, and how many there are of what; 0 where nothing is counted."""

    def __call__(self, what: str, total: int = 0, unit: str = "image") -> AbstractContextManager[Progress]:
        """Show the step while the context is open; what it gives takes the number of finished units."""


def show_nothing(*_: object, **__: object) -> AbstractContextManager[Progress]:
    """Show no step."""
    return nullcontext(lambda _: None)


@dataclass(frozen=True)
class ModelFile:
    """A model of the export before it is written."""

    variant: Variant
    model: ir.Model
    quantized: QuantizedModel | None = None
    search: PlanSearch | None = None

    def open(self, threads: int | None) -> ort.InferenceSession:
        """Open the model on the CPU; None for `threads` takes every core that this process may use."""
        target = self.target or "any-cpu"
        return open_graph_session(clear_metadata(self.model), threads=threads, target=target)

    @property
    def merges(self) -> bool:
        """True if the variant merges tokens."""
        return self.quantized is not None and bool(self.quantized.plan.merging)

    @property
    def target(self) -> Target | None:
        """The form of the INT8 weights; None for a float model."""
        return None if self.quantized is None else self.quantized.plan.target


@dataclass(frozen=True)
class Run:
    """The variants of an export, and what they gave for the evaluation images."""

    source: Source
    images: ExportImages
    options: Options
    variants: Sequence[ModelFile]  # float32 first, with which the others are compared
    parity: float  # largest difference of a logit from the reference, divided by the largest logit
    logits: Mapping[str, Array]  # by variant, and of DENSE: float32 [images, classes]
    embeddings: Mapping[str, Array]  # by variant: float32 [images, features]; empty without the output
    image_statistics: Array  # of each evaluation image: float64 [images, `runtime.monitor.measure.IMAGE`]
    latency: Mapping[str, Mapping[str, float]]  # ms of one image on one thread by variant: min, median
    multiply_adds: Mapping[str, Mapping[str, int]]  # of one image, by variant and by name of the node
    placement: Mapping[str, Placement | None]  # of the timed sessions, by variant
    _measured: dict[Callable[..., Any], Any] = field(default_factory=dict, repr=False)

    @property
    def truth(self) -> tuple[Array | None, Array | None, tuple[float, ...] | None]:
        """The true classes of the evaluation images, which share a name, and the thresholds of the labels."""
        return (*self.images.evaluation.truth, self.source.thresholds)

    @property
    def int8(self) -> ModelFile | None:
        """The quantized variant, if there is one."""
        return next((each for each in self.variants if each.quantized is not None), None)

    def once(self, measure: Callable[[Run], T]) -> T:
        """Return what a section of the report measures (`Comparison.measure`), at the first call only."""
        if measure not in self._measured:
            self._measured[measure] = measure(self)
        found: T = self._measured[measure]
        return found

    def batches(self, images: Images, size: int = BATCH) -> Iterator[Array]:
        """Yield images as the model reads them, `uint8 [N, H, W, 3]`."""
        return batches(images, self.source.preprocess, size=size)

    def few_images(self) -> Images:
        """Return the first evaluation images, for figures of each layer."""
        evaluation = self.images.evaluation
        return evaluation.subset(range(min(FEW_IMAGES, len(evaluation))))


def run_variants(
    source: Source,
    images: ExportImages,
    options: Options,
    variants: Sequence[ModelFile],
    parity: float,
    show_step: ShowStep = show_nothing,
) -> Run:
    """Run each variant, float32 first, on the evaluation images and measure its latency.

    Raises:
        NotFiniteError: for outputs that are NaN or infinite.
    """
    model, evaluation = source.exported.model, images.evaluation
    dense = _make_dense(source, variants)
    with show_step("measuring", len(evaluation)) as progress:
        sessions = [each.open(options.threads) for each in (*variants, *dense)]
        statistics = list[tuple[float, ...]]()
        prepare = partial(_measure_and_preprocess, statistics, source.preprocess)
        outputs = _run_all(sessions, evaluation, prepare, progress)
        del sessions  # before those of the latencies are opened
        release_memory(model)
    for each, found in zip(variants, outputs, strict=False):
        _check_finite(each.variant, found, evaluation)
    image = next(batches(evaluation.subset(range(1)), source.preprocess, size=1))
    multiply_adds = dict[str, dict[str, int]]()
    with show_step("counting multiply-adds"):
        for each in variants:
            multiply_adds[each.variant] = count_multiply_adds(each.model, image, threads=options.threads)
            release_memory(model)
    with show_step("measuring latency"):
        timed = {str(each.variant): each.open(1) for each in variants}
        for each in variants:
            if each.search is not None and each.search.returned:
                before = replace(each, model=write_plan(source.int8_graph, each.search.start))
                timed[BEFORE_SEARCH] = before.open(1)
        timed.update((DENSE, each.open(1)) for each in dense)
        placement = {name: read_placement(timed[name], counts) for name, counts in multiply_adds.items()}
        latency = _measure_latency(timed, image)
        del timed
    release_memory(model)
    names: list[str] = [*(each.variant for each in variants), *(DENSE for _ in dense)]
    by_name = dict(zip(names, outputs, strict=True))
    no_logits = np.zeros((len(evaluation), 0), np.float32)  # of a model without classes
    logits = {name: found.get("logits", no_logits) for name, found in by_name.items()}
    embeddings = {
        name: found["embedding"] for name, found in by_name.items() if "embedding" in found and name != DENSE
    }
    return Run(
        source=source,
        images=images,
        options=options,
        variants=variants,
        parity=parity,
        logits=logits,
        embeddings=embeddings,
        image_statistics=np.array(statistics),
        latency=latency,
        multiply_adds=multiply_adds,
        placement=placement,
    )


def _measure_and_preprocess(
    statistics: list[tuple[float, ...]], preprocess: Preprocess, image: ImageSource
) -> Pixels:
    """Preprocess an image, and append its statistics to a list."""
    sizes: list[tuple[int, int]] = []
    pixels = preprocess(image, take_size=sizes.append)
    statistics.append(measure_image(pixels, sizes[0]))
    return pixels


def _make_dense(source: Source, variants: Sequence[ModelFile]) -> list[ModelFile]:
    """Return the same plan without merging, to be measured beside a merged model and not written."""
    found = []
    for each in variants:
        if each.quantized is not None and each.merges:
            plan = replace(each.quantized.plan, merging={})
            model = write_plan(source.int8_graph, plan)
            found.append(ModelFile("int8", model, replace(each.quantized, model=model, plan=plan)))
    return found


def batches(
    images: Images, preprocess: Callable[[ImageSource], Pixels], *, size: int = BATCH
) -> Iterator[Array]:
    """Yield the images as `uint8 [N, H, W, 3]`, decoded as they are asked for; the last batch may be smaller.

    Args:
        images: the images.
        preprocess: what happens to each of them.
        size: images per batch.

    Raises:
        DataError: naming the image that cannot be read.
    """
    for start in range(0, len(images), size):
        batch = []
        for i in range(start, min(start + size, len(images))):
            try:
                batch.append(preprocess(images[i]))
            except (ValueError, OSError) as error:
                raise DataError(f"{images.describe(i)}: {error}; repair the image or take it out") from error
        yield np.stack(batch)


def _run_all(
    sessions: Sequence[ort.InferenceSession],
    images: Images,
    preprocess: Callable[[ImageSource], Pixels],
    progress: Progress,
) -> list[dict[str, Array]]:
    """Return every output of each session, `float32 [images, features]`; each image is decoded once."""
    found: list[list[list[Array]]] = [[] for _ in sessions]
    for batch in batches(images, preprocess):
        for session, rows in zip(sessions, found, strict=True):
            pixels = session.get_inputs()[0]
            # A file for an NPU takes one image at a time.
            parts = np.split(batch, len(batch)) if pixels.shape[0] == 1 else [batch]
            rows += [session.run(None, {pixels.name: part}) for part in parts]
        progress(len(batch))
    names = [[node.name for node in session.get_outputs()] for session in sessions]
    return [
        dict(zip(each, (np.concatenate(parts) for parts in zip(*rows, strict=True)), strict=True))
        for each, rows in zip(names, found, strict=True)
    ]


def _check_finite(variant: Variant, outputs: Mapping[str, Array], images: Images) -> None:
    """Refuse outputs that are no numbers: no limit would notice, since every comparison with NaN is false."""
    for output, rows in outputs.items():
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(wrong):
            raise NotFiniteError(
                f"{variant}: expected numbers as {output}, found NaN or infinity on {len(wrong)} of "
                f"{format_count(len(rows), 'image')}, the first one is "
                f"{images.describe(int(wrong[0]))}; {ADVICE[variant]}"
            )


def _measure_latency(
    sessions: Mapping[str, ort.InferenceSession], image: Array
) -> dict[str, dict[str, float]]:
    """Return milliseconds of one image, by session; they run in turn, so that noise meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for run in range(WARM_UPS + TIMED_RUNS):
        for name, session in sessions.items():
            feed = {session.get_inputs()[0].name: image}
            start = time.perf_counter()
            session.run(None, feed)
            if run >= WARM_UPS:
                times[name].append((time.perf_counter() - start) * 1000)
    return {name: {"min": min(t), "median": float(np.median(t))} for name, t in times.items()}


def top1(logits: Array) -> tuple[Array, Array]:
    """Return the class of the highest of the `logits [images, classes]` and its softmax score, per image."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return logits.argmax(axis=1), np.asarray(1 / shifted.sum(axis=1))


def answer(logits: Array, thresholds: Sequence[float] | None) -> tuple[Array, Array]:
    """Return `top1`; with thresholds the label sets, bool [images, classes], and each highest score."""
    if thresholds is None:
        return top1(logits)
    scores = 1 / (1 + np.exp(-logits.max(axis=1).astype(np.float64)))
    return predict_answers(logits, thresholds), scores
