"""The files and the messages around one training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calibration.plan import QuantizationPlan
from runtime.command.progress import Step
from runtime.images.preprocess import Preprocess, scale_resize_to
from vit.checkpoint import describe_test, digest_tensors, load_checkpoint, save_checkpoint
from vit.config import merge_schedule
from vit.data.batches import Store
from vit.data.datasets import Images
from vit.data.training_images import (
    MOST_DIGESTS,
    TrainingData,
    describe_duplicates,
    digest_images,
    targets_of,
)
from vit.document import FILE_NAME, CheckpointError, read_document
from vit.model import ViT
from vit.run_folder import STATE, write_metrics
from vit.token_merging import set_merging
from vit.training.distributed import World
from vit.training.evaluate import Batches, mean_metrics, measure_loss
from vit.training.fake_quantization import set_quantization
from vit.training.label_sets import describe_thresholds, measure_sets, predict_all
from vit.training.loop import Loop, TrainingError
from vit.training.recipe import Recipe
from vit.training.resume import load_state, save_state

METRICS = "metrics.csv"


@dataclass
class Session:
    """The files and the messages around one training."""

    recipe: Recipe
    model: ViT  # to train
    data: TrainingData
    preprocess: Preprocess  # for validation, test and use
    out: Path  # folder of the run
    report: Callable[[str], None]  # called with each line worth showing to a person
    notes: Mapping[str, Any]  # facts to add to the checkpoint's recipe
    stores: dict[str, Store] = field(default_factory=dict)  # by part of the data
    trained_on: list[str] = field(default_factory=list)  # digests of the training images, if not too many
    plan: QuantizationPlan | None = None  # whose quantization the model trains with
    thresholds: tuple[float, ...] | None = None  # of the labels, where an image has several, once chosen

    def compare_images(self) -> None:
        """Report images that are in two classes or splits, while they can still be taken out."""
        data = self.data
        if len(data.train) > MOST_DIGESTS:
            return
        with Step("vit", "comparing images"):
            self.trained_on = digest_images(data.train)
            sentences = describe_duplicates(data, self.trained_on)
        for sentence in sentences:
            self.report(f"note: {sentence}")

    def read(self, name: str, images: Images, preprocess: Preprocess, *, quiet: bool = False) -> Store:
        """Decode a part of the data; `quiet` shows no progress."""
        with Step("vit", f"reading {name}", len(images), quiet=quiet) as step:
            self.stores[name] = Store(images, preprocess, bad_share=self.recipe.bad_images, progress=step.to)
        return self.stores[name]

    def write_checkpoint(
        self, model: ViT, history: list[dict[str, Any]], facts: Mapping[str, Any], *, finished: bool
    ) -> Path:
        """Write a checkpoint of the run; `facts` are further fields of its recipe."""
        images = {name: len(store) - len(store.bad) for name, store in self.stores.items()}
        document = {"recipe": self.recipe.to_dict(), "data": self.data.train.name, "images": images}
        return save_checkpoint(
            self.out / FILE_NAME,
            model=model,
            preprocess=self.preprocess,
            labels=self.data.labels,
            history=history,
            recipe={**document, **self.notes, **facts},
            finished=finished,
            thresholds=self.thresholds,
        )

    def report_epoch(
        self, history: list[dict[str, Any]], seconds: Sequence[float], epochs: int, rate: float
    ) -> None:
        """Write metrics.csv, and report the last epoch; `rate` is in images per second."""
        write_metrics(self.out / METRICS, history, seconds)
        row = history[-1]
        shown = ", ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in ("epoch", "lr"))
        self.report(f"epoch {row['epoch']}/{epochs}: {shown} ({seconds[-1]:.1f} s, {rate:.0f} images/s)")

    def measure_test(self, module: nn.Module, source: Batches | None, device: torch.device) -> dict[str, Any]:
        """Report the accuracy on the test images or that there are none, and return it for the recipe.

        Of several labels per image, report their thresholds too, and return mAP and F1 as well.
        """
        if self.thresholds is not None:
            validation = None if self.data.val is None else self.data.val.targets
            self.report(describe_thresholds(self.thresholds, self.data.labels, validation))
        facts: dict[str, Any] = {}
        if source is not None:
            facts = {**self._test_figures(module, source, device), "test_images": len(source)}
        self.report(f"test: {describe_test(facts)}")
        return facts

    def write_result(self, model: ViT, history: list[dict[str, Any]], facts: Mapping[str, Any]) -> Path:
        """Report the images that were skipped, and write the final checkpoint, as `write_checkpoint`."""
        for name, store in self.stores.items():
            for index, reason in sorted(store.bad.items()):
                self.report(f"skipped in {name}: {store.images.describe(index)}: {reason}")
        more = {"trained_on": self.trained_on} if self.trained_on else {}
        return self.write_checkpoint(model.cpu(), history, {**facts, **more}, finished=True)

    def _test_figures(self, module: nn.Module, source: Batches, device: torch.device) -> dict[str, float]:
        assert self.data.test is not None
        targets, everything = targets_of(self.data.test), np.arange(len(source))
        if self.thresholds is not None:
            found = predict_all(module.to(device), source, targets.shape[1], everything, device)
            figures = measure_sets("test", *found, targets, self.thresholds)[0]
        else:
            sums = measure_loss(module.to(device), source, targets, everything, device)
            figures = mean_metrics("test", sums.tolist())
        return {name: value for name, value in figures.items() if name != "test_loss"}


class LoopSession(Session):
    """The files and the messages around one `Loop`, in which every weight learns from augmented images."""

    def make_loop(self, device: torch.device, world: World, teacher: ViT | None) -> Loop:
        """Read the images, and return the loop on them."""
        data, quiet = self.data, not world.first
        # Outside the forked random state nothing depends on this seed; inside, new dropout masks do.
        torch.manual_seed(self.recipe.seed)
        # Random crops are cut from more pixels than the model takes.
        view = self.preprocess if self.recipe.crop >= 1 else _enlarge(self.preprocess)
        train = self.read("train", data.train, view, quiet=quiet)
        validation = None
        if data.val is not None:
            store = self.read("val", data.val, self.preprocess, quiet=quiet)
            validation = (store, targets_of(data.val))
        return Loop(
            self._change_forward(self.model),
            train,
            targets_of(data.train),
            classes=len(data.labels),
            recipe=self.recipe,
            device=device,
            size=self.preprocess.size,
            validation=validation,
            world=world,
            teacher=None if teacher is None else make_teacher(teacher, device),
        )

    def show_steps(self, loop: Loop) -> Step:
        """Return the display of the steps of training; the first process shows it."""
        done = loop.progress.epoch * loop.steps + loop.progress.step
        return Step("vit", "training", loop.all_steps, "step", done=done, quiet=not loop.world.first)

    def close_epoch(self, loop: Loop, best: bool) -> None:
        """Report an epoch, after its weights are written if it is the best so far."""
        if not loop.world.first:
            return
        progress = loop.progress
        if best:
            weights, self.thresholds = loop.best_module.state_dict(), loop.thresholds
            self.write_checkpoint(self._build(weights), progress.history, {}, finished=False)
            progress.kept = digest_tensors(weights)
        rate = loop.steps * loop.batch / progress.seconds[-1]
        self.report_epoch(progress.history, progress.seconds, self.recipe.epochs, rate)

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when a run resumes, as far as it is known before images are read."""
        return {
            "config": self.model.config.to_dict(),
            "images": len(self.data.train),
            "recipe": self.recipe.to_dict(),
            "labels": self.data.labels,
            "several": self.data.train.several,
            "preprocess": self.preprocess.to_dict(),
            "from": self.notes.get("from"),
            "teacher": self.notes.get("teacher"),
            "plan": self.notes.get("plan"),
        }

    def save(self, loop: Loop) -> None:
        """Write the state that `resume` reads; every process waits until it is written."""
        if loop.world.first:
            save_state(self.out, progress=loop.progress, **self._stateful(loop))
        loop.world.wait()

    def resume(self, loop: Loop) -> None:
        """Put the saved state back into a loop; refuse a state or best weights of another run."""
        progress = loop.progress = load_state(self.out, **self._stateful(loop))
        if progress.history:
            self._check_kept(progress.history)
        self.report(f"resuming after epoch {progress.epoch}, step {progress.step}")

    def finish(self, loop: Loop) -> Path:
        """Write the whole history and the result on the test images into the best checkpoint of this run."""
        if not loop.world.first:
            return self.out / FILE_NAME
        kept = load_checkpoint(self.out)
        weights, self.thresholds = kept.model.state_dict(), kept.thresholds
        if digest_tensors(weights) != loop.progress.kept:
            raise TrainingError(
                f"{self.out}: the best weights there are not those that this run wrote; something else has "
                "replaced them, so train again with --overwrite, or into another --out"
            )
        model, test = self._build(weights), self.data.test
        source = None if test is None else self.read("test", test, self.preprocess)
        facts = self.measure_test(self._change_forward(model), source, loop.device)
        if source is not None and self.recipe.merge_tokens:
            dense = self._test_figures(set_merging(model, {}), source, loop.device)["test_accuracy"]
            facts["test_accuracy_without_merging"] = dense
            self.report(f"test without merging: {100 * dense:.2f} %")
        return self.write_result(model, loop.progress.history, facts)

    def _build(self, weights: Mapping[str, Tensor]) -> ViT:
        model = ViT(self.model.config)
        model.load_state_dict(dict(weights))
        return model.eval()

    def _change_forward(self, model: ViT) -> ViT:
        """Let the model compute what the run is for, in place: with merged tokens, or quantized."""
        if self.plan is not None:
            return set_quantization(model, self.plan)
        merged = self.recipe.merge_tokens
        return set_merging(model, merge_schedule(model.config, merged)) if merged else model

    def _stateful(self, loop: Loop) -> dict[str, Any]:
        return {
            "module": loop.module,
            "optimizer": loop.optimizer,
            "average": loop.average,
            "identity": self.identity() | {"steps": loop.steps},
        }

    def _check_kept(self, mine: list[dict[str, Any]]) -> None:
        """Refuse to resume where the best weights are of another run, as far as a history shows."""
        there = read_document(self.out).history
        # One is longer by the epoch after which the run was killed, or by those after the best.
        both = min(len(there), len(mine))
        if not both or there[:both] != mine[:both]:
            hint = "begin anew with --overwrite, or choose another --out"
            raise CheckpointError(f"{self.out}: {FILE_NAME} is of another run than {STATE}; {hint}")


def _enlarge(preprocess: Preprocess) -> Preprocess:
    """Return the same view with 8/7 of the pixels along each edge, for random crops to be cut from."""
    height, width = (round(edge * 8 / 7) for edge in preprocess.size)
    return replace(preprocess, size=(height, width), resize_to=scale_resize_to(preprocess.resize_to, 8 / 7))


def make_teacher(teacher: ViT, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function that scales the student's pixels `[N, H, W, 3]` and gives the teacher's logits."""
    teacher = teacher.to(device).eval()  # its gradient is never asked for: the loop asks it under no_grad
    size = teacher.config.image_size

    def ask(pixels: Tensor) -> Tensor:
        images = pixels.float().permute(0, 3, 1, 2)  # (N, 3, H, W)
        if images.shape[2:] != size:
            images = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        logits: Tensor = teacher(images.permute(0, 2, 3, 1))
        return logits

    return ask
