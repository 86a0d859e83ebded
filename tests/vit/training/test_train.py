"""The loop: it learns, repeats bit for bit, survives being killed, and says what went wrong."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runtime.errors import Interrupted
from vit.__main__ import main
from vit.checkpoint import load_checkpoint, read_tensors, save_checkpoint, write_tensors
from vit.data.batches import Store
from vit.data.datasets import DataError, open_images
from vit.data.training_images import TrainingData, open_data
from vit.document import CheckpointError
from vit.model import new_model
from vit.run_folder import STATE
from vit.training import resume as state
from vit.training.evaluate import best_epoch, stop_early
from vit.training.examples import EXAMPLES
from vit.training.loop import Loop, TrainingError, class_weights, sample_losses, smooth_targets
from vit.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from vit.training.recipe import PRESETS, Recipe, RecipeError, TrainOptions, preset
from vit.training.setup import check_training, prepare_training
from vit.training.train import train

RECIPE = Recipe(name="test", epochs=4, batch=8, lr=3e-3, holdout=0.25, shift=1, flip=True, ema=0.9, mixup=0.2)


def run(photos, config, preprocess, out, recipe=RECIPE, **options):
    data = open_data(photos, holdout=recipe.holdout, seed=recipe.seed)
    model = new_model(config, recipe.seed)
    return train(recipe, model=model, data=data, preprocess=preprocess, out=out, **options)


def test_it_learns_and_keeps_the_best(photos, tiny_config, tiny_preprocess, tmp_path):
    recipe = replace(RECIPE, epochs=12)
    lines = []
    path = run(photos, tiny_config, tiny_preprocess, tmp_path / "run", recipe, report=lines.append)
    found = load_checkpoint(path)
    assert found.recipe["test_accuracy"] >= 0.9
    assert found.recipe["test_images"] == 12
    assert found.recipe["recipe"] == recipe.to_dict()
    assert len(found.history) == 12
    assert found.history[-1]["train_loss"] < found.history[0]["train_loss"]
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == [str(n) for n in range(1, 13)]
    assert float(rows[3]["val_accuracy"]) == found.history[3]["val_accuracy"]
    assert set(rows[0]) >= {"lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"}
    assert any(line.startswith("test: ") for line in lines)
    # The weights are those of the best epoch: they have its accuracy again.
    data = open_data(photos, holdout=recipe.holdout, seed=recipe.seed)
    store = Store(data.val, tiny_preprocess)
    with torch.no_grad():
        logits = found.model(store.batch(range(len(store)))[0])
    right = (logits.argmax(1).numpy() == data.val.targets).mean()
    assert right == max(row["val_accuracy"] for row in found.history)


def test_two_runs_are_the_same_bit_for_bit(photos, tiny_config, tiny_preprocess, tmp_path):
    recipe = replace(RECIPE, crop=0.5, randaugment=2, erasing=0.5)
    one = run(photos, replace(tiny_config, dropout=0.1), tiny_preprocess, tmp_path / "one", recipe)
    torch.manual_seed(12345)  # the state outside must not matter
    other = run(photos, replace(tiny_config, dropout=0.1), tiny_preprocess, tmp_path / "other", recipe)
    assert one.read_bytes() == other.read_bytes()
    third = run(
        photos, replace(tiny_config, dropout=0.1), tiny_preprocess, tmp_path / "b", replace(recipe, seed=1)
    )
    assert third.read_bytes() != one.read_bytes()


def test_training_leaves_the_random_state_alone(photos, tiny_config, tiny_preprocess, tmp_path):
    before = torch.get_rng_state()
    run(photos, tiny_config, tiny_preprocess, tmp_path, replace(RECIPE, epochs=1))
    assert torch.equal(before, torch.get_rng_state())


def whole_state(folder):
    tensors, _ = read_tensors(folder / "state.safetensors")
    return tensors


@pytest.mark.parametrize("steps", [1, 3, 5, 11])
def test_interrupted_and_resumed_is_uninterrupted(photos, tiny_config, tiny_preprocess, tmp_path, steps):
    recipe = replace(RECIPE, crop=0.5)
    config = replace(tiny_config, dropout=0.1)
    whole = run(photos, config, tiny_preprocess, tmp_path / "whole", recipe)
    count = 0

    def terminate(progress, loss):
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    original = Loop.run
    try:
        Loop.run = lambda self, **hooks: original(self, **(hooks | {"on_step": terminate}))
        with pytest.raises(Interrupted):
            run(photos, config, tiny_preprocess, tmp_path / "parts", recipe)
    finally:
        Loop.run = original
    assert count == steps
    parts = run(photos, config, tiny_preprocess, tmp_path / "parts", recipe, resume=True)
    assert parts.read_bytes() == whole.read_bytes()
    mine, theirs = whole_state(tmp_path / "parts"), whole_state(tmp_path / "whole")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


CLI = """
import sys, torch
torch.set_num_threads(1)
from vit.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def start(photos, out, *more, **options):
    command = [
        sys.executable,
        "-c",
        CLI,
        "train",
        "--data",
        str(photos),
        "--out",
        str(out),
        "--model",
        "tiny",
    ]
    command += ["--image-size", "32", "--epochs", "3", "--batch", "8", "--set", "crop=0.5", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finished(photos, out, *more):
    with start(photos, out, *more) as process:
        errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors


def wait_for_first_epoch(process, out):
    while not (out / "state.safetensors").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed(photos, tmp_path):
    finished(photos, tmp_path / "whole")
    with start(photos, tmp_path / "killed") as killed:
        wait_for_first_epoch(killed, tmp_path / "killed")
        time.sleep(0.4)
        killed.send_signal(signal.SIGKILL)
    finished(photos, tmp_path / "killed", "--resume")
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(photos, tmp_path):
    with start(photos, tmp_path / "run", "--epochs", "500") as process:
        wait_for_first_epoch(process, tmp_path / "run")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert err.strip().endswith("the same command with --resume continues")
    assert "Traceback" not in err


def test_resume_refuses_another_run(photos, tiny_config, tiny_preprocess, tmp_path):
    with pytest.raises(CheckpointError, match=r"no state\.safetensors to resume from"):
        run(photos, tiny_config, tiny_preprocess, tmp_path, resume=True)
    run(photos, tiny_config, tiny_preprocess, tmp_path)
    with pytest.raises(CheckpointError, match=r"of another run \(recipe: lr was 0\.003 and is now 0\.001\);"):
        run(photos, tiny_config, tiny_preprocess, tmp_path, replace(RECIPE, lr=1e-3), resume=True)
    with pytest.raises(CheckpointError, match=r"\(config: dropout was 0\.0 and is now 0\.5\);"):
        run(photos, replace(tiny_config, dropout=0.5), tiny_preprocess, tmp_path, resume=True)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a complete"):
        run(photos, tiny_config, tiny_preprocess, tmp_path, resume=True)


def test_loss_that_is_no_number_stops_with_advice(photos, tiny_config, tiny_preprocess, tmp_path):
    model = new_model(tiny_config, 0)
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    data = open_data(photos, holdout=0.0)
    with pytest.raises(TrainingError, match="not a number in epoch 1, step 1; try a lower learning rate"):
        train(replace(RECIPE, holdout=0.0), model=model, data=data, preprocess=tiny_preprocess, out=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_early_stopping(photos, tiny_config, tiny_preprocess, tmp_path):
    recipe = replace(RECIPE, epochs=50, early_stop=2, lr=1e-9, ema=0.0)
    path = run(photos, tiny_config, tiny_preprocess, tmp_path, recipe)
    assert len(load_checkpoint(path).history) == 3  # the first is the best, and two more did not better it


def test_bad_images_are_skipped_and_listed(photos, tiny_config, tiny_preprocess, tmp_path):
    (photos / "train" / "grass" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.png"):
        run(photos, tiny_config, tiny_preprocess, tmp_path / "a")
    lines = []
    recipe = replace(RECIPE, bad_images=0.1, holdout=0.0)
    run(photos, tiny_config, tiny_preprocess, tmp_path / "b", recipe, report=lines.append)
    assert any("skipped in train" in line and "3.png: it is empty" in line for line in lines)


@pytest.mark.parametrize(
    ("losses", "accuracies", "expected"),
    [
        ([3.0, 2.0, 2.5, 2.6], [0.5, 0.6, 0.7, 0.8], False),
        ([3.0, 2.0, 1.9, 1.8], [0.5, 0.6, 0.5, 0.5], True),
        ([3.0, 2.0, 1.99999, 1.99999], [0.5, 0.5, 0.5, 0.5], True),  # the same to 4 decimals
        ([3.0, 2.0, 1.9, 1.8], [0.5, 0.5, 0.5, 0.5], False),  # the loss still falls
    ],
)
def test_when_training_ends_early(losses, accuracies, expected):
    rows = [
        {"epoch": index + 1, "val_loss": loss, "val_accuracy": accuracy}
        for index, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    assert stop_early(rows, 2) is expected
    assert not stop_early(rows, 0)


def test_teacher_is_followed(photos, tiny_config, tiny_preprocess, tmp_path):
    """With the teacher's opinion alone in the loss, the student takes the teacher's (wrong) classes over."""
    teacher = new_model(tiny_config, 5)
    with torch.no_grad():
        for parameter in teacher.head.parameters():
            parameter.zero_()
        teacher.head.bias[1] = 8.0
    recipe = replace(RECIPE, epochs=30, distill=1.0, holdout=0.0, mixup=0.0, views=2)
    path = run(photos, tiny_config, tiny_preprocess, tmp_path, recipe, teacher=teacher)
    data = open_images(photos, "test")
    with torch.no_grad():
        logits = load_checkpoint(path).model(Store(data, tiny_preprocess).batch(range(12))[0])
    assert (logits.argmax(1) == 1).all()


def test_teacher_of_another_size_sees_its_own_size(tiny_config):
    from vit.training.session import make_teacher

    teacher = new_model(replace(tiny_config, image_size=(16, 16)), 0)
    ask = make_teacher(teacher, torch.device("cpu"))
    flat = torch.full((2, 8, 8, 3), 77.0)
    with torch.no_grad():
        torch.testing.assert_close(ask(flat), teacher(torch.full((2, 16, 16, 3), 77.0)))
    # it is the caller's model: a copy of it can still be trained
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_learning_rate_warms_up_and_falls():
    recipe = Recipe(lr=1.0, warmup=0.1)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_optimizer_groups(tiny_model):
    recipe = Recipe(lr=1.0, weight_decay=0.3, layer_decay=0.5)
    optimizer = make_optimizer(tiny_model, recipe)
    set_learning_rate(optimizer, 1.0)
    names = {id(p): name for name, p in tiny_model.named_parameters()}
    found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert set(found) == set(names.values())
    assert found["head.weight"]["lr"] == found["norm.bias"]["lr"] == 1.0
    assert found["blocks.1.mlp.fc1.weight"]["lr"] == 0.5
    assert found["blocks.0.norm1.weight"]["lr"] == 0.25
    assert found["position"]["lr"] == found["patch_embedding.weight"]["lr"] == 0.125
    decayed = {name for name, group in found.items() if group["weight_decay"]}
    assert decayed == {n for n, p in tiny_model.named_parameters() if n.endswith("weight") and p.ndim > 1}


def test_losses():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    hard = torch.tensor([0, 2])
    expected = torch.nn.functional.cross_entropy(logits, hard, label_smoothing=0.1, reduction="none")
    targets = smooth_targets(hard, 3, 0.1)
    torch.testing.assert_close(sample_losses(Recipe(), logits, targets, None), expected)
    same = sample_losses(Recipe(distill=1.0), logits, targets, logits + 3)  # a shift is no disagreement
    torch.testing.assert_close(same, torch.zeros(2), atol=1e-6, rtol=0)
    weights = class_weights(np.array([0, 0, 0, 1]), 3)
    torch.testing.assert_close(weights[:2], torch.tensor([4 / 6, 2.0]))


def test_recipes_are_checked():
    with pytest.raises(RecipeError, match="epochs must be at least 1"):
        Recipe(epochs=0)
    with pytest.raises(RecipeError, match="unknown preset 'x'; known: scratch, finetune, probe"):
        preset("x")
    with pytest.raises(RecipeError, match="lr must be positive"):
        preset("probe", lr=0.0)
    for recipe in PRESETS.values():
        assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_command_line_errors_are_one_line(photos, tmp_path, capsys, tiny_model, tiny_preprocess):
    from vit.__main__ import main

    checkpoint = save_checkpoint(tmp_path / "c", model=tiny_model, preprocess=tiny_preprocess, labels="abc")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:-50])
    out = ["--out", str(tmp_path / "run")]
    cases = (
        (["--data", str(tmp_path / "nowhere")], "no such file or folder"),
        (["--data", str(photos), "--preset", "x"], "unknown preset 'x'"),
        (["--data", str(photos), "--preset", "probe"], "give the backbone with --from"),
        (["--data", str(photos), "--from", str(cut)], "not a complete safetensors file"),
        (["--data", str(photos), "--from", str(checkpoint), "--model", "tiny"], "give one of them"),
        (["--data", str(photos), "--teacher", str(checkpoint)], "the teacher's classes"),
        (["--data", str(photos), "--image-size", "33"], "not a multiple of patch_size"),
        (["--data", str(photos), "--model", "gigantic"], "unknown size 'gigantic'"),
    )
    for arguments, words in cases:
        assert main(["train", *arguments, *out]) == 2, arguments
        captured = capsys.readouterr()
        assert captured.out == ""
        last = captured.err.strip().splitlines()[-1]
        assert last.startswith("vit: ")
        assert words in last
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten_in_silence(photos, tmp_path, capsys, tiny_model, tiny_preprocess):
    from vit import __main__ as command
    from vit.document import FILE_NAME as checkpoint_name

    out = tmp_path / "run"
    kept = save_checkpoint(out, model=tiny_model, preprocess=tiny_preprocess, labels="abc").read_bytes()
    train = ["train", "--data", str(photos), "--out", str(out)]
    file = tmp_path / "file"
    file.write_text("not a folder")
    for arguments, words in (
        (train, "a run is there already (model.safetensors)"),
        ([*train, "--resume", "--overwrite"], "found both"),
        ([*train[:-1], str(file)], "expected a folder to write to, found a file"),
    ):
        assert command.main(arguments) == 2
        assert words in capsys.readouterr().err
    assert (out / checkpoint_name).read_bytes() == kept
    (out / checkpoint_name).rename(out / STATE)
    assert command.main(train) == 2
    (out / STATE).rename(out / checkpoint_name)
    more = [
        "--from",
        str(out),
        "--image-size",
        "12",
        "--epochs",
        "1",
        "--set",
        "bad_images=0.5",
        "--overwrite",
    ]
    assert command.main([*train, *more]) == 0
    assert (out / checkpoint_name).read_bytes() != kept


def test_command_line_fine_tunes(photos, tmp_path, capsys, tiny_model, tiny_preprocess):
    from vit.__main__ import main

    save_checkpoint(tmp_path / "c", model=tiny_model, preprocess=tiny_preprocess, labels="abc")
    arguments = [
        "train",
        "--data",
        str(photos),
        "--from",
        str(tmp_path / "c"),
        "--out",
        str(tmp_path / "run"),
    ]
    arguments += ["--image-size", "12", "--epochs", "2", "--batch", "8", "--set", "bad_images=0.5"]
    assert main(arguments) == 0
    found = load_checkpoint(tmp_path / "run")
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "run" / "model.safetensors")
    kept, following = said.err.splitlines()[-2:]
    assert re.match(
        r"kept epoch [12] of 2: [\d.]+ % of \d+ validation images right; the same images chose", kept
    )
    assert following == f"next: python -m export {tmp_path / 'run'} --quantize --calibration {photos}"
    for split in ("train", "test"):
        assert f"from {photos / split}" in said.err
    assert found.labels == ("blue sky", "grass", "rose")
    assert found.preprocess.size == (12, 12)
    assert found.model.position.shape == (1, 10, 16)
    assert found.recipe["from"] == load_checkpoint(tmp_path / "c").digest
    assert found.recipe["recipe"]["name"] == "finetune"


def test_STATEs_are_complete(tiny_model, tmp_path):
    recipe = Recipe()
    optimizer = make_optimizer(tiny_model, recipe)
    tiny_model(torch.zeros(1, 8, 8, 3)).sum().backward()
    optimizer.step()
    parts = {"module": tiny_model, "optimizer": optimizer, "average": None, "identity": {"a": 1}}
    history = [{"epoch": epoch, "train_loss": 1.0} for epoch in (1, 2, 3)]
    progress = state.Progress(epoch=3, seconds=[1.0] * 3, history=history)
    state.save_state(tmp_path, progress=progress, **parts)
    fresh = make_optimizer(tiny_model, recipe)
    progress = state.load_state(tmp_path, **(parts | {"optimizer": fresh}))
    assert progress.epoch == 3
    for parameter, slots in optimizer.state.items():
        assert all(torch.equal(value, fresh.state[parameter][slot]) for slot, value in slots.items())
    with pytest.raises(CheckpointError, match="a was 1 and is now 2"):
        state.load_state(tmp_path, **(parts | {"identity": {"a": 2}}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"progress": {"epoch": 2.5}}, "epoch is 2.5"),
        ({"progress": {"epoch": -1}}, "epoch is -1"),
        ({"progress": {"epoch": 10**30}}, "epoch is 1000"),
        ({"progress": {"epoch": 7}}, "7 epochs are done, and 0 are recorded"),
        ({"progress": {"step": "many"}}, "step is 'many'"),
        ({"progress": {"sums": [0.0]}}, "sums"),
        ({"progress": {"seconds": ["x"]}}, "seconds"),
        ({"progress": {"history": [{}]}}, "history"),
        ({"progress": {"finished": 1}}, "finished is 1"),
        ({"progress": {"luck": 1}}, "luck"),
        ({"progress": 5}, "not the state of a training run"),
        ({"identity": None}, "not the state of a training run"),
        ('{"progress": {}}', "not the state of a training run"),
        ('{"progress": {}, "identity": {}}', "it lacks 'epoch'"),
        ("[" * 100_000, "not the state of a training run"),
        ("head.weight", "its weights are not those of this run"),
    ],
)
def test_a_state_that_claims_is_refused(change, words, tiny_model, tmp_path):
    parts = {"module": tiny_model, "optimizer": make_optimizer(tiny_model, Recipe()), "average": None}
    state.save_state(tmp_path, progress=state.Progress(), identity={}, **parts)
    tensors, metadata = read_tensors(tmp_path / STATE)
    text = metadata[state.KEY]
    if change == "head.weight":
        tensors["model.head.weight"] = tensors["model.head.weight"][:1]
    elif isinstance(change, str):
        text = change
    else:
        found = json.loads(text)
        text = json.dumps(
            {
                n: {**found[n], **change[n]} if isinstance(change.get(n), dict) else change.get(n, found[n])
                for n in found
            }
        )
    write_tensors(tmp_path / STATE, tensors, {state.KEY: text})
    with pytest.raises(CheckpointError, match=words):
        state.load_state(tmp_path, identity={}, **parts)


