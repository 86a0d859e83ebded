"""Wrappings of training tools are removed; entries that are no weights are refused by name."""

import warnings
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

from vit.pretrained import SourceError, import_model
from vit.pretrained.config import choose_heads
from vit.pretrained.description import Description, UnstatedError

D, HEADS, CLASSES = 16, 2, 3


def timm_weights(seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = {"cls_token": (1, 1, D), "pos_embed": (1, 5, D), "patch_embed.proj.weight": (D, 3, 4, 4)}
    shapes |= {"patch_embed.proj.bias": (D,), "norm.weight": (D,), "norm.bias": (D,)}
    shapes |= {"head.weight": (CLASSES, D), "head.bias": (CLASSES,)}
    for name, shape in (
        ("norm1", (D,)),
        ("norm2", (D,)),
        ("attn.qkv", (3 * D, D)),
        ("attn.proj", (D, D)),
        ("mlp.fc1", (32, D)),
        ("mlp.fc2", (D, 32)),
    ):
        shapes |= {f"blocks.0.{name}.weight": shape, f"blocks.0.{name}.bias": shape[:1]}
    return {name: torch.randn(shape, generator=random) * 0.3 for name, shape in shapes.items()}


GOOD = timm_weights()
OTHER = timm_weights(1)


def prefixed(prefix, weights=GOOD):
    return {prefix + name: value for name, value in weights.items()}


def read(tmp_path, content, **options):
    torch.save(content, tmp_path / "w.pth")
    return import_model(tmp_path / "w.pth", heads=HEADS, **options)


def is_good(found):
    return torch.equal(found.model.head.weight, GOOD["head.weight"]) and torch.equal(
        found.model.patch_embedding.weight, GOOD["patch_embed.proj.weight"]
    )


@pytest.mark.parametrize(
    "prefix",
    ["net.", "_orig_mod.model.", "backbone.module.", "module._orig_mod.net.backbone.", "my_encoder."],
)
def test_prefixes_come_off_in_any_order_and_depth(tmp_path, prefix):
    assert is_good(read(tmp_path, prefixed(prefix)))
    save_file(prefixed(prefix), tmp_path / "w.safetensors")
    assert is_good(import_model(tmp_path / "w.safetensors", heads=HEADS))


def test_a_head_beside_the_backbone_belongs_to_it(tmp_path):
    apart = {
        ("module." if name.startswith("head.") else "module.backbone.") + name: value
        for name, value in GOOD.items()
    }
    assert is_good(read(tmp_path, apart))


def test_wrappers_inside_a_name_come_off(tmp_path):
    inner = {
        name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module._orig_mod."): v
        for name, v in GOOD.items()
    }
    assert is_good(read(tmp_path, {"state_dict": inner, "epoch": 4, "criterion": {"lr": 1}}))
    assert is_good(read(tmp_path, GOOD | {"criterion.weight": torch.ones(3), "n_averaged": torch.tensor(2)}))


@pytest.mark.parametrize(
    ("content", "other"),
    [
        ({"model": OTHER, "ema_model": GOOD}, "model"),
        ({"student": OTHER, "teacher": prefixed("backbone.")}, "student"),
        (prefixed("model.", OTHER) | prefixed("model_ema.module."), "model"),
    ],
)
def test_a_moving_average_is_preferred_and_said(tmp_path, content, other):
    found = read(tmp_path, content)
    assert is_good(found)
    assert len(found.notes) == 1
    assert other in found.notes[0]
    assert "--weights" in found.notes[0]
    assert not is_good(read(tmp_path, content, weights=other))


def test_arguments_of_the_script_tell_the_heads(tmp_path):
    torch.save({"model": GOOD, "args": Namespace(num_heads=4)}, tmp_path / "w.pth")
    assert import_model(tmp_path / "w.pth").model.config.heads == 4


@pytest.mark.parametrize("name", ["head.1", "head.0", "classifier.2", "fc", "head.fc", "mlp_head.0", "last"])
def test_a_head_in_the_place_of_the_first(tmp_path, name):
    renamed = {key.replace("head.", f"{name}."): value for key, value in GOOD.items()}
    found = read(tmp_path, renamed)
    assert is_good(found)
    assert [note for note in found.notes if "'last' was taken as the head" in note] == list(
        found.notes if name == "last" else ()
    )


def test_a_head_without_bias_has_a_bias_of_zero(tmp_path):
    found = read(tmp_path, {name: value for name, value in GOOD.items() if name != "head.bias"})
    assert is_good(found)
    assert not found.model.head.bias.any()


FEATURES = {name: value for name, value in GOOD.items() if not name.startswith("head.")}


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (
            FEATURES
            | {"decoder_embed.weight": torch.ones(8, D), "decoder_blocks.0.norm1.bias": torch.ones(8)},
            "decoder_",
        ),
        (
            {
                "student": prefixed("backbone.", OTHER),
                "teacher": prefixed("backbone.", FEATURES) | {"head.mlp.0.weight": torch.ones(8, D)},
            },
            "head",
        ),
        (prefixed("backbone.", FEATURES) | {"dino_head.last_layer.weight_v": torch.ones(8, D)}, "dino_head"),
        (
            prefixed("module.base_encoder.", FEATURES | {"head.0.weight": torch.ones(8, D)})
            | {"module.predictor.0.weight": torch.ones(8, 8)},
            "predictor",
        ),
    ],
)
def test_layers_of_the_pretraining_are_left_out_and_said(tmp_path, content, name):
    found = read(tmp_path, content)
    assert found.model.config.classes == 0
    torch.testing.assert_close(found.model.norm.weight, GOOD["norm.weight"])
    assert any("pre-training were left out" in note and name in note for note in found.notes)


