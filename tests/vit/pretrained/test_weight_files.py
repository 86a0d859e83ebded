"""Files that claim more than they hold are refused in one line, before memory is taken for it."""

import io
import json
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.vit.pretrained.test_preprocessing import source
from tests.vit.pretrained.test_state_dict import GOOD
from vit.__main__ import main
from vit.pretrained import SourceError, import_model

HUGE = 10**6


def header(shape):
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return data.getvalue()


def npz(folder, *, content, method=zipfile.ZIP_STORED, name="cls.npy"):
    with zipfile.ZipFile(folder / "w.npz", "w", method) as archive:
        archive.writestr(name, content)
    return folder / "w.npz"


def pth(folder, value):
    torch.save(GOOD | {"pos_embed": value}, folder / "w.pth")
    return folder / "w.pth"


def index(folder, document):
    save_file(GOOD, folder / "a.safetensors")
    file = folder / "model.safetensors.index.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def lies(folder, text):
    """Write a safetensors file with this header and no values."""
    file = folder / "w.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text.encode())
    return file


def cycle(folder):
    found = {"args": {}}
    found["model"] = found
    torch.save(found, folder / "w.pth")
    return folder / "w.pth"


FILES = {
    ".npz of 4 TB": lambda folder: npz(folder, content=header((HUGE, HUGE))),
    ".npz with a negative shape": lambda folder: npz(folder, content=header((-4, 4))),
    ".npz bomb": lambda folder: npz(folder, content=bytes(2**27), method=zipfile.ZIP_DEFLATED),
    ".npz of pickles": lambda folder: npz(folder, content=pickle.dumps(1)),
    ".npz cut off": lambda folder: npz(folder, content=header((3, 3))),
    ".npz of texts": lambda folder: np.savez(folder / "w.npz", cls=np.array(["a"])) or folder / "w.npz",
    ".pth expanded": lambda folder: pth(folder, torch.zeros(1).expand(HUGE, HUGE)),
    ".pth expanded, half": lambda folder: pth(folder, torch.zeros(1).half().expand(HUGE, HUGE)),
    ".pth sparse": lambda folder: pth(
        folder,
        torch.sparse_coo_tensor(
            torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (HUGE, HUGE), check_invariants=True
        ),
    ),
    ".pth meta": lambda folder: pth(folder, torch.zeros(HUGE, HUGE, device="meta")),
    ".pth complex": lambda folder: (
        torch.save(GOOD | {"head.weight": torch.zeros(3, 16, dtype=torch.complex64)}, folder / "w.pth")
        or folder / "w.pth"
    ),
    ".pth that holds itself": cycle,
    "index with ..": lambda folder: index(folder, {"weight_map": {"a": "../a.safetensors"}}),
    "index of numbers": lambda folder: index(folder, {"weight_map": {"a": 5}}),
    "index of lists": lambda folder: index(folder, {"weight_map": {"a": ["a.safetensors"]}}),
    "index of nothing": lambda folder: index(folder, {"weight_map": None}),
    "index without a map": lambda folder: index(folder, {}),
    "index of an index": lambda folder: index(folder, {"weight_map": {"a": "model.safetensors.index.json"}}),
    "index, empty name": lambda folder: index(folder, {"weight_map": {"a": ""}}),
    "index, deep": lambda folder: index(folder, '{"weight_map":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "safetensors of 4 TB": lambda folder: lies(
        folder, '{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    ),
    "safetensors that overflow": lambda folder: lies(
        folder, '{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,0]}}'
    ),
    "safetensors, deep": lambda folder: lies(folder, '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "safetensors in four bits": lambda folder: lies(
        folder, '{"patch_embed.proj.weight":{"dtype":"F4","shape":[0,4],"data_offsets":[0,0]}}'
    ),
    "a block far away": lambda folder: (
        save_file(GOOD | {"blocks.999999999.norm1.weight": torch.ones(16)}, folder / "w.safetensors")
        or folder / "w.safetensors"
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_claim_are_refused(name, tmp_path, capsys):
    file = FILES[name](tmp_path)
    start = time.perf_counter()
    with pytest.raises(SourceError) as error:
        import_model(file, heads=2)
    assert str(tmp_path) in str(error.value)
    assert time.perf_counter() - start < 5
    assert main(["import", str(file), "--heads", "2", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_honest_archives_are_read(tmp_path):
    torch.save(GOOD, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert import_model(tmp_path / "w.pth", heads=2).model.config.heads == 2
    zeros = {name: torch.zeros_like(value) for name, value in GOOD.items()}
    torch.save(zeros, tmp_path / "w.pth")
    assert import_model(tmp_path / "w.pth", heads=2).model.config.heads == 2


def test_a_size_that_would_take_any_memory_is_refused(tmp_path):
    huge = {"size": {"height": 4096, "width": 4096}}
    with pytest.raises(SourceError, match="patches"):
        import_model(source(tmp_path, huge))
