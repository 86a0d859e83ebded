"""Training from images to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from calibration.plan import QuantizationPlan
from runtime.images.preprocess import Preprocess
from runtime.interrupts import defer_signals
from vit.data.training_images import TrainingData
from vit.document import FILE_NAME
from vit.model import ViT
from vit.run_folder import STATE, is_first_process, lock_run_folder, open_tensorboard
from vit.training.distributed import choose_device, join_processes
from vit.training.probe import train_probe
from vit.training.recipe import Recipe, RecipeError
from vit.training.resume import Progress, check_resumable
from vit.training.session import LoopSession, Session


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
    plan: QuantizationPlan | None = None,
    notes: Mapping[str, Any] | None = None,
    tensorboard: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train `model` on `data`, and keep the best checkpoint.

    Afterwards `out` has `model.safetensors` (the best epoch), `metrics.csv` (one row per epoch) and
    `state.safetensors` (which `resume` reads; a probe has none).

    Args:
        recipe: how to train.
        model: the model to train; its weights change.
        data: images for training, validation and test.
        preprocess: preprocessing for validation, test and use; it is kept in the checkpoint.
        out: folder of the run.
        device: "auto", "cpu", "cuda" or "mps"; "auto" takes CUDA if there is a CUDA device, else the CPU.
        resume: continue from the saved state in `out`.
        teacher: a trained model with the same classes, of any size and resolution, to learn from as well.
        plan: of the model; what it quantizes is computed as its INT8 file will do.
        notes: facts to add to the checkpoint's recipe.
        tensorboard: write the metrics for TensorBoard as well, into `out/tensorboard`.
        report: called with each line worth showing to a person.

    Returns:
        The file of the checkpoint.

    Raises:
        DataError: for images that cannot be used.
        RecipeError: for a recipe that does not fit the model.
        PlanError: for a plan of another model, or one that is not simulated.
        CheckpointError: when there is no state to resume from, or it is of another run.
        OutputError: when another process writes into `out`.
        TrainingError: when the loss is no longer a number.
        Interrupted: after SIGTERM or Ctrl-C, once the state is saved.
    """
    parts = (recipe, model, data, preprocess, Path(out), report, notes or {})
    chosen = choose_device(device)
    if recipe.freeze:
        return _train_probe(Session(*parts), chosen, resume=resume, teacher=teacher, tensorboard=tensorboard)
    session = LoopSession(*parts, plan=plan)
    if resume:
        check_resumable(session.out, session.identity())  # before images are read
    # Of this device alone: the state of another one costs some of its memory.
    random = torch.random.fork_rng([chosen] if chosen.type == "cuda" else [])
    with (
        lock_run_folder(session.out),
        join_processes(chosen) as world,
        random,
        open_tensorboard(session.out, tensorboard and world.first) as write,
    ):
        if world.first:
            session.compare_images()
        loop = session.make_loop(chosen, world, teacher)
        if resume:
            session.resume(loop)

        def close_epoch(row: dict[str, Any], best: bool) -> None:
            session.close_epoch(loop, best)
            write(row)

        def show_step(progress: Progress, loss: float) -> None:
            steps.detail = f"epoch {progress.epoch + 1}, loss {loss:.3f}"
            steps.update()

        with session.show_steps(loop) as steps, defer_signals() as stop:
            loop.run(on_step=show_step, on_epoch=close_epoch, stop=stop, save=lambda: session.save(loop))
        return session.finish(loop)


def _train_probe(
    session: Session, device: torch.device, *, resume: bool, teacher: ViT | None, tensorboard: bool
) -> Path:
    """Train a probe; of several processes the first one does it alone."""
    if teacher is not None:
        raise RecipeError("a probe learns from labels alone; leave the teacher out, or fine-tune")
    if resume:  # a probe saves no state: there is none, or it is of another run
        check_resumable(session.out, {"recipe": session.recipe.to_dict()})
    if not is_first_process():
        return session.out / FILE_NAME
    with lock_run_folder(session.out), open_tensorboard(session.out, tensorboard) as write:
        (session.out / STATE).unlink(missing_ok=True)  # of a run that this one replaces
        session.compare_images()
        return train_probe(session, device, write)
