"""python -m vit train."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from runtime.command.progress import print_for_people
from runtime.writing import check_folder
from vit.training.recipe import TrainOptions

if TYPE_CHECKING:
    from vit.training.setup import CheckedRun


def run_train(options: TrainOptions) -> None:
    """Make all checks that need no weights, train, and print the path of the checkpoint."""
    from vit.data.datasets import refuse_among_classes
    from vit.run_folder import STATE, check_tensorboard, is_first_process, lock_run_folder, open_run_folder
    from vit.training.setup import check_training

    if options.tensorboard:
        check_tensorboard()
    if not (options.resume and (options.out / STATE).exists()):
        refuse_among_classes(options.out, options.data)
    checked = check_training(options)
    check_folder(options.out)
    with lock_run_folder(options.out):
        resume = open_run_folder(
            options.out, resume=options.resume, overwrite=options.overwrite, report=print_for_people
        )
        path = _train(options, checked, resume=resume)
    if is_first_process():
        _print_next_command(options, path)
    print(path)


def _train(options: TrainOptions, checked: CheckedRun, *, resume: bool) -> Path:
    from vit.training.setup import prepare_training

    run = prepare_training(options, checked)
    print_for_people(f"images: {run.data.describe()}")
    for sentence in run.data.notes:
        print_for_people(f"note: {sentence}")
    print_for_people(f"recipe: {json.dumps(run.recipe.to_dict())}")
    from vit.run_folder import is_first_process, keep_float_model
    from vit.training.train import train

    if run.plan is not None and is_first_process() and not resume:
        assert options.source is not None  # check_training
        keep_float_model(options.out, options.source, run.plan)
    return train(
        run.recipe,
        model=run.model,
        data=run.data,
        preprocess=run.preprocess,
        out=options.out,
        device=options.device,
        resume=resume,
        teacher=run.teacher,
        plan=run.plan,
        notes=run.notes,
        tensorboard=options.tensorboard,
        report=print_for_people,
    )


def _print_next_command(options: TrainOptions, path: Path) -> None:
    """Print which epoch was kept, and the command to type next."""
    from vit.document import read_document
    from vit.run_folder import PLAN
    from vit.training.evaluate import describe_kept

    document = read_document(path)
    print_for_people(describe_kept(document.history, document.recipe["images"].get("val")))
    out, data = quote(str(options.out)), quote(options.data)
    make = f"--plan {out}/{PLAN} --evaluate" if options.plan else "--quantize --calibration"
    print_for_people(f"next: python -m export {out} {make} {data}")
