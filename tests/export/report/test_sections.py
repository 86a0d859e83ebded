"""Sections of the page, each true to the results."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.measure.per_layer import LayerClipping
from calibration.measure.statistics import Interval
from calibration.search import Budget
from export.check_results import DriftError, check_limits
from export.measure.limits import NEVER, LimitResult
from export.report.changed_images import MOST_MISTAKES, ChangedImages, list_mistakes
from export.report.classes import Classes, measure_classes
from export.report.comparison import Comparison
from export.report.conclusion import Conclusion, Usage, judge_limits
from export.report.evidence import Clipping, Evidence, EvidenceWarning
from export.report.node_placement import NodePlacement
from export.report.preprocessing import describe_steps, make_example
from export.report.quantized_layers import LayerCounts, QuantizedLayers
from export.report.reliability import Reliability
from export.report.section import Results
from runtime.images.preprocess import Preprocess
from runtime.model_file.artifact import MAX_BYTES
from tests.support.html_page import Page
from vit.page.template import TERMS, find_terms

EVIDENCE = Evidence(calibration={"source": "photos", "images": 128, "target": "any-cpu"})


def warn(*sentences: str) -> Evidence:
    """The evidence of the fixture with some warnings."""
    return replace(EVIDENCE, warnings=tuple(map(EvidenceWarning, sentences)))


def use(results) -> dict:
    return Usage().context(results)


def limit(**changes) -> LimitResult:
    fields = {"variant": "int8", "limit": "--max-drift", "bound": 0.5, "found": 0.12, "status": "met"}
    fields["interval"] = Interval(0.05, 0.2)
    return LimitResult(**{**fields, "text": "0.12 of 0.5 points of top-1 lost", **changes})


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        (Conclusion(), "Limits no limit was set"),
        (Conclusion((limit(),), True), "Limits met: 0.12 of 0.5 points of top-1 lost"),
        (
            Conclusion((limit(doubt="60 are few", status="not judged"),), True),
            "Limits cannot be judged: 60 are few",
        ),
    ],
)
def test_the_verdict_is_the_first_thing_under_the_title_then_the_warnings(results, put, verdict, line):
    page = Page(put(results(), verdict, warn("images are alike", "few images")).to_html())
    assert page.flaws() == []
    start = "vit-edge export report flowers, measured on other photos "
    assert page.text.startswith(f"{start}{line} What to do now ")
    assert " Before you believe the figures images are alike few images INT8 is " in page.text
    assert "Before you believe" not in Page(results().to_html()).text


def test_the_title_names_model_and_data(results):
    assert "<title>flowers on other photos: float32, INT8</title>" in results().to_html()


def test_every_class_is_shown_where_they_are_few(results):
    text = Page(results().to_html()).text
    assert "class images float32 INT8 class 0 12 100.0 % 91.7 % class 1 12 100.0 % 91.7 %" in text
    assert "Images per class: 12; one mistake is 8.33 points." in text


def test_of_many_classes_the_worst_are_shown_and_the_rest_is_counted(results):
    some = results(classes=30, images=60, changed=7)
    more = replace(some, labels=(*some.labels, "never seen"))
    found = Classes().context(more)
    assert [label for label, _, _ in found["rows"]][:7] == [f"class {i}" for i in range(7)]
    assert len(found["rows"]) == 10
    assert found["rows"][0] == ("class 0", 2, {"float32": 100.0, "int8": 50.0})
    text = Page(more.to_html()).text
    assert "20 more classes are not shown" in text
    assert "1 of the model's 31 classes have no image here" in text
    assert Classes().context(results(labeled=False)) is None


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        (Preprocess(size=(24, 32)), "Stretch it to 32 × 24 pixels, whatever its shape (bilinear"),
        (
            Preprocess(resize="crop", resize_to=256, interpolation="bicubic"),
            "Scale it until its shorter edge has 256 pixels, keeping its shape (bicubic",
        ),
        (Preprocess(resize="crop"), "Scale it until it just covers 224 × 224 pixels, keeping its shape"),
        (Preprocess(resize_to=(256, 240)), "Stretch it to 240 × 256 pixels, whatever its shape"),
        (Preprocess(interpolation="nearest"), "each pixel is taken from the nearest one"),
    ],
)
def test_preprocessing_in_words(preprocess, expected):
    words = " ".join(describe_steps(preprocess))
    assert expected in words
    assert ("Cut out the middle 224 × 224 pixels." in words) == (
        preprocess.resize == "crop" or preprocess.resize_to is not None
    )
    assert "EXIF" in words
    assert "EXIF" not in " ".join(describe_steps(replace(preprocess, exif=False)))
    assert "1/8" not in " ".join(describe_steps(replace(preprocess, decode="full")))


def test_one_image_is_shown_before_and_after_preprocessing(results, tmp_path: Path):
    broken, photo = tmp_path / "broken.jpg", tmp_path / "photo.png"
    broken.write_bytes(b"no image")
    Image.new("RGB", (300, 200), (200, 30, 30)).save(photo)
    some = results(items=[broken, *[photo] * 59])
    found = make_example(some)
    assert found["before_size"] == "300 × 200 pixels"
    assert found["after_size"] == "32 × 32 pixels"
    assert found["name"].endswith("photo.png")
    assert str(tmp_path) not in found["name"]
    assert make_example(results(items=[broken] * 60)) is None
    page = Page(some.to_html())
    assert "before: 300 x 200 pixels as the model sees it: 32 x 32 pixels" in page.text
    assert any("as the model sees it" in image["alt"] for image in page.images)


def test_health_of_the_calibration(results, put):
    layers = {"blocks.0.mlp.fc1": LayerClipping(0.03, (1,)), "head": LayerClipping(0.0, ())}
    text = Page(put(results(), replace(EVIDENCE, clipping=Clipping(16, layers))).to_html()).text
    assert "The ranges of INT8 come from 128 images of photos" in text
    assert "On 16 evaluation images, 1.50 % of the activations of a layer are clipped on average" in text
    assert "1 of the layers are beyond the limit of 0.10 %" in text
    assert "blocks.0.mlp.fc1 3.00 %" in text
    fine = put(results(), replace(EVIDENCE, clipping=Clipping(16, {"head": LayerClipping(0.0005, (1,))})))
    assert "No layer is beyond the limit of 0.10 %" in Page(fine.to_html()).text
    assert "was not measured, since tokens are merged" in Page(results().to_html()).text
    assert "Calibration The ranges" not in Page(results(variants=()).to_html()).text
    given = put(results(), Evidence(calibration={"plan": "plan.json", "target": "any-cpu"}))
    assert "Nothing was calibrated: the ranges are those of plan.json." in Page(given.to_html()).text


def test_scores_before_and_after_the_temperature(results, put):
    found = Reliability(0.5, 60, {"float32": 0.1, "int8": 0.12}, {"float32": 0.02, "int8": 0.03})
    text = Page(put(results(), found).to_html()).text
    assert "A temperature of 0.5 makes the scores mean what they say" in text
    assert "on 60 images, each half of them with the temperature that the other half gives" in text
    assert "without temperature with it float32 10.0 % 2.0 % INT8 12.0 % 3.0 %" in text


def test_use_this_file_names_the_best_file(results):
    assert use(results())["file"] == "model.int8.onnx"
    assert use(results(variants=("float16",)))["file"] == "model.float32.onnx"
    assert len(use(results())["python"].splitlines()) == 3
    some = results(variants=())
    large = replace(some, variants=(replace(some.variants[0], bytes=MAX_BYTES + 1),))
    assert use(large)["python"].startswith("from runtime import Classifier")
    assert "Its weights are in model.float32.onnx.*.data , which must stay" in Page(large.to_html()).text
    assert "must stay" not in Page(some.to_html()).text


def test_every_term_on_the_page_is_explained_in_one_line(results):
    page = Page(results(variants=("float16", "int8")).to_html())
    listed = re.sub(r".* Words on this page ", "", page.text)
    names = [term.name for term in find_terms(page.text)]
    assert {"float32", "FP16", "INT8", "top-1", "95 % interval", "signal to noise", "logit"} <= set(names)
    assert all(name in listed for name in names)
    assert "temperature" not in names
    assert all(len(term.meaning) <= 120 and "\n" not in term.meaning for term in TERMS)
    assert len({term.name for term in TERMS}) == len(TERMS)


def contrast(first: str, second: str) -> float:
    """WCAG's ratio of two colors, each "#rrggbb" or "#rgb"."""

    def luminance(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        linear = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
        linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_words_can_be_read_on_light_and_dark_screens(root: Path):
    css = (root / "vit" / "page" / "page.css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    assert len(themes) == 2
    for theme in themes:
        for ink in ("ink", "soft", "right", "wrong", "int8"):
            for ground in ("paper", "card"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground, theme[ink], theme[ground])


def test_either_of_two_classes_of_one_name_is_right_everywhere_on_the_page(results):
    """The float model calls half of the cranes by the other class of that name."""
    some = results(labels=["crane", "cat", "dog", "crane", "egret"], changed=0)
    logits = some.variants[0].logits
    same_name = np.array([0, 1, 2, 0, 4])
    targets = same_name[some.targets]
    images = replace(some.images, targets=targets, same_name=same_name)
    both = replace(some, images=images)
    assert {each.variant: both.to_dict()["models"][each.variant]["top1"] for each in both.variants} == {
        "float32": 100.0,
        "int8": 100.0,
    }
    assert [(each.index, each.images, each.share["int8"]) for each in measure_classes(both)] == [
        (0, 24, 100), (1, 12, 100), (2, 12, 100), (4, 12, 100),
    ]  # fmt: skip
    assert set(both.settle_answers(both.variants[0])[logits.argmax(axis=1) == 3]) == {0}
    text = Page(both.to_html()).text
    assert "No image is taken for another" in text or "crane 24" in text


FEW = limit(
    status="not judged", doubt="60 images cannot show it; it takes about 1,004 images", images_needed=1004
)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        (
            (),
            "ship model.int8.onnx if this drift is small enough for you; --max-drift POINTS ",
        ),
        ((Conclusion((limit(),), True),), "ship model.int8.onnx"),
        (
            (Conclusion((limit(),), True), warn("images are alike")),
            "read the warnings; if none matters to you, ship model.int8.onnx",
        ),
        (
            (Conclusion((FEW,), True),),
            "bring about 950 more images with known classes to measure on (--evaluate), and export again; "
            "until then look at the 3 images that INT8 labels otherwise",
        ),
        (
            (Conclusion((limit(status="not judged", doubt="it knows them"),), True), warn("it knows them")),
            "measure on images that can show it (--evaluate IMAGES), and export again; until then ",
        ),
        (
            (Conclusion((limit(status="not judged", doubt=f"60 are few; {NEVER}"),), True),),
            "set a wider limit, which some number of images can show; until then ",
        ),
    ],
)
def test_one_line_says_what_to_do_now(results, put, changes: tuple, step: str) -> None:
    some = put(results(), *changes)
    assert some.get(Conclusion).next_step(some).startswith(step)
    assert f"What to do now {step}" in Page(some.to_html()).text
    terminal = some.to_text(Path("artifacts/flowers"))
    (line,) = [line for line in terminal.splitlines() if line.startswith("next: ")]
    assert line.startswith("next: " + step.replace("ship ", f"ship {Path('artifacts/flowers')}{os.sep}"))


