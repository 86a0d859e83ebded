"""Kinds of files by their first bytes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.command.file_kinds import detect_file_kind, refuse_kinds
from runtime.errors import InputError
from runtime.images.find_images import image_suffixes


@pytest.mark.parametrize(
    "suffix",
    sorted(
        {".jpg", ".png", ".gif", ".bmp", ".tif", ".webp", ".jp2", ".ico", ".ppm", ".xbm"} & image_suffixes()
    ),
)
def test_images_are_images(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    Image.new("1" if suffix == ".xbm" else "RGB", (16, 16)).save(path)
    assert detect_file_kind(path.rename(tmp_path / "image.onnx"))[0] == "image"


@pytest.mark.parametrize("suffix", sorted(image_suffixes()))
def test_no_format_of_pillow_is_taken_for_what_is_refused(tmp_path: Path, suffix: str) -> None:
    """Of a photo that Pillow writes, nothing says that it is text or a model."""
    path = tmp_path / f"image{suffix}"
    try:
        Image.new("RGB", (16, 16), (1, 2, 3)).save(path)
    except (KeyError, OSError, ValueError, DeprecationWarning):
        pytest.skip("Pillow writes no such file")
    assert detect_file_kind(path)[0] in ("image", "unknown")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"hello\n", "text"),
        (b'{"a": 1}', "text"),
        ("é".encode() * 600, "text"),
        (b"PK\x03\x04", "zip"),
        (b"\x1f\x8b\x08", "archive"),
        (b" <!DOCTYPE html>", "page"),
        (b"<HTML>", "page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer"),
        (b"\x80\x02}q", "pickle"),
        (b"\x93NUMPY", "array"),
        (b"%PDF-1.7", "others"),
        (b"\x89HDF\r\n", "others"),
        (b"\x02\0\0\0\0\0\0\0{}", "safetensors"),
        (b"\xff\0\0\0\0\0\0\0{}", "unknown"),  # cut off
        (b"\x08\x0a\x12\x08vit-edge", "onnx"),
        (b"\x08\x07:\x10", "onnx"),
        (bytes(range(128, 200)), "unknown"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert detect_file_kind(path)[0] == kind


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    assert detect_file_kind(tmp_path) == ("folder", "an empty folder")
    (tmp_path / "x").touch()
    assert detect_file_kind(tmp_path) == ("folder", "a folder")
    assert detect_file_kind(tmp_path / "nowhere")[0] == "missing"
    (tmp_path / "loop").symlink_to("loop")
    assert detect_file_kind(tmp_path / "loop")[0] in ("unknown", "missing")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert detect_file_kind(tmp_path / "pipe")[0] == "device"  # opening it would wait for ever


def test_a_refusal_says_expected_found_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path, format="PNG")
    with pytest.raises(InputError, match=r"model.onnx: expected a model, found a PNG image; give one$"):
        refuse_kinds(path, ("image",), "a model", "give one")
    refuse_kinds(path, ("text",), "a model", "give one")
