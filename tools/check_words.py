"""Check words, line lengths and sizes of the repository, and print one line per finding.

The rules are those of CONTRIBUTING.md, as far as a program can check them. Exceptions are listed here with
their reason. The exit code is 1 if there is a finding.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = {".py", ".md", ".toml", ".mjs", ".js", ".css", ".j2", ".html", ".sh", ".yaml", ".cff", ""}
SIZED = ("vit", "export", "calibration", "runtime", "vit_edge", "tools", "benchmarks", "examples")
MD_WIDTH = 100
MODULE_LINES = 400
FUNCTION_LINES = 60
# Modules and functions that may be longer, with the reason. Empty is the goal.
LONGER: frozenset[str] = frozenset()
# The rules themselves, and the tests that break them on purpose.
WORDS_EXEMPT = {"tools/check_words.py", "tests/tools/test_check_words.py"}

# Words that are something else's name, removed before words are looked for.
NAMES = re.compile(r"<picture>|</picture>|picture-in-picture", re.I)
PICTURE = re.compile(r"pictures?", re.I)
BRITISH = re.compile(
    r"artefact\w*|(?:un)?colour\w*|behaviour\w*|neighbour\w*|favour\w*|honour\w*|centre[ds]?(?![a-z])|licence\w*"
    r"|grey(?![a-z])|\w*(?:quanti|normali|optimi|minimi|maximi|initiali|standardi|generali|recogni|seriali|summari"
    r"|visuali|utili|memori|organi|parametri|tokeni|regulari|vectori|canonicali|synchroni|speciali|emphasi"
    r"|categori|customi|finali|realis(?=e|ing)|penali|randomi)s(?:e[drs]?|es|ing|ation\w*|able)(?![a-z])"
    r"|\w*(?:label|model|travel|cancel)l(?:ed|ing)(?![a-z])|analys(?:e[ds]?|ing)(?![a-z])|catalogue\w*",
    re.I,
)
# The list of words that a reader has to decipher. Each has a plain counterpart in the glossary.
NOT_WORDS = re.compile(
    r"\bof (?:ours|theirs)\b|\belsewhere\b|\bthose first that\b|\bcannot be told from\b|\bthe least of\b"
    r"|\bwho wants no\b",
    re.I,
)
OPENING = re.compile(r"(?:What|How|Whether)\b")
LEFTOVER = re.compile(r"\)\s+# (?!fmt|noqa|type)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every finding and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.check_words", description=__doc__)
    parser.parse_args(arguments)
    findings = sorted(check_repository(ROOT))
    for finding in findings:
        print(finding)
    if findings:
        print(f"{len(findings)} findings; the rules are in CONTRIBUTING.md", file=sys.stderr)
    return 1 if findings else 0


def check_repository(root: Path) -> Iterator[str]:
    """Yield the findings in all files that git tracks or would track."""
    names = tracked_files(root)
    for name in names:
        path = root / name
        if path.suffix not in TEXT or not path.is_file():
            continue
        yield from check_file(name, path.read_text(encoding="utf-8"))


def tracked_files(root: Path) -> list[str]:
    """Return the files of the repository, ignored ones left out, relative to `root`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return sorted(set(done.stdout.splitlines()))


def check_file(name: str, text: str) -> Iterator[str]:
    """Yield the findings in one file.

    Args:
        name: path relative to the root of the repository, with forward slashes.
        text: content of the file.
    """
    if name not in WORDS_EXEMPT:
        yield from check_words(name, text)
    if name.endswith(".md"):
        yield from check_widths(name, text)
    if name.endswith(".py"):
        yield from check_python(name, text)


def check_words(name: str, text: str) -> Iterator[str]:
    """Yield words that the style forbids in code and prose alike."""
    prose = docstring_lines(text) if name.endswith(".py") else None
    for number, line in enumerate(text.splitlines(), 1):
        plain = NAMES.sub("", line)
        for match in PICTURE.finditer(plain):
            yield f"{name}:{number}: expected 'image', found {match.group()!r}"
        for match in BRITISH.finditer(plain):
            yield f"{name}:{number}: expected American spelling, found {match.group()!r}"
        if prose is None and not name.endswith(".md"):
            continue
        # The glossary and the style name the words that they forbid.
        if name.endswith("glossary.md") or (prose is not None and number not in prose):
            continue
        for match in NOT_WORDS.finditer(plain):
            yield f"{name}:{number}: unclear wording {match.group()!r}; use a word of the glossary"


def docstring_lines(text: str) -> set[int]:
    """Return the numbers of the lines that belong to a docstring or a comment."""
    lines = {number for number, line in enumerate(text.splitlines(), 1) if "#" in line}
    for node in documented_nodes(text):
        first = node.body[0]
        lines |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented_nodes(text: str) -> Iterator[Documented]:
    """Yield the modules, classes and functions that have a docstring."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Documented) and ast.get_docstring(node) is not None:
            yield node


def check_widths(name: str, text: str) -> Iterator[str]:
    """Yield lines of prose that are too long; tables and code blocks may be."""
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif in_code or line.lstrip().startswith("|") or line.startswith("    "):
            continue
        elif len(line) > MD_WIDTH and " " in line.strip():
            yield f"{name}:{number}: {len(line)} columns, expected at most {MD_WIDTH}"


def check_python(name: str, text: str) -> Iterator[str]:
    """Yield docstrings that open badly, comments that the formatter moved, and sizes above the limits."""
    for node in documented_nodes(text):
        opening = OPENING.match((ast.get_docstring(node) or "").lstrip())
        if opening:
            line = node.body[0].lineno
            yield f"{name}:{line}: docstring opens with {opening.group()!r}; name the thing or use a verb"
    yield from check_leftovers(name, text)
    if name.split("/")[0] in SIZED and name not in LONGER:
        yield from check_sizes(name, text)


def check_leftovers(name: str, text: str) -> Iterator[str]:
    """Yield brackets that the formatter put around a single value to keep its trailing comment."""
    lines = text.splitlines()
    for number, (first, second, third) in enumerate(zip(lines, lines[1:], lines[2:], strict=False), 1):
        inside = "  # " in second and third.strip() == ")" and re.search(r"(=|return) \($", first)
        if inside or LEFTOVER.match(third.strip()):
            yield f"{name}:{number}: trailing comment moved by the formatter; put it above the line"


def check_sizes(name: str, text: str) -> Iterator[str]:
    """Yield modules and functions that are too long."""
    count = len(text.splitlines())
    if count > MODULE_LINES:
        yield f"{name}:1: module of {count} lines, expected at most {MODULE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = body_lines(node)
            if length > FUNCTION_LINES:
                yield (
                    f"{name}:{node.lineno}: function {node.name} of {length} lines, "
                    f"expected at most {FUNCTION_LINES}"
                )


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function without its docstring."""
    count = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        first = node.body[0]
        count -= (first.end_lineno or first.lineno) - first.lineno + 1
    return count


if __name__ == "__main__":
    sys.exit(main())
