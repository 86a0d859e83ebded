"""The files and the messages around one training loop."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from runtime.preprocess import Preprocess
from runtime.writing import write_atomically
from vit.checkpoint import load_checkpoint, save_checkpoint
from vit.data.batches import Store
from vit.data.images import Images
from vit.data.training import TrainingData
from vit.model import ViT
from vit.tensors import read_tensors, write_tensors
from vit.training import resume as state
from vit.training.distributed import World
from vit.training.loop import Batches, Loop, predict
from vit.training.probe import Features, Probe, folded
from vit.training.recipe import Recipe

METRICS = "metrics.csv"
HEAD = "head.safetensors"  # the best head of a probe, until the whole model is written


class Run:
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
        self.stores: dict[str, Store] = {}

    def loop(self, device: torch.device, world: World, teacher: ViT | None) -> Loop:
        recipe, data = self.recipe, self.data
        # Outside the forked random state nothing depends on this seed; inside, new dropout masks do.
        torch.manual_seed(recipe.seed)
        targets = data.train.targets
        assert targets is not None
        module: nn.Module = self.model
        size: tuple[int, int] | None = self.preprocess.size
        canvas = self.preprocess if recipe.crop >= 1 else larger(self.preprocess)
        train: Any = self.store("train", data.train, self.preprocess if recipe.freeze else canvas)
        val: Any = self.store("val", data.val, self.preprocess) if data.val else None
        if recipe.freeze:
            train = self.features(train, world, device)
            val = self.features(val, world, device) if val else None
            module, size = Probe(self.model.head, train.features[train.good]), None
        judged = (val, data.val.targets) if data.val is not None and data.val.targets is not None else None
        return Loop(
            module,
            train,
            targets,
            classes=len(data.labels),
            recipe=recipe,
            device=device,
            size=size,
            validation=judged,
            world=world,
            teacher=None if teacher is None else as_teacher(teacher, device),
        )

    def judged(self, model: ViT, images: Images, loop: Loop) -> tuple[nn.Module, Batches]:
        """The module and the batches that a verdict on `images` takes."""
        store = self.store("test", images, self.preprocess)
        if self.recipe.freeze:
            return model.head.to(loop.device), self.features(store, loop.world, loop.device)
        return model.to(loop.device), store

    def features(self, store: Store, world: World, device: torch.device) -> Features:
        cache = self.out / "features" if world.first else None
        return Features(self.model, store, device, cache, self.progress("features", len(store)))

    def store(self, name: str, images: Images, preprocess: Preprocess) -> Store:
        store = Store(
            images,
            preprocess,
            bad_share=self.recipe.bad_images,
            progress=self.progress(name, len(images)),
        )
        self.stores[name] = store
        return store

    def progress(self, name: str, total: int | None = None) -> Callable[[int], object]:
        bar = tqdm(total=total, desc=f"reading {name}", unit=" images", leave=False, disable=None)

        def show(done: int) -> None:
            bar.update(done - bar.n)
            if done == bar.total:
                bar.close()

        return show

    def bar(self, loop: Loop) -> tqdm:
        quiet = None if loop.world.first else True  # None: only where standard error is a terminal
        done = loop.progress.epoch * loop.steps + loop.progress.step
        return tqdm(
            total=self.recipe.epochs * loop.steps, initial=done, desc="training", unit=" steps", disable=quiet
        )

    def step(self, bar: Any, progress: state.Progress, loss: float) -> None:
        bar.update()
        bar.set_postfix_str(f"epoch {progress.epoch + 1}, loss {loss:.3f}", refresh=False)

    def close_epoch(self, loop: Loop, row: Mapping[str, Any], best: bool) -> None:
        if not loop.world.first:
            return
        if best:
            self.save_best(loop)
        write_metrics(self.out / METRICS, loop.progress)
        seconds = loop.progress.seconds[-1]
        rate = loop.steps * loop.batch / seconds
        shown = ", ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in ("epoch", "lr"))
        self.report(
            f"epoch {row['epoch']}/{self.recipe.epochs}: {shown} ({seconds:.1f} s, {rate:.0f} images/s)"
        )

    def save_best(self, loop: Loop) -> None:
        if self.recipe.freeze:  # the backbone is not written again each epoch
            write_tensors(self.out / HEAD, loop.best_weights(), {})
        else:
            self.checkpoint(loop.best_weights(), loop.progress.history, {}, finished=False)

    def best_weights(self) -> dict[str, torch.Tensor]:
        if self.recipe.freeze:
            return read_tensors(self.out / HEAD)[0]
        return load_checkpoint(self.out / "model.safetensors").model.state_dict()

    def assembled(self, weights: Mapping[str, torch.Tensor]) -> ViT:
        """The whole model, with the weights that were trained."""
        whole = ViT(self.model.config)
        whole.load_state_dict(self.model.state_dict())
        if self.recipe.freeze:
            whole.head.load_state_dict(folded(weights))
        else:
            whole.load_state_dict(dict(weights))
        return whole.eval()

    def checkpoint(
        self,
        weights: Mapping[str, torch.Tensor],
        history: list[dict[str, Any]],
        more: Any,
        *,
        finished: bool,
    ) -> Path:
        images = {name: len(store) for name, store in self.stores.items()}
        document = {"recipe": self.recipe.to_dict(), "data": self.data.train.name, "images": images}
        return save_checkpoint(
            self.out / "model.safetensors",
            model=self.assembled(weights),
            preprocess=self.preprocess,
            labels=self.data.labels,
            history=history,
            recipe=document | self.notes | more,
            finished=finished,
        )

    def stateful(self, loop: Loop) -> dict[str, Any]:
        identity = {"config": self.model.config.to_dict(), "images": len(self.data.train)}
        identity |= {"recipe": self.recipe.to_dict(), "labels": self.data.labels, "steps": loop.steps}
        return {
            "module": loop.module,
            "optimizer": loop.optimizer,
            "average": loop.average,
            "identity": identity,
        }

    def save(self, loop: Loop) -> None:
        if loop.world.first:
            state.save_state(self.out, progress=loop.progress, **self.stateful(loop))
        loop.world.wait()

    def finish(self, loop: Loop) -> Path:
        """Write the whole history, and the verdict of the test images, into the best checkpoint."""
        if not loop.world.first:
            return self.out / "model.safetensors"
        weights = self.best_weights()
        more: dict[str, Any] = {}
        if self.data.test is not None and self.data.test.targets is not None:
            module, source = self.judged(self.assembled(weights), self.data.test, loop)
            more["test_accuracy"] = accuracy(module, source, self.data.test.targets, loop.device)
            more["test_images"] = len(source)
            self.report(f"test: {100 * more['test_accuracy']:.2f} % of {len(source)} images right")
        for name, store in self.stores.items():
            for index, reason in sorted(store.bad.items()):
                self.report(f"skipped in {name}: {store.images.describe(index)}: {reason}")
        return self.checkpoint(weights, loop.progress.history, more, finished=True)


def accuracy(model: nn.Module, source: Batches, targets: np.ndarray, device: torch.device) -> float:
    """The share of the readable images whose largest logit is their class's."""
    right = count = 0
    for indices, logits, good in predict(model, source, np.arange(len(source)), device):
        hard = torch.from_numpy(targets[indices]).to(device)
        right += int(((logits.argmax(-1) == hard) * good).sum())
        count += int(good.sum())
    return right / max(count, 1)


def larger(preprocess: Preprocess) -> Preprocess:
    """The same view with more pixels, for random crops to be cut from."""
    height, width = (round(edge * 8 / 7) for edge in preprocess.size)
    resize_to = None if preprocess.resize_to is None else round(preprocess.resize_to * 8 / 7)
    return replace(preprocess, size=(height, width), resize_to=resize_to)


def as_teacher(teacher: ViT, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """The teacher on the student's pixels, scaled to the teacher's own size."""
    teacher = teacher.to(device).eval().requires_grad_(False)
    size = teacher.config.image_size

    def ask(pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.float().permute(0, 3, 1, 2)
        if images.shape[2:] != size:
            images = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        logits: torch.Tensor = teacher(images.permute(0, 2, 3, 1))
        return logits

    return ask


def write_metrics(path: Path, progress: state.Progress) -> None:
    """metrics.csv: the history and the seconds of each epoch."""
    text = io.StringIO()
    rows = [row | {"seconds": round(t, 3)} for row, t in zip(progress.history, progress.seconds, strict=True)]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
