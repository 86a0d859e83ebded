"""Name the fault of a device, or of a model file, that fails its self-test.

Causes of wrong numbers are hypotheses that are tried on the CPU of this machine with plain kernels: no
operators are fused, and sums of INT8 products do not overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import PIL

from ..cpu import available_cores, cpu_kind, is_x86
from ..devices import DEVICES
from ..images.preprocess import ImageSource, Interpolation, Pixels, Preprocess
from ..loaded_model import ModelInfo
from ..model_file.artifact import Artifact
from ..model_file.targets import EXACT_ON
from ..onnx_runtime import onnxruntime
from ..placement import MIN_SHARE
from ..session import _pass_weights, needs_exact_kernels, session_options
from ..text import format_count
from .answers import Outputs, hash_pixels, keep_columns, measure_sqnr, run_image
from .document import SelfTest
from .thresholds import Arithmetic, min_sqnr

Fault = Literal[
    "not opened", "no self-test", "labels", "preprocessing", "channels", "pixels cast to 0 and 1",
    "pixel layout", "placement", "float kernels", "saturating kernels", "weights", "low precision",
    "wrong numbers",
]  # fmt: skip

INTEGER_KERNELS = frozenset(
    ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "QLinearConv", "ConvInteger")
)
FLOAT_KERNELS = frozenset(("Gemm", "MatMul", "FusedGemm", "FusedMatMul", "Conv", "FusedConv", "MatMulNBits"))
_CLEAR = 6.0  # times the noise that the minimum allows: the lead of a best class that may not change
_IMAGES = 3  # that hypotheses are tried on
_EXPLAINS = 20.0  # dB between outputs and those of a hypothesis that explains them
_ROUNDING = 10.0  # dB: below it, rounding to 16 bits is not the cause


class Finding(NamedTuple):
    """A fault, and what shows it."""

    fault: Fault
    shown_by: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Results of a self-test, for a diagnosis."""

    artifact: Artifact
    info: ModelInfo
    self_test: SelfTest
    partial: bool  # a device that holds less than 90 % of the multiply-adds is accepted
    kernels: Mapping[str, int]  # that ran here, by operator
    images: Sequence[ImageSource]
    pixels: Sequence[Pixels]  # of each image
    same_pixels: Sequence[bool]  # as on the exporting machine, by image
    compared: Sequence[int]  # images whose outputs are compared
    recorded: Outputs  # for these, of this file on the exporting machine
    outputs: Outputs  # for these, here
    arithmetic: Arithmetic
    sqnr: float  # of the outputs, in dB
    sqnr_float32: float  # the same against those of float32 on the exporting machine
    minimum: float  # of it
    quantization: float  # SQNR of this file against float32 on the exporting machine, in dB

    @property
    def labels_equal(self) -> int | None:
        """Compared images with the best class of the exporting machine; None where there are no classes."""
        return len(self.compared) - len(self._find_changed_labels()) if "logits" in self.recorded else None

    @property
    def is_good(self) -> bool:
        """True if the outputs are near enough, and no best class changed that allowed noise cannot change."""
        if self.sqnr < self.minimum:
            return False
        if not (changed := self._find_changed_labels()):
            return True
        rows = self.recorded["logits"][changed]
        best = np.sort(rows, axis=1)
        noise = np.sqrt(np.square(self.recorded["logits"]).mean()) * 10 ** (-self.minimum / 20)
        return not (best[:, -1] - best[:, -2] > _CLEAR * noise).any()

    def _find_changed_labels(self) -> list[int]:
        if "logits" not in self.recorded:
            return []
        best = (each["logits"].argmax(axis=1) for each in (self.recorded, self.outputs))
        return [int(index) for index in np.flatnonzero(np.not_equal(*best))]


def find_fault(evidence: Evidence) -> Finding | None:
    """Return the first fault that the evidence shows; None where the device may be used.

    Raises:
        ArtifactError: when the CPU cannot run the model.
    """
    found = (
        _find_label_fault(evidence)
        or _find_pixel_fault(evidence)
        or _find_placement_fault(evidence.info, partial=evidence.partial)
        or _find_kernel_fault(evidence)
    )
    if found is None and not evidence.is_good:
        found = _explain_numbers(evidence)
    return found


# --- Faults that show before any number is compared ---


def _find_label_fault(evidence: Evidence) -> Finding | None:
    labels = evidence.info.labels
    named = {index: label for image in evidence.self_test.top for index, label in image}
    wrong = [index for index, label in sorted(named.items()) if labels[index : index + 1] != (label,)]
    if not wrong:
        return None
    inside = {by: [i for i in named if 0 <= i + by < len(labels)] for by in (1, -1)}
    shifts = [by for by, which in inside.items() if which and all(labels[i + by] == named[i] for i in which)]
    shifted = f", all shifted by {shifts[0]}" if shifts else ""
    first = wrong[0]
    found = "".join(map(repr, labels[first : first + 1])) or "without a label"
    return Finding(
        "labels",
        f"class {first} is {found} in the file and {named[first]!r} in its self-test ({len(wrong)} of "
        f"{format_count(len(named), 'class', 'classes')} differ{shifted}): the labels are of another file",
    )


