"""Which build of PyTorch is installed: an index on loopback stands in for PyTorch's own."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tools import install

WANTED = "torch==" + re.search(r"^torch==(.*)$", (install.ROOT / "constraints.txt").read_text(), re.M)[1]
VERSION = WANTED.removeprefix("torch==")


def write_wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """Write a wheel that holds nothing but its metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {each}" for each in requires]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def write_cuda_build(folder: Path) -> None:
    write_wheel(folder, "torch", VERSION, "nvidia_nothing")
    write_wheel(folder, "nvidia_nothing", "1.0")


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder of folders of wheels as an index that pip understands."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def bare_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip as on a machine where nobody has configured it, and no place to go to."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(install, "CPU_INDEX", "http://127.0.0.1:9/simple")


def installed(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines that `install_torch` prints."""
    install.install_torch(Path(sys.executable), ["--dry-run"])
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("install: ")]


@pytest.mark.usefixtures("bare_pip")
@pytest.mark.skipif(sys.platform != "linux", reason="the default index has builds with CUDA on Linux alone")
def test_on_an_ordinary_machine_it_comes_from_the_index_of_cpu_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_wheel(tmp_path / "torch", "torch", f"{VERSION}+cpu")
    with serve(tmp_path) as index:
        monkeypatch.setattr(install, "CPU_INDEX", index)
        first, second = installed(capfd)
    assert re.fullmatch(
        rf"install: loading {WANTED} from PyTorch's index of CPU builds: a CPU build, \d+ MB", first
    )
    assert "its hash is not one of requirements/torch.txt" in second


@pytest.mark.usefixtures("bare_pip")
def test_offline_it_comes_from_the_wheels_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_wheel(tmp_path, "torch", f"{VERSION}+cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    first, _ = installed(capfd)
    assert "from pip's own configuration (find-links, no-index): a CPU build" in first


@pytest.mark.usefixtures("bare_pip")
def test_configured_wheels_with_cuda_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_cuda_build(tmp_path / "cuda")
    write_wheel(tmp_path / "cpu" / "torch", "torch", f"{VERSION}+cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "cuda"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with serve(tmp_path / "cpu") as index:
        monkeypatch.setattr(install, "CPU_INDEX", index)
        first, _ = installed(capfd)
    assert "from PyTorch's index of CPU builds: a CPU build" in first


@pytest.mark.usefixtures("bare_pip")
def test_where_there_is_no_cpu_build_the_one_with_cuda_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_cuda_build(tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    first, _ = installed(capfd)
    assert "from the default index: the build with CUDA, since no CPU build was found, " in first


@pytest.mark.usefixtures("bare_pip")
def test_without_any_source_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(LookupError, match=f"expected {WANTED} .* found none; connect .* PIP_FIND_LINKS"):
        install.install_torch(Path(sys.executable), ["--dry-run"])


def test_the_locks_hold_the_tested_versions_with_hashes() -> None:
    tested = dict(line.split("==") for line in read("constraints.txt") if not line.startswith("#"))
    tested = {canonical(name): version for name, version in tested.items()}
    for name in ("export", "dev", "beside", "torch"):
        lines = read(f"requirements/{name}.txt")
        pins = [re.match(r"([\w.-]+)==([\w.]+)", line) for line in lines if line[0] not in "# "]
        assert pins
        # What runs on other systems alone is not tested here.
        others = {"httpx2-jsfetch"}
        assert {pin[1]: pin[2] for pin in pins if pin[1] not in others and tested.get(pin[1]) != pin[2]} == {}
        assert sum("--hash=sha256:" in line for line in lines) >= len(pins)
    assert not [
        line for line in read("requirements/dev.txt") + read("requirements/export.txt") if "nvidia" in line
    ]


def test_the_locks_have_every_package_of_their_extra() -> None:
    for extra, names in install.LOCKED.items():
        pins = {line.partition("==")[0] for name in names for line in read(f"requirements/{name}.txt")}
        assert {canonical(each) for each in install.requirements_of([extra])} - pins == {"torch"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read(name: str) -> list[str]:
    return (install.ROOT / name).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["nonsense"], "expected extras of pyproject.toml (cpu, gpu"), (["cpu,gqu"], "found gqu")],
)
def test_wrong_words_are_one_line(words: list[str], expected: str) -> None:
    script = install.ROOT / "tools" / "install.py"
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert expected in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the default index has builds with CUDA on Linux alone")
def test_nothing_of_cuda_is_asked_for_on_an_ordinary_machine(tmp_path: Path) -> None:
    """Both installations of the Makefile, with pip as nobody has configured it; it needs a network."""
    write_wheel(tmp_path / "torch", "torch", f"{VERSION}+cpu")
    script = install.ROOT / "tools" / "install.py"
    for extra in ("export", "dev"):
        with serve(tmp_path) as index:
            own = {"PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null", "VIT_EDGE_TORCH_INDEX": index}
            command = [sys.executable, script, extra, "--venv", tmp_path / "venv", "--dry-run"]
            done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        asked = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("Would install ")]
        assert asked[0] == [f"torch-{VERSION}+cpu"]
        assert len(asked[1]) > 25
        assert not [name for line in asked for name in line if install.CUDA.match(name)]