def test_what_the_verdict_says_is_no_warning_again(results, put) -> None:
    both = put(results(), Conclusion((FEW,), True), warn(FEW.doubt, "images are alike"))
    for text in (Page(both.to_html()).text, both.to_text(Path("out"))):
        assert text.count("60 images cannot show it") == 1
        assert text.count("images are alike") == 1


def test_images_that_changed_are_named_where_the_limit_cannot_be_judged(results, put) -> None:
    open_limit = put(results(), Conclusion((FEW,), True)).to_text(Path("out"))
    assert re.search(r"^changed by int8: 3 images: .*image \d+ \(class 0 → class 1\)", open_limit, re.M)
    assert "changed by" not in results().to_text(Path("out"))


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (LayerCounts(int8_linears=69, float_linears=tuple("abcdefghijklmnopqrstuvwxyz"), int8_products=0,
                float_products=tuple("12")),
         "95 linear layers, 69 in INT8 (all in integer kernels), 26 stay float32: a, b, c and 23 more; "
         "2 attention products, all in float32"),
        (LayerCounts(int8_linears=4, float_linears=(), int8_products=3, float_products=("s",)),
         "4 linear layers, all in INT8 and in integer kernels; 4 attention products, 3 in INT8 (all in "
         "integer kernels), 1 stays float32: s"),
        (LayerCounts(int8_linears=1, float_linears=(), int8_products=0, float_products=()),
         "1 linear layer, all in INT8 and in integer kernels"),
    ],
)  # fmt: skip
def test_one_sentence_adds_up_the_layers(results, put, layers: LayerCounts, sentence: str) -> None:
    assert layers.to_text() == sentence
    some = put(results(), replace(results().get(QuantizedLayers), counts=layers))
    assert f"\nint8: {sentence}\n" in some.to_text(Path("out"))
    assert f"INT8: {sentence}." in Page(some.to_html()).text
    document = some.to_dict()
    counts = {"int8": layers.int8_linears, "float32": len(layers.float_linears)}
    assert document["layers"]["linears"] == counts
    assert document["float_layers"] == [*layers.float_linears, *layers.float_products]


