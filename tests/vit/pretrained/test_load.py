"""Imported models give the logits of their own libraries.

transformers runs itself. torchvision's, timm's and Google's forward passes are derived again here from
what they publish, with torch functions on a state dict of their names and shapes.
"""

import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from vit.checkpoint import load_checkpoint
from vit.pretrained import SourceError, import_model, import_vit
from vit.pretrained.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from vit.pretrained.weight_files import read_weights

D, HEADS, MLP, P, SIZE, CLASSES, DEPTH = 32, 2, 48, 4, 12, 7, 2
TOKENS = (SIZE // P) ** 2 + 1


def tensors(**shapes):
    random = torch.Generator().manual_seed(3)
    return {
        name.replace("__", "."): torch.randn(shape, generator=random) * 0.3 for name, shape in shapes.items()
    }


def pixels():
    random = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8, generator=random)


def normalized(mean, std):
    return ((pixels().float() / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


def assert_parity(mine, theirs):
    with torch.no_grad():
        difference = (mine - theirs).abs().max() / theirs.abs().max()
    assert difference <= 1e-5, difference


def attend(q, k, v, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1)
    return (weights @ v).transpose(1, 2).flatten(2)


def block_shapes(names):
    return {name.format(i=i): shape for i in range(DEPTH) for name, shape in names.items()}


# ---------------------------------------------------------------------------------------- transformers


def hugging_face_vit(folder, **changes):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=D,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        image_size=SIZE,
        patch_size=P,
        id2label={i: f"label {i}" for i in range(CLASSES)},
        label2id={f"label {i}": i for i in range(CLASSES)},
        **changes,
    )
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    document = {"size": {"height": SIZE, "width": SIZE}, "resample": 3, "do_normalize": True}
    document |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    return model


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu_pytorch_tanh"}, {"qkv_bias": False}])
def test_hugging_face_vit(tmp_path, changes):
    theirs = hugging_face_vit(tmp_path, **changes)
    found = import_model(tmp_path)
    assert found.labels[3] == "label 3"
    assert found.assumed == ()
    assert (found.preprocess.resize, found.preprocess.interpolation) == ("stretch", "bicubic")
    with torch.no_grad():
        expected = theirs(normalized((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))).logits
        assert_parity(found.model(pixels()), expected)
        assert_parity(import_vit(tmp_path)(pixels()), expected)


def test_hugging_face_dinov2_backbone(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=D, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=SIZE, patch_size=P
    )
    theirs = transformers.Dinov2Model(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    found = import_model(tmp_path)
    assert found.model.config.layer_scale
    assert found.model.config.norm_epsilon == 1e-6
    with torch.no_grad():
        expected = theirs(normalized(IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state[:, 0]
        assert_parity(found.model(pixels()), expected)
    assert "87.5% is kept, bicubic; mean 0.485, 0.456, 0.406" in found.assumed[0]


# ------------------------------------------------------------------------------------------------ timm

TIMM_BLOCK = {
    "blocks.{i}.norm1.weight": (D,),
    "blocks.{i}.norm1.bias": (D,),
    "blocks.{i}.attn.qkv.weight": (3 * D, D),
    "blocks.{i}.attn.qkv.bias": (3 * D,),
    "blocks.{i}.attn.proj.weight": (D, D),
    "blocks.{i}.attn.proj.bias": (D,),
    "blocks.{i}.norm2.weight": (D,),
    "blocks.{i}.norm2.bias": (D,),
    "blocks.{i}.mlp.fc1.weight": (MLP, D),
    "blocks.{i}.mlp.fc1.bias": (MLP,),
    "blocks.{i}.mlp.fc2.weight": (D, MLP),
    "blocks.{i}.mlp.fc2.bias": (D,),
}
TIMM = {
    "cls_token": (1, 1, D),
    "pos_embed": (1, TOKENS, D),
    "patch_embed.proj.weight": (D, 3, P, P),
    "patch_embed.proj.bias": (D,),
    **block_shapes(TIMM_BLOCK),
    "norm.weight": (D,),
    "norm.bias": (D,),
    "head.weight": (CLASSES, D),
    "head.bias": (CLASSES,),
}


def timm_forward(w, x, heads, pre_logits=False):
    """timm's VisionTransformer: forward_features, then the pooled class token through forward_head."""

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, (D,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    x = (
        F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=P)
        .flatten(2)
        .transpose(1, 2)
    )
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    for i in range(DEPTH):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, heads), f"blocks.{i}.attn.proj") * w.get(f"blocks.{i}.ls1.gamma", 1)
        hidden = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2") * w.get(f"blocks.{i}.ls2.gamma", 1)
    x = norm(x, "norm")[:, 0]
    if pre_logits:
        x = torch.tanh(linear(x, "pre_logits.fc"))
    return linear(x, "head")


@pytest.mark.parametrize("more", ["", "pre_logits", "layer_scale"])
def test_timm(tmp_path, more):
    shapes = dict(TIMM)
    if more == "pre_logits":
        shapes |= {"pre_logits.fc.weight": (20, D), "pre_logits.fc.bias": (20,), "head.weight": (CLASSES, 20)}
    if more == "layer_scale":
        shapes |= {f"blocks.{i}.ls{n}.gamma": (D,) for i in range(DEPTH) for n in (1, 2)}
    w = tensors(**shapes)
    torch.save({"model": w}, tmp_path / "vit_small.pth")
    found = import_model(tmp_path / "vit_small.pth", heads=HEADS)
    expected = timm_forward(w, normalized((0.5,) * 3, (0.5,) * 3), HEADS, more == "pre_logits")
    assert_parity(found.model(pixels()), expected)
    assert any("GELU" in sentence for sentence in found.assumed)


def test_timm_folder_brings_its_preprocessing(tmp_path):
    w = tensors(**TIMM)
    save_file(w, tmp_path / "model.safetensors")
    view = {"input_size": [3, SIZE, SIZE], "crop_pct": 0.75, "interpolation": "bicubic"}
    view |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": HEADS, "pretrained_cfg": view}))
    found = import_model(tmp_path)
    assert found.preprocess.resize_to == 16
    assert found.model.config.heads == HEADS
    assert_parity(found.model(pixels()), timm_forward(w, normalized((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), HEADS))


# ----------------------------------------------------------------------------------------- torchvision

TV_BLOCK = {
    "encoder.layers.encoder_layer_{i}.ln_1.weight": (D,),
    "encoder.layers.encoder_layer_{i}.ln_1.bias": (D,),
    "encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight": (3 * D, D),
    "encoder.layers.encoder_layer_{i}.self_attention.in_proj_bias": (3 * D,),
    "encoder.layers.encoder_layer_{i}.self_attention.out_proj.weight": (D, D),
    "encoder.layers.encoder_layer_{i}.self_attention.out_proj.bias": (D,),
    "encoder.layers.encoder_layer_{i}.ln_2.weight": (D,),
    "encoder.layers.encoder_layer_{i}.ln_2.bias": (D,),
    "encoder.layers.encoder_layer_{i}.mlp.0.weight": (MLP, D),
    "encoder.layers.encoder_layer_{i}.mlp.0.bias": (MLP,),
    "encoder.layers.encoder_layer_{i}.mlp.3.weight": (D, MLP),
    "encoder.layers.encoder_layer_{i}.mlp.3.bias": (D,),
}
TORCHVISION = {
    "class_token": (1, 1, D),
    "conv_proj.weight": (D, 3, P, P),
    "conv_proj.bias": (D,),
    "encoder.pos_embedding": (1, TOKENS, D),
    **block_shapes(TV_BLOCK),
    "encoder.ln.weight": (D,),
    "encoder.ln.bias": (D,),
    "heads.head.weight": (CLASSES, D),
    "heads.head.bias": (CLASSES,),
}


def torchvision_forward(w, x, heads):
    """torchvision's VisionTransformer, whose attention is torch's own nn.MultiheadAttention."""
    x = F.conv2d(x, w["conv_proj.weight"], w["conv_proj.bias"], stride=P).flatten(2).transpose(1, 2)
    x = torch.cat([w["class_token"].expand(len(x), -1, -1), x], 1) + w["encoder.pos_embedding"]
    for i in range(DEPTH):
        b = f"encoder.layers.encoder_layer_{i}."
        attention = torch.nn.MultiheadAttention(D, heads, batch_first=True)
        prefix = b + "self_attention."
        attention.load_state_dict({n.removeprefix(prefix): v for n, v in w.items() if n.startswith(prefix)})
        y = F.layer_norm(x, (D,), w[b + "ln_1.weight"], w[b + "ln_1.bias"], 1e-6)
        x = x + attention(y, y, y, need_weights=False)[0]
        y = F.layer_norm(x, (D,), w[b + "ln_2.weight"], w[b + "ln_2.bias"], 1e-6)
        y = F.gelu(F.linear(y, w[b + "mlp.0.weight"], w[b + "mlp.0.bias"]))
        x = x + F.linear(y, w[b + "mlp.3.weight"], w[b + "mlp.3.bias"])
    x = F.layer_norm(x, (D,), w["encoder.ln.weight"], w["encoder.ln.bias"], 1e-6)[:, 0]
    return F.linear(x, w["heads.head.weight"], w["heads.head.bias"])


@pytest.mark.parametrize("old_names", [False, True])
def test_torchvision(tmp_path, old_names):
    w = tensors(**TORCHVISION)
    stored = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")
        if old_names
        else name: value
        for name, value in w.items()
    }
    torch.save(stored, tmp_path / "vit_b_16.pth")
    found = import_model(tmp_path / "vit_b_16.pth", heads=1)
    x = normalized((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert_parity(found.model(pixels()), torchvision_forward(w, x, 1))
    assert found.labels[:2] == ("0", "1")
    assert any("--labels" in sentence for sentence in found.assumed)


# ---------------------------------------------------------------------------------------------- Google


def google_arrays(pre_logits):
    head = D // HEADS
    block = {
        "LayerNorm_0/scale": (D,),
        "LayerNorm_0/bias": (D,),
        "LayerNorm_2/scale": (D,),
        "LayerNorm_2/bias": (D,),
        "MlpBlock_3/Dense_0/kernel": (D, MLP),
        "MlpBlock_3/Dense_0/bias": (MLP,),
        "MlpBlock_3/Dense_1/kernel": (MLP, D),
        "MlpBlock_3/Dense_1/bias": (D,),
        "MultiHeadDotProductAttention_1/out/kernel": (HEADS, head, D),
        "MultiHeadDotProductAttention_1/out/bias": (D,),
    }
    for name in ("query", "key", "value"):
        block[f"MultiHeadDotProductAttention_1/{name}/kernel"] = (D, HEADS, head)
        block[f"MultiHeadDotProductAttention_1/{name}/bias"] = (HEADS, head)
    shapes = {
        "cls": (1, 1, D),
        "embedding/kernel": (P, P, 3, D),
        "embedding/bias": (D,),
        "Transformer/posembed_input/pos_embedding": (1, TOKENS, D),
        "Transformer/encoder_norm/scale": (D,),
        "Transformer/encoder_norm/bias": (D,),
        "head/kernel": (20 if pre_logits else D, CLASSES),
        "head/bias": (CLASSES,),
    }
    shapes |= {f"Transformer/encoderblock_{i}/{name}": s for i in range(DEPTH) for name, s in block.items()}
    if pre_logits:
        shapes |= {"pre_logits/kernel": (D, 20), "pre_logits/bias": (20,)}
    return {name: value.numpy() for name, value in tensors(**shapes).items()}


def google_forward(arrays, x):
    """vision_transformer's models.py, with Flax's DenseGeneral and its default, approximate GELU."""
    w = {name: torch.from_numpy(value) for name, value in arrays.items()}

    def norm(x, name):
        return F.layer_norm(x, (D,), w[f"{name}/scale"], w[f"{name}/bias"], 1e-6)

    x = x.permute(0, 2, 3, 1)  # NHWC
    patches = x.unfold(1, P, P).unfold(2, P, P)  # (N, rows, columns, 3, P, P)
    x = torch.einsum("nrcipq,pqid->nrcd", patches, w["embedding/kernel"]) + w["embedding/bias"]
    x = torch.cat([w["cls"].expand(len(x), -1, -1), x.flatten(1, 2)], 1)
    x = x + w["Transformer/posembed_input/pos_embedding"]
    for i in range(DEPTH):
        b = f"Transformer/encoderblock_{i}"
        a = f"{b}/MultiHeadDotProductAttention_1"
        y = norm(x, f"{b}/LayerNorm_0")
        q, k, v = (
            torch.einsum("ntd,dhf->nhtf", y, w[f"{a}/{name}/kernel"]) + w[f"{a}/{name}/bias"][:, None]
            for name in ("query", "key", "value")
        )
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(D // HEADS), -1)
        x = x + torch.einsum("nhtf,hfd->ntd", weights @ v, w[f"{a}/out/kernel"]) + w[f"{a}/out/bias"]
        y = (
            norm(x, f"{b}/LayerNorm_2") @ w[f"{b}/MlpBlock_3/Dense_0/kernel"]
            + w[f"{b}/MlpBlock_3/Dense_0/bias"]
        )
        y = F.gelu(y, approximate="tanh")
        x = x + y @ w[f"{b}/MlpBlock_3/Dense_1/kernel"] + w[f"{b}/MlpBlock_3/Dense_1/bias"]
    x = norm(x, "Transformer/encoder_norm")[:, 0]
    if "pre_logits/kernel" in w:
        x = torch.tanh(x @ w["pre_logits/kernel"] + w["pre_logits/bias"])
    return x @ w["head/kernel"] + w["head/bias"]


@pytest.mark.parametrize("pre_logits", [False, True])
def test_google_npz(tmp_path, pre_logits):
    arrays = google_arrays(pre_logits)
    np.savez(tmp_path / "ViT.npz", **arrays)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": HEADS}))
    found = import_model(tmp_path)
    assert found.model.config.activation == "gelu_tanh"
    assert_parity(found.model(pixels()), google_forward(arrays, normalized((0.5,) * 3, (0.5,) * 3)))


def test_google_npz_tells_its_heads(tmp_path):
    np.savez(tmp_path / "ViT.npz", **google_arrays(False))
    found = import_model(tmp_path / "ViT.npz")
    assert found.model.config.heads == HEADS


# ------------------------------------------------------------------------------------------- what fails


def test_misfits_are_listed(tmp_path):
    w = tensors(**TIMM)
    w["head.extra"] = torch.zeros(1)
    del w["norm.bias"]
    w["pos_embed"] = torch.zeros(1, TOKENS, D + 1)
    torch.save(w, tmp_path / "x.pth")
    with pytest.raises(SourceError) as caught:
        import_model(tmp_path / "x.pth", heads=HEADS)
    for part in ("1 missing: norm.bias", "1 left over: head.extra", "1 misshapen: position [1, 10, 33]"):
        assert part in str(caught.value)


class Malicious:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_a_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": Malicious()}))
    torch.save({"a": Malicious()}, tmp_path / "y.pth")
    np.savez(tmp_path / "z.npz", a=np.array([Malicious()], dtype=object))
    for name in ("x.pth", "y.pth", "z.npz"):
        with pytest.raises(SourceError):
            import_model(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.npz"])
def test_a_cut_off_file_is_refused(tmp_path, name):
    w = tensors(**TIMM)
    path = tmp_path / name
    if name.endswith("npz"):
        np.savez(path, **google_arrays(False))
    elif name.endswith("pth"):
        torch.save(w, path)
    else:
        save_file(w, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(SourceError, match="not a complete"):
        import_model(path)


def test_what_is_no_vit_is_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(SourceError, match=r"found conv1\.weight"):
        import_model(tmp_path / "resnet.safetensors")
    with pytest.raises(SourceError, match="no such folder or file"):
        import_model(tmp_path / "nowhere")


def test_command_line(tmp_path):
    torch.save(tensors(**TIMM), tmp_path / "deit_x.pth")
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {i}\n" for i in range(CLASSES)))
    command = [
        sys.executable,
        "-m",
        "vit",
        "import",
        str(tmp_path / "deit_x.pth"),
        "--out",
        str(tmp_path / "run"),
        "--heads",
        str(HEADS),
    ]
    done = subprocess.run([*command, "--labels", str(names)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "run" / "model.safetensors")
    assert "assumed" in done.stderr
    found = load_checkpoint(tmp_path / "run")
    assert found.labels[6] == "class 6"
    assert found.model.config.mean == (0.485, 0.456, 0.406)
    names.write_text("too few\n")
    failed = subprocess.run([*command, "--labels", str(names)], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.strip().endswith("has 1 label, the model has 7 classes")


@pytest.mark.parametrize("place", ["../x", "/etc/passwd", "a\\b", "C:x", "NUL", "", "..", 1, None, ["a"]])
def test_parts_of_the_weights_lie_beside_their_index(place, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for weight_map in ({"weight": place}, place):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(SourceError, match=r"which is no file of weights beside|expected weight_map"):
            read_weights(index)