def _find_pixel_fault(evidence: Evidence) -> Finding | None:
    wrong = [index for index, same in enumerate(evidence.same_pixels) if not same]
    if not wrong:
        return None
    recorded, pixels = evidence.self_test.pixels[wrong[0]], evidence.pixels[wrong[0]]
    which = f"{len(wrong)} of {format_count(len(evidence.pixels), 'image')}"
    if hash_pixels(pixels[..., ::-1]) == recorded:
        return Finding("channels", f"red and blue are swapped in the pixels of {which}")
    cause = f"Pillow {PIL.__version__} decodes or resizes in another way than at the export"
    for words, other in _preprocess_otherwise(evidence.info.preprocess, evidence.images[wrong[0]]):
        if hash_pixels(other) == recorded:
            cause = f"those of the export are made {words}"
            break
    return Finding("preprocessing", f"{which} have other pixels than at the export; {cause}")


def _preprocess_otherwise(given: Preprocess, image: ImageSource) -> Iterator[tuple[str, Pixels]]:
    """Yield the pixels of an image after other preprocessing than the given one, and the difference."""
    if isinstance(image, np.ndarray):
        before = given.resize_to[::-1] if isinstance(given.resize_to, tuple) else given.resize_to
        turned = replace(given, size=given.size[::-1], resize_to=before)
        pixels = turned(np.ascontiguousarray(image.swapaxes(0, 1))).swapaxes(0, 1)
        yield "by resizing rows and columns in the other order", pixels
    for name in get_args(Interpolation):
        yield f"with the filter {name}", replace(given, interpolation=name)(image)


def _find_placement_fault(info: ModelInfo, *, partial: bool) -> Finding | None:
    if info.device == "cpu" or info.placement is None or partial:
        return None
    share = info.placement.find(info.device).share
    if share is None or share >= MIN_SHARE:
        return None
    found = f"{info.placement.to_text()} (minimum on {info.device}: {100 * MIN_SHARE:.0f} %)"
    return Finding("placement", found)


def _find_kernel_fault(evidence: Evidence) -> Finding | None:
    if evidence.info.device != "cpu":  # other devices do not tell their kernels
        return None
    both = (evidence.self_test.kernels, evidence.kernels)
    planned, ran = (_count_kernels(each, INTEGER_KERNELS) for each in both)
    planned_floats, floats = (_count_kernels(each, FLOAT_KERNELS) for each in both)
    if ran >= planned or floats <= planned_floats:
        return None
    return Finding(
        "float kernels",
        f"{ran} of {format_count(planned, 'product')} ran in INT8 and {floats} in float (at the export: "
        f"{planned_floats}); it had {evidence.self_test.runtime}, here is {onnxruntime.__version__}",
    )


def _count_kernels(kernels: Mapping[str, int], kinds: frozenset[str]) -> int:
    return sum(count for name, count in kernels.items() if name in kinds)


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
    info, sqnr = evidence.info, evidence.sqnr
    found = f"{sqnr:.1f} dB (minimum on {evidence.arithmetic}: {evidence.minimum:.1f} dB)"
    least = min_sqnr("another CPU", info.variant, evidence.quantization)
    if evidence.arithmetic == "the same CPU" and sqnr >= least:
        return Finding("weights", f"{found}, where the bits are equal: the file has changed since its export")
    pixels = [evidence.pixels[index] for index in evidence.compared[:_IMAGES]]
    recorded, outputs = (
        {name: rows[: len(pixels)] for name, rows in each.items()}
        for each in (evidence.recorded, evidence.outputs)
    )
    ask = _open_on_cpu(evidence, plain=True)
    here = measure_sqnr(recorded, ask(pixels))
    explained, fault, words = max(
        (
            measure_sqnr(outputs if here >= least else recorded, ask([change(each) for each in pixels])),
            fault,
            words,
        )
        for fault, words, change in _PIXEL_FAULTS
    )
    if explained >= max(min(_EXPLAINS, least), sqnr + 6):
        who = f"{info.device} answers as the CPU does to" if here >= least else "the file expects"
        return Finding(fault, f"{found}; {who} {words} ({explained:.1f} dB)")
    if here < least:
        also = f"plain kernels of this CPU give {here:.1f} dB"
        return Finding("weights", f"{found}; {also}: the file has changed since its export")
    if _saturates(evidence, recorded, pixels, least):
        return Finding("saturating kernels", f"{found}; in exact kernels this CPU gives {here:.1f} dB")
    cause: Fault = "low precision" if sqnr >= _ROUNDING else "wrong numbers"
    return Finding(cause, f"{found}; plain kernels of this CPU give {here:.1f} dB")


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
    _content = _pass_weights(artifact.weights, source, options)  # needed until the session is open
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def ask(images: Sequence[Pixels]) -> Outputs:
        rows = [run_image(session, each, device="cpu", name=artifact.name) for each in images]
        return keep_columns(evidence.self_test, rows)

    return ask
