"""The pieces of a cluster run without a cluster: sources, parts, chunks, and the ledger of crashes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime.batch.label_columns import Labels
from runtime.batch.output import DoneImages, format_record
from runtime.batch.tally import Report, Tally
from runtime.images.find_images import SkippedFiles
from runtime.writing import OutputError

pa = pytest.importorskip("pyarrow", reason='needs pyarrow: pip install ".[ray]"')

import pyarrow.parquet as pq  # noqa: E402

from runtime.batch import cluster_sources as module  # noqa: E402
from runtime.batch.cluster_chunks import Chunk, label_chunk, list_chunks, name_image, read_and_label_chunk  # noqa: E402
from runtime.batch.cluster_output import Parts, StaleRunError, open_parts  # noqa: E402
from runtime.batch.cluster_sources import (  # noqa: E402
    LocationError,
    Store,
    StoreError,
    check_sources,
    find_store,
    hide_secrets,
    list_stored_images,
    open_location,
    read_ahead,
)

MODEL = "a" * 64


@pytest.fixture
def memory() -> Iterator[str]:
    """A store of fsspec's that pyarrow does not know, with two images and a folder."""
    import fsspec

    store = fsspec.filesystem("memory")
    for key in ("photos/b.png", "photos/a/z.JPG", "photos/notes.txt"):
        store.pipe(f"/bucket/{key}", b"not an image")
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


def start(folder: Path, **changes: Any) -> Parts:
    given: dict[str, Any] = {"form": None, "resume": False, "overwrite": False} | changes
    return open_parts(str(folder), MODEL, **given)


def row(path: str) -> dict[str, Any]:
    return {"path": path, "label": "x", "index": 0, "score": 0.5, "top": [], "error": None}


def listed(*sources: Path | str, **options: Any) -> list[tuple[Store, str]]:
    return list(list_stored_images([str(source) for source in sources], **options))


def chunk_of(*sources: Path | str) -> Chunk:
    """The only chunk of these."""
    (chunk,) = list_chunks(listed(*sources), largest=1000, cores=2)
    return chunk


def label(chunk: Chunk, parts: Parts, model: Path) -> Tally:
    return label_chunk(chunk, parts, partial(read_and_label_chunk, labels=Labels(model)))


def test_folders_files_and_lists_are_found_as_on_one_machine(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"path": ["a.png", None, "gone.jpg"]}), images / "list.parquet")
    monkeypatch.chdir(images.parent)
    folder = images.name
    found = [key for _, key in listed(folder, f"{folder}/b.jpg", f"{folder}/list.parquet")]
    names = ["a.png", "b.jpg", "deeper/c.png", "empty.jpg", "text.png", "b.jpg"]
    assert found == [f"{folder}/{name}" for name in names] + ["a.png", "gone.jpg"]


def test_a_store_of_fsspec_is_walked_sorted_and_named_by_its_uri(memory: str) -> None:
    assert list(map(name_image, listed(f"{memory}/photos"))) == [
        "memory://bucket/photos/a/z.JPG",
        "memory://bucket/photos/b.png",
    ]


def test_what_a_listing_leaves_out_is_counted(memory: str, images: Path) -> None:
    for number in range(40):
        (images / f"{number}.dng").touch()
        Image.new("RGB", (4, 4)).save(images / f"{number}.png")
    (images / ".hidden.txt").touch()
    left_out = SkippedFiles()
    listed(images, f"{memory}/photos", left_out=left_out)
    assert left_out.counts == {".dng": 40, ".txt": 2}  # one of them in the store
    every = [key for _, key in listed(images, all_files=True)]
    assert sum(key.endswith((".dng", ".txt")) for key in every) == 41


