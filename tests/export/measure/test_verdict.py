"""The verdict on the limits of an export."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.measure.drift import Drift
from calibration.search import Budget
from export.measure.embeddings import EmbeddingDrift
from export.measure.evidence import Doubt, too_few_for_agreement
from export.measure.verdict import judge


def drift(**changes) -> Drift:
    fields = dict(
        images=500, agreement=99.4, sqnr=31.02, max_error=0.1, float_top1=90.0, top1=89.88, top1_drop=0.12
    )
    return Drift(**{**fields, **changes})


def budgets(**limits) -> dict[str, Budget]:
    return {name: Budget(**limits) for name in ("float32", "int8", "float16")}


def test_no_limit_was_set() -> None:
    found = judge(budgets(), {"int8": drift()})
    assert (found.status, found.text) == ("no limit", "no limit was set")


def test_limits_that_no_variant_was_judged_on() -> None:
    found = judge(budgets(max_drift=0.5), {})
    assert (found.status, found.text) == ("no limit", "no limit was judged: float32 is the only file")


def test_limits_that_are_met() -> None:
    assert judge(budgets(max_drift=0.5), {"int8": drift()}).text == "met: 0.12 of 0.5 points of top-1 lost"
    found = judge(budgets(max_drift=0.5, min_agreement=99.0, min_sqnr=20.0), {"int8": drift()})
    assert found.text == (
        "met: 0.12 of 0.5 points of top-1 lost, the same label on 99.40 % (minimum: 99 %), "
        "a signal-to-noise ratio of 31.0 dB (minimum: 20 dB)"
    )
    gained = judge(budgets(max_drift=0.5), {"int8": drift(top1_drop=-0.2)})
    assert gained.text == "met: 0 of 0.5 points of top-1 lost (0.20 gained)"


def test_each_variant_is_named_where_there_are_several() -> None:
    found = judge(budgets(max_drift=0.5), {"float16": drift(top1_drop=0.0), "int8": drift()})
    assert found.text == "met: FP16 0.00 of 0.5 points of top-1 lost; INT8 0.12 of 0.5 points of top-1 lost"


def test_embeddings_have_a_limit_of_their_own() -> None:
    each = EmbeddingDrift(
        images=9, cosine=0.9987, worst_cosine=0.9, worst_image=1, nearest=None, nearest_10=None
    )
    found = judge(budgets(), {}, min_cosine=0.99, embeddings={"int8": each})
    assert found.text == "met: a mean cosine of 0.9987 (minimum: 0.99)"


def test_a_limit_that_the_evidence_cannot_show_is_not_met() -> None:
    few = Doubt("60 images are few", ("max_drift",))
    alone = judge(budgets(max_drift=0.5), {"int8": drift()}, doubts=[Doubt("alike"), few])
    assert (alone.status, alone.text) == ("not judged", "cannot be judged: 60 images are few")
    assert [each.to_dict()["met"] for each in alone.limits] == [None]
    both = judge(budgets(max_drift=0.5, min_sqnr=20.0), {"int8": drift()}, doubts=[few])
    assert both.status == "not judged"
    assert both.text == (
        "cannot be judged: 60 images are few. Met: a signal-to-noise ratio of 31.0 dB (minimum: 20 dB)"
    )
    other = judge(budgets(min_sqnr=20.0), {"int8": drift()}, doubts=[few])
    assert other.status == "met"


@pytest.mark.parametrize(("images", "enough"), [(100, False), (400, True)])
def test_too_few_images_for_a_share_of_same_labels(images: int, enough: bool) -> None:
    logits = np.eye(4, dtype=np.float32)[np.arange(images) % 4]
    sentence = too_few_for_agreement(Budget(min_agreement=99.0), logits, logits)
    assert (sentence == "") == enough
    if not enough:
        assert sentence.startswith("100 images cannot show a limit of 99 % of same labels")
        needed = int(sentence.split("about ")[1].split(" ")[0].replace(",", ""))
        assert 380 <= needed <= 420
    assert too_few_for_agreement(Budget(max_drift=0.5), logits, logits) == ""
