"""The digits in other runtimes: OpenVINO, ONNX Runtime in Node, ONNX Runtime in WebAssembly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime import read_metadata
from runtime.command.line import is_installed
from runtime.errors import install_line
from tools.devices.cpus import CPUS
from tools.devices.emulate import REPOSITORY, Machine

VERSIONS = {"onnxruntime-node": "1.30.0", "onnxruntime-web": "1.30.0"}
HERE = "this machine"
AVX2 = "this machine, ONEDNN_MAX_CPU_ISA=AVX2 (without VNNI)"


class EngineError(RuntimeError):
    """Another runtime cannot be used; the message says what to install."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run a file: where, under which name, with which command."""

    cpu: str
    engine: str
    command: Sequence[str]  # MODEL PIXELS HEIGHT WIDTH [EXACT] follow
    cwd: Path = REPOSITORY
    environment: Mapping[str, str] = field(default_factory=dict)
    exact: str | None = None  # the last argument, for JavaScript


def measure_engine(name: str, folder: Path, work: Path) -> list[dict[str, Any]]:
    """Run the float and the INT8 file of an artifact in another runtime, in each way there is.

    Args:
        name: a key of `ENGINES`.
        folder: the artifact; the images are in `images` beside it.
        work: where packages are kept.

    Returns:
        For each way the figures that `tools.devices.probe` gives, as far as the runtime tells them.

    Raises:
        EngineError: when the runtime is not installed, or fails.
    """
    metadata = read_metadata(folder / "model.int8.onnx")
    pixels = work / "pixels.raw"
    paths = sorted((folder.parent / "images").iterdir())
    pixels.write_bytes(b"".join(metadata.preprocess(path).tobytes() for path in paths))
    found = []
    for way in ENGINES[name](work):
        exact, int8 = (
            _logits(way, folder / file, pixels, metadata.preprocess.size)
            for file in ("model.onnx", "model.int8.onnx")
        )
        found.append(
            {
                "cpu": way.cpu,
                "engine": way.engine,
                "target": metadata.target,
                "sqnr": float(10 * np.log10(np.square(exact).sum() / np.square(exact - int8).sum())),
                "float_labels": exact.argmax(1).tolist(),
                "labels": int8.argmax(1).tolist(),
            }
        )
    return found


def _logits(way: Way, model: Path, pixels: Path, size: tuple[int, int]) -> np.ndarray:
    arguments = [str(model), str(pixels), *map(str, size), *([way.exact] if way.exact is not None else [])]
    done = subprocess.run(
        [*way.command, *arguments],
        cwd=way.cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | way.environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise EngineError(f"{way.engine} failed on {way.cpu}: {done.stderr.strip()[-1000:]}")
    return np.array(json.loads(done.stdout), np.float32)


def _openvino(_work: Path) -> list[Way]:
    command = [sys.executable, "-m", "tools.devices.engine_openvino"]
    if not is_installed("openvino"):
        raise EngineError(f"OpenVINO is not installed; {install_line('bench')}")
    without = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    return [
        Way(cpu=HERE, engine="OpenVINO", command=command),
        Way(cpu=AVX2, engine="OpenVINO", command=command, environment=without),
    ]


def _node(work: Path) -> list[Way]:
    folder, command = _package("onnxruntime-node", work)
    cpu = CPUS["haswell"]
    emulated, environment = Machine(cpu, work / "haswell", work / "haswell").prefix()
    ways = [Way(cpu=HERE, engine="Node", command=command, cwd=folder, exact="0")]
    for exact, engine in (("0", "Node"), ("1", "Node, exact kernels")):
        slow = [*emulated, *command]
        name = f"haswell ({cpu.note})"
        ways.append(
            Way(cpu=name, engine=engine, command=slow, cwd=folder, exact=exact, environment=environment)
        )
    return ways


def _wasm(work: Path) -> list[Way]:
    folder, command = _package("onnxruntime-web", work)
    return [Way(cpu="any, in Node", engine="WebAssembly", command=command, cwd=folder, exact="0")]


ENGINES: Mapping[str, Callable[[Path], list[Way]]] = {"openvino": _openvino, "node": _node, "wasm": _wasm}


def _package(name: str, work: Path) -> tuple[Path, list[str]]:
    """Install an npm package below `work` and return its folder and the command that uses it."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise EngineError("expected node and npm, not found; apt-get install nodejs npm")
    folder = work / name
    if not (folder / "node_modules" / name).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}\n')
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--silent", f"{name}@{VERSIONS[name]}"]
        done = subprocess.run([npm, "install", *options], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise EngineError(f"npm install {name} failed: {done.stderr.strip()[-500:]}")
    return folder, [node, str(Path(__file__).with_name("engine.mjs")), name]
