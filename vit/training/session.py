"""The files and the messages around one training loop."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from runtime.command.progress import Step
from runtime.images.preprocess import Preprocess
from runtime.writing import write_atomically
from vit.checkpoint import result_of_test, save_checkpoint
from vit.data.batches import Store
from vit.data.datasets import Images
from vit.data.digests import MOST, digests, same_images
from vit.data.training_images import TrainingData, targets_of
from vit.document import FILE_NAME, CheckpointError, read_document
from vit.model import ViT
from vit.tensors import digest_tensors
from vit.token_merging import set_merging
from vit.training import resume
from vit.training.distributed import World
from vit.training.evaluate import Batches, predict
from vit.training.loop import Loop, TrainingError
from vit.training.recipe import Recipe
from vit.training.strategies import strategy_for

METRICS = "metrics.csv"


class Session:
    """The files and the messages around one `Loop`."""

    def __init__(
        self,
        recipe: Recipe,
        model: ViT,
        data: TrainingData,
        preprocess: Preprocess,
        out: Path,
        report: Callable[[str], None],
        notes: Mapping[str, Any],
    ) -> None:
        self.recipe, self.model, self.data, self.out = recipe, model, data, out
        self.preprocess, self.report, self.notes = preprocess, report, dict(notes)
        self.strategy = strategy_for(recipe, model, preprocess, out)
        self.stores: dict[str, Store] = {}
        self.trained_on: list[str] = []  # digests of the training images; none where these are too many

    def compare_images(self) -> None:
        """Say which images stand in two classes or splits, while they can still be taken out."""
        data = self.data
        if len(data.train) > MOST:
            return
        with Step("vit", "comparing images"):
            self.trained_on = digests(data.train)
            said = same_images(data.train, self.trained_on, validation=data.val, test=data.test)
        for sentence in said:
            self.report(f"note: {sentence}")

    def loop(self, device: torch.device, world: World, teacher: ViT | None) -> Loop:
        data = self.data
        # Outside the forked random state nothing depends on this seed; inside, new dropout masks do.
        torch.manual_seed(self.recipe.seed)
        train = self.batches("train", data.train, self.strategy.training_view, world, device)
        val = self.batches("val", data.val, self.preprocess, world, device) if data.val else None
        judged = None if data.val is None or val is None else (val, targets_of(data.val))
        return Loop(
            self.strategy.module(train),
            train,
            targets_of(data.train),
            classes=len(data.labels),
            recipe=self.recipe,
            device=device,
            size=self.strategy.augmented_size,
            validation=judged,
            world=world,
            teacher=None if teacher is None else as_teacher(teacher, device),
        )

    def batches(
        self, name: str, images: Images, preprocess: Preprocess, world: World, device: torch.device
    ) -> Batches:
        """Decode a part of the data, and turn it into what the strategy reads."""
        quiet = not world.first
        with Step("vit", f"reading {name}", len(images), quiet=quiet) as step:
            store = Store(images, preprocess, bad_share=self.recipe.bad_images, progress=step.to)
        self.stores[name] = store
        cache = self.out / "features" if world.first else None
        with Step("vit", f"computing features of {name}", len(store), quiet=quiet) as step:
            return self.strategy.batches(store, device, cache, step.to)

    def training(self, loop: Loop) -> Step:
        """Return the display of the steps of training; one process shows it."""
        done = loop.progress.epoch * loop.steps + loop.progress.step
        total = self.recipe.epochs * loop.steps
        return Step("vit", "training", total, "step", done=done, quiet=not loop.world.first)

    def step(self, shown: Step, progress: resume.Progress, loss: float) -> None:
        shown.detail = f"epoch {progress.epoch + 1}, loss {loss:.3f}"
        shown.update()

    def close_epoch(self, loop: Loop, row: Mapping[str, Any], best: bool) -> None:
        if not loop.world.first:
            return
        if best:
            history, weights = loop.progress.history, loop.best_weights()
            self.strategy.keep(weights, lambda model: self.checkpoint(model, history, {}, finished=False))
            loop.progress.kept = digest_tensors(weights)
        write_metrics(self.out / METRICS, loop.progress)
        seconds = loop.progress.seconds[-1]
        rate = loop.steps * loop.batch / seconds
        shown = ", ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in ("epoch", "lr"))
        self.report(
            f"epoch {row['epoch']}/{self.recipe.epochs}: {shown} ({seconds:.1f} s, {rate:.0f} images/s)"
        )

    def checkpoint(
        self, model: ViT, history: list[dict[str, Any]], more: Mapping[str, Any], *, finished: bool
    ) -> Path:
        images = {name: len(store) - len(store.bad) for name, store in self.stores.items()}
        document = {"recipe": self.recipe.to_dict(), "data": self.data.train.name, "images": images}
        return save_checkpoint(
            self.out / FILE_NAME,
            model=model,
            preprocess=self.preprocess,
            labels=self.data.labels,
            history=history,
            recipe=document | self.notes | dict(more),
            finished=finished,
        )

    def stateful(self, loop: Loop) -> dict[str, Any]:
        return {
            "module": loop.module,
            "optimizer": loop.optimizer,
            "average": loop.average,
            "identity": self.identity() | {"steps": loop.steps},
        }

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when a run goes on, as far as it is known before images are read."""
        return {
            "config": self.model.config.to_dict(),
            "images": len(self.data.train),
            "recipe": self.recipe.to_dict(),
            "labels": self.data.labels,
            "preprocess": self.preprocess.to_dict(),
            "from": self.notes.get("from"),  # a probe's backbone is not in its state
            "teacher": self.notes.get("teacher"),
        }

    def save(self, loop: Loop) -> None:
        if loop.world.first:
            resume.save_state(self.out, progress=loop.progress, **self.stateful(loop))
        loop.world.wait()

    def check_kept(self, progress: resume.Progress) -> None:
        """Refuse to go on where the best weights are of another run, as far as a history tells.

        Raises:
            CheckpointError: saying what to do.
        """
        if self.recipe.freeze or not progress.history:  # a head has no history
            return
        there, mine = read_document(self.out).history, progress.history
        # One is longer by the epoch after which the run was killed, or by those after the best.
        both = min(len(there), len(mine))
        if not both or there[:both] != mine[:both]:
            raise CheckpointError(
                f"{self.out}: {FILE_NAME} is of another run than {resume.FILE_NAME}; begin anew with "
                "--overwrite, or choose another --out"
            )

    def finish(self, loop: Loop) -> Path:
        """Write the whole history, and the verdict of the test images, into the best checkpoint."""
        if not loop.world.first:
            return self.out / FILE_NAME
        weights = self.strategy.kept()
        if digest_tensors(weights) != loop.progress.kept:
            raise TrainingError(
                f"{self.out}: the best weights there are not those that this run wrote; something else has "
                "replaced them, so train again with --overwrite, or into another --out"
            )
        model = self.strategy.assembled(weights)
        more = self._test(loop, model)
        for name, store in self.stores.items():
            for index, reason in sorted(store.bad.items()):
                self.report(f"skipped in {name}: {store.images.describe(index)}: {reason}")
        if self.trained_on:
            more["trained_on"] = self.trained_on
        return self.checkpoint(model.cpu(), loop.progress.history, more, finished=True)

    def _test(self, loop: Loop, model: ViT) -> dict[str, Any]:
        """Measure on the test images, and say the figure or that there is none."""
        more: dict[str, Any] = {}
        test = self.data.test
        if test is None or test.targets is None:
            self.report(f"test: {result_of_test(more)}")
            return more
        source = self.batches("test", test, self.preprocess, loop.world, loop.device)
        judge = self.strategy.judge(model).to(loop.device)
        more["test_accuracy"] = accuracy(judge, source, test.targets, loop.device)
        more["test_images"] = len(source)
        self.report(f"test: {result_of_test(more)}")
        if self.recipe.merge_tokens:
            dense = accuracy(set_merging(model, {}), source, test.targets, loop.device)
            more["test_accuracy_without_merging"] = dense
            self.report(f"test without merging: {100 * dense:.2f} %")
        return more


def accuracy(model: nn.Module, source: Batches, targets: np.ndarray, device: torch.device) -> float:
    """The share of the readable images whose largest logit is their class's."""
    right = count = 0
    for indices, logits, good in predict(model, source, np.arange(len(source)), device):
        hard = torch.from_numpy(targets[indices]).to(device)
        right += int(((logits.argmax(-1) == hard) * good).sum())
        count += int(good.sum())
    return right / max(count, 1)


def as_teacher(teacher: ViT, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """The teacher on the student's pixels, scaled to the teacher's own size."""
    teacher = teacher.to(device).eval()  # its gradient is never asked for: the loop asks it under no_grad
    size = teacher.config.image_size

    def ask(pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.float().permute(0, 3, 1, 2)
        if images.shape[2:] != size:
            images = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        logits: torch.Tensor = teacher(images.permute(0, 2, 3, 1))
        return logits

    return ask


def write_metrics(path: Path, progress: resume.Progress) -> None:
    """metrics.csv: the history and the seconds of each epoch."""
    text = io.StringIO()
    rows = [row | {"seconds": round(t, 3)} for row, t in zip(progress.history, progress.seconds, strict=True)]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
