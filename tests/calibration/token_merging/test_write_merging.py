"""Token merging in a graph: exact where merged tokens are equal, the same alone and in a batch, refused where
it does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from calibration.graph.edit import GraphError, by_type, graph_of, insert
from calibration.plan import PlanError, QuantizationPlan
from calibration.quantize_model import apply_plan, quantize
from calibration.token_merging.match import MergedPatches
from calibration.token_merging.merge_schedule import (
    count_merges,
    list_middle_blocks,
    make_even_schedule,
    max_merged_per_block,
)
from calibration.token_merging.token_stream import find_token_stream
from calibration.token_merging.write_merging import write_merging
from calibration.write import write_plan
from runtime.session import open_session
from vit.config import ViTConfig
from vit.model import ViT

# 30 patches, 5 down and 6 across; four blocks, of which three can merge.
CONFIG = ViTConfig(image_size=(40, 48), patch_size=8, width=32, depth=4, heads=4, mlp_width=64, classes=10)
SCHEDULES: list[dict[str, int]] = [
    {"blocks.1": 4},
    {"blocks.1": 5, "blocks.2": 3},
    {"blocks.0": 15, "blocks.1": 7, "blocks.2": 1},  # the first takes all of A
]


class WithRegisters(ViT):
    """Two tokens more between the class token and the patches."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.first, self.second = (torch.nn.Parameter(torch.zeros(1, 1, config.width)) for _ in range(2))
        self.position = torch.nn.Parameter(torch.zeros(1, config.tokens + 2, config.width))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(self.normalize(pixels))
        front = [
            each.expand(patches.shape[0], -1, -1) for each in (self.class_token, self.first, self.second)
        ]
        return self.norm(self.blocks(torch.cat([*front, patches], dim=1) + self.position)[:, 0])


class OfPatches(ViT):
    """No class token; the first patch stands for the image."""

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(self.normalize(pixels))
        return self.norm(self.blocks(patches + self.position[:, 1:])[:, 0])


class Pooled(ViT):
    """The mean over the patches stands for the image."""

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(self.normalize(pixels))
        tokens = (
            torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.position
        )
        return self.norm(self.blocks(tokens)).mean(1)


def lively_graph(kind: type[ViT], *, positions: bool = True) -> ir.Model:
    from export.graph.canonicalize import canonicalize
    from export.sources.from_torch import export_raw_graph

    torch.manual_seed(3)
    model = kind(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn_like(parameter) * scale + ("norm" in name and "weight" in name))
        if not positions:
            model.position.zero_()
    graph = export_raw_graph(model)
    canonicalize(graph)
    return graph


@pytest.fixture(scope="module")
def graph() -> ir.Model:
    return lively_graph(ViT)


@pytest.fixture(scope="module")
def without_positions() -> ir.Model:
    return lively_graph(ViT, positions=False)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, *CONFIG.image_size, 3), np.uint8)


@pytest.fixture(scope="module")
def plan(graph: ir.Model, images: np.ndarray) -> QuantizationPlan:
    return quantize(graph, [images], target="any-cpu").plan


