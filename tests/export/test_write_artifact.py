"""Files appear whole or not at all, and the older ones stay until then."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import add_constant
from calibration.graph.memory import open_graph_session, release_memory, weights_on_disk
from export.sources.from_torch import export_float_graph
from export.write_artifact import clear_metadata, find_stale_files, serialize_model, stage_files, write_model
from runtime import Classifier, Metadata, Preprocess
from runtime.writing import OutputError
from tests.support.small_models import configs, lively


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_appear_at_the_end(tmp_path: Path) -> None:
    with stage_files(tmp_path / "deep" / "out") as aside:
        (aside / "a").write_text("1")
        (aside / "b").write_text("2")
        assert not [path for path in (tmp_path / "deep" / "out").iterdir() if path.name[0] != "."]
    assert tree(tmp_path) == {"deep/out/a": "1", "deep/out/b": "2"}  # and nothing is left aside


@pytest.mark.parametrize("error", [ValueError, OSError(28, "No space left"), KeyboardInterrupt])
def test_an_interruption_leaves_the_old_files(tmp_path: Path, error: type[BaseException] | OSError) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")

    def write() -> None:
        with stage_files(out) as aside:
            (aside / "a").write_text("new, cut o")
            raise error

    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected, match="the disk is full" if isinstance(error, OSError) else None):
        write()
    assert tree(tmp_path) == {"out/a": "old"}


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_export_leaves_nothing_after_the_next_one(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom export.write_artifact import stage_files\n"
        "with stage_files(Path(sys.argv[1])) as aside:\n"
        "    (aside / 'model.onnx').write_bytes(b'gigabytes')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "out"], check=False)
    assert [content for content in tree(tmp_path).values() if content]
    with stage_files(tmp_path / "out") as aside:
        (aside / "a").write_text("new")
    assert tree(tmp_path) == {"out/a": "new"}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second disk")
def test_the_folder_may_be_on_another_disk_than_the_one_around_it(tmp_path: Path) -> None:
    """A link to a larger disk, or a folder that a container mounts into a read-only one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        out = tmp_path / "out"
        out.symlink_to(other)
        with stage_files(out) as aside:
            (aside / "a").write_text("1")
        assert tree(Path(other)) == {"a": "1"}
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_newer_file_takes_the_older_ones_place_and_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    (out / "mine").write_text("kept")
    with stage_files(out) as aside:
        (aside / "a").write_text("new")
    assert tree(tmp_path) == {"out/a": "new", "out/mine": "kept"}


