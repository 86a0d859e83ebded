"""Each rewrite alone: the logits stay, what it is there to remove is gone, and a second run finds nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import takewhile

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import (
    GraphError,
    add_constant,
    attribute,
    constant,
    insert,
    scalar,
    sizes,
    tidy,
)
from calibration.measure.verify import read_optimized_graph
from export.graph.canonical.class_token import select_class_token
from export.graph.canonical.layout import keep_tokens_as_rows, make_shapes_static, untangle_transposes
from export.graph.canonical.linears import (
    fold_attention_scale,
    fold_layer_scale,
    linears_to_gemm,
    name_parameters,
    name_products,
)
from export.graph.canonical.pixels import fold_normalization, patches_as_gemm
from export.graph.canonical.token_major import tokens_before_batch
from export.graph.canonicalize import CANONICAL_REWRITES, Rewrite, canonicalize
from export.write_artifact import serialize_model
from vit.model import ViT

NAMES = ["plain", "odd", "rich"]
EXACT = 1e-5  # of the logits' scale


@pytest.fixture
def before(raw_graphs: Mapping[str, ir.Model]) -> Callable[[str, Rewrite], ir.Model]:
    """The graph of a model as the pass finds it: after all passes that run before it."""

    def make(name: str, until: Rewrite) -> ir.Model:
        model = raw_graphs[name].clone()
        tidy(model)
        for each in takewhile(lambda each: each is not until, CANONICAL_REWRITES):
            each(model)
        return model

    return make


def nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in op_types]


def count(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("each", CANONICAL_REWRITES, ids=lambda each: each.__name__)
def test_logits_stay(each, name, before, models, logits_of, pixels_for) -> None:
    graph = before(name, each)
    pixels = pixels_for(models[name].config)
    expected = logits_of(graph, pixels)
    has_work = each is not fold_layer_scale or models[name].config.layer_scale
    assert (each(graph) > 0) == has_work
    tidy(graph)
    found = logits_of(graph, pixels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT * np.abs(expected).max())


@pytest.mark.parametrize("each", CANONICAL_REWRITES, ids=lambda each: each.__name__)
def test_nothing_is_left_for_a_second_run(each, before) -> None:
    graph = before("plain", each)
    each(graph)
    assert each(graph) == 0


def test_products_have_their_modules_names(before) -> None:
    graph = before("plain", name_products)
    name_products(graph)
    found = {node.name for node in nodes(graph, "MatMul", "Gemm", "Conv")}
    blocks = (
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.scores",
        "attention.mix",
        "attention.proj",
        "mlp.fc1",
        "mlp.fc2",
    )
    assert found == {f"blocks.{i}.{part}" for i in range(2) for part in blocks} | {"patch_embedding", "head"}


def test_shapes_are_constants(before) -> None:
    graph = before("odd", make_shapes_static)
    assert any(constant(node.inputs[1]) is None for node in nodes(graph, "Reshape"))
    make_shapes_static(graph)
    assert all(constant(node.inputs[1]) is not None for node in nodes(graph, "Reshape"))
    assert not nodes(graph, "Slice")  # they computed the shapes


def test_keys_are_transposed_once(before) -> None:
    graph = before("plain", untangle_transposes)
    was = count(graph)["Transpose"]
    untangle_transposes(graph)
    assert count(graph)["Transpose"] == was - 2  # one detour in each block
    swapped = [
        node for node in nodes(graph, "Transpose") if list(attribute(node, "perm", ())) == [0, 2, 3, 1]
    ]
    assert len(swapped) == 2


def test_normalization_goes_into_the_weights(before, models: Mapping[str, ViT]) -> None:
    graph = before("odd", fold_normalization)
    assert count(graph)["Sub"] == count(graph)["Div"] == 1
    assert fold_normalization(graph) == 1
    assert not nodes(graph, "Sub", "Div")
    (conv,) = nodes(graph, "Conv")
    weight, std = models["odd"].patch_embedding.weight.detach().numpy(), np.array(models["odd"].config.std)
    np.testing.assert_allclose(constant(conv.inputs[1]), weight / (255 * std)[:, None, None], rtol=1e-6)


def test_normalization_that_is_none_of_ours_is_refused(before) -> None:
    graph = before("plain", fold_normalization)
    (conv,) = nodes(graph, "Conv")
    relu = ir.node("Relu", [conv.inputs[0]], name="odd")
    graph.graph.insert_before(conv, relu)
    conv.replace_input_with(0, relu.outputs[0])
    with pytest.raises(GraphError, match=r"normalization or layout before the patch embedding, found Relu"):
        fold_normalization(graph)


def test_patches_are_cut_as_bytes(before) -> None:
    graph = before("odd", patches_as_gemm)
    assert patches_as_gemm(graph) == 1
    assert not nodes(graph, "Conv")
    (embedding,) = [node for node in nodes(graph, "Gemm") if node.name == "patch_embedding"]
    cast = embedding.inputs[0].producer()
    assert cast.op_type == "Cast"
    assert cast.inputs[0].dtype == ir.DataType.UINT8  # Reshape and Transpose above it move bytes
    assert sizes(embedding.inputs[0])[1] == 7 * 7 * 3


@pytest.mark.parametrize("name", NAMES)
def test_the_last_block_works_for_one_token(name, before, models) -> None:
    graph = before(name, select_class_token)
    select_class_token(graph)
    tidy(graph)
    tokens, outputs = models[name].config.tokens, {node.name: sizes(node.outputs[0]) for node in graph.graph}
    for part in ("attention.query", "attention.proj", "mlp.fc1", "mlp.fc2"):
        assert outputs[f"blocks.0.{part}"][1] == tokens
        assert outputs[f"blocks.1.{part}"][1] == 1
    for part in ("attention.key", "attention.value"):
        assert outputs[f"blocks.1.{part}"][1] == tokens


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_is_a_gemm(name, before, models) -> None:
    graph = before(name, linears_to_gemm)
    linears_to_gemm(graph)
    linears = 1 + 2 * 6 + (2 if models[name].config.representation else 1)
    gemms = nodes(graph, "Gemm")
    assert len(gemms) == linears
    for gemm in gemms:
        assert constant(gemm.inputs[1]).ndim == 2
        assert constant(gemm.inputs[2]).ndim == 1
        assert not attribute(gemm, "transB", 0)
    assert not [node for node in nodes(graph, "MatMul") if constant(node.inputs[1]) is not None]


@pytest.mark.parametrize("name", ["plain", "rich"])
def test_tokens_stay_rows(name, before) -> None:
    graph = before(name, keep_tokens_as_rows)
    was = count(graph)["Reshape"]
    keep_tokens_as_rows(graph)
    assert count(graph)["Reshape"] < was / 2
    for node in nodes(graph, "LayerNormalization", "Gelu", "Gemm"):
        assert len(sizes(node.outputs[0])) == 2, node.name
    # Nothing between the two linears of an MLP but its activation.
    for gemm in nodes(graph, "Gemm"):
        if gemm.name.endswith("fc2"):
            gelu = gemm.inputs[0].producer()
            assert gelu.op_type == "Gelu"
            assert gelu.inputs[0].producer().name.endswith("fc1")


@pytest.mark.parametrize("name", ["plain", "odd"])
def test_no_scaling_in_attention(name, before) -> None:
    graph = before(name, fold_attention_scale)
    assert nodes(graph, "Mul", "Div")
    assert fold_attention_scale(graph) == 2  # blocks
    assert not nodes(graph, "Mul", "Div")


def test_the_scale_is_the_querys_alone(before, models) -> None:
    graph = before("plain", fold_attention_scale)
    fold_attention_scale(graph)
    gemms = {node.name: node for node in nodes(graph, "Gemm")}
    attention = models["plain"].blocks[0].attention
    for part, factor in {"query": (32 / 4) ** -0.5, "key": 1.0}.items():
        expected = getattr(attention, part).weight.detach().numpy().T * factor
        found = constant(gemms[f"blocks.0.attention.{part}"].inputs[1])
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_layer_scale_goes_into_the_weights(before, models) -> None:
    graph = before("rich", fold_layer_scale)
    assert len([node for node in nodes(graph, "Mul") if constant_of(node) is not None]) == 4
    assert fold_layer_scale(graph) == 4  # behind attention and the MLP of two blocks
    assert not [node for node in nodes(graph, "Mul") if constant_of(node) is not None]
    block = models["rich"].blocks[0]
    expected = block.mlp.fc2.weight.detach().numpy().T * block.scale2.factor.detach().numpy()
    (fc2,) = [node for node in nodes(graph, "Gemm") if node.name == "blocks.0.mlp.fc2"]
    np.testing.assert_allclose(constant(fc2.inputs[1]), expected, rtol=1e-6)


def test_a_linear_that_something_else_reads_keeps_its_scale(before) -> None:
    graph = before("rich", fold_layer_scale)
    (fc2,) = [node for node in nodes(graph, "Gemm") if node.name == "blocks.0.mlp.fc2"]
    graph.graph.outputs.append(fc2.outputs[0])
    assert fold_layer_scale(graph) == 3


def constant_of(node: ir.Node) -> np.ndarray | None:
    """The factor of each feature that a Mul applies."""
    found = [array for value in node.inputs if (array := constant(value)) is not None and array.size > 1]
    return found[0] if found else None


def test_parameters_are_named_after_their_linear(before) -> None:
    graph = before("plain", name_parameters)
    name_parameters(graph)
    for gemm in nodes(graph, "Gemm"):
        assert [value.name for value in gemm.inputs[1:]] == [f"{gemm.name}.weight", f"{gemm.name}.bias"]


@pytest.mark.parametrize("name", NAMES)
def test_the_canonical_form(name, raw_graphs) -> None:
    graph = raw_graphs[name].clone()
    changes = canonicalize(graph)
    assert list(changes) == [each.__name__ for each in CANONICAL_REWRITES]
    assert {node.domain for node in graph.graph} == {""}
    assert not nodes(graph, "Slice", "Conv", "Sub", "Div", "Pow", "Sqrt", "Erf")
    assert not [node for node in nodes(graph, "Mul") if any(scalar(value) for value in node.inputs)]
    (pixels,), (logits,) = graph.graph.inputs, graph.graph.outputs
    assert (pixels.name, pixels.dtype) == ("pixels", ir.DataType.UINT8)
    assert (logits.name, logits.dtype) == ("logits", ir.DataType.FLOAT)
    assert sizes(pixels)[0] is None
    assert sizes(logits)[0] is None


def test_heads_are_read_where_they_lie(before) -> None:
    graph = before("plain", tokens_before_batch)
    was = Counter(node.op_type for node in read_optimized_graph(serialize_model(graph)).graph)
    assert tokens_before_batch(graph) > 0
    now = Counter(node.op_type for node in read_optimized_graph(serialize_model(graph)).graph)
    # Query, key and value of two blocks; the last block's query is one row, which a Reshape moved before.
    assert now["Transpose"] == was["Transpose"] - 6
    assert now["FusedMatMul"] == was["FusedMatMul"] + 4


def test_what_looks_at_tokens_by_image_keeps_their_order(before) -> None:
    graph = before("plain", tokens_before_batch)
    (softmax, *_) = nodes(graph, "Softmax")
    mask = np.linspace(-1, 1, softmax.inputs[0].shape[-1], dtype=np.float32).reshape(1, 1, 1, -1)
    masked = insert(
        softmax,
        "Add",
        [softmax.inputs[0], add_constant(graph.graph, "mask", np.repeat(mask, 2, axis=1))],
        name="masked",
        shape=softmax.inputs[0].shape,
    )
    softmax.replace_input_with(0, masked)
    assert tokens_before_batch(graph) == 0
    assert [node for node in nodes(graph, "Transpose") if list(attribute(node, "perm", ())) == [0, 2, 3, 1]]
