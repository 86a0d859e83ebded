"""Models that end in something else than logits keep their own probabilities, or are refused by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.graph.memory import open_graph_session
from export.__main__ import main
from export.sources.onnx_description import OnnxDescription, OnnxModelError, describe_onnx
from export.sources.onnx_file import read_onnx, read_onnx_file
from export.sources.scores import expect_logits
from runtime.images.preprocess import Preprocess
from runtime.onnx_runtime import onnxruntime
from tests.support.small_perceptron import CLASSES, SIDE, perceptron

SPEC = OnnxDescription(Preprocess(size=(SIDE, SIDE)), (0.5,) * 3, (0.5,) * 3, None)
CONSTANTS = {
    "axis": np.array([1]),
    "row": np.array([0, CLASSES]),
    "middle": np.array([0, 1, CLASSES]),
    "three": np.array(3.0, np.float32),
    "one": np.array([1]),
    "unit": np.array(1.0, np.float32),
    "two": np.array([2]),
    "zero": np.array([0]),
    "low": np.array(0.0, np.float32),
    "same": np.eye(CLASSES, dtype=np.float32),
}
Node = tuple[str, Sequence[str], str] | tuple[str, Sequence[str], str, dict[str, object]]


def ending(
    path: Path,
    nodes: Sequence[Node],
    *,
    classes: int = CLASSES,
    rank: int = 2,
    dtype: int = TensorProto.FLOAT,
) -> Path:
    """Write the perceptron with these nodes behind its logits `z`; the last one's output is the model's."""
    model = perceptron()
    graph = model.graph
    graph.node[-1].output[0] = "z"
    for op_type, inputs, output, *attributes in nodes:
        graph.node.append(
            helper.make_node(op_type, inputs, [output], **(attributes[0] if attributes else {}))
        )
    used = {name for node in graph.node for name in node.input} - {each.name for each in graph.initializer}
    graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in used
    )
    shape = ["N", *[1] * (rank - 2), classes] if rank > 1 else ["N"]
    last = nodes[-1][2] if nodes else "z"
    graph.output[0].CopyFrom(helper.make_tensor_value_info(last, dtype, shape))
    onnx.save(model, path)
    return path


SOFTMAX: Sequence[Node] = [("Softmax", ["z"], "p", {"axis": -1})]
EXP: Sequence[Node] = [("Exp", ["z"], "e"), ("ReduceSum", ["e", "axis"], "s")]
TAKEN: dict[str, Sequence[Node]] = {
    "softmax": SOFTMAX,
    "softmax, positive axis": [("Softmax", ["z"], "p", {"axis": 1})],
    "softmax called logits": [("Softmax", ["z"], "logits")],
    "softmax, identity": [*SOFTMAX, ("Identity", ["p"], "q")],
    "softmax, reshape": [*SOFTMAX, ("Reshape", ["p", "row"], "q")],
    "softmax, cast": [*SOFTMAX, ("Cast", ["p"], "q", {"to": TensorProto.FLOAT})],
    "softmax between": [
        ("Reshape", ["z", "middle"], "y"),
        ("Softmax", ["y"], "p", {"axis": 2}),
        ("Squeeze", ["p", "one"], "q"),
    ],
    "temperature": [("Div", ["z", "three"], "y"), ("Softmax", ["y"], "p")],
    "log softmax": [("LogSoftmax", ["z"], "p", {"axis": 1})],
    "log of softmax": [*SOFTMAX, ("Log", ["p"], "q")],
    "exp of log softmax": [("LogSoftmax", ["z"], "l"), ("Exp", ["l"], "p")],
    "written out": [*EXP, ("Div", ["e", "s"], "p")],
    "written out, shifted": [
        ("ReduceMax", ["z", "axis"], "m"),
        ("Sub", ["z", "m"], "y"),
        ("Exp", ["y"], "e"),
        ("ReduceSum", ["e", "axis"], "s"),
        ("Div", ["e", "s"], "p"),
    ],
    "reciprocal": [*EXP, ("Reciprocal", ["s"], "r"), ("Mul", ["e", "r"], "p")],
    "log of the sum": [
        ("ReduceLogSumExp", ["z", "axis"], "l"),
        ("Sub", ["z", "l"], "y"),
        ("Exp", ["y"], "p"),
    ],
}


def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("name", TAKEN)
def test_a_softmax_is_taken_off_and_the_probabilities_stay(name: str, tmp_path: Path) -> None:
    path = ending(tmp_path / "m.onnx", TAKEN[name])
    feed = ((images() / 255 - 0.5) / 0.5).astype(np.float32).transpose(0, 3, 1, 2)
    own = onnxruntime.InferenceSession(path).run(None, {"images": feed})[0]
    own = np.exp(own) if name.startswith("log ") and "sum" not in name else own
    found = read_onnx_file(path, SPEC)
    logits = open_graph_session(found.exported.model).run(["logits"], {"pixels": images()})[0]
    np.testing.assert_allclose(softmax(logits), own, atol=1e-5)
    np.testing.assert_allclose(logits, found.reference(images()), atol=1e-4)
    types = {node.op_type for node in found.exported.model.graph}
    assert not types & {"Softmax", "LogSoftmax", "Exp", "Div"} or name == "temperature"


def one(op_type: str, **attributes: object) -> Sequence[Node]:
    return [(op_type, ["z"], "p", attributes)]


REFUSED: dict[str, tuple[Sequence[Node], str]] = {
    "sigmoid": (one("Sigmoid"), "Sigmoid"),
    "sigmoid, identity": ([*one("Sigmoid"), ("Identity", ["p"], "q")], "Sigmoid"),
    "sigmoid, scaled": ([*one("Sigmoid"), ("Mul", ["p", "three"], "q")], "Sigmoid.*Mul"),
    "sigmoid written out": (
        [("Neg", ["z"], "n"), ("Exp", ["n"], "e"), ("Add", ["e", "unit"], "a"), ("Div", ["unit", "a"], "p")],
        "Div",
    ),
    "hard sigmoid": (one("HardSigmoid"), "HardSigmoid"),
    "tanh": (one("Tanh"), "Tanh"),
    "clip": ([("Clip", ["z", "low", "unit"], "p")], "Clip"),
    "softplus": (one("Softplus"), "Softplus"),
    "odds": (one("Exp"), "Exp"),
    "unit length": (one("LpNormalization", axis=1), "LpNormalization"),
    "unit length written out": ([("ReduceL2", ["z", "axis"], "l"), ("Div", ["z", "l"], "p")], "Div"),
    "softmax, scaled": ([*SOFTMAX, ("Mul", ["p", "three"], "q")], "Softmax.*Mul"),
    "sum of two sigmoids": (
        [
            *one("Sigmoid"),
            ("Mul", ["z", "three"], "y"),
            ("Sigmoid", ["y"], "r"),
            ("Add", ["p", "r"], "t"),
            ("Div", ["t", "three"], "q"),
        ],
        "Sigmoid.*followed by Add, Div",
    ),
    "mean over the views of a sigmoid": (
        [
            *one("Sigmoid"),
            ("Unsqueeze", ["p", "one"], "y"),
            ("ReduceMean", ["y", "one"], "q", {"keepdims": 0}),
        ],
        "Sigmoid.*ReduceMean",
    ),
    "log of the mean of two softmaxes": (
        [
            *SOFTMAX,
            ("Mul", ["z", "three"], "y"),
            ("Softmax", ["y"], "r"),
            ("Mean", ["p", "r"], "m"),
            ("Log", ["m"], "q"),
        ],
        "Softmax.*Mean, Log",
    ),
    "sigmoid above a threshold": (
        [*one("Sigmoid"), ("Greater", ["p", "low"], "g"), ("Where", ["g", "p", "low"], "q")],
        "ends the model, followed by Where",
    ),
    "softmax over images": (one("Softmax", axis=0), "Softmax"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_scores_are_refused_by_name(name: str, tmp_path: Path) -> None:
    nodes, words = REFUSED[name]
    with pytest.raises(OnnxModelError, match=words):
        read_onnx_file(ending(tmp_path / "m.onnx", nodes), SPEC)


@pytest.mark.parametrize(
    ("nodes", "classes", "rank", "dtype"),
    [
        ([("ArgMax", ["z"], "p", {"axis": 1, "keepdims": 0})], 1, 1, TensorProto.INT64),
        ([("ArgMax", ["z"], "p", {"axis": 1})], 1, 2, TensorProto.INT64),
        ([("Gather", ["z", "zero"], "p", {"axis": 1})], 1, 2, TensorProto.FLOAT),
        ([("Gather", ["z", "zero"], "y", {"axis": 1}), ("Sigmoid", ["y"], "p")], 1, 2, TensorProto.FLOAT),
    ],
)
def test_what_is_no_row_of_numbers_is_refused(nodes, classes, rank, dtype, tmp_path: Path) -> None:
    path = ending(tmp_path / "m.onnx", nodes, classes=classes, rank=rank, dtype=dtype)
    with pytest.raises(OnnxModelError, match=r"Sigmoid|one output"):
        read_onnx_file(path, SPEC)


def test_honest_logits_behind_other_operators_are_taken(tmp_path: Path) -> None:
    nodes: Sequence[Node] = [("Mul", ["z", "three"], "y"), ("Add", ["y", "z"], "x"), ("Identity", ["x"], "w")]
    nodes = [*nodes, ("Sigmoid", ["w"], "s"), ("Mul", ["w", "s"], "g"), ("Mean", ["g", "z"], "v")]
    found = read_onnx_file(ending(tmp_path / "m.onnx", nodes), SPEC)
    logits = open_graph_session(found.exported.model).run(["logits"], {"pixels": images()})[0]
    np.testing.assert_allclose(logits, found.reference(images()), atol=1e-4)


def test_an_embedding_may_end_in_anything(tmp_path: Path) -> None:
    spec = OnnxDescription(SPEC.preprocess, SPEC.mean, SPEC.std, ())
    assert read_onnx_file(ending(tmp_path / "m.onnx", one("LpNormalization", axis=1)), spec).labels == ()


def test_probabilities_are_known_by_their_values(tmp_path: Path, photos: Path, capsys) -> None:
    """A softmax and a matrix that orders the classes: no operator at the end says it."""
    nodes: Sequence[Node] = [*SOFTMAX, ("MatMul", ["p", "same"], "q")]
    ending(tmp_path / "m.onnx", nodes)
    document = {
        "preprocess": {"size": [SIDE, SIDE]},
        "mean": 0.5,
        "std": 0.5,
        "labels": ["bee", "cat", "ant"],
    }
    (tmp_path / "spec.json").write_text(json.dumps(document))
    words = ["--onnx", str(tmp_path / "m.onnx"), "--preprocess", str(tmp_path / "spec.json")]
    assert main([*words, "--calibration", str(photos), "--out", str(tmp_path / "out")]) == 2
    assert "probabilities" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("outputs", "refused"),
    [
        (softmax(np.random.default_rng(0).normal(size=(8, 5))), True),
        (np.random.default_rng(0).random((8, 100)), True),
        (np.random.default_rng(0).random((8, 5)), False),
        (np.random.default_rng(0).normal(size=(8, 100)), False),
    ],
)
def test_values_of_scores(outputs: np.ndarray, refused: bool) -> None:
    if refused:
        with pytest.raises(OnnxModelError, match="within 0 and 1"):
            expect_logits(outputs)
    else:
        expect_logits(outputs)


@pytest.mark.parametrize("kind", ["regression"])
def test_the_problem_type_of_a_folder_is_read(kind: str, optimum: Path) -> None:
    config = json.loads((optimum / "config.json").read_text())
    (optimum / "config.json").write_text(json.dumps(config | {"problem_type": kind}))
    with pytest.raises(OnnxModelError, match=kind):
        describe_onnx(optimum)


@pytest.mark.parametrize("thresholds", [0.4, [0.1, 0.2, 0.3]])
@pytest.mark.parametrize(
    "nodes", [[], [("Sigmoid", ["z"], "p")], [("Sigmoid", ["z"], "p"), ("Identity", ["p"], "q")]]
)
def test_several_labels_per_image(tmp_path: Path, nodes: Sequence[Node], thresholds: object) -> None:
    """With thresholds in the description a sigmoid is taken off, as the runtime takes one."""
    path = ending(tmp_path / "m.onnx", nodes)
    document = {"preprocess": {"size": [SIDE, SIDE]}, "mean": 0.5, "std": 0.5, "thresholds": thresholds}
    (tmp_path / "spec.json").write_text(json.dumps(document))
    source = read_onnx(path, tmp_path / "spec.json")
    assert source.thresholds == (tuple(thresholds) if isinstance(thresholds, list) else (0.4,) * CLASSES)
    plain = read_onnx_file(ending(tmp_path / "plain.onnx", []), SPEC)
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    assert source.reference(pixels) == pytest.approx(plain.reference(pixels), abs=1e-5)
    assert plain.thresholds is None


@pytest.mark.parametrize(
    ("nodes", "thresholds", "message"),
    [
        ([("Sigmoid", ["z"], "p")], None, 'several labels per image add "thresholds": 0.5'),
        (SOFTMAX, 0.5, "Softmax .* ends the model"),
        ([("HardSigmoid", ["z"], "p")], 0.5, "HardSigmoid .* ends the model"),
        ([("Sigmoid", ["z"], "p"), ("Mul", ["p", "three"], "q")], 0.5, "Sigmoid .* ends the model"),
        ([], [0.5], "the model has 3 classes, the description 1 threshold"),
        ([], 1.5, "thresholds must be from 0 to 1"),
        ([], True, "thresholds must be from 0 to 1"),
        ([], "0.5", "thresholds must be from 0 to 1"),
    ],
)
def test_what_gives_no_several_labels(
    tmp_path: Path, nodes: Sequence[Node], thresholds: object, message: str
) -> None:
    path = ending(tmp_path / "m.onnx", nodes)
    document = {"preprocess": {"size": [SIDE, SIDE]}, "mean": 0.5, "std": 0.5, "thresholds": thresholds}
    (tmp_path / "spec.json").write_text(json.dumps(document))
    with pytest.raises(OnnxModelError, match=message):
        read_onnx(path, tmp_path / "spec.json")


def test_a_multi_label_folder_has_thresholds(optimum: Path) -> None:
    config = json.loads((optimum / "config.json").read_text())
    (optimum / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    found = describe_onnx(optimum)
    assert found.description.thresholds == 0.5
    assert any("a threshold of 0.5 for each label" in sentence for sentence in found.assumed)


def test_one_label_is_no_classifier(tmp_path: Path) -> None:
    path = ending(tmp_path / "m.onnx", [("Gather", ["z", "zero"], "p", {"axis": 1})], classes=1)
    document = {"preprocess": {"size": [SIDE, SIDE]}, "mean": 0.5, "std": 0.5, "labels": ["cat"]}
    (tmp_path / "spec.json").write_text(json.dumps(document))
    with pytest.raises(OnnxModelError, match="one output"):
        read_onnx(path, tmp_path / "spec.json")
