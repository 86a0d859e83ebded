"""Facts of a description beyond the tensors are followed, or refused by their name."""

import json
from argparse import Namespace

import pytest
import torch

from benchmarks.families import Family, parity, timm_model, transformers_model
from benchmarks.other_libraries import import_timm
from tests.vit.pretrained.test_preprocessing import source
from tests.vit.pretrained.test_state_dict import GOOD
from vit.pretrained import SourceError, import_model

EXACT = 1e-5  # of the logits' scale
TINY = "vit_tiny_patch16_224"
FOLLOWED = [
    (TINY, {"global_pool": "avg"}),
    (TINY, {"global_pool": "avg", "fc_norm": False, "reg_tokens": 2, "no_embed_class": True}),
    (TINY, {"global_pool": "token", "fc_norm": True}),
    (TINY, {"global_pool": "map", "class_token": False}),
    (TINY, {"global_pool": "map", "pool_include_prefix": True, "reg_tokens": 2}),
    (TINY, {"global_pool": "avg", "class_token": False, "pool_include_prefix": True}),
    (TINY, {"act_layer": "quick_gelu", "patch_drop_rate": 0.3, "dynamic_img_size": True}),
    ("vit_base_patch16_clip_224", {"norm_layer": "layernorm"}),
    ("vit_base_patch32_siglip_256", {"img_size": 64}),
    ("vit_so400m_patch16_siglip_256", {}),
    ("eva_giant_patch14_clip_224", {"patch_size": 16}),
    ("beit_base_patch16_224", {"global_pool": "token", "use_fc_norm": True}),
]
REFUSED = [
    (TINY, {"global_pool": "max"}, "'max'"),
    (TINY, {"global_pool": "avgmax", "fc_norm": False}, "'avgmax'"),
    (TINY, {"global_pool": "prr"}, "'prr'"),
    (TINY, {"global_pool": ""}, "global_pool"),
    (TINY, {"global_pool": "map"}, "patches alone"),
    (TINY, {"global_pool": "map", "class_token": False, "reg_tokens": 2}, "patches alone"),
    (TINY, {"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix"),
    (TINY, {"act_layer": "relu"}, "relu"),
    (TINY, {"norm_layer": "rmsnorm"}, "rmsnorm"),
    (TINY, {"attn_layer": "diff"}, "attn_layer"),
    (TINY, {"in_chans": 4}, "4 channels"),
    (TINY, {"num_classes": 1}, "one output"),
    ("vit_base_patch16_rpn_224", {}, "rpn"),
    ("vit_small_patch16_18x2_224", {}, "parallel blocks"),
    ("vit_base_patch16_xp_224", {}, "parallel blocks"),
    ("vit_tiny_r_s16_p8_224", {"img_size": 64}, "hybrid"),
]


def made(architecture, changes, folder):
    try:
        import_timm()
    except ImportError as error:
        pytest.skip(f"{error}")
    return Family(architecture, "timm", timm_model(architecture, **changes)), folder


@pytest.mark.parametrize(("architecture", "changes"), FOLLOWED)
def test_what_timm_says_is_followed(architecture, changes, tmp_path):
    family, folder = made(architecture, changes, tmp_path)
    assert parity(family, folder) <= EXACT


@pytest.mark.parametrize(("architecture", "changes", "words"), REFUSED)
def test_what_timm_says_is_refused(architecture, changes, words, tmp_path):
    family, folder = made(architecture, changes, tmp_path)
    family.build(folder)
    with pytest.raises(SourceError, match=words) as error:
        import_model(folder)
    assert "max()" not in str(error.value)


@pytest.mark.parametrize("kind", ["regression", "something else"])
def test_other_problems_than_classes_are_refused(kind, tmp_path):
    with pytest.raises(SourceError, match=kind):
        import_model(source(tmp_path, {}, problem_type=kind))


@pytest.mark.parametrize("said", ["sigmoid", "none", 7])
def test_other_functions_than_a_softmax_are_refused(said, tmp_path):
    with pytest.raises(SourceError, match="function_to_apply"):
        import_model(source(tmp_path, {}, function_to_apply=said))


def test_a_model_of_code_of_its_own_is_refused(tmp_path):
    code = {"AutoModelForImageClassification": "modeling_own.OwnViT"}
    with pytest.raises(SourceError, match=r"auto_map.*modeling_own"):
        import_model(source(tmp_path, {}, model_type="vit", auto_map=code))


@pytest.mark.parametrize(("pool", "words"), [("avg", ""), ("max", "'max'"), ("avgmax", "'avgmax'")])
def test_the_pooling_of_timms_pretrained_cfg_is_what_timm_builds(pool, words, tmp_path):
    family, folder = made(TINY, {"global_pool": pool, "fc_norm": False}, tmp_path)
    build = family.build

    def moved(folder):
        theirs = build(folder)
        file = folder / "config.json"
        document = json.loads(file.read_text())
        for part in (document, document["model_args"]):
            del part["global_pool"]
        document["pretrained_cfg"]["global_pool"] = pool
        file.write_text(json.dumps(document))
        return theirs

    if words:
        moved(folder)
        with pytest.raises(SourceError, match=words):
            import_model(folder)
    else:
        assert parity(Family(TINY, "timm", moved), folder) <= EXACT


def test_a_head_with_one_output_is_refused(tmp_path):
    pytest.importorskip("transformers")
    transformers_model("ViTConfig", "ViTForImageClassification")(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name][:1].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match=r"one output.*sigmoid"):
        import_model(tmp_path)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"hidden_size": 65_536}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers"),
        ({"patch_size": 0}, "patch_size"),
        ({"num_attention_heads": 0}, "heads"),
        ({"num_attention_heads": -2}, "heads"),
        ({"num_attention_heads": 2.5}, "heads"),
        ({"num_attention_heads": True}, "heads"),
        ({"num_attention_heads": "two"}, "heads"),
        ({"layer_norm_eps": float("nan")}, "NaN is no JSON number"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"image_size": 10**9}, "image_size"),
        ({"image_size": [8, "8"]}, "image_size"),
        ({"image_size": -8}, "image_size"),
        ({"hidden_act": {"gelu": 1}}, "activation"),
        ({"pretrained_cfg": "augreg"}, "pretrained_cfg"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(said, words, tmp_path):
    with pytest.raises(SourceError, match=words):
        import_model(source(tmp_path, None, **said))


@pytest.mark.parametrize("labels", ["abc", 7, [1, [2], 3], {"0": None, "1": "a", "2": "b"}, {"0": {}}])
def test_labels_that_are_none_are_not_taken(labels, tmp_path):
    found = import_model(source(tmp_path, {}, id2label=labels))
    assert found.labels == tuple(map(str, range(len(found.labels))))
    assert any("class indices" in sentence for sentence in found.assumed)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_document_that_is_nested_too_deeply_is_refused(name, tmp_path):
    folder = source(tmp_path, {})
    (folder / name).write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(SourceError, match=f"{name}.*nested"):
        import_model(folder)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"gp": "avgmax", "model": "vit_tiny_patch16_224"}, "avgmax"),
        ({"model_kwargs": {"global_pool": "max"}}, "max"),
        ({"model_kwargs": {"attn_layer": "diff"}}, "attn_layer"),
        ({"model": "vit_base_patch16_rpn_224"}, "rpn"),
    ],
)
def test_arguments_of_timms_script_are_read(said, words, tmp_path):
    torch.save({"state_dict": GOOD, "args": Namespace(**said)}, tmp_path / "w.pth")
    with pytest.raises(SourceError, match=words):
        import_model(tmp_path / "w.pth", heads=2)


