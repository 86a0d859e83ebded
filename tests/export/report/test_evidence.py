"""Warnings about the evidence of an export: one for each case, and none for sound evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from calibration.measure.per_layer import LayerClipping, find_clipped, measure_clipping
from calibration.plan import Range
from calibration.quantize_model import quantize
from export.report.evidence import find_evidence_warnings
from vit.data.datasets import Images
from vit.data.training_images import digest_images


def images(count: int, *, name: str = "photos", seed: int = 0) -> Images:
    random = np.random.default_rng(seed)
    items = [random.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(count)]
    return Images(items, np.arange(count) % 4, tuple("abcd"), name)


@dataclass(frozen=True)
class Case:
    """Arguments of `find_evidence_warnings`."""

    evaluation: Images
    logits: np.ndarray
    search: Images | None = None
    trained_on: frozenset[str] = frozenset()
    clipped: Mapping[str, LayerClipping] = field(
        default_factory=lambda: {"head": LayerClipping(0.0001, (3,))}
    )


@pytest.fixture
def sound() -> Case:
    """A float model that is right on 90 of 100 images."""
    evaluation = images(100)
    guesses = evaluation.targets.copy()  # type: ignore[union-attr]
    guesses[::10] = (guesses[::10] + 2) % 4
    return Case(evaluation, np.eye(4, dtype=np.float32)[guesses])


PIXELS = [np.asarray(item) for item in images(20, seed=1).items]


def warnings(case: Case, pixels: Sequence[np.ndarray] = PIXELS) -> tuple[str, ...]:
    """The sentences alone."""
    found = find_evidence_warnings(
        case.evaluation,
        case.search,
        tuple("abcd"),
        case.logits,
        trained_on=case.trained_on,
        clipped=case.clipped,
        pixels=pixels,
    )
    return tuple(each.sentence for each in found)


def test_sound_evidence_raises_no_doubt(sound: Case) -> None:
    assert warnings(sound) == ()


@pytest.mark.parametrize("difference", [0, 3])
def test_calibration_images_that_are_all_alike(sound: Case, difference: int) -> None:
    same = [np.clip(PIXELS[0].astype(int) + difference * (i % 2), 0, 255).astype(np.uint8) for i in range(9)]
    (sentence,) = warnings(sound, same)
    assert sentence.startswith("the calibration images are all alike (mean difference ")


def test_activations_beyond_what_calibration_saw(sound: Case) -> None:
    clipped = {
        "a": LayerClipping(0.002, (1,)),
        "blocks.1.fc2": LayerClipping(0.03, (7, 5)),
        "head": LayerClipping(0.0, ()),
    }
    (sentence,) = warnings(replace(sound, clipped=clipped))
    assert "in 2 layers (limit: 0.1 % of the activations), most in blocks.1.fc2 (3.00 %; images: " in sentence
    assert "image 7" in sentence


@pytest.mark.parametrize("shift", [1, -1])
def test_labels_that_are_shifted_by_one(sound: Case, shift: int) -> None:
    evaluation = replace(sound.evaluation, targets=np.arange(100) % 2 + 1)
    guesses = np.asarray(evaluation.targets) + shift
    logits = np.eye(4, dtype=np.float32)[guesses]
    wrong = replace(sound, evaluation=evaluation, logits=logits)
    (sentence,) = warnings(wrong)
    assert (
        "the float model itself is right on 0.0 % of the images, no better than chance (25.0 %)" in sentence
    )
    assert f"with class indices shifted by {shift:+d} it is 100.0 %" in sentence


def test_a_model_that_guesses(sound: Case) -> None:
    logits = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    (sentence,) = warnings(replace(sound, logits=logits))
    assert "no better than chance" in sentence
    assert "shifted by" not in sentence


def test_images_that_the_model_was_trained_on(sound: Case, tmp_path: Path) -> None:
    known = frozenset(digest_images(sound.evaluation.subset(range(7))))
    (sentence,) = warnings(replace(sound, trained_on=known))
    assert sentence.startswith("the model was trained on 7 of the 100 images measured on, ")
    file = tmp_path / "renamed.png"
    file.write_bytes(b"bytes of an image")
    copy = tmp_path / "copy.png"
    copy.write_bytes(b"bytes of an image")
    search = Images([file], None, None, "elsewhere")
    (sentence,) = warnings(
        replace(sound, search=search, trained_on=frozenset(digest_images(replace(search, items=[copy])))),
    )
    assert sentence.startswith("the model was trained on 1 of the 1 image searched on, ")


def test_a_folder_that_is_called_train(sound: Case) -> None:
    evaluation = replace(sound.evaluation, name="/data/flowers/Train")
    (sentence,) = warnings(replace(sound, evaluation=evaluation))
    # the rest of the path is private
    assert sentence.startswith("the images measured on lie in flowers/Train")


def test_what_is_wrong_with_both_sets_of_images_is_said_once(sound: Case) -> None:
    training = replace(sound.evaluation, name="/data/flowers/train")
    both = replace(sound, evaluation=training, search=images(9, name="/data/flowers/train", seed=2))
    (sentence,) = warnings(both)
    assert sentence.startswith("the images measured on and searched on lie in flowers/train: if ")
    known = frozenset(
        {*digest_images(sound.evaluation.subset(range(7))), *digest_images(both.search.subset(range(2)))}
    )  # type: ignore[union-attr]
    (sentence,) = warnings(replace(both, trained_on=known))
    assert sentence.startswith(
        "the model was trained on 7 of the 100 images measured on and 2 of the 9 images searched on, so "
    )


def test_digests_tell_images_apart_and_find_them_again(tmp_path: Path) -> None:
    found = digest_images(images(5))
    assert len(set(found)) == 5
    assert found == digest_images(images(5, name="other"))
    assert digest_images(Images([tmp_path / "gone.png"], None, None, "x")) == [""]


def test_activations_are_counted_against_the_ranges_of_the_plan(canonical, models) -> None:
    """Calibrated on dim images, measured on bright ones, then on the same ones."""
    random = np.random.default_rng(0)
    config = models["plain"].config
    dim = random.integers(118, 138, (12, *config.image_size, 3), dtype=np.uint8)
    bright = random.integers(0, 256, (4, *config.image_size, 3), dtype=np.uint8)
    graph: ir.Model = canonical["plain"]
    plan = quantize(graph, [dim], target="any-cpu").plan
    same, other = (measure_clipping(graph, plan, [batch]) for batch in (dim, bright))
    assert set(same) == set(other)
    assert same
    assert all(0 <= each.share <= 1 for each in other.values())
    assert max(each.share for each in other.values()) > 3 * max(each.share for each in same.values())
    worst = max(other.values(), key=lambda each: each.share)
    assert worst.images
    assert set(worst.images) <= set(range(4))


def test_values_at_the_minimum_of_gelu_are_not_beyond_a_range_that_ends_half_a_step_above_it() -> None:
    chosen = Range(scale=0.02263, zero_point=7)  # from -0.158 to 5.61, as found in a DINOv2
    values = np.array([-0.17004, -0.15, 0.0, 5.6, 5.62], np.float32)
    assert not find_clipped(values, chosen).any()
    assert find_clipped(np.array([-0.19, 5.65, 48.0], np.float32), chosen).all()


def test_classes_of_one_name_are_told_and_are_no_chance(sound: Case) -> None:
    """Every answer is of the other class of the true name."""
    evaluation = replace(
        sound.evaluation,
        targets=np.arange(100) % 2,
        labels=("a", "b", "a", "b"),
        same_name=np.array([0, 1, 0, 1]),
    )
    logits = np.eye(4, dtype=np.float32)[np.arange(100) % 2 + 2]
    both = replace(sound, evaluation=evaluation, logits=logits)
    (sentence,) = warnings(both)
    assert sentence.startswith("several classes of the model have one name: 'a' (0, 2), 'b' (1, 3); ")
