"""A model whose weights lie in a second file: opened where that is the one it was written with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import set_external_data

from runtime import ArtifactError, Classifier
from runtime.model_file.artifact import choose_model_file, read_artifact
from runtime.model_file.integrity import DATA_KEY, is_beside

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


@pytest.fixture
def apart(model: Path, tmp_path: Path) -> Path:
    """The model of the tests, with its weights in a file beside it."""
    (tmp_path / "apart").mkdir()
    path = tmp_path / "apart" / "model.onnx"
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if (
            tensor.data_type == onnx.TensorProto.FLOAT
        ):  # ONNX Runtime wants axes and shapes in the model itself
            set_external_data(tensor, location="model.onnx.data")
    onnx.save(proto, path)
    data = (path.parent / "model.onnx.data").read_bytes()
    described(path, file="model.onnx.data", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return path


def described(path: Path, **entry: object) -> None:
    proto = onnx.load(path, load_external_data=False)
    kept = [each for each in proto.metadata_props if each.key != DATA_KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    proto.metadata_props.add(key=DATA_KEY, value=json.dumps(entry))
    path.write_bytes(proto.SerializeToString())


def test_it_is_opened_and_answers_alike(model: Path, apart: Path) -> None:
    whole, parted = Classifier(model), Classifier(apart)
    assert parted(IMAGE).label == whole(IMAGE).label
    np.testing.assert_allclose(parted(IMAGE).score, whole(IMAGE).score, rtol=1e-5)
    assert parted.info.sha256 == hashlib.sha256(apart.read_bytes()).hexdigest()


def test_a_missing_file_is_named(apart: Path) -> None:
    (apart.parent / "model.onnx.data").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data, [\d,]+ bytes, which is missing.*copy both"):
        Classifier(apart)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:-1] + b"\xff", lambda _: b""])
def test_another_file_is_refused(apart: Path, change) -> None:
    beside = apart.parent / "model.onnx.data"
    beside.write_bytes(change(beside.read_bytes()))
    with pytest.raises(ArtifactError, match=r"expected .*copy both files again"):
        Classifier(apart)


@pytest.mark.parametrize(
    "entry",
    [
        {"file": "other.data", "bytes": 1, "sha256": "0"},
        {"file": "../model.onnx.data", "bytes": 1, "sha256": "0"},
        {"file": "model.onnx.data", "bytes": True, "sha256": "0"},
        {"file": "model.onnx.data", "bytes": 1},
        {},
    ],
)
def test_an_entry_that_does_not_name_the_one_file_is_refused(apart: Path, entry: dict[str, object]) -> None:
    described(apart, **entry)
    with pytest.raises(ArtifactError, match="export it again"):
        Classifier(apart)


def test_bytes_have_no_file_beside_them(apart: Path) -> None:
    with pytest.raises(ArtifactError, match=r"give the path of the \.onnx file"):
        Classifier(apart.read_bytes())


def test_a_file_that_is_replaced_meanwhile_is_noticed(apart: Path) -> None:
    artifact = read_artifact(apart)
    artifact.expect_unchanged()
    beside = apart.parent / "model.onnx.data"
    beside.write_bytes(beside.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match="replaced while it was opened"):
        artifact.expect_unchanged()


# What lies beside the model, or in its place ----------------------------------------------------------------

posix = pytest.mark.skipif(sys.platform == "win32", reason="no pipes, links and devices like these")


@contextlib.contextmanager
def seconds(limit: float) -> Iterator[None]:
    """Fail what hangs."""

    def stop(*_: object) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def put(kind: str, path: Path) -> None:
    """Put something that is no file in the place of one."""
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a socket":
        os.chdir(path.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    elif kind == "a link to a pipe":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    else:
        path.symlink_to(kind.removeprefix("a link to "))


IRREGULAR = {
    "a pipe": "found a pipe",
    "a folder": "found a folder",
    "a socket": "found a socket",
    "a link to a pipe": "found a pipe",
    "a link to /dev/zero": "found a device",
    "a link to /dev/null": "found a device",
    "a link to /": "found a folder",
    "a link to nothing": "missing|not there",
    "a link to itself": "symbolic links|not there",
}


@posix
@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("file", ["model.onnx", "model.onnx.data"])
def test_what_is_no_file_is_refused_at_once(kind: str, file: str, apart: Path, monkeypatch) -> None:
    monkeypatch.chdir(apart.parent)
    put(kind, apart.parent / file)
    with seconds(5), pytest.raises(ArtifactError, match=IRREGULAR[kind]):
        read_artifact(apart)


@posix
def test_nothing_is_read_before_the_size_is_right(apart: Path) -> None:
    """A link to a file of another size, which may be endless or secret."""
    data = apart.parent / "model.onnx.data"
    data.unlink()
    huge = apart.parent / "huge"
    with huge.open("wb") as file:
        file.truncate(2**40)
    data.symlink_to(huge)
    with seconds(5), pytest.raises(ArtifactError, match=r"have 1,099,511,627,776 bytes, expected"):
        Classifier(apart)


def test_no_message_tells_a_digest_that_was_found(apart: Path) -> None:
    data = apart.parent / "model.onnx.data"
    data.write_bytes(b"s" * data.stat().st_size)
    with pytest.raises(ArtifactError) as caught:
        Classifier(apart)
    assert hashlib.sha256(data.read_bytes()).hexdigest() not in str(caught.value)
    with pytest.raises(ArtifactError) as caught:
        Classifier(apart, sha256="0" * 64)
    assert hashlib.sha256(apart.read_bytes()).hexdigest() not in str(caught.value)


@posix
@pytest.mark.parametrize("how", ["hub", "dvc", "annex", "nix", "folder", "data"])
def test_links_by_which_caches_store_models_are_followed(how: str, apart: Path, tmp_path: Path) -> None:
    """Names by content, a folder per file, links relative and absolute, to links and to folders."""
    store, place = tmp_path / "store", tmp_path / "place" / "deep"
    store.mkdir()
    if how == "folder":
        place.parent.mkdir()
        place.symlink_to(apart.parent)
    else:
        place.mkdir(parents=True)
        for index, name in enumerate(("model.onnx", "model.onnx.data")):
            kept = store / ("" if how in ("hub", "nix") else f"{index}") / f"{how}{index}"
            kept.parent.mkdir(exist_ok=True)
            (apart.parent / name).rename(kept)
            if how == "data" and not index:
                kept.rename(place / name)
            elif how in ("hub", "data"):
                (place / name).symlink_to(os.path.relpath(kept, place))
            elif how == "dvc":
                kept.chmod(0o444)
                (place / name).symlink_to(kept)
            elif how == "annex":
                (place / f".{index}").symlink_to(kept)
                (place / name).symlink_to(f".{index}")
            else:
                (tmp_path / "profile").symlink_to(store) if not index else None
                (place / name).symlink_to(tmp_path / "profile" / kept.name)
    assert Classifier(place / "model.onnx")(IMAGE).label
    assert choose_model_file(place, ("float32",)) == place / "model.onnx"


@posix
def test_a_link_that_leads_nowhere_does_not_hide_a_variant(apart: Path) -> None:
    """A cache that was emptied: the float model beside it is another file than the one that was meant."""
    (apart.parent / "model.int8.onnx").symlink_to("blobs/gone")
    with pytest.raises(ArtifactError, match="a link to a file that is not there"):
        Classifier(choose_model_file(apart.parent))


OUT = ("", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "..\\x", "C:x", "C:\\x", "model.onnx:stream")
OUT += ("x\0y", "x\n", "x.", "x ", "//host/share", "\\\\host\\share", "~/../x", "./x")
DEVICES = ("NUL", "nul.data", "con", "Aux.onnx.data", "COM1", "lpt9.bin", "COM\u00b9", "NUL .x")


@pytest.mark.parametrize("name", OUT + DEVICES)
def test_a_name_that_leads_out_of_the_folder_is_none(name: str) -> None:
    assert not is_beside(name)


@pytest.mark.parametrize(
    "name",
    [
        "model.onnx.data",
        "model.onnx_data",
        "weights",
        ".hidden",
        "h\u00e4\u00fc \u4e2d.bin",
        "...x",
        "a..b",
        "nullable",
        "~x",
    ],
)
def test_a_name_of_a_file_beside_is_one(name: str) -> None:
    assert is_beside(name)


@pytest.mark.parametrize("name", ["../model.onnx.data", "deep/model.onnx.data", "./model.onnx.data"])
def test_a_name_with_a_path_is_refused_though_the_file_is_right(name: str, apart: Path) -> None:
    data = apart.parent / "model.onnx.data"
    proto = onnx.load(apart, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = name if entry.key == "location" else entry.value
    apart.write_bytes(proto.SerializeToString())
    (apart.parent / "deep").mkdir()
    (apart.parent / name).write_bytes(data.read_bytes())
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    described(apart, file=name, bytes=data.stat().st_size, sha256=digest)
    with pytest.raises(ArtifactError, match="export it again"):
        Classifier(apart)
