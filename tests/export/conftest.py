"""Vision Transformers as others write them, exported by torch's two exporters."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, CLASSES, SIDE, PATCH, DEPTH = 24, 3, 7, 16, 8, 2


class FusedAttention(nn.Module):
    """timm's: one linear for query, key and value, taken apart in the ways that are about."""

    def __init__(self, apart: str, fused: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.apart, self.fused = apart, fused

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        qkv = self.qkv(x)
        if self.apart == "unbind":
            q, k, v = qkv.reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.apart == "index":
            stacked = qkv.reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            q, k, v = stacked[0], stacked[1], stacked[2]
        elif (
            self.apart == "heads first"
        ):  # as in ViT-22B and Megatron: query, key and value of each head together
            q, k, v = qkv.reshape(n, t, HEADS, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
        else:
            chunks = qkv.chunk(3, dim=-1) if self.apart == "chunk" else [
                qkv[..., i * WIDTH : (i + 1) * WIDTH] for i in range(3)
            ]  # fmt: skip
            q, k, v = (part.reshape(n, t, HEADS, -1).transpose(1, 2) for part in chunks)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q * (WIDTH // HEADS) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(n, t, WIDTH))


class TorchAttention(nn.Module):
    """torchvision's: torch's own module, which works on [tokens, N, width] inside."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class WrittenOutNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        return (
            centered * torch.rsqrt((centered * centered).mean(-1, keepdim=True) + 1e-6) * self.weight
            + self.bias
        )


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "erf": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))),
    "quick": lambda x: x * torch.sigmoid(1.702 * x),
}


class Block(nn.Module):
    def __init__(
        self, attention: nn.Module, norm: Callable[[], nn.Module], activation: str, scale: bool
    ) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = norm(), attention, norm()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.activation = ACTIVATIONS[activation]
        self.scale = nn.Parameter(torch.ones(WIDTH)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.attn(self.norm1(x))
        x = x + (mixed if self.scale is None else mixed * self.scale)
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class OtherViT(nn.Module):
    """The structure of timm's and torchvision's ViT, with what varies between them."""

    def __init__(
        self,
        attention: Callable[[], nn.Module],
        *,
        activation: str = "gelu",
        norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(WIDTH, eps=1e-6),
        pool: str = "token",
        scale: bool = False,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        extra = 2 if pool == "distilled" else 1
        self.cls_token = nn.Parameter(torch.zeros(1, extra, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIDE // PATCH) ** 2 + extra, WIDTH))
        self.dropout = nn.Dropout(0.1)
        self.blocks = nn.Sequential(*(Block(attention(), norm, activation, scale) for _ in range(DEPTH)))
        self.norm, self.pool = norm(), pool
        self.head, self.head_dist = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        tokens = self.norm(self.blocks(self.dropout(tokens)))
        if self.pool == "distilled":
            return (self.head(tokens[:, 0]) + self.head_dist(tokens[:, 1])) / 2
        return self.head(tokens[:, 1:].mean(dim=1) if self.pool == "mean" else tokens[:, 0])


class HuggingFace(nn.Module):
    """transformers' ViTForImageClassification."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTForImageClassification

        self.vit = ViTForImageClassification(
            ViTConfig(
                hidden_size=WIDTH,
                num_hidden_layers=DEPTH,
                num_attention_heads=HEADS,
                intermediate_size=2 * WIDTH,
                image_size=SIDE,
                patch_size=PATCH,
                num_labels=CLASSES,
                attn_implementation=attention,
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(pixel_values=x).logits


MODELS: dict[str, Callable[[], nn.Module]] = {
    "transformers eager": lambda: HuggingFace("eager"),
    "transformers sdpa": lambda: HuggingFace("sdpa"),
    "timm unbind": lambda: OtherViT(lambda: FusedAttention("unbind")),
    "timm fused attention": lambda: OtherViT(lambda: FusedAttention("unbind", fused=True)),
    "qkv index": lambda: OtherViT(lambda: FusedAttention("index")),
    "qkv chunk": lambda: OtherViT(lambda: FusedAttention("chunk")),
    "qkv slice, layer scale": lambda: OtherViT(lambda: FusedAttention("slice"), scale=True),
    "qkv heads first": lambda: OtherViT(lambda: FusedAttention("heads first")),
    "torchvision": lambda: OtherViT(TorchAttention),
    "written out": lambda: OtherViT(lambda: FusedAttention("chunk"), activation="erf", norm=WrittenOutNorm),
    "gelu tanh": lambda: OtherViT(lambda: FusedAttention("chunk"), activation="tanh"),
    "quick gelu": lambda: OtherViT(lambda: FusedAttention("chunk"), activation="quick"),
    "distilled": lambda: OtherViT(lambda: FusedAttention("unbind"), pool="distilled"),
    "mean of tokens": lambda: OtherViT(lambda: FusedAttention("unbind"), pool="mean"),
}


def lively(name: str) -> nn.Module:
    """A model in which no parameter is zero or one, as first weights are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def other_onnx(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """An .onnx file of a model: exporter "dynamo", or an opset of the older one; batch "free" or a number."""
    folder = tmp_path_factory.mktemp("other")

    def export(name: str, exporter: str | int = 17, batch: str | int = "free") -> Path:
        path = folder / f"{name}-{exporter}-{batch}.onnx".replace(" ", "_")
        if not path.exists():
            free = batch == "free"
            images = torch.zeros(2 if free else int(batch), 3, SIDE, SIDE)
            names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if exporter == "dynamo":
                    shapes = ({0: torch.export.Dim("batch")},) if free else None
                    torch.onnx.export(
                        lively(name),
                        (images,),
                        path,
                        dynamo=True,
                        dynamic_shapes=shapes,
                        verbose=False,
                        **names,
                    )
                else:
                    axes = {"input": {0: "batch"}} if free else None
                    torch.onnx.export(
                        lively(name), (images,), path, dynamo=False, dynamic_axes=axes,
                        opset_version=int(exporter), **names
                    )  # fmt: skip
        return path

    return export