def test_entries_of_a_list_are_read_where_they_say(memory: str, images: Path, tmp_path: Path) -> None:
    entries = [f"{memory}/photos/b.png", "/a.png", (images / "a.png").as_uri()]
    pq.write_table(pa.table({"path": entries}), tmp_path / "list.parquet")
    (store, key), *local = listed(tmp_path / "list.parquet")
    assert name_image((store, key)) == f"{memory}/photos/b.png"
    assert open_location(store.uri)[0].open_input_file(key).readall() == b"not an image"
    assert list(map(name_image, local)) == ["/a.png", str(images / "a.png")]
    (content,) = read_ahead(local[1][0], [local[1][1]], largest=2**20)
    assert content.data == (images / "a.png").read_bytes()
    assert next(map(name_image, listed(images.as_uri()))) == str(images / "a.png")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "no such image, folder or list"),
        ("memory://bucket/nowhere", "no such image, folder or list"),
        ("nonsense://bucket/x", "neither pyarrow .* nor fsspec"),
        ("text.parquet", "expected a Parquet file"),
        ("other.parquet", "expected a column path in this list, found name"),
        ("folder.parquet", "expected a Parquet file with a column path, found a folder"),
    ],
)
def test_a_source_that_is_not_there_is_said_at_the_start(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.parquet").write_text("no Parquet")
    pq.write_table(pa.table({"name": ["a.png"]}), tmp_path / "other.parquet")
    (tmp_path / "folder.parquet").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LocationError, match=said):
        check_sources([source])


def test_no_password_and_no_option_reaches_the_output() -> None:
    uri = "s3://key:secret@bucket/photos?endpoint_override=localhost:1&scheme=http&region=x"
    assert hide_secrets(uri) == "s3://bucket/photos"
    store, path = find_store(uri)
    assert (store.prefix, path) == ("s3://", "bucket/photos")
    assert find_store("s3://bucket/a%20b?region=x")[0].prefix == "s3://"


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_parts_are_written_read_and_resumed(form: Any, tmp_path: Path) -> None:
    parts = start(tmp_path / "out", form=form)
    assert parts.list_earlier() == []
    parts.write(2, [row("b")])
    parts.write(1, [row("a")])
    parts.write(1, [row("a")])  # an attempt that is repeated replaces the first
    again = start(tmp_path / "out", resume=True)
    earlier = again.list_earlier()
    assert (again.run, again.form, len(earlier)) == (2, form, 2)
    assert list(again.read_paths(earlier)) == ["a", "b"]


def test_an_output_is_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    start(out).write(1, [row("a")])
    with pytest.raises(OutputError, match="--resume continues"):
        start(out)
    with pytest.raises(OutputError, match="another model wrote"):
        open_parts(str(out), "b" * 64, form=None, resume=True, overwrite=False)
    with pytest.raises(OutputError, match="written with --top 5, found 3"):
        start(out, top=3, resume=True)
    with pytest.raises(OutputError, match="is parquet, found --format jsonl"):
        start(out, form="jsonl", resume=True)
    (out / "mine.txt").write_text("not ours")
    assert start(out, overwrite=True).list_all() == []
    assert (out / "mine.txt").exists()  # only parts are replaced
    (out / "part-0001-000000001.parquet").write_bytes(b"")
    known = out / "_known-0002.json"
    known.rename(tmp_path / "known")
    with pytest.raises(OutputError, match="is gone, so it cannot be resumed"):
        start(out, resume=True)
    (tmp_path / "known").rename(known)
    (out / "_run.json").write_text("{}")
    with pytest.raises(OutputError, match="gone or damaged"):
        start(out, resume=True)


