"""Sections of the page, each true to the results."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.measure.clipping import Clipped
from calibration.measure.statistics import Interval
from export.check_results import DriftError, check_limits
from export.measure.limits import NEVER
from export.measure.reliability import Reliability
from export.measure.results import Clipping, Layers
from export.measure.verdict import Judged, Verdict
from export.options import Options
from export.report.classes import class_section
from export.report.conclusion import next_step
from export.report.html import render
from export.report.precision import layers_in_words
from export.report.preprocessing import example, in_words
from export.report.terminal import table
from export.report.thumbnails import MISTAKES, mistaken_images
from export.report.usage import usage
from runtime.images.preprocess import Preprocess
from runtime.model_file.artifact import MAX_BYTES
from tools.html_page import Page
from vit.page.template import TERMS, used_terms


def limit(**changes) -> Judged:
    fields = {"variant": "int8", "limit": "--max-drift", "bound": 0.5, "found": 0.12, "status": "met"}
    fields["interval"] = Interval(0.05, 0.2)
    return Judged(**{**fields, "text": "0.12 of 0.5 points of top-1 lost", **changes})


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        (Verdict(), "Limits no limit was set"),
        (Verdict((limit(),), True), "Limits met: 0.12 of 0.5 points of top-1 lost"),
        (
            Verdict((limit(doubt="60 are few", status="not judged"),), True),
            "Limits cannot be judged: 60 are few",
        ),
    ],
)
def test_the_verdict_is_the_first_thing_under_the_title_then_the_warnings(results, verdict, line):
    page = Page(render(replace(results(), verdict=verdict, warnings=("images are alike", "few images"))))
    assert page.flaws() == []
    start = "vit-edge export report flowers, measured on other photos "
    assert page.text.startswith(f"{start}{line} What to do now ")
    assert " Before you believe the figures images are alike few images INT8 is " in page.text
    assert "Before you believe" not in Page(render(results())).text


def test_the_title_names_model_and_data(results):
    assert "<title>flowers on other photos: float32, INT8</title>" in render(results())


def test_every_class_is_shown_where_they_are_few(results):
    text = Page(render(results())).text
    assert "class images float32 INT8 class 0 12 100.0 % 91.7 % class 1 12 100.0 % 91.7 %" in text
    assert "Images per class: 12; one mistake is 8.33 points." in text


def test_of_many_classes_the_worst_are_shown_and_the_rest_is_counted(results):
    some = results(classes=30, images=60, changed=7)
    found = class_section(replace(some, labels=(*some.labels, "never seen")))
    assert [label for label, _, _ in found["rows"]][:7] == [f"class {i}" for i in range(7)]
    assert len(found["rows"]) == 10
    assert found["rows"][0] == ("class 0", 2, ["100.0 %", "50.0 %"])
    assert "20 more classes are not shown" in found["note"]
    assert "1 of the model's 31 classes have no image here" in found["note"]
    assert class_section(results(labeled=False)) is None


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
    words = " ".join(in_words(preprocess))
    assert expected in words
    assert ("Cut out the middle 224 × 224 pixels." in words) == (
        preprocess.resize == "crop" or preprocess.resize_to is not None
    )
    assert "EXIF" in words
    assert "EXIF" not in " ".join(in_words(replace(preprocess, exif=False)))
    assert "1/8" not in " ".join(in_words(replace(preprocess, decode="full")))


def test_one_image_is_shown_before_and_after_preprocessing(results, tmp_path: Path):
    broken, photo = tmp_path / "broken.jpg", tmp_path / "photo.png"
    broken.write_bytes(b"no image")
    Image.new("RGB", (300, 200), (200, 30, 30)).save(photo)
    some = results(items=[broken, *[photo] * 59])
    found = example(some)
    assert found.before_size == "300 × 200 pixels"
    assert found.after_size == "32 × 32 pixels"
    assert found.name.endswith("photo.png")
    assert str(tmp_path) not in found.name
    assert example(results(items=[broken] * 60)) is None
    page = Page(render(some))
    assert "before: 300 x 200 pixels as the model sees it: 32 x 32 pixels" in page.text
    assert any("as the model sees it" in image["alt"] for image in page.images)


def test_health_of_the_calibration(results):
    layers = {"blocks.0.mlp.fc1": Clipped(0.03, (1,)), "head": Clipped(0.0, ())}
    text = Page(render(replace(results(), clipping=Clipping(16, layers)))).text
    assert "The ranges of INT8 come from 128 images of photos" in text
    assert "On 16 evaluation images, 1.50 % of the activations of a layer are clipped on average" in text
    assert "1 of the layers are beyond the limit of 0.10 %" in text
    assert "blocks.0.mlp.fc1 3.00 %" in text
    fine = replace(results(), clipping=Clipping(16, {"head": Clipped(0.0005, (1,))}))
    assert "No layer is beyond the limit of 0.10 %" in Page(render(fine)).text
    assert "was not measured, since tokens are merged" in Page(render(results())).text
    assert "Calibration The ranges" not in Page(render(results(variants=()))).text
    given = replace(results(), calibration={"plan": "plan.json", "target": "any-cpu"})
    assert "Nothing was calibrated: the ranges are those of plan.json." in Page(render(given)).text


def test_scores_before_and_after_the_temperature(results):
    found = Reliability(0.5, 60, {"float32": 0.1, "int8": 0.12}, {"float32": 0.02, "int8": 0.03})
    text = Page(render(replace(results(), reliability=found))).text
    assert "A temperature of 0.5 makes the scores mean what they say" in text
    assert "on 60 images, each half of them with the temperature that the other half gives" in text
    assert "without temperature with it float32 10.0 % 2.0 % INT8 12.0 % 3.0 %" in text


def test_use_this_file_names_the_best_file(results):
    assert usage(results()).file == "model.int8.onnx"
    assert usage(results(variants=("float16",))).file == "model.float32.onnx"
    assert len(usage(results()).python.splitlines()) == 3
    some = results(variants=())
    large = replace(some, variants=(replace(some.variants[0], bytes=MAX_BYTES + 1),))
    assert usage(large).python.startswith("from runtime import Classifier")
    assert "Its weights are in model.float32.onnx.*.data , which must stay" in Page(render(large)).text
    assert "must stay" not in Page(render(some)).text


def test_every_term_on_the_page_is_explained_in_one_line(results):
    page = Page(render(results(variants=("float16", "int8"))))
    listed = re.sub(r".* Words on this page ", "", page.text)
    names = [term.name for term in used_terms(page.text)]
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
    both = replace(some, targets=targets, images=images)
    assert {each.variant: both.to_dict()["models"][each.variant]["top1"] for each in both.variants} == {
        "float32": 100.0,
        "int8": 100.0,
    }
    assert [(each.index, each.images, each.right["int8"]) for each in both.classes()] == [
        (0, 24, 24), (1, 12, 12), (2, 12, 12), (4, 12, 12),
    ]  # fmt: skip
    assert set(both.given(both.variants[0])[logits.argmax(axis=1) == 3]) == {0}
    text = Page(render(both)).text
    assert "No image is taken for another" in text or "crane 24" in text


FEW = limit(
    status="not judged", doubt="60 images cannot show it; it takes about 1,004 images", images_needed=1004
)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        (
            {},
            "ship model.int8.onnx if this drift is small enough for you; --max-drift POINTS ",
        ),
        ({"verdict": Verdict((limit(),), True)}, "ship model.int8.onnx"),
        (
            {"verdict": Verdict((limit(),), True), "warnings": ("images are alike",)},
            "read the warnings; if none matters to you, ship model.int8.onnx",
        ),
        (
            {"verdict": Verdict((FEW,), True)},
            "bring about 950 more images with known classes to measure on (--evaluate), and export again; "
            "until then look at the 3 images that INT8 labels otherwise",
        ),
        (
            {"verdict": Verdict((limit(status="not judged", doubt="it knows them"),), True)},
            "measure on images that can show it (--evaluate IMAGES), and export again; until then ",
        ),
        (
            {"verdict": Verdict((limit(status="not judged", doubt=f"60 are few; {NEVER}"),), True)},
            "set a wider limit, which some number of images can show; until then ",
        ),
    ],
)
def test_one_line_says_what_to_do_now(results, changes: dict, step: str) -> None:
    some = replace(results(), **changes)
    assert next_step(some).startswith(step)
    assert f"What to do now {step}" in Page(render(some)).text
    terminal = table(some, Path("artifacts/flowers"))
    (line,) = [line for line in terminal.splitlines() if line.startswith("next: ")]
    assert line.startswith("next: " + step.replace("ship ", f"ship {Path('artifacts/flowers')}{os.sep}"))


def test_what_the_verdict_says_is_no_warning_again(results) -> None:
    both = replace(results(), verdict=Verdict((FEW,), True), warnings=(FEW.doubt, "images are alike"))
    for text in (Page(render(both)).text, table(both, Path("out"))):
        assert text.count("60 images cannot show it") == 1
        assert text.count("images are alike") == 1


def test_images_that_changed_are_named_where_the_limit_cannot_be_judged(results) -> None:
    open_limit = table(replace(results(), verdict=Verdict((FEW,), True)), Path("out"))
    assert re.search(r"^changed by int8: 3 images: .*image \d+ \(class 0 → class 1\)", open_limit, re.M)
    assert "changed by" not in table(results(), Path("out"))


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (Layers(int8_linears=69, float_linears=tuple("abcdefghijklmnopqrstuvwxyz"), int8_products=0,
                float_products=tuple("12")),
         "95 linear layers, 69 in INT8 (all in integer kernels), 26 stay float32: a, b, c and 23 more; "
         "2 attention products, all in float32"),
        (Layers(int8_linears=4, float_linears=(), int8_products=3, float_products=("s",)),
         "4 linear layers, all in INT8 and in integer kernels; 4 attention products, 3 in INT8 (all in "
         "integer kernels), 1 stays float32: s"),
        (Layers(int8_linears=1, float_linears=(), int8_products=0, float_products=()),
         "1 linear layer, all in INT8 and in integer kernels"),
    ],
)  # fmt: skip
def test_one_sentence_adds_up_the_layers(results, layers: Layers, sentence: str) -> None:
    assert layers_in_words(layers) == sentence
    some = replace(results(), layers=layers)
    assert f"\nint8: {sentence}\n" in table(some, Path("out"))
    assert f"INT8: {sentence}." in Page(render(some)).text
    document = some.to_dict()
    counts = {"int8": layers.int8_linears, "float32": len(layers.float_linears)}
    assert document["layers"]["linears"] == counts
    assert document["float_layers"] == [*layers.float_linears, *layers.float_products]


def test_images_that_float32_gets_wrong_are_shown_and_counted(results) -> None:
    evil = "<b>evil</b>"
    some = results(classes=5, images=60, changed=0, labels=[evil, "b", "c", "d", "e"])
    targets = some.targets.copy()
    targets[:20] = (targets[:20] + 1) % 5
    wrong = replace(some, targets=targets, images=replace(some.images, targets=targets))
    shown, count = mistaken_images(wrong)
    assert (len(shown), count) == (MISTAKES, 20)
    assert [len(each.guesses) for each in shown] == [1] * MISTAKES
    assert not any(each.guesses[0].right for each in shown)
    scores = [each.guesses[0].score for each in shown]
    assert scores == sorted(scores, reverse=True)
    html = render(wrong)
    assert "Images that float32 gets wrong 20 of 60, the 12 that it was surest of." in Page(html).text
    assert evil not in html
    for none in (some, results(labeled=False)):
        assert mistaken_images(none) == ([], 0)
        assert "float32 gets wrong" not in Page(render(none)).text


def test_the_source_of_the_weights_is_told(results) -> None:
    source = {"checkpoint": "m.safetensors", "trained_on": "photos/train", "trained_from": "base"}
    text = Page(render(replace(results(), source=source))).text
    assert "Model: file m.safetensors, trained on photos/train, fine-tuned from base." in text


def test_technical_details_are_folded(results) -> None:
    html = render(results())
    folded = re.findall(r"<details>\s*<summary>(.*?)</summary>", html)
    assert folded == [
        "Calibration",
        "INT8, layer by layer",
        "What ONNX Runtime runs for INT8",
        "Rewrites of the exported graph",
        "Run, model, images and machine",
    ]


@pytest.mark.parametrize(("after", "helps"), [(0.05, True), (0.1, False), (0.2, False)])
def test_a_temperature_is_praised_only_where_it_helps(results, after: float, helps: bool) -> None:
    found = Reliability(1.3, 60, {"float32": 0.1, "int8": 0.1}, {"float32": 0.02, "int8": after})
    text = Page(render(replace(results(), reliability=found))).text
    assert ("makes the scores mean what they say" in text) == helps
    assert ("did not lower the error of the scores on these images" in text) != helps


@pytest.mark.parametrize(("changed", "missed"), [(0, False), (1, False), (3, False), (12, True)])
def test_a_limit_on_few_images_fails_only_where_chance_is_no_excuse(results, changed, missed) -> None:
    """60 images: one label is 1.67 points."""
    some, options = results(changed=changed), Options(max_drift=0.5)
    if missed:
        with pytest.raises(
            DriftError, match=r"top-1 falls by 20\.00 points, 95 % interval 11\.\d+ to 31\.\d+ "
        ):
            check_limits(some, options)
    else:
        check_limits(some, options)
    with pytest.raises(DriftError, match=r"SQNR is \S+ dB, 95 % interval .*Nothing was written"):
        check_limits(results(changed=12), Options(min_sqnr=99.0))
