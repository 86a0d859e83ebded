"""Counts of labels, embeddings and clusters: one tally, of bounded size."""

from __future__ import annotations

from runtime.batch.tally import Report, Tally


def test_failures_are_counted_by_reason_and_in_bounds() -> None:
    total = Tally()
    for number in range(200):
        one = Tally()
        one.add(f"{number}.jpg", error=chr(65 + number))
        total.merge(one)
    assert (total.failed, len(total.reasons), total.reasons["other reasons"]) == (200, 51, 150)
    assert len(total.failures) == 10
    assert total.list_failures("x.jsonl")[-1] == "      and  190 more failures, listed in x.jsonl"


def test_numbers_of_one_image_are_no_part_of_a_reason() -> None:
    tally = Tally()
    for pixels in ("30000 x 20,001", "7 x 7"):
        tally.add("a.jpg", error=f"it has {pixels} pixels")
    assert tally.reasons == {"it has N x N pixels": 2}


def test_chunks_add_up_to_the_whole() -> None:
    whole, first, second = Tally(), Tally(), Tally()
    for part, values in (
        (first, {"label": "daisy"}),
        (first, {"error": "it is empty"}),
        (second, {"label": "daisy"}),
        (second, {}),
    ):
        part.add("a.jpg", **values)
        whole.add("a.jpg", **values)
    first.merge(second)
    assert first == whole
    assert (whole.images, whole.failed, whole.unsure, whole.labels["daisy"]) == (4, 1, 1, 2)


def test_a_summary_names_failures_of_one_machine_by_path_and_of_a_cluster_by_reason() -> None:
    part = Tally()
    part.add("a.jpg", error="it is empty")
    here, cluster = Report(clock=lambda: 0.0), Report(clock=lambda: 0.0)
    here.add("a.jpg", error="it is empty")
    cluster.merge(part)
    assert here.summary().splitlines()[1:] == ["   failed  a.jpg: it is empty"]
    assert cluster.summary().splitlines()[1:] == ["        1  failed: it is empty"]
