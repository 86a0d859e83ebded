"""The verdict on the limits of an export: each is decided by the 95 % interval of its figure."""

from __future__ import annotations

import pytest

from calibration.measure.drift import Drift
from calibration.measure.statistics import Interval
from calibration.search import Budget
from export.report.conclusion import Conclusion, judge_limits
from export.report.embedding_drift import EmbeddingFigures
from export.report.evidence import EvidenceWarning


def drift(images: int = 10_000, lost: int = 12, gained: int = 0, changed: int | None = None, **more) -> Drift:
    """Drift of a variant that loses and gains so many images of those that float32 gets right."""
    changed = lost + gained if changed is None else changed
    fields = dict(
        images=images,
        agreement=100 * (1 - changed / images),
        sqnr=31.02,
        max_error=0.1,
        float_top1=90.0,
        top1=90.0 + 100 * (gained - lost) / images,
        top1_drop=100 * (lost - gained) / images,
        lost=lost,
        gained=gained,
    )
    return Drift(**{**fields, **more})


def budgets(**limits) -> dict[str, Budget]:
    return {name: Budget(**limits) for name in ("float32", "int8", "float16")}


def verdict(each: Drift, **limits) -> Conclusion:
    return judge_limits(budgets(**limits), {"int8": each}, sqnr={"int8": Interval(30.5, 31.5)})


def test_no_limit_was_set() -> None:
    found = judge_limits(budgets(), {"int8": drift()})
    assert (found.status, found.text) == ("no limit", "no limit was set")


def test_limits_that_no_variant_was_judged_on() -> None:
    found = judge_limits(budgets(max_drift=0.5), {})
    assert (found.status, found.text) == ("no limit", "no limit was judged: float32 is the only file")


def test_limits_that_are_met() -> None:
    assert verdict(drift(), max_drift=0.5).text == "met: 0.12 of 0.5 points of top-1 lost"
    found = verdict(drift(changed=60), max_drift=0.5, min_agreement=99.0, min_sqnr=20.0)
    assert found.text == (
        "met: 0.12 of 0.5 points of top-1 lost, the same label on 99.40 % (minimum: 99 %), "
        "a signal-to-noise ratio of 31.0 dB (minimum: 20 dB)"
    )
    gained = verdict(drift(lost=0, gained=20), max_drift=0.5)
    assert gained.text == "met: 0 of 0.5 points of top-1 lost (0.20 gained)"


@pytest.mark.parametrize(
    ("images", "lost", "gained", "limit", "status"),
    [
        (153, 0, 0, 0.5, "not judged"),  # no flip
        (153, 1, 0, 0.5, "not judged"),  # 0.65 points, which one image makes
        (153, 4, 0, 0.5, "not judged"),  # 2.6 points, but perhaps 0.2 only
        (153, 5, 0, 0.5, "missed"),
        (153, 12, 2, 0.5, "missed"),
        (153, 0, 0, 5.0, "met"),
        (764, 0, 0, 0.5, "not judged"),
        (765, 0, 0, 0.5, "met"),
        (2000, 12, 4, 0.5, "not judged"),
        (20_000, 60, 0, 0.5, "met"),
        (1_000_000, 0, 0, 0.0, "not judged"),  # no number of images shows that nothing at all is lost
        (2000, 0, 20, 0.0, "met"),
    ],
)
def test_top1_is_decided_by_its_interval(images, lost, gained, limit, status) -> None:
    found = verdict(drift(images, lost, gained), max_drift=limit)
    assert found.status == status
    (judged,) = found.limits
    assert (judged.doubt == "") == (status != "not judged")
    assert judged.to_dict()["status"] == status


@pytest.mark.parametrize(
    ("images", "changed", "limit", "status"),
    [(380, 0, 99.0, "not judged"), (381, 0, 99.0, "met"), (100, 2, 99.0, "not judged"),
     (100, 6, 99.0, "missed"), (5000, 0, 100.0, "not judged"), (5000, 20, 99.0, "met")],
)  # fmt: skip
def test_agreement_is_decided_by_its_interval(images, changed, limit, status) -> None:
    each = Drift(images=images, agreement=100 * (1 - changed / images), sqnr=30.0, max_error=0.1)
    assert verdict(each, min_agreement=limit).status == status


