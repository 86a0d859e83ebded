"""Small CLIP and SigLIP models of transformers with random weights, and tokenizers of the real classes.

The tokenizers are trained on the texts that a test uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.other_libraries import randomize_weights

SIZE, PATCH, LENGTH = 32, 8, 32
WIDTH = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}


def save_two_towers(family: str, folder: Path, texts: Sequence[str]) -> nn.Module:
    """Save a small model, its tokenizer and its preprocessing in `folder`, and return the model.

    Args:
        family: clip, siglip (with SentencePiece) or siglip2.
        folder: is made.
        texts: what the tokenizer is trained on.
    """
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(family, texts, folder)
    tokenizer.save_pretrained(folder)
    text: dict[str, Any] = {**WIDTH, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    vision = {**WIDTH, "image_size": SIZE, "patch_size": PATCH}
    if family == "clip":
        text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        model = randomize_weights(lambda: transformers.CLIPModel(config), strength=1.0)
    else:
        config = transformers.SiglipConfig(text_config=text | {"projection_size": 48}, vision_config=vision)
        model = randomize_weights(lambda: transformers.SiglipModel(config), strength=1.0)
        model.logit_bias.data.fill_(-12.5)
    model.logit_scale.data.fill_(3.5)
    model.save_pretrained(folder)
    name = "CLIP" if family == "clip" else "Siglip"
    getattr(transformers, f"{name}ImageProcessorPil")(
        size={"height": SIZE, "width": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    ).save_pretrained(folder)
    return model


def _train_tokenizer(family: str, texts: Sequence[str], folder: Path) -> Any:
    import transformers

    if family == "clip":
        return transformers.CLIPTokenizer().train_new_from_iterator(texts, 600)
    if family == "siglip2":
        # As the models on the hub have it: padding on the right, </s> at the end and no mask.
        like = transformers.GemmaTokenizer(padding_side="right", model_input_names=["input_ids"])
        return like.train_new_from_iterator([text.lower() for text in texts], 600)
    import sentencepiece

    prefix = folder / "made"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(prefix), vocab_size=120, pad_id=-1, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return transformers.SiglipTokenizer(f"{prefix}.model", model_input_names=["input_ids"])


@torch.no_grad()
def two_tower_logits(folder: Path, pixels: Tensor, texts: Sequence[str], mean: Tensor, std: Tensor) -> Tensor:
    """Return the logits of the whole model, as transformers' examples call it.

    Args:
        folder: of the model.
        pixels: uint8 `[N, H, W, 3]`.
        texts: one per class.
        mean: of pixels in 0 to 1, per channel.
        std: likewise.
    """
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    siglip = model.config.model_type == "siglip"
    how: dict[str, Any] = {"padding": "max_length", "max_length": LENGTH} if siglip else {"padding": True}
    images = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    found: Tensor = model(
        pixel_values=images, **tokenizer(list(texts), return_tensors="pt", **how)
    ).logits_per_image
    return found
