"""Attention of a model: maps, and their rollout over the blocks (arXiv 2005.00928)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vit.checkpoint import Checkpoint
from vit.config import ViTConfig
from vit.data.batches import Store
from vit.data.datasets import Images
from vit.model import Attention, ViT
from vit.training.evaluate import predict

# --- Attention of a model: maps, and their rollout over the blocks (arXiv 2005.00928) ---


@torch.no_grad()
def attention_maps(model: ViT, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """`[blocks, N, heads, T, T]` attention probabilities, and the logits `[N, classes]`."""
    maps: list[Tensor] = []

    def record(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Attention)
        query, key = module.queries_and_keys(inputs[0])
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5  # (N, h, T, T)
        if module.bias is not None:
            scores = scores + module.bias
        maps.append(scores.softmax(-1))

    hooks = [block.attention.register_forward_pre_hook(record) for block in model.blocks]  # type: ignore[union-attr]
    try:
        logits = model.eval()(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(maps), logits


def rollout(maps: Tensor, config: ViTConfig | None = None) -> Tensor:
    """Return the share of each patch in the class token, `[N, T - 1]`, each row summing to 1 (figure 6).

    Without a class token it is the mean of the patches that they flow into. Registers are no patches.
    The heads are averaged, half of each block is its residual, and the blocks are multiplied.
    """
    mean = maps.mean(2)  # (blocks, N, T, T)
    half = 0.5 * (mean + torch.eye(mean.shape[-1]))
    flow = half[0]
    for step in half[1:]:
        flow = step @ flow
    config = config or ViTConfig()
    start, end = int(config.class_token), maps.shape[-1] - config.registers
    seen = flow[:, 0] if config.class_token else flow.mean(1)  # (N, T)
    patches = seen[:, start:end]
    return patches / patches.sum(-1, keepdim=True)


# --- Answers of a model for images whose classes are known, and where in the image they come from ---


ATTENDED = 8  # images whose attention is shown
MISTAKES = 24
BAD = 0.01  # share of images that may be unreadable
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Verdicts:
    """Answers of a model for images whose classes are known, without those that cannot be read."""

    store: Store
    places: np.ndarray  # int64 [N], of the images in the store
    targets: np.ndarray  # int64 [N]
    probabilities: np.ndarray  # float [N, classes]
    predicted: np.ndarray  # int64 [N], the true class in the place of another of its name

    def pixels(self, chosen: Sequence[int]) -> np.ndarray:
        """Return the pixels of some of the N images, uint8 [chosen, H, W, 3]."""
        found: np.ndarray = self.store.batch(self.places[list(chosen)])[0].numpy()
        return found

    @property
    def right(self) -> int:
        return int((self.predicted == self.targets).sum())

    def surest_mistakes(self) -> list[int]:
        """Return the indices of the images whose wrong class got the highest probability, surest first."""
        certainty = self.probabilities.max(1)
        wrong = np.flatnonzero(self.predicted != self.targets)
        return [int(i) for i in wrong[np.argsort(-certainty[wrong], kind="stable")][:MISTAKES]]


@dataclass(frozen=True)
class Attended:
    """An image, and the same image lit where its answer comes from."""

    pixels: np.ndarray  # uint8 [H, W, 3]
    lit: np.ndarray  # uint8 [H, W, 3]
    label: str
    right: bool


def judge(checkpoint: Checkpoint, images: Images) -> Verdicts:
    """Run the model over `images`, which must have targets."""
    assert images.targets is not None
    store = Store(images, checkpoint.preprocess, bad_share=BAD)
    everything = np.arange(len(store))
    batches = [
        (pixels.softmax(1), good) for _, pixels, good in predict(checkpoint.model, store, everything, CPU)
    ]
    places = np.flatnonzero(torch.cat([good for _, good in batches]).numpy())
    probabilities = torch.cat([share for share, _ in batches]).numpy()[places]
    predicted = images.subset(places).settle(probabilities.argmax(1))
    return Verdicts(store, places, images.targets[places], probabilities, predicted)


def attend(checkpoint: Checkpoint, verdicts: Verdicts) -> list[Attended]:
    """Return one image of each of the first classes, lit by the rollout of its attention."""
    classes = np.unique(verdicts.targets)[:ATTENDED]
    first = [int(np.flatnonzero(verdicts.targets == target)[0]) for target in classes]
    pixels, config = verdicts.pixels(first), checkpoint.model.config
    # One at a time: the maps of a ViT-L/14 at 518 pixels take 3 GB per image.
    maps = (attention_maps(checkpoint.model, image[None])[0] for image in torch.from_numpy(pixels))
    flow = torch.cat([rollout(each, config) for each in maps]).view(len(first), 1, *config.grid)
    masks = torch.nn.functional.interpolate(flow, pixels.shape[1:3], mode="bilinear")[:, 0].numpy()
    low, high = masks.min((1, 2), keepdims=True), masks.max((1, 2), keepdims=True)
    masks = (masks - low) / (high - low + 1e-12)  # every patch gets some: what counts is where it gets more
    lit = np.rint(pixels * (0.15 + 0.85 * masks[..., None])).astype(np.uint8)
    return [
        Attended(
            pixels[i],
            lit[i],
            checkpoint.labels[verdicts.predicted[index]],
            bool(verdicts.predicted[index] == verdicts.targets[index]),
        )
        for i, index in enumerate(first)
    ]
