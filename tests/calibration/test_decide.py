"""Every choice in a plan is the one that its rule says, found again by brute force on a small block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.balance import STRENGTHS, compute_balance_scales, find_balance_groups
from calibration.decide import (
    FLOAT_COLUMNS,
    GAIN_OF_ONE_ROW,
    SHARE_OF_ERROR,
    Candidates,
    _Decision,
    _weigh_costs,
    decide_plan,
)
from calibration.graph.edit import add_constant, constant
from calibration.graph.layers import Linear, find_layers
from calibration.measure.verify import read_optimized_graph
from calibration.observe import Observation, open_observing_session
from calibration.plan import PROBABILITY, LinearPlan, PlanError, Precision, QuantizationPlan, Range
from calibration.trial import Choice, Trial
from calibration.weights import quantize_weight
from calibration.write import write_plan
from runtime.model_file.targets import TARGETS, Target
from tests.support.small_graphs import ATTENTION, MLP, block, build, node, run

TOKENS, WIDTH, HIDDEN = 5, 8, 128
LINEARS = ["query", "key", "value", "proj", "fc1", "fc2"]


def images(count: int = 12, seed: int = 3) -> list[np.ndarray]:
    """Inputs of a block, one for each image."""
    return list(np.random.default_rng(seed).normal(size=(count, TOKENS, WIDTH)).astype(np.float32))


def observed(model: ir.Model, inputs: list[np.ndarray]) -> dict[str, Observation]:
    """Statistics of the tensors of a block; each fourth image is held out."""
    names = find_layers(model).activations
    session = open_observing_session(model, names, threads=1)
    found: dict[str, Observation] = {}
    for number, x in enumerate(inputs):
        for name, tensor in zip(names, session.run(names, {"x": x}), strict=True):
            rows = tensor.reshape(-1, tensor.shape[-1])
            each = found.setdefault(name, Observation.empty(rows.shape[1], len(rows)))
            part = each.held if number % 4 == 3 else each.fit
            part.update(rows)
    return found


def plan_of(model: ir.Model, inputs: list[np.ndarray] | None = None, **options: object) -> QuantizationPlan:
    given_ = observed(model, images() if inputs is None else inputs)
    return decide_plan(find_layers(model), given_, target="full-range", **options)  # type: ignore[arg-type]


def change(model: ir.Model, name: str, index: int, factors: np.ndarray) -> None:
    """Multiply one constant of a node."""
    array = constant(node(model, name).inputs[index])
    assert array is not None
    changed = (array * factors).astype(np.float32)
    node(model, name).replace_input_with(index, add_constant(model.graph, f"{name}.changed", changed))


def uneven(hidden: int) -> ir.Model:
    """One feature of the first norm and four hidden ones are far larger than the others.

    One feature of the second norm is large and the same for every row: rounding it is a mean error.
    """
    made = block(hidden=hidden)
    outlier = np.ones(WIDTH)
    outlier[2] = 40.0
    for index in (1, 2):
        change(made, "norm1", index, outlier)
    loud = np.ones(hidden)
    loud[[7, 31, hidden // 2, hidden - 28]] = 60.0
    moving, large = np.ones(WIDTH), np.ones(WIDTH)
    moving[3], large[3] = 0.0, 10.0
    change(made, "norm2", 1, moving)
    change(made, "norm2", 2, large)
    change(made, "fc1", 1, loud)
    return made


@pytest.fixture
def model() -> ir.Model:
    return uneven(HIDDEN)


def test_every_linear_is_int8_and_the_products_stay_in_float(model: ir.Model) -> None:
    plan = plan_of(model)
    assert list(plan.linears) == plan.int8_linears() == LINEARS
    assert {name: each.precision for name, each in plan.products.items()} == {
        "scores": "float32",
        "mix": "float32",
    }
    assert plan.target == "full-range"
    assert all(each.input is not None and each.rule for each in plan.linears.values())
    assert QuantizationPlan.from_json(plan.to_json()) == plan


@given(st.sets(st.sampled_from([*LINEARS, "scores", "mix"])))
@settings(max_examples=10)
def test_what_is_kept_in_float_and_nothing_else(kept: set[str]) -> None:
    plan = plan_of(block(), keep_float=kept, quantize_products=True)
    float_ = {
        name for each in (plan.linears, plan.products) for name in each if each[name].precision == "float32"
    }
    assert float_ == kept
    for name in kept & set(LINEARS):
        assert plan.linears[name] == replace(plan.linears[name], input=None, rule=None, ratios=())


def test_a_place_whose_readers_all_stay_in_float_is_not_balanced(model: ir.Model) -> None:
    assert "norm1" in plan_of(model).balance
    assert "norm1" in plan_of(model, keep_float=["query", "value"]).balance
    assert "norm1" not in plan_of(model, keep_float=["query", "key", "value"]).balance


def test_what_is_to_stay_in_float_must_be_there(model: ir.Model) -> None:
    with pytest.raises(
        PlanError, match=r"no layer is called fc3, head; the graph has: query, key, .*, scores, mix"
    ):
        plan_of(model, keep_float=["head", "fc1", "fc3"])


def test_products_get_the_range_that_was_seen_and_probabilities_theirs(model: ir.Model) -> None:
    given_ = observed(model, images())
    plan = decide_plan(find_layers(model), given_, target="full-range", quantize_products=True)
    seen = {name: (float(each.all.low.min()), float(each.all.high.max())) for name, each in given_.items()}
    scores, mix = plan.products["scores"], plan.products["mix"]
    assert scores.left == Range.of(*seen["query_first"])
    assert scores.right == Range.of(*seen["key_first"])
    assert mix.left == PROBABILITY != Range.of(*seen["probabilities"])
    assert mix.right == Range.of(*seen["value_first"])
    assert {scores.precision, mix.precision} == {"int8"}


def test_pixels_are_int8_already() -> None:
    constants = {
        "w": np.ones((12, 4), np.float32),
        "b": np.ones(4, np.float32),
        "rows": [-1, 12],
        "one": np.float32(1),
        "g": np.ones(4, np.float32),
        "v": np.ones((4, 2), np.float32),
        "c": np.ones(2, np.float32),
    }
    lines = """
        f = DequantizeLinear(pixels, one)
        r = Reshape(f, rows)
        t = Gemm(r, w, b)
        n = LayerNormalization(t, g, b)
        y = Gemm(n, v, c)
    """
    graph = build(lines, constants, inputs="uint8[N, 2, 2, 3] pixels", outputs="float[N, 2] y")
    given_ = Observation.empty(4, 1)
    given_.fit.update(np.ones((3, 4), np.float32))
    sites = find_layers(graph)
    assert sites.activations == ["n"]
    plan = decide_plan(sites, {"n": given_}, target="full-range", single_rows="int8")
    assert (plan.linears["t"].precision, plan.linears["t"].input, plan.linears["t"].rule) == (
        "int8",
        None,
        None,
    )
    assert plan.linears["y"].input is not None
    kept = decide_plan(sites, {"n": given_}, target="full-range", keep_float=["t"])
    assert kept.linears["t"].precision == "float32"


def six_digits(array: np.ndarray) -> list[float]:
    return [float(f"{number:.6g}") for number in array]


def trial(
    given_: Observation,
    linears: list[Linear],
    scales: np.ndarray,
    *,
    gelu: bool = False,
    target: Target = "full-range",
) -> Trial:
    """Of the readers of one tensor together, whose weights stand side by side."""
    weight = np.concatenate([linear.weight for linear in linears], axis=1) * scales[:, None]
    return Trial(given_, weight, scales, target, gelu=gelu)


def strength_by_brute_force(sites_of: ir.Model, given_: Mapping[str, Observation], place: str) -> float:
    """The strength with the least error of the place's readers, of those that a plan may have."""
    (group,) = [each for each in find_balance_groups(find_layers(sites_of)) if each.name == place]
    extremes = given_[str(group.linears[0].input.name)].fit.extremes
    errors = []
    for strength in STRENGTHS:
        scales = compute_balance_scales(extremes.low, extremes.high, strength)
        each = trial(given_[str(group.linears[0].input.name)], list(group.linears), scales)
        errors.append(each.choose_per_tensor(rules=("min-max", "margin")).error)
    return STRENGTHS[int(np.argmin(errors))]


