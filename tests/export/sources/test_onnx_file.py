"""Models of other exporters: the accepted and the refused ones with the reason, and the whole export."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.__main__ import main
from export.sources.onnx_description import OnnxDescription, OnnxModelError, find_onnx, read_description
from export.sources.onnx_file import read_onnx, read_onnx_file
from runtime.images.preprocess import Preprocess
from runtime.model_file.artifact import read_metadata

SIDE, CLASSES = 16, 7
LABELS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
DOCUMENT = {
    "preprocess": {"size": [SIDE, SIDE], "resize": "crop", "resize_to": 18, "interpolation": "bicubic"},
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "labels": LABELS,
}
SPEC = OnnxDescription(Preprocess(size=(SIDE, SIDE)), (0.5,) * 3, (0.5,) * 3, tuple(LABELS))


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(DOCUMENT))
    return path


@pytest.fixture
def model(other_onnx: Callable[..., Path]) -> Path:
    return other_onnx("timm unbind", 17, "free")


def changed(model: Path, to: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    proto = onnx.load(model)
    change(proto)
    path = to / "changed.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


# The description -------------------------------------------------------------------------------------------


def test_spec_is_read(spec: Path) -> None:
    found = read_description(spec)
    assert found.preprocess == Preprocess(
        size=(SIDE, SIDE), resize="crop", resize_to=18, interpolation="bicubic"
    )
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.std == (0.229, 0.224, 0.225)
    assert found.labels == tuple(LABELS)


def test_one_number_stands_for_three_channels_and_labels_may_be_left_out(spec: Path) -> None:
    spec.write_text(json.dumps({"preprocess": {}, "mean": 0.5, "std": 0.25}), encoding="utf-8")
    assert read_description(spec) == OnnxDescription(Preprocess(), (0.5,) * 3, (0.25,) * 3, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "mean must be three numbers"),
        ({"mean": [0.5, 0.5]}, "mean must be three numbers"),
        ({"mean": [True, 0.5, 0.5]}, "mean must be three numbers"),
        ({"mean": [123.7, 116.3, 103.5]}, "divide by 255"),
        ({"std": [0.2, 0, 0.2]}, "std must be above 0"),
        ({"labels": "ab"}, "labels must be a list"),
        ({"labels": ["a", 1]}, "labels must be a list"),
        ({"preprocess": [224]}, "preprocess must be an object"),
        ({"preprocess": {"sizes": [16, 16]}}, "unknown preprocessing sizes"),
        ({"preprocess": {"size": [0, 16]}}, "size must be"),
        ({"image_mean": 0.5}, "unknown field 'image_mean'"),
    ],
)
def test_spec_errors_name_the_field(change, message, spec: Path) -> None:
    spec.write_text(json.dumps({**DOCUMENT, **change}), encoding="utf-8")
    with pytest.raises(OnnxModelError, match=message) as caught:
        read_description(spec)
    assert str(spec) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_description_that_is_nested_too_deeply_is_refused(spec: Path) -> None:
    spec.write_text('{"labels":' + "[" * 100_000 + "]" * 100_000 + "}", encoding="utf-8")
    with pytest.raises(OnnxModelError, match="nested too deeply"):
        read_description(spec)


def test_spec_must_say_the_normalization(spec: Path) -> None:
    spec.write_text(json.dumps({"preprocess": {}}), encoding="utf-8")
    with pytest.raises(OnnxModelError, match="it lacks mean, std"):
        read_description(spec)
    spec.write_text("not JSON", encoding="utf-8")
    with pytest.raises(OnnxModelError, match="not a JSON file"):
        read_description(spec)
    with pytest.raises(OnnxModelError, match="cannot be read"):
        read_description(spec.parent / "absent.json")


# The model -------------------------------------------------------------------------------------------------


def test_reference_is_the_original_file_on_normalized_images(model: Path) -> None:
    from runtime.onnx_runtime import onnxruntime

    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    by_hand = ((pixels / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32)
    (expected,) = session.run(None, {"input": by_hand})
    np.testing.assert_allclose(read_onnx_file(model, SPEC).reference(pixels), expected, atol=1e-6)


def test_labels_are_the_specs_or_numbers(model: Path) -> None:
    assert read_onnx_file(model, SPEC).labels == tuple(LABELS)
    unnamed = OnnxDescription(SPEC.preprocess, SPEC.mean, SPEC.std, None)
    assert read_onnx_file(model, unnamed).labels == ("0", "1", "2", "3", "4", "5", "6")
    short = OnnxDescription(SPEC.preprocess, SPEC.mean, SPEC.std, ("a", "b"))
    with pytest.raises(OnnxModelError, match="the model has 7 classes, the description 2 labels"):
        read_onnx_file(model, short)


def test_a_size_that_is_not_the_models_is_refused(other_onnx: Callable[..., Path]) -> None:
    wrong = OnnxDescription(Preprocess(size=(32, 32)), SPEC.mean, SPEC.std, SPEC.labels)
    with pytest.raises(OnnxModelError, match=r"height and width \[32, 32\]"):
        read_onnx_file(other_onnx("timm unbind", 17, "free"), wrong)


def test_what_is_not_quantizable_is_listed(model: Path, tmp_path: Path) -> None:
    def overlap(proto: onnx.ModelProto) -> None:  # a convolutional stem with padding stays a convolution
        (conv,) = (node for node in proto.graph.node if node.op_type == "Conv")
        weight = next(w for w in proto.graph.initializer if w.name == conv.input[1])
        grown = np.pad(
            onnx.numpy_helper.to_array(weight), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.01
        )
        weight.CopyFrom(onnx.numpy_helper.from_array(grown, weight.name))
        for attribute in conv.attribute:
            if attribute.name == "pads":
                attribute.ints[:] = [1, 1, 1, 1]
            if attribute.name == "kernel_shape":
                attribute.ints[:] = [10, 10]

    found = read_onnx_file(changed(model, tmp_path, overlap), SPEC)
    assert len(found.float_layers) == 1
    assert found.float_layers[0].endswith("(Conv)")
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    from export.write_artifact import serialize_model
    from runtime.session import open_session

    (logits,) = open_session(serialize_model(found.exported.model), device="cpu").run(
        None, {"pixels": pixels}
    )
    np.testing.assert_allclose(logits, found.reference(pixels), atol=1e-5)


@pytest.mark.parametrize("data", [b"", b"not a protobuf", b"\x08\x0a"])
def test_other_files_are_refused(data, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(OnnxModelError, match="not an ONNX model"):
        read_onnx_file(path, SPEC)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxModelError, match="cannot be read"):
        read_onnx_file(tmp_path / "absent.onnx", SPEC)
    with pytest.raises(OnnxModelError, match="found a folder"):
        read_onnx_file(tmp_path, SPEC)
    with pytest.raises(
        OnnxModelError, match=r"expected model\.onnx or onnx/model\.onnx, found no \.onnx file"
    ):
        find_onnx(tmp_path)


def test_private_operators_are_refused(model: Path, tmp_path: Path) -> None:
    def private(proto: onnx.ModelProto) -> None:
        proto.graph.node[-1].domain, proto.graph.node[-1].op_type = "com.microsoft", "FusedGemm"
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    with pytest.raises(OnnxModelError, match=r"expected standard operators, found com\.microsoft\.FusedGemm"):
        read_onnx_file(changed(model, tmp_path, private), SPEC)


def test_a_quantized_model_is_refused(model: Path, tmp_path: Path) -> None:
    def quantized(proto: onnx.ModelProto) -> None:
        proto.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["output"], ["a", "b", "c"]))

    with pytest.raises(OnnxModelError, match="expected a float model, found DynamicQuantizeLinear"):
        read_onnx_file(changed(model, tmp_path, quantized), SPEC)


def test_a_second_input_is_refused(model: Path, tmp_path: Path) -> None:
    def second(proto: onnx.ModelProto) -> None:
        proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))

    with pytest.raises(OnnxModelError, match=r"expected one input of float32 images, found input .*mask"):
        read_onnx_file(changed(model, tmp_path, second), SPEC)


def test_among_several_outputs_the_logits_are_taken(model: Path, tmp_path: Path) -> None:
    def hidden(proto: onnx.ModelProto) -> None:
        first = proto.graph.node[0].output[0]
        proto.graph.output.insert(0, helper.make_tensor_value_info(first, TensorProto.FLOAT, [None] * 4))

    found = read_onnx_file(changed(model, tmp_path, hidden), SPEC)
    assert [value.name for value in found.exported.model.graph.outputs] == ["logits"]

    def twice(proto: onnx.ModelProto) -> None:
        proto.graph.node.append(helper.make_node("Relu", ["output"], ["other"]))
        proto.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [None, CLASSES]))

    with pytest.raises(OnnxModelError, match="expected one output"):
        read_onnx_file(changed(model, tmp_path, twice), SPEC)


# Weights in files of their own -----------------------------------------------------------------------------


def with_external_data(model: Path, folder: Path) -> Path:
    folder.mkdir()
    proto = onnx.load(model)
    onnx.save(
        proto, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64
    )
    assert (folder / "weights.bin").stat().st_size > 1000
    return folder / "model.onnx"


def relocated(path: Path, location: str) -> Path:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_beside_the_model_is_read(model: Path, tmp_path: Path) -> None:
    external = read_onnx_file(with_external_data(model, tmp_path / "m"), SPEC)
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_array_equal(external.reference(pixels), read_onnx_file(model, SPEC).reference(pixels))


@pytest.mark.parametrize("how", ["up", "absolute", "below", "through", "dot"])
def test_external_data_elsewhere_is_refused(how, model: Path, tmp_path: Path) -> None:
    """By the name alone: there, all of these are files that could be read."""
    path = with_external_data(model, tmp_path / "m")
    outside, below = tmp_path / "secret.bin", path.parent / "below" / "secret.bin"
    below.parent.mkdir()
    for place in (outside, below, path.parent / "secret.bin"):
        place.write_bytes((path.parent / "weights.bin").read_bytes())
    location = {
        "up": "../secret.bin",
        "absolute": str(outside),
        "below": "below/secret.bin",
        "through": "below/../secret.bin",
        "dot": "./secret.bin",
    }[how]
    with pytest.raises(OnnxModelError, match="outside the model's folder"):
        read_onnx_file(relocated(path, location), SPEC)


@pytest.mark.parametrize("how", ["data", "both", "chain", "folder"])
def test_links_by_which_caches_store_models_are_followed(how, model: Path, tmp_path: Path) -> None:
    """The hub's cache, DVC, git-annex, Bazel, Nix: the folder is the user's, and the file names no path."""
    path, store = with_external_data(model, tmp_path / "m"), tmp_path / "blobs"
    store.mkdir()
    for name in ("weights.bin", "model.onnx")[: 1 if how == "data" else 2]:
        kept, link = store / f"sha256-{name[0]}", path.parent / name
        link.rename(kept)
        if how == "chain":
            (tmp_path / name).symlink_to(kept)
            kept = tmp_path / name
        link.symlink_to(os.path.relpath(kept, link.parent) if how == "both" else kept)
    if how == "folder":
        (tmp_path / "linked").symlink_to(path.parent)
        path = tmp_path / "linked" / path.name
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_array_equal(
        read_onnx_file(path, SPEC).reference(pixels), read_onnx_file(model, SPEC).reference(pixels)
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("/dev/zero", "expected a file, found a device"),
        ("pipe", "expected a file, found a pipe"),
        ("/", "expected a file, found a folder"),
        ("nothing", "missing beside it"),
        ("weights.bin", "cannot be read"),
        ("/proc/self/status", "of 0"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="no pipes and devices like these")
def test_external_data_that_is_no_file_is_refused_at_once(kind, message, model: Path, tmp_path: Path) -> None:
    path = with_external_data(model, tmp_path / "m")
    os.mkfifo(path.parent / "pipe")
    (path.parent / "weights.bin").unlink()
    (path.parent / "weights.bin").symlink_to(kind)
    with pytest.raises(OnnxModelError, match=message):
        read_onnx_file(path, SPEC)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": "99999999"}, "of "),
        ({"offset": "-64"}, "expected a number of bytes, found '-64'"),
        ({"length": "4"}, "by its shape, and 4 there"),
        ({"length": "1_0"}, "expected a number of bytes"),
        ({"length": "9" * 5000}, "expected a number of bytes, found '9999"),
    ],
)
def test_external_data_where_the_file_does_not_hold_it(changes, message, model: Path, tmp_path: Path) -> None:
    path = with_external_data(model, tmp_path / "m")
    proto = onnx.load(path, load_external_data=False)
    tensor = next(each for each in proto.graph.initializer if each.external_data)
    for entry in tensor.external_data:
        entry.value = changes.get(entry.key, entry.value)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxModelError, match=message) as caught:
        read_onnx_file(path, SPEC)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("where", ["subgraph", "sparse", "function", "training"])
def test_external_data_is_found_wherever_it_is(where, model: Path, tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    graph = helper.make_graph([node], "inner", [], [])

    def change(proto: onnx.ModelProto) -> None:
        if where == "subgraph":
            proto.graph.node.append(
                helper.make_node("If", ["c"], ["d"], then_branch=graph, else_branch=graph)
            )
        elif where == "sparse":
            proto.graph.sparse_initializer.add(dims=[1]).values.CopyFrom(tensor)
        elif where == "function":
            proto.functions.add(name="f", domain="own").node.append(node)
        else:
            proto.training_info.add().algorithm.CopyFrom(graph)

    with pytest.raises(OnnxModelError, match="outside the model's folder"):
        read_onnx_file(changed(model, tmp_path, change), SPEC)


@pytest.mark.parametrize(
    ("kind", "message"), [("Loop", "Loop is in it"), ("com.microsoft", "com.microsoft.Gelu")]
)
def test_a_branch_is_looked_into(kind, message, model: Path, tmp_path: Path) -> None:
    """A branch that is taken is run to read off the shapes: a Loop in it may not end."""
    inner = [helper.make_node("Identity", ["output"], ["branch"])]
    if kind == "Loop":
        body = helper.make_graph(
            [helper.make_node("Identity", ["c"], ["d"])],
            "body",
            [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("c", 9, [])],
            [helper.make_tensor_value_info("d", 9, [])],
        )
        inner.append(helper.make_node("Loop", ["most", "yes"], [], body=body))
    else:
        inner = [helper.make_node("Gelu", ["output"], ["branch"], domain="com.microsoft")]
    out = helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)

    def change(proto: onnx.ModelProto) -> None:
        branch = helper.make_graph(inner, "branch", [], [out])
        node = helper.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch)
        proto.graph.node.append(node)
        proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        proto.graph.initializer.append(numpy_helper.from_array(np.int64(2**62), "most"))
        proto.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, CLASSES]))
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    with pytest.raises(OnnxModelError, match=message):
        read_onnx_file(changed(model, tmp_path, change), SPEC)


def test_external_data_that_is_missing_or_short_is_said_so(model: Path, tmp_path: Path) -> None:
    path = with_external_data(model, tmp_path / "m")
    weights = path.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(OnnxModelError, match="external data cannot be read"):
        read_onnx_file(path, SPEC)
    weights.unlink()
    with pytest.raises(OnnxModelError, match="missing beside it"):
        read_onnx_file(path, SPEC)


# The command line ------------------------------------------------------------------------------------------


def test_the_whole_road(model: Path, spec: Path, photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    command = ["--onnx", model, "--preprocess", spec, "--calibration", photos, "--out", out, "--threads", "1"]
    assert main([*map(str, command), "--quantize", "--fp16"]) == 0
    printed = capsys.readouterr().out
    assert ", 9 in INT8 (all in integer kernels), " in printed
    assert "model.fp16.onnx" in printed
    report = json.loads((out / "report.json").read_text())
    assert set(report["models"]) == {"float32", "int8", "float16"}
    assert report["models"]["float16"]["drift"]["sqnr"] > 40
    plan = json.loads((out / "plan.json").read_text())
    stays = [n for kind in ("linears", "products") for n, e in plan[kind].items() if e["precision"] != "int8"]
    assert report["float_layers"] == stays
    assert report["parity"]["reference"] == "the original ONNX"
    assert report["parity"]["difference"] < 1e-5
    assert "float32 equals the original ONNX to" in printed
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "float32 against the original ONNX" in page
    assert "against torch" not in page
    for name, variant in (
        ("model.onnx", "float32"),
        ("model.int8.onnx", "int8"),
        ("model.fp16.onnx", "float16"),
    ):
        metadata = read_metadata(out / name)
        assert (metadata.variant, metadata.labels) == (variant, tuple(LABELS))
        assert metadata.preprocess == read_description(spec).preprocess
        assert metadata.source["onnx"] == model.name


def test_a_source_says_what_stays_float_and_where_it_came_from(model: Path, spec: Path) -> None:
    source = read_onnx(model, spec)
    assert source.float_layers == ()
    assert source.description["onnx"] == model.name
    assert len(str(source.description["sha256"])) == 64


@pytest.mark.parametrize(
    "wrong",
    [["--preprocess", "s.json"], ["ck", "--onnx", "m.onnx"]],
)
def test_wrong_use(wrong, capsys) -> None:
    assert main(wrong) == 2
    assert "--onnx" in capsys.readouterr().err


def test_errors_are_one_line(model: Path, spec: Path, tmp_path: Path, capsys) -> None:
    assert main(["--onnx", str(tmp_path / "absent.onnx"), "--preprocess", str(spec)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("export: ")
    assert error.count("\n") == 1
