"""Name the fault of a device, or of a model file, that fails its self-test.

Causes of wrong numbers are hypotheses that are tried on the CPU of this machine with plain kernels: no
operators are fused, and sums of INT8 products do not overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
import PIL

from ..cpu import available_cores, cpu_kind, is_x86
from ..devices import DEVICES, DeviceOptions
from ..images.preprocess import ImageSource, Interpolation, Pixels, Preprocess
from ..load_model import ModelInfo
from ..model_file.artifact import Artifact
from ..model_file.targets import EXACT_ON
from ..onnx_runtime import onnxruntime
from ..placement import MIN_SHARE
from ..session import needs_exact_kernels, pass_weights, session_options
from ..text import format_count
from .answers import Outputs, compare_pixels, hash_pixels, keep_columns, measure_sqnr, run_image
from .document import FLOAT_KERNELS, INTEGER_KERNELS, SelfTest
from .thresholds import find_arithmetic, min_sqnr

Fault = Literal[
    "not opened", "no self-test", "labels", "preprocessing", "channels", "pixels cast to 0 and 1",
    "pixel layout", "placement", "float kernels", "saturating kernels", "weights", "low precision",
    "wrong numbers",
]  # fmt: skip

_CLEAR = 6.0  # times the noise that the minimum allows: the lead of a best class that may not change
_IMAGES = 3  # that hypotheses are tried on
_EXPLAINS = 20.0  # dB between outputs and those of a hypothesis that explains them
_ROUNDING = 10.0  # dB: below it, rounding to 16 bits is not the cause


Finding: TypeAlias = tuple[Fault, str]  # a fault, and what shows it


@dataclass(kw_only=True)
class Evidence:
    """Results of a self-test, for a diagnosis."""

    artifact: Artifact
    info: ModelInfo
    self_test: SelfTest
    options: DeviceOptions  # that the model was opened with
    kernels: Mapping[str, int]  # that ran here, by operator
    same_machine: bool  # `is_same_machine`
    simulated: bool  # `is_simulated`
    pixels: Sequence[Pixels]  # of each image
    rows: Sequence[Outputs]  # for the first images, here

    def __post_init__(self) -> None:
        """Compare the pixels, and the outputs, with those of the exporting machine."""
        test, info, options, count = self.self_test, self.info, self.options, len(self.rows)
        same = compare_pixels(test, self.pixels)
        self.wrong_pixels = [index for index, each in enumerate(same) if each == "different"]
        # Where another decoder reads a JPEG in another way, its answers are not compared.
        self.compared = [i for i in range(count) if same[i] == "equal"] or [*range(count)]
        self.outputs = keep_columns(test, [self.rows[i] for i in self.compared])
        file, floats = test.select("file"), test.select("float32")
        self.recorded, exact = ({n: a[self.compared] for n, a in each.items()} for each in (file, floats))
        self.quantization = measure_sqnr(floats, file)  # dB, on the exporting machine, as is `recorded`
        where = {"same_machine": self.same_machine, "simulated": self.simulated}
        self.arithmetic = find_arithmetic(info.device, info.variant, options, **where)
        self.minimum = min_sqnr(self.arithmetic, info.variant, self.quantization)  # dB, of `sqnr`
        self.sqnr, self.sqnr_float32 = (measure_sqnr(each, self.outputs) for each in (self.recorded, exact))

    @property
    def labels_equal(self) -> int | None:
        """Compared images with the best class of the exporting machine; None where there are no classes."""
        return len(self.compared) - len(self._find_changed_labels()) if "logits" in self.recorded else None

    @property
    def is_good(self) -> bool:
        """True if the outputs are near enough, and no best class changed that allowed noise cannot change."""
        changed = self._find_changed_labels()
        if self.sqnr < self.minimum or not changed:
            return self.sqnr >= self.minimum
        best = np.sort(self.recorded["logits"][changed], axis=1)
        noise = np.sqrt(np.square(self.recorded["logits"]).mean()) * 10 ** (-self.minimum / 20)
        return not (best[:, -1] - best[:, -2] > _CLEAR * noise).any()

    def _find_changed_labels(self) -> list[int]:
        if "logits" not in self.recorded:
            return []
        best = (each["logits"].argmax(axis=1) for each in (self.recorded, self.outputs))
        return [int(index) for index in np.flatnonzero(np.not_equal(*best))]

    def describe_sqnr(self) -> str:
        """Return the SQNR and its minimum in words."""
        return f"{self.sqnr:.1f} dB (minimum on {self.arithmetic}: {self.minimum:.1f} dB)"


def find_fault(evidence: Evidence) -> Finding | None:
    """Return the first fault that the evidence shows; None where the device may be used.

    Raises:
        ArtifactError: when the CPU cannot run the model.
    """
    return (
        _find_label_fault(evidence)
        or _find_pixel_fault(evidence)
        or _find_placement_fault(evidence)
        or _find_kernel_fault(evidence)
        or (None if evidence.is_good else _explain_numbers(evidence))
    )


# --- Faults that show before any number is compared ---


def _find_label_fault(evidence: Evidence) -> Finding | None:
    labels = dict(enumerate(evidence.info.labels))
    named = {index: label for image in evidence.self_test.top for index, label in image}
    wrong = [index for index, label in sorted(named.items()) if labels.get(index) != label]
    if not wrong:
        return None
    shifted = ""
    for by in (-1, 1):  # more than one, since the class at the end has none behind it
        if len(named) > 1 and all(labels.get(i + by, label) == label for i, label in named.items()):
            shifted = f", all shifted by {by}"
    first = wrong[0]
    found = repr(labels[first]) if first in labels else "without a label"
    return (
        "labels",
        f"class {first} is {found} in the file and {named[first]!r} in its self-test ({len(wrong)} of "
        f"{format_count(len(named), 'class', 'classes')} differ{shifted}): the labels are of another file",
    )


def _find_pixel_fault(evidence: Evidence) -> Finding | None:
    if not (wrong := evidence.wrong_pixels):
        return None
    recorded, pixels = evidence.self_test.pixels[wrong[0]], evidence.pixels[wrong[0]]
    which = f"{len(wrong)} of {format_count(len(evidence.pixels), 'image')}"
    if hash_pixels(pixels[..., ::-1]) == recorded:
        return "channels", f"red and blue are swapped in the pixels of {which}"
    others = _preprocess_otherwise(evidence.info.preprocess, evidence.self_test.images[wrong[0]].open())
    causes = (
        f"those of the export are made {how}" for how, other in others if hash_pixels(other) == recorded
    )
    cause = next(causes, f"Pillow {PIL.__version__} decodes or resizes in another way than at the export")
    return "preprocessing", f"{which} have other pixels than at the export; {cause}"


def _preprocess_otherwise(given: Preprocess, image: ImageSource) -> Iterator[tuple[str, Pixels]]:
    """Yield the pixels of an image after other preprocessing than the given one, and the difference."""
    if isinstance(image, np.ndarray):
        before = given.resize_to[::-1] if isinstance(given.resize_to, tuple) else given.resize_to
        turned = replace(given, size=given.size[::-1], resize_to=before)
        pixels = turned(np.ascontiguousarray(image.swapaxes(0, 1))).swapaxes(0, 1)
        yield "by resizing rows and columns in the other order", pixels
    for name in get_args(Interpolation):
        yield f"with the filter {name}", replace(given, interpolation=name)(image)


def _find_placement_fault(evidence: Evidence) -> Finding | None:
    device, placement = evidence.info.device, evidence.info.placement
    if device == "cpu" or placement is None or evidence.options.partial:
        return None
    share = placement.find(device).share
    if share is None or share >= MIN_SHARE:
        return None
    return "placement", f"{placement.to_text()} (minimum on {device}: {100 * MIN_SHARE:.0f} %)"


def _find_kernel_fault(evidence: Evidence) -> Finding | None:
    if evidence.info.device != "cpu":  # other devices do not tell their kernels
        return None
    planned, ran, planned_floats, floats = (
        sum(count for name, count in kernels.items() if name in kinds)
        for kinds in (INTEGER_KERNELS, FLOAT_KERNELS)
        for kernels in (evidence.self_test.kernels, evidence.kernels)
    )
    if ran >= planned or floats <= planned_floats:
        return None
    return (
        "float kernels",
        f"{ran} of {format_count(planned, 'product')} ran in INT8 and {floats} in float (at the export: "
        f"{planned_floats}); it had {evidence.self_test.runtime}, here is {onnxruntime.__version__}",
    )


# --- Causes of wrong numbers ---

# What a device makes of pixels that it does not read as they are: fault, words, and change of [H, W, 3].
_PIXEL_FAULTS: tuple[tuple[Fault, str, Callable[[Pixels], Pixels]], ...] = (
    ("pixels cast to 0 and 1", "pixels of 0 and 1", lambda pixels: np.minimum(pixels, 1)),
    ("channels", "images whose red and blue are swapped", lambda pixels: pixels[..., ::-1]),
    ("pixel layout", "pixels that end at 127", lambda pixels: np.minimum(pixels, 127)),
    ("pixel layout", "images upside down", lambda pixels: pixels[::-1]),
    ("pixel layout", "mirrored images", lambda pixels: pixels[:, ::-1]),
    ("pixel layout", "rows as columns", lambda pixels: pixels.swapaxes(0, 1).reshape(pixels.shape)),
    ("pixel layout", "planes of one color", lambda pixels: np.moveaxis(pixels, 2, 0).reshape(pixels.shape)),
)


def _explain_numbers(evidence: Evidence) -> Finding:
    """Return the cause of outputs that are too far from those of the exporting machine."""
    info, sqnr, found = evidence.info, evidence.sqnr, evidence.describe_sqnr()
    changed = "the file has changed since its export"
    least = min_sqnr("another CPU", info.variant, evidence.quantization)
    if evidence.arithmetic == "the same CPU" and sqnr >= least:
        return "weights", f"{found}, where the bits are equal: {changed}"
    pixels = [evidence.pixels[index] for index in evidence.compared[:_IMAGES]]
    recorded, outputs = (
        {name: rows[: len(pixels)] for name, rows in each.items()}
        for each in (evidence.recorded, evidence.outputs)
    )
    ask = _open_on_cpu(evidence, plain=True)
    here = measure_sqnr(recorded, ask(pixels))
    asked, who = (
        (outputs, f"{info.device} answers as the CPU does to")
        if here >= least
        else (recorded, "the file expects")
    )
    explained, fault, words = max(
        (measure_sqnr(asked, ask([change(each) for each in pixels])), fault, words)
        for fault, words, change in _PIXEL_FAULTS
    )
    if explained >= max(min(_EXPLAINS, least), sqnr + 6):
        return fault, f"{found}; {who} {words} ({explained:.1f} dB)"
    plain = f"{found}; plain kernels of this CPU give {here:.1f} dB"
    if here < least:
        return "weights", f"{plain}: {changed}"
    if _saturates(evidence, recorded, pixels, least):
        return "saturating kernels", f"{found}; in exact kernels this CPU gives {here:.1f} dB"
    return "low precision" if sqnr >= _ROUNDING else "wrong numbers", plain


def _saturates(evidence: Evidence, recorded: Outputs, pixels: Sequence[Pixels], least: float) -> bool:
    """Return whether INT8 sums that overflow explain the outputs of a device that computes on an x86 CPU."""
    info = evidence.info
    if not is_x86() or info.variant != "int8" or "x86" in EXACT_ON[info.target]:
        return False
    if info.device == "cpu":
        return measure_sqnr(recorded, _open_on_cpu(evidence, plain=False)(pixels)) >= least
    return cpu_kind() == "x86" and DEVICES[info.device].on_cpu


def _open_on_cpu(evidence: Evidence, *, plain: bool) -> Callable[[Sequence[Pixels]], Outputs]:
    """Return what answers images in exact kernels of this CPU, which are not fused where they are plain."""
    artifact = evidence.artifact
    source = artifact.source if isinstance(artifact.source, bytes) else str(artifact.source)
    target = artifact.metadata.target
    options = session_options(threads=available_cores(), target=target)
    if not needs_exact_kernels(target):
        options.add_session_config_entry("session.x64quantprecision", "1")
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    _content = pass_weights(artifact.weights, source, options)  # needed until the session is open
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def ask(images: Sequence[Pixels]) -> Outputs:
        rows = [run_image(session, each, device="cpu", name=artifact.name) for each in images]
        return keep_columns(evidence.self_test, rows)

    return ask
