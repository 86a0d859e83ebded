"""Installing as the pages say: a wheel from a checkout, in an environment that has what the device has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ON_A_DEVICE = ("numpy", "PIL", "onnxruntime", "flatbuffers", "google", "packaging")
UPDATES = ("sign", "verify", "install", "rollback", "status")
COMMANDS = ("train", "import", "summary", "plots", "export", "run", "check", "card", *UPDATES)
APP = """
import sys
from runtime import Classifier, ImageError

classify = Classifier(sys.argv[1])
for path in sys.argv[2:]:
    try:
        prediction = classify(path)
        print(f"{path}: {prediction.label} {prediction.score:.2f}")
    except ImageError as error:
        print(f"{path}: {error}")
"""


def run(*command: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


def files_of_the_checkout() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def copy_of_the_checkout(place: Path) -> Path:
    """Building leaves files behind, so that it is done in a copy."""
    for name in files_of_the_checkout():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name)
    return place


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, built without the network."""
    if find_spec("setuptools") is None:
        pytest.skip("needs setuptools to build without the network")
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_of_the_checkout(folder / "vit-edge")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = run(*pip, "--wheel-dir", folder, source, cwd=folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and the packages of the extra `cpu` alone."""
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder, symlinks=os.name != "nt")
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    (packages,) = folder.glob("**/site-packages")
    for name in ON_A_DEVICE:
        if (found := find_spec(name)) is not None:
            (place,) = found.submodule_search_locations or []
            for each in (Path(place), Path(place).with_name(f"{name.replace('PIL', 'pillow')}.libs")):
                if each.is_dir():
                    (packages / each.name).symlink_to(each)
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet"]
    done = run(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    return programs


def test_the_wheel_holds_the_packages_and_their_data(wheel: Path) -> None:
    done = run(sys.executable, "-m", "zipfile", "--list", wheel, cwd=wheel.parent)
    files = {line.split()[0] for line in done.stdout.splitlines()[1:]}
    for package in ("vit", "export", "calibration", "runtime"):
        assert f"{package}/py.typed" in files
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert sources <= files
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "export").rglob("*.j2")} <= files
    assert not [name for name in files if name.split("/")[0] in ("tests", "tools", "benchmarks", "examples")]


def test_an_app_outside_the_checkout(device: Path, model: Path, images: Path, tmp_path: Path) -> None:
    home = tmp_path / "elsewhere"
    home.mkdir()
    (home / "app.py").write_text(APP)
    done = run(device / "python", "app.py", model, images / "a.png", images / "empty.jpg", cwd=home)
    assert done.stderr == ""
    assert re.fullmatch(r".*a\.png: red 1\.00\n.*empty\.jpg: it is empty \(zero bytes\)\n", done.stdout)


def test_the_command_says_what_it_can_do(device: Path, tmp_path: Path) -> None:
    shown = run(device / "vit-edge", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("usage: vit-edge [-h] COMMAND ...\n")
    lines = re.findall(r"^ {4}(\w+) {2,}(\w.*)$", shown.stdout, re.M)
    assert tuple(name for name, _ in lines) == COMMANDS
    for name in COMMANDS:
        usage = run(device / "vit-edge", name, "--help", cwd=tmp_path).stdout
        assert usage.startswith(f"usage: vit-edge {name} [-h] "), usage[:200]
        assert f"python -m {name}" not in usage.replace("python -m export", "")
    wrong = run(device / "vit-edge", "traim", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "vit-edge: error: argument COMMAND: invalid choice: 'traim'" in wrong.stderr
    assert run(device / "vit-edge", cwd=tmp_path).returncode == 2


def test_the_command_labels_images(device: Path, model: Path, images: Path, tmp_path: Path) -> None:
    done = run(device / "vit-edge", "run", model, images, "--top", "1", cwd=tmp_path)
    labels = [json.loads(line)["label"] for line in done.stdout.splitlines()]
    assert labels == ["red", "green", "blue", None, None]
    assert done.returncode == 1  # two have no answer
    wrong = run(device / "vit-edge", "run", model, cwd=tmp_path)
    assert (
        "runtime: error: the following arguments are required: IMAGES; see vit-edge run --help"
        in wrong.stderr
    )


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("vit-edge", "export"), "export"),
        (("vit-edge", "export", "missing"), "export"),
        (("vit-edge", "export", "--onnx", "model.onnx"), "onnx"),
        (("vit-edge", "train", "--data", "digits", "--out", "run"), "train,cpu"),
        (("vit-edge", "import", "weights.pth", "--out", "run"), "train,cpu"),
        (("vit-edge", "plots", "run"), "train,cpu,plots"),
        (("python", "-m", "export"), "export"),
        (("python", "-m", "vit", "summary", "tiny"), "train,cpu"),
        (
            ("python", "-m", "runtime", "model.onnx", "photo.png", "--engine", "ray", "--output", "o"),
            "ray,cpu",
        ),
    ],
    ids=lambda value: "-".join(value[:3]) if isinstance(value, tuple) else "",
)
def test_a_device_says_what_to_install_for_more(
    command: tuple[str, ...], extra: str, device: Path, model: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copy(images / "a.png", tmp_path / "photo.png")
    program, *words = command
    done = run(device / program, *words, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"in a checkout of vit-edge: python tools/install.py {extra}" in line
    assert done.stdout == ""


def test_the_command_imports_nothing_heavy(device: Path, tmp_path: Path) -> None:
    script = (
        "import sys, export.command_line, runtime.command_line, vit_edge.__main__ as command; "
        "command.make_parser('x'); print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = set(run(device / "python", "-c", script, cwd=tmp_path).stdout.split())
    assert {"vit", "export", "runtime"} <= loaded
    assert not loaded & {"numpy", "PIL", "onnxruntime", "torch", "tqdm"}


def extras_in(text: str) -> list[tuple[str, str]]:
    """Return what each `pip install` with extras installs, and its extras."""
    lines = re.findall(r"pip install (?:-e )?\"?([^\s\"\[]*)\[([\w,-]+)\]\"?", text)
    return lines + [(".", extras) for extras in re.findall(r"python tools/install.py ([\w,-]+)", text)]


def test_every_line_that_installs_an_extra_works_today() -> None:
    """There is no package on a registry: a line names the checkout, or the folder that holds it."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = 0
    for name in files_of_the_checkout():
        path = ROOT / name
        if path.suffix not in (".py", ".md", ".mjs", ".toml", ".sh", "") or path == Path(__file__):
            continue
        for target, extras in extras_in(path.read_text(encoding="utf-8")):
            if target == "moto":
                continue
            found += 1
            assert target in (".", "./vit-edge"), f"{name}: pip install {target}[{extras}]"
            assert set(extras.split(",")) <= set(known["optional-dependencies"]), f"{name}: [{extras}]"
    assert found > 8


def test_what_a_device_needs_has_not_grown() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    assert [re.split(r"[<>=]", each)[0] for each in needed] == ["numpy", "pillow", "onnxruntime"]


@pytest.mark.slow
def test_the_checkout_in_an_empty_environment(
    model: Path, images: Path, tmp_path: Path, new_python: Path
) -> None:
    """The line of the pages, typed beside the checkout, brings what a device needs in less than 200 MB."""
    copy_of_the_checkout(tmp_path / "vit-edge")
    packages = next(new_python.parents[1].glob("**/site-packages"))
    before = size(packages)
    pip = [new_python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = run(*pip, "./vit-edge[cpu]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "vit-edge")
    megabytes = (size(packages) - before) / 1e6
    print(f"\n{megabytes:.0f} MB installed")
    assert megabytes < 200
    answer = run(new_python, "-m", "runtime", model, images / "a.png", cwd=tmp_path)
    assert json.loads(answer.stdout)["label"] == "red", answer.stderr
    answer = run(new_python.with_name("vit-edge"), "run", model, images / "b.jpg", cwd=tmp_path)
    assert json.loads(answer.stdout)["label"] == "green", answer.stderr


@pytest.mark.slow
def test_make_wheel_and_a_device_without_the_checkout(
    model: Path, images: Path, tmp_path: Path, new_python: Path
) -> None:
    source = copy_of_the_checkout(tmp_path / "vit-edge")
    (source / "build" / "lib" / "runtime").mkdir(parents=True)
    (source / "build" / "lib" / "runtime" / "gone.py").write_text("a file of an earlier build")
    made = run("make", "wheel", f"PYTHON={new_python}", cwd=source)
    assert made.returncode == 0, made.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    assert made.stdout.splitlines()[-1] == f"dist/{wheel.name}"
    moved = Path(shutil.move(wheel, tmp_path))
    shutil.rmtree(source)
    pip = [new_python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = run(*pip, moved, "onnxruntime", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not [*new_python.parents[1].glob("**/runtime/gone.py")]
    answer = run(new_python, "-m", "runtime", model, images / "a.png", cwd=tmp_path)
    assert json.loads(answer.stdout)["label"] == "red", answer.stderr


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
