"""Predictions for images whose classes are known, and the attention of a model (arXiv 2005.00928)."""

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
from vit.training.evaluate import predict_logits

# --- Attention maps, and their rollout over the blocks ---


@torch.no_grad()
def attention_maps(model: ViT, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention probabilities `[blocks, N, h, T, T]`, and the logits `[N, classes]`.

    `pixels` are uint8 `[N, H, W, 3]`; the model is set to evaluation mode.
    """
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

    The heads of `maps`, `[blocks, N, h, T, T]`, are averaged, half of each block is its residual, and the
    blocks are multiplied. Registers are left out. Without a class token, the share is the mean over all
    patches. None for `config`: a class token and no registers.
    """
    mean = maps.mean(2)  # (blocks, N, T, T)
    half = 0.5 * (mean + torch.eye(mean.shape[-1]))
    flow = half[0]
    for step in half[1:]:
        flow = step @ flow
    config = config or ViTConfig()
    start, end = int(config.class_token), maps.shape[-1] - config.registers
    share = flow[:, 0] if config.class_token else flow.mean(1)  # (N, T)
    patches = share[:, start:end]
    return patches / patches.sum(-1, keepdim=True)


# --- Predictions, and the parts of the image that they depend on ---


ATTENDED = 8  # images whose attention is shown
MISTAKES = 24  # images that are shown with a wrong label
BAD = 0.01  # share of images that may be unreadable
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Predictions:
    """Predictions for images whose classes are known, without images that cannot be read.

    Attributes:
        store: all images.
        places: indices of the N images in the store, int64 `[N]`.
        targets: true classes, int64 `[N]`.
        probabilities: float `[N, classes]`.
        predicted: predicted classes, in which the true class replaces another one of its name, int64 `[N]`.
    """

    store: Store
    places: np.ndarray
    targets: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray

    def pixels(self, chosen: Sequence[int]) -> np.ndarray:
        """Return the pixels of some of the N images, uint8 [chosen, H, W, 3]."""
        found: np.ndarray = self.store.batch(self.places[list(chosen)])[0].numpy()
        return found

    @property
    def right(self) -> int:
        """Number of images whose predicted class is the true one."""
        return int((self.predicted == self.targets).sum())

    def surest_mistakes(self) -> list[int]:
        """Return the indices of the images whose wrong class got the highest probability, surest first."""
        certainty = self.probabilities.max(1)
        wrong = np.flatnonzero(self.predicted != self.targets)
        return [int(i) for i in wrong[np.argsort(-certainty[wrong], kind="stable")][:MISTAKES]]


@dataclass(frozen=True)
class Attended:
    """An image, and the same image lit where the prediction attends to."""

    pixels: np.ndarray  # uint8 [H, W, 3]
    lit: np.ndarray  # uint8 [H, W, 3]
    label: str
    right: bool


def predict_labels(checkpoint: Checkpoint, images: Images) -> Predictions:
    """Run the model of a checkpoint over images whose classes are known."""
    assert images.targets is not None
    store = Store(images, checkpoint.preprocess, bad_share=BAD)
    everything = np.arange(len(store))
    batches = [
        (pixels.softmax(1), good)
        for _, pixels, good in predict_logits(checkpoint.model, store, everything, CPU)
    ]
    places = np.flatnonzero(torch.cat([good for _, good in batches]).numpy())
    probabilities = torch.cat([share for share, _ in batches]).numpy()[places]
    predicted = images.subset(places).settle(probabilities.argmax(1))
    return Predictions(store, places, images.targets[places], probabilities, predicted)


def show_attention(checkpoint: Checkpoint, predictions: Predictions) -> list[Attended]:
    """Return one image of each of the first classes, lit by the rollout of its attention."""
    classes = np.unique(predictions.targets)[:ATTENDED]
    first = [int(np.flatnonzero(predictions.targets == target)[0]) for target in classes]
    pixels, config = predictions.pixels(first), checkpoint.model.config
    # One at a time: the maps of a ViT-L/14 at 518 pixels take 3 GB per image.
    maps = (attention_maps(checkpoint.model, image[None])[0] for image in torch.from_numpy(pixels))
    flow = torch.cat([rollout(each, config) for each in maps]).view(len(first), 1, *config.grid)
    masks = torch.nn.functional.interpolate(flow, pixels.shape[1:3], mode="bilinear")[:, 0].numpy()
    low, high = masks.min((1, 2), keepdims=True), masks.max((1, 2), keepdims=True)
    masks = (masks - low) / (high - low + 1e-12)  # every patch gets some: what counts is where it gets more
    lit = np.rint(pixels * (0.15 + 0.85 * masks[..., None])).astype(np.uint8)
    given = predictions.predicted[first]
    right = given == predictions.targets[first]
    return [
        Attended(pixels[i], lit[i], checkpoint.labels[label], bool(right[i])) for i, label in enumerate(given)
    ]
