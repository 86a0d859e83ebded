"""Each figure of the structure counts what it says, on a small repository made for it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

from tools.structure import Structure, figures, main

FILES = {
    "one/__init__.py": '"""A package."""\n\nfrom one.work import run\n',
    "one/work.py": '''
        """Work."""

        from one import helper, paths
        from two.other import compute


        def run(size: int) -> int:
            """Return it."""
            if size < 0:
                raise ValueError("expected a size")
            return helper.resized(size) + paths.add() + compute(size)
        ''',
    "one/helper.py": """
        def resized(size: int) -> int:
            def embed() -> None: ...

            return size


        class _Hidden:
            def method(self) -> None: ...
        """,
    "one/paths.py": '''
        def add() -> int:
            """Return one."""
            from one import circle

            return circle.is_listed()
        ''',
    "one/circle.py": '''
        from one import paths


        def is_listed() -> bool:
            """Return whether it is."""
            return bool(paths)


        class Box:
            """A box."""

            @property
            def closed(self) -> int:
                """The lid."""
                return 1
        ''',
    "two/__init__.py": "",
    "two/other.py": '''
        def compute(size: int) -> int:
            """Return the square.

            Args:
                size: a number.

            Returns:
                Its square.
            """
            return size * size
        ''',
}


@pytest.fixture
def structure(tmp_path: Path) -> Structure:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(dedent(text))
    return Structure(tmp_path, ("one", "two"))


def test_small_modules_with_one_importer(structure: Structure) -> None:
    # circle and helper have one importer each; paths has two, work is imported by the package itself.
    found = {finding.split(":")[0] for finding in structure.tiny()}
    assert found == {"one.helper", "one.circle", "one.work", "two.other"}


def test_circles(structure: Structure) -> None:
    assert list(structure.circles()) == ["one.circle and one.paths import each other"]


def test_participles(structure: Structure) -> None:
    """`embed` is a verb, a property and a bool may be adjectives."""
    assert list(structure.participles()) == ["one.helper.resized"]


def test_docstrings(structure: Structure) -> None:
    assert list(structure.without_docstring()) == ["one.helper.resized"]


def test_functions_between_packages(structure: Structure, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compute` is imported by the other package, `run` by no face here since `one` is none of the four."""
    assert [each.node.name for each in structure.interface()] == ["compute"]
    assert list(structure.incomplete()) == []
    monkeypatch.setattr("tools.structure.PACKAGES", ("one",))
    assert list(structure.incomplete()) == ["one.work.run: no Args, Raises"]


def test_long_functions_and_modules(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.py").write_text("def f():\n" + "    x = 1\n" * 70 + "y = 2\n" * 340)
    assert list(Structure(tmp_path, ("one",)).long()) == ["one.a: 411 lines", "one.a.f: 71 lines"]


def test_this_repository_is_within_its_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().out
    assert "ABOVE" not in capsys.readouterr().out
    assert len(figures(Structure())) == 7
