"""The pages against the code: options, fields, commands, links, and blocks of Python that some test runs."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_args

import pytest

from calibration.plan import BalancePlan, LinearPlan, Precision, ProductPlan, QuantizationPlan, Range
from export.sources.onnx_description import FIELDS as SPEC_FIELDS
from runtime.batch.output import FIELDS, SEVERAL_FIELDS
from runtime.images.preprocess import Preprocess
from runtime.model_file.artifact import Metadata
from vit_edge import __main__ as vit_edge

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMAND_LINES = ROOT / "docs" / "reference" / "command-lines.md"
FILE_FORMATS = ROOT / "docs" / "reference" / "file-formats.md"
MODEL_FILE = ROOT / "docs" / "reference" / "model-file.md"
# Commands live in these folders. Every module there that makes an ArgumentParser is documented.
FOLDERS = ("vit", "export", "runtime", "calibration", "tools", "benchmarks", "examples")
# Options of other programs that the pages name.
OF_OTHERS = {"--max-restarts", "--nnodes", "--rdzv-id", "--preload"}  # torchrun, gunicorn
# Who executes the Python of a page. A page with Python that is not listed here fails a test.
RUN_BY = {
    "README.md": "tests/runtime/test_packaging.py",
    "docs/concepts/paper-to-code.md": "tests/vit/test_paper_to_code.py",
    "docs/guides/cluster.md": "tests/runtime/batch/test_label_columns.py",
    "docs/guides/embed.md": "tests/runtime/test_packaging.py",
    "docs/guides/update.md": "tests/runtime/update/test_install_model.py",
    "docs/guides/embeddings.md": "tests/runtime/test_embedder.py",
    "docs/guides/several-labels.md": "tests/runtime/test_several_labels.py",
    "docs/reference/runtime.md": "tests/runtime/test_reference.py",
}


class ParserFound(Exception):
    """Carries the parser out of a command before it does any work."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def module_names() -> list[str]:
    """Return the modules that build a command line, as `python -m` takes them."""
    names = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if '__name__ == "__main__"' in text and ("Parser(" in text or "run_interruptible(" in text):
                parts = path.relative_to(ROOT).with_suffix("").parts
                names.append(".".join(part for part in parts if part != "__main__"))
    return names


