"""Several labels per image: figures as scikit-learn's, thresholds, and a training from a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from tests.support.color_table import write_color_table
from vit.__main__ import main
from vit.checkpoint import load_checkpoint
from vit.config import ViTConfig
from vit.data.datasets import DataError
from vit.data.training_images import open_data
from vit.document import CheckpointError, read_document
from vit.model import ViT, new_model
from vit.training.label_sets import (
    choose_threshold,
    describe_thresholds,
    measure_sets,
    predict_all,
)
from vit.training.loop import sample_losses
from vit.training.recipe import Recipe, RecipeError, TrainOptions, preset
from vit.training.setup import check_training
from vit.training.train import train

CPU = torch.device("cpu")
CONFIG = ViTConfig(image_size=(16, 16), patch_size=8, width=32, depth=2, heads=2, mlp_width=64, classes=3)


def scores_and_truth(seed: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores, truth = random.random(40), random.random(40) < 0.3
    return (np.round(scores, 1) if ties else scores), truth


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_has_a_higher_f1(seed: int, ties: bool) -> None:
    scores, truth = scores_and_truth(seed, ties=ties)
    threshold = choose_threshold(scores, truth)
    best = max(f1_score(truth, scores >= each) for each in [0, *scores])
    assert f1_score(truth, scores >= threshold) == pytest.approx(best)
    assert threshold == 0 or threshold not in scores  # between two: no last bit decides


def test_thresholds_of_simple_cases() -> None:
    truth = np.array([True, True, False, False])
    assert choose_threshold(np.array([0.9, 0.8, 0.3, 0.1]), truth) == pytest.approx(0.55)
    assert choose_threshold(np.array([0.9, 0.8, 0.3, 0.1]), np.zeros(4, bool)) == 0.5
    assert choose_threshold(np.array([0.9, 0.8]), np.ones(2, bool)) == pytest.approx(0.4)


def test_figures_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0], [1.0, 3.0], [-2.0, 1.0], [9.0, 9.0]])
    targets = np.array([[True, False], [False, True], [False, True], [False, False]])
    good = torch.tensor([1.0, 1.0, 1.0, 0.0])  # the last one cannot be read
    row, thresholds = measure_sets("test", logits, good, targets, (0.5, 0.5))
    assert thresholds == (0.5, 0.5)
    assert row["test_map"] == 1.0
    assert row["test_f1"] == pytest.approx(2 * 3 / (4 + 3))
    assert row["test_accuracy"] == pytest.approx(2 / 3)
    chosen, thresholds = measure_sets("val", logits, good, targets)
    assert chosen["val_accuracy"] == chosen["val_f1"] == 1.0
    assert thresholds[0] == pytest.approx((1 / (1 + np.exp(-1)) + 1 / (1 + np.exp(-2))) / 2, abs=1e-5)
    words = describe_thresholds((0.4, 0.5), ("rose", "tulip"), np.array([[True, False]] * 3))
    assert words == (
        "thresholds: rose 0.4, tulip 0.5; chosen by F1 on 3 held-out images; no such image has tulip, "
        "so 0.5 there"
    )


def test_the_rows_of_other_processes_are_zero() -> None:
    class Numbers:
        def __len__(self) -> int:
            return 4

        def batches(self, groups):
            for group in groups:
                yield group, torch.ones(len(group), 2), torch.tensor([index != 2 for index in group])

    logits, good = predict_all(torch.nn.Identity(), Numbers(), 2, np.array([0, 2]), CPU)
    assert logits.tolist() == [[1, 1], [0, 0], [1, 1], [0, 0]]
    assert good.tolist() == [1, 0, 0, 0]


def test_the_loss_is_the_mean_of_the_cross_entropies_of_the_labels() -> None:
    recipe, logits = Recipe(distill=0.25, temperature=2.0), torch.tensor([[0.0, 2.0]])
    targets, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, -1.0]])

    def entropy(logit: float, target: float) -> float:
        share = 1 / (1 + np.exp(-logit))
        return -target * np.log(share) - (1 - target) * np.log(1 - share)

    own = (entropy(0, 1) + entropy(2, 0)) / 2
    assert sample_losses(recipe, logits, targets, None, several=True).item() == pytest.approx(own, rel=1e-6)
    soft = [1 / (1 + np.exp(-each / 2)) for each in (1, -1)]
    taught = 4 * (entropy(0, soft[0]) + entropy(1, soft[1])) / 2
    found = sample_losses(recipe, logits, targets, teacher, several=True).item()
    assert found == pytest.approx(0.75 * own + 0.25 * taught, rel=1e-6)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_table(tmp_path_factory.mktemp("colors"))


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model trained on the table."""
    out = tmp_path_factory.mktemp("run") / "run"
    words = ["train", "--data", str(table), "--out", str(out), "--preset", "fashion-quick", "--epochs", "12"]
    assert (
        main([*words, "--image-size", "16", "--patch-size", "8", "--batch", "16", "--set", "holdout=0.2"])
        == 0
    )
    return out


