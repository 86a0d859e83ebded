"""The part that apps embed: answers, streams, threads, processes."""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

import runtime
from runtime import (
    ArtifactError,
    Classifier,
    DeviceError,
    Embedder,
    ImageError,
    Preprocess,
    Result,
    loaded_model,
)
from runtime.onnx_runtime import onnxruntime

MakeModel = Callable[..., Path]
COLORS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def frame(color: str) -> np.ndarray:
    return np.full((20, 30, 3), COLORS[color], np.uint8)


@pytest.fixture
def classify(model: Path) -> Iterator[Classifier]:
    with Classifier(model, threads=2) as classifier:
        yield classifier


@pytest.mark.parametrize("color", COLORS)
def test_a_prediction(classify: Classifier, color: str) -> None:
    prediction = classify(frame(color))
    assert prediction.label == color
    assert classify.info.labels[prediction.index] == color
    logits = np.array(COLORS[color]) * 0.1
    softmax = np.exp(logits) / np.exp(logits).sum()
    assert [candidate.score for candidate in prediction.top] == pytest.approx(sorted(softmax)[::-1], rel=1e-5)
    assert prediction.score == prediction.top[0].score
    assert prediction.top[0].label == color


def test_top_is_as_long_as_asked_for(model: Path) -> None:
    assert [len(Classifier(model, top=k)(frame("red")).top) for k in (1, 2, 3, 50)] == [1, 2, 3, 3]


def test_labels_need_not_be_unique(make_model: MakeModel) -> None:
    prediction = Classifier(make_model(labels=("crane", "crane", "heron")))(frame("green"))
    assert (prediction.label, prediction.index) == ("crane", 1)


def test_wrong_arguments(model: Path) -> None:
    with pytest.raises(ValueError, match="top"):
        Classifier(model, top=0)
    with pytest.raises(ValueError, match="workers"):
        Classifier(model).stream([], workers=0)
    with pytest.raises(ArtifactError, match="SHA-256"):
        Classifier(model, sha256="ab" * 32)


def test_info(model: Path, classify: Classifier) -> None:
    info = classify.info
    assert info.path == str(model)
    assert info.labels == ("red", "green", "blue")
    assert info.preprocess == Preprocess(size=(32, 32))
    assert (info.variant, info.device, info.threads) == ("float32", "cpu", 2)
    assert Classifier(model, sha256=info.sha256).info.sha256 == info.sha256
    assert "red" not in repr(info)  # a thousand labels are no help in a log


def test_a_broken_image_raises_alone_and_is_a_value_in_a_stream(classify: Classifier, images: Path) -> None:
    with pytest.raises(ImageError, match="empty"):
        classify(images / "empty.jpg")
    results = list(classify.stream(runtime.find_images(images)))
    assert [result.image.name for result in results] == ["a.png", "b.jpg", "c.png", "empty.jpg", "text.png"]
    assert [result.prediction and result.prediction.label for result in results] == [
        "red", "green", "blue", None, None,
    ]  # fmt: skip
    assert [result.error for result in results[:3]] == [None] * 3
    assert "empty" in (results[3].error or "")
    assert "no image" in (results[4].error or "")


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_a_stream_keeps_order_whatever_the_batch(classify: Classifier, batch: int) -> None:
    colors = [list(COLORS)[i * i % 3] for i in range(30)]
    images: list[np.ndarray | bytes] = [frame(color) for color in colors]
    images[7] = b"broken"
    results = list(classify.stream(images, workers=3, batch=batch))
    assert [result.image for result in results] == images
    for result, color in zip(results, colors, strict=True):
        if isinstance(result.image, bytes):
            assert result.prediction is None
        else:
            assert result.prediction == classify(frame(color))


def test_a_stream_without_order_gives_all(classify: Classifier) -> None:
    slow = np.zeros((3000, 3000, 3), np.uint8)
    images = [slow] + [frame("blue")] * 20
    results = list(classify.stream(images, workers=2, ordered=False))
    assert len(results) == 21
    assert sum(result.image is slow for result in results) == 1
    assert results[0].image is not slow


def test_a_stream_takes_images_a_few_ahead_and_no_more(classify: Classifier) -> None:
    taken = itertools.count()

    def endless() -> Iterator[np.ndarray]:
        while True:
            next(taken)
            yield frame("red")

    results = classify.stream(endless(), workers=2)
    for _ in range(10):
        assert next(results).error is None
    results.close()  # type: ignore[attr-defined]
    assert next(taken) < 30
    assert not [t for t in threading.enumerate() if t.name.startswith("runtime")]


def test_an_error_of_the_images_iterator_ends_the_stream(classify: Classifier) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield frame("red")
        raise KeyError("the camera")

    with pytest.raises(KeyError, match="camera"):
        list(classify.stream(failing()))