def test_readers_of_the_old_file_keep_it(tmp_path: Path) -> None:
    """The file is replaced, not written over: who has it open, or mapped, reads on."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    with (out / "a").open() as reader:
        with stage_files(out) as aside:
            (aside / "a").write_text("new")
        assert reader.read() == "old"


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with (
        pytest.raises(OutputError, match="expected a folder to write to, found a file"),
        stage_files(tmp_path / "out"),
    ):
        pytest.fail("must not get here")
    assert tree(tmp_path) == {"out": "a file"}


@pytest.fixture(scope="module")
def float_model() -> ir.Model:
    return export_float_graph(lively(configs()["rich"])).model


def test_a_file_written_in_parts_has_the_bytes_of_the_whole(float_model: ir.Model, monkeypatch) -> None:
    model = float_model.clone()
    add_constant(model.graph, "half", np.arange(5, dtype=np.float16))
    whole = ir.to_proto(clear_metadata(model)).SerializeToString()
    assert serialize_model(model) == whole
    monkeypatch.setattr("calibration.graph.memory.LARGE", 0)
    monkeypatch.setattr("calibration.graph.memory.SMALL", 100)
    with weights_on_disk(model) as large:
        assert large
        kept = [each.const_value for each in model.graph.initializers.values()]
        assert sum(isinstance(each, ir.ExternalTensor) for each in kept) > 5
        assert serialize_model(model) == whole


def test_weights_kept_aside_serve_every_session(float_model: ir.Model, monkeypatch) -> None:
    model, pixels = float_model.clone(), np.full((2, 16, 24, 3), 90, np.uint8)
    (expected,) = open_graph_session(model).run(None, {"pixels": pixels})
    monkeypatch.setattr("calibration.graph.memory.LARGE", 2**12)
    with weights_on_disk(model):
        (weights,) = {Path(str(each.const_value.path)) for each in model.graph.initializers.values()
                      if isinstance(each.const_value, ir.ExternalTensor)}  # fmt: skip
        for _ in range(2):
            session = open_graph_session(clear_metadata(model))
            release_memory(model)
            assert [each.name for each in weights.parent.iterdir()] == [weights.name]  # and no second copy
            np.testing.assert_array_equal(session.run(None, {"pixels": pixels})[0], expected)
    assert not weights.exists()
    np.testing.assert_array_equal(session.run(None, {"pixels": pixels})[0], expected)


# Weights in a file of their own -----------------------------------------------------------------------------


@pytest.fixture
def pairs(float_model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Folders of two exports with weights beside them, which differ in their labels and in their weights."""
    monkeypatch.setattr("export.write_artifact.ONE_FILE", 1000)
    monkeypatch.setattr("export.write_artifact.SMALL", 256)
    folders = tmp_path / "old", tmp_path / "new"
    for folder in folders:
        model, labels = float_model.clone(), tuple(f"{folder.name} {index}" for index in range(5))
        if folder.name == "new":
            for value in model.graph.initializers.values():
                if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
                    value.const_value = ir.Tensor(
                        value.const_value.numpy() * np.float32(0.9), name=value.name
                    )
        metadata = Metadata(variant="float32", preprocess=Preprocess(size=(16, 24)), labels=labels)
        folder.mkdir()
        size, _ = write_model(folder / "model.onnx", model, metadata)
        assert size == sum(path.stat().st_size for path in folder.iterdir())
        assert len(list(folder.iterdir())) == 2
    return folders


def publish(source: Path, out: Path, die_at: int = -1) -> None:
    """Export the files of a folder again, in a process that is killed in front of one step; -1 for none."""
    if (child := os.fork()) == 0:
        steps = iter(range(100))

        def counted(work):
            def step(*arguments, **options):
                if next(steps) == die_at:
                    os._exit(9)
                return work(*arguments, **options)

            return step

        with stage_files(out) as aside:
            for path in source.iterdir():
                shutil.copy(path, aside)
            Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
        os._exit(0 if die_at < 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (9 if die_at >= 0 else 0)


@pytest.mark.skipif(sys.platform == "win32", reason="processes are made in another way")
@pytest.mark.parametrize(("step", "which"), [(0, "old"), (1, "old"), (2, "new"), (-1, "new")])
def test_a_model_opens_with_its_own_weights_wherever_an_export_was_killed(
    step: int, which: str, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = pairs
    out, image = tmp_path / "out", np.full((16, 24, 3), 90, np.uint8)
    publish(old, out)
    publish(new, out, step)
    expected = Classifier({"old": old, "new": new}[which] / "model.onnx", threads=1)(image)
    found = Classifier(out / "model.onnx", threads=1)(image)
    assert (found.label, found.score) == (expected.label, expected.score)
    publish(new, out)  # and the next export clears up
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in new.iterdir())


def test_only_weights_that_an_export_wrote_are_taken_away(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    digits = "0123456789abcdef"
    others = ["model.onnx.mine.data", f"model.int8.onnx.{digits}.data", f"my.model.onnx.{digits}.data"]
    for name in (*others, f"model.onnx.{digits}.data"):
        (out / name).write_text("")
    with stage_files(out) as aside:
        for path in pairs[1].iterdir():
            shutil.copy(path, aside)
    kept = {path.name for path in out.iterdir()} - {path.name for path in pairs[1].iterdir()}
    assert kept == set(others)
    assert [path.name for path in find_stale_files(out, ["model.onnx"])] == [others[1]]
