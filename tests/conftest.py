"""What tests of several rooms share: real pictures, and two models that are trained once a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: the working directory of commands that are run as a user runs them."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = ROOT.parent / "shared"
    return folder if folder.is_dir() else pytest.skip("needs the real photos in ../shared")


@pytest.fixture(scope="session")
def imagenet_photos(shared: Path) -> list[Path]:
    photos = sorted((shared / "data" / "imagenet-200").glob("*.JPEG"))
    return photos or pytest.skip("needs the 200 ImageNet photos in ../shared/data/imagenet-200")


@pytest.fixture(scope="session")
def flowers(shared: Path) -> Path:
    folder = shared / "data" / "flowers-500"
    return folder if folder.is_dir() else pytest.skip("needs the flowers in ../shared/data/flowers-500")


@pytest.fixture(scope="session")
def fashion() -> Path:
    from vit.data import FASHION_FOLDER

    if not FASHION_FOLDER.is_dir():
        pytest.skip(f"needs Fashion-MNIST in {FASHION_FOLDER}: apt-get install dataset-fashion-mnist")
    return FASHION_FOLDER


@pytest.fixture(scope="session")
def two_threads() -> Iterator[None]:
    """torch on two threads: training repeats bit for bit only for the same number of them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits_checkpoint(tmp_path_factory: pytest.TempPathFactory, two_threads: None) -> Path:
    """The embedded example, trained now (half a minute on two cores)."""
    from vit.train import train_digits

    return train_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def fashion_checkpoint(tmp_path_factory: pytest.TempPathFactory, fashion: Path, two_threads: None) -> Path:
    """A small ViT trained now on Fashion-MNIST (a minute on two cores)."""
    from vit.train import train_fashion_quick

    return train_fashion_quick(tmp_path_factory.mktemp("fashion"))
