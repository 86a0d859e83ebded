"""Files that NNCF quantizes for OpenVINO: as its documentation shows, and its accuracy-aware way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.graph.edit import Array

Prepare = Callable[[Array], Array]
F32 = {"INFERENCE_PRECISION_HINT": "f32"}  # some CPUs would compute in bfloat16 unasked


def nncf_file(plain: Path, images: Sequence[Array], prepare: Prepare, path: Path) -> Path:
    """Quantize an ONNX file with the options for transformers, and write it as OpenVINO's `path`.

    Args:
        plain: an ONNX file that takes normalized images.
        images: to calibrate with, each uint8 [1, H, W, 3].
        prepare: turns such an image into what the file takes.
        path: an .xml file; the weights go beside it.
    """
    import nncf
    import openvino

    model = openvino.Core().read_model(plain)
    data = nncf.Dataset(images, prepare)
    openvino.save_model(nncf.quantize(model, data, **_options(images)), path, compress_to_fp16=False)
    return path


def accuracy_aware_file(
    plain: Path, images: Sequence[Array], prepare: Prepare, path: Path, *, max_drop: float
) -> str:
    """Quantize with `nncf.quantize_with_accuracy_control`, and write the result to `path`.

    Every third image validates, the others calibrate. What may drop is 1 minus the noise-to-signal ratio of
    the logits, the mean over the images: as many labels as a user has calibration images rarely change.

    Args:
        plain: an ONNX file that takes normalized images.
        images: each uint8 [1, H, W, 3], at least 3.
        prepare: turns such an image into what the file takes.
        path: an .xml file; the weights go beside it.
        max_drop: how much that may drop; 0.01 is 20 dB.

    Returns:
        What was asked, what came of it and what it took, in one sentence.

    Raises:
        ValueError: for fewer than 3 images.
    """
    if len(images) < 3:
        raise ValueError(f"expected 3 images or more, of which a third validates; found {len(images)}")
    import nncf
    import openvino

    calibration = [pixels for index, pixels in enumerate(images) if index % 3 != 2]
    model = openvino.Core().read_model(plain)
    exact, feeds = openvino.compile_model(model, "CPU", F32), [prepare(pixels) for pixels in images[2::3]]
    items = [(feed, _logits(exact, feed)) for feed in feeds]
    wall, cpu = time.perf_counter(), time.process_time()
    quantized = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(calibration, prepare),
        nncf.Dataset(items),
        _validate,
        max_drop=max_drop,
        advanced_quantization_parameters=_without_smooth_quant(),
        **_options(calibration),
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    openvino.save_model(quantized, path, compress_to_fp16=False)
    measure, _ = _validate(openvino.compile_model(quantized, "CPU", F32), items)
    return (
        f"{len(calibration)} images to calibrate, {len(items)} to validate; asked for a drop of {max_drop:g} "
        f"at most, found {1 - measure:.2g}; {_quantizers(quantized)} quantizers of activations; "
        f"took {wall:.0f} s, {cpu:.0f} s of CPU time"
    )


def _without_smooth_quant() -> Any:
    """Return options that leave SmoothQuant out.

    NNCF 3.4 gives a layer that goes back to float its first weights, and leaves its input divided by the
    scales of SmoothQuant: a small ViT without any quantizer had 4.6 dB so; without SmoothQuant it is exact.
    """
    import nncf

    off = nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
    return nncf.AdvancedQuantizationParameters(smooth_quant_alphas=off)


def _validate(compiled: Any, items: Iterable[tuple[Array, Array]]) -> tuple[float, list[float]]:
    """Return what NNCF asks a validation function for: one number, and one for each image."""
    each = []
    for feed, reference in items:
        noise = np.square(_logits(compiled, feed) - reference).sum()
        each.append(float(1 - noise / np.square(reference).sum()))
    return float(np.mean(each)), each


def quantizers(path: Path) -> int:
    """Return how many quantizers of activations an OpenVINO file has."""
    import openvino

    return _quantizers(openvino.Core().read_model(path))


def _quantizers(model: Any) -> int:
    return sum(operator.get_type_name() == "FakeQuantize" for operator in model.get_ops())


def _logits(compiled: Any, feed: Array) -> Array:
    return np.array(compiled([feed])[0])


def _options(images: Sequence[Array]) -> dict[str, Any]:
    import nncf

    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "model_type": nncf.ModelType.TRANSFORMER,
        "subset_size": len(images),
    }
