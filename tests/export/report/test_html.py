"""The page: whole in itself, safe with any name, and true to the results it shows."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.measure.drift import measure_drift
from calibration.measure.statistics import sqnr_interval
from export.report.changed_images import MOST_CHANGED, make_image_card
from export.report.charts import draw_bar_chart, draw_layer_chart, list_chart_kinds, place_chart_points
from export.report.comparison import Comparison, make_comparison_tiles, say_chance, say_headline
from export.report.evidence import Evidence
from export.report.quantized_layers import QuantizedLayers
from tests.support.html_page import Page
from vit.page.confusion import are_short, confusion_matrix, distinguish_labels, rank_confusions
from vit.page.image_uri import EDGE, thumbnail

PAIR = 2  # images: one before and after preprocessing


def test_page_is_well_formed_and_asks_for_nothing_from_outside(results):
    html = results(variants=("float16", "int8")).to_html()
    page = Page(html)
    assert page.flaws() == []
    assert page.images
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.split("; ") == ["default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"]


def test_the_times_of_a_cpu_are_not_taken_for_those_of_an_npu(results):
    found, sentence = results(), "All times are of this CPU, on which a file for an NPU is slow."
    assert sentence not in Page(found.to_html()).text
    float32, int8 = found.variants
    for_npu = replace(found, variants=(float32, replace(int8, file="model.npu.onnx")))
    assert sentence in Page(for_npu.to_html()).text


def test_page_says_what_was_measured(results):
    text = Page(results().to_html()).text
    for expected in (
        "INT8 is 4.0x smaller, 4.00x faster, and gives the same label as float32 on 57 of 60 images.",
        "Top-1 100.0 % 94.0-100.0 95.0 % 86.3-98.3",
        "Same label as float32 - 95.0 % 86.3-98.3",
        "(3 right in float32 only, 0 in INT8 only; McNemar's exact test, p = 0.25)",
        "One image, one thread 20.0 ms least 18.0 5.00 ms 4.00x faster least 4.50",
        "INT8: 19 linear layers, 18 in INT8 (all in integer kernels), 1 stays float32: head; 1 attention "
        "product, all in float32.",
        "QGemm 18 Gemm 1 Gelu 3",
        "Furthest from float32: blocks.2.mlp.fc2 33.0 dB",
        "fold normalization 1",
        "2.5e-07 of the largest logit",
        "source photos images 128 target any-cpu",
        "cpu Some CPU vnni no packages numpy 2.0",
        "date 2026-01-02 03:04 UTC",
        "python -m export runs/flowers --quantize",
        "width 64, image size 32 x 32",
    ):
        assert expected in text


def test_names_cannot_break_the_page(results, put):
    evil = '<script>alert("x")</script>&'
    some = results(labels=[evil, "b", "c", "d", "e"])
    evidence = Evidence(calibration={"source": evil, "images": 3, evil: evil})
    layers = QuantizedLayers(sqnr={evil: 30.0, "a.1.b": 20.0}, kernels={evil: 1})
    some = put(replace(some, source={"checkpoint": evil}), evidence, layers)
    html = some.to_html()
    Page(html)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_images_that_changed_are_shown_with_both_scores(results):
    page = Page(results().to_html())
    assert len(page.images) == 3 + PAIR
    assert "Images that INT8 labels otherwise 3 of 60, those first that float32 was surest of." in page.text
    some = results()
    rows = some.find_changed(some.variants[1])
    assert len(rows) == 3
    first = make_image_card(some, rows[0], some.variants)
    before, after = first["guesses"]
    assert (before["right"], after["right"]) == (True, False)
    assert before["label"] == first["truth"] != after["label"]
    assert 0.9 < before["score"] <= 1
    assert 0.9 < after["score"] <= 1


def test_only_so_many_images_are_shown_and_the_rest_is_counted(results):
    page = Page(results(images=60, changed=55).to_html())
    assert len(page.images) == MOST_CHANGED + PAIR
    assert (
        f"55 of 60, those first that float32 was surest of; {55 - MOST_CHANGED} more are listed in"
        in page.text
    )


def test_no_changed_image_is_said(results):
    text = Page(results(changed=0).to_html()).text
    assert "None: on all 60 images both give the same label." in text
    assert "gives the same label as float32 on all 60 images" in text
    assert "Both are right on exactly the same of the 60 images." in text


def test_without_known_classes_there_is_no_top1_and_no_confusion(results):
    html = results(labeled=False).to_html()
    text = Page(html).text
    assert "Same label as float32" in text
    assert "3 of 60" in text
    for absent in ("Top-1", "McNemar", "Bonett", "What is taken for what", "truly", "✓", "✗"):
        assert absent not in text


def test_float_alone_makes_a_page_too(results):
    text = Page(results(variants=()).to_html()).text
    assert "python -m export --quantize adds INT8" in text


def test_an_image_that_is_gone_leaves_a_place(results, tmp_path):
    there = tmp_path / "there.png"
    Image.new("RGB", (300, 200), (200, 30, 30)).save(there)
    page = Page(results(items=[there, tmp_path / "gone.png", *[there] * 58]).to_html())
    assert len(page.images) == 2 + PAIR
    assert "cannot be read any more gone.png" in page.text
    assert str(tmp_path) not in page.text  # where the images are is nobody's business


def test_thumbnail_is_a_small_jpeg_of_the_middle():
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = (250, 250, 250)
    uri = thumbnail(wide)
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
    assert (image.format, image.size) == ("JPEG", (EDGE, EDGE))
    assert np.asarray(image).min() > 200
    assert len(uri) < 20_000
    assert thumbnail(Path("nowhere.png")) == ""


def test_tiny_images_keep_their_pixels():
    checks = np.zeros((8, 8, 3), np.uint8)
    checks[::2, ::2] = 255
    uri = thumbnail(checks)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert np.mean((pixels > 60) & (pixels < 195)) < 0.02  # no gray between them, but for JPEG's ringing


def test_headline_of_a_model_that_got_slower_or_bigger(results):
    some = results()
    slow = replace(some.variants[1], latency={"median": 40.0, "min": 39.0}, bytes=6_000_000)
    assert say_headline(some, slow).startswith("INT8 is 1.5× larger, 2.00× slower, and")
    same = replace(some.variants[1], latency={"median": 20.2, "min": 20.0})
    assert "about as fast" in say_headline(some, same)


def test_chance_is_ruled_out_only_by_enough_images(results):
    few, many = results(changed=5), results(changed=9)
    assert "is no more than chance would give" in say_chance(few, few.variants[1])
    assert "p = 0.06" in say_chance(few, few.variants[1])
    assert "is more than chance would give" in say_chance(many, many.variants[1])
    assert "p = 0.004" in say_chance(many, many.variants[1])


def test_figures_of_a_variant_without_any_drift(results, put):
    some = results()
    exact = replace(some.variants[1], logits=some.variants[0].logits)
    drift = measure_drift(exact.logits, exact.logits, some.targets)
    comparison = Comparison({"int8": drift}, {"int8": sqnr_interval(exact.logits, exact.logits)})
    some = put(replace(some, variants=(some.variants[0], exact)), comparison)
    tiles = {name: value for name, value, _ in make_comparison_tiles(some, exact)}
    assert (tiles["top-1 change"], tiles["signal to noise"]) == ("0", "no noise")
    assert "Logits, signal to noise - no noise Largest" in Page(some.to_html()).text


def test_layers_are_read_from_names_that_number_the_blocks():
    found = place_chart_points(
        {"patch_embedding": 1.0, "blocks.0.attention.query": 2.0, "blocks.10.mlp.fc2": 3.0, "head": 4.0}
    )
    assert [(layer.group, layer.kind) for layer in found] == [
        ("patch_embedding", ""), ("0", "query"), ("10", "fc2"), ("head", ""),
    ]  # fmt: skip
    numbered = place_chart_points(
        {"/vit/encoder/layer.3/attention/dense/MatMul": 1.0, "/vit/encoder/layer.3/output/dense/MatMul": 2.0}
    )
    assert [(layer.group, layer.kind) for layer in numbered] == [
        ("3", "attention/dense/MatMul"), ("3", "output/dense/MatMul"),
    ]  # fmt: skip
    assert [layer.group for layer in place_chart_points({"node_1": 1.0, "Gemm_12": 2.0})] == [
        "node_1",
        "Gemm_12",
    ]


def test_more_kinds_than_colors_become_one():
    layers = place_chart_points({f"blocks.0.{letter}": 1.0 for letter in "abcdefghij"} | {"head": 2.0})
    assert list_chart_kinds(layers) == ["layer"]


@pytest.mark.parametrize("width", [340, 900])
def test_layer_plot_puts_every_layer_inside_and_higher_when_closer(width):
    layers = {f"blocks.{b}.fc1": value for b, value in enumerate((20.0, 35.0, 200.0))} | {"head": 30.0}
    svg = str(draw_layer_chart(layers, width=width, height=300))
    dots = [tuple(map(float, found)) for found in re.findall(r"translate\(([\d.]+) ([\d.]+)\)", svg)]
    assert len(dots) == 4
    assert all(0 < x < width and 0 <= y < 300 for x, y in dots)
    assert [x for x, _ in dots] == sorted(x for x, _ in dots)
    assert dots[0][1] > dots[3][1] > dots[1][1] > dots[2][1]
    assert "<title>blocks.2.fc1: no noise</title>" in svg
    assert "<title>blocks.0.fc1: 20.0 dB</title>" in svg


def test_bars_are_in_proportion():
    svg = str(draw_bar_chart([("a", 10, "10 ms", "float32"), ("b", 2.5, "2.5 ms", "int8")], "times"))
    long, short = (float(width) for width in re.findall(r'width="([\d.]+)"', svg))
    assert short / long == pytest.approx(0.25)
    assert 'aria-label="times"' in svg


def test_matrix_counts_and_frames_what_differs(results):
    some = results()
    given = [each.logits.argmax(axis=1) for each in some.variants]
    before, after = (confusion_matrix(some.targets, each, 5, given[0]) for each in given)
    assert [before[i][i].count for i in range(5)] == [12] * 5
    assert [after[i][i].count for i in range(5)] == [11, 11, 11, 12, 12]
    assert (after[0][1].count, after[0][1].differs, after[0][1].right) == (1, True, False)
    assert (after[4][4].differs, after[0][0].differs) == (False, True)
    assert not any(cell.differs for row in before for cell in row)
    assert are_short(["0", "1"])
    assert not are_short(["shirt", "bag"])
    assert distinguish_labels(["crane", "egret", "crane"]) == ["crane (0)", "egret", "crane (2)"]


def test_classes_have_their_names_in_the_matrix(results):
    html = results(labels=["shirt", "bag", "ankle boot", "coat", "dress"]).to_html()
    assert html.count('<th scope="row" title="ankle boot">ankle boot</th>') == 2  # float32 and INT8
    assert '<th scope="col" title="ankle boot"><span>ankle boot</span></th>' in html


def test_many_classes_show_the_most_confused_pairs(results):
    some = results(classes=20, images=60, changed=21)
    found, more = rank_confusions(
        some.targets, [each.logits.argmax(axis=1) for each in some.variants], some.labels
    )
    assert (found[0].truth, found[0].taken_for, found[0].counts) == ("class 0", "class 1", (0, 2))
    assert len(found) + more == 20
    assert [pair.counts[1] for pair in found] == sorted((pair.counts[1] for pair in found), reverse=True)
    text = Page(some.to_html()).text
    assert "class 0 → class 1 0 2" in text
    assert "10 more pairs, none of them more frequent" in text
