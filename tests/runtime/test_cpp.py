"""The C++ example gives the logits that Python gives, to the last bit."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime import Metadata, Preprocess
from runtime.onnx_runtime import onnxruntime
from runtime.session import open_session

ROOT = Path(__file__).parents[2]
SOURCE, HEADERS = ROOT / "examples/cpp/classify.cpp", ROOT / "data/onnxruntime-headers"
LIBRARIES = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
COMPILER = shutil.which("c++")
SIZE, CLASSES = (4, 6), 5

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: apt-get install g++"),
    pytest.mark.skipif(not HEADERS.is_dir(), reason="needs data/onnxruntime-headers: make borrow"),
    pytest.mark.skipif(not LIBRARIES, reason="this package of ONNX Runtime has no shared library for Linux"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cpp")


def compiled(folder: Path, kind: str | None = None) -> Path:
    """Compile the example for the CPU at hand, or with a kind that is pretended."""
    program = folder / f"classify-{kind}"
    if not program.exists():
        library = folder / "libonnxruntime.so.1"  # the name that the linker writes into the program
        if not library.exists():
            library.symlink_to(LIBRARIES[0])
        pretend = [f'-DCPU_KIND="{kind}"'] if kind is not None else []
        options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *pretend, "-isystem", str(HEADERS)]
        link = [str(library), f"-Wl,-rpath,{folder}"]
        command = [str(COMPILER), *options, str(SOURCE), "-o", str(program), *link]
        subprocess.run(command, check=True, capture_output=True)
    return program


def classify(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True)


def int8_graph() -> onnx.ModelProto:
    """uint8 [N, H, W, 3] through one linear layer in integers: `CLASSES` logits, weights -127 to 127."""
    rng = np.random.default_rng(0)
    inputs = SIZE[0] * SIZE[1] * 3
    arrays = {
        "shape": np.array([0, inputs]),
        "one": np.float32(1),
        "middle": np.uint8(128),
        "weight": rng.integers(-127, 128, (inputs, CLASSES)).astype(np.int8),
        "scale": rng.random(CLASSES, np.float32) * np.float32(1e-3),
        "zeros": np.zeros(CLASSES, np.int8),
        "bias": rng.integers(-1000, 1000, CLASSES).astype(np.int32),
        "bias_zeros": np.zeros(CLASSES, np.int32),
    }
    nodes = [
        helper.make_node("Reshape", ["pixels", "shape"], ["rows"]),
        helper.make_node("DequantizeLinear", ["rows", "one", "middle"], ["x"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zeros"], ["w"], axis=1),
        helper.make_node("DequantizeLinear", ["bias", "scale", "bias_zeros"], ["b"], axis=0),
        helper.make_node("Gemm", ["x", "w", "b"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def written(folder: Path, text: str | None) -> Path:
    path = folder / "model.onnx"
    model = int8_graph()
    if text is not None:
        helper.set_model_props(model, {"vit_edge": text})
    path.write_bytes(model.SerializeToString())
    return path


def metadata(**changes: object) -> str:
    # A label that looks like the field that the example searches for.
    labels = ('"exact_on": ["other", "x86"]', *"bcde")
    values = dict(variant="int8", preprocess=Preprocess(size=SIZE), labels=labels, target="full-range")
    return Metadata(**values | changes).to_json()  # type: ignore[arg-type]


def image_file(folder: Path, count: int) -> tuple[Path, np.ndarray]:
    pixels = np.random.default_rng(1).integers(0, 256, (count, *SIZE, 3)).astype(np.uint8)
    path = folder / "pixels.raw"
    path.write_bytes(pixels.tobytes())
    return path, pixels


def numbers(text: str) -> np.ndarray:
    return np.array([line.split() for line in text.splitlines()], np.float32)


@pytest.mark.parametrize("target", ["any-cpu", "full-range"])
@pytest.mark.parametrize("count", [1, 5])
def test_the_same_logits_to_the_last_bit(folder: Path, target: str, count: int) -> None:
    model = written(folder, metadata(target=target))
    path, pixels = image_file(folder, count)
    done = classify(compiled(folder), model, path)
    assert done.returncode == 0, done.stderr
    session = open_session(model, device="cpu", threads=1, target=target)  # type: ignore[arg-type]
    np.testing.assert_array_equal(numbers(done.stdout), session.run(None, {"pixels": pixels})[0])


@pytest.mark.parametrize(
    ("kind", "target", "code"),
    [("x86", "full-range", 0), ("x86", "any-cpu", 0), ("arm64", "full-range", 0), ("other", "any-cpu", 1)],
)
def test_it_decides_by_the_list_in_the_metadata(folder: Path, kind: str, target: str, code: int) -> None:
    """Exact kernels give the same numbers on every CPU; without the list the program gives up."""
    path, _ = image_file(folder, 2)
    done = classify(compiled(folder, kind), written(folder, metadata(target=target)), path)
    assert done.returncode == code, done.stderr
    if code:
        assert "not tested on this kind of CPU" in done.stderr
    else:
        here = classify(compiled(folder), written(folder, metadata(target=target)), path)
        assert done.stdout == here.stdout


@pytest.mark.parametrize(
    ("text", "bytes_", "message"),
    [
        (None, b"", "expected a vit-edge model"),
        (metadata().replace('"version": 2', '"version": 3'), b"", "metadata of version 2"),
        (metadata().replace('"exact_on": ["x86', '"exact": ["x86'), b"", "expected a vit-edge model"),
        (metadata(), b"", "expected PIXELS of a multiple of 72 bytes"),
        (metadata(), b"1" * 73, "expected PIXELS of a multiple of 72 bytes"),
    ],
)
def test_what_it_cannot_use_is_one_line(folder: Path, text: str | None, bytes_: bytes, message: str) -> None:
    path = folder / "some.raw"
    path.write_bytes(bytes_)
    done = classify(compiled(folder), written(folder, text), path)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_it_does_not_phone_home(folder: Path, in_fresh_home: Callable[..., list[str]]) -> None:
    command = (compiled(folder), written(folder, metadata()), image_file(folder, 1)[0])
    assert in_fresh_home(*command) == []
    assert in_fresh_home(*command, ORT_DISABLE_TELEMETRY="") == []
    if b"ORT_DISABLE_TELEMETRY" in LIBRARIES[0].read_bytes():  # what a user has set stays
        assert any("Microsoft" in trace for trace in in_fresh_home(*command, ORT_DISABLE_TELEMETRY="0"))


@pytest.mark.parametrize("arguments", [(), ("model.onnx",)])
def test_wrong_use(folder: Path, arguments: Sequence[str]) -> None:
    done = classify(compiled(folder), *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: classify MODEL PIXELS")