@pytest.mark.parametrize(("limit", "status"), [(30.0, "met"), (31.0, "not judged"), (32.0, "missed")])
def test_sqnr_and_cosine_are_decided_by_their_intervals(limit: float, status: str) -> None:
    assert verdict(drift(), min_sqnr=limit).status == status
    embedded = embeddings(cosine_low=0.305, cosine_high=0.315)
    assert judge_limits(budgets(), {}, min_cosine=limit / 100, embeddings=embedded).status == status


def embeddings(**changes) -> dict[str, EmbeddingFigures]:
    fields = dict(images=9, cosine=0.31, worst_cosine=0.2, worst_image=1, nearest=None, nearest_10=None)
    return {"int8": EmbeddingFigures(**{**fields, **changes})}


def test_one_image_shows_neither() -> None:
    alone = judge_limits(budgets(min_sqnr=3.0), {"int8": drift(1, 0, 0)}, sqnr={"int8": None})
    assert alone.text == "cannot be judged: 1 image cannot show a limit of 3 dB: one image gives no interval"
    assert judge_limits(budgets(), {}, min_cosine=0.1, embeddings=embeddings(images=1)).status == "not judged"


@pytest.mark.parametrize(
    ("images", "lost", "gained", "low", "high"),
    [
        (153, 0, 0, 765, 765),
        (153, 1, 0, 1300, 1500),  # as many as would show that nothing is lost, if as many labels change
        (400, 1, 0, 2500, 3500),  # 0.25 points: half of the limit is left
        (10_000, 240, 180, 150_000, 190_000),  # 0.6 points on many images: until it is missed for sure
    ],
)
def test_the_number_of_images_that_would_do(images, lost, gained, low, high) -> None:
    found = verdict(drift(images, lost, gained), max_drift=0.5)
    assert found.images_needed is not None
    assert low <= found.images_needed <= high
    assert f"it takes about {found.images_needed:,} images" in found.text
    assert found.text.startswith(f"cannot be judged: {images:,} images cannot show a limit of 0.5 points: ")


def test_the_number_is_enough_if_nothing_changes() -> None:
    needed = verdict(drift(153, 0, 0), max_drift=0.5).images_needed
    assert needed is not None
    assert verdict(drift(needed, 0, 0), max_drift=0.5).status == "met"
    assert verdict(drift(needed - 1, 0, 0), max_drift=0.5).status == "not judged"
    assert "more than 1,000,000 images" in verdict(drift(153, 0, 0), max_drift=0.0).text


def test_each_variant_is_named_where_there_are_several() -> None:
    found = judge_limits(budgets(max_drift=0.5), {"float16": drift(lost=0), "int8": drift()})
    assert found.text == "met: FP16 0.00 of 0.5 points of top-1 lost; INT8 0.12 of 0.5 points of top-1 lost"
    few = judge_limits(budgets(max_drift=0.5), {"float16": drift(153, 0), "int8": drift(153, 1)})
    assert few.text.startswith("cannot be judged: FP16: 153 images cannot show")
    assert "; INT8: 153 images cannot show" in few.text
    mixed = judge_limits(budgets(max_drift=0.5), {"float16": drift(lost=0), "int8": drift(153, 9)})
    assert mixed.status == "missed"
    assert mixed.text.startswith("missed: top-1 falls by 5.88 points, 95 % interval ")


def test_embeddings_have_a_limit_of_their_own() -> None:
    each = embeddings(cosine=0.9987, cosine_low=0.9979, cosine_high=0.9995)
    found = judge_limits(budgets(), {}, min_cosine=0.99, embeddings=each)
    assert found.text == "met: a mean cosine of 0.9987 (minimum: 0.99)"


def test_a_limit_that_the_evidence_cannot_show_is_not_met() -> None:
    known = EvidenceWarning("the model knows them", ("--max-drift",))

    def found(each: Drift, **limits) -> Conclusion:
        return judge_limits(
            budgets(**limits),
            {"int8": each},
            sqnr={"int8": Interval(30.5, 31.5)},
            warnings=[EvidenceWarning("alike"), known],
        )

    alone = found(drift(), max_drift=0.5)
    assert (alone.status, alone.text) == ("not judged", "cannot be judged: the model knows them")
    assert alone.images_needed is None
    both = found(drift(), max_drift=0.5, min_sqnr=20.0)
    assert both.status == "not judged"
    assert both.text == (
        "cannot be judged: the model knows them. Met: a signal-to-noise ratio of 31.0 dB (minimum: 20 dB)"
    )
    assert found(drift(), min_sqnr=20.0).status == "met"
    assert found(drift(lost=900), max_drift=0.5).status == "missed"
