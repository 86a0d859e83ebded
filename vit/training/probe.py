"""A linear probe: a logistic regression on the features of a frozen backbone, which are computed once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.command.progress import Step
from vit.checkpoint import digest_tensors, read_tensors, write_tensors
from vit.data.batches import Store
from vit.data.datasets import DataError, Images
from vit.data.training_images import targets_of
from vit.document import CheckpointError
from vit.model import ViT
from vit.training.evaluate import mean_metrics, measure_loss, split_batches
from vit.training.label_sets import DEFAULT, measure_sets, predict_all
from vit.training.recipe import RecipeError
from vit.training.session import Session

CPU = torch.device("cpu")
# Inverse regularization strengths of scikit-learn, the strongest regularization first.
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# Without validation images: the lowest five-fold loss of a ViT-B/16 on 350 flowers.
DEFAULT_STRENGTH = 0.03


def train_probe(session: Session, device: torch.device, on_row: Callable[[dict[str, Any]], None]) -> Path:
    """Fit a new head on features computed on `device`, and write the checkpoint.

    Raises:
        RecipeError: for a model whose head is more than one linear layer.
        DataError: for a class without a readable image.
    """
    model, data = session.model, session.data
    if not isinstance(model.head, nn.Linear):
        raise RecipeError("a probe trains one linear layer, and this head has more; fine-tune instead")

    def features(name: str, images: Images) -> Features:
        store = session.read(name, images, session.preprocess)
        with Step("vit", f"computing features of {name}", len(store)) as step:
            return Features(model, store, device, session.out / "features", step.to)

    train = features("train", data.train)
    val = None if data.val is None else features("val", data.val)
    started = time.perf_counter()
    strengths = (DEFAULT_STRENGTH,) if val is None else STRENGTHS
    heads = [fit_head(train, data.train, strength, balance=session.recipe.balance) for strength in strengths]
    rows = [{"epoch": 1} | _measure("train", head, train, data.train)[0] for head in heads]
    thresholds = [(DEFAULT,) * len(data.labels) if data.train.several else None] * len(heads)
    if data.val is not None and val is not None:
        found = [_measure("val", head, val, data.val) for head in heads]
        rows = [row | figures for row, (figures, _) in zip(rows, found, strict=True)]
        thresholds = [chosen for _, chosen in found]
    choices = zip(rows, heads, thresholds, strict=True)
    row, head, session.thresholds = min(choices, key=lambda each: each[0].get("val_loss", 0.0))
    seconds = time.perf_counter() - started
    session.report_epoch([row], [seconds], 1, len(train) / seconds)
    on_row(row)
    model.head.load_state_dict(head.state_dict())
    test = None if data.test is None else features("test", data.test)
    facts = session.measure_test(model.head, test, CPU)
    return session.write_result(model.eval(), [row], facts)


class Features:
    """Batches of features `float32 [n, width]` in place of the images of `store`.

    In the folder `cache` they are kept under a name that depends on the backbone (weights and config), the
    preprocessing and the images (path, size and time of change).
    """

    def __init__(
        self,
        model: ViT,
        store: Store,
        device: torch.device,
        cache: Path,
        progress: Callable[[int], object] = lambda _: None,
    ) -> None:
        file = cache / f"{_fingerprint(model, store)}.safetensors"
        try:
            found = read_tensors(file)[0]
        except CheckpointError:  # not there, or cut off: computed again
            found = compute_features(model, store, device, progress)
            write_tensors(file, found, {})
        self.features, self.good = found["features"], found["good"].bool()

    def __len__(self) -> int:
        return len(self.features)

    def batches(self, groups: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Yield for each group of indices the indices, the features `[n, width]` and which are good."""
        for group in groups:
            yield group, self.features[group], self.good[group]


def fit_head(source: Features, images: Images, strength: float, *, balance: bool) -> nn.Linear:
    """Fit a linear head by logistic regression on standardized features.

    `strength` is scikit-learn's C: smaller is more regularization. The head that is returned takes features
    that are not standardized: exact, since both steps are linear.
    """
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression

    features, targets = source.features[source.good].double(), targets_of(images)[source.good.numpy()]
    labels = images.labels or ()
    sets = targets if images.several else targets[:, None] == np.arange(len(labels))
    for label, found in zip(labels, sets.T, strict=True):
        if not found.any() or (images.several and found.all()):
            missing = f"none {'without' if found.any() else 'of'} {label}"
            raise DataError(f"{images.name}: expected a readable image of each class, found {missing}")
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    regression = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced" if balance else None)
    scaled = ((features - mean) / std).numpy()
    # With several labels per image one regression per label: whether an image has it.
    fits = [clone(regression).fit(scaled, each) for each in (sets.T if images.several else [targets])]
    weight = torch.from_numpy(np.concatenate([each.coef_ for each in fits]))
    bias = torch.from_numpy(np.concatenate([each.intercept_ for each in fits]))
    if len(labels) == 2 and not images.several:  # scikit-learn fits the difference of the two logits
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    head = nn.Linear(features.shape[1], len(labels))
    weight = weight / std
    head.load_state_dict({"weight": weight.float(), "bias": (bias - weight @ mean).float()})
    return head


def _measure(
    part: str, head: nn.Module, source: Features, images: Images
) -> tuple[dict[str, float], tuple[float, ...] | None]:
    """Return figures for a row of the history, and the thresholds of several labels per image."""
    targets, everything = targets_of(images), np.arange(len(source))
    if images.several:
        found = predict_all(head, source, targets.shape[1], everything, CPU)
        return measure_sets(part, *found, targets)
    return mean_metrics(part, measure_loss(head, source, targets, everything, CPU).tolist()), None


@torch.no_grad()
def compute_features(
    model: ViT, store: Store, device: torch.device, progress: Callable[[int], object]
) -> dict[str, Tensor]:
    """Return the features of all images, `[n, width]`, and `good`, 1 for each readable one, uint8 `[n]`."""
    model = model.to(device).eval()
    features, good = [], []
    for group, pixels, fine in store.batches(split_batches(np.arange(len(store)), 32)):
        features.append(model.features(pixels.to(device)).float().cpu())
        good.append(fine)
        progress(int(group[-1]) + 1)
    return {"features": torch.cat(features), "good": torch.cat(good).to(torch.uint8)}


def _fingerprint(model: ViT, store: Store) -> str:
    """Return 16 hexadecimal digits that change with anything that the features depend on."""
    backbone = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    # The config too: heads, activation and epsilon are in no weight.
    config = replace(model.config, classes=0, representation=None)
    digest = hashlib.sha256(repr((digest_tensors(backbone), config, store.preprocess)).encode())
    for item in store.images.items:
        if isinstance(item, Path):
            digest.update(f"{item} {_stamp(item)}\n".encode(errors="surrogateescape"))
        else:
            digest.update(np.ascontiguousarray(item).tobytes())
    return digest.hexdigest()[:16]


def _stamp(file: Path) -> str:
    """Return size and time of change of a file; empty where it cannot be read, as `Store` reports."""
    try:
        stat = file.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"