def test_a_model_of_gray_images_sees_the_luminance(tmp_path):
    gray = torch.randn(D, 1, 4, 4)
    found = read(tmp_path, GOOD | {"patch_embed.proj.weight": gray})
    assert "luminance" in found.notes[0]
    torch.testing.assert_close(found.model.patch_embedding.weight.sum(1, keepdim=True), gray)
    with pytest.raises(SourceError, match=r"images of 4 channels.*import a model of RGB images$"):
        read(tmp_path, GOOD | {"patch_embed.proj.weight": torch.randn(D, 4, 4, 4)})


def test_a_head_of_two_layers_is_refused(tmp_path):
    two = {name: value for name, value in GOOD.items() if not name.startswith("head.")}
    two |= {"head.0.weight": torch.zeros(8, D), "head.0.bias": torch.zeros(8)}
    two |= {"head.2.weight": torch.zeros(3, 8), "head.2.bias": torch.zeros(3)}
    with pytest.raises(SourceError, match=r"left over: head\.0\.bias.*--onnx"):
        read(tmp_path, two)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blocks.0.attn.proj.lora_A.default.weight": torch.zeros(2, D)}, "merge_and_unload"),
        ({"_fsdp_wrapped_module._flat_param": torch.zeros(9)}, "FullStateDictConfig"),
        ({"blocks.0.mlp.fc1.weight": torch.zeros(32, D, dtype=torch.uint8)}, "quantized weights"),
        ({"blocks.0.mlp.fc1.SCB": torch.zeros(32)}, "quantized weights"),
        ({"blocks.0.mlp.fc1.weight": torch.zeros(32, D, dtype=torch.int32)}, "quantized weights"),
        ({"blocks.0.mlp.fc1.weight": torch.zeros(32, D, dtype=torch.complex64)}, "complex weights"),
        ({"norm.bias": torch.full((D,), float("inf"))}, "NaN or infinity"),
        ({"epoch": 3, "scheduler": {"a": 1}, "patch_embed.proj.weight": "gone"}, "dictionary of tensors"),
    ],
)
def test_what_is_no_weights_is_refused_by_its_name(tmp_path, change, words):
    with pytest.raises(SourceError, match=words):
        read(tmp_path, GOOD | change)


@pytest.mark.parametrize(
    ("beginning", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"<!doctype html>", "web page"),
        (b"\x89HDF\r\n\x1a\n", "Keras or TensorFlow.*save the state_dict"),
        (b"GGUF\x03", "llama.cpp"),
        (b"\x1f\x8b\x08", "unpack it"),
        (b"", "an empty file"),
    ],
)
def test_files_that_only_look_like_weights(tmp_path, beginning, words):
    for name in ("model.safetensors", "w.bin"):
        (tmp_path / name).write_bytes(beginning)
        with pytest.raises(SourceError, match=words):
            import_model(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("flax_model.msgpack", b"\x81\xa3abc", "Flax"),
        ("tf_model.h5", b"x", "TensorFlow"),
        ("model.pt2", b"PK\x03\x04", "torch.export"),
        ("noise.pth", b"\x81\xa3abc", "not a complete PyTorch file"),
    ],
)
def test_files_of_other_libraries_are_refused_by_their_name(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(SourceError, match=words):
            import_model(source)


def test_a_torchscript_program_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "w.pt")
    with pytest.raises(SourceError, match="TorchScript program; save the state_dict"):
        import_model(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "found"), [({}, "an empty one"), ([GOOD], "a list"), (GOOD["norm.bias"], "a Tensor")]
)
def test_what_is_no_dictionary_is_refused(tmp_path, content, found):
    with pytest.raises(SourceError, match=f"found {found}; save the state_dict"):
        read(tmp_path, content)


