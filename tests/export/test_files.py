"""Files appear whole or not at all, and the older ones stay until then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph import add_constant
from calibration.serialize import aside, let_go, session_of
from export.files import cleaned, model_bytes, staged
from export.from_torch import export_float
from runtime.writing import OutputError
from tools.small_models import configs, lively


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_appear_at_the_end(tmp_path: Path) -> None:
    with staged(tmp_path / "deep" / "out") as aside:
        (aside / "a").write_text("1")
        (aside / "b").write_text("2")
        assert not (tmp_path / "deep" / "out").exists()
    assert tree(tmp_path) == {"deep/out/a": "1", "deep/out/b": "2"}  # and nothing is left aside


@pytest.mark.parametrize("error", [ValueError, OSError(28, "No space left"), KeyboardInterrupt])
def test_an_interruption_leaves_the_old_files(tmp_path: Path, error: type[BaseException] | OSError) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")

    def write() -> None:
        with staged(out) as aside:
            (aside / "a").write_text("new, cut o")
            raise error

    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected, match="the disk is full" if isinstance(error, OSError) else None):
        write()
    assert tree(tmp_path) == {"out/a": "old"}


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_export_leaves_nothing_after_the_next_one(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom export.files import staged\n"
        "with staged(Path(sys.argv[1])) as aside:\n"
        "    (aside / 'model.onnx').write_bytes(b'gigabytes')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "out"], check=False)
    assert [content for content in tree(tmp_path).values() if content]
    with staged(tmp_path / "other") as aside:
        (aside / "a").write_text("new")
    assert tree(tmp_path) == {"other/a": "new"}


def test_a_newer_file_takes_the_older_ones_place_and_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    (out / "mine").write_text("kept")
    with staged(out) as aside:
        (aside / "a").write_text("new")
    assert tree(tmp_path) == {"out/a": "new", "out/mine": "kept"}


def test_readers_of_the_old_file_keep_it(tmp_path: Path) -> None:
    """The file is replaced, not written over: who has it open, or mapped, reads on."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    with (out / "a").open() as reader:
        with staged(out) as aside:
            (aside / "a").write_text("new")
        assert reader.read() == "old"


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with (
        pytest.raises(OutputError, match="expected a folder to write to, found a file"),
        staged(tmp_path / "out"),
    ):
        pytest.fail("must not get here")
    assert tree(tmp_path) == {"out": "a file"}


@pytest.fixture(scope="module")
def float_model() -> ir.Model:
    return export_float(lively(configs()["rich"])).model


def test_a_file_written_in_parts_has_the_bytes_of_the_whole(float_model: ir.Model, monkeypatch) -> None:
    model = float_model.clone()
    add_constant(model.graph, "half", np.arange(5, dtype=np.float16))
    whole = ir.to_proto(cleaned(model)).SerializeToString()
    assert model_bytes(model) == whole
    monkeypatch.setattr("calibration.serialize.LARGE", 0)
    monkeypatch.setattr("calibration.serialize.SMALL", 100)
    with aside(model) as large:
        assert large
        kept = [each.const_value for each in model.graph.initializers.values()]
        assert sum(isinstance(each, ir.ExternalTensor) for each in kept) > 5
        assert model_bytes(model) == whole


def test_weights_kept_aside_serve_every_session(float_model: ir.Model, monkeypatch) -> None:
    model, pixels = float_model.clone(), np.full((2, 16, 24, 3), 90, np.uint8)
    (expected,) = session_of(model).run(None, {"pixels": pixels})
    monkeypatch.setattr("calibration.serialize.LARGE", 2**12)
    with aside(model):
        (weights,) = {Path(str(each.const_value.path)) for each in model.graph.initializers.values()
                      if isinstance(each.const_value, ir.ExternalTensor)}  # fmt: skip
        for _ in range(2):
            session = session_of(cleaned(model))
            let_go(model)
            assert [each.name for each in weights.parent.iterdir()] == [weights.name]  # and no second copy
            np.testing.assert_array_equal(session.run(None, {"pixels": pixels})[0], expected)
    assert not weights.exists()
    np.testing.assert_array_equal(session.run(None, {"pixels": pixels})[0], expected)
