"""Multiply-adds of each product: against the model in torch, by variant, and where tokens are merged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from calibration.graph.edit import by_type
from calibration.measure.multiply_adds import count_multiply_adds
from calibration.quantize_model import quantize
from calibration.write import write_plan
from export.graph.float16 import to_float16
from tests.support.small_graphs import build
from vit.inspect.summary import summarize_model


def test_a_block_has_the_multiply_adds_of_the_model_in_torch(models, canonical, pixels_for) -> None:
    for name in ("plain", "odd", "rich"):
        config = models[name].config
        found = count_multiply_adds(canonical[name], pixels_for(config, count=1), threads=1)
        rows = {row.name: row.macs for row in summarize_model(config)}
        for step in ("patch_embedding", "blocks.0.attention", "blocks.0.mlp"):
            assert sum(count for node, count in found.items() if node.startswith(step)) == rows[step], step
        # The last block is computed for the class token alone; its keys and values are of all tokens.
        assert found["blocks.1.attention.query"] == config.width**2
        assert found["blocks.1.attention.key"] == config.tokens * config.width**2


def test_int8_and_float16_have_the_counts_of_float32(canonical, images) -> None:
    calibration, others = images("plain")
    exact = count_multiply_adds(canonical["plain"], others[:1], threads=1)
    made = quantize(canonical["plain"], [calibration], target="any-cpu")
    assert count_multiply_adds(made.model, others[:1], threads=1) == exact
    assert count_multiply_adds(to_float16(canonical["plain"]), others[:1], threads=1) == exact


def test_blocks_after_a_merge_have_fewer(canonical, images) -> None:
    calibration, others = images("plain")
    plan = quantize(canonical["plain"], [calibration], target="any-cpu").plan
    dense = count_multiply_adds(write_plan(canonical["plain"], plan), others[:1], threads=1)
    model = write_plan(canonical["plain"], replace(plan, merging={"blocks.0": 3}))
    merged = count_multiply_adds(model, others[:1], threads=1)
    for name in ("patch_embedding", "blocks.0.attention.query"):  # before the tokens are merged
        assert merged[name] == dense[name]
    tokens = 17  # 16 patches and the class token
    assert merged["blocks.0.mlp.fc1"] * tokens == dense["blocks.0.mlp.fc1"] * (tokens - 3)
    assert "blocks.0.merging.similarity" in set(merged) - set(dense)


def test_the_graph_stays_as_it_is_and_every_product_has_a_name(canonical, pixels_for, models) -> None:
    model = canonical["plain"]
    before = (len(list(model.graph)), [value.name for value in model.graph.outputs])
    found = count_multiply_adds(model, pixels_for(models["plain"].config, count=1), threads=1)
    assert (len(list(model.graph)), [value.name for value in model.graph.outputs]) == before
    assert list(found) == [node.name for node in by_type(model, "Gemm", "MatMul")]


def test_convolutions_and_transposed_products() -> None:
    """Groups share no weights; a Gemm may read its left operand transposed."""
    model = build(
        """
        float = Cast <to = 1> (x)
        conv = Conv <group = 2, strides = [2, 2]> (float, kernel)
        rows = Reshape(conv, shape)
        y = Gemm <transA = 1> (rows, weight)
        """,
        {
            "kernel": np.ones((6, 2, 2, 2), np.float32),
            "shape": [6, 4],
            "weight": np.ones((6, 5), np.float32),
        },
        inputs="uint8[1, 4, 4, 4] x",
        outputs="float[4, 5] y",
    )
    found = count_multiply_adds(model, np.zeros((1, 4, 4, 4), np.uint8), threads=1)
    # 6 x 2 x 2 outputs of 2 channels x 2 x 2 numbers; 4 x 5 outputs of 6.
    assert found == {"conv": 24 * 8, "y": 20 * 6}
