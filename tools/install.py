"""Install a checkout with the versions that it is tested with, and PyTorch without CUDA.

    python tools/install.py [EXTRAS]      # export, dev, or any extras of pyproject.toml; default: dev

It installs into the virtual environment that runs it, or else into .venv, which it creates. On Linux the
default index has PyTorch with CUDA, several gigabytes. So PyTorch comes from the first of: the wheels that
pip is configured for, where these hold a CPU build; PyTorch's own index of CPU builds; the default index.
It needs Python's standard library alone, and works where there is no make.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
import venv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The one address in this repository. The variable serves mirrors and tests.
CPU_INDEX = os.environ.get("VIT_EDGE_TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
CUDA = re.compile(r"(nvidia|cuda|triton)([-_]|$)", re.I)  # names of the packages that a CUDA build brings
LOCKED = {"export": ("export",), "dev": ("export", "dev")}  # extras with hashes: files of requirements/
DEFAULT = "the default index"
SECONDS = 5  # to reach an index


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python tools/install.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "extras",
        nargs="?",
        default="dev",
        metavar="EXTRAS",
        help="with commas between (default: %(default)s)",
    )
    parser.add_argument("--venv", type=Path, metavar="DIR", help="the virtual environment to install into")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be installed, and install nothing"
    )
    options = parser.parse_args(arguments)
    if sys.version_info < (3, 11):  # noqa: UP036 (it says so to whoever runs it)
        parser.error(
            f"expected Python 3.11 or newer, found {sys.version.split()[0]}; run it with a newer one"
        )
    extras = options.extras.split(",")
    if unknown := sorted(set(extras) - set(read_extras())):
        parser.error(
            f"expected extras of pyproject.toml ({', '.join(read_extras())}), found {', '.join(unknown)}"
        )
    try:
        install(find_python(options.venv), extras, dry_run=options.dry_run)
    except subprocess.CalledProcessError as error:
        say(f"error: {' '.join(error.cmd)} failed, see above")
        return 1
    except LookupError as error:
        say(f"error: {error}")
        return 1
    return 0


def read_extras() -> dict[str, list[str]]:
    """Return the extras of pyproject.toml and the requirements of each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    return extras


def find_python(folder: Path | None) -> Path:
    """Return the Python of `folder`, of the active environment, or of .venv, which is made if missing."""
    if folder is None and sys.prefix != sys.base_prefix:
        return Path(sys.executable)
    folder = folder or ROOT / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        say(f"creating {folder}")
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    return python


def install(python: Path, extras: list[str], *, dry_run: bool) -> None:
    """Install PyTorch where an extra needs it, the requirements, and this checkout in editable form.

    Raises:
        CalledProcessError: when pip failed; it has said why on standard error.
    """
    dry = ["--dry-run"] if dry_run else []
    if "torch" in requirements_of(extras):
        install_torch(python, dry)
    if len(extras) == 1 and extras[0] in LOCKED:
        say(f"installing the packages of {extras[0]}, each checked against its recorded hash")
        files = [word for name in LOCKED[extras[0]] for word in ("-r", ROOT / "requirements" / f"{name}.txt")]
        pip(python, "install", "--require-hashes", "--no-deps", *dry, *files)
        if not dry_run:  # its setuptools is one of these packages
            pip(python, "install", "--no-deps", "--no-build-isolation", "-e", ROOT)
    else:
        pip(python, "install", *dry, "-e", f"{ROOT}[{','.join(extras)}]", "-c", ROOT / "constraints.txt")
    if "dev" in extras:
        # What imported weights are compared with, in a folder of its own: its torchvision asks for another
        # build of torch (benchmarks/other_libraries.py).
        beside = python.absolute().parents[1] / "beside"
        lock = ROOT / "requirements" / "beside.txt"
        pip(
            python,
            "install",
            "--require-hashes",
            "--no-deps",
            "--upgrade",
            "--target",
            beside,
            *dry,
            "-r",
            lock,
        )


def requirements_of(extras: Iterable[str]) -> set[str]:
    """Return the names of the packages that extras need, those of extras within extras too."""
    known, names = read_extras(), set()
    for requirement in (each for extra in extras for each in known[extra]):
        if inner := re.fullmatch(r"vit-edge\[([\w,-]+)\]", requirement):
            names |= requirements_of(inner[1].split(","))
        else:
            names.add(re.split(r"[\[<>=]", requirement)[0])
    return names


