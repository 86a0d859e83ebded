"""Run the files for an NPU in Qualcomm's simulator, on as many images as a budget of minutes allows.

Its numbers are those of the NPU; its time is that of the CPU which simulates, and says nothing about an NPU.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibration.graph.edit import Array
from calibration.graph.memory import serialize_for_session
from export.measure.inference import ModelFile, Run
from export.write_artifact import clear_metadata
from runtime.devices import CHIPS, DeviceError
from runtime.errors import InputError
from runtime.images.preprocess import Pixels
from runtime.onnx_runtime import onnxruntime as ort
from runtime.placement import Placement, read_placement
from runtime.plugins import is_simulated
from runtime.session import open_session, translate_error

CHIP = next(iter(CHIPS))  # that the simulator simulates where nothing else is said
SEED = 0  # of the order of the images, so that any number of them is a random sample


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Outputs of the files in the simulator; each file answers the same images."""

    images: tuple[int, ...]  # evaluation images, in the order of the outputs
    outputs: Mapping[str, Array] = field(repr=False)  # by variant: float32 [images, features]
    placement: Mapping[str, Placement | None]  # by variant
    seconds: float  # from the first image to the last, for all files
    failures: Mapping[str, str]  # why a variant has no outputs, by variant


def find_obstacle() -> str | None:
    """Return why nothing can be simulated on this machine; None where it can."""
    try:
        here = is_simulated("qnn")
    except DeviceError as error:
        return str(error)
    return None if here else "this machine has an NPU: vit-edge check --device qnn compares the files there"


def simulate(run: Run, files: Sequence[ModelFile], minutes: float) -> Simulation:
    """Run files in the simulator until the next image would exceed the budget; on one image at least.

    Args:
        run: the variants and the evaluation images.
        files: those to run.
        minutes: for opening the files and for all images. It is looked at between images.

    Returns:
        The outputs; the first output of each file is compared.
    """
    start = time.monotonic()
    sessions, failures = dict[str, ort.InferenceSession](), dict[str, str]()
    for each in files:
        try:
            sessions[each.variant] = _open(each)
        except InputError as error:
            failures[each.variant] = str(error)
    placement = {name: read_placement(sessions[name], run.multiply_adds[name]) for name in sessions}
    evaluation, rows = run.images.evaluation, list[int]()
    found: dict[str, list[Array]] = {name: [] for name in sessions}
    begin, end = time.monotonic(), start + 60 * minutes
    for row in np.random.default_rng(SEED).permutation(len(evaluation)).tolist():
        now = time.monotonic()
        if not found or (rows and now + (now - begin) / len(rows) > end):
            break
        (pixels,) = next(run.batches(evaluation.subset([row]), size=1))
        for name in list(found):
            try:
                found[name].append(_answer(sessions[name], name, pixels))
            except InputError as error:
                failures[name] = str(error)
                del found[name], placement[name]
        rows.append(row)
    return Simulation(
        images=tuple(rows),
        outputs={name: np.concatenate(answers) for name, answers in found.items()},
        placement=placement,
        seconds=time.monotonic() - begin,
        failures=failures,
    )


def _open(file: ModelFile) -> ort.InferenceSession:
    with serialize_for_session(clear_metadata(file.model)) as source:
        return open_session(source, device="qnn", target=file.target or "any-cpu")


def _answer(session: ort.InferenceSession, name: str, pixels: Pixels) -> Array:
    """Return the first output for one image, float32 [1, features]."""
    try:
        (answer,) = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: pixels[None]})
    except Exception as error:  # pybind's own exception classes, of which there is no list
        raise translate_error(error, "qnn", name, "cannot run") from error
    if not np.isfinite(answer).all():
        raise DeviceError(f"{name}: expected numbers, found NaN or infinity; the simulated NPU overflows")
    return np.asarray(answer)
