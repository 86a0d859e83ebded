"""Parts that learn: the whole model, or a new head on the features of a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from runtime.images.preprocess import Preprocess, scaled_edge
from vit.checkpoint import load_checkpoint
from vit.config import merge_schedule
from vit.data.batches import Store
from vit.document import FILE_NAME
from vit.model import ViT
from vit.tensors import read_tensors, write_tensors
from vit.token_merging import set_merging
from vit.training.evaluate import Batches
from vit.training.probe import Features, Probe, folded
from vit.training.recipe import Recipe

HEAD = "head.safetensors"  # the best head of a probe, until the whole model is written
Weights = Mapping[str, Tensor]


class Strategy(Protocol):
    """The choices in which training a whole model and training a head differ."""

    @property
    def training_view(self) -> Preprocess:
        """The preprocessing of the images to learn from."""

    @property
    def augmented_size(self) -> tuple[int, int] | None:
        """(height, width) that augmentation gives, None where there is no augmentation."""

    def batches(
        self, store: Store, device: torch.device, cache: Path | None, progress: Callable[[int], object]
    ) -> Batches:
        """Return what the loop reads for the images of `store`.

        Args:
            store: the decoded images.
            device: where features are computed.
            cache: a folder to keep features in, or None.
            progress: called with the number of images whose features are computed.
        """

    def module(self, train: Batches) -> nn.Module:
        """Return what the optimizer changes."""

    def keep(self, weights: Weights, save: Callable[[ViT], object]) -> None:
        """Write the weights of the best epoch so far; `save` writes a checkpoint of a whole model."""

    def kept(self) -> Weights:
        """Return the weights that `keep` wrote last."""

    def assembled(self, weights: Weights) -> ViT:
        """Return the whole model with the weights that were trained, in evaluation mode."""

    def judge(self, model: ViT) -> nn.Module:
        """Return the part of an assembled model that takes what `batches` gives."""


@dataclass(frozen=True)
class WholeModel:
    """Every weight learns, from augmented images."""

    model: ViT
    preprocess: Preprocess
    recipe: Recipe
    out: Path

    @property
    def training_view(self) -> Preprocess:
        """The model's own view; with more pixels where random crops are cut from it."""
        return self.preprocess if self.recipe.crop >= 1 else larger(self.preprocess)

    @property
    def augmented_size(self) -> tuple[int, int] | None:
        """The model's own size."""
        return self.preprocess.size

    def batches(
        self, store: Store, device: torch.device, cache: Path | None, progress: Callable[[int], object]
    ) -> Batches:
        """Return the images themselves."""
        del device, cache, progress
        return store

    def module(self, train: Batches) -> nn.Module:
        """Return the model, merging tokens where the recipe says so."""
        del train
        return self.judge(self.model)

    def keep(self, weights: Weights, save: Callable[[ViT], object]) -> None:
        """Write a checkpoint."""
        save(self.assembled(weights))

    def kept(self) -> Weights:
        """Return the weights of the checkpoint."""
        return load_checkpoint(self.out / FILE_NAME).model.state_dict()

    def assembled(self, weights: Weights) -> ViT:
        """Return a model with these weights."""
        whole = ViT(self.model.config)
        whole.load_state_dict(dict(weights))
        return whole.eval()

    def judge(self, model: ViT) -> nn.Module:
        """Return the model, merging tokens from now on where the recipe says so."""
        if not self.recipe.merge_tokens:
            return model
        return set_merging(model, merge_schedule(model.config, self.recipe.merge_tokens))


@dataclass(frozen=True)
class LinearProbe:
    """A head learns, on features of the frozen backbone that are computed once for each image."""

    model: ViT
    preprocess: Preprocess
    out: Path

    @property
    def training_view(self) -> Preprocess:
        """The model's own view."""
        return self.preprocess

    @property
    def augmented_size(self) -> tuple[int, int] | None:
        """None: features are not augmented."""
        return None

    def batches(
        self, store: Store, device: torch.device, cache: Path | None, progress: Callable[[int], object]
    ) -> Features:
        """Return the features of the images, computed now or read from `cache`."""
        return Features(self.model, store, device, cache, progress)

    def module(self, train: Batches) -> nn.Module:
        """Return a head on features that are standardized with the statistics of the training images."""
        assert isinstance(train, Features)  # made by `batches`
        return Probe(self.model.head, train.features[train.good])

    def keep(self, weights: Weights, save: Callable[[ViT], object]) -> None:
        """Write the head alone: the backbone does not change."""
        del save
        write_tensors(self.out / HEAD, weights, {})

    def kept(self) -> Weights:
        """Return the head."""
        return read_tensors(self.out / HEAD)[0]

    def assembled(self, weights: Weights) -> ViT:
        """Return the backbone with the head for raw features."""
        whole = ViT(self.model.config)
        whole.load_state_dict(self.model.state_dict())
        whole.head.load_state_dict(folded(weights))
        return whole.eval()

    def judge(self, model: ViT) -> nn.Module:
        """Return the head."""
        return model.head


def strategy_for(recipe: Recipe, model: ViT, preprocess: Preprocess, out: Path) -> Strategy:
    """Return the strategy that a recipe asks for."""
    if recipe.freeze:
        return LinearProbe(model, preprocess, out)
    return WholeModel(model, preprocess, recipe, out)


def larger(preprocess: Preprocess) -> Preprocess:
    """Return the same view with 8/7 of the pixels along each edge, for random crops to be cut from."""
    height, width = (round(edge * 8 / 7) for edge in preprocess.size)
    return replace(preprocess, size=(height, width), resize_to=scaled_edge(preprocess.resize_to, 8 / 7))