def to_bytes(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def logits(model: ir.Model, pixels: np.ndarray, threads: int = 1) -> np.ndarray:
    session = open_session(to_bytes(model), device="cpu", threads=threads, target="any-cpu")
    return np.asarray(session.run(None, {"pixels": pixels})[0])


def of_two_kinds(places: Mapping[int, int]) -> np.ndarray:
    """An image of equal patches, but those at `places`, which are of other kinds."""
    kinds = np.random.default_rng(1).integers(0, 256, (9, 8, 8, 3), np.uint8)
    patches = [kinds[places.get(place, 0)] for place in range(30)]
    rows = [np.concatenate(patches[start : start + 6], axis=1) for start in range(0, 30, 6)]
    return np.concatenate(rows, axis=0)[None]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_merging_equal_tokens_changes_nothing(schedule, without_positions) -> None:
    """Their mean is each of them, and its size makes attention count all: a proof of every step at once."""
    merged = write_merging(without_positions, schedule)
    # Other patches only where A's last ones are, so that each merge finds enough equal pairs.
    image = of_two_kinds({}) if sum(schedule.values()) > 8 else of_two_kinds({24: 1, 26: 2, 27: 3, 29: 1})
    expected, found = logits(without_positions, image), logits(merged, image)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    # and where tokens differ it is an approximation, else nothing was merged
    random = np.random.default_rng(2).integers(0, 256, image.shape, np.uint8)
    assert np.abs(logits(merged, random) - logits(without_positions, random)).max() > 1e-3


def test_registers_never_merge() -> None:
    graph = lively_graph(WithRegisters, positions=False)
    stream = find_token_stream(graph)
    assert (stream.tokens, stream.patches, stream.kept) == (33, 30, 3)
    merged, image = write_merging(graph, {"blocks.0": 15, "blocks.1": 7}), of_two_kinds({})
    expected = logits(graph, image)
    np.testing.assert_allclose(logits(merged, image), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alone_in_a_batch_and_with_any_threads_bit_for_bit(schedule, graph, plan, images) -> None:
    for model in (write_merging(graph, schedule), write_plan(graph, replace(plan, merging=schedule))):
        together = logits(model, images)
        alone = np.concatenate([logits(model, image[None]) for image in images])
        np.testing.assert_array_equal(together, alone)
        for threads in (2, 8):
            session = open_session(to_bytes(model), device="cpu", threads=threads, target="any-cpu")
            for _ in range(10):
                np.testing.assert_array_equal(session.run(None, {"pixels": images})[0], together)


def test_a_size_weighs_the_same_in_every_row(without_positions) -> None:
    """The last row of a single image fills no vector of the CPU; in a batch of 16 the same rows do."""
    schedule = {"blocks.0": 14}
    merged = write_merging(without_positions, schedule)
    image = of_two_kinds(dict.fromkeys((0, 2, 4, 6, 8, 10, 29), 1))
    groups = MergedPatches(without_positions, merged, schedule)(image)
    assert np.count_nonzero(groups == groups[29]) == 7  # in the last of 17 tokens
    together = logits(merged, np.repeat(image, 16, axis=0))
    np.testing.assert_array_equal(together, np.repeat(logits(merged, image), 16, axis=0))


def test_ties_go_to_the_first(without_positions) -> None:
    """All patches equal: the first of A merge, and all of them into the first of B."""
    schedule = {"blocks.0": 3, "blocks.1": 2}
    follow = MergedPatches(without_positions, write_merging(without_positions, schedule), schedule)
    groups = follow(of_two_kinds({}))
    # A is 0, 2, 4, …, B is 1, 3, 5, …; then 6, 8, …, 28, 1, 3, …, 29 stand in turn in A and B again.
    first = [place for place in range(30) if groups[place] == groups[1]]
    assert first == [0, 1, 2, 4]
    second = [place for place in range(30) if groups[place] == groups[8]]
    assert second == [6, 8, 10]
    assert len(set(groups.tolist())) == 25


def test_groups_are_of_the_number_that_is_left(graph, images) -> None:
    schedule = {"blocks.0": 15, "blocks.2": 4}
    follow = MergedPatches(graph, write_merging(graph, schedule), schedule)
    for image in images:
        groups = follow(image[None])
        assert groups.shape == (30,)
        assert sorted(set(groups.tolist())) == list(range(30 - 19))
    with pytest.raises(GraphError, match="expected one image, found 5"):
        follow(images)


def test_similar_patches_are_merged_first(without_positions) -> None:
    """Pairs of equal patches among others that are all different end together."""
    random = np.random.default_rng(5)
    patches = random.integers(0, 256, (30, 8, 8, 3), np.uint8)
    patches[4], patches[20] = patches[9], patches[7]  # A: even places; B: odd ones
    rows = [np.concatenate(list(patches[start : start + 6]), axis=1) for start in range(0, 30, 6)]
    schedule = {"blocks.0": 2}
    follow = MergedPatches(without_positions, write_merging(without_positions, schedule), schedule)
    groups = follow(np.concatenate(rows, axis=0)[None])
    together = [
        sorted(np.flatnonzero(groups == group).tolist())
        for group, n in Counter(groups.tolist()).items()
        if n > 1
    ]
    assert sorted(together) == [[4, 9], [7, 20]]


def test_standard_operators_and_no_racing_one(graph, plan) -> None:
    merged = write_plan(graph, replace(plan, merging=SCHEDULES[1]))
    assert {node.domain for node in merged.graph} == {""}
    assert not by_type(merged, "ScatterND")
    assert {node.attributes["reduction"].value for node in by_type(merged, "ScatterElements")} == {"add"}
    onnx.checker.check_model(onnx.load_from_string(to_bytes(merged)), full_check=True)
    assert merged.graph.inputs[0].shape is not None
    assert not isinstance(merged.graph.inputs[0].shape[0], int)


def test_the_float_graph_and_a_dense_plan_stay_as_they_are(graph, plan) -> None:
    before = to_bytes(graph)
    merged = write_plan(graph, replace(plan, merging=SCHEDULES[0]))
    assert to_bytes(graph) == before
    assert write_merging(graph, {}) is graph
    dense = write_plan(graph, plan)
    assert to_bytes(write_plan(graph, replace(plan, merging={}))) == to_bytes(dense)
    assert to_bytes(merged) != to_bytes(dense)
    assert "merging" not in plan.to_json()


def test_a_plan_with_merging_passed_back_is_the_same_file(graph, plan) -> None:
    edited = replace(plan, merging=SCHEDULES[1])
    assert ' "merging": {"blocks.1": 5, "blocks.2": 3}' in edited.to_json().splitlines()[4]
    again = QuantizationPlan.from_json(edited.to_json())
    assert again == edited
    assert again.to_json() == edited.to_json()
    assert to_bytes(write_plan(graph, again)) == to_bytes(write_plan(graph, edited))
    assert apply_plan(graph, again).kernels.linears == apply_plan(graph, plan).kernels.linears


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"blocks.7": 2}, r"blocks that can merge \(blocks.0, blocks.1, blocks.2\), found 'blocks.7'"),
        ({"blocks.3": 2}, r"found 'blocks.3'; the last block cannot"),
        ({"blocks.0": 16}, r"blocks.0 has 30 patches left and can merge 1 to 15 of them, found 16; 15 per"),
        ({"blocks.1": 12, "blocks.2": 10}, r"blocks.2 has 18 patches left and can merge 1 to 9 .* found 10"),
        ({"blocks.1": 0}, r"found 0"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(schedule, message, graph, plan) -> None:
    with pytest.raises(PlanError, match=message):
        write_plan(graph, replace(plan, merging=schedule))


@pytest.mark.parametrize(
    ("merging", "message"),
    [
        ([3], r'merging: expected an object such as \{"blocks.3": 16\}, found \[3\]'),
        ({"blocks.0": True}, "merging: blocks.0: expected a number of tokens from 1, found True"),
        ({"blocks.0": 1.5}, "found 1.5"),
        ({"blocks.0": 0}, "found 0"),
    ],
)
def test_a_plan_that_says_no_numbers_is_refused(merging, message, plan) -> None:
    import json

    document: dict[str, Any] = json.loads(plan.to_json()) | {"merging": merging}
    with pytest.raises(PlanError, match=message):
        QuantizationPlan.from_json(json.dumps(document))


def test_a_misspelled_section_is_refused(plan) -> None:
    import json

    document: dict[str, Any] = json.loads(plan.to_json()) | {"mergin": {"blocks.0": 4}}
    with pytest.raises(PlanError, match="unknown in a plan: mergin"):
        QuantizationPlan.from_json(json.dumps(document))


def test_models_that_need_every_patch_are_refused(graph) -> None:
    with pytest.raises(PlanError, match=r"class token beside the patches, found 30 tokens for 30 patches"):
        write_merging(lively_graph(OfPatches), {"blocks.0": 2})
    with pytest.raises(PlanError, match=r"needs every patch in its place"):
        write_merging(lively_graph(Pooled), {"blocks.0": 2})
    # The same in rows token by token, as another exporter could write it.
    pooled = graph.clone()
    (selection, *_) = [
        node for node in by_type(pooled, "Gather") if node.inputs[0].name.startswith("node_add")
    ]
    axes = pooled.graph.initializers["shape.anyx32"]
    assert axes is not None
    mean = insert(selection, "ReduceMean", [selection.inputs[0]], name="pooled", keepdims=1)
    insert(selection, "Identity", [mean], name="kept")
    assert graph_of(selection) is pooled.graph
    with pytest.raises(PlanError, match=r"pooled \(ReduceMean\) needs every patch in its place"):
        write_merging(pooled, {"blocks.0": 2})


def test_schedules() -> None:
    names = [f"blocks.{index}" for index in range(12)]
    assert list_middle_blocks(names) == tuple(names[3:9])
    assert list_middle_blocks(names[:4]) == ("blocks.1", "blocks.2")
    assert list_middle_blocks(names[:2]) == ("blocks.0",)
    assert list_middle_blocks(names[:1]) == ()
    assert max_merged_per_block(196, 6) == 28
    merges = count_merges(make_even_schedule(names[3:9], 28), names[:11], tokens=197, patches=196)
    assert [each.after for each in merges.values()] == [169, 141, 113, 85, 57, 29]
    with pytest.raises(PlanError, match=r"blocks.8 has 51 patches left and can merge 1 to 25"):
        count_merges(make_even_schedule(names[3:9], 29), names[:11], tokens=197, patches=196)
    assert make_even_schedule(names, 0) == {}
