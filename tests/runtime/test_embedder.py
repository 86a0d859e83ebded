"""Embeddings out of a model file: one image, many, and whole folders from the command line."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

from runtime import ArtifactError, Classifier, Embedder, ImageError, Metadata, Preprocess
from runtime.__main__ import main
from runtime.batch import embed_images
from runtime.results import Prediction, explain_unsure
from runtime.writing import AtomicFile, lock_file

Make = Callable[..., Path]


@pytest.fixture
def make(make_embedding_model: Make) -> Make:
    """Write the color model with its embedding."""
    return make_embedding_model


def plain(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((32, 32, 3), (red, green, blue), np.uint8)


@pytest.mark.parametrize("logits", [True, False])
def test_an_embedding_has_length_one_unless_raw(make: Make, logits: bool) -> None:
    path = make(logits=logits)
    found = Embedder(path, threads=1)(plain(0, 30, 40))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [0, 0.6, 0.8], atol=1e-6)
    raw = Embedder(path, threads=1, normalize=False)
    np.testing.assert_allclose(raw(plain(0, 30, 40)), [0, 30, 40], atol=1e-4)
    raw.warm_up()


def test_an_embedding_does_not_keep_its_batch(make: Make) -> None:
    for normalize in (True, False):
        embed = Embedder(make(), threads=1, normalize=normalize)
        for found in embed.stream([plain(1, 2, 3)] * 4, batch=4):
            assert found.embedding is not None
            assert found.embedding.base is None


def test_the_classifier_gives_it_as_well(make: Make) -> None:
    with Classifier(make(), threads=1) as classify:
        assert classify(plain(0, 30, 200)).label == "blue"
        np.testing.assert_allclose(classify.embed(plain(0, 30, 40)), [0, 0.6, 0.8], atol=1e-6)
        np.testing.assert_allclose(classify.embed(plain(0, 30, 40), normalize=False), [0, 30, 40], atol=1e-4)
    with pytest.raises(RuntimeError, match="this Classifier is closed"):
        classify.embed(plain(0, 30, 40))


def test_models_without_the_output_are_refused_by_name(make: Make, model: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gives no embedding; export it again with --embedding"):
        Embedder(model)
    with pytest.raises(ArtifactError, match=r"gives no embedding; export it again with --embedding"):
        Classifier(model).embed(plain(1, 2, 3))
    with pytest.raises(ArtifactError, match=r"has no classes; use Embedder"):
        Classifier(make(logits=False))


def test_a_graph_that_lies_about_its_embedding(make: Make) -> None:
    for wrong in (dict(embedding=4), dict(embedding=None)):
        with pytest.raises(ArtifactError, match="the output of its graph is"):
            Classifier(make(**wrong))


@pytest.mark.parametrize("embedding", [0, -1, True, 3.0, "3"])
def test_an_embedding_of_no_size(embedding: object) -> None:
    with pytest.raises(ArtifactError, match="embedding must be null or 1 and more"):
        Metadata(variant="int8", preprocess=Preprocess(), labels=("a",), embedding=embedding)  # type: ignore[arg-type]


def test_only_an_embedding_has_no_labels() -> None:
    with pytest.raises(ArtifactError, match="labels must be a list of at least one name"):
        Metadata(variant="int8", preprocess=Preprocess(), labels=())
    written = Metadata(variant="int8", preprocess=Preprocess(), labels=(), embedding=7)
    assert Metadata.from_json(written.to_json()) == written
    assert written.outputs == {"embedding": 7}


def test_black_has_no_direction(make: Make) -> None:
    embed = Embedder(make(), threads=1)
    with pytest.raises(ImageError, match="no direction"):
        embed(plain(0, 0, 0))
    assert not Embedder(make(), normalize=False)(plain(0, 0, 0)).any()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_stream_says_why_there_is_none(make: Make, images: Path, batch: int) -> None:
    paths = [images / "a.png", images / "empty.jpg", images / "b.jpg"]
    embed = Embedder(make(logits=False), threads=1)
    found = list(embed.stream(paths, workers=2, batch=batch))
    assert [each.image for each in found] == paths
    assert found[1].embedding is None
    assert found[1].error
    for each in (found[0], found[2]):
        assert each.error is None
        assert each.embedding is not None
        np.testing.assert_array_equal(each.embedding, embed(each.image))


def test_another_process_embeds_the_same_way(make: Make) -> None:
    embed = Embedder(make(), normalize=False, threads=1)
    again = pickle.loads(pickle.dumps(embed))
    np.testing.assert_array_equal(again(plain(9, 8, 7)), embed(plain(9, 8, 7)))
    assert "Embedder" in repr(again)
    classify = pickle.loads(pickle.dumps(Classifier(make(), min_score=0.99, top=2)))
    assert classify(plain(100, 101, 100)).label is None
    assert len(classify(plain(100, 101, 100)).top) == 2


def test_a_folder_to_an_array(
    make: Make, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.npy"
    command = [str(make()), str(images), "--embeddings", str(out)]
    assert main(command) == 1  # two are broken
    rows = np.load(out)
    paths = [json.loads(line)["path"] for line in out.with_suffix(".jsonl").read_text().splitlines()]
    embed = Embedder(make(), threads=1)
    assert rows.shape == (3, 3)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [embed(path) for path in paths])
    failed = [json.loads(line) for line in (tmp_path / "out.failed.jsonl").read_text().splitlines()]
    assert sorted(Path(each["path"]).name for each in failed) == ["empty.jpg", "text.png"]
    assert all(each["error"] for each in failed)
    assert "3 embeddings of 3 features" in capsys.readouterr().err
    assert main(command) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main([command[0], str(images / "a.png"), *command[2:], "--overwrite"]) == 0
    assert np.load(out, mmap_mode="r").shape == (1, 3)
    assert not (tmp_path / "out.failed.jsonl").exists()  # it told of other images
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_folder_to_parquet(make: Make, images: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out.parquet"
    assert main([str(make(logits=False)), str(images / "a.png"), "--embeddings", str(out)]) == 0
    table = parquet.read_table(out).to_pydict()
    assert table["path"] == [str(images / "a.png")]
    np.testing.assert_allclose(table["embedding"][0], Embedder(make())(images / "a.png"), atol=1e-7)


def test_parquet_leaves_a_jsonl_beside_it_alone(
    make: Make, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paths are a column, so a file of that name is another's: labels, for example."""

    class Sink:
        def __init__(self, path: Path, _features: int) -> None:
            path.write_bytes(b"columns")

        def put(self, path: str, row: Any) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(embed_images, "_Parquet", Sink)
    (tmp_path / "out.jsonl").write_text("labels", encoding="utf-8")
    command = [str(make()), str(images / "a.png"), "--embeddings", str(tmp_path / "out.parquet")]
    assert main(command) == 0
    assert main([*command, "--overwrite"]) == 0
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "labels"


