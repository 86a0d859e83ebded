"""The pieces of a cluster run without a cluster: sources, parts, chunks, and the ledger of crashes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime.batch.columns import Labels
from runtime.writing import OutputError

pa = pytest.importorskip("pyarrow", reason='needs pyarrow: pip install ".[ray]"')

import pyarrow.parquet as pq  # noqa: E402

from runtime.batch.cluster import chunks as module  # noqa: E402
from runtime.batch.cluster import reading  # noqa: E402
from runtime.batch.cluster.chunks import Job, Ledger, Summary, chunks, kind_of, label_chunk, portable  # noqa: E402
from runtime.batch.cluster.parts import Parts, StaleRunError, begin  # noqa: E402
from runtime.batch.cluster.reading import StoreError  # noqa: E402
from runtime.batch.cluster.sources import LOCAL, PlaceError, bare, check, find, open_uri, place_of  # noqa: E402

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


def start(folder: Path, **changes: Any) -> tuple[Parts, list[str]]:
    given: dict[str, Any] = {"form": None, "resume": False, "overwrite": False} | changes
    return begin(str(folder), MODEL, **given)


def row(path: str) -> dict[str, list[Any]]:
    return {"path": [path], "label": ["x"], "index": [0], "score": [0.5], "top": [[]], "error": [None]}


def job(parts: Parts, *sources: Path | str, **changes: Any) -> Job:
    given = Job([str(source) for source in sources], "/", parts, largest=1000, cores=2)
    return replace(given, **changes)


def test_folders_files_and_lists_are_found_as_on_one_machine(images: Path) -> None:
    pq.write_table(pa.table({"path": ["a.png", None, "gone.jpg"]}), images / "list.parquet")
    base, folder = str(images.parent), images.name
    found = [key for _, key in find([folder, f"{folder}/b.jpg", f"{folder}/list.parquet"], base)]
    names = ["a.png", "b.jpg", "deeper/c.png", "empty.jpg", "text.png", "b.jpg"]
    assert found == [f"{folder}/{name}" for name in names] + ["a.png", "gone.jpg"]


def test_a_store_of_fsspec_is_walked_sorted_and_named_by_its_uri(memory: str) -> None:
    found = list(find([f"{memory}/photos"], "/"))
    assert [place.prefix + key for place, key in found] == [
        "memory://bucket/photos/a/z.JPG",
        "memory://bucket/photos/b.png",
    ]


def test_what_a_listing_leaves_out_is_counted_once_over_all_chunks(
    memory: str, images: Path, tmp_path: Path
) -> None:
    parts, _ = start(tmp_path / "out")
    for number in range(40):
        (images / f"{number}.dng").touch()
        Image.new("RGB", (4, 4)).save(images / f"{number}.png")
    (images / ".hidden.txt").touch()
    total, pieces = Summary(), list(chunks(job(parts, images, f"{memory}/photos"), []))
    assert len(pieces) > 2
    for chunk in pieces:
        total.add(Summary(left_out=chunk.left_out))
    assert total.left_out == {".dng": 40, ".txt": 2}  # one of them in the store
    every = [key for chunk in chunks(job(parts, images, all_files=True), []) for key in chunk.keys]
    assert sum(key.endswith((".dng", ".txt")) for key in every) == 41
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.svg").touch()
    (only,) = chunks(job(parts, tmp_path / "empty"), [])
    summary = label_chunk(only, job(parts), Labels.__new__(Labels), Ledger())
    assert (summary.images, summary.left_out) == (0, {".svg": 1})


def test_entries_of_a_list_are_read_where_they_say(memory: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": [f"{memory}/photos/b.png", "/a.png"]}), tmp_path / "list.parquet")
    (place, key), local = find([str(tmp_path / "list.parquet")], "/")
    assert place.prefix + key == f"{memory}/photos/b.png"
    assert open_uri(place.uri)[0].open_input_file(key).readall() == b"not an image"
    assert local == (LOCAL, "/a.png")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "no such image, folder or list"),
        ("memory://bucket/nowhere", "no such image, folder or list"),
        ("nonsense://bucket/x", "neither pyarrow .* nor fsspec"),
        ("text.parquet", "expected a Parquet file"),
        ("other.parquet", "expected a column path in this list, found name"),
    ],
)
def test_a_source_that_is_not_there_is_said_at_the_start(source: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no Parquet")
    pq.write_table(pa.table({"name": ["a.png"]}), tmp_path / "other.parquet")
    with pytest.raises(PlaceError, match=said):
        check([source], str(tmp_path))


def test_no_password_and_no_option_reaches_the_output() -> None:
    uri = "s3://key:secret@bucket/photos?endpoint_override=localhost:1&scheme=http&region=x"
    assert bare(uri) == "s3://bucket/photos"
    place, path = place_of(uri)
    assert (place.prefix, path) == ("s3://", "bucket/photos")
    assert place_of("s3://bucket/a%20b?region=x")[0].prefix == "s3://"


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_parts_are_written_read_and_resumed(form: Any, tmp_path: Path) -> None:
    parts, known = start(tmp_path / "out", form=form)
    assert known == []
    parts.write(2, row("b"))
    parts.write(1, row("a"))
    parts.write(1, row("a"))  # an attempt that is repeated replaces the first
    again, known = start(tmp_path / "out", resume=True)
    assert (again.run, again.form, len(known)) == (2, form, 2)
    assert list(again.paths(known)) == ["a", "b"]


def test_an_output_is_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    start(out)[0].write(1, row("a"))
    with pytest.raises(OutputError, match="--resume goes on"):
        start(out)
    with pytest.raises(OutputError, match="another model wrote"):
        begin(str(out), "b" * 64, form=None, resume=True, overwrite=False)
    with pytest.raises(OutputError, match="written with --top 5, found 3"):
        start(out, top=3, resume=True)
    with pytest.raises(OutputError, match="is parquet, found --format jsonl"):
        start(out, form="jsonl", resume=True)
    (out / "mine.txt").write_text("not ours")
    assert start(out, overwrite=True)[0].names() == []
    assert (out / "mine.txt").exists()  # only parts are replaced
    (out / "part-0001-000000001.parquet").write_bytes(b"")
    (out / "_run.json").write_text("{}")
    with pytest.raises(OutputError, match="gone or damaged"):
        start(out, resume=True)


def test_a_crash_while_writing_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, _ = start(tmp_path / "out")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
    with pytest.raises(OSError, match="killed here"):
        parts.write(1, row("a"))
    monkeypatch.undo()
    assert parts.names() == []
    assert list((tmp_path / "out").glob(".part-*.tmp"))
    start(tmp_path / "out", resume=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_known-0002.json", "_run.json"]


def test_a_run_that_was_resumed_elsewhere_stops_writing(tmp_path: Path) -> None:
    old, _ = start(tmp_path / "out")
    old.write(1, row("a"))
    new, known = start(tmp_path / "out", resume=True)
    with pytest.raises(StaleRunError, match="run 2 has taken over"):
        old.write(2, row("b"))
    late = Path(new.uri, "part-0001-000000009.parquet")  # between the old run's look and its rename
    late.write_bytes(Path(new.uri, known[0]).read_bytes())
    new.write(1, row("c"))
    third, third_known = start(tmp_path / "out", resume=True)  # the second was killed before its end
    assert sorted(third.paths(third_known)) == ["a", "c"]
    late.write_bytes(Path(new.uri, known[0]).read_bytes())
    assert third.drop_late(third_known) == 1
    assert sorted(third.paths(third.names())) == ["a", "c"]


def test_chunks_grow_leave_out_what_is_done_and_repeat(tmp_path: Path) -> None:
    names = [f"{n:05}.jpg" for n in range(3000)]
    pq.write_table(pa.table({"path": names}), tmp_path / "list.parquet")
    parts, _ = start(tmp_path / "out")
    parts.write(1, {name: values * 2 for name, values in row("00001.jpg").items()})  # one image, two rows
    parts, known = start(tmp_path / "out", resume=True)
    work = job(parts, tmp_path / "list.parquet", largest=60)
    found = list(chunks(work, known))
    assert found == list(chunks(work, known))
    assert [key for chunk in found for key in chunk.keys] == names[:1] + names[2:]
    sizes = [len(chunk.keys) for chunk in found]
    assert (sizes[0], max(sizes), sum(chunk.skipped for chunk in found)) == (16, 60, 1)
    everything = [Summary(skipped=chunk.skipped) for chunk in chunks(job(parts, "/nowhere.jpg"), [])]
    assert [each.skipped for each in everything] == [0]


def test_the_rows_of_a_chunk_are_those_of_one_machine(model: Path, images: Path, tmp_path: Path) -> None:
    from runtime import Classifier, find_images
    from runtime.batch.output import record

    parts, _ = start(tmp_path / "out", form="jsonl")
    (only,) = chunks(job(parts, images), [])
    summary = label_chunk(only, job(parts, images), Labels(model), Ledger())
    (name,) = parts.names()
    rows = [json.loads(line) for line in Path(parts.uri, name).read_bytes().splitlines()]
    expected = map(record, Classifier(model).stream(find_images(images)))
    assert rows == json.loads(json.dumps(list(expected)))
    assert (summary.images, summary.failed, summary.classes["red"]) == (5, 2, 1)


def test_a_name_that_is_no_text_is_a_path_like_any_other(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (9, 9), (0, 250, 0)).save(tmp_path / "in" / "x.png")
    odd = Path(str(tmp_path / "in" / "\udcff.png"))
    (tmp_path / "in" / "x.png").rename(odd)
    parts, _ = start(tmp_path / "out")
    (only,) = chunks(job(parts, tmp_path / "in"), [])
    assert label_chunk(only, job(parts), Labels(model), Ledger()).classes == {"green": 1}
    assert list(parts.paths(parts.names())) == [portable(str(odd))]
    assert next(chunks(job(parts, tmp_path / "in"), parts.names())).skipped == 1


def test_a_store_that_gives_nothing_ends_the_run(
    memory: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a million rows of errors, which --resume would take for done."""
    monkeypatch.setattr(reading, "_PAUSES", (0.0,))
    place, _ = place_of(memory)
    chunk = module.Chunk(1, place, [f"/photos/{n}.jpg" for n in range(9)], 0)
    parts, _ = start(tmp_path / "out")

    def refuse(*_: Any) -> None:
        raise OSError("the token has expired")

    monkeypatch.setattr(reading, "_read_remote", refuse)
    with pytest.raises(StoreError, match=r"none of 9 images could be read: .*expired"):
        label_chunk(chunk, job(parts), Labels(model), Ledger())
    assert parts.names() == []


