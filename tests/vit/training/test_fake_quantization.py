"""The forward pass of training with a plan, against the INT8 file that the plan makes of the same weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image

from calibration.graph.memory import open_graph_session
from calibration.plan import LinearPlan, PlanError, ProductPlan, QuantizationPlan, Range, read_plan
from calibration.quantize_model import quantize
from calibration.search import return_to_float
from calibration.weights import quantize_weight as quantize_in_numpy
from calibration.write import write_plan
from runtime.images.preprocess import Preprocess
from vit.checkpoint import load_checkpoint
from vit.data.datasets import open_images
from vit.data.training_images import open_data
from vit.model import ViT
from vit.token_merging import MergingBlocks
from vit.training.distributed import World
from vit.training.fake_quantization import QuantizedLinear, quantize_weight, set_quantization
from vit.training.optimizer import make_average
from vit.training.recipe import Recipe
from vit.training.session import LoopSession

TARGETS = ("any-cpu", "full-range")
ROUGH = Range(scale=0.02, zero_point=100)


def decibels(exact: np.ndarray, found: np.ndarray) -> float:
    exact = exact.astype(np.float64)
    return float(10 * np.log10(np.square(exact).sum() / max(np.square(exact - found).sum(), 1e-300)))


@dataclass
class Both:
    """A model in torch and its float graph."""

    model: ViT
    graph: ir.Model
    pixels: np.ndarray

    def compare(self, plan: QuantizationPlan) -> tuple[float, float]:
        """SQNR in dB of the simulation, and of the float model, against the INT8 file."""
        session = open_graph_session(write_plan(self.graph, plan), threads=1, target=plan.target)
        real = session.run(None, {session.get_inputs()[0].name: self.pixels})[0]
        simulated = set_quantization(copy.deepcopy(self.model), plan)
        with torch.inference_mode():
            found, exact = (m(torch.from_numpy(self.pixels)).numpy() for m in (simulated, self.model))
        return decibels(real, found), decibels(real, exact)


def plan_everything(both: Both, target: Any) -> QuantizationPlan:
    """Calibrate with every linear in INT8; use each remedy somewhere.

    Columns in float, rows with their own scale, both, a correction, and ratios of the scales.
    """
    plan = quantize(both.graph, [both.pixels], target=target, single_rows="int8", threads=1).plan
    random, linears = np.random.default_rng(0), dict(plan.linears)
    for name, each in plan.linears.items():
        outputs = both.model.get_submodule(name).weight.shape[0]
        correction, ratios = random.normal(scale=0.05, size=outputs), random.uniform(1, 1.06, size=outputs)
        if target == "full-range":
            ratios -= 0.1  # the largest weights are clipped
        linears[name] = replace(each, correction=tuple(correction.tolist()), ratios=tuple(ratios.tolist()))
    unit = {"input": Range(scale=1 / 100, zero_point=40), "per_token": 0.3}
    floor = {**unit, "per_token": 3.0}  # above the peaks of many rows
    linears["blocks.0.attention.proj"] = replace(linears["blocks.0.attention.proj"], **floor)
    linears["blocks.0.mlp.fc2"] = replace(
        linears["blocks.0.mlp.fc2"], float_columns=(1, 5, 6), per_token=None
    )
    linears["blocks.1.mlp.fc2"] = replace(linears["blocks.1.mlp.fc2"], float_columns=(0, 7), **unit)
    linears["blocks.1.attention.key"] = LinearPlan(precision="float16")
    balanced = {name for name in plan.balance if name.endswith(("norm1", "value"))}
    assert balanced, "the calibration moved no scales, so that nothing tests them"
    return replace(plan, linears=linears)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["plain", "odd", "rich"])
def test_each_layer_alone_is_what_the_file_computes(
    kind: str,
    target: str,
    models: Mapping[str, ViT],
    canonical: Mapping[str, ir.Model],
    pixels_for: Any,
) -> None:
    both = Both(models[kind], canonical[kind], pixels_for(models[kind].config, 4))
    plan = plan_everything(both, target)
    for name in plan.int8_linears():
        # The columns of an fc2 are computed by its fc1: the two stay together.
        kept = {name, name.replace("fc2", "fc1")}
        alone = return_to_float(plan, [other for other in plan.linears if other not in kept])
        simulated, exact = both.compare(alone)
        assert simulated > max(50, exact + 15), f"{name}: {simulated:.1f} dB, float {exact:.1f} dB"


@pytest.mark.parametrize("target", TARGETS)
def test_all_layers_of_digits(target: Any, digits_checkpoint: Path, digits_artifacts: Path) -> None:
    from export.sources.from_torch import export_float_graph

    checkpoint, images = load_checkpoint(digits_checkpoint), open_images("digits", "test")
    pixels = np.stack([checkpoint.preprocess(images[index]) for index in range(48)])
    both = Both(checkpoint.model, export_float_graph(checkpoint.model).model, pixels)
    plan = replace(read_plan(digits_artifacts / "plan.json"), target=target)
    assert any(each.per_token is not None for each in plan.linears.values())
    if target == "any-cpu":  # weights must not be clipped, as they may be in the plan of this CPU
        linears = {
            name: replace(each, ratios=tuple(max(ratio, 1.0) for ratio in each.ratios))
            for name, each in plan.linears.items()
        }
        plan = replace(plan, linears=linears)
    assert both.compare(plan)[0] >= 45


@pytest.mark.parametrize("target", TARGETS)
def test_all_layers_on_photos(
    target: Any, models: Mapping[str, ViT], canonical: Mapping[str, ir.Model], imagenet_photos: list[Path]
) -> None:
    config = models["plain"].config
    photos = [Image.open(path).convert("RGB").resize(config.image_size) for path in imagenet_photos[:16]]
    both = Both(models["plain"], canonical["plain"], np.stack([np.asarray(photo) for photo in photos]))
    plan = quantize(both.graph, [both.pixels], target=target, threads=1).plan
    unit = {"input": Range(scale=1 / 200, zero_point=60), "per_token": 0.5, "float_columns": (1, 5)}
    last = {"blocks.0.mlp.fc2": replace(plan.linears["blocks.0.mlp.fc2"], **unit)}
    simulated, exact = both.compare(replace(plan, linears={**plan.linears, **last}))
    assert simulated >= 45
    assert simulated > exact + 3


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("inputs", [8, 9])
def test_weights_are_rounded_as_calibration_rounds_them(target: Any, inputs: int) -> None:
    weight = np.random.default_rng(3).normal(size=(inputs, 5)).astype(np.float32)
    weight[:2, 0] = 4.0  # a pair that limits the scale
    for ratios in (None, np.array([1.0, 1.06, 1.01, 0.9, 0.97], np.float32)):
        integers, scale = quantize_in_numpy(weight, target, ratio=1.0 if ratios is None else ratios)
        given = None if ratios is None else torch.from_numpy(ratios)
        found, scales = quantize_weight(torch.from_numpy(weight.T.copy()), target, given)
        np.testing.assert_allclose(scales, scale, rtol=1e-6)
        np.testing.assert_array_equal(found.T, integers)


def test_gradients_pass_the_rounding_and_stop_at_the_clipping() -> None:
    linear = torch.nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, -0.5]]))
    plan = LinearPlan(precision="int8", input=Range(scale=0.01, zero_point=128))
    inputs = torch.tensor([[0.123, 9.0]], requires_grad=True)  # 9 is beyond 1.27
    QuantizedLinear(linear, plan, "full-range")(inputs).sum().backward()
    assert inputs.grad is not None
    assert linear.weight.grad is not None
    np.testing.assert_allclose(inputs.grad, [[1.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(linear.weight.grad, [[0.12, 1.27]], atol=1e-6)  # of the rounded inputs


def test_weights_keep_their_names_and_an_average_its_own(models: Mapping[str, ViT]) -> None:
    model = copy.deepcopy(models["rich"])
    names = list(model.state_dict())
    entry = LinearPlan(precision="int8", input=ROUGH, correction=(0.5,) * 16)
    plan = QuantizationPlan(target="any-cpu", linears={"blocks.0.attention.proj": entry})
    set_quantization(model, plan)
    assert list(model.state_dict()) == names
    average = make_average(model, 0.5).module
    with torch.no_grad():
        model.blocks[0].attention.proj.weight.add_(1.0)
        model.blocks[0].scale1.factor.add_(1.0)
    assert not torch.equal(average.state_dict()[names[0]], torch.tensor(0))
    assert average.blocks[0].attention.proj.output_scale[0] is average.blocks[0].scale1  # type: ignore[union-attr]


def test_a_plan_that_merges_tokens_merges_in_training(models: Mapping[str, ViT]) -> None:
    plan = QuantizationPlan(target="any-cpu", merging={"blocks.0": 3})
    model = set_quantization(copy.deepcopy(models["plain"]), plan)
    assert isinstance(model.blocks, MergingBlocks)
    assert model.blocks.schedule == {0: 3}


def test_the_loop_trains_and_measures_the_quantized_model(
    photos: Path, tiny_model: ViT, tiny_preprocess: Preprocess, tmp_path: Path
) -> None:
    plan = QuantizationPlan(target="any-cpu", linears={"head": LinearPlan(precision="int8", input=ROUGH)})
    recipe, data = Recipe(ema=0.5), open_data(str(photos), holdout=0.0)
    session = LoopSession(
        recipe, tiny_model, data, tiny_preprocess, tmp_path, print, {"plan": "x"}, plan=plan
    )
    loop = session.make_loop(torch.device("cpu"), World(), None)
    assert isinstance(loop.module.head, QuantizedLinear)
    assert isinstance(loop.best_module.head, QuantizedLinear)  # measured and kept
    assert session.identity()["plan"] == "x"  # resumed with the same plan alone


INT8 = LinearPlan(precision="int8", input=ROUGH)
WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    (
        {"linears": {"blocks.7.mlp.fc1": INT8}},
        "names 'blocks.7.mlp.fc1', which this model of 14 linear layers",
    ),
    (
        {"products": {"blocks.7.attention.mix": ProductPlan(precision="float32")}},
        "names 'blocks.7.attention.mix'",
    ),
    ({"products": {"blocks.0.attention.mix": ProductPlan(precision="int8")}}, "train in float32"),
    ({"merging": {"blocks.9": 2}}, "names 'blocks.9'"),
    (
        {"linears": {"head": LinearPlan(precision="int8")}},
        "head: the plan says int8 and gives no input range",
    ),
    ({"linears": {"head": replace(INT8, correction=(1.0,))}}, "head: expected 10 corrections, found 1"),
    ({"linears": {"head": replace(INT8, ratios=(1.0,))}}, "head: expected 10 ratios, found 1"),
    (
        {"linears": {"blocks.0.mlp.fc2": replace(INT8, float_columns=(64,))}},
        "features behind a Gelu, 0 to 63",
    ),
    ({"target": "npu"}, "expected a plan with target any-cpu or full-range, found npu"),
)


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_plan_that_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, models: Mapping[str, ViT]
) -> None:
    plan = replace(QuantizationPlan(target="any-cpu"), **changes)
    with pytest.raises(PlanError, match=message):
        set_quantization(copy.deepcopy(models["plain"]), plan)


def test_a_field_that_came_later_is_refused(models: Mapping[str, ViT]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Later(QuantizationPlan):
        bits: int = 8

    from vit.training import fake_quantization

    known = {**fake_quantization.SIMULATED, Later: fake_quantization.SIMULATED[QuantizationPlan]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_quantization, "SIMULATED", known)
        set_quantization(copy.deepcopy(models["plain"]), Later(target="any-cpu"))
        with pytest.raises(PlanError, match="bits is not simulated in training"):
            set_quantization(copy.deepcopy(models["plain"]), Later(target="any-cpu", bits=16))
