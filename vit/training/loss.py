"""Loss function: cross-entropy on smoothed, mixed, weighted targets, and distillation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vit.training.recipe import Recipe


def smoothed_targets(targets: Tensor, classes: int, smoothing: float) -> Tensor:
    """Class indices `[n]` to probabilities `[n, classes]`: 1 - smoothing for the class, the rest for all."""
    return F.one_hot(targets, classes).float() * (1 - smoothing) + smoothing / classes


def class_weights(targets: np.ndarray, classes: int) -> Tensor:
    """The inverse frequency of each class, scaled to a mean of 1 over the images; `[classes]`."""
    counts = np.bincount(targets, minlength=classes)
    weights = len(targets) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(weights).float()


def sample_losses(recipe: Recipe, logits: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:
    """Return the loss of each image, `[n]`.

    Args:
        recipe: gives the weight and the temperature of the distillation.
        logits: the student's, `[n, classes]`.
        targets: probabilities, `[n, classes]`.
        teacher: the teacher's logits for the same pixels. Its part is soft distillation (arXiv 1503.02531;
            arXiv 2012.12877, equation 2): the divergence of the softened probabilities times T².
    """
    losses = -(targets * F.log_softmax(logits, -1)).sum(-1)
    if teacher is None:
        return losses
    temperature = recipe.temperature
    student_log = F.log_softmax(logits / temperature, -1)
    teacher_log = F.log_softmax(teacher / temperature, -1)
    divergence = (teacher_log.exp() * (teacher_log - student_log)).sum(-1) * temperature**2
    return (1 - recipe.distill) * losses + recipe.distill * divergence
