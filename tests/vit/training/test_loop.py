"""The loop where numbers leave their range, and other ends of a run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vit.checkpoint import load_checkpoint
from vit.data.digests import digests
from vit.data.images import Images
from vit.data.training import TrainingData
from vit.document import CheckpointError
from vit.model import new_model
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
    """A probe's backbone is not in its state, and a teacher is in none: nothing else would tell."""

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
    assert load_checkpoint(path).recipe["trained_on"] == digests(data.train)