def commands(name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield a module's command, or each of its subcommands, with its parser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", found)
        module = name + (".__main__" if (ROOT / name.replace(".", "/")).is_dir() else "")
        with pytest.raises(ParserFound) as caught:
            importlib.import_module(module).main()
    parser = caught.value.parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from ((f"{name} {command}", each) for command, each in action.choices.items())
            return
    yield name, parser


def found(parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
    raise ParserFound(parser)


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command of the project with its parser."""
    names = module_names()
    assert {"vit", "export", "runtime", "tools.digit_images"} <= set(names)
    return {title: parser for name in names for title, parser in commands(name)}


def documented() -> dict[str, dict[str, tuple[str, str]]]:
    """Return command → option → (default, meaning), as the reference says."""
    text = COMMAND_LINES.read_text(encoding="utf-8")
    _, *sections = re.split(r"^## python -m ", text, flags=re.M)
    rows = r"^\| `(-{0,2}[\w-]+)[^|]*` \| ([^|]*)\|(.*)\|$"
    return {
        section.splitlines()[0].strip(): {
            option: (default.strip(), meaning) for option, default, meaning in re.findall(rows, section, re.M)
        }
        for section in sections
    }


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the long name of each option, or the upper-case name of an argument, with its action."""
    return {
        action.option_strings[-1] if action.option_strings else action.dest.upper(): action
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    }


def test_every_command_is_documented_and_no_other(parsers: dict[str, argparse.ArgumentParser]) -> None:
    written, known = set(documented()), set(parsers)
    assert not known - written, f"add '## python -m …' to command-lines.md: {known - written}"
    assert not written - known, f"command-lines.md documents commands that do not exist: {written - known}"


def test_each_word_of_the_one_command_is_documented(parsers: dict[str, argparse.ArgumentParser]) -> None:
    text = COMMAND_LINES.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `vit-edge (\w+)` \| `python -m ([\w. ]+)` \|$", text, re.M))
    actions = vit_edge.make_parser("x")._actions
    (subcommands,) = [each for each in actions if isinstance(each, argparse._SubParsersAction)]
    assert list(rows) == list(subcommands.choices)
    packages = ("vit", "export", "runtime")
    assert set(rows.values()) == {name for name in parsers if re.split("[. ]", name)[0] in packages}


def test_every_option_is_documented_and_no_other(parsers: dict[str, argparse.ArgumentParser]) -> None:
    pages = documented()
    for command in set(pages) & set(parsers):
        parser = parsers[command]
        known, written = set(options_of(parser)), set(pages[command])
        assert not known - written, f"add to 'python -m {command}' in command-lines.md: {known - written}"
        assert not written - known, f"'python -m {command}' has no option {written - known}: delete the row"


def test_defaults_and_choices_are_those_of_the_parser(parsers: dict[str, argparse.ArgumentParser]) -> None:
    pages = documented()
    for command, parser in parsers.items():
        for option, action in options_of(parser).items():
            default, meaning = pages[command][option]
            where = f"python -m {command} {option}"
            assert (default == "required") == action.required, where
            plain = isinstance(action.default, str | int | float) and not isinstance(action.default, bool)
            if plain and action.default != argparse.SUPPRESS:
                assert default == f"`{action.default}`", where
            for choice in action.choices or ():
                assert f"`{choice}`" in meaning, f"{where}: {choice} is not explained"


COMMAND = re.compile(r"(?:^|\s)-m ((?:vit|export|runtime|tools|benchmarks|examples)\b.*)")


def shown_commands() -> list[tuple[str, str]]:
    """Return what follows `-m` in each line of code of any page, with the name of the page.

    Variables, pipes and torchrun may precede it; blocks may be fenced, within a list too, or indented.
    """
    lines = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        code = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()]
        code += re.findall(r"^ {4}(?=\S).*", text, re.M)
        found_here = [match[1] for line in code if (match := COMMAND.search(line))]
        lines += [(str(page.relative_to(ROOT)), line.split("  #")[0].strip()) for line in found_here]
    return lines


def command_in(line: str, parsers: dict[str, argparse.ArgumentParser]) -> tuple[str, list[str]]:
    """Return the command of a line, and the words behind it; of a command that runs another, that one's."""
    line = line.removeprefix("tools.devices.without_vnni python -m ")
    module, *words = shlex.split(line.split(" > ")[0].split(" | ")[0])
    subcommand = f"{module} {words[0] if words else ''}"
    return (subcommand, words[1:]) if subcommand in parsers else (module, words)


def test_commands_in_the_pages_are_accepted(
    parsers: dict[str, argparse.ArgumentParser], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = shown_commands()
    assert len(shown) > 50
    assert {"docs/guides/batch.md", "docs/guides/distributed-training.md", "docs/reference/runtime.md"} <= {
        page
        for page, _ in shown  # with a pipe, with torchrun, indented
    }
    for page, line in shown:
        # A line that stands for others (…), or takes its arguments from a variable, is not one to be typed.
        if "…" in line or "$" in line:
            continue
        command, words = command_in(line, parsers)
        if (command, words) == ("tools.mutants", []):  # it reads no command line
            continue
        assert command in parsers, f"{page}: {line}"
        try:
            parsers[command].parse_args(words)
        except SystemExit:
            pytest.fail(f"{page}: python -m {line}: {capsys.readouterr().err}")


def test_options_named_in_the_text_exist(parsers: dict[str, argparse.ArgumentParser]) -> None:
    """An option alone (`--plan`) is one of some command, behind a command one of its own."""
    known = {option for parser in parsers.values() for option in parser._option_string_actions} | OF_OTHERS
    checked = 0
    for page in PAGES:
        for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", page.read_text(encoding="utf-8")):
            match = COMMAND.search(" ".join(code.split()))
            command, _ = command_in(match[1], parsers) if match else ("", [])
            if command not in parsers and not code.startswith("--"):
                continue  # of another program
            allowed = set(parsers[command]._option_string_actions) if command in parsers else known
            options = re.findall(r"(?<!\S)--[a-z][\w-]*", code)
            checked += len(options)
            wrong = [option for option in options if option not in allowed]
            assert not wrong, f"{page.relative_to(ROOT)}: no option {wrong[0]}: {code}"
    assert checked > 150


FOLDERS_IN_TEXT = "|".join((*FOLDERS, "vit_edge", "tests", "docs", "javascript", "requirements"))
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS_IN_TEXT})/[\w./-]*\w")
DOTTED = re.compile(rf"(?<![\w./-])(?:{FOLDERS_IN_TEXT})(?:\.\w+)+(?![\w/-])")


