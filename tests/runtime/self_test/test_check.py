"""The check of a device: what passes, what it reports, and its command line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime import ArtifactError, Classifier, Embedder, available_devices, check_model, command_line
from runtime.cpu import cpu_kind, cpu_name
from runtime.self_test import check, thresholds
from runtime.self_test.answers import EQUAL, NOT_FINITE, measure_sqnr
from runtime.self_test.document import TestImage
from runtime.self_test.thresholds import MIN_SQNR, find_arithmetic, is_same_machine, min_sqnr
from tests.support.self_tests import add_self_test
from vit_edge.__main__ import main

FaultyDevice = Callable[..., None]
same_bits = pytest.mark.skipif(
    cpu_kind() != "x86-vnni", reason="bits are compared on x86 CPUs with VNNI alone"
)


# --- What passes ---


@pytest.mark.parametrize("file", ["model.onnx", "model.int8.onnx"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_exporting_machine_passes(digits_artifacts: Path, file: str, threads: int) -> None:
    found = check_model(digits_artifacts / file, threads=threads)
    assert found.passed, found.verdict
    assert (found.fault, found.preprocessing_equal, found.labels_equal, found.images) == (None, True, 8, 8)
    assert found.verdict == "passed: the same bits as at the export"
    assert found.sqnr_file == EQUAL
    assert found.placement is not None
    assert found.placement.find("cpu").share == 1
    assert found.latency_ms > 0
    assert found.opened > 0


def test_another_cpu_passes_with_other_last_bits(
    digits: Path, faulty_device: FaultyDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "is_same_machine", lambda self_test: False)
    faulty_device(outputs=lambda row: np.nextafter(row, np.inf, dtype=np.float32))
    found = check_model(digits / "model.onnx", baseline=1.0)
    assert found.passed, found.verdict
    assert found.minimum == MIN_SQNR["another CPU"]
    assert 120 < found.sqnr_file < EQUAL


def test_a_model_without_labels_and_one_with_an_embedding(make_embedding_model: Any) -> None:
    for logits in (True, False):
        path = add_self_test(make_embedding_model(f"{logits}.onnx", logits=logits))
        with Embedder(path) as embed:
            found = embed.check()
        assert found.passed, found.verdict
        assert found.labels_equal == (4 if logits else None)
        assert found.use.startswith("Classifier(" if logits else "Embedder(")


def test_a_classifier_checks_itself(make_model: Any) -> None:
    path = add_self_test(make_model())
    with Classifier(path, device="cpu", threads=1) as classify:
        assert classify.check().passed
    with Classifier(path.read_bytes()) as classify:
        found = classify.check()
    assert found.passed
    assert found.file == "the model"
    assert found.use == "Classifier(model, device='cpu')"


def photo() -> bytes:
    image = Image.effect_noise((64, 48), 40).convert("RGB")
    image.save(file := io.BytesIO(), "JPEG", quality=90)
    return file.getvalue()


def test_a_jpeg_that_another_decoder_reads_a_little_differently(make_model: Any) -> None:
    images = (TestImage(made=1, size=(60, 50)), TestImage(jpeg=photo()))
    path = add_self_test(make_model(), images=images)
    digests = check.read_artifact(path).self_test.pixels
    other = (digests[0], "0" * 64)  # as if the other decoder had other last bits
    path = add_self_test(path, images=images, pixels=other)
    found = check_model(path)
    assert found.passed, found.verdict
    assert (found.preprocessing_equal, found.images) == (True, 1)
    far = tuple(np.full((8, 8, 3), 9, np.uint8) if index else None for index in range(2))
    found = check_model(add_self_test(path, images=images, pixels=other, means=far))
    assert found.fault == "preprocessing"


def test_the_time_of_a_slow_device_is_bounded(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_PATIENCE", 0.0)
    found = check_model(digits)
    assert (found.passed, found.images, found.labels_equal) == (True, 1, 1)


# --- Thresholds ---


def test_what_computes_by_device() -> None:
    exact, fast = check.DeviceOptions(), check.DeviceOptions(precision="fast")
    for device, variant, options, expected in (
        ("openvino", "int8", exact, "float32"),
        ("openvino", "int8", fast, "16-bit floats"),
        ("openvino:gpu", "float32", exact, "float32"),
        ("openvino:gpu", "float16", exact, "16-bit floats"),
        ("openvino:npu", "int8", exact, "an NPU"),
        ("qnn", "float16", exact, "an NPU"),
        ("coreml", "float32", exact, "an NPU"),
        ("cuda", "float32", exact, "16-bit floats"),
        ("webgpu", "float32", exact, "float32"),
        ("cpu", "float32", fast, "another CPU"),
    ):
        found = find_arithmetic(device, variant, options, same_machine=False, simulated=False)
        assert found == expected, device
    assert find_arithmetic("cpu", "int8", exact, same_machine=True, simulated=False) == "the same CPU"
    simulated = find_arithmetic("qnn", "int8", exact, same_machine=True, simulated=True)
    assert simulated == "a simulated NPU"


def test_minimum_of_int8_follows_its_noise() -> None:
    assert min_sqnr("another CPU", "int8", 30.0) == 27
    assert min_sqnr("16-bit floats", "int8", 30.0) == 24
    assert min_sqnr("float32", "int8", 90.0) == 60
    assert min_sqnr("a simulated NPU", "int8", 30.0) == 24
    assert min_sqnr("a simulated NPU", "float16", 0.0) == 30
    assert min_sqnr("the same CPU", "int8", 30.0) == 120
    assert min_sqnr("another CPU", "float16", 60.0) == 25
    assert min_sqnr("another CPU", "float32", EQUAL) == 90


@same_bits
def test_bits_are_expected_on_the_same_cpu_and_onnxruntime_alone(make_model: Any) -> None:
    path = make_model()

    def says(**changes: Any) -> bool:
        return is_same_machine(check.read_artifact(add_self_test(path, **changes)).self_test)

    assert says()
    assert not says(runtime="onnxruntime 1.0.0")
    assert not says(cpu={"kind": cpu_kind(), "name": "another one"})
    assert not says(cpu={"kind": "x86", "name": cpu_name()})


def test_cpus_without_vnni_are_never_the_same(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    self_test = check.read_artifact(
        add_self_test(make_model(), cpu={"kind": "x86", "name": cpu_name()})
    ).self_test
    monkeypatch.setattr(thresholds, "cpu_kind", lambda: "x86")
    assert not is_same_machine(self_test)


def test_sqnr_is_the_lowest_of_all_outputs() -> None:
    one = np.ones((2, 3), np.float32)
    assert measure_sqnr({"a": one}, {"a": one}) == EQUAL
    assert measure_sqnr({"a": one, "b": one}, {"a": one, "b": one * np.float32(1.1)}) == pytest.approx(
        20, abs=0.1
    )
    assert measure_sqnr({"a": one}, {"a": one * np.nan}) == NOT_FINITE


# --- Command line ---


def test_the_command_prints_a_table_and_a_verdict(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(digits), "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["device", "variant", "opened"]
    assert [line.split()[:2] for line in lines[1:3]] == [["cpu", "int8"], ["cpu", "float32"]]
    assert [line for line in lines if line.startswith("cpu,")] == [
        f"cpu, model{name}: passed: the same bits as at the export" for name in (".int8.onnx", ".onnx")
    ]
    assert lines[-1].startswith("fastest that passed: Classifier('")
    assert len(lines) == 2 + 2 * 2 * len(available_devices())


def test_json_and_the_other_command(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main([str(digits), "--check", "--json", "--device", "cpu"]) == 0
    document = json.loads(capsys.readouterr().out)
    (row,) = document["checks"]
    assert (document["passed"], row["passed"], row["fault"], row["sqnr_file"]) == (True, True, None, EQUAL)
    assert row["placement"]["parts"][0]["share"] == 1
    assert document["fastest"] == row["use"]
    classify = eval(document["fastest"], {"Classifier": Classifier})  # the line works
    assert classify.info.device == "cpu"


def test_a_file_without_a_self_test_fails(make_model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(make_model())]) == 1
    out = capsys.readouterr().out
    assert "no self-test in this file" in out
    assert out.endswith("no device passed\n")


def test_a_device_that_is_not_here_fails_and_others_do_not_help(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(digits), "--device", "mlx", "--all"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "mlx"
    assert "mlx, digits: not opened: no mlx" in "\n".join(lines)
    assert lines[-1].startswith("fastest that passed: Classifier(")


def test_a_broken_file_beside_is_a_row(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (digits / "model.fp16.onnx").write_bytes(b"\x08\x0abroken")
    assert main(["check", str(digits), "--all"]) == 0
    assert "model.fp16.onnx: not opened: " in capsys.readouterr().out


def test_wrong_use(tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none")]) == 2
    assert "there is no such model file" in capsys.readouterr().err
    (digits / "model.int8.onnx").write_bytes(b"\x08\x0abroken")
    with pytest.raises(ArtifactError, match="not an ONNX model"):
        check_model(digits)
