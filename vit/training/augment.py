"""Augmentation of whole batches on the device that trains, `float [N, H, W, 3]` in 0..255 in and out.

Every random number comes from one generator on the CPU, and is drawn for the whole batch of all
processes before a process takes its part: so one process and several see the same images.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from vit.training.recipe import Recipe


class Augment:
    """The random changes of one recipe to images, which become `size` (height, width) in pixels."""

    def __init__(self, recipe: Recipe, size: tuple[int, int]) -> None:
        self.recipe, self.size = recipe, size

    def __call__(self, pixels: Tensor, random: Generator, total: int, start: int) -> Tensor:
        """Change some images of a batch, and return `float [n, height, width, 3]` in 0..255.

        `pixels` are uint8 or float `[n, H, W, 3]`, the images `start, start + 1, …` of `total` in the batch.
        """
        recipe, mine = self.recipe, slice(start, start + len(pixels))
        pixels = pixels.float()
        if recipe.crop < 1:
            boxes = random_boxes(total, recipe.crop, random)[mine]
            pixels = crop_and_resize(pixels, boxes.to(pixels.device), self.size)
        if recipe.flip:
            flipped = (torch.rand(total, generator=random) < 0.5)[mine].to(pixels.device)
            pixels = torch.where(flipped[:, None, None, None], pixels.flip(2), pixels)
        if recipe.shift:
            offsets = torch.randint(0, 2 * recipe.shift + 1, (total, 2), generator=random)[mine]
            pixels = shift(pixels, offsets.to(pixels.device), recipe.shift)
        for _ in range(recipe.randaugment):
            choice = torch.randint(len(OPERATIONS), (total,), generator=random)[mine]
            strength = ((torch.rand(total, generator=random) * 2 - 1) * recipe.magnitude)[mine]
            pixels = apply_operations(pixels, choice.to(pixels.device), strength.to(pixels.device))
        if recipe.erasing:
            numbers = torch.rand(total, 5, generator=random)[mine].to(pixels.device)
            pixels = erase(pixels, recipe.erasing, numbers)
        return pixels


def shift(pixels: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Pad each image with black, and cut it back to its size at another place.

    `offsets` are down and across, int64 `[N, 2]`, 0 to 2·padding.
    """
    height, width = pixels.shape[1:3]
    padded = F.pad(pixels, (0, 0, padding, padding, padding, padding))
    rows = offsets[:, :1] + torch.arange(height, device=pixels.device)  # (N, H)
    columns = offsets[:, 1:] + torch.arange(width, device=pixels.device)  # (N, W)
    images = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    return padded[images, rows[:, :, None], columns[:, None, :]]


