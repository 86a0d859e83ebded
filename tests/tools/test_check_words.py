"""The checker finds what it is for, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_words import FUNCTION_LINES, MODULE_LINES, check_file, check_repository


def found(name: str, text: str) -> list[str]:
    return list(check_file(name, text))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.py", "picture = 1\n", "expected 'image', found 'picture'"),
        ("x.md", "Two Pictures.\n", "expected 'image', found 'Pictures'"),
        ("x.py", "def quantise(): ...\n", "American spelling, found 'quantise'"),
        ("x.py", "labelled_as = 1\n", "American spelling, found 'labelled'"),
        ("x.md", "The normalisation of colour.\n", "American spelling, found 'normalisation'"),
        ("x.py", "CENTRE = 1\n", "American spelling, found 'CENTRE'"),
        ("x.py", '"""What it is."""\n', "docstring opens with 'What'"),
        ("x.py", 'def f():\n    """Whether it is."""\n', "docstring opens with 'Whether'"),
        ("x.py", 'class A:\n    """How it is."""\n', "docstring opens with 'How'"),
        ("x.py", "x = (\n    0  # zero\n)\n", "trailing comment moved by the formatter"),
        ("x.py", "x = f(\n    0\n)  # zero\n", "trailing comment moved by the formatter"),
        ("x.py", '"""A model of ours."""\n', "unclear wording 'of ours'"),
        ("x.py", "x = 1  # as elsewhere\n", "unclear wording 'elsewhere'"),
        ("x.md", "word " * 21 + "\n", "expected at most 100"),
        ("vit/x.py", "x = 1\n" * (MODULE_LINES + 1), f"module of {MODULE_LINES + 1} lines"),
        (
            "vit/x.py",
            "def f():\n" + "    x = 1\n" * FUNCTION_LINES,
            f"function f of {FUNCTION_LINES + 1} lines",
        ),
    ],
)
def test_it_finds(name: str, text: str, expected: str) -> None:
    findings = found(name, text)
    assert all(finding.startswith(f"{name}:") for finding in findings)
    assert any(expected in finding for finding in findings)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.html", "<picture><img></picture>\n"),
        ("x.py", "quantize = precise = promise = exercise = analysis = 'otherwise revised'\n"),
        ("x.py", '"""Whatever it is."""\n'),
        ("x.py", 'def f():\n    """Return it.\n\n    What it is.\n    """\n'),
        ("x.py", "x = (  # two numbers\n    0,\n    1,\n)\n"),
        ("x.py", "f(\n    0\n)  # noqa: X\n"),
        ("x.md", "```\n" + "word " * 30 + "\n```\n| " + "word " * 30 + "|\n"),
        ("x.md", "[" + "x" * 120 + "]\n"),
        ("tests/x.py", "x = 1\n" * (MODULE_LINES + 1)),
        ("vit/x.py", "x = 1\n" * MODULE_LINES),
        ("vit/x.py", 'def f():\n    """Do it.\n' + "\n    word" * 50 + '"""\n' + "    x = 1\n" * 30),
    ],
)
def test_it_lets_pass(name: str, text: str) -> None:
    assert found(name, text) == []


def test_the_repository_has_no_finding(root: Path) -> None:
    assert (root / ".git").exists(), "expected a checkout: the files are those that git knows"
    assert list(check_repository(root)) == []
