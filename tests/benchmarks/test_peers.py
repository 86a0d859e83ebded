"""Every way to run the model runs that same model, so that the times compare like with like."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from benchmarks import peers
from benchmarks.peers import BASELINE, OURS, Bench, Peer, Skipped, build, extra_graph
from calibration.drift import sqnr
from export.environment import target_here
from export.files import model_bytes
from export.torch_onnx import export_float
from vit.config import ViTConfig
from vit.model import ViT

CONFIG = ViTConfig(image_size=(32, 32), patch_size=8, width=64, depth=2, heads=2, mlp_width=128, classes=10)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (1, 32, 32, 3), np.uint8) for _ in range(4)]
    return Bench(ViT(CONFIG).eval(), pictures, tmp_path_factory.mktemp("peers"), target_here())


@pytest.fixture(scope="module")
def built(bench):
    return list(build(bench, variations=True))


def logits(peer, pictures, threads=1):
    model = peer.open(threads)
    return np.concatenate([model.run(model.prepare(pixels)) for pixels in pictures])


def test_floats_are_the_same_model_and_integers_are_close_to_it(bench, built):
    found = {peer.name: logits(peer, bench.pictures) for peer in built if isinstance(peer, Peer)}
    reference = found["torch eager float32"]
    quality = {name: sqnr(reference, values) for name, values in found.items()}
    for name, decibels in quality.items():
        if "float32" in name:
            assert decibels > 90, name
        else:  # random weights have no outliers, so that even the crudest is not far off
            assert 10 < decibels < 80, f"{name}: {decibels}"
    assert quality[OURS] > 25


def test_every_way_is_there(built):
    names = [each.name for each in built]
    assert len(set(names)) == len(names)
    assert {BASELINE, OURS, "ORT quantize_static INT8", "ORT quantize_dynamic INT8"} <= set(names)
    assert sum("per channel" in name for name in names) == 2
    tools = importlib.util.find_spec("openvino") is not None and importlib.util.find_spec("nncf") is not None
    assert ("OpenVINO + NNCF INT8" in names and not any(isinstance(b, Skipped) for b in built)) or not tools


def test_integer_files_are_smaller(built):
    sizes = {peer.name: peer.bytes for peer in built if isinstance(peer, Peer)}
    assert sizes[OURS] < 0.5 * sizes[BASELINE]
    assert sizes["ORT quantize_static INT8"] < 0.6 * sizes[BASELINE]


def test_what_is_not_installed_is_said_and_left_out(bench, monkeypatch):
    monkeypatch.setattr(peers, "_onnxruntime_tools", lambda *_: [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = list(build(bench))
    assert [each.name for each in found if isinstance(each, Skipped)] == ["OpenVINO"]
    assert "pip install openvino" in next(e.reason for e in found if isinstance(e, Skipped))
    assert OURS in [each.name for each in found]


def test_an_extra_graph_takes_pixels_of_either_layout(bench, tmp_path):
    path = tmp_path / "ours.onnx"
    path.write_bytes(model_bytes(export_float(bench.model).model))
    found = logits(extra_graph(path, bench.target), bench.pictures)
    exact = bench.model(torch.from_numpy(np.concatenate(bench.pictures))).detach().numpy()
    np.testing.assert_allclose(found, exact, atol=1e-4)


def test_an_extra_graph_of_floats_is_refused(bench, tmp_path):
    path = peers.export_plain(bench.model, tmp_path / "plain.onnx")
    with pytest.raises(ValueError, match="expected one input of uint8 pixels"):
        extra_graph(path, bench.target).open(1)


def test_threads_reach_torch(bench):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            logits(peers.Peer("", lambda n: peers._torch(bench.model, n)), bench.pictures[:1], threads)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
