"""The table of devices, and the options of one."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from runtime.batch.options import RunOptions
from runtime.command.parser import Parser, options_from
from runtime.devices import CHIPS, DEVICES, Device, DeviceOptions

ROOT = Path(__file__).parents[2]


def test_every_device_is_in_the_table() -> None:
    assert tuple(DEVICES) == get_args(Device)[1:]  # all but auto
    for name, spec in DEVICES.items():
        assert spec.name == name
        assert spec.build or (spec.package and spec.note)
        assert set(spec.hardware) <= {"cpu", "gpu", "npu"}
        assert spec.on_cpu == (name in ("cpu", "openvino"))


def test_every_extra_installs_the_plugin_of_its_device_beside_onnxruntime() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for spec in DEVICES.values():
        if spec.package is not None:
            extra = project["optional-dependencies"][spec.name.partition(":")[0]]
            packages = {re.split("[>;]", each)[0] for each in extra}
            assert packages == {"vit-edge[cpu]", "onnxruntime", spec.package}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"precision": "bf16"}, "precision must be one of exact, fast, found 'bf16'"),
        (
            {"chip": "a phone"},
            f"chip must be one of {', '.join(CHIPS)} or a number from 1, found 'a phone'",
        ),
        ({"chip": 0}, f"chip must be one of {', '.join(CHIPS)} or a number from 1, found 0"),
        ({"chip": True}, f"chip must be one of {', '.join(CHIPS)} or a number from 1, found True"),
        (
            {"performance": "turbo"},
            "performance must be one of burst, sustained_high_performance, balanced, power_saver, "
            "found 'turbo'",
        ),
        ({"finalization": 4}, "finalization must be one of 1, 2, 3, found 4"),
    ],
)
def test_unknown_options_are_wrong_use(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="must be one of") as refused:
        DeviceOptions(**given)
    assert str(refused.value) == words


def test_the_command_line_has_the_same_options(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="python -m runtime", options=RunOptions)
    words = (
        "m.onnx i.png --device qnn --precision fast --compile-cache c --partial --chip snapdragon-8-gen-2 "
        "--performance burst --finalization 3"
    )
    options = options_from(RunOptions, parser.parse_args(words.split()))
    assert options.device == "qnn"
    expected = DeviceOptions(
        precision="fast",
        cache=Path("c"),
        partial=True,
        chip="snapdragon-8-gen-2",
        performance="burst",
        finalization=3,
    )
    assert options.device_options == expected
    options = options_from(RunOptions, parser.parse_args(["m.onnx", "i.png", "--chip", "77"]))
    assert options.device_options == DeviceOptions(chip=77)
    options = options_from(RunOptions, parser.parse_args(["m.onnx", "i.png"]))
    assert (options.device, options.device_options) == ("auto", DeviceOptions())
    with pytest.raises(SystemExit):
        parser.parse_args(["m.onnx", "i.png", "--finalization", "4"])
    assert "invalid choice: 4 (choose from 1, 2, 3)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args(["m.onnx", "i.png", "--chip", "a phone"])
    said = capsys.readouterr().err
    assert all(words in said for words in ("--chip", "'a phone'", *CHIPS))
