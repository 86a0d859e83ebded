"""Damage to a model file that still parses: found by the SHA-256 that the file ends with."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from export import write_artifact as files
from export.write_artifact import write_model
from runtime import ArtifactError, Classifier, Embedder, read_metadata
from runtime.__main__ import main
from runtime.model_file.artifact import read_artifact
from runtime.model_file.integrity import DIGEST_BYTES, DIGEST_KEY
from runtime.model_file.onnx_file import summarize_onnx

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


@pytest.fixture
def written(make_embedding_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A small model file as an export writes it, with logits and an embedding."""
    plain = make_embedding_model("plain.onnx")
    path = tmp_path / "written.onnx"
    write_model(path, ir.from_proto(onnx.load(plain)), read_metadata(plain))
    return path


def flips(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield copies of a file with one bit changed, and where: all of its end, then anywhere."""
    draw = random.Random(seed)
    end = 8 * (len(data) - DIGEST_BYTES)
    places = [
        *draw.sample(range(end, 8 * len(data)), count // 5),
        *draw.sample(range(end), count - count // 5),
    ]
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        yield place, bytes(changed)


def opened(data: bytes) -> bool:
    try:
        Classifier(data, threads=1)
    except ArtifactError:
        return False
    return True


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_flipped_bit_never_opens(written: Path, count: int) -> None:
    data = written.read_bytes()
    assert opened(data)
    assert [place for place, changed in flips(data, count) if opened(changed)] == []


def test_every_bit_of_the_last_entry_and_of_the_metadata_counts(written: Path) -> None:
    """Those of its name and its lengths too: a file does not lose its digest by damage."""
    data = written.read_bytes()
    start = data.index(b'"digest": "sha256"') - 8
    for place in range(8 * start, 8 * len(data)):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(ArtifactError):
            read_metadata(bytes(changed))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data[:-DIGEST_BYTES],
        lambda data: data + b"\0",
        lambda data: data + data[-DIGEST_BYTES:],  # the same entry twice
        lambda data: data + b"\x32\x04more",  # a doc_string, which changes nothing
        lambda data: b"\x12\x02pt" + data,  # a producer_name before it
        lambda data: swap_blocks(data),
        lambda data: data[:-DIGEST_BYTES] + bytes(DIGEST_BYTES),
        lambda data: data[:-64] + b"0" * 64,
        lambda data: data[:-64] + data[-64:].upper(),
    ],
)
def test_other_damage_is_found(written: Path, change: Callable[[bytes], bytes]) -> None:
    data = written.read_bytes()
    assert change(data) != data
    assert not opened(change(data))
    written.write_bytes(change(data))
    for use in (Classifier, Embedder, read_metadata):
        with pytest.raises(ArtifactError, match=r"written\.onnx: "):
            use(written)  # type: ignore[operator]


def swap_blocks(data: bytes) -> bytes:
    """Return the file with two of its weights in each other's place."""
    weights = np.float32(0.1).tobytes()
    first = data.index(weights)
    block, other = data[first : first + 4], data[first + 4 : first + 8]
    return data[:first] + other + block + data[first + 8 :]


def test_the_reason_of_a_damaged_file_says_what_to_do(written: Path) -> None:
    written.write_bytes(swap_blocks(written.read_bytes()))
    with pytest.raises(ArtifactError) as caught:
        Classifier(written)
    assert str(caught.value) == (
        f"{written}: its bytes are not those that were written (it ends with another SHA-256): it was "
        "damaged or changed; copy it again, or export it again"
    )


def test_the_command_refuses_it_in_one_line(
    written: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written.write_bytes(swap_blocks(written.read_bytes()))
    assert main([str(written), str(images / "a.png")]) == 2
    assert main([str(written), str(images / "a.png"), "--embeddings", str(images.parent / "out.npy")]) == 2
    told = capsys.readouterr()
    assert (told.out, len(told.err.splitlines())) == ("", 2)
    assert told.err.count("it was damaged or changed") == 2


def test_javascript_refuses_it_too(written: Path, images: Path) -> None:
    package = Path(__file__).parents[3] / "javascript"
    if shutil.which("node") is None or not (package / "node_modules").is_dir():
        pytest.skip("needs node, and javascript/node_modules: make borrow")

    def classify() -> subprocess.CompletedProcess[str]:
        command = ["node", str(package / "classify.mjs"), str(written), str(images / "a.png")]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert json.loads(classify().stdout)["label"] == "red"
    written.write_bytes(swap_blocks(written.read_bytes()))
    refused = classify()
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"{written}: its bytes are not those that were written")


def test_a_structural_refusal_keeps_its_own_reason(written: Path) -> None:
    proto = onnx.load(written)
    proto.graph.node[0].domain = "com.evil"
    written.write_bytes(proto.SerializeToString())
    with pytest.raises(ArtifactError, match=r"com\.evil"):
        Classifier(written)
    proto.graph.node[0].domain = ""
    proto.graph.output[0].name = proto.graph.output[1].name
    written.write_bytes(proto.SerializeToString())
    with pytest.raises(ArtifactError, match=r"ONNX Runtime does not accept it|the output of its graph"):
        Classifier(written)


def test_it_opens_and_says_that_it_was_checked(written: Path, tmp_path: Path) -> None:
    data = written.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    for source in (written, data):
        info = Classifier(source, sha256=digest).info
        assert (info.digest, info.sha256) == ("sha256", digest)
    assert Classifier(written).info.sha256 == read_artifact(written).sha256 == digest
    assert read_metadata(tmp_path / "plain.onnx").digest is None
    assert Classifier(tmp_path / "plain.onnx").info.digest is None  # as other programs write it


LATE = """
import atexit, sys, threading
from runtime import Classifier

def late():
    print(Classifier(sys.argv[1]).info.digest)

def later():
    threading.main_thread().join()
    late()

threading.Thread(target=later).start() if sys.argv[2] == "thread" else atexit.register(late)
"""


@pytest.mark.parametrize("how", ["thread", "atexit"])
def test_it_opens_while_the_process_ends(how: str, written: Path) -> None:
    """The pools of Python take no work once the main thread has ended."""
    command = [sys.executable, "-c", LATE, str(written), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("sha256\n", "")


def test_it_opens_where_no_thread_can_be_started(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    data = written.read_bytes()
    damaged = swap_blocks(data)
    monkeypatch.setattr(threading.Thread, "start", fail)
    assert read_metadata(data).digest == read_metadata(written).digest == "sha256"
    with pytest.raises(ArtifactError, match="not those that were written"):
        read_metadata(damaged)


def test_the_digest_is_what_the_page_says(written: Path) -> None:
    data = written.read_bytes()
    assert data[-64:].decode() == hashlib.sha256(data[:-DIGEST_BYTES]).hexdigest()
    assert summarize_onnx(data).metadata[DIGEST_KEY] == data[-64:].decode()
    assert list(summarize_onnx(data).metadata)[-1] == DIGEST_KEY
    onnx.checker.check_model(onnx.load(written))
    if shutil.which("sha256sum"):
        shell = f"head -c -{DIGEST_BYTES} '{written}' | sha256sum"
        done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
        assert done.stdout[:64] == data[-64:].decode()


def test_two_exports_give_the_same_bytes(written: Path) -> None:
    before = written.read_bytes()
    model, metadata = ir.from_proto(onnx.load(written)), read_metadata(written)
    assert write_model(written, model, metadata) == (len(before), hashlib.sha256(before).hexdigest())
    assert written.read_bytes() == before


def test_another_program_that_writes_metadata_promises_no_digest(written: Path) -> None:
    proto, metadata = onnx.load(written), read_metadata(written)
    changed = replace(metadata, labels=("x", "y", "z"))
    assert (metadata.digest, changed.digest) == ("sha256", "sha256")  # of the file that was read
    onnx.helper.set_model_props(proto, {"vit_edge": changed.to_json()})
    written.write_bytes(proto.SerializeToString())
    info = Classifier(written).info
    assert (info.labels, info.digest) == (("x", "y", "z"), None)
    assert read_metadata(written) == changed


def test_another_program_that_keeps_the_metadata_breaks_the_promise(written: Path) -> None:
    proto = onnx.load(written)
    for keep in (2, 1):
        del proto.metadata_props[keep:]
        proto.doc_string = "opened and saved"
        written.write_bytes(proto.SerializeToString())
        with pytest.raises(ArtifactError, match="not those that were written"):
            Classifier(written)


@pytest.mark.parametrize("digest", ["sha1", "", 1, True, ["sha256"]])
def test_a_digest_of_another_kind_is_refused(digest: object, written: Path) -> None:
    document = json.loads(read_metadata(written).to_json()) | {"digest": digest}
    with pytest.raises(ArtifactError, match="digest"):
        type(read_metadata(written)).from_json(json.dumps(document))


def test_weights_in_a_second_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata, model = read_metadata(written), ir.from_proto(onnx.load(written))
    monkeypatch.setattr(files, "ONE_FILE", 1)
    monkeypatch.setattr(files, "SMALL", 32)
    write_model(written, model, metadata)
    (beside,) = written.parent.glob(f"{written.name}.*.data")
    assert Classifier(written)(IMAGE).label
    for path in (written, beside):
        data = path.read_bytes()
        for _, changed in flips(data, min(100, 4 * len(data))) if path is written else each_bit(data):
            path.write_bytes(changed)
            with pytest.raises(ArtifactError):
                read_metadata(path if path is written else written)
        path.write_bytes(data)


def each_bit(data: bytes) -> Iterator[tuple[int, bytes]]:
    for place in range(0, 8 * len(data), 7):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        yield place, bytes(changed)