def test_an_answer_that_is_not_finite_is_a_failure_of_that_image(make_model: MakeModel) -> None:
    path = make_model()
    proto = onnx.load(path)
    proto.graph.node[-1].output[0] = "finite"
    proto.graph.node.append(helper.make_node("Log", ["finite"], ["logits"]))  # black: log 0
    path.write_bytes(proto.SerializeToString())
    results: list[Result] = list(
        Classifier(path).stream([np.zeros((9, 9, 3), np.uint8), frame("red")], batch=2)
    )
    assert "not finite" in (results[0].error or "")
    assert results[1].prediction is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"labels": ("a", "b")}, r"output.*\[3\]"), ({"preprocess": Preprocess(size=(24, 32))}, "input")],
)
def test_metadata_that_lies_about_the_graph(make_model: MakeModel, changes: dict, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Classifier(make_model(**changes))


def test_metadata_that_lies_where_only_running_tells(make_model: MakeModel) -> None:
    path = make_model(labels=("a", "b"))
    proto = onnx.load(path)
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ArtifactError):
        Classifier(path).warm_up()


def broken_only_when_it_runs(path: Path, operator: str, values: list[int], axis: int | None = None) -> Path:
    """Let the graph ask for a channel that is not there, or for more memory than there is."""
    proto = onnx.load(path)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(values), "values"))
    proto.graph.node[0].input[0] = "changed"
    proto.graph.node.insert(0, helper.make_node(operator, ["pixels", "values"], ["changed"], axis=axis))
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        (("Gather", [0, 1, 5], 3), ArtifactError, "model.onnx: ONNX Runtime cannot run it .*export it again"),
        (("Pad", [0] * 5 + [10**6, 10**6, 0]), DeviceError, "cpu has too little memory for .*model.onnx"),
    ],
)
def test_a_model_that_fails_when_it_runs_is_an_error_of_ours(
    changes: tuple[Any, ...], expected: type[Exception], words: str, model: Path, tmp_path: Path
) -> None:
    classify = Classifier(broken_only_when_it_runs(model, *changes), threads=1)
    for ask in ASK:
        with pytest.raises(expected, match=words):
            ask(classify)
    from runtime.__main__ import main

    assert main([str(model), str(tmp_path)]) == 2


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("kind", [Classifier, Embedder])
def test_a_file_for_batches_of_one_size_only_is_refused_when_it_is_opened(
    batch: int, side: str, kind: Any, make_embedding_model: MakeModel
) -> None:
    model = make_embedding_model()
    proto = onnx.load(model)
    for value in getattr(proto.graph, side):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    model.write_bytes(proto.SerializeToString())
    message = (
        f"the batch of its {side} (pixels|logits) is fixed to {batch}, expected one that is free; export it"
    )
    for source in (model, model.read_bytes()):
        with pytest.raises(ArtifactError, match=message):
            kind(source, threads=1)


