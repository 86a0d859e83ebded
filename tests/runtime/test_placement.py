"""Where the nodes of a model run: what ONNX Runtime recorded, never what was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime import ArtifactError, Classifier, DeviceError, DeviceOptions, Metadata, Preprocess, load_model
from runtime.command_line import main
from runtime.onnx_runtime import onnxruntime
from runtime.placement import (
    DevicePart,
    Placement,
    check_placement,
    describe_placement,
    describe_share,
    read_multiply_adds,
    read_placement,
)
from runtime.session import open_session

CPU, OPENVINO = "CPUExecutionProvider", "OpenVINOExecutionProvider"
COUNTS = {"first": 16 * 16 * 3 * 8, "second": 8 * 3}


@dataclass(frozen=True)
class Node:
    """A node as ONNX Runtime lists it."""

    name: str
    op_type: str


@dataclass(frozen=True)
class Part:
    """A part of the graph as ONNX Runtime lists it."""

    ep_name: str
    nodes: Sequence[Node]

    def get_nodes(self) -> Sequence[Node]:
        return self.nodes


class Session:
    """A session that lists the parts that it is given."""

    def __init__(self, *parts: Part) -> None:
        self.parts = parts

    def get_provider_graph_assignment_info(self) -> Sequence[Part]:
        return self.parts


def linears(*names: str) -> list[Node]:
    return [Node(name, "Gemm") for name in names]


def read(counts: dict[str, int], *parts: Part) -> Placement:
    found = read_placement(Session(*parts), counts)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.fixture
def two_linears(tmp_path: Path) -> Callable[..., Path]:
    """Write a model of two linear layers with an operator between them that few providers know."""

    def make(name: str = "model.onnx", **changes: Any) -> Path:
        random = np.random.default_rng(0)
        arrays = {
            "flat": np.array([-1, 16 * 16 * 3]),
            "first_weight": random.normal(size=(16 * 16 * 3, 8)).astype(np.float32) / 1000,
            "second_weight": random.normal(size=(8, 3)).astype(np.float32),
        }
        nodes = [
            helper.make_node("Reshape", ["pixels", "flat"], ["rows"], "rows"),
            helper.make_node("Cast", ["rows"], ["float"], "float", to=TensorProto.FLOAT),
            helper.make_node("Gemm", ["float", "first_weight"], ["first"], "first"),
            helper.make_node("Hardmax", ["first"], ["one"], "one"),
            helper.make_node("Gemm", ["one", "second_weight"], ["logits"], "second"),
        ]
        graph = helper.make_graph(
            nodes,
            "two",
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 16, 16, 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        values: dict[str, Any] = dict(
            variant="float32",
            preprocess=Preprocess(size=(16, 16)),
            labels=("a", "b", "c"),
            measured={"multiply_adds": COUNTS},
        )
        helper.set_model_props(model, {"vit_edge": Metadata(**values | changes).to_json()})
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return make


def test_a_session_on_the_cpu_holds_everything(two_linears) -> None:
    found = Classifier(two_linears(), device="cpu").info.placement
    operators = {"Gemm": 2, "Reshape": 1, "Cast": 1, "Hardmax": 1}
    part = DevicePart(device="cpu", nodes=5, parts=5, share=1.0, operators=operators)
    assert found == Placement(parts=(part,), unlisted=0.0)
    assert found.to_text() == "cpu 5 nodes, 100.0 % of the multiply-adds"
    assert json.loads(json.dumps(found.to_dict()))["parts"][0]["operators"] == operators


def test_the_parts_of_two_devices_are_added_up() -> None:
    found = read(
        {"a": 600, "b": 300, "c": 100},
        Part(CPU, linears("c")),
        Part(OPENVINO, [*linears("a"), Node("x", "Add")]),
        Part(CPU, [Node("y", "Transpose")]),
        Part(OPENVINO, [*linears("b"), Node("z", "Add"), Node("zz", "Add")]),
    )
    assert [(part.device, part.nodes, part.parts, part.share) for part in found.parts] == [
        ("openvino", 5, 2, 0.9),
        ("cpu", 2, 2, 0.1),
    ]
    assert list(found.parts[0].operators.items()) == [("Add", 3), ("Gemm", 2)]
    text = (
        "openvino 5 nodes in 2 parts, 90.0 % of the multiply-adds; cpu 2 nodes, 10.0 % of the multiply-adds"
    )
    assert found.to_text() == text
    check_placement(found, "openvino", "model.onnx")  # 90 % are enough


def test_a_provider_without_a_name_here_keeps_its_own() -> None:
    assert read({}, Part("OtherExecutionProvider", linears("a"))).parts[0].device == "OtherExecutionProvider"


def test_nodes_that_are_not_listed_are_an_unknown_share() -> None:
    """Never 100 %: a name that an optimization has changed is nobody's."""
    found = read({"a": 500, "b": 500}, Part(OPENVINO, linears("a", "b/fused")))
    assert (found.parts[0].share, found.unlisted) == (0.5, 0.5)
    assert found.to_text().endswith("; in nodes that ONNX Runtime does not list 50.0 % of the multiply-adds")
    with pytest.raises(DeviceError, match=r"50\.0 % of the multiply-adds is not listed"):
        check_placement(found, "openvino", "model.onnx")


