"""A file for an NPU, as the runtime takes it on a CPU; options that do not go with it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.quantize_model import quantize
from export.check_options import check_combinations
from export.options import Options
from export.write_artifact import find_stale_files, write_model
from runtime import Classifier
from runtime.devices import DEVICES
from runtime.errors import InputError
from runtime.images.preprocess import Preprocess
from runtime.model_file.artifact import ArtifactError, Metadata, choose_model_file, read_artifact


@pytest.fixture(scope="module")
def folder(canonical, models, pixels_for, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = models["plain"].config
    made = quantize(canonical["plain"], [pixels_for(config, count=8)], target="npu", threads=1)
    metadata = Metadata(
        variant="int8",
        preprocess=Preprocess(size=config.image_size),
        labels=tuple(f"class {index}" for index in range(config.classes)),
        target="npu",
        measured={"drift": {"sqnr": 43.21}},
    )
    folder = tmp_path_factory.mktemp("npu")
    write_model(folder / "model.npu.onnx", made.model, metadata)
    return folder


def test_a_cpu_runs_it_and_says_that_it_is_slow(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="runtime"):
        classify = Classifier(folder / "model.npu.onnx", device="cpu", threads=1)
        image = Image.fromarray(np.full((*classify.info.preprocess.size, 3), 200, np.uint8))
        answers = [classify(image), classify(image)]
    assert answers[0] == answers[1]
    (warning,) = [record.getMessage() for record in caplog.records if "is for an NPU" in record.getMessage()]
    assert "cpu computes it more slowly than float32" in warning
    assert warning.endswith("on the CPU of the export: 43.2 dB")


def test_it_takes_one_image_at_a_time(folder: Path) -> None:
    classify = Classifier(folder / "model.npu.onnx", device="cpu", threads=1)
    image = Image.fromarray(np.zeros((*classify.info.preprocess.size, 3), np.uint8))
    assert len(list(classify.stream([image] * 3))) == 3
    with pytest.raises(
        ValueError, match=r"model.npu.onnx runs one image at a time, found batch=2; leave it out"
    ):
        list(classify.stream([image] * 3, batch=2))


def test_npus_prefer_it_and_cpus_do_not_take_it_from_a_folder(folder: Path) -> None:
    for device in ("qnn", "openvino:npu"):
        assert choose_model_file(folder, DEVICES[device].variants).name == "model.npu.onnx"
    with pytest.raises(ArtifactError, match=r"expected model.int8.onnx or model.onnx"):
        choose_model_file(folder, DEVICES["cpu"].variants)


def test_its_name_and_plan_are_not_of_an_earlier_export(folder: Path) -> None:
    assert read_artifact(folder / "model.npu.onnx").metadata.file_kind == "npu"
    (folder / "plan.json").touch()
    assert find_stale_files(folder, ["model.onnx", "model.npu.onnx"]) == []
    stale = [path.name for path in find_stale_files(folder, ["model.onnx"])]
    assert stale == ["model.npu.onnx", "plan.json"]


@pytest.mark.parametrize("given", [{"merge_tokens": 2}, {"keep_float": ("head",)}])
def test_work_that_stays_on_the_cpu_is_refused(given: dict) -> None:
    with pytest.raises(InputError, match="--target npu makes a file that an NPU runs alone: leave one out"):
        check_combinations(Options(quantize=True, target="npu", **given))
    check_combinations(Options(quantize=True, target="npu"))
