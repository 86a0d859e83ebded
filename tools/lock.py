"""Write the hashes of every package that is installed: requirements/*.txt and javascript/package-lock.json.

The versions are those of constraints.txt, the hashes those of all systems and Pythons. PyTorch's CUDA
packages are left out; its own hashes stand in a file that nothing installs from (tools/install.py compares
with it). Run `make lock` after a change of constraints.txt, of an extra or of package.json. It needs npm, and
uv (https://docs.astral.sh/uv), which resolves for all systems.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
LEFT_OUT = re.compile(r"(nvidia|cuda|triton)\b|torch$")
BUILDS_OURS = "setuptools"  # without build isolation, which would load it without a hash
# Builds of PyTorch's own index, which uv does not ask; those that were at hand.
CPU_BUILDS = {
    "cp311 manylinux_2_28_x86_64": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    argparse.ArgumentParser(prog="python -m tools.lock", description=__doc__).parse_args(arguments)
    FOLDER.mkdir(exist_ok=True)
    export = resolve("--extra", "export")
    dev = resolve("--extra", "dev")
    write("torch", [dev["torch"] + "".join(f" \\\n    --hash=sha256:{one}" for one in CPU_BUILDS.values())])
    write("export", [entry for name, entry in export.items() if not LEFT_OUT.match(name)])
    write("dev", [entry for name, entry in dev.items() if name not in export])
    write("beside", resolve("--no-deps", requirements="timm\ntorchvision\n").values())
    lock_javascript()
    return 0


def resolve(*words: str, requirements: str | None = None) -> dict[str, str]:
    """Return the packages that this project, or a list of requirements, needs.

    Args:
        words: further options of `uv pip compile`.
        requirements: the text of a list; None is the project.

    Returns:
        The entry of each package, with its hashes, by name.

    Raises:
        CalledProcessError: when uv cannot resolve it; it has said why on standard error.
    """
    inputs = ["-"] if requirements else ["pyproject.toml", "-"]
    command = [
        "uv", "pip", "compile", *inputs, *words, "--constraints", "constraints.txt", "--universal",
        "--generate-hashes", "--python-version", "3.11", "--no-header", "--no-annotate", "--quiet",
    ]  # fmt: skip
    given = requirements or BUILDS_OURS
    done = subprocess.run(command, cwd=ROOT, input=given, stdout=subprocess.PIPE, text=True, check=True)
    entries = re.findall(r"^\S.*(?:\n {4}.*)*", done.stdout, re.M)
    return {re.split(r"[=\[ ]", entry)[0]: entry for entry in entries}


def write(name: str, entries: Iterable[str]) -> None:
    """Write one file of requirements."""
    text = "".join(f"{entry}\n" for entry in entries)
    (FOLDER / f"{name}.txt").write_text(f"# Written by make lock.\n{text}", encoding="utf-8")


def lock_javascript() -> None:
    """Write javascript/package-lock.json, without addresses of a registry and without links to sponsors."""
    words = ["--package-lock-only", "--omit-lockfile-registry-resolved", "--ignore-scripts", "--no-audit"]
    subprocess.run(["npm", "install", "--silent", *words], cwd=ROOT / "javascript", check=True)
    path = ROOT / "javascript" / "package-lock.json"
    lock = json.loads(path.read_text(encoding="utf-8"))
    for package in lock["packages"].values():
        package.pop("funding", None)
    path.write_text(json.dumps(lock, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