def test_nodes_that_a_cache_keeps_compiled_are_those_of_its_device() -> None:
    counts = {"a": 500, "b": 300, "c": 100, "d": 100}
    cached = Part(OPENVINO, [Node("part", "EPContext"), *linears("d")])
    found = read(counts, cached, Part(CPU, linears("c")))
    assert ([part.share for part in found.parts], found.unlisted) == ([0.9, 0.1], 0.0)
    other = Part("OtherExecutionProvider", [Node("other", "EPContext")])
    unknown = read(counts, cached, other, Part(CPU, linears("c")))
    assert ([part.share for part in unknown.parts], unknown.unlisted) == ([0.1, 0.1, 0.0], 0.8)


def test_a_node_that_is_listed_twice_is_counted_once() -> None:
    found = read({"a": 900, "b": 100}, Part(OPENVINO, linears("a")), Part(CPU, linears("a", "b")))
    assert [part.share for part in found.parts] == [0.9, 0.1]


def test_a_file_without_counts_has_unknown_shares(caplog: pytest.LogCaptureFixture) -> None:
    found = read({}, Part(OPENVINO, linears("a")))
    assert (found.parts[0].share, found.unlisted, found.find("cpu").share) == (None, None, None)
    assert found.to_text() == "openvino 1 node, an unknown share of the multiply-adds"
    check_placement(found, "openvino", "model.onnx")
    assert "how much of model.onnx runs on openvino is unknown: export the model again" in caplog.text
    assert read({"a": 0}, Part(CPU, linears("a"))).unlisted is None
    most_nodes_first = read({}, Part(CPU, linears("a")), Part(OPENVINO, linears("b", "c"))).parts
    assert [part.nodes for part in most_nodes_first] == [2, 1]


def test_an_older_onnx_runtime_says_unknown(caplog: pytest.LogCaptureFixture) -> None:
    assert read_placement(object(), COUNTS) is None  # type: ignore[arg-type]
    assert describe_placement(None) == "unknown: onnxruntime 1.24 or newer says it"
    check_placement(None, "openvino", "model.onnx")
    assert "how much of model.onnx runs on openvino is unknown: onnxruntime 1.24" in caplog.text


def test_a_share_is_never_rounded_up() -> None:
    assert describe_share(0.99996) == "99.9 % of the multiply-adds"
    assert describe_share(1.0) == "100.0 % of the multiply-adds"
    assert describe_share(0.0) == "0.0 % of the multiply-adds"


def test_a_device_with_a_kind_of_hardware_is_found_by_its_name() -> None:
    found = read({"a": 1}, Part(OPENVINO, linears("a")))
    assert found.find("openvino:npu") is found.parts[0]
    nothing = DevicePart(device="qnn", nodes=0, parts=0, share=0.0, operators={})
    assert found.find("qnn") == nothing


def test_a_provider_that_takes_a_tenth_is_an_error_in_one_line() -> None:
    rest = [*(Node(f"t{i}", "Transpose") for i in range(9)), *linears("c", "d")]
    rest += [Node(kind, kind) for kind in ("Abs", "Cast", "Erf", "Max", "Min")]
    taken = Part(OPENVINO, [*linears("a"), Node("t", "Transpose")])
    found = read({"a": 100, "c": 450, "d": 450}, taken, Part(CPU, rest))
    with pytest.raises(DeviceError) as error:
        check_placement(found, "openvino:npu", "model.int8.onnx")
    assert str(error.value) == (
        "openvino:npu holds 10.0 % of the multiply-adds of model.int8.onnx (minimum: 90 %); on other devices "
        "run 2 of 3 Gemm, 9 of 10 Transpose, 1 of 1 Abs, 1 of 1 Cast, 1 of 1 Erf, 1 of 1 Max, …; choose "
        "another file of the model, or another device, or accept it with DeviceOptions(partial=True), "
        "--partial on the command line"
    )


def test_a_device_that_takes_nothing_is_an_error() -> None:
    found = read({"a": 100}, Part(CPU, linears("a")))
    with pytest.raises(DeviceError, match=r"openvino holds 0\.0 % .* run 1 of 1 Gemm; choose"):
        check_placement(found, "openvino", "model.onnx")


@pytest.mark.parametrize(
    "counts", [3, [1], "all", {"a": 1.5}, {"a": -1}, {"a": True}, {"a": 2**53 + 1}, {"a": None}]
)
def test_counts_of_a_file_are_not_trusted(two_linears, counts: Any) -> None:
    model = two_linears(measured={"multiply_adds": counts})
    with pytest.raises(
        ArtifactError, match=rf"{re.escape(str(model))}: expected measured.multiply_adds .*export"
    ):
        Classifier(model)