def test_a_crash_while_writing_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = start(tmp_path / "out")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
    with pytest.raises(OSError, match="killed here"):
        parts.write(1, [row("a")])
    monkeypatch.undo()
    assert parts.list_all() == []
    assert list((tmp_path / "out").glob(".part-*.tmp"))
    start(tmp_path / "out", resume=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_known-0002.json", "_run.json"]


def test_a_run_that_was_resumed_elsewhere_stops_writing(tmp_path: Path) -> None:
    old = start(tmp_path / "out")
    first = old.write(1, [row("a")])
    new = start(tmp_path / "out", resume=True)
    with pytest.raises(StaleRunError, match="run 2 has taken over"):
        old.write(2, [row("b")])
    late = Path(new.uri, "part-0001-000000009.parquet")  # between the old run's look and its rename
    late.write_bytes(Path(new.uri, first).read_bytes())
    new.write(1, [row("c")])
    with pytest.raises(StaleRunError, match="run 2 has taken over"):
        old.remove_late()  # the first had not ended: the parts of the second are not its to remove
    third = start(tmp_path / "out", resume=True)  # the second was killed before its end
    assert sorted(third.read_paths(third.list_earlier())) == ["a", "c"]
    late.write_bytes(Path(new.uri, first).read_bytes())
    assert third.remove_late() == [late.name]
    assert sorted(third.read_paths(third.list_all())) == ["a", "c"]


def test_chunks_grow_leave_out_what_is_done_and_repeat(tmp_path: Path) -> None:
    names = [f"{n:05}.jpg" for n in range(3000)]
    pq.write_table(pa.table({"path": names}), tmp_path / "list.parquet")
    parts = start(tmp_path / "out")
    parts.write(1, [row("00001.jpg"), row("00001.jpg")])  # one image, two rows
    parts = start(tmp_path / "out", resume=True)

    def find() -> tuple[list[Chunk], Report]:
        report = Report()
        done = DoneImages(parts.read_paths(parts.list_earlier()))
        todo = done.skip(listed(tmp_path / "list.parquet"), report, name_image)
        return list(list_chunks(todo, largest=60, cores=2)), report

    found, report = find()
    assert found == find()[0]
    assert [chunk.number for chunk in found] == list(range(1, len(found) + 1))
    assert [key for chunk in found for key in chunk.keys] == names[:1] + names[2:]
    sizes = [len(chunk.keys) for chunk in found]
    assert (sizes[0], max(sizes), report.skipped) == (16, 60, 1)
    assert list(list_chunks([], largest=60, cores=2)) == []


def test_the_rows_of_a_chunk_are_those_of_one_machine(model: Path, images: Path, tmp_path: Path) -> None:
    from runtime import Classifier, find_images

    parts = start(tmp_path / "out", form="jsonl")
    tally = label(chunk_of(images), parts, model)
    (name,) = parts.list_all()
    rows = [json.loads(line) for line in Path(parts.uri, name).read_bytes().splitlines()]
    expected = map(format_record, Classifier(model).stream(find_images(images)))
    assert rows == json.loads(json.dumps(list(expected)))
    assert (tally.images, tally.failed, tally.labels["red"]) == (5, 2, 1)


def test_a_name_that_is_no_text_is_a_path_like_any_other(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (9, 9), (0, 250, 0)).save(tmp_path / "in" / "x.png")
    odd = Path(str(tmp_path / "in" / "\udcff.png"))
    (tmp_path / "in" / "x.png").rename(odd)
    parts = start(tmp_path / "out")
    assert label(chunk_of(tmp_path / "in"), parts, model).labels == {"green": 1}
    (path,) = parts.read_paths(parts.list_all())
    assert path == f"{tmp_path / 'in'}/\\xff.png"
    report = Report()
    assert list(DoneImages([path]).skip(listed(tmp_path / "in"), report, name_image)) == []
    assert report.skipped == 1


def test_a_store_that_gives_nothing_ends_the_run(
    memory: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a million rows of errors, which --resume would take for done."""
    monkeypatch.setattr(module, "_PAUSES", (0.0,))
    store, _ = find_store(memory)
    chunk = Chunk(1, store, [f"/photos/{n}.jpg" for n in range(9)])
    parts = start(tmp_path / "out")

    def refuse(*_: Any) -> None:
        raise OSError("the token has expired")

    monkeypatch.setattr(module, "_read_remote", refuse)
    with pytest.raises(StoreError, match=r"none of 9 images could be read: .*expired"):
        label(chunk, parts, model)
    assert parts.list_all() == []


def test_a_store_is_asked_again_and_a_missing_key_is_a_row(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSES", (0.0, 0.0))
    inner, asked = module._read_remote, []

    def flaky(store: Any, key: str, *rest: Any) -> Any:
        asked.append(key)
        if asked.count(key) < 3:
            raise OSError("slow down")
        return inner(store, key, *rest)

    monkeypatch.setattr(module, "_read_remote", flaky)
    store, _ = find_store(memory)
    keys = [key for _, key in listed(f"{memory}/photos")]
    found = list(read_ahead(store, [*keys, "/bucket/gone.jpg"], largest=100))
    assert [content.data for content in found] == [b"not an image"] * 2 + [None]
    assert found[2].error is not None
    assert found[2].error.startswith("it cannot be opened")
    assert not found[2].store_failed
    (large,) = read_ahead(store, keys[:1], largest=5)
    assert large.error == "it has 12 bytes, more than the limit of 5"


def test_large_files_are_not_read_ahead(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGE", 5)
    store, _ = find_store(memory)
    read: list[int] = []
    inner = module._read_remote

    def count(*given: Any) -> Any:
        read.append(given[-1])
        return inner(*given)

    monkeypatch.setattr(module, "_read_remote", count)
    (content,) = read_ahead(store, ["/bucket/photos/b.png"], largest=100)
    assert (content.data, read) == (b"not an image", [5, 100])
