"""Outputs of a session for the images of a self-test, and their distance from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from ..images.preprocess import Pixels
from ..session import translate_error
from .document import Rows, SelfTest, average_blocks

if TYPE_CHECKING:
    from ..onnx_runtime import InferenceSession

Outputs: TypeAlias = Mapping[str, Rows]

EQUAL, NOT_FINITE = 200.0, -200.0  # dB: equal bits (float32's own noise is near 130); NaN or infinity
_LEVELS = 2  # that the mean of a block of pixels may differ by, where another decoder reads a JPEG


def run_image(session: InferenceSession, pixels: Pixels, *, device: str, name: str) -> Outputs:
    """Run a model on one image, uint8 [H, W, 3], and return each output, float32 [1, features].

    Args:
        session: of the model.
        pixels: the image.
        device: the one that the session is on, for messages.
        name: of the model, for messages.

    Returns:
        By name of the output.

    Raises:
        ArtifactError: when the model is the cause of a failure.
        DeviceError: when the device is.
    """
    names = [node.name for node in session.get_outputs()]
    try:
        found = session.run(names, {"pixels": np.ascontiguousarray(pixels)[None]})
    except Exception as error:  # pybind's own exception classes, of which there is no list
        raise translate_error(error, device, name, "cannot run") from error
    return dict(zip(names, found, strict=True))


def keep_columns(self_test: SelfTest, rows: Sequence[Outputs]) -> Outputs:
    """Return the outputs for several images as one array each, with the columns that the self-test holds."""
    return {
        name: self_test.keep_columns(name, np.concatenate([row[name] for row in rows]))
        for name in self_test.outputs
    }


def measure_sqnr(expected: Outputs, found: Outputs) -> float:
    """Return the signal-to-noise ratio in dB, the lowest of all outputs; `EQUAL` for equal bits at most.

    It is `NOT_FINITE` where a number of `found` is NaN or infinite.
    """
    ratios = [EQUAL]
    for name, wanted in expected.items():
        noise = float(np.square(found[name].astype(np.float64) - wanted).sum())
        if not np.isfinite(noise):
            return NOT_FINITE
        signal = max(float(np.square(wanted.astype(np.float64)).sum()), 1e-30)
        ratios += [10 * float(np.log10(signal / noise))] if noise else []
    return min(ratios)


def hash_pixels(pixels: Pixels) -> str:
    """Return the SHA-256 of preprocessed pixels, as a self-test holds it.

    Args:
        pixels: uint8 [H, W, 3].
    """
    return sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def compare_pixels(
    self_test: SelfTest, pixels: Sequence[Pixels]
) -> list[Literal["equal", "near", "different"]]:
    """Return for each image after preprocessing whether its pixels are those of the exporting machine.

    "near" is a JPEG whose blocks have the same means, as another decoder makes them.
    """
    found = list[Literal["equal", "near", "different"]]()
    for each, digest, means in zip(pixels, self_test.pixels, self_test.means, strict=True):
        near = means is not None and np.abs(average_blocks(each).astype(int) - means).max() <= _LEVELS
        found.append("equal" if hash_pixels(each) == digest else "near" if near else "different")
    return found