def test_a_store_is_asked_again_and_a_missing_key_is_a_row(
    memory: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_PAUSES", (0.0, 0.0))
    inner, asked = reading._read_remote, []

    def flaky(place: Any, key: str, *rest: Any) -> Any:
        asked.append(key)
        if asked.count(key) < 3:
            raise OSError("slow down")
        return inner(place, key, *rest)

    monkeypatch.setattr(reading, "_read_remote", flaky)
    place, _ = place_of(memory)
    keys = [key for _, key in find([f"{memory}/photos"], "/")]
    found = list(reading.read_ahead(place, [*keys, "/bucket/gone.jpg"], base="/", largest=100))
    assert [content.data for content in found] == [b"not an image"] * 2 + [None]
    assert found[2].error.startswith("it cannot be opened")
    assert not found[2].store_failed
    (large,) = reading.read_ahead(place, keys[:1], base="/", largest=5)
    assert large.error == "it has 12 bytes, more than the limit of 5"


def test_large_files_are_not_read_ahead(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LARGE", 5)
    place, _ = place_of(memory)
    read: list[int] = []
    inner = reading._read_remote

    def count(*given: Any) -> Any:
        read.append(given[-1])
        return inner(*given)

    monkeypatch.setattr(reading, "_read_remote", count)
    (content,) = reading.read_ahead(place, ["/bucket/photos/b.png"], base="/", largest=100)
    assert (content.data, read) == (b"not an image", [5, 100])


def test_an_image_that_ends_processes_is_left_out_after_retries() -> None:
    ledger = Ledger()
    assert ledger.begin(7) == (False, [])
    assert ledger.begin(7) == (True, [])  # a process ended: one image at a time from now on
    for crashes in (1, 2):
        ledger.note(7, 3)
        ledger.note(7, 4)
        assert ledger.begin(7) == (True, [4] if crashes == 2 else [])
    ledger.end(7)
    assert ledger.begin(7) == (False, [])


def test_failures_are_counted_by_kind_and_in_bounds() -> None:
    assert kind_of("it has 30000 x 20,001 pixels") == "it has N x N pixels"
    total = Summary()
    for number in range(200):
        total.add(Summary(images=1, failures=module.Counter({chr(65 + number): 1})))
    assert (total.failed, len(total.failures), total.failures["other reasons"]) == (200, 51, 150)