def test_images_that_float32_gets_wrong_are_shown_and_counted(results) -> None:
    evil = "<b>evil</b>"
    some = results(classes=5, images=60, changed=0, labels=[evil, "b", "c", "d", "e"])
    targets = some.targets.copy()
    targets[:20] = (targets[:20] + 1) % 5
    wrong = replace(some, images=replace(some.images, targets=targets))
    found = ChangedImages().context(wrong)
    shown = found["mistake_cards"]
    assert (len(shown), found["mistakes"]) == (MOST_MISTAKES, 20)
    assert [len(each["guesses"]) for each in shown] == [1] * MOST_MISTAKES
    assert not any(each["guesses"][0]["right"] for each in shown)
    scores = [each["guesses"][0]["score"] for each in shown]
    assert scores == sorted(scores, reverse=True)
    html = wrong.to_html()
    assert "Images that float32 gets wrong 20 of 60, the 12 that it was surest of." in Page(html).text
    assert evil not in html
    for none in (some, results(labeled=False)):
        assert list_mistakes(none) == []
        assert "float32 gets wrong" not in Page(none.to_html()).text


def test_the_source_of_the_weights_is_told(results) -> None:
    source = {"checkpoint": "m.safetensors", "trained_on": "photos/train", "trained_from": "base"}
    text = Page(replace(results(), source=source).to_html()).text
    assert "Model: file m.safetensors, trained on photos/train, fine-tuned from base." in text


