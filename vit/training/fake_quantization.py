"""Quantization-aware training: a model whose forward pass computes what the INT8 file of a plan will compute.

The method of Jacob et al. (arXiv 1712.05877): float weights learn, each forward pass rounds them and the
activations as the integer kernels do, and the gradient passes through the rounding as if it were not there
(straight-through, arXiv 1308.3432), except where a value is clipped. `calibration/write.py` writes the same
arithmetic into the graph; a test holds the logits of the two together.

Ranges, floors, balance scales and corrections are the plan's own and stay fixed, so that the file written
with the plan is the model that was trained. The letters in the shapes are those of `vit/model.py`.
"""

# To mypy, calling a PyTorch module gives Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calibration.plan import BalancePlan, LinearPlan, PlanError, ProductPlan, QuantizationPlan
from vit.model import MLP, Block, LayerScale, PatchEmbedding, ViT
from vit.token_merging import set_merging

PIXEL_CENTER = 128.0  # the zero point that the file reads pixels with
LARGEST = 127  # of an int8 weight; also what the sum of a pair is limited to
# What is simulated: another field of a plan changes the arithmetic in a way that is not known here.
SIMULATED: Mapping[type, frozenset[str]] = {
    QuantizationPlan: frozenset(("target", "linears", "products", "balance", "merging")),
    LinearPlan: frozenset(
        ("precision", "input", "rule", "per_token", "float_columns", "correction", "ratios")
    ),
    ProductPlan: frozenset(("precision", "left", "right")),
    BalancePlan: frozenset(("strength", "scales")),
}
TARGETS = ("any-cpu", "full-range")
# The linears that read a producer of balance scales, by the last word of its name: the first that are there.
READERS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "norm1": (("attention.query", "attention.key", "attention.value"),),
    "norm2": (("mlp.fc1", "mlp.gate"), ("mlp.fc1",)),
    "value": (("proj",),),
    "norm": (("mlp.fc1",), ("pool.key", "pool.value"), ("projection",), ("head",), ("head.0",)),
}


