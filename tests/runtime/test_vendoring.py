"""A copy of the folder runtime/ under an app's own name, where nothing of this project is to be found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Every module is imported, so that a name of the original anywhere would be found.
ALL_MODULES = """
import importlib, pkgutil, sys
import {package} as package
assert package.__file__.startswith({folder!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    # Ray is not installed.
    if not module.name.endswith((".__main__", ".ray_cluster", ".ray_engine", ".ray_command")):
        importlib.import_module(module.name)
assert [getattr(package, name).__module__ for name in package.__all__]
strangers = {{"runtime", "vit", "export", "calibration"}} & set(sys.modules)
assert not strangers, strangers
"""
WITH_WORKERS = """
import multiprocessing, pickle, sys
from concurrent.futures import ProcessPoolExecutor
from {package} import Classifier, ImageError

def classify(path):
    return CLASSIFY(path)

def start(model):
    global CLASSIFY
    CLASSIFY = Classifier(model, threads=1)

if __name__ == "__main__":
    model, *paths = sys.argv[1:]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=start, initargs=(model,)) as pool:
        for prediction in pool.map(classify, paths[:-1]):
            assert pickle.loads(pickle.dumps(prediction)) == prediction
            print(type(prediction).__module__, prediction.label)
        try:
            pool.submit(classify, paths[-1]).result()
        except ImageError as error:
            print(error)
"""


@pytest.fixture(params=["edge_vision", "app.vision"])
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The name of the copy, at the top or in a package of the app, and the folder of the app."""
    home = tmp_path / "app folder"
    place = home.joinpath(*request.param.split("."))
    shutil.copytree(ROOT / "runtime", place, ignore=shutil.ignore_patterns("__pycache__"))
    for package in place.relative_to(home).parents[:-1]:
        (home / package / "__init__.py").write_text("")
    return request.param, home


def run(home: Path, *command: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=home, env=environment, capture_output=True, text=True
    )


def test_nothing_in_the_copy_asks_for_the_original(copied: tuple[str, Path]) -> None:
    package, home = copied
    done = run(home, "-c", ALL_MODULES.format(package=package, folder=str(home)))
    assert done.returncode == 0, done.stderr


def test_the_copy_is_a_command(copied: tuple[str, Path], model: Path, images: Path) -> None:
    package, home = copied
    done = run(home, "-m", package, model, images / "a.png")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] == "red"
    shown = run(home, "-m", package, "--help").stdout
    assert f"usage: python -m {package} " in shown
    assert "-m runtime" not in shown
    refused = run(home, "-m", package, model, images / "none.png")
    assert (refused.returncode, refused.stderr.split(":")[0]) == (2, package)


def test_the_copy_works_in_processes_that_are_spawned(
    copied: tuple[str, Path], model: Path, images: Path
) -> None:
    package, home = copied
    script = home / "main.py"
    script.write_text(WITH_WORKERS.format(package=package))
    done = run(home, script, model, images / "a.png", images / "b.jpg", images / "empty.jpg")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{package}.results red",
        f"{package}.results green",
        f"{images / 'empty.jpg'}: it is empty (zero bytes)",
    ]
