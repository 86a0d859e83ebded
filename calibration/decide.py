"""From what was observed to a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from calibration.observe import Extremes
from calibration.plan import PROBABILITY, LinearPlan, PlanError, ProductPlan, QuantizationPlan, Range, Target
from calibration.sites import Sites


def min_max_plan(
    sites: Sites,
    observed: Mapping[str, Extremes],
    *,
    target: Target,
    keep_float: Collection[str] = (),
    quantize_products: bool = True,
) -> QuantizationPlan:
    """Every linear and product in int8 over the range that was seen, but for those named in `keep_float`.

    Raises:
        PlanError: when `keep_float` names what is not in the graph.
    """
    known = {**sites.linears, **sites.products}
    if unknown := sorted(set(keep_float) - set(known)):
        raise PlanError(f"no layer is called {', '.join(unknown)}; the graph has: {', '.join(known)}")

    def seen(name: str | None) -> Range:
        extremes = observed[str(name)]
        return Range.of(float(extremes.low.min()), float(extremes.high.max()))

    linears, products = {}, {}
    for name, linear in sites.linears.items():
        quantize = name not in keep_float
        pixels = linear.reads_pixels
        chosen = seen(linear.input.name) if quantize and not pixels else None
        linears[name] = LinearPlan(precision="int8" if quantize else "float32", input=chosen)
    for name, product in sites.products.items():
        if not quantize_products or name in keep_float:
            products[name] = ProductPlan(precision="float32")
            continue
        left = PROBABILITY if product.mixes_probabilities else seen(product.left.name)
        products[name] = ProductPlan(precision="int8", left=left, right=seen(product.right.name))
    return QuantizationPlan(target=target, linears=linears, products=products)