def test_a_training_learns_the_labels_of_a_table(run: Path) -> None:
    document = read_document(run)
    assert document.labels == ("blue", "green", "red")
    assert len(document.thresholds) == 3
    assert set(document.thresholds) != {0.5}
    last = document.history[-1]
    assert {"train_accuracy", "val_map", "val_f1", "val_accuracy"} < set(last)
    assert max(row["val_map"] for row in document.history) > 0.95
    assert document.recipe["test_map"] > 0.9
    assert document.recipe["test_f1"] > 0.8
    assert document.recipe["recipe"]["smoothing"] == 0.0


def test_the_epoch_with_the_best_map_is_kept(table: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = Recipe(epochs=4, batch=16, holdout=0.2, smoothing=0.0, mixup=0.2, lr=3e-3)
    data = open_data(table, holdout=0.2)
    from runtime.images.preprocess import Preprocess

    parts = dict(data=data, preprocess=Preprocess(size=(16, 16), resize="stretch"), report=lines.append)
    train(recipe, model=new_model(CONFIG, 0), out=tmp_path, **parts)
    kept = load_checkpoint(tmp_path)
    from vit.training.evaluate import best_epoch

    best = best_epoch(kept.history)
    assert kept.history[best - 1]["val_map"] == max(row["val_map"] for row in kept.history)
    (words,) = (line for line in lines if line.startswith("thresholds: "))
    assert "chosen by F1 on" in words
    assert any(line.startswith("test: mAP ") and "with exactly their labels" in line for line in lines)
    # The thresholds are those of the epoch that was kept: measured again on the same images.
    from vit.data.batches import Store

    store = Store(data.val, parts["preprocess"])
    found = predict_all(kept.model, store, 3, np.arange(len(store)), CPU)
    again, thresholds = measure_sets("val", *found, data.val.targets)
    assert thresholds == pytest.approx(kept.thresholds, abs=1e-5)
    assert again["val_map"] == pytest.approx(kept.history[best - 1]["val_map"])


def test_a_run_resumes_with_its_thresholds(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.errors import Interrupted
    from runtime.images.preprocess import Preprocess
    from vit.training.loop import Loop

    recipe = Recipe(epochs=3, batch=16, holdout=0.2, smoothing=0.0, lr=3e-3)
    parts = dict(data=open_data(table, holdout=0.2), preprocess=Preprocess(size=(16, 16), resize="stretch"))
    train(recipe, model=new_model(CONFIG, 0), out=tmp_path / "whole", **parts)
    original, steps = Loop._step, [0]

    def stop_early(self, *words):
        steps[0] += 1
        if steps[0] == 2 * self.steps + 1:
            raise Interrupted("enough")
        return original(self, *words)

    monkeypatch.setattr(Loop, "_step", stop_early)
    with pytest.raises(Interrupted):
        train(recipe, model=new_model(CONFIG, 0), out=tmp_path / "cut", **parts)
    monkeypatch.undo()
    train(recipe, model=new_model(CONFIG, 0), out=tmp_path / "cut", resume=True, **parts)
    whole, cut = (load_checkpoint(tmp_path / name) for name in ("whole", "cut"))
    assert cut.thresholds == whole.thresholds
    assert cut.history == whole.history


def test_a_probe_fits_one_regression_per_label(run: Path, table: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--data",
        str(table),
        "--from",
        str(run),
        "--preset",
        "probe",
        "--out",
        str(tmp_path / "p"),
    ]
    assert main([*words, "--set", "holdout=0.2"]) == 0
    document = read_document(tmp_path / "p")
    assert document.recipe["test_map"] > 0.9
    assert len(document.thresholds) == 3
    assert main([*words[:-1], str(tmp_path / "q")]) == 0  # nothing is held out: thresholds are not chosen
    assert read_document(tmp_path / "q").thresholds == (0.5, 0.5, 0.5)


def test_a_probe_needs_images_with_and_without_each_label(run: Path, tmp_path: Path) -> None:
    table = write_color_table(tmp_path / "one", colors=("red", "green"), always="green")
    words = [
        "train",
        "--data",
        str(table),
        "--from",
        str(run),
        "--preset",
        "probe",
        "--out",
        str(tmp_path / "p"),
    ]
    assert main(words) == 2
    recipe, data = preset("probe"), open_data(table, holdout=0)
    checkpoint = load_checkpoint(run)
    from vit.adapt import adapt_model

    model = adapt_model(checkpoint.model, classes=2)
    with pytest.raises(DataError, match="found none without green"):
        train(recipe, model=model, data=data, preprocess=checkpoint.preprocess, out=tmp_path / "r")


def options(table: Path, tmp_path: Path, **more) -> TrainOptions:
    return TrainOptions(data=str(table), out=tmp_path / "out", **more)


@pytest.mark.parametrize(("name", "value"), [("smoothing", 0.1), ("balance", True)])
def test_what_needs_one_label_per_image_is_refused(table: Path, tmp_path: Path, name: str, value) -> None:
    with pytest.raises(RecipeError, match=f"{name} is for one label per image"):
        check_training(options(table, tmp_path, changes=((name, value),)))


def test_label_smoothing_is_switched_off_openly(table: Path, tmp_path: Path) -> None:
    checked = check_training(options(table, tmp_path))
    assert checked.recipe.smoothing == 0.0
    assert any("label smoothing is off" in note for note in checked.data.notes)


def test_a_teacher_of_the_other_kind_is_refused(run: Path, table: Path, photos: Path, tmp_path: Path) -> None:
    assert check_training(options(table, tmp_path, teacher=run)).data.train.several
    with pytest.raises(CheckpointError, match="expected a teacher with one label per image"):
        check_training(options(photos, tmp_path, teacher=run))


def test_a_head_of_the_other_kind_starts_anew(run: Path, table: Path, tmp_path: Path) -> None:
    from vit.training.setup import build_model

    source = load_checkpoint(run)
    checked = check_training(options(table, tmp_path, source=run))
    kept, _ = build_model(checked, source)
    assert torch.equal(kept.head.weight, source.model.head.weight)
    other, _ = build_model(checked, replace(source, thresholds=None))
    assert not other.head.weight.any()
    assert isinstance(other, ViT)


def test_plots_judge_one_label_per_image(run: Path, table: Path, capsys) -> None:
    assert main(["plots", str(run), "--data", str(table)]) == 2
    assert "this model gives several" in capsys.readouterr().err


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 0.5, 2], ["a", 0.5, 0.5], 0.5])
def test_thresholds_of_a_checkpoint_are_checked(run: Path, tmp_path: Path, thresholds) -> None:
    import json

    from vit.checkpoint import KEY, read_tensors, write_tensors

    tensors, metadata = read_tensors(run / "model.safetensors")
    document = json.loads(metadata[KEY]) | {"thresholds": thresholds}
    write_tensors(tmp_path / "model.safetensors", tensors, {KEY: json.dumps(document)})
    with pytest.raises(CheckpointError, match="expected one number from 0 to 1 per label"):
        read_document(tmp_path)
