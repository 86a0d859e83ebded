"""Two processes give the losses of one."""

import csv
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from vit.data import batches
from vit.data.batches import Store
from vit.data.training_images import open_data
from vit.model import new_model
from vit.training.distributed import World, choose_device
from vit.training.loop import Loop
from vit.training.recipe import Recipe, RecipeError
from vit.training.train import train as run_training

WORKER = Path(__file__).with_name("ddp_worker.py")


def losses(photos, out, processes):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        str(WORKER),
        str(photos),
        str(out),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_two_processes_train_as_one(photos, tmp_path):
    """Same global batch, lopsided classes, and one broken image that only one process meets."""
    (photos / "train" / "grass" / "3.png").write_bytes(b"broken")
    for index in range(6):
        (photos / "train" / "rose" / f"{index}.png").unlink()
    one = losses(photos, tmp_path / "one.json", 1)
    two = losses(photos, tmp_path / "two.json", 2)
    assert (one["size"], two["size"]) == (1, 2)
    assert len(one["losses"]) == len(two["losses"]) == 51
    assert max(abs(a - b) for a, b in zip(one["losses"], two["losses"], strict=True)) <= 1e-5
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["val_accuracy"] == b["val_accuracy"]
        assert abs(a["train_loss"] - b["train_loss"]) <= 1e-5


def loop_of(photos, config, preprocess, world=None, **recipe):
    data = open_data(photos, holdout=0.0)
    return Loop(
        new_model(config, 0),
        Store(data.train, preprocess),
        data.train.targets,
        recipe=Recipe(epochs=1, batch=8, **recipe),
        classes=3,
        device=torch.device("cpu"),
        size=(8, 8),
        world=world,
    ), data


@pytest.mark.parametrize(("mixup", "needed"), [(0.0, 4), (0.3, 8)])
def test_fewer_images_than_processes_are_refused(photos, tiny_config, tiny_preprocess, mixup, needed):
    """Before the processes wait for each other, each of them ends with the same sentence."""
    for path in (photos / "train").glob("*/*.png"):
        if path.stem != "0":
            path.unlink()
    with pytest.raises(RecipeError, match=rf"at least {needed} images per step, found 3 .*fewer processes"):
        loop_of(photos, tiny_config, tiny_preprocess, World(rank=3, size=4), mixup=mixup)


def test_fewer_validation_images_than_processes_are_shared_out(photos, tiny_config, tiny_preprocess):
    class Share(World):
        def sum(self, values):
            sums.append(values.clone())
            return values

    loop, data = loop_of(photos, tiny_config, tiny_preprocess)
    few = data.test.subset([0, 5, 11])
    store, sums = Store(few, tiny_preprocess), []
    alone = loop.evaluate(store, few.targets)
    for rank in range(5):
        loop.world = Share(rank=rank, size=5)
        loop.evaluate(store, few.targets)
    loss, correct, count = torch.stack(sums).sum(0).tolist()
    assert [part[2].item() for part in sums] == [1, 1, 1, 0, 0]
    assert loss / count == pytest.approx(alone["val_loss"])
    assert correct / count == alone["val_accuracy"]


def test_a_missing_device_is_an_error():
    with pytest.raises(ValueError, match="device must be"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no CUDA device"):
            choose_device("cuda")
    assert choose_device("cpu").type == "cpu"


def train(photos, out, *launcher, **settings):
    """Start a short run of the command line, alone or by torchrun."""
    command = [sys.executable, *launcher, "-m", "vit", "train", f"--data={photos}", f"--out={out}"]
    shape = ["--model=tiny", "--image-size=8", "--patch-size=4", "--epochs=40", "--batch=8", "--device=cpu"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen(
        [*command, *shape, "--set=holdout=0.0", *settings.get("more", [])],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_only_the_first_process_writes_for_tensorboard(
    photos, tiny_config, tiny_preprocess, tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard")
    for rank in range(2):
        monkeypatch.setattr(
            "vit.training.train.join_processes", lambda _device, rank=rank: nullcontext(World(rank, 1))
        )
        recipe, data = Recipe(epochs=1, batch=8, holdout=0.0), open_data(photos, holdout=0.0)
        parts = {"model": new_model(tiny_config, 0), "data": data, "preprocess": tiny_preprocess}
        run_training(recipe, **parts, out=tmp_path / str(rank), tensorboard=True)
        assert (tmp_path / str(rank) / "tensorboard").exists() is (rank == 0)


def test_the_random_state_of_other_devices_is_let_alone(
    photos, tiny_config, tiny_preprocess, tmp_path, monkeypatch
):
    """Each of eight processes would warn, and take some memory of each of eight devices."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    recipe, data = Recipe(epochs=1, batch=8, holdout=0.0), open_data(photos, holdout=0.0)
    parts = {"model": new_model(tiny_config, 0), "data": data, "preprocess": tiny_preprocess}
    assert run_training(recipe, **parts, out=tmp_path, device="cpu").exists()


def test_processes_share_the_memory_for_images(monkeypatch):
    monkeypatch.setattr(batches, "free_memory", lambda: 8 << 30)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert batches.available_memory_share() == 2 << 30
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # as torchrun says it
    assert batches.available_memory_share() == (2 << 30) // 8


# Slow: after the restart the processes of torch find each other late on a busy machine, and then not at all.
@pytest.mark.slow
def test_a_process_that_is_killed_costs_no_more_than_its_epoch(photos, tmp_path):
    """torchrun starts all again with the same arguments; they go on from the last epoch that is saved."""
    import psutil

    alone = train(photos, tmp_path / "alone")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    run = train(photos, tmp_path / "two", *launcher, more=["--resume=auto"])
    state = tmp_path / "two" / "state.safetensors"
    while not state.exists():
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.01)
    workers = [each for each in psutil.Process(run.pid).children() if "train" in each.cmdline()]
    workers[-1].kill()
    said = run.communicate(timeout=300)[1]
    alone_said = alone.communicate(timeout=300)[1]
    assert alone.returncode == 0, alone_said
    assert run.returncode == 0, said
    assert said.count("no state of a run") == said.count("resuming the run") == 2
    assert history(tmp_path / "two") == pytest.approx(history(tmp_path / "alone"), abs=1e-4)


def history(out):
    with (out / "metrics.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]
