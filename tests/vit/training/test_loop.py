"""The loop where numbers leave their range, and other ends of a run."""

import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export.command_line import main as export_main
from runtime.writing import lock_file
from vit.checkpoint import load_checkpoint, save_checkpoint
from vit.commands.main import main as vit_main
from vit.data.datasets import Images
from vit.data.training_images import TrainingData, digest_images
from vit.document import CheckpointError
from vit.model import new_model
from vit.run_folder import lock_run_folder
from vit.training.loop import TrainingError
from vit.training.recipe import Recipe
from vit.training.train import train

RECIPE = Recipe(name="test", epochs=1, batch=4, holdout=0.0)


@pytest.fixture
def data():
    """Eight images of three classes in memory, and the same to choose the best epoch by."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    images = Images(list(pixels), np.arange(8) % 3, ("a", "b", "c"), "memory")
    return TrainingData(images, images, None)


class Endless(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


def test_a_gradient_without_end_stops_before_it_is_kept(data, tiny_config, tiny_preprocess, tmp_path):
    """In the last step of an epoch no further loss would tell."""
    model = new_model(tiny_config, 0)
    model.head.register_forward_hook(lambda _module, _inputs, logits: Endless.apply(logits))
    recipe = replace(RECIPE, batch=8)  # one step per epoch
    with pytest.raises(TrainingError, match="gradient is not a number in epoch 1, step 1"):
        train(recipe, model=model, data=data, preprocess=tiny_preprocess, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_validation_loss_without_end_stops_before_it_is_kept(data, tiny_config, tiny_preprocess, tmp_path):
    model = new_model(tiny_config, 0)

    def overflow(module, _inputs, logits):
        return logits if module.training else logits * float("inf")

    model.head.register_forward_hook(overflow)
    with pytest.raises(TrainingError, match="validation loss is not a number in epoch 1; try a lower"):
        train(RECIPE, model=model, data=data, preprocess=tiny_preprocess, out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "field"),
    [("from", "from"), ("teacher", "teacher"), ("white_level", "preprocess: white_level")],
)
def test_another_start_teacher_or_view_is_another_run(
    data, tiny_config, tiny_preprocess, tmp_path, changed, field
):
    """The teacher is not in the state: nothing else would tell."""

    def run(**new):
        notes = {"from": "one", "teacher": "one"} | {k: v for k, v in new.items() if k != "white_level"}
        view = replace(tiny_preprocess, white_level=new.get("white_level", 65535))
        model, resume = new_model(tiny_config, 0), (tmp_path / "state.safetensors").exists()
        train(RECIPE, model=model, data=data, preprocess=view, out=tmp_path, notes=notes, resume=resume)

    run()
    run()
    with pytest.raises(CheckpointError, match=rf"another run \({field} was \S+ and is now"):
        run(**{changed: 4095})


def test_images_that_stand_twice_are_told_before_the_training(data, tiny_config, tiny_preprocess, tmp_path):
    """When hours are over, it is too late to take them out."""
    lines = []
    path = train(
        RECIPE,
        model=new_model(tiny_config, 0),
        data=data,
        preprocess=tiny_preprocess,
        out=tmp_path,
        report=lines.append,
    )
    told = "note: trained on too: 8 of 8 validation images; take them out of one"
    assert [line.partition(":")[0] for line in lines] == ["note", "epoch 1/1", "test"]
    assert lines[0] == told
    assert load_checkpoint(path).recipe["trained_on"] == digest_images(data.train)


def test_the_best_weights_are_those_that_this_run_wrote(data, tiny_config, tiny_preprocess, tmp_path):
    """Whatever else replaces the file: no checkpoint has labels of one run and weights of another."""
    strange = new_model(tiny_config, 1)

    def replace_file(line):
        if line.startswith("epoch 2"):
            save_checkpoint(tmp_path, model=strange, preprocess=tiny_preprocess, labels="xyz", finished=False)

    recipe = replace(RECIPE, epochs=2)

    def run(**options):
        model = new_model(tiny_config, 0)
        return train(recipe, model=model, data=data, preprocess=tiny_preprocess, out=tmp_path, **options)

    with pytest.raises(TrainingError, match="not those that this run wrote"):
        run(report=replace_file)
    assert not load_checkpoint(tmp_path).finished
    with pytest.raises(CheckpointError, match="is of another run than state"):
        run(resume=True)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        run(resume=True)
    assert load_checkpoint(run()).finished
    assert load_checkpoint(run(resume=True)).finished  # of a run that is at its end


@pytest.mark.skipif(sys.platform == "win32", reason="the words of the folder's lock")
@pytest.mark.parametrize("command", ["train", "resume", "rank", "import", "plots", "export", "digits"])
def test_a_folder_has_one_writer(
    command, data, photos, tiny_model, tiny_preprocess, tmp_path, monkeypatch, capsys
):
    """Whatever two commands they are; the processes of torchrun are one."""
    out = tmp_path / "runs" / "digits"
    run = save_checkpoint(
        tmp_path / "run" / "m",
        model=tiny_model,
        preprocess=tiny_preprocess,
        labels=("blue sky", "grass", "rose"),
    )
    save_file(tiny_model.state_dict(), tmp_path / "weights.safetensors")
    training = f"train --data {photos} --out {out}"
    words = {
        "train": f"{training} --overwrite",
        "resume": f"{training} --resume",
        "rank": training,
        "import": f"import {tmp_path / 'weights.safetensors'} --out {out}",
        "plots": f"plots {run} --out {out}",
        "export": f"{run} --out {out} --evaluate {photos}",
        "digits": "",
    }[command]
    monkeypatch.chdir(tmp_path)
    if command == "rank":
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
    out.mkdir(parents=True)
    held = os.open(out, os.O_RDONLY)
    try:
        assert lock_file(held)
        main = export_main if command in ("export", "digits") else vit_main
        assert main(words.split()) == 2
    finally:
        os.close(held)
    assert (
        f"{out.relative_to(tmp_path) if command == 'digits' else out}: another process is writing to it"
        in (capsys.readouterr().err)
    )
    assert list(out.iterdir()) == []


def test_the_other_processes_of_a_run_write_nothing_and_lock_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with lock_run_folder(tmp_path / "out"):
        assert not (tmp_path / "out").exists()