def test_technical_details_are_folded(results) -> None:
    html = results().to_html()
    folded = re.findall(r"<details>\s*<summary>(.*?)</summary>", html)
    assert folded == [
        "Calibration",
        "INT8, layer by layer",
        "What ONNX Runtime runs for INT8",
        "Where it ran",
        "Rewrites of the exported graph",
        "Run, model, images and machine",
    ]


@pytest.mark.parametrize(("after", "helps"), [(0.05, True), (0.1, False), (0.2, False)])
def test_a_temperature_is_praised_only_where_it_helps(results, put, after: float, helps: bool) -> None:
    found = Reliability(1.3, 60, {"float32": 0.1, "int8": 0.1}, {"float32": 0.02, "int8": after})
    text = Page(put(results(), found).to_html()).text
    assert ("makes the scores mean what they say" in text) == helps
    assert ("did not lower the error of the scores on these images" in text) != helps


@pytest.mark.parametrize(("changed", "missed"), [(0, False), (1, False), (3, False), (12, True)])
def test_a_limit_on_few_images_fails_only_where_chance_is_no_excuse(results, put, changed, missed) -> None:
    """60 images: one label is 1.67 points."""

    def judged(count: int, **limits) -> Results:
        some = results(changed=count)
        comparison = some.get(Comparison)
        return put(some, judge_limits({"int8": Budget(**limits)}, comparison.drifts, sqnr=comparison.sqnr))

    some = judged(changed, max_drift=0.5)
    if missed:
        with pytest.raises(
            DriftError, match=r"top-1 falls by 20\.00 points, 95 % interval 11\.\d+ to 31\.\d+ "
        ):
            check_limits(some)
    else:
        check_limits(some)
    with pytest.raises(DriftError, match=r"SQNR is \S+ dB, 95 % interval .*No model file was written"):
        check_limits(judged(12, min_sqnr=99.0))


def test_only_int8_has_a_sentence_on_its_layers(results) -> None:
    text = Page(results(variants=("float16", "int8")).to_html()).text
    assert "INT8: 19 linear layers, 18 in INT8" in text
    assert "FP16: 19 linear layers" not in text


def test_the_report_says_where_each_variant_ran(results, put) -> None:
    made = results()
    text = "cpu 108 nodes, 100.0 % of the multiply-adds; 0.00123 billion multiply-adds per image"
    assert made.to_text(Path("out")).count(f" ran on {text}") == 2
    assert f"INT8 {text}" in " ".join(" ".join(Page(made.to_html()).words).split())
    assert made.to_dict()["models"]["int8"]["multiply_adds"] == 1_234_567
    assert made.to_dict()["models"]["int8"]["placement"]["parts"][0]["operators"] == {"Gemm": 2, "Add": 106}
    placement = made.get(NodePlacement)
    assert placement.metadata("int8") == {"multiply_adds": {"fc1": 1_200_000, "fc2": 34_567}}
    unknown = put(made, replace(placement, placement={"float32": None, "int8": None}))
    assert "int8 ran on unknown: onnxruntime 1.24 or newer says it" in unknown.to_text(Path("out"))
    assert unknown.to_dict()["models"]["int8"]["placement"] is None
