"""The pixels of each image processor that is followed are transformers' own; all others are refused."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.other_libraries import import_torchvision
from vit.pretrained import SourceError
from vit.pretrained.preprocessing import DEFAULTS, PROCESSORS, read_pretrained_cfg, read_processor

EXACT = 0.05  # mean error over the spread of the pixels
CHANGES = {
    "as published": {},
    "a number": {"size": 96},
    "a pair": {"size": {"height": 80, "width": 112}, "do_center_crop": False},
    "an edge": {"size": {"shortest_edge": 96}, "crop_size": {"height": 64, "width": 80}},
    "cut": {"size": {"height": 96, "width": 96}, "do_center_crop": True, "crop_size": 64},
    "another filter": {"resample": 0},
    "plain numbers": {"do_rescale": False, "image_mean": [100.0, 110.0, 120.0], "image_std": [50.0] * 3},
    "another factor": {"rescale_factor": 1 / 127.5},
    "not normalized": {"do_normalize": False},
}
OWN = [
    ("ConvNext", {"size": {"shortest_edge": 96}, "crop_pct": 0.8}),
    ("EfficientNet", {"include_top": False}),
    ("EfficientNet", {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("EfficientNet", {"do_normalize": False, "rescale_offset": True}),
    ("EfficientNet", {"do_rescale": False, "rescale_offset": True}),
    ("MobileNetV2", {"do_reduce_labels": True}),
]


def photo():
    base = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(base).resize((320, 240), Image.Resampling.BICUBIC)


def processor_class(kind):
    try:
        import_torchvision()  # before transformers, which looks for it once
    except ImportError as error:
        pytest.skip(f"{error}")
    transformers = pytest.importorskip("transformers")
    found = getattr(transformers, f"{kind}ImageProcessorPil", None)
    if found is None and not transformers.utils.is_torchvision_available():
        pytest.skip("transformers was imported before torchvision was there")
    return found or getattr(transformers, f"{kind}ImageProcessor")


def distance(kind, changes):
    """Return the mean error over the spread between the pixels here and transformers'; None where refused."""
    made = processor_class(kind)(**changes)
    document = json.loads(made.to_json_string())
    try:
        view = read_processor(document)
    except SourceError:
        return None
    theirs = np.asarray(made(photo(), return_tensors="pt")["pixel_values"][0])
    here = (view.preprocess(photo()) / 255 - np.array(view.mean)) / np.array(view.std)
    here = here.transpose(2, 0, 1)
    if here.shape != theirs.shape:
        return 0.0 if view.assumed else 9.0  # the note says what differs
    return float(np.abs(here - theirs).mean() / theirs.std())


@pytest.mark.parametrize("kind", DEFAULTS)
def test_pixels_are_those_of_transformers(kind):
    pytest.importorskip("torch")
    assert distance(kind, {}) <= EXACT
    for name, changes in CHANGES.items():
        try:
            found = distance(kind, changes)
        except (ValueError, AttributeError, TypeError):  # transformers itself refuses the fields
            continue
        assert found is None or found <= EXACT, name


@pytest.mark.parametrize(("kind", "changes"), OWN)
def test_fields_that_one_type_has_are_followed(kind, changes):
    assert distance(kind, changes) <= EXACT


@pytest.mark.parametrize("ending", ["ImageProcessor", "ImageProcessorFast", "FeatureExtractor"])
@pytest.mark.parametrize("kind", ["CLIP", "Levit", "ConvNext"])
def test_a_lone_number_is_what_the_type_takes_it_for(kind, ending):
    view = read_processor({"image_processor_type": kind + ending, "size": 224, "crop_size": 224})
    assert (view.resize, view.edge) == ("crop", 256 if kind in ("Levit", "ConvNext") else 224)


@pytest.mark.parametrize(
    "kind",
    [
        "PoolFormerImageProcessor",
        "PerceiverImageProcessorFast",
        "MobileViTFeatureExtractor",
        "TextNetImageProcessor",
        "ImageGPTImageProcessor",
        "Siglip2ImageProcessor",
        "MyOwnImageProcessor",
        "VivitImageProcessor",
        7,
    ],
)
def test_types_with_steps_of_their_own_are_refused_by_name(kind):
    with pytest.raises(SourceError, match=f"{kind}.*--preprocess"):
        read_processor({"image_processor_type": kind, "size": {"height": 32, "width": 32}})


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order.*blue, green, red"),
        ({"size_divisor": 32}, "size_divisor"),
        ({"crop_pct": 0.9}, "crop_pct"),
        ({"rescale_offset": True}, "rescale_offset"),
        ({"do_align_long_axis": True}, "do_align_long_axis"),
        ({"use_square_size": True}, "use_square_size"),
        ({"auto_map": {"AutoImageProcessor": "own.Own"}}, "code of its own"),
        ({"resample": -1}, "resample"),
        ({"resample": 2.5}, "resample"),
        ({"resample": True}, "resample"),
        ({"resample": 9}, "resample"),
        ({"do_resize": "false"}, "do_resize"),
        ({"do_resize": False, "do_center_crop": True, "crop_size": 64}, "do_resize.*cut out at its own size"),
        ({"size": "large"}, "size"),
        ({"size": 0}, "size"),
        ({"size": 10**9}, "size"),
        ({"size": [8]}, "size"),
        ({"size": {"height": 8}}, "size"),
        ({"size": {"shortest_edge": -3}}, "shortest_edge"),
        ({"size": {"shortest_edge": 2.5}}, "shortest_edge"),
        ({"image_mean": "half"}, "image_mean"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_mean": [0.5, None, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"image_std": float("nan")}, "image_std"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"rescale_factor": [1]}, "rescale_factor"),
    ],
)
def test_fields_that_no_type_here_has_are_refused_by_name(said, words):
    with pytest.raises(SourceError, match=words):
        read_processor({"image_processor_type": "ViTImageProcessor"} | said)


@pytest.mark.parametrize("said", [{"do_pad": False}, {"crop_pct": None}, {"do_reduce_labels": True}])
def test_fields_that_change_no_pixel_are_let_be(said):
    assert read_processor({"image_processor_type": "ViTImageProcessor"} | said).assumed == ()


def test_a_document_without_a_type_is_read_as_the_models_own():
    assert read_processor({}, "levit").edge == 256
    assert "ViTImageProcessor" in read_processor({}).assumed[0]
    with pytest.raises(SourceError, match="efficientformer"):
        read_processor({"size": 8}, "efficientformer")


def test_model_types_have_the_processors_of_transformers():
    pytest.importorskip("transformers")
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES as theirs

    compared = 0
    for model_type, kind in PROCESSORS.items():
        if found := theirs.get(model_type):
            names = found.values() if isinstance(found, dict) else found
            assert any(str(name).startswith(f"{kind}ImageProcessor") for name in names), model_type
            compared += 1
    assert compared > 20


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"input_size": [4, 8, 8]}, "4 channels"),
        ({"input_size": 8}, "input_size"),
        ({"input_size": [3, 8, -8]}, "input_size"),
        ({"input_size": [3, 10**9, 8]}, "size"),
        ({"crop_pct": 1.5}, "pads"),
        ({"crop_pct": "most"}, "crop_pct"),
        ({"interpolation": "random"}, "interpolation"),
        ({"mean": "text"}, "mean"),
        ({"std": [0.5, 0, 0.5]}, "std"),
        ({"crop_mode": "border"}, "crop_mode"),
    ],
)
def test_what_timm_says_is_followed_or_refused(said, words):
    with pytest.raises(SourceError, match=words):
        read_pretrained_cfg({"input_size": [3, 8, 8]} | said)
