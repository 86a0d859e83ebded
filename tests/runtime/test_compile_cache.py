"""The cache of compiled models: opened from its folder alone, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import ArtifactError, Classifier, DeviceError, DeviceOptions
from runtime import compile_cache as cache_module
from runtime.compile_cache import entry_name, hash_files, open_cached
from runtime.devices import DEVICES
from tests.runtime.test_plugins import FakePlugin, make_plugin

__all__ = ["make_plugin"]  # a fixture
MakeModel = Callable[..., Path]
BLACK = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def qnn(make_plugin: Callable[[str], FakePlugin]) -> FakePlugin:
    return make_plugin("qnn")


def open_model(model: Path | bytes, cache: Path | None) -> Classifier:
    return Classifier(model, device="qnn", device_options=DeviceOptions(cache=cache))


def entries(cache: Path) -> list[str]:
    return sorted(each.name for each in cache.iterdir())


def test_the_second_start_opens_what_the_first_compiled(qnn: FakePlugin, model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    for _ in range(2):
        assert open_model(model, cache)(BLACK).label == "red"
    (entry,) = entries(cache)
    assert entry.startswith("qnn-")
    assert qnn.sources == [str(model), str(cache / entry / "model.onnx")]
    assert (cache / entry).stat().st_mode & 0o777 == 0o700
    open_model(model.read_bytes(), cache)
    assert entries(cache) == [entry]  # the same model, as bytes
    open_model(model, None)
    assert qnn.sources[-1] == str(model)


def test_another_model_version_or_chip_is_compiled_anew(
    qnn: FakePlugin, make_model: MakeModel, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    model = make_model()
    open_model(model, cache)
    qnn.version = "2.0"
    open_model(model, cache)
    model = make_model(labels=("a", "b", "c"))
    open_model(model, cache)
    assert len(entries(cache)) == 3
    assert qnn.sources == [str(model)] * 3
    first = entry_name(DEVICES["qnn"], None, "0" * 64, {"soc_model": "57"})
    assert entry_name(DEVICES["qnn"], None, "0" * 64, {"soc_model": "43"}) != first
    assert entry_name(DEVICES["openvino"], None, "0" * 64, {"soc_model": "57"})[9:] != first[4:]


def test_a_damaged_entry_is_compiled_anew_and_that_is_said(
    qnn: FakePlugin, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_model(model, tmp_path / "cache")
    (entry,) = entries(tmp_path / "cache")
    (tmp_path / "cache" / entry / "model.onnx").write_bytes(b"cut")
    assert open_model(model, tmp_path / "cache")(BLACK).label == "red"
    assert f"{entry} cannot be used" in caplog.text
    assert "the model is compiled again" in caplog.text
    open_model(model, tmp_path / "cache")
    assert qnn.sources[-1] == str(tmp_path / "cache" / entry / "model.onnx")


@pytest.mark.skipif(os.name != "posix", reason="owners and modes of POSIX")
def test_native_code_that_others_can_write_is_refused(qnn: FakePlugin, model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    open_model(model, cache)
    (entry,) = entries(cache)
    (cache / entry).chmod(0o770)
    with pytest.raises(DeviceError, match="it holds native code and another user can write to it"):
        open_model(model, cache)
    (cache / entry).rename(tmp_path / "other")
    (tmp_path / "other").chmod(0o700)
    (cache / entry).symlink_to(tmp_path / "other")
    with pytest.raises(DeviceError, match="expected a folder that the cache made"):
        open_model(model, cache)
    assert qnn.sources == [str(model)]


def test_a_failure_leaves_nothing(qnn: FakePlugin, tmp_path: Path, model: Path) -> None:
    cache = tmp_path / "cache"

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise ArtifactError("no")

    with pytest.raises(ArtifactError, match=r"^no$"):
        open_cached(cache, "name", fail)
    assert entries(cache) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match="file: expected a folder to cache in: "):
        open_model(model, tmp_path / "file")


def test_a_model_replaced_meanwhile_is_not_kept(
    qnn: FakePlugin, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the cache would give the other model to everyone who opens this one."""
    model = make_model()
    create = qnn.create

    def replace(*given: Any, **others: Any) -> Any:
        session = create(*given, **others)
        make_model(labels=("a", "b", "c"))
        return session

    monkeypatch.setattr(qnn, "create", replace)
    with pytest.raises(ArtifactError, match="it was replaced while it was opened; open it again"):
        open_model(model, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_a_process_that_was_faster_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_in(folder: Path) -> str:
        (folder / "mine").write_bytes(b"")
        (tmp_path / "name").mkdir(mode=0o700)
        (tmp_path / "name" / "theirs").write_bytes(b"")
        return "opened"

    assert open_cached(tmp_path, "name", open_in) == "opened"
    assert entries(tmp_path) == ["name"]
    assert entries(tmp_path / "name") == ["theirs"]
    assert not caplog.records

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(cache_module.Path, "rename", refuse)
    assert open_cached(tmp_path, "other", lambda folder: "opened") == "opened"
    assert "other: what was compiled is not kept: Access is denied" in caplog.text
    assert entries(tmp_path) == ["name"]


def test_the_weights_beside_a_model_count(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    assert hash_files(tmp_path / "a", None) == hash_files(b"a", None)
    assert hash_files(tmp_path / "a", tmp_path / "b") != hash_files(tmp_path / "a", None)
    assert len(hash_files(b"a")) == 64