def test_data_without_classes_is_refused(photos):
    with pytest.raises(DataError, match="images without classes"):
        open_data(photos / "train" / "rose", holdout=0.0)
    assert isinstance(open_data(photos, holdout=0.1), TrainingData)


def test_tensorboard_gets_the_metrics(photos, tiny_config, tiny_preprocess, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(photos, tiny_config, tiny_preprocess, tmp_path, tensorboard=True)
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    values = [event.value for event in found.Scalars("train_loss")]
    expected = [row["train_loss"] for row in load_checkpoint(tmp_path).history]
    assert values == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("accuracies", "losses", "expected"),
    [([0.5, 0.9, 0.8], [3, 2, 1], 2), ([0.9, 1.0, 1.0, 1.0], [3, 2, 1, 1.5], 3), ([1.0, 1.0], [1, 1], 1)],
)
def test_the_best_epoch_is_the_least_loss_of_equal_accuracies(accuracies, losses, expected):
    """A dozen held-out images are soon all right; training is not at its best then."""
    rows = zip(accuracies, losses, strict=True)
    history = [{"epoch": i, "val_accuracy": a, "val_loss": b} for i, (a, b) in enumerate(rows, 1)]
    assert best_epoch(history) == expected


def test_a_loss_that_still_falls_is_not_stopped(photos, tiny_config, tiny_preprocess, tmp_path):
    recipe = replace(RECIPE, epochs=6, early_stop=1, lr=1e-4, mixup=0.0, ema=0.0)  # the labels hardly change
    run(photos, tiny_config, tiny_preprocess, tmp_path, recipe=recipe)
    history = load_checkpoint(tmp_path).history
    losses = [row["val_loss"] for row in history]
    assert len({row["val_accuracy"] for row in history}) == 1
    assert losses == sorted(losses, reverse=True)
    assert len(history) == 6