def code_in(page: Path) -> list[str]:
    """Return the code of a page: what is between backticks, in the text and in blocks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    return [*blocks, *re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]


def test_files_named_in_the_text_exist() -> None:
    named = [(page, path) for page in PAGES for path in PATH.findall(page.read_text(encoding="utf-8"))]
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    for file in (*sources, ROOT / "Makefile", ROOT / "pyproject.toml"):
        paths = PATH.findall(file.read_text(encoding="utf-8"))
        named += [(file, path) for path in paths if path.endswith((".md", ".py"))]
    assert len(named) > 150
    missing = [f"{page.relative_to(ROOT)}: {path}" for page, path in named if not (ROOT / path).exists()]
    assert not missing, "\n".join(missing)


def test_modules_and_tests_named_in_the_text_exist() -> None:
    """`vit.model.ViT` is a file, or a name in one; what begins with test_ and has four words is a test."""
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    tests += " ".join(f"def {path.stem}(" for path in (ROOT / "tests").rglob("test_*.py"))
    missing = []
    for page in PAGES:
        for code in code_in(page):
            wrong = [name for name in DOTTED.findall(code) if not is_in_the_code(name)]
            if re.fullmatch(r"test(_[a-z]+){3,}", code) and f"def {code}(" not in tests:
                wrong.append(code)
            missing += [f"{page.relative_to(ROOT)}: {name}" for name in wrong]
    assert not missing, "\n".join(missing)


def is_in_the_code(name: str) -> bool:
    """Return whether a dotted name is a module or folder, or the start of it is and has the next part."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:end])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file() or path.is_dir():
            rest = parts[end : end + 1]
            return not rest or re.search(rf"\b{rest[0]}\b", file.read_text(encoding="utf-8")) is not None
    return False


def names_in(page: Path, section: str) -> set[str]:
    """Return the names in the first cells of a section's tables."""
    text = page.read_text(encoding="utf-8")
    (body,) = re.findall(rf"^#+ {re.escape(section)}$(.*?)(?=^#|\Z)", text, re.M | re.S)
    return {
        name for cell in re.findall(r"^\| (`.*?) \|", body, re.M) for name in re.findall(r"`(\w+)`", cell)
    }


def names_of(*kinds: Any) -> set[str]:
    return {field.name for kind in kinds for field in fields(kind)}


@pytest.mark.parametrize(
    ("page", "section", "expected"),
    [
        (MODEL_FILE, "Metadata", {"version", "exact_on"} | names_of(Metadata)),
        (MODEL_FILE, "Preprocessing", names_of(Preprocess)),
        (FILE_FORMATS, "Description of an ONNX model", set(SPEC_FIELDS)),
        (FILE_FORMATS, "plan.json", {"format", "version"} | names_of(QuantizationPlan, LinearPlan)),
        (FILE_FORMATS, "Result lines", {*FIELDS, *SEVERAL_FIELDS}),
    ],
    ids=["metadata", "preprocessing", "description", "plan", "result lines"],
)
def test_the_fields_of_a_table_are_those_of_the_code(page: Path, section: str, expected: set[str]) -> None:
    assert names_in(page, section) == expected


def test_the_parts_of_a_plan_are_documented() -> None:
    section = FILE_FORMATS.read_text(encoding="utf-8").split("## plan.json")[1].split("## report.json")[0]
    written = set(re.findall(r"`(\w+)`", section))
    assert names_of(Range, ProductPlan, BalancePlan) | set(get_args(Precision)) <= written


def test_every_python_block_is_run_by_a_test() -> None:
    with_python = {
        page.relative_to(ROOT).as_posix() for page in PAGES if "```python" in page.read_text(encoding="utf-8")
    }
    assert with_python == set(RUN_BY)
    for page, test in RUN_BY.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8"), f"{test} does not run {page}"


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith("http"):
                continue
            name, _, anchor = target.partition("#")
            there = (page.parent / name).resolve() if name else page
            if not there.is_file() or (anchor and anchor not in anchors(there)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken, "\n".join(broken)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_two_clicks_from_the_readme() -> None:
    """The README, or the table of contents that it links to, names each page."""
    index = ROOT / "docs" / "README.md"
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in (ROOT / "README.md", index)
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    }
    assert index in linked
    assert set((ROOT / "docs").rglob("*.md")) <= linked


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 110