def test_counts_are_read() -> None:
    assert read_multiply_adds({"multiply_adds": {"a": 0, "b": 2**53}}, "m") == {"a": 0, "b": 2**53}
    assert read_multiply_adds({"drift": {}}, "m") == {}


def test_verbose_shows_where_a_model_runs(
    two_linears, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = two_linears()
    main([str(model), str(images)])
    quiet = capsys.readouterr()
    main([str(model), str(images), "--verbose"])
    said = capsys.readouterr()
    assert said.out == quiet.out
    assert "placement" not in quiet.err
    sha256 = Classifier(model).info.sha256
    assert said.err.startswith(
        f"model: {model} (float32, vit-edge, SHA-256 {sha256})\n"
        f"device: cpu, 1 thread per image, onnxruntime {onnxruntime.__version__}\n"
        "placement: cpu 5 nodes, 100.0 % of the multiply-adds\n"
    )


def test_verbose_shows_where_embeddings_are_made(
    two_linears, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = two_linears(labels=(), embedding=3)
    replaced = onnx.load(model)
    replaced.graph.output[0].name = replaced.graph.node[-1].output[0] = "embedding"
    onnx.save(replaced, model)
    assert main([str(model), str(images), "--embeddings", str(tmp_path / "e.npy"), "--verbose"]) == 1
    assert "\nplacement: cpu 5 nodes, 100.0 % of the multiply-adds\n" in capsys.readouterr().err


class TestSimulatorOfAnNpu:
    """A real plugin: it has no Hardmax, and ONNX Runtime gives that node to the CPU."""

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        reason = "needs onnxruntime-qnn, which on x86-64 has a simulator of the NPU"
        pytest.importorskip("onnxruntime_qnn", reason=reason)

    def test_it_says_which_nodes_it_took(self, two_linears) -> None:
        placement = Classifier(two_linears(), device="qnn").info.placement
        npu, cpu = placement.parts
        assert (npu.device, npu.nodes, npu.parts, npu.share) == ("qnn", 4, 2, 1.0)
        assert dict(npu.operators) == {"Gemm": 2, "Reshape": 1, "Cast": 1}
        assert (cpu.device, dict(cpu.operators), placement.unlisted) == ("cpu", {"Hardmax": 1}, 0.0)

    def test_too_small_a_share_is_refused_or_accepted(self, two_linears) -> None:
        """The share is that of the counts in the file."""
        model = two_linears(measured={"multiply_adds": {"one": 11, "first": 89}})
        with pytest.raises(DeviceError, match=r"qnn holds 89\.0 % .* run 1 of 1 Hardmax; choose"):
            Classifier(model, device="qnn")
        classify = Classifier(model, device="qnn", device_options=DeviceOptions(partial=True))
        assert classify.info.placement.find("qnn").share == 0.89

    def test_what_a_cache_keeps_has_the_same_share(self, two_linears, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir()
        options = DeviceOptions(cache=tmp_path / "cache")
        model = two_linears(measured={"multiply_adds": {"one": 10, "first": 40, "second": 50}})
        for operators in ({"Gemm": 2, "Reshape": 1, "Cast": 1}, {"EPContext": 2}):
            placement = Classifier(model, device="qnn", device_options=options).info.placement
            assert [(part.device, part.share) for part in placement.parts] == [("qnn", 0.9), ("cpu", 0.1)]
            assert dict(placement.find("qnn").operators) == operators


class TestClassifierOnAnotherDevice:
    """A provider of ONNX Runtime that takes a tenth of the multiply-adds: a real session that lists it so."""

    @pytest.fixture
    def listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Partial:
            def __init__(self, session: Any) -> None:
                self.session = session

            def __getattr__(self, name: str) -> Any:
                return getattr(self.session, name)

            def get_providers(self) -> list[str]:
                return [OPENVINO, CPU]

            def get_provider_graph_assignment_info(self) -> list[Part]:
                return [Part(OPENVINO, linears("second")), Part(CPU, linears("first"))]

        def on_the_cpu(model: Any, *, device: str, **options: Any) -> Any:
            return Partial(open_session(model, device="cpu", **options))

        monkeypatch.setattr(load_model, "open_session", on_the_cpu)

    @pytest.mark.usefixtures("listed")
    def test_it_is_refused(self, two_linears) -> None:
        model = two_linears()
        with pytest.raises(
            DeviceError, match=r"openvino holds 0\.3 % .*: 90 %\); .* 1 of 2 Gemm; .*--partial"
        ):
            Classifier(model, device="openvino")

    @pytest.mark.usefixtures("listed")
    def test_auto_is_not_an_order_and_its_streams_open(self, two_linears) -> None:
        classify = Classifier(two_linears(), device="auto", threads=2)
        assert [part.device for part in classify.info.placement.parts] == ["cpu", "openvino"]
        (result,) = classify.stream([np.zeros((16, 16, 3), np.uint8)])
        assert result.error is None

    @pytest.mark.usefixtures("listed")
    def test_the_cpu_is_never_refused(self, two_linears) -> None:
        assert Classifier(two_linears(), device="cpu").info.placement.find("cpu").share > 0.9
