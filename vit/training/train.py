"""Training from images to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from runtime.images.preprocess import Preprocess
from runtime.interrupts import defer_signals
from vit.data.training_images import TrainingData
from vit.model import ViT
from vit.run_folder import write_alone
from vit.training.distributed import choose_device, join_world
from vit.training.recipe import Recipe
from vit.training.resume import check_resumable, load_state
from vit.training.scalars import scalars
from vit.training.session import Session


def train(
    recipe: Recipe,
    *,
    model: ViT,
    data: TrainingData,
    preprocess: Preprocess,
    out: Path | str,
    device: str = "auto",
    resume: bool = False,
    teacher: ViT | None = None,
    notes: Mapping[str, Any] | None = None,
    tensorboard: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train `model` on `data` and keep the best checkpoint; returns its path.

    In `out` stand then `model.safetensors` (the best epoch), `metrics.csv` (a row an epoch) and
    `state.safetensors` (what `resume` goes on from).

    Args:
        recipe: how to train.
        model: the model to train; its weights change.
        data: images for training, validation and test.
        preprocess: preprocessing for validation, test and use; it is kept in the checkpoint.
        out: folder of the run.
        device: "auto", "cpu", "cuda" or "mps"; "auto" takes CUDA if there is a CUDA device, else the CPU.
        resume: go on from the saved state in `out`.
        teacher: a trained model with the same classes, of any size and resolution, to learn from as well.
        notes: what else to write into the checkpoint's recipe.
        tensorboard: write the metrics for TensorBoard as well, into `out/tensorboard`.
        report: called with each line worth showing to a person.

    Raises:
        DataError: for images that cannot be used.
        OutputError: when another process writes into `out`.
        TrainingError: when the loss is no longer a number.
        Interrupted: after SIGTERM or Ctrl-C, once the state is saved.
    """
    session = Session(recipe, model, data, preprocess, Path(out), report, notes or {})
    chosen = choose_device(device)
    if resume:
        check_resumable(session.out, session.identity())  # before images are read
    # Of this device alone: the state of another one costs some of its memory.
    random = torch.random.fork_rng([chosen] if chosen.type == "cuda" else [])
    with (
        write_alone(session.out),
        join_world(chosen) as world,
        random,
        scalars(session.out, tensorboard and world.first) as write,
    ):
        if world.first:
            session.compare_images()
        loop = session.loop(chosen, world, teacher)
        if resume:
            loop.progress = load_state(session.out, **session.stateful(loop))
            session.check_kept(loop.progress)
            report(f"resuming after epoch {loop.progress.epoch}, step {loop.progress.step}")

        def close_epoch(row: dict[str, Any], best: bool) -> None:
            session.close_epoch(loop, row, best)
            write(row)

        with session.training(loop) as step, defer_signals() as stop:
            loop.run(
                on_step=lambda progress, loss: session.step(step, progress, loss),
                on_epoch=close_epoch,
                stop=stop,
                save=lambda: session.save(loop),
            )
        return session.finish(loop)
