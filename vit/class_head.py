"""A head without training: its classes are vectors, from words or from a few example images.

Embedding and class vectors have length 1, so that a logit is a cosine times a scale. The head is one linear
layer, whose rows are the class vectors times the scale. Its bias is SigLIP's, or moves the center of all
examples to zero: the direction that all images share says nothing about a class (arXiv 1911.04623).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.command.progress import Step
from runtime.errors import InputError
from runtime.images.preprocess import Preprocess
from vit.data.batches import Store
from vit.data.datasets import DataError, Images
from vit.data.training_images import targets_of
from vit.model import ViT
from vit.training.probe import compute_features

# Scales that a head of examples may have; 100 is the largest of CLIP (arXiv 2103.00020, section 2.5).
SCALES = torch.logspace(0, 2, 81)
# Where no class has two examples to fit it on. With one example per class the best were 9 and 21, of a
# ViT-B/16 on flowers and on CIFAR-10.
DEFAULT_SCALE = 15.0


class HeadError(InputError):
    """A head that class vectors cannot be added to."""


def attach_head(
    model: ViT,
    vectors: Tensor,
    *,
    scale: float,
    bias: float = 0.0,
    center: Tensor | None = None,
    projection: Tensor | None = None,
) -> ViT:
    """Return a copy of `model` whose logits are scaled products of an embedding and the class vectors.

    Args:
        model: of any head, which is left out.
        vectors: of the classes, float32 `[classes, width]`, of length 1.
        scale: the factor of the products.
        bias: added to each logit.
        center: subtracted from each embedding, float32 `[width]`; None for zero.
        projection: of the pooled features to the width of the vectors, `[width, pooled]`; None keeps the
            model's, which mostly has none.
    """
    width = model.config.projection if projection is None else len(projection)
    config = replace(model.config, representation=None, projection=width, cosine_head=True)
    made = ViT(replace(config, classes=len(vectors)))
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    if projection is not None:
        tensors |= {"projection.weight": projection, "projection.bias": torch.zeros(len(projection))}
    biases = torch.full((len(vectors),), bias)
    biases = biases if center is None else biases - scale * vectors @ center
    tensors |= {"head.weight": scale * vectors, "head.bias": biases}
    made.load_state_dict(tensors)
    return made.eval()


def embed_images(model: ViT, preprocess: Preprocess, images: Images) -> tuple[Tensor, np.ndarray]:
    """Return the embeddings of readable images, float32 `[n, width]` of length 1, and their class indices."""
    with Step("vit", "embedding examples", len(images)) as step:
        found = compute_features(model, Store(images, preprocess), torch.device("cpu"), step.to)
    good = found["good"].bool()
    return F.normalize(found["features"][good], dim=-1), targets_of(images)[good.numpy()]


def average_examples(embeddings: Tensor, targets: np.ndarray, labels: Sequence[str]) -> Tensor:
    """Return the mean embedding of each class, float32 `[classes, width]`.

    Raises:
        DataError: for a class without an image.
    """
    counts = np.bincount(targets, minlength=len(labels))
    if not counts.all():
        raise DataError(f"expected images of each class, found none of {labels[int(counts.argmin())]}")
    return _sum_classes(embeddings, targets, len(labels)) / torch.from_numpy(counts)[:, None]


def _sum_classes(embeddings: Tensor, targets: np.ndarray, classes: int) -> Tensor:
    sums = torch.zeros(classes, embeddings.shape[1])
    return sums.index_add(0, torch.from_numpy(targets), embeddings)


def fit_scale(embeddings: Tensor, targets: np.ndarray, words: Tensor | None = None) -> float | None:
    """Return the scale whose scores fit the examples best, each left out of its own class's mean.

    It minimizes the cross-entropy of the softmax. Without an example to spare in any class it is None.

    Args:
        embeddings: of the examples, less their center, float32 `[n, width]`.
        targets: class indices, int64 `[n]`.
        words: class vectors of the same classes, as for `combine`.
    """
    index = torch.from_numpy(targets)
    sums = _sum_classes(embeddings, targets, int(targets.max()) + 1)
    spare = torch.bincount(index)[index] > 1
    if not spare.any():
        return None
    products = embeddings @ combine(sums, words).T
    without = combine(sums[index] - embeddings, None if words is None else words[index])
    products[torch.arange(len(index)), index] = (embeddings * without).sum(-1)
    losses = [F.cross_entropy(scale * products[spare], index[spare]) for scale in SCALES]
    return float(SCALES[int(torch.stack(losses).argmin())])


def combine(means: Tensor, words: Tensor | None) -> Tensor:
    """Return the class vectors of centered means and, where there are any, of words, scaled to length 1.

    Both count the same. Words have a center of their own: texts and images lie in different places.
    """
    means = F.normalize(means, dim=-1)
    return means if words is None else F.normalize(means + F.normalize(words, dim=-1), dim=-1)


def read_head(model: ViT) -> tuple[Tensor, float, Tensor]:
    """Return the class vectors, the scale and the biases of a head that `attach_head` made.

    Raises:
        HeadError: for any other head.
    """
    head = model.head
    if isinstance(head, nn.Linear) and model.config.cosine_head:
        rows = head.weight.detach()
        lengths = rows.norm(dim=1)
        if lengths.min() > 0.999 * lengths.max():
            return F.normalize(rows, dim=-1), float(lengths.mean()), head.bias.detach()
    raise HeadError("expected a head of class vectors, found one that was trained")


def add_class(model: ViT, mean: Tensor, center: Tensor) -> ViT:
    """Return a copy of `model` with one class more, at the scale of its others.

    Args:
        model: with a head that `attach_head` made of examples.
        mean: embedding of the examples of the new class, float32 `[width]`.
        center: of the examples of the others, float32 `[width]`.

    Raises:
        HeadError: for any other head.
    """
    vectors, scale, _ = read_head(model)
    if center.shape != vectors.shape[1:]:
        raise HeadError(f"expected a center of {vectors.shape[1]} numbers, found {len(center)}")
    added = F.normalize(mean - center, dim=-1)
    return attach_head(model, torch.cat([vectors, added[None]]), scale=scale, center=center)
