"""Every way to run the model runs that same model, so that the times compare like with like."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from benchmarks import peers
from benchmarks.engines import Peer, extra_graph, normalizing, openvino_runtime, torch_eager
from benchmarks.nncf_files import accuracy_aware_file, quantizers
from benchmarks.peers import BASELINE, OURS, REFERENCE, Skipped, build
from calibration.measure.drift import sqnr
from export.graph.float_model import FloatModel


def logits(peer, images, threads=1):
    model = peer.open(threads)
    return np.concatenate([model.run(model.prepare(pixels)) for pixels in images])


def test_floats_are_the_same_model_and_integers_are_close_to_it(bench, built):
    found = {peer.name: logits(peer, bench.images) for peer in built if isinstance(peer, Peer)}
    reference = found[REFERENCE]
    quality = {name: sqnr(reference, values) for name, values in found.items()}
    for name, decibels in quality.items():
        if "float32" in name:
            assert decibels > 90, name
        else:  # it is the same model still, and no float one
            assert 2 < decibels < 80, f"{name}: {decibels}"
    assert quality[OURS] > 25


def test_every_way_is_there(built):
    names = [each.name for each in built]
    assert len(set(names)) == len(names)
    assert {BASELINE, OURS, "ORT quantize_static INT8", "ORT quantize_dynamic INT8"} <= set(names)
    assert {f"ORT quantize_static INT8, {words}" for words in peers.STATIC} <= set(names)
    tools = importlib.util.find_spec("openvino") is not None and importlib.util.find_spec("nncf") is not None
    left_out = {each.name for each in built if isinstance(each, Skipped)}
    assert left_out <= {"openvino", "nncf", "ORT quantize_static INT8, the same, SmoothQuant"}
    assert ("OpenVINO + NNCF INT8" in names and not left_out & {"openvino", "nncf"}) or not tools


def test_integer_files_are_smaller(built):
    sizes = {peer.name: peer.bytes for peer in built if isinstance(peer, Peer)}
    assert sizes[OURS] < 0.5 * sizes[BASELINE]
    assert sizes["ORT quantize_static INT8"] < 0.6 * sizes[BASELINE]


@pytest.fixture
def exported(bench, built, monkeypatch):
    """Our float graph as a file; exporting the same model again gives what there is already."""
    path = bench.folder / "ours.onnx"
    monkeypatch.setattr(peers, "export_float_graph", lambda model: FloatModel(ir.load(path), {}))
    monkeypatch.setattr(peers, "export_plain", lambda model, path: path)
    return path


def test_what_is_not_installed_is_said_and_left_out(bench, exported, monkeypatch):
    monkeypatch.setattr(peers, "_onnxruntime_tools", lambda *_: [])
    for missing, left in ((["openvino", "nncf"], 0), (["nncf"], 2)):
        monkeypatch.setattr(peers, "_installed", lambda package, missing=missing: package not in missing)
        found = list(build(bench))
        skipped = [each for each in found if isinstance(each, Skipped)]
        assert [each.name for each in skipped] == missing
        assert all(f"pip install {each.name}" in each.reason for each in skipped)
        assert OURS in [each.name for each in found]
        assert sum("OpenVINO" in each.name for each in found) == left


def test_merged_files_are_rows_of_their_own(bench, exported, monkeypatch):
    monkeypatch.setattr(peers, "_onnxruntime_tools", lambda *_: [])
    monkeypatch.setattr(peers, "_installed", lambda _package: False)
    found = {each.name: each for each in build(replace(bench, merged=(1, 2)))}
    few, more = (found[f"{OURS}, {merged} tokens merged per block"] for merged in (1, 2))
    dense, merged, most = (logits(peer, bench.images) for peer in (found[OURS], few, more))
    assert 0 < np.abs(merged - dense).max() < np.abs(dense).max()
    assert np.abs(most - merged).max() > 0


def test_layers_that_nncf_sends_back_to_float_are_exact(bench, built, tmp_path):
    """The slow way: a limit of 50 dB sends all quantizers of so small a model back, and 0 dB none."""
    pytest.importorskip("nncf")
    plain, prepare = bench.folder / "plain.onnx", normalizing(bench.model)
    files = {drop: tmp_path / f"{drop}.xml" for drop in (1.0, 1e-5)}
    with peers.quiet():
        notes = {
            drop: accuracy_aware_file(plain, bench.images, prepare, file, max_drop=drop)
            for drop, file in files.items()
        }
    assert all(note.startswith("3 images to calibrate, 1 to validate; asked for") for note in notes.values())
    assert quantizers(files[1e-5]) < quantizers(files[1.0])
    exact = bench.model(torch.from_numpy(np.concatenate(bench.images))).detach().numpy()
    found = {drop: logits(openvino_runtime("", file, prepare), bench.images) for drop, file in files.items()}
    assert sqnr(exact, found[1.0]) < 40 < sqnr(exact, found[1e-5])


def test_two_images_are_too_few_to_validate_with(bench, tmp_path):
    with pytest.raises(ValueError, match="expected 3 images or more, of which a third validates; found 2"):
        accuracy_aware_file(
            tmp_path / "no.onnx", bench.images[:2], np.asarray, tmp_path / "a.xml", max_drop=1
        )


def test_an_extra_graph_takes_pixels(bench, exported):
    found = logits(extra_graph(exported, bench.target), bench.images)
    exact = bench.model(torch.from_numpy(np.concatenate(bench.images))).detach().numpy()
    np.testing.assert_allclose(found, exact, atol=1e-4)


def test_an_extra_graph_takes_pixels_channels_first(bench, exported, tmp_path):
    model = ir.load(exported)
    pixels = model.graph.inputs[0]
    turned = ir.Value(name="channels_first", type=pixels.type, shape=ir.Shape(["batch", 3, 32, 32]))
    node = ir.node("Transpose", [turned], {"perm": [0, 2, 3, 1]})
    node.outputs[0].name = "turned"
    ir.convenience.replace_all_uses_with(pixels, node.outputs[0])
    model.graph.inputs[0] = turned
    model.graph.insert_before(model.graph[0], node)
    ir.save(model, tmp_path / "turned.onnx")
    found = logits(extra_graph(tmp_path / "turned.onnx", bench.target), bench.images)
    exact = bench.model(torch.from_numpy(np.concatenate(bench.images))).detach().numpy()
    np.testing.assert_allclose(found, exact, atol=1e-4)


def test_an_extra_graph_of_floats_is_refused(bench, built):
    with pytest.raises(ValueError, match="expected one input of uint8 pixels"):
        extra_graph(bench.folder / "plain.onnx", bench.target).open(1)


def test_threads_reach_torch(bench):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            logits(Peer("", lambda n: torch_eager(bench.model, n)), bench.images[:1], threads)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_without_other_tools_float_and_int8_remain(bench) -> None:
    names = [each.name for each in build(bench, tools=False)]
    assert names == [REFERENCE, "ORT float32, vit-edge graph", BASELINE, OURS]
