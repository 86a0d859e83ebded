"""A linear probe: features that are kept between runs, and the head that is fitted on them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vit.__main__ import main
from vit.checkpoint import load_checkpoint, save_checkpoint
from vit.data.batches import Store
from vit.data.datasets import DataError, Images, open_images
from vit.data.training_images import open_data
from vit.document import CheckpointError
from vit.model import ViT, new_model
from vit.training.probe import STRENGTHS, Features, fit_head
from vit.training.recipe import RecipeError, preset
from vit.training.train import train

CPU = torch.device("cpu")


@pytest.mark.parametrize("change", [{"heads": 4}, {"activation": "quick_gelu"}, {"norm_epsilon": 0.1}])
def test_another_model_with_the_same_weights_gets_its_own_features(
    tiny_model, tiny_preprocess, tmp_path, change
):
    """Heads, activation and epsilon are in no weight: an import may be repeated with others."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    store = Store(Images(list(pixels), None, None, "memory"), tiny_preprocess)
    other = ViT(replace(tiny_model.config, **change))
    other.load_state_dict(tiny_model.state_dict())
    first = Features(tiny_model, store, CPU, tmp_path).features
    second = Features(other, store, CPU, tmp_path).features
    assert not torch.allclose(first, second)
    with torch.no_grad():
        torch.testing.assert_close(second, other.features(torch.from_numpy(pixels)))
    assert len(list(tmp_path.iterdir())) == 2