def install_torch(python: Path, dry: list[str]) -> None:
    """Install PyTorch, a CPU build where one is found, after one line that says from where and how large.

    Raises:
        LookupError: when no source has the version of constraints.txt for this Python and system.
        CalledProcessError: when pip failed.
    """
    (wanted,) = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    if not dry and is_installed(python, wanted):
        return
    for place, words in list_sources(python):
        found = resolve(python, [wanted, "-c", str(ROOT / "constraints.txt"), *words])
        cuda = any(map(CUDA.match, needed_packages(found)))
        if not found or (cuda and place != DEFAULT):
            continue
        (torch,) = (each["download_info"] for each in found if each["metadata"]["name"] == "torch")
        loaded = [each["download_info"]["url"] for each in found] if cuda else [torch["url"]]
        build = "the build with CUDA, since no CPU build was found" if cuda else "a CPU build"
        say(f"loading {wanted} from {place}: {build}, {format_size(loaded)}")
        if torch["archive_info"].get("hashes", {}).get("sha256") not in read_torch_hashes():
            say(f"its hash is not one of requirements/torch.txt; only {place} vouches for it")
        pip(
            python,
            "install",
            *dry,
            *([] if cuda else ["--no-deps"]),
            wanted,
            "-c",
            ROOT / "constraints.txt",
            *words,
        )
        return
    raise LookupError(
        f"expected {wanted} for this Python and {sys.platform} in pip's indexes, found none; connect to a "
        "network, or set PIP_FIND_LINKS to a folder with its wheel"
    )


def list_sources(python: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield where to look for PyTorch, best first: words for people, and pip's options."""
    if configured := sorted(
        set(re.findall(r"(find-links|index-url|no-index)='.", pip(python, "config", "list")))
    ):
        yield f"pip's own configuration ({', '.join(configured)})", []
    elif sys.platform != "linux":
        yield DEFAULT, []  # there, the ordinary build has no CUDA
    yield (
        "PyTorch's index of CPU builds",
        ["--index-url", CPU_INDEX, "--no-deps", "--timeout", SECONDS, "--retries", "0"],
    )
    yield DEFAULT, []


def resolve(python: Path, words: Sequence[str]) -> list[dict[str, Any]]:
    """Return what pip would install, from its report; nothing where it fails."""
    command = ["install", "--dry-run", "--ignore-installed", "--report", "-", *words]
    try:
        report = json.loads(pip(python, *command, quiet=True))
    except subprocess.CalledProcessError:
        return []
    found: list[dict[str, Any]] = report["install"]
    return found


def needed_packages(found: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the packages of a report, and what a lone PyTorch asks for: --no-deps leaves that out."""
    entries = [each["metadata"] for each in found]
    yield from (each["name"] for each in entries)
    if len(entries) == 1:
        yield from entries[0].get("requires_dist", ())


def read_torch_hashes() -> set[str]:
    """Return the SHA-256 of the wheels of PyTorch that are recorded."""
    return set(
        re.findall(r"sha256:(\w{64})", (ROOT / "requirements" / "torch.txt").read_text(encoding="utf-8"))
    )


def is_installed(python: Path, wanted: str) -> bool:
    """Return whether an environment has this version, of whichever build."""
    script = "import importlib.metadata as m; print(m.version('torch'))"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True)
    return "torch==" + done.stdout.strip().partition("+")[0] == wanted


def format_size(urls: Iterable[str]) -> str:
    """Return how much a download is, for people."""
    total = 0
    for url in urls:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                total += int(answer.headers["Content-Length"])
        except (OSError, TypeError, ValueError):
            return "of unknown size"
    return f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.0f} MB"


def pip(python: Path, *words: object, quiet: bool = False) -> str:
    """Run pip and return what it prints on standard output.

    Raises:
        CalledProcessError: when it failed.
    """
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    dry = "--dry-run" in words and not quiet
    if words[0] == "install" and not dry:
        command.append("--quiet")
    silent = subprocess.DEVNULL if quiet else None
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=silent, text=True, check=True)
    if dry:
        print(done.stdout.splitlines()[-1], flush=True)  # Would install …
    return done.stdout


def say(line: str) -> None:
    """Print a line about the work on standard error."""
    print(f"install: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
