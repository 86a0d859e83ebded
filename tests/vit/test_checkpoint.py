"""Checkpoints come back as they were, and a damaged one is never taken for good."""

import hashlib
import json
import time
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from runtime.writing import OutputError
from vit.checkpoint import load_checkpoint, save_checkpoint
from vit.document import KEY, CheckpointError


@pytest.fixture
def saved(tmp_path, tiny_model, tiny_preprocess):
    return save_checkpoint(
        tmp_path / "run",
        model=tiny_model,
        preprocess=tiny_preprocess,
        labels=["a", "b", "b"],
        history=[{"epoch": 1, "val_accuracy": 0.5}],
        recipe={"name": "test"},
    )


def test_round_trip(saved, tiny_model, tiny_preprocess):
    for place in (saved, saved.parent):
        found = load_checkpoint(place)
        assert found.labels == ("a", "b", "b")
        assert found.preprocess == tiny_preprocess
        assert found.history == [{"epoch": 1, "val_accuracy": 0.5}]
        assert found.recipe == {"name": "test"}
        assert found.digest == hashlib.sha256(saved.read_bytes()).hexdigest()
        assert found.model.config == tiny_model.config
        assert not found.model.training
        for name, value in tiny_model.state_dict().items():
            assert torch.equal(found.model.state_dict()[name], value)


def test_same_content_is_the_same_file(saved, tmp_path, tiny_model, tiny_preprocess):
    again = save_checkpoint(
        tmp_path / "other.safetensors",
        model=tiny_model,
        preprocess=tiny_preprocess,
        labels=["a", "b", "b"],
        history=[{"epoch": 1, "val_accuracy": 0.5}],
        recipe={"name": "test"},
    )
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_cut_off_file_is_refused(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_checkpoint(saved)


def test_what_is_no_checkpoint_is_refused(saved, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load_checkpoint(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError, match=r"not a checkpoint of vit-edge \(it lacks 'vit_edge'\).*vit import"
    ):
        load_checkpoint(tmp_path / "x.safetensors")
    document = {"format": "vit-edge checkpoint", "version": 99}
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", {KEY: json.dumps(document)})
    with pytest.raises(CheckpointError, match="found 99"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_what_does_not_fit_is_not_written(tmp_path, tiny_model, tiny_preprocess):
    path = tmp_path / "m.safetensors"
    with pytest.raises(CheckpointError, match="expected 3 labels, one per class of the model, found 2"):
        save_checkpoint(path, model=tiny_model, preprocess=tiny_preprocess, labels=["a", "b"])
    other = replace(tiny_preprocess, size=(9, 9))
    with pytest.raises(CheckpointError, match="preprocessing gives"):
        save_checkpoint(path, model=tiny_model, preprocess=other, labels=["a", "b", "c"])
    assert not list(tmp_path.iterdir())


def test_a_record_that_would_not_be_read_is_not_written(tmp_path, tiny_model, tiny_preprocess):
    parts = {"model": tiny_model, "preprocess": tiny_preprocess, "labels": ["a", "b", "c"]}
    with pytest.raises(CheckpointError, match="test_accuracy is 98"):
        save_checkpoint(tmp_path / "m.safetensors", recipe={"test_accuracy": 98}, **parts)
    with pytest.raises(CheckpointError, match="history is"):
        save_checkpoint(tmp_path / "m.safetensors", history=[{"loss": 0.5}], **parts)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(saved, tmp_path, tiny_model, tiny_preprocess, monkeypatch):
    from pathlib import Path

    before = saved.read_bytes()

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match=r"model\.safetensors: it cannot be written \(disk full\)"):
        save_checkpoint(saved, model=tiny_model, preprocess=tiny_preprocess, labels=["x", "y", "z"])
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["model.safetensors"]


def claim(saved, change):
    """Write the checkpoint again with another document: the weights stay."""
    with safe_open(saved, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        document = json.loads(opened.metadata()[KEY])
    change(document)
    save_file(tensors, saved, {KEY: json.dumps(document)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("depth", value) for value in (10**9, 2.5, 0, -1, True, "2", None, 10**30, [1])),
        *(("width", value) for value in (65_536, 10**12, 2.5, "wide")),
        *(("heads", value) for value in (0, -2, 1.0, 5)),
        *(("mlp_width", value) for value in (2**24, 10**18)),
        *(("patch_size", value) for value in (0, -4, "4")),
        *(("image_size", value) for value in ([10**9, 10**9], [8], 8, ["8", "8"], [8.0, 8.0], [0, 8])),
        *(("classes", value) for value in (10**9, -1, 2.0)),
        *(("registers", value) for value in (10**9, -1)),
        *(("representation", value) for value in (10**18, 0, "tanh")),
        *(("mean", value) for value in (["a", "b", "c"], "abc", [0.5], [None] * 3, [float("nan")] * 3)),
        *(("std", value) for value in ([0, 1, 1], [float("inf")] * 3)),
        *(("norm_epsilon", value) for value in (float("nan"), -1.0, 0, "small")),
        *(("dropout", value) for value in (1.5, -0.1, "half")),
        *((name, "yes") for name in ("class_token", "pre_norm", "gated", "rotary", "attention_bias")),
        *((name, ["gelu"]) for name in ("activation", "pooling", "final_norm")),
    ],
)
def test_a_config_that_claims_is_refused_before_anything_is_built(saved, name, value, monkeypatch):
    claim(saved, lambda document: document["config"].update({name: value}))
    monkeypatch.setattr("vit.checkpoint.ViT", lambda config: pytest.fail("it was built"))
    start = time.perf_counter()
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(saved)
    assert str(error.value).startswith(f"{saved}: ")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", None),
        ("config", []),
        ("config", "vit"),
        ("preprocess", 7),
        ("preprocess", {}),
        ("labels", "abc"),
        ("labels", ["a", "b"]),
        ("labels", ["a", None, 3]),
        ("labels", None),
        ("history", [1]),
        ("history", "long"),
        ("recipe", [["a", 1]]),
        ("history", [{}]),
        ("history", [{"epoch": 2}]),
        ("history", [{"epoch": 1, "train_loss": "low"}]),
        ("history", [{"epoch": 1, "val_accuracy": None}]),
        ("history", [{"epoch": 1}, {"epoch": 2, "train_loss": 0.5}]),
        ("recipe", {"test_accuracy": None}),
        ("recipe", {"test_accuracy": 7.0}),
        ("recipe", {"test_images": "many"}),
        ("recipe", {"trained_on": 5}),
        ("recipe", {"images": [1]}),
        ("recipe", {"recipe": "fast"}),
        ("recipe", {"data": ["a"]}),
        ("finished", "false"),
        ("version", True),
        ("format", None),
    ],
)
def test_a_document_that_makes_no_sense_is_refused(saved, name, value):
    claim(saved, lambda document: document.update({name: value}))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(saved)
    assert str(error.value).startswith(f"{saved}: ")


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000, "[]", "7", "", "{"])
def test_a_document_that_is_none_is_refused(saved, text):
    save_file({"x": torch.zeros(1)}, saved, {KEY: text})
    with pytest.raises(CheckpointError, match="not a checkpoint of vit-edge"):
        load_checkpoint(saved)
