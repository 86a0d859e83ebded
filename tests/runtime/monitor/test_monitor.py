"""The monitor of a model that runs: what it counts, in threads and streams, and what it says."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Classifier, Embedder, ImageError, Preprocess
from runtime.monitor.document import FieldStatistics
from runtime.monitor.measure import EMBEDDING, make_projection, measure_embedding
from runtime.monitor.monitor import Monitor
from runtime.monitor.report import DriftReport, StatisticDrift
from runtime.results import make_prediction
from tests.support.field_statistics import add_statistics, describe_rows, measure_all

LABELS = ("red", "green", "blue")


def make_images(count: int, seed: int, *, gain: float = 1.0) -> list[np.ndarray]:
    """Noise around a random color."""
    random = np.random.default_rng(seed)
    colors = random.uniform(20, 200, (count, 1, 1, 3))
    noise = random.normal(0, 20, (count, 40, 50, 3))
    return list(np.clip((colors + noise) * gain, 0, 255).astype(np.uint8))


@pytest.fixture
def statistics() -> FieldStatistics:
    images, preprocess = make_images(600, 1), Preprocess(size=(32, 32))
    logits = [preprocess(each).mean((0, 1)).astype(np.float32) / 10 for each in images]
    scores = np.array([make_prediction(row, LABELS, 1).score for row in logits])
    return describe_rows(measure_all(images, preprocess), score=scores)


@pytest.fixture
def monitored(make_model: Any, statistics: FieldStatistics) -> Path:
    return add_statistics(make_model(), statistics.to_json())


def test_the_same_source_raises_nothing_and_another_one_is_raised(monitored: Path) -> None:
    with Classifier(monitored, monitor=True, min_score=0.5) as classify:
        assert classify.monitor is not None
        for image in make_images(200, 2):
            classify(image)
        report = classify.monitor.read()
        assert (report.raised, report.seen, report.images, report.reference) == ((), 200, 200, 600)
        assert report.sentence == "no drift: 200 images against 600 at export"
        assert report.unsure == pytest.approx(report.unsure_there, abs=0.1)
        for image in make_images(200, 3, gain=0.6):
            classify(image)
        report = classify.monitor.read()
        assert {"brightness", "peak"} <= set(report.raised)
        assert (report.seen, report.images) == (400, 200)
        assert "these images differ from those measured; look at" in report.sentence
        assert json.loads(json.dumps(report.to_dict()))["raised"] == list(report.raised)
        classify.monitor.restart()
        assert classify.monitor.read().seen == 0


def test_few_images_are_not_judged(monitored: Path) -> None:
    with Classifier(monitored, monitor=True) as classify:
        assert classify.monitor is not None
        assert "not judged yet: 0 images" in classify.monitor.read().sentence
        classify.warm_up()
        assert classify.monitor.read().seen == 0  # no image of the user's
        for image in make_images(49, 3, gain=0.3):
            classify(image)
        report = classify.monitor.read()
        assert report.raised == ()
        assert not report.judged
        assert "not judged yet" in report.sentence
        with pytest.raises(ImageError):
            classify(b"no image")
        assert classify.monitor.read().seen == 49


@pytest.mark.parametrize("batch", [1, 8])
def test_streams_and_threads_count_every_image_once(monitored: Path, batch: int) -> None:
    with Classifier(monitored, monitor=2000) as classify:
        assert classify.monitor is not None
        images = make_images(50, 2)

        def work() -> None:
            for result in classify.stream(images, workers=3, batch=batch):
                assert result.error is None

        threads = [threading.Thread(target=work) for _ in range(8)]
        for each in threads:
            each.start()
        while any(each.is_alive() for each in threads):
            classify.monitor.read()
        report = classify.monitor.read()
        assert (report.seen, report.images) == (400, 400)
        assert report.statistics["score"].independent <= 400
        assert len(classify.monitor._answers.read()) == 400


def test_memory_is_constant_and_a_whole_run_is_a_sample_of_all(statistics: FieldStatistics) -> None:
    monitor = Monitor(statistics, window=50, whole=True)
    for number in range(5000):
        monitor._answers.add((number / 5000,))
    rows = monitor._answers.read()[:, 0]
    assert rows.shape == (50,)
    assert sorted(rows) == list(rows)
    assert 0.3 < rows.mean() < 0.7
    last = Monitor(statistics, window=50)
    for number in range(5000):
        last._answers.add((number,))
    assert last._answers.read()[:, 0].tolist() == list(range(4950, 5000))


def test_restart_takes_the_statistics_of_another_model(statistics: FieldStatistics) -> None:
    monitor = Monitor(statistics)
    monitor._answers.add((0.5,))
    other = describe_rows(np.random.default_rng(0).normal(size=(77, 10)), score=np.full(77, 0.9))
    monitor.restart(other)
    assert (monitor.read().reference, monitor.read().statistics["score"].distance) == (77, None)


def test_a_copy_in_another_process_monitors_too(monitored: Path) -> None:
    with Classifier(monitored, monitor=60) as classify:
        copy = pickle.loads(pickle.dumps(classify))
        copy(make_images(1, 0)[0])
        assert (copy.monitor.read().seen, classify.monitor.read().seen) == (1, 0)  # type: ignore[union-attr]


def _observe(classify: Classifier, answers: Any) -> None:
    classify(make_images(1, 0)[0])
    assert classify.monitor is not None
    answers.put(classify.monitor.read().seen)


def test_a_fork_goes_on_while_another_thread_holds_the_lock(monitored: Path) -> None:
    context = multiprocessing.get_context("fork")
    with Classifier(monitored, monitor=True) as classify:
        assert classify.monitor is not None
        classify(make_images(1, 0)[0])
        answers = context.Queue()
        with classify.monitor._images.lock:
            process = context.Process(target=_observe, args=(classify, answers))
            process.start()
            assert answers.get(timeout=60) == 2
        process.join(60)
        assert process.exitcode == 0


def test_an_embedder_monitors_embeddings(make_embedding_model: Any) -> None:
    preprocess = Preprocess(size=(32, 32))
    images = make_images(300, 1)
    projection = make_projection(3)
    rows = np.array([measure_embedding(preprocess(i).mean((0, 1)), projection) for i in images])
    answers = dict(zip(EMBEDDING, rows.T, strict=True))
    text = describe_rows(measure_all(images, preprocess), **answers).to_json()
    path = add_statistics(make_embedding_model(logits=False), text)
    for normalize in (True, False):
        with Embedder(path, monitor=True, normalize=normalize) as embed:
            assert embed.monitor is not None
            for image in make_images(100, 2):
                embed(image)
            assert embed.monitor.read().raised == ()
            for image in make_images(200, 3):
                embed(image // np.array([1, 1, 4], np.uint8))
            assert any(name.startswith("embedding") for name in embed.monitor.read().raised)


@pytest.mark.parametrize("window", [1, 49, 0])
def test_small_windows_are_refused(monitored: Path, window: int) -> None:
    with pytest.raises(ValueError, match="monitor must be true, or 50 images or more, found"):
        Classifier(monitored, monitor=window)


def drift_of(here: float, there: float, *, raised: bool = True) -> StatisticDrift:
    return StatisticDrift(0.5, 0.1, 200, here, there, raised=raised)


@pytest.mark.parametrize(
    ("name", "here", "there", "words"),
    [
        (
            "score",
            0.62,
            0.94,
            "scores are lower than at export (median 0.62, there 0.94): these images differ",
        ),
        ("brightness", 0.9, 0.5, "images are brighter than at export (median 0.900, there 0.500)"),
        ("size", 8.0, 10.0, "images are smaller than at export (median 256 pixels per edge, there 1024"),
        ("shape", 1.0, 0.0, "images are wider than at export (median 2.00 times as wide as high, there 1.00"),
        (
            "warmth",
            0.0,
            0.2,
            "images are bluer than at export (median a ratio of 1.00, there a ratio of 1.22)",
        ),
        ("peak", 1.0, 1.0, "the peak is distributed otherwise than at export (median 1.000, there 1.000)"),
        ("embedding 2", 0.1, 0.9, "embeddings are different than at export"),
    ],
)
def test_the_sentence_says_what_changed_and_where_to_look(
    name: str, here: float, there: float, words: str
) -> None:
    found = {name: drift_of(here, there), "contrast": drift_of(1, 0, raised=False)}
    report = DriftReport(500, 200, 5000, found)
    assert words in report.sentence
    assert "look at" in report.sentence
    assert report.sentence.endswith("(200 images against 5,000 at export)")


def test_nothing_of_it_is_loaded_until_it_is_asked_for(model: Path) -> None:
    script = (
        "import sys, runtime\n"
        "for name in runtime.__all__: getattr(runtime, name)\n"
        f"runtime.Classifier({str(model)!r}).warm_up()\n"
        "print([name for name in sys.modules if name.startswith('runtime.monitor')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