def test_other_sizes_in_the_arguments_of_a_script_are_not_the_models(tmp_path):
    torch.save({"state_dict": GOOD, "hyper_parameters": {"hidden_size": 512}}, tmp_path / "w.pth")
    assert import_model(tmp_path / "w.pth", heads=2).model.config.width == 16


def test_a_model_type_that_is_not_known_is_said(tmp_path):
    document = {"image_processor_type": "ViTImageProcessor"}
    found = import_model(source(tmp_path, document, model_type="my_vit"))
    assert any("my_vit" in sentence for sentence in found.assumed)


def test_the_pooling_of_a_lone_file_is_assumed_aloud(tmp_path):
    tensors = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: value
               for name, value in GOOD.items()}  # fmt: skip
    torch.save(tensors, tmp_path / "w.pth")
    found = import_model(tmp_path / "w.pth", heads=2)
    assert found.model.config.pooling == "mean"
    assert any("avgmax" in sentence for sentence in found.assumed)


def test_the_projection_of_a_clip_is_no_head(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=48,
        patch_size=16, projection_dim=10,
    )  # fmt: skip
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    found = import_model(tmp_path)
    assert found.model.config.classes == 0
    assert any("visual_projection" in sentence for sentence in found.notes)
    assert json.loads((tmp_path / "config.json").read_text())["projection_dim"] == 10
