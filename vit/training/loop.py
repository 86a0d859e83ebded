"""The training loop: batches in, better weights out, and nothing about files or command lines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import FailureError, Interrupted
from vit.training.augment import Augment, mix_neighbors, mixing_share
from vit.training.distributed import World
from vit.training.evaluate import Batches, best_epoch, count_correct, mean_metrics, measure_loss, stop_early
from vit.training.label_sets import DEFAULT, measure_sets, predict_all
from vit.training.optimizer import learning_rate, make_average, make_optimizer, set_learning_rate
from vit.training.recipe import Recipe, RecipeError
from vit.training.resume import Progress, seed_generator

ORDER, CHANGES, DROPOUT = range(3)  # what the random numbers are for


class TrainingError(FailureError):
    """Training that cannot continue; the message says what to change."""


class Loop:
    """Training of one module.

    Args:
        module: maps a batch of `source` to logits, as `teacher` does to the teacher's.
        source: the images to train on.
        targets: int64 `[N]`, their classes; bool `[N, classes]` of images with several labels.
        size: (height, width) of the images after augmentation, in pixels.
        validation: images and targets that choose the best epoch; None keeps the last one.
        world: the processes that train together; None is this one alone.
    """

    def __init__(
        self,
        module: nn.Module,
        source: Batches,
        targets: np.ndarray,
        *,
        classes: int,
        recipe: Recipe,
        device: torch.device,
        size: tuple[int, int],
        validation: tuple[Batches, np.ndarray] | None = None,
        world: World | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.recipe, self.device, self.world = recipe, device, world or World()
        self.source, self.targets, self.validation = source, targets, validation
        self.classes, self.teacher, self.several = classes, teacher, targets.ndim == 2
        # Of each label, where an image has several; each evaluation chooses them anew.
        self.thresholds = (DEFAULT,) * classes if self.several else None
        self.teacher_cache: dict[tuple[int, int], Tensor] = {}  # logits by view and step
        self.module = module.to(device)
        self.optimizer = make_optimizer(self.module, recipe)
        self.average = make_average(self.module, recipe.ema) if recipe.ema else None
        self.augment = Augment(recipe, size)
        weighted = recipe.balance and not self.several
        weights = class_weights(targets, classes) if weighted else torch.ones(classes)
        self.weights = weights.to(device)
        batch = min(recipe.batch, len(source))
        # Each process takes as many, and an even number of them, since mixup pairs neighbors.
        multiple = self.world.size * (2 if recipe.mixup and self.world.size > 1 else 1)
        if multiple > len(source):
            expected = f"{self.world.size} processes take at least {multiple} images per step"
            raise RecipeError(f"{expected}, found {len(source)} to train on; start fewer processes")
        self.batch = max(batch - batch % multiple, multiple)
        self.steps = max(len(source) // self.batch, 1)
        self.all_steps = recipe.epochs * self.steps
        self.progress = Progress()
        self.forward = self._make_forward()

    def run(
        self,
        *,
        on_step: Callable[[Progress, float], None] = lambda _progress, _loss: None,
        on_epoch: Callable[[dict[str, Any], bool], None] = lambda _row, _best: None,
        stop: Callable[[], bool] = lambda: False,
        save: Callable[[], None] = lambda: None,
    ) -> list[dict[str, Any]]:
        """Train from the current state to the last epoch.

        Args:
            on_step: called after each step with the progress and the loss of the step.
            on_epoch: called after each epoch with its row and whether it is the best so far.
            stop: asked after each step; True ends the training.
            save: called after each epoch, and before `Interrupted` is raised.

        Returns:
            The history, one row per epoch.

        Raises:
            TrainingError: when the loss is no longer a number.
            Interrupted: when `stop` returned True in any process.
        """
        progress = self.progress
        while not progress.finished:
            started = time.perf_counter()
            for loss in self._epoch():
                on_step(progress, loss)
                if self._any(stop()):
                    save()
                    raise Interrupted("stopped; the state is kept: the same command with --resume continues")
            row, best = self._close_epoch()
            progress.seconds.append(time.perf_counter() - started)
            on_epoch(row, best)
            save()
        return progress.history

    @property
    def best_module(self) -> nn.Module:
        """The module whose weights are kept: the moving average where there is one."""
        return self.average.module if self.average else self.module

    def evaluate(self, source: Batches, targets: np.ndarray) -> dict[str, float]:
        """Return loss and accuracy of the weights to keep, over all processes, without augmentation.

        Of images with several labels also mAP and F1; their thresholds are chosen.
        """
        shard = np.arange(len(source))[self.world.rank :: self.world.size]
        with self._precision():
            if self.several:
                found = predict_all(self.best_module, source, self.classes, shard, self.device)
                logits, good = (self.world.sum(each) for each in found)
                row, self.thresholds = measure_sets("val", logits, good, targets)
                return row
            sums = measure_loss(self.best_module, source, targets, shard, self.device)
        return mean_metrics("val", self.world.sum(sums).tolist())

    def _epoch(self) -> Iterator[float]:
        """Train on the rest of the current epoch; yield one loss per step."""
        progress = self.progress
        random = np.random.default_rng((self.recipe.seed, ORDER, self._view()))
        order = random.permutation(len(self.source))
        groups = (self._shard(order, step) for step in range(progress.step, self.steps))
        self.module.train()
        for indices, inputs, good in self.source.batches(groups):
            loss = self._step(indices, inputs.to(self.device, non_blocking=True), good.to(self.device))
            progress.step += 1
            yield loss

    def _step(self, indices: np.ndarray, inputs: Tensor, good: Tensor) -> float:
        """Take one step of the optimizer, and return the loss over all processes."""
        recipe, progress = self.recipe, self.progress
        done = progress.epoch * self.steps + progress.step
        set_learning_rate(self.optimizer, learning_rate(recipe, done, self.all_steps))
        hard = torch.from_numpy(self.targets[indices]).to(self.device)
        soft = hard.float() if self.several else smooth_targets(hard, self.classes, recipe.smoothing)
        inputs, targets = self._augment(inputs, soft, good)
        teacher = self._teacher_logits(inputs)
        weights = good.float() if self.several else self.weights[hard] * good
        total = self.world.sum(weights.sum())
        random = seed_generator(recipe.seed, DROPOUT, *self._position(), self.world.rank)
        torch.manual_seed(random.initial_seed())
        with self._precision():
            logits = self.forward(inputs)
        losses = sample_losses(recipe, logits.float(), targets, teacher, several=self.several)
        loss = (losses * weights).sum() / total.clamp(min=1e-12)
        self.optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel takes the mean over the processes.
        torch.autograd.backward(loss * self.world.size)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), recipe.clip)
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.module)
        # Nothing is added, except where the gradient is infinite and the weights are lost: 0 times infinity.
        lost = loss.detach() * total + 0 * norm
        correct = count_correct(logits, hard, good)
        return self._count(torch.stack([lost, correct, good.sum().float()]), total)

    def _count(self, sums: Tensor, total: Tensor) -> float:
        """Add one step to the sums of the epoch, and return the loss of this step over all processes."""
        # `loss * total` is this process's share of the weighted sum, so the sums add up.
        added = self.world.sum(sums.double()).tolist()
        place = f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}"
        self._check_finite(added[0], "the loss or its gradient", place)
        loss: float = added[0] / max(float(total), 1e-12)
        added[0] = loss * added[2]  # the mean over images, however the classes are weighted
        self.progress.sums = [old + new for old, new in zip(self.progress.sums, added, strict=True)]
        return loss

    def _check_finite(self, value: float, what: str, place: str) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"{what} is not a number in {place}; try a lower learning rate "
                f"(--lr {self.recipe.lr / 3:.1e}), more warm-up (--set warmup=0.2) or --set precision=float32"
            )

    def _augment(self, inputs: Tensor, targets: Tensor, good: Tensor) -> tuple[Tensor, Tensor]:
        """Augment and mix the images of this process."""
        random = seed_generator(self.recipe.seed, CHANGES, *self._position())
        inputs = self.augment(inputs, random, self.batch, self.world.rank * len(inputs))
        if not self.recipe.mixup:
            return inputs, targets
        share = mixing_share(self.recipe.mixup, random.initial_seed())
        return mix_neighbors(inputs, targets, share, good)

    def _teacher_logits(self, inputs: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        position = self._position()
        if position in self.teacher_cache:
            return self.teacher_cache[position]
        with torch.no_grad(), self._precision():
            logits = self.teacher(inputs).float()
        if self.recipe.views:
            self.teacher_cache[position] = logits
        return logits

    def _close_epoch(self) -> tuple[dict[str, Any], bool]:
        """Evaluate, and return the row of the epoch and whether it is the best so far."""
        progress = self.progress
        rate = learning_rate(self.recipe, (progress.epoch + 1) * self.steps - 1, self.all_steps)
        row = {"epoch": progress.epoch + 1, "lr": rate} | mean_metrics("train", progress.sums)
        if self.validation:
            row |= self.evaluate(*self.validation)
            self._check_finite(row["val_loss"], "the validation loss", f"epoch {row['epoch']}")
        progress.history.append(row)
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, [0.0, 0.0, 0.0]
        progress.finished = progress.epoch >= self.recipe.epochs
        if not self.validation:
            return row, True
        progress.finished = progress.finished or stop_early(progress.history, self.recipe.early_stop)
        return row, best_epoch(progress.history) == row["epoch"]

    def _shard(self, order: np.ndarray, step: int) -> np.ndarray:
        """Return this process's part of a batch: batches are cut into one block per process."""
        share = self.batch // self.world.size
        start = step * self.batch + self.world.rank * share
        return order[start : start + share]

    def _view(self) -> int:
        """Return the number that augmentation depends on: of the epoch, or of one of `views` views."""
        epoch = self.progress.epoch
        return epoch % self.recipe.views if self.recipe.views else epoch

    def _position(self) -> tuple[int, int]:
        return self._view(), self.progress.step

    def _any(self, flag: bool) -> bool:
        """Return whether any process was asked to stop, so that all of them stop after the same step."""
        return bool(self.world.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def _precision(self) -> AbstractContextManager[Any]:
        name = self.recipe.precision
        half = name == "bfloat16" or (name == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()

    def _make_forward(self) -> Callable[[Tensor], Tensor]:
        """Wrap the module for several processes and for torch.compile, as far as the recipe asks for it."""
        module: Any = self.module
        if self.world.size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            module = DistributedDataParallel(module, device_ids=ids)
        return torch.compile(module) if self.recipe.compile else module


# --- Loss function ---


def smooth_targets(targets: Tensor, classes: int, smoothing: float) -> Tensor:
    """Turn class indices `[n]` into probabilities `[n, classes]`.

    The class gets 1 - smoothing, and `smoothing` is spread evenly over all classes (arXiv 1512.00567).
    """
    return F.one_hot(targets, classes).float() * (1 - smoothing) + smoothing / classes


def class_weights(targets: np.ndarray, classes: int) -> Tensor:
    """Return the inverse frequency of each class, scaled to a mean of 1 over the images; `[classes]`."""
    counts = np.bincount(targets, minlength=classes)
    weights = len(targets) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(weights).float()


def sample_losses(
    recipe: Recipe, logits: Tensor, targets: Tensor, teacher: Tensor | None, *, several: bool = False
) -> Tensor:
    """Return the loss of each image, `[n]`, from logits, target probabilities and logits of the teacher.

    The teacher's part is soft distillation (arXiv 1503.02531; arXiv 2012.12877, equation 2): the divergence
    of the softened probabilities times T². With several labels per image, each label is a question of its
    own: the mean of its cross-entropies.
    """
    if several:
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)
        if teacher is None:
            return losses
        scaled, soft = logits / recipe.temperature, (teacher / recipe.temperature).sigmoid()
        taught = F.binary_cross_entropy_with_logits(scaled, soft, reduction="none").mean(-1)
        return (1 - recipe.distill) * losses + recipe.distill * recipe.temperature**2 * taught
    losses = -(targets * F.log_softmax(logits, -1)).sum(-1)
    if teacher is None:
        return losses
    temperature = recipe.temperature
    student_log = F.log_softmax(logits / temperature, -1)
    teacher_log = F.log_softmax(teacher / temperature, -1)
    divergence = (teacher_log.exp() * (teacher_log - student_log)).sum(-1) * temperature**2
    return (1 - recipe.distill) * losses + recipe.distill * divergence