class QuantizedLinear(nn.Linear):
    """A linear layer whose input and weight are rounded as the plan says; it shares the parameters."""

    balance: Tensor | None
    correction: Tensor | None
    ratios: Tensor | None

    def __init__(self, linear: nn.Linear, plan: LinearPlan, target: str) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.plan, self.target = plan, target
        self.behind_gelu = False  # the input is a GELU's output, whose largest magnitude is its largest value
        self.float_outputs: list[int] = []  # output features that a split MLP computes in float
        self.output_scale: tuple[LayerScale, ...] = ()  # no submodule of its own: the names of weights stay
        # Not persistent: they are the plan's.
        self.register_buffer("balance", None, persistent=False)
        self.register_buffer("correction", _to_tensor(plan.correction), persistent=False)
        self.register_buffer("ratios", _to_tensor(plan.ratios), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute `[…, in]` to `[…, out]`."""
        inputs, weight, bias = inputs.float(), self.weight, self._add_correction()
        if self.balance is not None:
            inputs, weight = inputs / self.balance, weight * self.balance
        if self.plan.precision != "int8":
            return F.linear(inputs, _round_to_half(weight, self.plan), bias)
        outputs = self._multiply(inputs, weight) + bias
        if self.float_outputs:
            few = torch.tensor(self.float_outputs, device=inputs.device)
            exact = F.linear(inputs, weight[few], bias[few])
            outputs = outputs.index_copy(-1, few, exact.to(outputs.dtype))
        return outputs

    def _multiply(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the product without the bias: of integers, except the columns that are split off."""
        plan, beside = self.plan, None
        assert plan.input is not None  # check_plan
        if plan.float_columns:
            few = torch.tensor(plan.float_columns, device=inputs.device)
            rest = torch.ones(self.in_features, dtype=torch.bool, device=inputs.device)
            rest[few] = False
            beside = F.linear(inputs[..., few], weight[:, few])
            inputs, weight = inputs[..., rest], weight[:, rest]
        peak = None
        if plan.per_token is not None:
            magnitude = inputs if self.behind_gelu else inputs.abs()
            peak = magnitude.detach().amax(-1, keepdim=True).clamp(min=plan.per_token)  # […, 1]
            inputs = inputs / peak
        # Integers up to 255 are exact in bfloat16, too: their products are those of the kernel.
        levels = _round_to(inputs / plan.input.scale, plan.input.zero_point, 0, 255)
        integers, scale = quantize_weight(weight, self.target, self.ratios)
        outputs = F.linear(levels, integers) * (plan.input.scale * scale)
        outputs = outputs if peak is None else outputs * peak
        return outputs if beside is None else outputs + beside

    def _add_correction(self) -> Tensor:
        """Return the bias with the plan's correction, in the units of this layer's output."""
        if self.correction is None:
            return self.bias
        scale = [each.factor.detach() for each in self.output_scale]  # folded into the weights in the graph
        return self.bias + (self.correction / scale[0] if scale else self.correction)


class QuantizedPatchEmbedding(PatchEmbedding):
    """The patch embedding on 8-bit pixels, `pixel - 128`, with the normalization inside its int8 weights."""

    mean: Tensor
    std: Tensor
    correction: Tensor | None
    ratios: Tensor | None

    def __init__(self, model: ViT, plan: LinearPlan, target: str) -> None:
        with torch.device("meta"):
            super().__init__(model.config)
        self.weight, self.bias = model.patch_embedding.weight, model.patch_embedding.bias
        self.plan, self.target = plan, target
        self.register_buffer("mean", model.normalize.mean[:, None, None], persistent=False)  # (3, 1, 1)
        self.register_buffer("std", model.normalize.std[:, None, None], persistent=False)
        self.register_buffer("correction", _to_tensor(plan.correction), persistent=False)
        self.register_buffer("ratios", _to_tensor(plan.ratios), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Project normalized `[N, 3, H, W]` to one token per patch, `[N, H / P · W / P, D]`, row by row."""
        centered = images * self.std + (self.mean - PIXEL_CENTER)
        weight = self.weight / self.std
        shape = weight.shape[0], *weight.shape[2:], 3
        rows = weight.permute(0, 2, 3, 1).flatten(1)  # (D, P · P · 3): neighbors as pixels lie
        if self.plan.precision == "int8":
            integers, scale = quantize_weight(rows, self.target, self.ratios)
        else:
            integers, scale = _round_to_half(rows, self.plan), rows.new_ones(len(rows))
        kernel = integers.view(shape).permute(0, 3, 1, 2)
        grid = F.conv2d(centered, kernel, stride=self.stride) * scale[:, None, None]  # (N, D, H / P, W / P)
        assert self.bias is not None  # PatchEmbedding has one
        bias = self.bias + ((PIXEL_CENTER - self.mean) * weight).sum((1, 2, 3))
        bias = bias if self.correction is None else bias + self.correction
        return grid.flatten(2).transpose(1, 2) + bias


def quantize_weight(weight: Tensor, target: str, ratios: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the integers of weights `[out, in]` and their scales `[out]`, as `calibration.weights` has them.

    For "any-cpu" a scale keeps the sum of every pair of neighbors within 127. `ratios` `[out]` multiply the
    scales. Gradients pass the rounding.
    """
    exact = weight.detach()
    largest = exact.abs().amax(1)
    if target == "any-cpu":
        pairs = F.pad(exact, (0, exact.shape[1] % 2)).unflatten(1, (-1, 2))  # (out, in / 2, 2)
        sums = torch.maximum(pairs.clamp(min=0).sum(-1), (-pairs).clamp(min=0).sum(-1))
        largest = torch.maximum(largest, sums.amax(1))
    scale = (largest / LARGEST * (1.0 if ratios is None else ratios)).clamp(min=1e-30)
    return _round_to(weight / scale[:, None], 0, -LARGEST, LARGEST), scale


def _round_to(values: Tensor, zero_point: int, low: int, high: int) -> Tensor:
    """Round to whole numbers, clipped to low..high after the zero point is added; it is taken off again."""
    return torch.fake_quantize_per_tensor_affine(values, 1.0, zero_point, low, high)


def _round_to_half(weight: Tensor, plan: LinearPlan) -> Tensor:
    """Round the weights as a file stores them; gradients pass."""
    if plan.precision != "float16":
        return weight
    return weight + (weight.detach().half().float() - weight.detach())


def _to_tensor(numbers: tuple[float, ...]) -> Tensor | None:
    return torch.tensor(numbers) if numbers else None


# --- A plan into a model ---


def set_quantization(model: ViT, plan: QuantizationPlan) -> ViT:
    """Let a model compute from now on what the INT8 file of a plan computes, in place.

    Parameters, their names and the state stay those of the float model. What is left out changes the logits
    by less than 1e-4 of their scale: biases rounded to int32, and the exact GELU of columns split off.

    Args:
        model: changed and returned.
        plan: of this model, as `python -m export` writes it.

    Raises:
        PlanError: for a plan of another model, or one that is not simulated.
        ConfigError: for merging in a model that cannot merge.
    """
    check_plan(model, plan)
    balance = {reader: scales for scales, readers in _list_balance(model, plan) for reader in readers}
    for name, chosen in plan.linears.items():
        before = model.get_submodule(name)
        parent, _, last = name.rpartition(".")
        if isinstance(before, PatchEmbedding):
            model.patch_embedding = QuantizedPatchEmbedding(model, chosen, plan.target)
            continue
        assert isinstance(before, nn.Linear)  # check_plan
        linear = QuantizedLinear(before, chosen, plan.target)
        linear.balance = _to_tensor(balance.get(name, ()))
        if linear.correction is not None:
            linear.correction = linear.correction / _output_factor(model, plan, name)
        setattr(model.get_submodule(parent), last, linear)
    for module in model.modules():
        if isinstance(module, Block):
            _join_scale(module.attention.proj, module.scale1)
            _join_scale(module.mlp.fc2, module.scale2)
        elif isinstance(module, MLP):
            _join_mlp(module, model.config.activation)
    return set_merging(model, {int(block.split(".")[1]): n for block, n in plan.merging.items()})


def _output_factor(model: ViT, plan: QuantizationPlan, name: str) -> Tensor | float:
    """Return what the graph multiplies the output of a layer by, in its weights: a correction holds it."""
    if name in plan.balance:  # a value linear, whose output is divided by the scales of its reader
        return 1 / torch.tensor(plan.balance[name].scales)
    config = model.config
    folded = not (config.qk_norm or config.rotary or config.attention_bias)  # the scale of attention
    return (config.width // config.heads) ** -0.5 if folded and name.endswith("attention.query") else 1.0


def _join_scale(linear: nn.Module, scale: nn.Module) -> None:
    if isinstance(linear, QuantizedLinear) and isinstance(scale, LayerScale):
        linear.output_scale = (scale,)


def _join_mlp(mlp: MLP, activation: str) -> None:
    """Tell an MLP's layers about each other: the GELU between them, and columns that are split off."""
    first, second = mlp.fc1, mlp.fc2
    if not isinstance(second, QuantizedLinear) or second.plan.precision != "int8" or mlp.gate is not None:
        return
    second.behind_gelu = activation in ("gelu", "gelu_tanh")
    if activation == "gelu":  # calibration/write.py, write_linear
        mlp.activation = partial(F.gelu, approximate="tanh")
    if isinstance(first, QuantizedLinear):
        first.float_outputs = list(second.plan.float_columns)


# --- Check that a plan is of the model, and simulated ---


def check_plan(model: ViT, plan: QuantizationPlan) -> None:
    """Refuse a plan of another model, and one whose arithmetic is not known here.

    Raises:
        PlanError: naming what does not fit.
    """
    if plan.target not in TARGETS:
        expected = f"expected a plan with target {' or '.join(TARGETS)}, found {plan.target}"
        raise PlanError(f"{expected}; training does not simulate it")
    for where, entry in _list_entries(plan):
        for name in _list_unknown_fields(entry):
            raise PlanError(f"{where}{name} is not simulated in training; take it out of the plan")
    blocks = {f"blocks.{index}" for index in range(model.config.depth)}
    for name in (
        *(each for each in plan.products if not _is_product(model, each)),
        *plan.merging.keys() - blocks,
    ):
        raise _another_model(model, name)
    for name, product in plan.products.items():
        if product.precision != "float32":
            raise PlanError(f"{name}: products of attention train in float32; edit its precision in the plan")
    for name, chosen in plan.linears.items():
        _check_linear(model, name, chosen)
    list(_list_balance(model, plan))


def _check_linear(model: ViT, name: str, plan: LinearPlan) -> None:
    found = dict(_list_linears(model)).get(name)
    if found is None:
        raise _another_model(model, name)
    shape = tuple(found.weight.flatten(1).shape)  # (out, in)
    if plan.precision == "int8" and plan.input is None and not isinstance(found, PatchEmbedding):
        raise PlanError(f"{name}: the plan says int8 and gives no input range")
    if plan.correction and len(plan.correction) != shape[0]:
        raise PlanError(f"{name}: expected {shape[0]} corrections, found {len(plan.correction)}")
    if plan.ratios and len(plan.ratios) != shape[0]:
        raise PlanError(f"{name}: expected {shape[0]} ratios, found {len(plan.ratios)}")
    columns, config = plan.float_columns, model.config
    gelu = name.endswith("mlp.fc2") and config.activation.startswith("gelu") and not config.gated
    if columns and not (gelu and max(columns) < shape[1]):
        raise PlanError(f"{name}: float_columns must be hidden features behind a Gelu, 0 to {shape[1] - 1}")


def _list_balance(model: ViT, plan: QuantizationPlan) -> Iterator[tuple[tuple[float, ...], list[str]]]:
    """Yield the scales of each balance, and the names of the linears that read its producer."""
    linears = dict(_list_linears(model))
    for producer, balance in plan.balance.items():
        parent, _, last = producer.rpartition(".")
        prefix = f"{parent}." if parent else ""
        choices = [[prefix + name for name in names] for names in READERS.get(last, ())]
        readers = next((each for each in choices if all(name in linears for name in each)), None)
        if readers is None:
            raise _another_model(model, producer)
        if (width := linears[readers[0]].weight.shape[1]) != len(balance.scales):
            raise PlanError(f"{producer}: expected {width} positive scales, found {len(balance.scales)}")
        yield balance.scales, readers


def _list_linears(model: ViT) -> Iterator[tuple[str, nn.Linear | PatchEmbedding]]:
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, PatchEmbedding)):
            yield name, module


def _is_product(model: ViT, name: str) -> bool:
    parent, _, last = name.rpartition(".")
    return last in ("scores", "mix") and any(
        name == parent and hasattr(module, "key") for name, module in model.named_modules()
    )


def _list_entries(plan: QuantizationPlan) -> Iterator[tuple[str, Any]]:
    yield "", plan
    for section in (plan.linears, plan.products, plan.balance):
        yield from ((f"{name}: ", entry) for name, entry in section.items())


def _list_unknown_fields(entry: Any) -> list[str]:
    """Return the fields of an entry with another value than the default, and not among those simulated."""
    known = SIMULATED[type(entry)]
    found = []
    for field in fields(entry):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name not in known and getattr(entry, field.name) != default:
            found.append(field.name)
    return found


def _another_model(model: ViT, name: str) -> PlanError:
    count = sum(1 for _ in _list_linears(model))
    return PlanError(
        f"the plan names {name!r}, which this model of {count} linear layers does not have; give the plan "
        "of an export of the model of --from"
    )