def test_another_head_on_the_same_backbone_needs_no_new_features(tiny_model, tiny_preprocess, tmp_path):
    store = Store(Images([np.zeros((8, 8, 3), np.uint8)], None, None, "memory"), tiny_preprocess)
    other = ViT(replace(tiny_model.config, classes=7))
    other.load_state_dict(
        tiny_model.state_dict() | {f"head.{k}": v for k, v in other.head.state_dict().items()}
    )
    Features(tiny_model, store, CPU, tmp_path)
    Features(other, store, CPU, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_image_that_is_not_there_is_no_obstacle(tiny_model, tiny_preprocess, photos, tmp_path):
    """A link to nothing is counted as unreadable, as in every other training."""
    (photos / "test" / "grass" / "gone.png").symlink_to(photos / "nowhere.png")
    store = Store(open_images(photos, "test"), tiny_preprocess, bad_share=0.1)
    found = Features(tiny_model, store, CPU, tmp_path)
    assert found.good.sum() == len(found) - 1 == 12


def features_of(features, good=None):
    """Features without a model."""
    found = Features.__new__(Features)
    found.features = features
    found.good = torch.ones(len(features), dtype=torch.bool) if good is None else good
    return found


def two_clouds(classes, count=20):
    """Features of classes far apart, of different scales, and their images."""
    random = np.random.default_rng(0)
    targets = np.arange(count * classes) % classes
    points = random.normal(size=(len(targets), 4)) + 4 * np.eye(4)[targets]
    features = torch.from_numpy(points * [1, 100, 0.01, 1] + [5, -300, 0, 1]).float()
    return features, Images([Path("x")] * len(targets), targets, tuple("abcd"[:classes]), "memory")


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_for_features_that_are_not_standardized(classes):
    """Of two classes scikit-learn gives one row of weights."""
    features, images = two_clouds(classes)
    head = fit_head(features_of(features), images, 1.0, balance=False)
    logits = head(features)
    assert logits.shape == (len(features), classes)
    assert (logits.argmax(1).numpy() == images.targets).mean() > 0.95
    reference = LogisticRegression(C=1.0, max_iter=1000)
    standardized = ((features - features.mean(0)) / features.std(0)).double().numpy()
    expected = reference.fit(standardized, images.targets).predict_proba(standardized)
    np.testing.assert_allclose(logits.softmax(1).detach().numpy(), expected, atol=1e-3)


def test_unreadable_images_teach_nothing():
    features, images = two_clouds(3)
    spoiled = torch.cat([features, torch.full((1, 4), 1e6)])
    more = replace(images, items=[*images.items, Path("x")], targets=np.append(images.targets, 1))
    good = torch.ones(len(spoiled), dtype=torch.bool)
    good[-1] = False
    one, other = (
        fit_head(features_of(*each), known, 0.1, balance=True)
        for each, known in (((features,), images), ((spoiled, good), more))
    )
    assert torch.equal(one.weight, other.weight)
    with pytest.raises(DataError, match="memory: expected a readable image of each class, found none of c"):
        fit_head(features_of(features, torch.from_numpy(images.targets != 2)), images, 0.1, balance=False)


def test_probe_trains_the_head_alone(photos, tiny_model, tiny_preprocess, tmp_path):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    data = open_data(photos, holdout=0.0)
    lines = []
    parts = {"data": data, "preprocess": tiny_preprocess, "out": tmp_path}
    path = train(preset("probe"), model=tiny_model, **parts, report=lines.append)
    found = load_checkpoint(path)
    changed = {n for n, v in found.model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"head.weight", "head.bias"}
    assert found.recipe["test_accuracy"] >= 0.9
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/1", "test"]
    assert (tmp_path / "metrics.csv").read_text().startswith("epoch,train_loss,train_accuracy,seconds\n1,")
    assert len(list((tmp_path / "features").iterdir())) == 2  # train and test
    # Cached features are used again, and give the same.
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").iterdir()}
    model = ViT(tiny_model.config)
    model.load_state_dict(before)
    again = train(preset("probe"), model=model, **parts)
    assert load_checkpoint(again).digest == found.digest
    assert stamps == {file: file.stat().st_mtime_ns for file in (tmp_path / "features").iterdir()}
    (tmp_path / "state.safetensors").write_bytes(b"of a run that is replaced")
    train(preset("probe"), model=model, **parts)
    with pytest.raises(CheckpointError, match=r"no state\.safetensors to resume from"):
        train(preset("probe"), model=model, **parts, resume=True)
    with pytest.raises(RecipeError, match="leave the teacher out"):
        train(preset("probe"), model=model, **parts, teacher=tiny_model)
    longer = new_model(replace(tiny_model.config, representation=5), 0)
    with pytest.raises(RecipeError, match="this head has more; fine-tune"):
        train(preset("probe"), model=longer, **parts)


def test_validation_images_choose_the_regularization(
    photos, tiny_model, tiny_preprocess, tmp_path, monkeypatch
):
    """With wrong labels, the strongest regularization has the lowest validation loss."""
    tried = []
    monkeypatch.setattr(
        "vit.training.probe.fit_head",
        lambda *args, **options: tried.append(fit_head(*args, **options)) or tried[-1],
    )
    data = open_data(photos, holdout=0.4)
    data = replace(data, train=replace(data.train, targets=(data.train.targets + 1) % 3))
    path = train(preset("probe"), model=tiny_model, data=data, preprocess=tiny_preprocess, out=tmp_path)
    found = load_checkpoint(path)
    assert len(tried) == len(STRENGTHS)
    assert torch.equal(found.model.head.weight, tried[0].weight)
    assert set(found.history[0]) == {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs 3", "has no epochs; leave it out"),
        ("--set lr=0.1", "has no lr; leave it out"),
        ("--teacher c", "leave --teacher out"),
    ],
)
def test_options_that_a_probe_does_not_read_are_refused(
    words, message, photos, tiny_model, tiny_preprocess, tmp_path, monkeypatch, capsys
):
    save_checkpoint(tmp_path / "c", model=tiny_model, preprocess=tiny_preprocess, labels="abc")
    monkeypatch.chdir(tmp_path)
    command = ["train", "--data", str(photos), "--from", "c", "--preset", "probe", "--out", "run"]
    assert main([*command, *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert main([*command, "--set", "balance=true"]) == 0
    assert "kept epoch 1 of 1" in capsys.readouterr().err
