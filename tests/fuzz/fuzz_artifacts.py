"""Fuzz the checking of model files: any bytes are a model's metadata or an ArtifactError.

    pip install atheris
    python tests/fuzz/fuzz_artifacts.py CORPUS -max_total_time=600

CORPUS is a folder with a small exported model (and the metadata of one as a .json), which grows.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports():
    from runtime.model_file.artifact import ArtifactError, Metadata, _metadata
    from runtime.model_file.onnx_file import OnnxError, summarize_onnx


def check_message(text: str) -> None:
    assert text.isprintable()
    assert len(text) < 500


def one_input(data: bytes) -> None:
    try:
        metadata = _metadata(summarize_onnx(data))
        assert Metadata.from_json(metadata.to_json()) == metadata
    except (ArtifactError, OnnxError) as error:
        check_message(str(error))
    try:
        metadata = Metadata.from_json(data.decode("utf-8", "surrogateescape"))
        assert Metadata.from_json(metadata.to_json()) == metadata
    except ArtifactError as error:
        check_message(str(error))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