def test_the_white_level_of_an_option_travels_with_the_model() -> None:
    options = TrainOptions(data="digits", out=Path("new"), white_level=4095)
    assert prepare_training(options).preprocess.white_level == 4095
    with pytest.raises(RecipeError, match="--white-level: white_level must be 1 to 65535, found 0"):
        prepare_training(replace(options, white_level=0))


def chosen(photos, **options):
    checked = check_training(TrainOptions(data=str(photos), out=Path("new"), **options))
    return checked.recipe, [note for note in checked.data.notes if "batch" in note]


def test_few_images_get_smaller_batches_and_it_is_said(tmp_path):
    """An epoch of one step leaves a run of the usual length at chance."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(60):
            Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / name / f"{index}.png")
    recipe, said = chosen(tmp_path)
    assert (recipe.batch, 108 // recipe.batch) == (8, 13)
    assert said == [
        "108 images to train on: --batch 8, not 256, for 13 steps per epoch; so few images learn more from a "
        "pretrained model (--from)"
    ]
    for given in ({"batch": 100}, {"changes": (("batch", 100),)}):  # what the user sets wins, with a warning
        recipe, said = chosen(tmp_path, **given)
        assert recipe.batch == 100
        assert said == [
            "108 images to train on: a batch of 100 gives 1 step per epoch, which learns slowly; --batch 8 "
            "gives 13"
        ]
    assert chosen(tmp_path, batch=10) == (preset("scratch", batch=10), [])
    assert chosen(tmp_path, preset="digits")[1] == []  # its figures were measured with its own batch


def test_an_example_keeps_its_recipe():
    assert chosen("digits") == (EXAMPLES["digits"].recipe, [])


@pytest.mark.parametrize("name", ["finetune", "probe"])
def test_presets_that_go_on_from_weights_need_them(photos, name, tmp_path, capsys):
    words = ["train", "--data", str(photos), "--preset", name, "--out", str(tmp_path / "run")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"preset {name} " in said
    assert "--from CHECKPOINT" in said
    assert "--preset scratch" in said
    assert not (tmp_path / "run").exists()
