"""Recipes, with model and images, whose figures are published: digits and Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.images.preprocess import Preprocess
from vit.config import ViTConfig
from vit.data.training_images import open_data
from vit.training.recipe import Recipe, RecipeError


@dataclass(frozen=True)
class ExampleRun:
    """Recipe, model and images of a training."""

    recipe: Recipe
    config: ViTConfig
    data: str

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of the images, which are square already."""
        return Preprocess(size=self.config.image_size, resize="stretch", interpolation="bilinear")


EXAMPLES: Mapping[str, ExampleRun] = {
    # 8x8 digits enlarged to 32x32: 98 to 99 % of the 360 held-out images, about 20 s on two cores. 40 epochs
    # at 2e-3 also reach 98.6 %, and take two thirds longer.
    "digits": ExampleRun(
        Recipe(name="digits", epochs=24, batch=64, lr=3e-3, holdout=0.0, shift=3, ema=0.98),
        ViTConfig(image_size=(32, 32), patch_size=8, width=64, depth=4, heads=4, mlp_width=256, classes=10),
        "digits",
    ),
    # The plain ViT that two CPU cores train in about half an hour; its log is docs/reference/logs/fashion.md.
    "fashion": ExampleRun(
        Recipe(
            name="fashion", epochs=30, batch=128, lr=1.5e-3, holdout=1 / 30, shift=1, flip=True, ema=0.998
        ),
        ViTConfig(image_size=(28, 28), patch_size=7, width=128, depth=6, heads=4, mlp_width=512, classes=10),
        "fashion-mnist",
    ),
    # For the drift tests: accurate enough to lose accuracy in INT8, and trained in half a minute.
    "fashion-quick": ExampleRun(
        Recipe(name="fashion-quick", epochs=1, batch=128, lr=3e-3, holdout=0.0, flip=True, ema=0.98),
        ViTConfig(image_size=(28, 28), patch_size=7, width=64, depth=3, heads=2, mlp_width=256, classes=10),
        "fashion-mnist",
    ),
}


def find_example(name: str) -> ExampleRun:
    """Return an example.

    Args:
        name: digits, fashion or fashion-quick.

    Raises:
        RecipeError: for an unknown name.
    """
    if name not in EXAMPLES:
        raise RecipeError(f"unknown example {name!r}; known: {', '.join(EXAMPLES)}")
    return EXAMPLES[name]


def train_example(name: str, out: Path, *, data: Path | str | None = None, **options: Any) -> Path:
    """Train an example.

    Args:
        name: of the example.
        out: folder of the run.
        data: another source of its images; None is the example's own.
        options: further arguments of `vit.train`.

    Returns:
        The file of the checkpoint.
    """
    from vit.model import new_model
    from vit.training.train import train

    chosen = find_example(name)
    recipe = chosen.recipe
    return train(
        recipe,
        model=new_model(chosen.config, recipe.seed),
        data=open_data(data or chosen.data, holdout=recipe.holdout, seed=recipe.seed),
        preprocess=chosen.preprocess,
        out=out,
        **options,
    )