def random_boxes(count: int, smallest: float, random: Generator) -> Tensor:
    """Draw boxes inside the image, `[count, 4]`: center x and y in -1..1, width and height in 0..1.

    Areas are uniform from `smallest` to 1, aspect ratios log-uniform from 3/4 to 4/3 (Inception).
    """
    area, ratio, x, y = torch.rand(4, count, generator=random)
    area = smallest + (1 - smallest) * area
    ratio = torch.exp((ratio * 2 - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    return torch.stack([(x * 2 - 1) * (1 - width), (y * 2 - 1) * (1 - height), width, height], dim=1)


def crop_and_resize(pixels: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut out each image's box `[N, 4]`, as `random_boxes` gives it, and scale it to `size`, bilinear."""
    x, y, width, height = boxes.unbind(1)
    zero = torch.zeros_like(x)
    return warp(pixels, torch.stack([width, zero, x, zero, height, y], 1).view(-1, 2, 3), size)


def warp(pixels: Tensor, matrices: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Transform each image by its affine matrix `[N, 2, 3]`, which maps new to old coordinates in -1..1."""
    images = pixels.permute(0, 3, 1, 2)
    height, width = size or images.shape[2:]
    grid = F.affine_grid(matrices, [len(pixels), 3, height, width], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False).permute(0, 2, 3, 1)


def erase(pixels: Tensor, probability: float, numbers: Tensor) -> Tensor:
    """Fill a rectangle of 2 to 33 % of the area with the image's mean (arXiv 1708.04896).

    `numbers` are uniform in 0..1, `[N, 5]`: whether, area, aspect ratio, and place across and down.
    """
    height, width = pixels.shape[1:3]
    chance, area, ratio, x, y = numbers.unbind(1)
    area = 0.02 + 0.31 * area
    ratio = torch.exp((ratio * 2 - 1) * math.log(3.3))
    box_height, box_width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    top, left = (1 - box_height) * y, (1 - box_width) * x
    rows = (torch.arange(height, device=pixels.device) + 0.5) / height
    columns = (torch.arange(width, device=pixels.device) + 0.5) / width
    inside_rows = (rows >= top[:, None]) & (rows < (top + box_height)[:, None])  # (N, H)
    inside_columns = (columns >= left[:, None]) & (columns < (left + box_width)[:, None])  # (N, W)
    hole = inside_rows[:, :, None] & inside_columns[:, None, :] & (chance < probability)[:, None, None]
    return torch.where(hole[..., None], pixels.mean((1, 2), keepdim=True), pixels)


def apply_operations(pixels: Tensor, choice: Tensor, strength: Tensor) -> Tensor:
    """Apply to each image its `choice` of `OPERATIONS`: one round of RandAugment (arXiv 1909.13719)."""
    result = pixels.clone()
    for index, operation in enumerate(OPERATIONS):
        chosen = (choice == index).nonzero()[:, 0]
        if len(chosen):
            result[chosen] = operation(pixels[chosen], strength[chosen])
    return result


# --- Operations: pixels `[N, H, W, 3]` and strengths in -1..1, `[N]`, to pixels ---


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _to_gray(pixels: Tensor) -> Tensor:
    return pixels @ pixels.new_tensor([[0.299], [0.587], [0.114]])


def _blend(pixels: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """Move pixels towards `other` at strength -1, and as far away from it at 1."""
    return (other + (pixels - other) * _per_image(1 + 0.9 * strength)).clamp(0, 255)


def identity(pixels: Tensor, _strength: Tensor) -> Tensor:
    """Leave the image as it is."""
    return pixels


def brightness(pixels: Tensor, strength: Tensor) -> Tensor:
    """Make the image darker or brighter."""
    return _blend(pixels, torch.zeros_like(pixels), strength)


def contrast(pixels: Tensor, strength: Tensor) -> Tensor:
    """Lower or raise the contrast."""
    return _blend(pixels, _to_gray(pixels).mean((1, 2), keepdim=True), strength)


def color(pixels: Tensor, strength: Tensor) -> Tensor:
    """Lower or raise the saturation."""
    return _blend(pixels, _to_gray(pixels), strength)


def sharpness(pixels: Tensor, strength: Tensor) -> Tensor:
    """Blur or sharpen the image."""
    smooth = F.avg_pool2d(pixels.permute(0, 3, 1, 2), 3, stride=1, padding=1, count_include_pad=False)
    return _blend(pixels, smooth.permute(0, 2, 3, 1), strength)


def autocontrast(pixels: Tensor, _strength: Tensor) -> Tensor:
    """Stretch the levels of the image to 0..255."""
    low, high = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    return (pixels - low) * (255 / (high - low).clamp(min=1))


def solarize(pixels: Tensor, strength: Tensor) -> Tensor:
    """Invert the levels above a threshold, which falls with the strength."""
    return torch.where(pixels >= _per_image(256 * (1 - strength.abs())), 255 - pixels, pixels)


def posterize(pixels: Tensor, strength: Tensor) -> Tensor:
    """Keep the upper 8 to 4 bits of each level."""
    step = _per_image(2.0 ** (4 * strength.abs()).round())
    return (pixels / step).floor() * step


def _transform(pixels: Tensor, *matrix: Tensor | float) -> Tensor:
    rows = [torch.as_tensor(each, device=pixels.device).expand(len(pixels)) for each in matrix]
    return warp(pixels, torch.stack(rows, 1).view(-1, 2, 3))


def rotate(pixels: Tensor, strength: Tensor) -> Tensor:
    """Rotate by up to 30 degrees."""
    angle = strength * math.radians(30)
    return _transform(pixels, angle.cos(), -angle.sin(), 0.0, angle.sin(), angle.cos(), 0.0)


def shear_x(pixels: Tensor, strength: Tensor) -> Tensor:
    """Shear rows sideways by up to 0.3 of the distance from the center."""
    return _transform(pixels, 1.0, 0.3 * strength, 0.0, 0.0, 1.0, 0.0)


def shear_y(pixels: Tensor, strength: Tensor) -> Tensor:
    """Shear columns up or down by up to 0.3 of the distance from the center."""
    return _transform(pixels, 1.0, 0.0, 0.0, 0.3 * strength, 1.0, 0.0)


def move_x(pixels: Tensor, strength: Tensor) -> Tensor:
    """Move sideways by up to 0.3 of the width."""
    return _transform(pixels, 1.0, 0.0, 0.6 * strength, 0.0, 1.0, 0.0)


def move_y(pixels: Tensor, strength: Tensor) -> Tensor:
    """Move up or down by up to 0.3 of the height."""
    return _transform(pixels, 1.0, 0.0, 0.0, 0.0, 1.0, 0.6 * strength)


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    *(identity, brightness, contrast, color, sharpness, autocontrast, solarize, posterize),
    *(rotate, shear_x, shear_y, move_x, move_y),
)


def mixing_share(alpha: float, seed: int) -> float:
    """Draw the weight of the image itself in a mixture: the larger part of a Beta(alpha, alpha).

    Partners are mixed with each other, so the smaller part would give the same mixtures in another order, and
    each would count as correct for the class with the smaller share.
    """
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    return max(share, 1 - share)


def mix_neighbors(pixels: Tensor, targets: Tensor, share: float, good: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each image and its target probabilities `[n, classes]` with its neighbor (mixup, arXiv 1710.09412).

    Neighbors in a shuffled batch are random partners; an even number of images keeps them in one process. An
    image keeps the weight `share`, and all of it if its neighbor could not be read (`good`, bool `[n]`).
    """
    own = torch.arange(len(pixels), device=pixels.device)
    partner = (own ^ 1).clamp(max=len(pixels) - 1)
    partner = torch.where(good[partner], partner, own)
    pixels = pixels * share + pixels[partner] * (1 - share)
    return pixels, targets * share + targets[partner] * (1 - share)
