"""The training loop: batches in, better weights out, and nothing about files or command lines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import FailureError, Interrupted
from vit.training.augment import Augment, mixed, mixing_share
from vit.training.distributed import World
from vit.training.evaluate import Batches, best_epoch, no_better, predict
from vit.training.optimizer import learning_rate, make_optimizer, moving_average, set_learning_rate
from vit.training.recipe import Recipe, RecipeError
from vit.training.resume import Progress, random_for

# --- Loss function: cross-entropy on smoothed, mixed, weighted targets, and distillation ---


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


# --- The training loop: batches in, better weights out, and nothing about files or command lines ---


ORDER, CHANGES, DROPOUT = range(3)  # what the random numbers are for


class TrainingError(FailureError):
    """Training that cannot go on; the message says what to change."""

    @classmethod
    def diverged(cls, what: str, place: str, recipe: Recipe) -> TrainingError:
        """Return the error of a number that has become infinite or none."""
        return cls(
            f"{what} is not a number in {place}; try a lower learning rate (--lr {recipe.lr / 3:.1e}), "
            "more warm-up (--set warmup=0.2) or --set precision=float32"
        )


class Loop:
    """Trains `module`, which maps a batch of `source` to logits.

    Args:
        targets: int64 [N], the classes of `source`.
        validation: images and targets that choose the best epoch; None keeps the last one.
        teacher: maps the same batches to the teacher's logits.
        stop: asked after each step; True ends with `Interrupted` once `save` has been called.
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
        size: tuple[int, int] | None,
        validation: tuple[Batches, np.ndarray] | None = None,
        world: World | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.recipe, self.device, self.world = recipe, device, world or World()
        self.source, self.targets, self.validation = source, targets, validation
        self.classes, self.teacher = classes, teacher
        self.taught: dict[tuple[int, int], Tensor] = {}  # the teacher's logits by view and step
        self.module = module.to(device)
        self.optimizer = make_optimizer(self.module, recipe)
        self.average = moving_average(self.module, recipe.ema) if recipe.ema else None
        self.augment = Augment(recipe, size) if size else None
        weights = class_weights(targets, classes) if recipe.balance else torch.ones(classes)
        self.weights = weights.to(device)
        batch = min(recipe.batch, len(source))
        # Each process takes as many, and an even number of them, since mixup pairs neighbors.
        multiple = self.world.size * (2 if recipe.mixup and self.world.size > 1 else 1)
        if multiple > len(source):
            raise RecipeError(
                f"{self.world.size} processes take at least {multiple} images per step, found "
                f"{len(source)} to train on; start fewer processes"
            )
        self.batch = max(batch - batch % multiple, multiple)
        self.steps = max(len(source) // self.batch, 1)
        self.all_steps = recipe.epochs * self.steps
        self.progress = Progress()
        self.forward: Callable[[Tensor], Tensor] = self._wrapped()

    def run(
        self,
        *,
        on_step: Callable[[Progress, float], None] = lambda _progress, _loss: None,
        on_epoch: Callable[[dict[str, Any], bool], None] = lambda _row, _best: None,
        stop: Callable[[], bool] = lambda: False,
        save: Callable[[], None] = lambda: None,
    ) -> list[dict[str, Any]]:
        """Train to the last epoch, from wherever `progress` stands; returns the history, a row an epoch."""
        progress = self.progress
        while not progress.finished:
            started = time.perf_counter()
            for loss in self._epoch():
                on_step(progress, loss)
                if self._any(stop()):
                    save()
                    raise Interrupted("stopped; the state is kept: the same command with --resume goes on")
            row, best = self._close_epoch()
            progress.seconds.append(time.perf_counter() - started)
            on_epoch(row, best)
            save()
        return progress.history

    def best_weights(self) -> Mapping[str, Tensor]:
        """The weights to keep: the moving average where there is one."""
        return (self.average.module if self.average else self.module).state_dict()

    def _epoch(self) -> Iterator[float]:
        """The rest of the present epoch, a loss a step."""
        progress = self.progress
        order = self._order()
        groups = (self._mine(order, step) for step in range(progress.step, self.steps))
        self.module.train()
        for indices, inputs, good in self.source.batches(groups):
            loss = self._step(indices, inputs.to(self.device, non_blocking=True), good.to(self.device))
            progress.step += 1
            yield loss

    def _step(self, indices: np.ndarray, inputs: Tensor, good: Tensor) -> float:
        recipe, progress = self.recipe, self.progress
        done = progress.epoch * self.steps + progress.step
        set_learning_rate(self.optimizer, learning_rate(recipe, done, self.all_steps))
        hard = torch.from_numpy(self.targets[indices]).to(self.device)
        targets = smoothed_targets(hard, self.classes, recipe.smoothing)
        inputs, targets = self._changed(inputs, targets, good)
        opinion = self._opinion(inputs)
        weights = self.weights[hard] * good
        total = self.world.sum(weights.sum())
        torch.manual_seed(random_for(recipe.seed, DROPOUT, *self._place(), self.world.rank).initial_seed())
        with self._precision():
            logits = self.forward(inputs)
        losses = sample_losses(recipe, logits.float(), targets, opinion)
        loss = (losses * weights).sum() / total.clamp(min=1e-12)
        self.optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel takes the mean over the processes
        torch.autograd.backward(loss * self.world.size)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), recipe.clip)
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.module)
        correct = ((logits.argmax(-1) == hard) * good).sum()
        # Nothing is added, except where the gradient has no end and the weights are lost: 0 times infinity.
        lost = loss.detach() * total + 0 * norm
        return self._count(torch.stack([lost, correct.float(), good.sum().float()]), total)

    def _count(self, sums: Tensor, total: Tensor) -> float:
        """Add one step to the epoch's sums; the loss of this step over all processes."""
        # `loss * total` is this process's share of the weighted sum, so the sums add up.
        added = self.world.sum(sums.double()).tolist()
        if not math.isfinite(added[0]):
            place = f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}"
            raise TrainingError.diverged("the loss or its gradient", place, self.recipe)
        loss: float = added[0] / max(float(total), 1e-12)
        added[0] = loss * added[2]  # the mean over images, however the classes are weighted
        self.progress.sums = [old + new for old, new in zip(self.progress.sums, added, strict=True)]
        return loss

    def _changed(self, inputs: Tensor, targets: Tensor, good: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented and mixed."""
        if self.augment is None:
            return inputs, targets
        random = random_for(self.recipe.seed, CHANGES, *self._place())
        inputs = self.augment(inputs, random, self.batch, self.world.rank * len(inputs))
        if self.recipe.mixup:
            share = mixing_share(self.recipe.mixup, random.initial_seed())
            inputs, targets = mixed(inputs, targets, share, good)
        return inputs, targets

    def _opinion(self, inputs: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        place = self._place()
        if place in self.taught:
            return self.taught[place]
        with torch.no_grad(), self._precision():
            opinion = self.teacher(inputs).float()
        if self.recipe.views:
            self.taught[place] = opinion
        return opinion

    def _close_epoch(self) -> tuple[dict[str, Any], bool]:
        progress = self.progress
        loss, correct, count = progress.sums
        rate = learning_rate(self.recipe, (progress.epoch + 1) * self.steps - 1, self.all_steps)
        row = {"epoch": progress.epoch + 1, "lr": rate}
        row |= {"train_loss": loss / max(count, 1), "train_accuracy": correct / max(count, 1)}
        if self.validation:
            row |= self.evaluate(*self.validation)
            if not math.isfinite(row["val_loss"]):
                raise TrainingError.diverged("the validation loss", f"epoch {row['epoch']}", self.recipe)
        progress.history.append(row)
        best = best_epoch(progress.history) if self.validation else row["epoch"]
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, [0.0, 0.0, 0.0]
        tired = self.validation is not None and no_better(self.recipe, progress.history)
        progress.finished = progress.epoch >= self.recipe.epochs or tired
        return row, best == row["epoch"]

    def evaluate(self, source: Batches, targets: np.ndarray) -> dict[str, float]:
        """Loss and accuracy of the weights to keep, on images without augmentation."""
        module = self.average.module if self.average else self.module
        mine = np.arange(len(source))[self.world.rank :: self.world.size]
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        with self._precision():
            for indices, logits, good in predict(module, source, mine, self.device):
                hard = torch.from_numpy(targets[indices]).to(self.device)
                losses = nn.functional.cross_entropy(logits.float(), hard, reduction="none")
                right = (logits.argmax(-1) == hard) * good
                sums += torch.stack([(losses * good).sum(), right.sum().float(), good.sum().float()]).double()
        loss, correct, count = self.world.sum(sums).tolist()
        return {"val_loss": loss / max(count, 1), "val_accuracy": correct / max(count, 1)}

    def _order(self) -> np.ndarray:
        seed = (self.recipe.seed, ORDER, self._view())
        return np.random.default_rng(seed).permutation(len(self.source))

    def _mine(self, order: np.ndarray, step: int) -> np.ndarray:
        """This process's part of a batch: batches are cut into blocks, one a process."""
        share = self.batch // self.world.size
        start = step * self.batch + self.world.rank * share
        return order[start : start + share]

    def _view(self) -> int:
        epoch = self.progress.epoch
        return epoch % self.recipe.views if self.recipe.views else epoch

    def _place(self) -> tuple[int, int]:
        return self._view(), self.progress.step

    def _any(self, mine: bool) -> bool:
        """Return whether any process was asked to stop, so that all of them stop after the same step."""
        return bool(self.world.sum(torch.tensor(float(mine), device=self.device)) > 0)

    def _precision(self) -> AbstractContextManager[Any]:
        name = self.recipe.precision
        half = name == "bfloat16" or (name == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()

    def _wrapped(self) -> Callable[[Tensor], Tensor]:
        module: Any = self.module
        if self.world.size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            module = DistributedDataParallel(module, device_ids=ids)
        return torch.compile(module) if self.recipe.compile else module
