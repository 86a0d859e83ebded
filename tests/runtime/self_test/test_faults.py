"""Each silent fault that is known fails the check, and is named. All digests are valid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from runtime import DeviceCheck, DeviceError, check_model, load_model, session
from runtime.cpu import cpu_kind
from runtime.images import preprocess
from runtime.self_test import check, diagnose
from tests.support.self_tests import change_metadata, change_model, flip_bit

FaultyDevice = Callable[..., None]


def check_here(model: Path, device: Any = "cpu", **options: Any) -> DeviceCheck:
    return check_model(model, device=device, baseline=1.0, **options)


def assert_fault(found: DeviceCheck, fault: str, *words: str) -> None:
    assert not found.passed
    assert found.fault == fault, found.verdict
    assert found.verdict.startswith(f"{fault}: ")
    for each in words:
        assert each in found.verdict


# --- Pixels ---


def resize_rows_first(image: Image.Image, size: tuple[int, int], method: Any, box: Any) -> Image.Image:
    """As `resize`, in the order of Pillow 13 for some shapes."""
    left, top, right, bottom = box
    image = image.resize((image.width, size[1]), method, (0, top, image.width, bottom))
    return image.resize(size, method, (left, 0, right, size[1]))


def test_another_order_of_resizing(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "resize", resize_rows_first)
    found = check_here(digits)
    assert_fault(found, "preprocessing", "8 of 8 images", "in the other order")
    assert found.preprocessing_equal is False


def test_another_filter(digits: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        assert document["preprocess"]["interpolation"] == "bilinear"
        document["preprocess"]["interpolation"] = "bicubic"

    change_metadata(digits / "model.int8.onnx", change)
    assert_fault(check_here(digits), "preprocessing", "with the filter bilinear")


def test_pixels_that_nothing_explains(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = preprocess.resize

    def brighten(*arguments: Any) -> Image.Image:
        return real(*arguments).point(lambda level: min(level + 1, 255))

    monkeypatch.setattr(preprocess, "resize", brighten)
    assert_fault(check_here(digits), "preprocessing", "Pillow")


def test_channels_swapped_before_the_model(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = preprocess.resize

    def swap(*arguments: Any) -> Image.Image:
        return Image.merge("RGB", real(*arguments).split()[::-1])

    monkeypatch.setattr(preprocess, "resize", swap)
    assert_fault(check_here(digits), "channels", "in the pixels of 8 of 8 images")


def test_channels_swapped_in_the_file(digits: Path) -> None:
    def swap(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = ["swapped" if name == "pixels" else name for name in node.input]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
        gather = onnx.helper.make_node("Gather", ["pixels", "bgr"], ["swapped"], axis=3)
        model.graph.node.insert(0, gather)

    change_model(digits / "model.int8.onnx", swap)
    assert_fault(check_here(digits), "channels", "the file expects images whose red and blue are swapped")


@pytest.mark.parametrize("file", ["model.onnx", "model.int8.onnx"])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda pixels: np.minimum(pixels, 1), "pixels cast to 0 and 1"),
        (lambda pixels: (pixels > 0).astype(np.uint8), "pixels cast to 0 and 1"),
        (lambda pixels: pixels[..., ::-1], "channels"),
        (lambda pixels: np.minimum(pixels, 127), "pixel layout"),
        (lambda pixels: pixels[::-1], "pixel layout"),
        (lambda pixels: pixels[:, ::-1], "pixel layout"),
        (lambda pixels: pixels.swapaxes(0, 1), "pixel layout"),
        (lambda pixels: pixels.transpose(2, 0, 1).reshape(pixels.shape), "pixel layout"),
    ],
)
def test_a_device_that_reads_other_pixels(
    digits: Path, faulty_device: FaultyDevice, file: str, change: Any, fault: str
) -> None:
    faulty_device(pixels=change)
    assert_fault(check_here(digits / file, "webgpu"), fault, "webgpu answers as the CPU does to")


# --- Kernels and devices ---


def test_float_kernels_where_int8_was_planned(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = session.session_options

    def without_fusion(**arguments: Any) -> Any:
        options = real(**arguments)
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options

    monkeypatch.setattr(session, "session_options", without_fusion)
    found = check_here(digits)
    assert_fault(found, "float kernels", "0 of ", "ran in INT8")
    assert found.sqnr_file > 50  # numbers of another CPU are no nearer


def test_saturating_kernels(
    digits: Path, faulty_device: FaultyDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(document: dict[str, Any]) -> None:
        document.update(target="full-range", exact_on=["x86-vnni", "arm64", "wasm"])

    change_metadata(digits / "model.int8.onnx", change)
    monkeypatch.setattr(diagnose, "is_x86", lambda: True)
    faulty_device(outputs=lambda row: row.clip(-2, 2))
    assert_fault(check_here(digits), "saturating kernels", "in exact kernels this CPU gives")
    # Another device on such a CPU has no exact kernels to compare with.
    monkeypatch.setattr(diagnose, "cpu_kind", lambda: "x86")
    assert_fault(check_here(digits, "openvino"), "saturating kernels")


def test_a_provider_that_leaves_nodes_to_the_cpu(digits: Path, faulty_device: FaultyDevice) -> None:
    faulty_device(outside=("Gemm",))
    found = check_here(digits, "webgpu")
    assert_fault(found, "placement", "webgpu", "(minimum on webgpu: 90 %)")
    assert found.placement.find("webgpu").share < 0.9
    # Accepted on request.
    partial = check_here(digits, "webgpu", options=check.DeviceOptions(partial=True))
    assert partial.passed, partial.verdict


def round_to_bfloat16(row: np.ndarray) -> np.ndarray:
    return (row.view(np.uint32) + 0x8000 & 0xFFFF0000).astype(np.uint32).view(np.float32)


def test_bfloat16_where_float32_was_asked_for(digits: Path, faulty_device: FaultyDevice) -> None:
    faulty_device(outputs=round_to_bfloat16)
    found = check_here(digits / "model.onnx", "webgpu")
    assert_fault(found, "low precision", "(minimum on float32: 60.0 dB)")
    # It is no fault on a device that computes in 16 bits.
    fast = check_here(digits / "model.onnx", "webgpu", options=check.DeviceOptions(precision="fast"))
    assert fast.passed, fast.verdict


@pytest.mark.parametrize("wrong", [0.0, np.nan, np.inf])
def test_a_device_that_computes_anything(digits: Path, faulty_device: FaultyDevice, wrong: float) -> None:
    faulty_device(outputs=lambda row: np.full_like(row, wrong))
    assert_fault(check_here(digits, "webgpu"), "wrong numbers")


def test_a_device_that_cannot_be_opened(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise DeviceError("no qnn here")

    monkeypatch.setattr(load_model, "open_session", refuse)
    assert_fault(check_here(digits, "qnn"), "not opened", "no qnn here")


# --- The file ---


@pytest.mark.skipif(cpu_kind() != "x86-vnni", reason="bits are compared on x86 CPUs with VNNI alone")
@pytest.mark.parametrize("bit", [7, 6, 3, 0])
def test_a_flipped_bit_of_a_weight_in_int8(digits: Path, bit: int) -> None:
    def flip(model: onnx.ModelProto) -> None:
        tensors = [each for each in model.graph.initializer if each.raw_data]
        index = next(
            i
            for i, each in enumerate(tensors)
            if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 2
        )
        flip_bit(model, index, 100, bit)

    change_model(digits / "model.int8.onnx", flip)
    assert_fault(check_here(digits), "weights", "the file has changed since its export")


def test_a_flipped_exponent_on_another_machine(
    digits: Path, faulty_device: FaultyDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty_device()
    monkeypatch.setattr(check, "is_same_machine", lambda self_test: False)
    assert check_here(digits / "model.onnx").passed

    def flip(model: onnx.ModelProto) -> None:
        tensors = [each for each in model.graph.initializer if each.raw_data]
        index = max(range(len(tensors)), key=lambda index: len(tensors[index].raw_data))
        flip_bit(model, index, 4 * 100 + 3, 5)

    change_model(digits / "model.onnx", flip)
    for device in ("cpu", "webgpu"):
        assert_fault(check_here(digits / "model.onnx", device), "weights", "plain kernels of this CPU give")


def test_labels_of_another_file(digits: Path) -> None:
    change_metadata(digits / "model.int8.onnx", lambda document: document.update(labels=list("abcdefghij")))
    assert_fault(check_here(digits), "labels", "in its self-test (8 of 8 classes differ)")


@pytest.mark.parametrize("by", [1, -1])
def test_shifted_labels(digits: Path, by: int) -> None:
    def shift(document: dict[str, Any]) -> None:
        labels = document["labels"]
        document["labels"] = labels[-by:] + labels[:-by]

    change_metadata(digits / "model.int8.onnx", shift)
    assert_fault(check_here(digits), "labels", f"differ, all shifted by {by})")
