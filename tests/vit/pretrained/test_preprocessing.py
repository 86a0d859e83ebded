"""The preprocessing that a source describes is followed, or a note says that it is not."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.other_libraries import import_timm
from runtime.images.preprocess import Preprocess
from tests.vit.pretrained.test_state_dict import GOOD
from vit.__main__ import main
from vit.document import read_document
from vit.pretrained import SourceError, import_model
from vit.pretrained.config import choose_activation
from vit.pretrained.description import Description
from vit.pretrained.formats import CLIP
from vit.pretrained.preprocessing import (
    CLIP_MEAN,
    DEFAULTS,
    IMAGENET_MEAN,
    USUAL,
    read_pretrained_cfg,
    read_processor,
    usual_view,
)

FULL = {"size": {"height": 8, "width": 8}, "resample": 2, "image_processor_type": "ViTImageProcessor"}


def source(folder, preprocessor=None, **config):
    save_file(GOOD, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2} | config), encoding="utf-8-sig")
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(FULL | preprocessor))
    return folder


def gradient(height, width):
    down, across = np.mgrid[0:height, 0:width]
    image = np.stack([across / width * 255, down / height * 255, 0 * across], -1)
    return Image.fromarray(image.astype(np.uint8))


@pytest.mark.parametrize("size", [(96, 160), (224, 128), (64, 64)])
@pytest.mark.parametrize(("percent", "mode"), [(0.9, "center"), (0.875, "squash"), (1.0, "center")])
def test_timms_own_transform_sees_the_same(tmp_path, size, percent, mode):
    try:
        import_timm()
    except ImportError as error:
        pytest.skip(f"{error}")
    from timm.data import create_transform

    cfg = {"input_size": [3, *size], "crop_pct": percent, "crop_mode": mode, "interpolation": "bicubic"}
    ours = read_pretrained_cfg(cfg | {"mean": [0.5] * 3, "std": [0.5] * 3}).scale_to(size)
    theirs = create_transform(
        input_size=(3, *size),
        crop_pct=percent,
        crop_mode=mode,
        interpolation="bicubic",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    for shape in ((300, 500), (500, 300)):
        image = gradient(*shape)
        expected = (theirs(image).permute(1, 2, 0) * 255).numpy()
        assert np.abs(ours(image) - expected).mean() < 0.6


def test_a_lone_file_sees_the_share_of_its_own_size(tmp_path):
    torch.save(GOOD, tmp_path / "w.pth")
    found = import_model(tmp_path / "w.pth", heads=2)
    assert found.preprocess == Preprocess(size=(8, 8), resize="crop", resize_to=8, interpolation="bicubic")
    torch.save(GOOD | {"pos_embed": torch.zeros(1, 101, 16)}, tmp_path / "w.pth")
    assert import_model(tmp_path / "w.pth", heads=2).preprocess.resize_to == 44  # 40 / 0.9


def test_timms_other_input_size_leaves_the_models(tmp_path):
    cfg = {"input_size": [3, 16, 16], "crop_pct": 0.5, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    found = import_model(source(tmp_path, pretrained_cfg=cfg))
    assert (found.preprocess.size, found.preprocess.resize_to) == ((8, 8), 16)
    assert "16x16" in found.notes[0]


def test_positions_follow_the_preprocessing_as_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=40, patch_size=4
    )
    theirs = transformers.Dinov2Model(config).eval()
    torch.nn.init.normal_(theirs.embeddings.position_embeddings)
    theirs.save_pretrained(tmp_path)
    crop = {"do_center_crop": True, "crop_size": 24, "size": {"shortest_edge": 28}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(FULL | crop))
    found = import_model(tmp_path)
    assert (found.preprocess.size, found.preprocess.resize_to) == ((24, 24), 28)
    assert "interpolated" in found.notes[0]
    pixels = torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs(found.model.normalize(pixels)).last_hidden_state[:, 0]
        torch.testing.assert_close(found.model(pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"size": 12, "do_center_crop": True, "crop_size": 8}, ("stretch", (12, 12))),
        ({"size": {"shortest_edge": 12}, "do_center_crop": True, "crop_size": [8, 8]}, ("crop", 12)),
        (
            {"size": 8, "crop_pct": 0.5, "image_processor_type": "ConvNextImageProcessor"},
            ("crop", 16),
        ),
        ({"do_center_crop": None, "crop_size": None}, ("stretch", None)),
    ],
)
def test_resizing(tmp_path, said, expected):
    found = import_model(source(tmp_path, said)).preprocess
    assert (found.resize, found.resize_to) == expected


@pytest.mark.parametrize(
    ("said", "word"),
    [({"do_resize": False}, "do_resize"), ({"size": {"shortest_edge": 8}}, "middle square")],
)
def test_what_is_only_nearly_so_is_said(tmp_path, said, word):
    assert any(word in sentence for sentence in import_model(source(tmp_path, said)).assumed)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"do_pad": True}, "do_pad"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"size": {"longest_edge": 9}}, "longest_edge"),
        ({"size": 8, "do_center_crop": True, "crop_size": 12}, "larger than size"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_name(tmp_path, said, word):
    with pytest.raises(SourceError, match=word):
        import_model(source(tmp_path, said))


@pytest.mark.parametrize(
    ("said", "mean", "std"),
    [
        ({"do_rescale": False, "image_mean": [100, 110, 120], "image_std": [50] * 3}, 100 / 255, 50 / 255),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}, 0.5, 0.5),
        ({"do_normalize": False}, 0.0, 1.0),
        ({"image_mean": None, "image_std": [0.25]}, 0.5, 0.25),
    ],
)
def test_normalization_in_the_units_of_the_source(said, mean, std):
    view = read_processor(FULL | said)
    assert view.mean[0] == pytest.approx(mean)
    assert view.std[2] == pytest.approx(std)


def test_nulls_mean_what_transformers_takes():
    assert read_processor({"image_processor_type": "CLIPImageProcessorFast"}).mean == CLIP_MEAN
    assert read_processor({"image_processor_type": "DINOv3ViTImageProcessor"}).mean == IMAGENET_MEAN
    transformers = pytest.importorskip("transformers")
    for kind, ours in DEFAULTS.items():
        theirs = getattr(transformers, f"{kind}ImageProcessorPil", None)
        if theirs is None:
            continue
        made = {"default_to_square": theirs.default_to_square} | theirs().to_dict()
        for name, value in ours.items():
            found = made[name]
            found = dict(found) if hasattr(found, "keys") else found
            assert found == (pytest.approx(value) if isinstance(value, tuple) else value), (kind, name)


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"label2id": {"owl": 2, "cat": 0, "dog": 1}}, ("cat", "dog", "owl")),
        ({"id2label": ["x", "y", "z"]}, ("x", "y", "z")),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, ("0", "1", "2")),
    ],
)
def test_labels(tmp_path, config, labels):
    found = import_model(source(tmp_path, {}, **config))
    assert found.labels == labels
    assert any("not 0 to 2" in sentence for sentence in found.assumed) == (labels[0] == "0")


@pytest.mark.parametrize("applied", [None, "sigmoid"])
def test_multi_label_models_have_a_threshold_for_each_label(tmp_path, applied):
    several = {"problem_type": "multi_label_classification", "function_to_apply": applied}
    found = import_model(source(tmp_path, {}, **several))
    assert found.thresholds == (0.5,) * len(found.labels)
    assert any("a threshold of 0.5 for each label" in sentence for sentence in found.assumed)
    with pytest.raises(SourceError, match="function_to_apply is 'softmax'"):
        import_model(source(tmp_path, {}, **(several | {"function_to_apply": "softmax"})))


def test_a_multi_label_import_is_a_checkpoint_with_thresholds(tmp_path):
    place = source(tmp_path, {}, problem_type="multi_label_classification")
    assert main(["import", str(place), "--out", str(tmp_path / "run")]) == 0
    document = read_document(tmp_path / "run")
    assert document.thresholds == (0.5,) * len(document.labels)


def test_an_activation_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(SourceError, match="relu"):
        import_model(source(tmp_path, {}, hidden_act="relu"))


@pytest.mark.parametrize(("kind", "activation"), [("CLIP", "quick_gelu"), ("Siglip", "gelu_tanh")])
def test_what_older_files_leave_out_of_vision_config_is_the_default(tmp_path, kind, activation):
    transformers = pytest.importorskip("transformers")
    shape = {
        "hidden_size": 48,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "image_size": 8,
        "patch_size": 4,
    }
    config = getattr(transformers, f"{kind}Config")(vision_config=shape)
    config.num_labels = 3
    theirs = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    for name in ("hidden_act", "num_attention_heads", "layer_norm_eps"):
        del document["vision_config"][name]
    (tmp_path / "config.json").write_text(json.dumps(document))
    found = import_model(tmp_path)
    assert (found.model.config.heads, found.model.config.activation) == (12, activation)
    assert not any("--heads" in said or "--activation" in said for said in found.assumed)
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs(pixel_values=found.model.normalize(pixels)).logits
        torch.testing.assert_close(found.model(pixels), expected, rtol=1e-4, atol=1e-5)


def test_the_activation_of_a_lone_clip_is_assumed_aloud():
    found, said = choose_activation(CLIP, Description({"num_attention_heads": 2}), gated=False)
    assert found == "gelu"
    assert "--activation" in said[0]


def test_a_newer_processor_config_is_read(tmp_path):
    folder = source(tmp_path)
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": FULL | {"resample": 0}}))
    assert import_model(folder).preprocess.interpolation == "nearest"


@pytest.mark.parametrize("model_type", sorted(USUAL))
def test_published_models_of_a_type_want(model_type):
    view = usual_view(model_type)
    for size in ((224, 224), (56, 56)):
        assert view.scale_to(size).size == size
    if view.kept is not None:
        assert view.scale_to((224, 224)).resize_to in (256, (256, 256))
    assert (view.mean == (0.5, 0.5, 0.5)) == (model_type in ("beit", "data2vec-vision", "siglip"))
    assert model_type in view.assumed[0]


@pytest.mark.parametrize(
    ("name", "mean"), [("dinov2_vits14_pretrain", IMAGENET_MEAN), ("my_clip", CLIP_MEAN), ("a", (0.5,) * 3)]
)
def test_the_name_of_a_lone_file_tells_its_mean(tmp_path, name, mean):
    torch.save(GOOD, tmp_path / f"{name}.pth")
    assert import_model(tmp_path / f"{name}.pth", heads=2).model.config.mean == mean


def test_a_beit_may_have_no_positions_at_all(tmp_path):
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BeitConfig(image_size=8, patch_size=4, num_labels=3, **shape)
    theirs = transformers.BeitForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    found = import_model(tmp_path)
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs(pixel_values=found.model.normalize(pixels)).logits
        torch.testing.assert_close(found.model(pixels), expected, rtol=1e-4, atol=1e-5)