@pytest.mark.parametrize("factor", [1.0, 3.0, 40.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_strength_with_the_least_error_is_taken(seed: int, factor: float) -> None:
    model = block(seed=seed, hidden=HIDDEN)
    outlier = np.ones(WIDTH)
    outlier[seed] = factor
    for index in (1, 2):
        change(model, "norm1", index, outlier)
    given_ = observed(model, images())
    plan = decide_plan(find_layers(model), given_, target="full-range")
    for place, tensor in {"norm1": "norm1", "norm2": "norm2", "value": "joined"}.items():
        strength = strength_by_brute_force(model, given_, place)
        if strength == 0:
            assert place not in plan.balance
        else:
            assert plan.balance[place].strength == strength
            # The scales themselves come from all images.
            scales = compute_balance_scales(given_[tensor].all.low, given_[tensor].all.high, strength)
            assert list(plan.balance[place].scales) == six_digits(scales)
    if factor == 40.0:
        assert plan.balance["norm1"].strength > 0


def test_a_range_is_that_of_the_divided_tensor_over_all_images(model: ir.Model) -> None:
    given_ = observed(model, images())
    plan = decide_plan(find_layers(model), given_, target="full-range")
    checked = 0
    for name, linear in find_layers(model).linears.items():
        each, tensor = plan.linears[name], given_[str(linear.input.name)].all
        place = {"query": "norm1", "key": "norm1", "value": "norm1", "fc1": "norm2", "proj": "value"}.get(
            name
        )
        scales = np.array(plan.balance[place].scales) if place in plan.balance else 1.0
        rest = np.setdiff1d(np.arange(len(linear.weight)), each.float_columns)
        low, high = ((end / scales)[rest] for end in (tensor.low, tensor.high))
        factor = {"min-max": 1.0, "margin": 1.1}.get(str(each.rule))
        if factor is not None and each.input is not None:
            expected = Range.of(factor * float(low.min()), factor * float(high.max()))
            assert each.input.scale == pytest.approx(expected.scale, rel=1e-4)
            assert each.input.zero_point == expected.zero_point
            checked += 1
    assert checked >= 3
    one = plan.linears["query"]
    assert (one.input, one.rule) == (plan.linears["key"].input, plan.linears["key"].rule)  # one tensor


def test_the_largest_hidden_features_go_to_float_where_they_gain_enough(model: ir.Model) -> None:
    given_ = observed(model, images())
    plan = decide_plan(find_layers(model), given_, target="full-range")
    columns = plan.linears["fc2"].float_columns
    assert set(columns) == set(np.argsort(-given_["gelu"].all.high, kind="stable")[:FLOAT_COLUMNS].tolist())
    assert list(columns) == sorted(columns)
    assert {name for name, each in plan.linears.items() if each.float_columns} == {"fc2"}


def test_what_pays_for_columns() -> None:
    """Hidden features that stand out more and more: at some point the columns are worth their time."""
    reach = np.maximum(observed(block(hidden=HIDDEN), images())["gelu"].all.high, 0.5)
    split = []
    for factor in np.linspace(1.0, 4.0, 13):
        model = block(hidden=HIDDEN)
        hidden = 2 / reach  # now none stands out
        hidden[[7, 31, 64, 100]] *= factor
        change(model, "fc1", 1, hidden)
        given_ = observed(model, images())
        ones, linear = np.ones(HIDDEN, np.float32), find_layers(model).linears["fc2"]
        each = trial(given_["gelu"], [linear], ones, gelu=True)
        largest = tuple(sorted(np.argsort(-given_["gelu"].all.high, kind="stable")[:FLOAT_COLUMNS].tolist()))
        decision = _Decision(find_layers(model), given_, "full-range", frozenset())
        (found,) = decision._choose(str(linear.input.name), [linear], ones)
        assert found.choices == (
            each.choose_per_tensor(),
            each.choose_per_token(),
            each.choose_per_tensor(largest),
            each.choose_per_token(largest),
        )
        another = (Choice(found.choices[1].error * 0.4 / SHARE_OF_ERROR, PROBABILITY, "min-max"),) * 2
        chosen = _weigh_costs({"fc2": found, "another": Candidates(linear, ones, another)})["fc2"]
        split.append(bool(chosen.columns))
    assert 2 < sum(split) < 11


def test_an_mlp_of_few_features_and_one_of_a_single_row_are_not_split(model: ir.Model) -> None:
    few = block(hidden=HIDDEN - 1)
    hidden = np.ones(HIDDEN - 1)
    hidden[[7, 31]] = 60.0
    change(few, "fc1", 1, hidden)
    assert not plan_of(few).linears["fc2"].float_columns
    given_ = observed(model, images())
    given_["gelu"] = replace(given_["gelu"], rows_per_image=1)
    plan = decide_plan(find_layers(model), given_, target="full-range", single_rows="int8")
    assert not plan.linears["fc2"].float_columns
    assert plan.linears["fc2"].per_token is not None  # the row has a scale of its own instead


@pytest.mark.parametrize("precision", ["float16", "float32", "int8"])
def test_linears_that_see_one_row_per_image_have_a_precision_of_their_own(
    precision: Precision, model: ir.Model
) -> None:
    """They cost next to nothing in float; what is to stay in float32 does, and pixels stay in int8."""
    given_ = observed(model, images())
    for name in ("gelu", "norm2"):
        given_[name] = replace(given_[name], rows_per_image=1)
    sites = find_layers(model)
    plan = decide_plan(sites, given_, target="any-cpu", keep_float=["fc1"], single_rows=precision)
    found = {name: each.precision for name, each in plan.linears.items()}
    assert found == dict.fromkeys(LINEARS, "int8") | {"fc1": "float32", "fc2": precision}
    if precision != "int8":
        assert plan.linears["fc2"] == LinearPlan(precision=precision)
    default = decide_plan(sites, given_, target="any-cpu")
    assert {name for name, each in default.linears.items() if each.precision == "float16"} == {"fc1", "fc2"}


@pytest.mark.parametrize("target", TARGETS)
def test_ratios_are_the_trials_own(target: Target, model: ir.Model) -> None:
    """With weights of the same form: limited in pairs for any CPU they round more coarsely."""
    given_ = observed(model, images())
    plan = decide_plan(find_layers(model), given_, target=target)
    assert not any(each.correction for each in plan.linears.values())  # `correct_biases` makes them
    linear, each = find_layers(model).linears["fc1"], plan.linears["fc1"]
    scales = np.ones(WIDTH, np.float32)
    if "norm2" in plan.balance:
        extremes = given_["norm2"].all
        scales = compute_balance_scales(extremes.low, extremes.high, plan.balance["norm2"].strength)
    assert each.input is not None
    choice = Choice(0.0, each.input, str(each.rule))
    found = {
        form: trial(given_["norm2"], [linear], scales, target=form).choose_ratios(choice) for form in TARGETS
    }
    assert each.ratios == found[target]
    assert len(set(found.values())) > 1
    assert any(found.values())


def loud() -> list[np.ndarray]:
    """Images whose first token is far larger than the others, until a norm levels them."""
    made = images()
    for x in made:
        x[0] *= 30
    return made


def test_only_what_no_norm_has_leveled_may_have_a_scale_for_each_row() -> None:
    """And only a tensor with one reader: query, key and value share theirs."""
    lines = (ATTENTION + MLP).replace("Gemm(norm2, fc1_weight", "Gemm(residual, fc1_weight")
    model = block(hidden=HIDDEN, lines=lines)
    plan = plan_of(model, loud())
    assert plan.linears["fc1"].per_token is not None
    for name in ("query", "key", "value"):
        assert plan.linears[name].per_token is None
    assert plan_of(block(hidden=HIDDEN), loud()).linears["fc1"].per_token is None
    again = "again = Gemm(residual, query_weight, query_bias) z = Add(again, fc2) y = Add(residual, z)"
    shared = lines.replace("y = Add(residual, fc2)", again)
    both = plan_of(block(hidden=HIDDEN, lines=shared), loud())
    # The residual stream has no scales: each reader has its own.
    assert both.linears["fc1"].per_token is not None


def test_rows_with_their_own_scale_are_stored_as_the_trial_says() -> None:
    lines = (ATTENTION + MLP).replace("Gemm(norm2, fc1_weight", "Gemm(residual, fc1_weight")
    model = block(hidden=HIDDEN, lines=lines)
    given_ = observed(model, loud())
    each = decide_plan(find_layers(model), given_, target="full-range").linears["fc1"]
    assert (each.input, each.rule, each.float_columns) == (Range.of(-1.0, 1.0), "exact", ())
    assert each.per_token == pytest.approx(np.abs(given_["residual"].fit.rows).max() * 1e-4, rel=1e-5)


def candidate(cheap: float, per_token: float | None, one_row: bool) -> Candidates:
    (linear,) = [each for each in find_layers(BLOCK).linears.values() if each.name == "proj"]
    per_tensor = Choice(cheap, PROBABILITY, "min-max")
    rows = () if per_token is None else (Choice(per_token, PROBABILITY, "exact", per_token=0.5),)
    return Candidates(linear, None, (per_tensor, *rows), one_row)


BLOCK = block()
errors = st.floats(0, 100) | st.sampled_from([0.0, 1.0, 1e-3])
candidates = st.lists(st.tuples(errors, errors | st.none(), st.booleans()), max_size=12)


@given(candidates)
@settings(max_examples=300)
def test_the_economy_rule(drawn: list[tuple[float, float | None, bool]]) -> None:
    found = {f"layer {i}": candidate(*each) for i, each in enumerate(drawn)}
    chosen = _weigh_costs(found)
    assert list(chosen) == list(found)
    pairs = [(cheap, rows) for cheap, rows, one_row in drawn if rows is not None and not one_row]
    total = sum(min(pair) for pair in pairs)
    for name, each in found.items():
        errors = [choice.error for choice in each.choices]
        if len(errors) == 1:
            expected = False
        elif each.one_row:
            cheap, rows = errors
            expected = 10 * np.log10(max(cheap, 1e-300) / max(rows, 1e-300)) >= GAIN_OF_ONE_ROW
        else:
            expected = errors[0] > errors[1] + SHARE_OF_ERROR * total
        assert chosen[name] is each.choices[int(expected)]


def test_the_economy_rule_by_hand() -> None:
    """Of 100 in all, two per cent are worth the time, for a single row a fifth of a decibel."""
    found = {
        "large": candidate(59.5, 58.6, False),
        "worth it": candidate(32.1, 30.0, False),
        "too little": candidate(13.3, 11.4, False),
        "one row, worth it": candidate(1.05, 1.0, True),
        "one row, too little": candidate(1.04, 1.0, True),
        "worse": candidate(1.0, 5.0, True),
        "no choice": candidate(500.0, None, False),
    }
    chosen = {name for name, choice in _weigh_costs(found).items() if choice.per_token is not None}
    assert chosen == {"worth it", "one row, worth it"}


@pytest.mark.parametrize("name", LINEARS)
def test_the_error_that_was_foretold_is_what_the_written_graph_makes(name: str) -> None:
    """One linear alone in int8, its input as calibration saw it: the trial's number, in ONNX Runtime."""
    model, inputs = uneven(HIDDEN // 2), images(1)
    given_ = observed(model, inputs)
    keep = [other for other in LINEARS if other != name]
    plan = decide_plan(find_layers(model), given_, target="any-cpu", keep_float=keep)
    chosen, linear = plan.linears[name], find_layers(model).linears[name]
    scales = np.ones(len(linear.weight), np.float32)
    if plan.balance:
        (balance,) = plan.balance.values()
        scales = np.array(balance.scales, np.float32)
    gelu = str(linear.input.name) == "gelu"
    each = Trial(
        given_[str(linear.input.name)], linear.weight * scales[:, None], scales, "any-cpu", gelu=gelu
    )
    assert chosen.input is not None
    choice = Choice(0.0, chosen.input, str(chosen.rule), chosen.per_token, chosen.float_columns)
    assert each.choose_ratios(choice) == chosen.ratios
    if chosen.ratios and not choice.columns:
        stored, scale = quantize_weight(each.weight, "any-cpu", ratio=np.array(chosen.ratios, np.float32))
        each.rounded = stored * scale
    foretold = each._judge(choice).error
    written = read_optimized_graph(ir.to_proto(write_plan(model, plan)).SerializeToString())
    exact, found = (tensor(graph, name, inputs[0]) for graph in (model, written))
    # Before eight bits the written graph has the tanh form of GELU, which moves a few values by a step.
    assert np.square(found - exact).sum() == pytest.approx(foretold, rel=0.1 if gelu else 0.02)
    assert foretold > 0


def test_rows_with_their_own_scale_and_columns_in_float_are_written_as_foretold() -> None:
    model, inputs = uneven(HIDDEN), images(1)
    given_ = observed(model, inputs)
    plan = decide_plan(find_layers(model), given_, target="any-cpu", keep_float=set(LINEARS) - {"fc2"})
    linear, columns = find_layers(model).linears["fc2"], (7, 31, HIDDEN // 2, HIDDEN - 28)
    each = trial(given_["gelu"], [linear], np.ones(HIDDEN, np.float32), gelu=True, target="any-cpu")
    choice = each.choose_per_token(columns)
    assert choice.error < 0.1 * each.choose_per_token().error
    chosen = LinearPlan(
        precision="int8", input=choice.input, rule="exact", per_token=choice.per_token, float_columns=columns
    )
    plan = replace(plan, linears={**plan.linears, "fc2": chosen})
    assert QuantizationPlan.from_json(plan.to_json()) == plan
    written = read_optimized_graph(ir.to_proto(write_plan(model, plan)).SerializeToString())
    assert [each.op_type for each in written.graph if str(each.name).startswith("fc2")].count("QGemm") == 1
    exact, found = (tensor(graph, "fc2", inputs[0]) for graph in (model, written))
    # The weights that are left have scales of their own, finer than those of all.
    assert np.square(found - exact).sum() == pytest.approx(choice.error, rel=0.3)


def tensor(model: ir.Model, name: str, x: np.ndarray) -> np.ndarray:
    """A tensor of a graph, which becomes an output of a copy."""
    copied = model.clone()
    values = ir.convenience.create_value_mapping(copied.graph)
    copied.graph.outputs.append(values[name])
    return run(copied, x, outputs=[name])


def test_a_plan_can_be_read_in_a_text_of_few_digits(model: ir.Model) -> None:
    document = json.loads(plan_of(model).to_json())
    scales = [scale for each in document["balance"].values() for scale in each["scales"]]
    assert scales
    assert all(len(f"{scale:.12g}".replace(".", "").lstrip("0")) <= 6 for scale in scales)


def test_a_tensor_of_zeros_can_be_quantized() -> None:
    """A dead MLP: no image moves it, and no rule divides by its range."""
    model = block(hidden=HIDDEN)
    change(model, "fc1", 1, np.zeros(HIDDEN))
    change(model, "fc1", 2, np.zeros(HIDDEN))
    plan = plan_of(model)
    assert plan.linears["fc2"].precision == "int8"
    expected = run(model, images()[0])
    found = run(read_optimized_graph(ir.to_proto(write_plan(model, plan)).SerializeToString()), images()[0])
    assert np.square(found - expected).sum() < 0.01 * np.square(expected).sum()


@pytest.mark.parametrize(("factor", "expected"), [(1.0, "float16"), (1e9, "float32")])
def test_a_weight_that_float16_cannot_hold_stays_in_float32(
    factor: float, expected: Precision, model: ir.Model
) -> None:
    """`single_rows` asks for float16, whose largest number is 65,504."""
    change(model, "fc2", 1, np.full(WIDTH, factor))
    given_ = observed(model, images())
    given_["gelu"] = replace(given_["gelu"], rows_per_image=1)
    plan = decide_plan(find_layers(model), given_, target="any-cpu", single_rows="float16")
    assert plan.linears["fc2"] == LinearPlan(precision=expected)


def test_only_the_range_of_rows_behind_a_gelu_is_one_sided(model: ir.Model) -> None:
    """A GELU gives no less than -0.17, which is divided by the smallest peak of a row."""
    given_ = observed(model, images())
    for name in ("gelu", "joined"):
        given_[name] = replace(given_[name], rows_per_image=1)
    plan = decide_plan(find_layers(model), given_, target="full-range", single_rows="int8")
    fc2, proj = plan.linears["fc2"], plan.linears["proj"]
    assert fc2.per_token is not None
    assert proj.per_token is not None
    assert fc2.input is not None
    assert fc2.input.scale == pytest.approx((1 + 0.17 / fc2.per_token) / 255, rel=1e-4)
    assert proj.input == Range.of(-1.0, 1.0)