def test_a_batch_without_a_name_is_free(model: Path) -> None:
    proto = onnx.load(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
    model.write_bytes(proto.SerializeToString())
    assert len(list(Classifier(model, threads=1).stream([frame("red")] * 3, batch=2))) == 3


def test_names_that_are_no_text_are_an_error_and_print_nothing(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Standard output is for results: ONNX Runtime announces a second attempt there."""
    data = model.read_bytes()
    found = 0
    for name in (b"pixels", b"logits", b"mean", b"color", b"weights"):
        at = -1
        while (at := data.find(name, at + 1)) >= 0:
            broken = data[:at] + b"\xff" + data[at + 1 :]
            try:
                Classifier(broken, threads=1)(frame("red"))
            except ArtifactError:
                found += 1
    assert found > 5
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) > (1, 22):
        assert capfd.readouterr().out == ""


def test_threads_get_what_one_call_gets(classify: Classifier) -> None:
    expected = {color: classify(frame(color)) for color in COLORS}

    def work(seed: int) -> bool:
        order = np.random.default_rng(seed).choice(list(COLORS), 50)
        return all(classify(frame(color)) == expected[color] for color in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_closing(model: Path) -> None:
    with Classifier(model) as classify:
        classify.warm_up()
    for use in (lambda: classify(frame("red")), lambda: classify.stream([]), classify.warm_up):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    classify.close()
    assert classify.info.labels


def test_closing_while_threads_predict(model: Path) -> None:
    classify = Classifier(model, threads=1)
    answers: list[str] = []

    def work() -> None:
        try:
            while True:
                classify(frame("red"))
        except RuntimeError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    classify.close()
    for thread in threads:
        thread.join(10)
    assert len(answers) == 4
    assert all("closed" in answer for answer in answers)


ASK = [lambda c: c(frame("red")), lambda c: next(c.stream([frame("red")])), lambda c: c.warm_up()]


class ClosedOnRead(Classifier):
    """A classifier that another thread closes right after the nth read of one of its sessions."""

    countdown = -1

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "_state" and self.countdown >= 0 and not loaded_model._changing.locked():
            self.countdown -= 1
            if self.countdown < 0:
                Classifier.close(self)
        return value


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("reads", range(5))
def test_closing_after_any_read_of_a_session_is_an_answer(model: Path, ask: Any, reads: int) -> None:
    classify = ClosedOnRead(model, threads=2)
    classify.countdown = reads
    try:
        ask(classify)
    except RuntimeError as error:
        assert "closed" in str(error)  # noqa: PT017 (it may also succeed)
    if classify.countdown < 0:
        assert classify._state.stream_session is None  # nothing is kept alive after the close


@pytest.mark.parametrize("ask", ASK)
def test_closing_at_any_moment_is_an_answer_and_no_accident(
    model: Path, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread closes the classifier between any two steps of a prediction."""
    classify = Classifier(model, threads=2)
    ask(classify)
    opened = classify._state
    # Opening takes milliseconds.
    monkeypatch.setattr(Classifier, "_open_again", lambda self, state, threads: opened.session)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(1000):
            classify._state = opened
            closer = threading.Thread(target=classify.close)
            closer.start()
            try:
                ask(classify)
            except RuntimeError as error:
                assert "closed" in str(error)  # noqa: PT017 (it may also succeed)
            closer.join()
            with pytest.raises(RuntimeError, match="closed"):
                ask(classify)
            assert classify._state.stream_session is None  # nothing is kept alive after the close
    finally:
        sys.setswitchinterval(interval)


def test_asyncio(classify: Classifier) -> None:
    async def ask() -> list[str]:
        predictions = [asyncio.to_thread(classify, frame(color)) for color in COLORS]
        return [prediction.label for prediction in await asyncio.gather(*predictions)]

    assert asyncio.run(ask()) == list(COLORS)


def _label(classify: Classifier) -> str:
    return classify(frame("green")).label + next(iter(classify.stream([frame("blue")]))).prediction.label  # type: ignore


_inherited: Classifier


def _label_of_inherited(_: int) -> str:
    label = _label(_inherited)
    return label


def test_another_process_opens_the_file_again(classify: Classifier) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_label, [classify]) == ["greenblue"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_process_opens_the_file_again(model: Path, threads: int) -> None:
    global _inherited
    _inherited = Classifier(model, threads=threads)
    _inherited.warm_up()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_label_of_inherited, range(4)).get(timeout=60) == ["greenblue"] * 4
    assert _label(_inherited) == "greenblue"


def test_a_file_that_was_replaced_is_not_opened_again(model: Path, make_model: MakeModel) -> None:
    classify = Classifier(model, threads=2)
    sent = pickle.dumps(classify)
    make_model(labels=("x", "y", "z"))
    with pytest.raises(ArtifactError, match="SHA-256"):
        pickle.loads(sent)
    assert classify(frame("red")).label == "red"


def test_memory_does_not_grow(classify: Classifier) -> None:
    psutil = pytest.importorskip("psutil")
    rng = np.random.default_rng(0)
    files = [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8))
        for h, w in ((20, 30), (300, 500), (700, 50))
    ]

    def work() -> int:
        for result in classify.stream(files * 100, workers=4):
            assert result.error is None
        gc.collect()
        return psutil.Process().memory_info().rss

    work()
    before = work()
    assert work() - before < 10 * 2**20


def test_a_model_given_as_bytes_answers_as_its_file(model: Path) -> None:
    data = model.read_bytes()
    from_file, from_bytes = Classifier(model, threads=2), Classifier(data, threads=2)
    assert from_bytes.info.path is None
    assert from_bytes.info.sha256 == from_file.info.sha256
    assert from_bytes(frame("green")) == from_file(frame("green"))
    assert repr(from_bytes).startswith("Classifier('the model', device='cpu'")
    assert next(from_bytes.stream([frame("blue")])).prediction == from_file(frame("blue"))
    copy = pickle.loads(pickle.dumps(from_bytes))
    assert copy(frame("red")) == from_file(frame("red"))
    assert runtime.read_metadata(data) == runtime.read_metadata(model)


def test_bytes_are_checked_as_files_are(model: Path) -> None:
    data = model.read_bytes()
    with pytest.raises(ArtifactError, match=r"^the model: not an ONNX model, or a damaged one"):
        Classifier(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"^the model: its SHA-256 is"):
        Classifier(data, sha256="0" * 64)
    with pytest.raises(ArtifactError, match=r"^the model: not an ONNX model"):
        Classifier(b"")


def test_the_temperature_changes_scores_and_no_label(make_model: MakeModel) -> None:
    plain, warm = (Classifier(make_model(f"{t}.onnx", temperature=t)) for t in (1.0, 4.0))
    first, second = plain(frame("green")), warm(frame("green"))
    assert second.label == first.label
    assert [each.index for each in second.top] == [each.index for each in first.top]
    assert second.score < first.score
    assert sum(each.score for each in second.top) == pytest.approx(1)
    odds = np.log(first.top[0].score / first.top[1].score), np.log(second.top[0].score / second.top[1].score)
    assert odds[1] == pytest.approx(odds[0] / 4, rel=1e-4)
