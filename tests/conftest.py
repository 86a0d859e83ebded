"""Fixtures of several packages: real images, small random models, two models trained once a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import Phase, settings

if TYPE_CHECKING:  # the runtime's tests run without these
    import onnx_ir as ir

    from vit.model import ViT

ROOT = Path(__file__).parents[1]

# No lines of progress in what commands print: whether one is due depends on how busy the machine is.
os.environ["VIT_EDGE_PROGRESS"] = "0"

# torch on one thread, here and in what the tests start: training repeats bit for bit only for the same number
# of threads, tiny tensors gain nothing from two, and two that wait for each other on a busy machine take ten
# times the CPU time (60 s of CPU for a fine-tuning of 6).
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run: a change makes a test fail, and not chance. Shared CPUs are slow at times.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
# make mutants: that a test fails is enough, a small example of it would take minutes.
settings.register_profile("mutants", derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: the working directory of commands that are run as a user runs them."""
    return ROOT


@pytest.fixture
def new_python(tmp_path: Path) -> Path:
    """The interpreter of an environment with pip and nothing else."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


# ONNX Runtime itself sends nothing where one of these is set, which would hide that we let it.
CI_VARIABLES = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "TRAVIS", "JENKINS_URL",
                "CODEBUILD_BUILD_ID", "BUILDKITE", "TEAMCITY_VERSION", "APPVEYOR")  # fmt: skip
LOOK_UP = re.compile(r"/etc/resolv\.conf|/etc/hosts|io\.systemd\.Resolve|htons\(53\)")


@pytest.fixture
def in_fresh_home(tmp_path: Path) -> Callable[..., list[str]]:
    """Run a command as on a user's new machine, and return the traces: files it left, names it looked up.

    Where strace is not installed, or not allowed, no look-up is seen.
    """
    log = tmp_path / "strace.txt"
    strace = ["strace", "-f", "--seccomp-bpf", "-o", log, "-e", "trace=openat,connect"]
    if shutil.which("strace") is None or subprocess.run([*strace, "true"], capture_output=True).returncode:
        strace = []

    def run(*command: Any, folder: Path = ROOT, **environment: str) -> list[str]:
        home = Path(tempfile.mkdtemp(prefix="home-", dir=tmp_path))
        left_out = {*CI_VARIABLES, "ORT_DISABLE_TELEMETRY"}
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in left_out and not name.startswith("XDG_")
        }
        homes = dict.fromkeys(("HOME", "USERPROFILE", "LOCALAPPDATA", "APPDATA"), str(home))
        kept |= {**homes, "PYTHONPATH": str(ROOT), **environment}
        line = [str(word) for word in (*strace, *command)]
        done = subprocess.run(line, cwd=folder, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        files = [str(path.relative_to(home)) for path in sorted(home.rglob("*")) if path.is_file()]
        calls = log.read_text(errors="replace").splitlines() if strace else []
        return files + [call for call in calls if LOOK_UP.search(call)]

    return run


@pytest.fixture(scope="session")
def start(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run `python -m MODULE …` or `python -c CODE …`, its imports done (tests/preloaded.py)."""
    server: subprocess.Popen[str] | None = None

    def run(*words: Any, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        nonlocal server
        if server is None:
            program = [sys.executable, ROOT / "tests" / "preloaded.py"]
            server = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        folder = tmp_path_factory.mktemp("start")
        said = [folder / "out", folder / "err"]
        for each in said:
            each.touch()
        command = {
            "words": [str(word) for word in words],
            "cwd": str(cwd),
            "env": os.environ | {"PYTHONPATH": str(ROOT), **environment},
            "out": str(said[0]),
            "err": str(said[1]),
        }
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(command), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(command["words"], code, *(each.read_text() for each in said))

    yield run
    if server is not None:
        server.communicate()  # its input ends


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
    from vit.data.datasets import FASHION_FOLDER

    if not FASHION_FOLDER.is_dir():
        pytest.skip(f"needs Fashion-MNIST in {FASHION_FOLDER}: apt-get install dataset-fashion-mnist")
    return FASHION_FOLDER


@pytest.fixture(scope="session")
def digits_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded example, trained now (half a minute on one core)."""
    from vit.training.examples import train_example

    return train_example("digits", tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def digits_artifacts(
    start: Callable[..., subprocess.CompletedProcess[str]],
    digits_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The embedded example, exported to INT8 as the command does it."""
    out = tmp_path_factory.mktemp("artifacts")
    command = ("-m", "export", digits_checkpoint, "--quantize", "--calibration", "digits")
    done = start(*command, "--out", out, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def fashion_checkpoint(tmp_path_factory: pytest.TempPathFactory, fashion: Path) -> Path:
    """A small ViT trained now on Fashion-MNIST (half a minute on one core)."""
    from vit.training.examples import train_example

    return train_example("fashion-quick", tmp_path_factory.mktemp("fashion"))


@pytest.fixture(scope="session")
def models() -> Mapping[str, ViT]:
    from tests.support.small_models import configs, lively

    return {name: lively(config) for name, config in configs().items()}


@pytest.fixture(scope="session")
def raw_graphs(models: Mapping[str, ViT]) -> Mapping[str, ir.Model]:
    """Model that torch's exporter wrote; tests work on clones."""
    from export.sources.from_torch import export_raw_graph

    return {name: export_raw_graph(model) for name, model in models.items()}


@pytest.fixture(scope="session")
def logits_of() -> Callable[[ir.Model, np.ndarray], np.ndarray]:
    """Run a graph as it stands: ONNX Runtime's own rewrites are off."""

    import onnx_ir as ir

    from runtime.onnx_runtime import onnxruntime as ort

    def run(model: ir.Model, pixels: np.ndarray) -> np.ndarray:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        data = ir.to_proto(model).SerializeToString()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: pixels})
        return np.asarray(found)

    return run


@pytest.fixture(scope="session")
def pixels_for() -> Callable[..., np.ndarray]:
    """Random images of a model's size."""

    def make(config: Any, count: int = 3, seed: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        return random.integers(0, 256, (count, *config.image_size, 3), np.uint8)

    return make


@pytest.fixture(scope="session")
def canonical(raw_graphs: Mapping[str, ir.Model]) -> Mapping[str, ir.Model]:
    """The graphs after all rewrites, as calibration takes them; tests work on clones."""
    from export.graph.canonicalize import canonicalize

    graphs = {name: graph.clone() for name, graph in raw_graphs.items()}
    for graph in graphs.values():
        canonicalize(graph)
    return graphs
