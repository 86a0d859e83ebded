"""Small models with a digest and a self-test, keys, and the command lines."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from runtime import Metadata, Preprocess
from runtime.model_file.integrity import digest_entry
from runtime.update.command import main
from tests.runtime.conftest import LABELS, add_metadata, color_graph
from tests.support.self_tests import add_self_test

WriteModel = Callable[..., Path]
Run = Callable[..., tuple[int, str]]


def write_color_model(path: Path, *, gain: float = 0.1, self_test: bool = True, **changes: Any) -> Path:
    """Write the color model with a digest; `gain` makes it another model, `changes` are of its metadata."""
    values: dict[str, Any] = dict(variant="float32", preprocess=Preprocess(size=(32, 32)), labels=LABELS)
    metadata = Metadata(**values | changes)
    graph = color_graph(metadata.preprocess.size)
    (weights,) = (each for each in graph.graph.initializer if each.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(np.eye(3, dtype=np.float32) * np.float32(gain), "weights"))
    data = add_metadata(graph, metadata.to_json(digest="sha256")).SerializeToString()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data + digest_entry(hashlib.sha256(data).hexdigest()))
    return add_self_test(path) if self_test else path


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    def write(name: str = "model.onnx", **changes: Any) -> Path:
        return write_color_model(tmp_path / name, **changes)

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line; return its exit code and all that it printed."""

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(word) for word in words], prog="vit-edge")
        return code, "".join(capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with key.pem and public.pem, other.pem and other-public.pem, made by openssl."""
    pytest.importorskip("cryptography", reason="needs the extra sign")
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    place = tmp_path_factory.mktemp("keys")
    for private, public in (("key.pem", "public.pem"), ("other.pem", "other-public.pem")):
        make = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", private]
        show = ["openssl", "pkey", "-in", private, "-pubout", "-out", public]
        for command in (make, show):
            subprocess.run(command, cwd=place, check=True, capture_output=True)
    return place
