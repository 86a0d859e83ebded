"""`newer` and `reload`: no call is lost, each answer is of one model, and memory stays as it is."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import ArtifactError, Classifier, Embedder, Prediction, Preprocess
from runtime.batch import label_images
from runtime.command_line import main
from runtime.self_test.check import _read_resident_memory

from .conftest import WriteModel

RED = np.full((40, 30, 3), (250, 10, 10), np.uint8)
LABELS = {1: ("red", "green", "blue"), 2: ("rot", "grün", "blau")}


@pytest.fixture
def two(write_model: WriteModel, folder: Path) -> Path:
    """A folder with two models of other labels and another size, the first one current."""
    for number, labels in LABELS.items():
        size = (32 * number, 32)
        write_model(f"models/{number}/model.onnx", labels=labels, preprocess=Preprocess(size=size))
    switch(folder, 1)
    return folder


def switch(folder: Path, number: int) -> None:
    (folder / "next").write_text(f"{number}\n")
    (folder / "next").replace(folder / "current")


@pytest.mark.parametrize("threads", [1, 2])
def test_reload_opens_the_current_model(two: Path, threads: int) -> None:
    classify = Classifier(two, threads=threads)
    assert (classify.newer(), classify.reload()) == (False, False)
    switch(two, 2)
    assert classify.newer()
    assert classify(RED).label == "red"  # until it is asked for
    assert classify.reload()
    assert (classify(RED).label, classify.info.labels, classify.newer()) == ("rot", LABELS[2], False)
    classify.close()
    with pytest.raises(RuntimeError, match="closed"):
        classify.reload()


def test_a_model_that_cannot_be_opened_leaves_the_other(two: Path) -> None:
    classify = Classifier(two)
    (two / "2" / "model.onnx").write_bytes(b"no model")
    switch(two, 2)
    with pytest.raises(ArtifactError, match="not an ONNX model"):
        classify.reload()
    assert classify(RED).label == "red"
    (two / "current").unlink()
    with pytest.raises(ArtifactError, match="expected a model in a folder"):
        classify.newer()


def test_the_digest_and_the_copy_in_another_process(two: Path) -> None:
    classify = Classifier(two)
    copy = pickle.loads(pickle.dumps(classify))
    pinned = Classifier(two, sha256=classify.info.sha256)
    switch(two, 2)
    again = pickle.loads(pickle.dumps(classify))  # of the model that is open, not of the current one
    assert again(RED).label == "red"
    assert copy.reload()
    assert copy(RED).label == "rot"
    with pytest.raises(ArtifactError, match="SHA-256 is not the expected one"):
        pinned.reload()
    with pytest.raises(ArtifactError, match="SHA-256 is not the expected one"):
        pickle.loads(pickle.dumps(pinned)).reload()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_stream_goes_on_with_the_new_model(two: Path, threads: int, batch: int) -> None:
    classify = Classifier(two, threads=threads)
    results = classify.stream(repeat(RED), workers=2, batch=batch)
    assert {each.prediction.label for each in islice(results, 10)} == {"red"}
    switch(two, 2)
    classify.reload()
    later = [each.prediction.label for each in islice(results, 40)]
    assert later[-1] == "rot"
    assert later == sorted(later)  # first those that had begun: "red" before "rot"
    classify.close()
    assert {each.prediction.label for each in islice(results, 20)} == {"rot"}  # what has begun is completed


def test_an_embedder_reloads(make_embedding_model, folder: Path) -> None:  # type: ignore[no-untyped-def]
    for number in (1, 2):
        (folder / str(number)).mkdir(parents=True)
        make_embedding_model(f"models/{number}/model.onnx")
    switch(folder, 1)
    embed = Embedder(folder)
    switch(folder, 2)
    assert embed.reload()
    assert embed(RED).shape == (3,)
    make_embedding_model("models/1/model.onnx", logits=True)
    switch(folder, 1)
    assert Classifier(folder).embed(RED).shape == (3,)


class Load:
    """Work that asks a classifier until the end, and counts the answers of each model."""

    def __init__(self, classify: Classifier) -> None:
        self.classify, self.ended, self.answers = classify, threading.Event(), Counter[int]()

    def count(self, found: Prediction) -> None:
        (number,) = [number for number, labels in LABELS.items() if found.label in labels]
        assert {each.label for each in found.top} == set(LABELS[number])
        self.answers[number] += 1

    def ask(self) -> None:
        while not self.ended.is_set():
            self.count(self.classify(RED))

    def ask_in_tasks(self) -> None:
        async def task() -> None:
            while not self.ended.is_set():
                self.count(await asyncio.to_thread(self.classify, RED))

        async def tasks() -> None:
            await asyncio.gather(*(task() for _ in range(4)))

        asyncio.run(tasks())

    def stream(self) -> tuple[int, Counter[int]]:
        """Return how many images were given, and the answers of each model."""
        given, load = 0, Load(self.classify)

        def images() -> Iterator[np.ndarray]:
            nonlocal given
            while not self.ended.is_set():
                given += 1
                yield RED

        for result in self.classify.stream(images(), workers=2):
            assert result.prediction is not None, result.error
            load.count(result.prediction)
        return given, load.answers


def test_reloads_under_threads_asyncio_and_a_stream(two: Path) -> None:
    """200 changes: 4 threads, 4 tasks of asyncio, and a stream."""
    load, memory = Load(Classifier(two, threads=2)), []
    with ThreadPoolExecutor(6) as pool:
        works = [pool.submit(load.ask) for _ in range(4)] + [pool.submit(load.ask_in_tasks)]
        stream = pool.submit(load.stream)
        try:
            for change in range(200):
                switch(two, 2 - change % 2)
                assert load.classify.reload()
                memory.append(_read_resident_memory() or 0.0)
        finally:
            load.ended.set()
    for work in works:
        work.result()
    given, streamed = stream.result()
    assert given == streamed.total()
    assert min(load.answers[1], load.answers[2], streamed[1], streamed[2]) > 0
    growth = float(np.median(memory[-50:]) - np.median(memory[50:100]))
    print(f"\n{load.answers.total()} answers, {given} of the stream; memory grew by {growth:.1f} MiB")
    assert growth < 8


def test_a_removed_model_is_opened_from_the_next_one(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two installs while an app opens the folder: the model that it began to open is gone."""
    from runtime import loaded_model

    real, calls = loaded_model.load_model, []

    def load_model(model, **rest):  # type: ignore[no-untyped-def]
        calls.append(model)
        if len(calls) == 1:
            switch(two, 2)
            raise ArtifactError("gone")
        return real(model, **rest)

    monkeypatch.setattr(loaded_model, "load_model", load_model)
    assert Classifier(two)(RED).label == "rot"


# --- python -m runtime ---


def test_a_run_keeps_its_model_and_no_file_mixes_two(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for path in paths:
        Image.fromarray(RED).save(path)
    out = tmp_path / "labels.jsonl"

    real = label_images.list_images

    def list_images(*words: object, **rest: object) -> Iterator[Path]:
        for index, path in enumerate(real(*words, **rest)):  # type: ignore[arg-type]
            if index == 1:
                switch(two, 2)
            yield path

    with monkeypatch.context() as patch:
        patch.setattr(label_images, "list_images", list_images)
        first = [str(two), *map(str, paths[:4]), "--output", str(out), "--workers", "1"]
        assert main(first) == 0
    assert [json.loads(line)["label"] for line in out.read_text().splitlines()] == ["red"] * 4
    capsys.readouterr()
    assert main([str(two), *map(str, paths), "--output", str(out), "--resume"]) == 2
    assert "another model wrote" in capsys.readouterr().err
    switch(two, 1)
    assert main([str(two), *map(str, paths), "--output", str(out), "--resume"]) == 0
    assert [json.loads(line)["label"] for line in out.read_text().splitlines()] == ["red"] * 6