def test_parquet_without_pyarrow_is_said(
    make: Make,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main([str(make()), str(images), "--embeddings", str(tmp_path / "out.parquet")]) != 0
    assert "needs pyarrow" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--embeddings", "out.csv"], "ends in .npy or .parquet"),
        (["--embeddings", "out.npy", "--min-score", "0"], "--min-score: not possible"),
        (["--embeddings", "out.npy", "--sort-into", "x"], "--sort-into: not possible"),
        (["--embeddings", "no/folder/out.npy"], "no such folder"),
    ],
)
def test_what_makes_no_embeddings(
    wrong: list[str], words: str, make: Make, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(make()), str(images), *wrong]) == 2
    assert words in capsys.readouterr().err


CRASHES = ("flush_to_disk", "commit", "replace 1", "replace 2", "replace 3")


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_leaves_no_list_beside_an_array_of_other_images(
    crash: str, make: Make, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The array of one run beside the list of another would give every image a wrong vector."""
    out = tmp_path / "e.npy"
    assert (
        main([str(make()), str(images / "a.png"), str(images / "empty.jpg"), "--embeddings", str(out)]) == 1
    )
    old = out.read_bytes()
    left = [int(crash.split()[1]) if crash.startswith("replace") else 1]
    name = crash.split()[0]
    owner = Path if name == "replace" else AtomicFile
    real = getattr(owner, name)

    def fail(self: object, *given: object, **options: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return real(self, *given, **options)

    monkeypatch.setattr(owner, name, fail)
    main([str(make()), str(images), "--embeddings", str(out), "--overwrite"])
    monkeypatch.undo()
    paths = out.with_suffix(".jsonl")
    if crash == "flush_to_disk":
        assert len(paths.read_text().splitlines()) == 1
    if paths.exists():  # with a list the array is whole, and of the same run
        assert (
            len(paths.read_text().splitlines()) == len(np.load(out)) == (1 if out.read_bytes() == old else 3)
        )
    assert not list(tmp_path.glob(".*.tmp"))


def test_embeddings_are_on_the_disk_before_they_have_their_names(
    make: Make, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = set[int](), os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.add(os.fstat(number).st_ino), sync(number)))
    out = tmp_path / "e.npy"
    assert main([str(make()), str(images), "--embeddings", str(out)]) == 1
    written = (out, out.with_suffix(".jsonl"), tmp_path / "e.failed.jsonl", tmp_path)
    assert {path.stat().st_ino for path in written} <= synced


def test_a_disk_that_fills_up_during_the_work_is_a_failure_and_a_place_that_is_none_wrong_use(
    make: Make, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.npy"
    command = [str(make()), str(images), "--embeddings"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            AtomicFile,
            "flush_to_disk",
            lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        assert main([*command, str(out)]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert main([*command, "/proc/e.npy"]) == 2
    (tmp_path / "folder.npy").mkdir()
    assert main([*command, str(tmp_path / "folder.npy"), "--overwrite"]) == 2
    assert "found a folder" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="needs a second process that is killed")
@pytest.mark.parametrize("second", ["e.npy", "e.parquet"])  # which share the list of what failed
def test_two_runs_never_write_one_array(second: str, make: Make, images: Path, tmp_path: Path) -> None:
    """The second one to end would put its array beside the list of the first."""
    pytest.importorskip("pyarrow") if second.endswith("parquet") else None
    model, holder = (
        make(),
        "import sys, time\nfrom pathlib import Path\n"
        + (
            "from runtime.command.locking import only_writer_of\n"
            "with only_writer_of(Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(60)"
        ),
    )
    command = [str(model), str(images / "a.png"), "--embeddings", str(tmp_path / second), "--overwrite"]
    with subprocess.Popen([sys.executable, "-c", holder, tmp_path / "e"], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        assert main(command) == 2
        first.kill()
    assert not (tmp_path / second).exists()
    assert main(command) == 0
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(os.name == "nt", reason="no locks there")
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_lines_of_a_run_that_labels_are_not_replaced(
    late: bool, overwrite: bool, make: Make, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`e.jsonl` beside `e.npy` may be what another run is writing, or began after this one."""
    out, model, lines = tmp_path / "e.npy", make(), tmp_path / "e.jsonl"

    def label() -> None:
        file = lines.open("wb")
        lock_file(file.fileno())
        file.write(b"a line\n")
        file.flush()
        opened.append(file)

    opened: list[IO[bytes]] = []
    settle = AtomicFile.flush_to_disk
    if late:
        monkeypatch.setattr(AtomicFile, "flush_to_disk", lambda self: (settle(self), opened or label()))
    else:
        label()
    extra = ["--overwrite"] if overwrite else []
    assert main([str(model), str(images / "a.png"), "--embeddings", str(out), *extra]) == 2
    assert lines.read_bytes() == b"a line\n"
    assert not out.exists()
    for file in opened:
        file.close()


def test_memory_does_not_grow_with_the_rows(make: Make, images: Path, tmp_path: Path) -> None:
    """A row is gone when it is written: 300 rows of a megabyte fit in 30."""
    script = (
        "import resource, sys, numpy as np\nfrom pathlib import Path\n"
        "from runtime.batch.embed_images import _Files\n"
        "files = _Files(Path(sys.argv[1]), 2**18)\nrow = np.ones(2**18, np.float32)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for i in range(300): files.put(str(i), row)\n"
        "files.finish()\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    out = tmp_path / "large.npy"
    done = subprocess.run([sys.executable, "-c", script, out], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30  # MiB, of 300
    assert np.load(out, mmap_mode="r").shape == (300, 2**18)


def test_below_the_minimum_there_is_no_label(make: Make) -> None:
    classify = Classifier(make(), min_score=0.5, threads=1)
    sure, torn = classify(plain(0, 0, 200)), classify(plain(100, 100, 100))
    assert (sure.label, sure.index) == ("blue", 2)
    assert (torn.label, torn.index) == (None, None)
    assert torn.score == pytest.approx(1 / 3)
    assert len(torn.top) == 3
    first, second = classify.stream([plain(0, 0, 200), plain(100, 100, 100)])
    assert first.error is None
    assert second.prediction == torn
    assert second.error == "unsure (score 0.33, minimum 0.5)"
    with pytest.raises(ValueError, match="min_score must be 0 to 1"):
        Classifier(make(), min_score=50)


def test_a_score_just_below_the_minimum_reads_below_it() -> None:
    assert explain_unsure(Prediction(None, None, 0.4996, ()), 0.5) == "unsure (score 0.4996, minimum 0.5)"
    assert explain_unsure(Prediction("a", 0, 0.4996, ()), 0.5) is None


def test_unsure_is_no_failure(
    make: Make, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sorted_into = tmp_path / "out.jsonl", tmp_path / "sorted"
    shades = images / "deeper"
    from PIL import Image

    Image.new("RGB", (32, 32), (90, 90, 90)).save(shades / "gray.png")
    command = [str(make()), str(shades), "--min-score", "0.5", "--output", str(out)]
    assert main([*command, "--sort-into", str(sorted_into)]) == 0
    lines = {Path(each["path"]).name: each for each in map(json.loads, out.read_text().splitlines())}
    assert lines["c.png"]["label"] == "blue"
    assert lines["gray.png"] | {"path": "", "top": 0} == {
        "path": "", "label": None, "index": None, "score": pytest.approx(1 / 3), "top": 0,
        "error": "unsure (score 0.33, minimum 0.5)",
    }  # fmt: skip
    assert "0 failed, 1 unsure" in capsys.readouterr().err
    assert [path.name for path in sorted_into.rglob("*.png")] == ["c.png"]


def test_the_python_of_the_guide_runs(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "guides" / "embeddings.md"
    make("model.int8.onnx")
    Image.new("RGB", (40, 30), "green").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"paths": ["photo.jpg"]}
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    assert len(blocks) >= 2
    assert np.linalg.norm(names["vector"]) == pytest.approx(1)
    assert capsys.readouterr().out.startswith("photo.jpg [")