def test_folders_without_weights_say_what_is_there(tmp_path):
    (tmp_path / "best").mkdir()
    save_file(GOOD, tmp_path / "best" / "model.safetensors")
    with pytest.raises(SourceError, match="best inside have weights"):
        import_model(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.onnx").write_bytes(b"")
    with pytest.raises(SourceError, match="export --onnx"):
        import_model(tmp_path / "other")
    (tmp_path / "lora").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "lora" / "adapter_model.safetensors")
    with pytest.raises(SourceError, match="merge_and_unload"):
        import_model(tmp_path / "lora")


def test_heads_are_never_guessed_from_the_width(tmp_path):
    torch.save(GOOD, tmp_path / "w.pth")
    with pytest.raises(SourceError, match=r"width 16 and depth 1; say it with --heads N$"):
        import_model(tmp_path / "w.pth")


def test_heads_of_a_known_width_are_looked_up_for_known_patches_alone(tmp_path):
    for patch, heads in ((16, 3), (4, None)):
        weights = {"patch_embedding.weight": torch.zeros(192, 3, patch, patch)}
        if heads:
            assert choose_heads(weights, Description({}), 192, 12)[0] == heads
        else:
            with pytest.raises(UnstatedError, match=r"patches of 4 pixels; say it with --heads N$"):
                choose_heads(weights, Description({}), 192, 12)


def test_positions_that_no_tensor_tells_are_refused(tmp_path):
    rotary = {name: value for name, value in GOOD.items() if name != "pos_embed"}
    torch.save({"model": rotary, "args": {"img_size": 8, "num_heads": 2}}, tmp_path / "w.pth")
    with pytest.raises(SourceError, match="rotary"):
        import_model(tmp_path / "w.pth")
    eva = dict(GOOD)
    del eva["blocks.0.attn.qkv.bias"]
    eva |= {"blocks.0.attn.q_bias": torch.zeros(D), "blocks.0.attn.v_bias": torch.zeros(D)}
    with pytest.raises(SourceError, match="rotary"):
        read(tmp_path, eva)


@pytest.mark.parametrize("prefix", ["backbone.", "module.net."])
def test_two_layers_for_one_place_are_refused(tmp_path, prefix):
    """A norm of one's own behind a whole ViT would take the place of the ViT's, or be left out unseen."""
    outer = prefix.rpartition(".")[0].rpartition(".")[0]
    outer = outer and outer + "."
    own = {f"{outer}norm.weight": torch.ones(D), f"{outer}norm.bias": torch.zeros(D)}
    for content in (prefixed(prefix) | own, own | prefixed(prefix)):
        with pytest.raises(SourceError, match=rf"two tensors for 'norm\.weight'.*{prefix}norm\.weight"):
            read(tmp_path, content)
    # The same tensor under two names is one: what ties weights is saved twice.
    tied = {f"{outer}norm.weight": GOOD["norm.weight"].clone()}
    assert is_good(read(tmp_path, prefixed(prefix) | tied))


def test_two_names_of_one_layer_are_refused(tmp_path):
    """The rules know older and newer names; a file has one of them."""
    old = {"vit.layernorm.weight": torch.ones(D), "layernorm.weight": torch.zeros(D)}
    new = {"vit.layernorm.weight": torch.ones(D), "vit.norm.weight": torch.zeros(D)}
    patches = {"vit.embeddings.patch_embeddings.projection.weight": torch.ones(D, 3, 4, 4)}
    compiled = {"_orig_mod.norm.weight": torch.ones(D), "norm.weight": torch.zeros(D)}
    for content in (old, new, compiled):
        with pytest.raises(SourceError, match=r"two tensors for '(layer)?norm\.weight'"):
            read(tmp_path, content | patches)
