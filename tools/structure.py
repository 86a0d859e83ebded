"""Count what makes the structure hard to see, print the figures, and fail above their limits.

    python -m tools.structure             the figures; `make check` runs this
    python -m tools.structure --list      the finding behind each figure, one per line
    python -m tools.structure --modules   every module with its lines and its importers

The figures are of the four packages: vit, export, calibration, runtime. The modules that an export visits
need a run: `tests/export/test_visited_modules.py` counts them.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tools.check_words import FUNCTION_LINES, MODULE_LINES, ROOT, body_lines, tracked_files

PACKAGES = ("vit", "export", "calibration", "runtime")
TINY_LINES = 80

# A function is a verb. These end like a participle and are none, or name a protocol of Python or a library.
NOT_PARTICIPLES = {"embed", "feed", "need", "seed", "speed", "exceed", "proceed", "succeed", "shed", "sed"}
IRREGULAR = {
    "bare", "been", "begun", "bent", "bound", "broken", "brought", "built", "bought", "caught",
    "chosen", "done", "drawn", "driven", "fed", "felt", "found", "frozen", "given", "gone", "grown",
    "heard", "held", "hidden", "hung", "kept", "known", "laid", "learnt", "led", "left", "lent", "lost",
    "made", "meant", "met", "paid", "said", "seen", "sent", "shaken", "shown", "sold", "sought",
    "spent", "stood", "stuck", "sunk", "swept", "taken", "taught", "thought", "tired", "told", "torn",
    "understood", "woken", "won", "worn", "woven", "written",
}  # fmt: skip
# Functions that are named by a participle all the same, with the reason.
PARTICIPLE_EXCEPTIONS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Function:
    """One function of a module.

    Attributes:
        module: dotted name of the module.
        node: its syntax tree.
        adjective: true if it is a property or returns a bool; its name may be an adjective.
        public: true if neither it nor what it is defined in starts with an underscore.
    """

    module: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    adjective: bool
    public: bool

    @property
    def is_participle(self) -> bool:
        """True if the name starts with a participle where a verb is expected."""
        first = self.node.name.strip("_").split("_")[0]
        ends = first.endswith("ed") and first not in NOT_PARTICIPLES
        return (ends or first in IRREGULAR) and not self.adjective

    @property
    def missing(self) -> Iterator[str]:
        """The sections that the docstring lacks."""
        docstring = ast.get_docstring(self.node) or ""
        names = [each.arg for each in [*self.node.args.args, *self.node.args.kwonlyargs]]
        returns = ast.unparse(self.node.returns) if self.node.returns else "None"
        if set(names) - {"self", "cls"} and "Args:" not in docstring:
            yield "Args"
        says = re.match(r"(Return|Yield|Whether|True)\b", docstring) or re.search(
            r"^(Returns|Yields):", docstring, re.M
        )
        # A context manager's first line says what holds inside the block.
        silent = returns in ("None", "NoReturn", "Iterator[None]") or self.adjective
        if not silent and not says:
            yield "Returns"
        if "Raises:" not in docstring and any(
            isinstance(each, ast.Raise) and each.exc is not None for each in own_nodes(self.node)
        ):
            yield "Raises"


class Structure:
    """The modules of the packages, who imports whom, and their functions."""

    def __init__(self, root: Path = ROOT, packages: Sequence[str] = PACKAGES) -> None:
        """Parse every tracked module of `packages` under `root`."""
        self.texts = {
            name: (root / name).read_text(encoding="utf-8")
            for name in tracked_files(root)
            if name.endswith(".py") and name.split("/")[0] in packages and (root / name).is_file()
        }
        self.trees = {dotted(name): ast.parse(text) for name, text in self.texts.items()}
        self.lines = {dotted(name): len(text.splitlines()) for name, text in self.texts.items()}
        self.is_package = {dotted(name): name.endswith("__init__.py") for name in self.texts}

    @cached_property
    def imports(self) -> Mapping[str, set[str]]:
        """The modules of the packages that each module imports, wherever in the file."""
        return {name: set(self._imported(name)) - {name} for name in self.trees}

    @cached_property
    def importers(self) -> Mapping[str, set[str]]:
        """The modules that import each module."""
        found: dict[str, set[str]] = defaultdict(set)
        for name, imported in self.imports.items():
            for each in imported:
                found[each].add(name)
        return found

    @cached_property
    def functions(self) -> list[Function]:
        """Every function and method."""
        return [each for name, tree in self.trees.items() for each in functions_in(tree, name, public=True)]

    def tiny(self) -> Iterator[str]:
        """Yield the modules of at most 80 lines that one other module imports; they could be part of it."""
        for name, lines in self.lines.items():
            if lines <= TINY_LINES and not self.is_package[name] and len(self.importers[name]) == 1:
                yield f"{name}: {lines} lines, imported by {next(iter(self.importers[name]))}"

    def circles(self) -> Iterator[str]:
        """Yield the pairs of modules that reach each other by imports."""
        reached = {name: self._reach(name) for name in self.trees}
        for name in sorted(reached):
            for other in sorted(reached[name]):
                if name < other and name in reached[other]:
                    yield f"{name} and {other} import each other"

    def long(self) -> Iterator[str]:
        """Yield modules and functions above their limits."""
        for name, lines in self.lines.items():
            if lines > MODULE_LINES:
                yield f"{name}: {lines} lines"
        for each in self.functions:
            if body_lines(each.node) > FUNCTION_LINES:
                yield f"{each.module}.{each.node.name}: {body_lines(each.node)} lines"

    def participles(self) -> Iterator[str]:
        """Yield the functions that are named by a participle."""
        for each in self.functions:
            if each.is_participle and each.node.name not in PARTICIPLE_EXCEPTIONS:
                yield f"{each.module}.{each.node.name}"

    def without_docstring(self) -> Iterator[str]:
        """Yield the public functions that have no docstring."""
        for each in self.functions:
            name = each.node.name
            if (
                each.public
                and not (name.startswith("__") and name.endswith("__"))
                and not ast.get_docstring(each.node)
            ):
                yield f"{each.module}.{name}"

    def interface(self) -> list[Function]:
        """Return the public functions that another package, or the face of their own, imports by name."""
        wanted: set[tuple[str, str]] = set()
        for importer, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    source = self._absolute(importer, node)
                    face = importer in PACKAGES
                    if face or source.split(".")[0] != importer.split(".")[0]:
                        wanted |= {(source, each.name) for each in node.names}
        tops = {(name, id(node)) for name, tree in self.trees.items() for node in tree.body}
        return [
            each
            for each in self.functions
            if (each.module, each.node.name) in wanted and (each.module, id(each.node)) in tops
        ]

    def incomplete(self) -> Iterator[str]:
        """Yield the functions of the interface whose docstring lacks a section."""
        for each in self.interface():
            if missing := list(each.missing):
                yield f"{each.module}.{each.node.name}: no {', '.join(missing)}"

    def _imported(self, name: str) -> Iterator[str]:
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Import):
                yield from (each.name for each in node.names if each.name in self.trees)
            elif isinstance(node, ast.ImportFrom):
                source = self._absolute(name, node)
                for each in node.names:
                    full = f"{source}.{each.name}"
                    if full in self.trees or source in self.trees:
                        yield full if full in self.trees else source

    def _absolute(self, name: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = name.split(".") if self.is_package[name] else name.split(".")[:-1]
        return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])

    def _reach(self, name: str) -> set[str]:
        reached: set[str] = set()
        left = [name]
        while left:
            for each in self.imports[left.pop()] - reached:
                reached.add(each)
                left.append(each)
        return reached


def dotted(name: str) -> str:
    """Return the dotted name of the module in file `name`, a path relative to the root."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def functions_in(node: ast.AST, module: str, *, public: bool) -> Iterator[Function]:
    """Yield the functions inside a node of the syntax tree, those in functions too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = " ".join(ast.unparse(each) for each in child.decorator_list)
            returns = ast.unparse(child.returns) if child.returns else ""
            adjective = "property" in decorators or returns == "bool"
            yield Function(module, child, adjective, public and not child.name.startswith("_"))
            yield from functions_in(child, module, public=False)
        else:
            hidden = isinstance(child, ast.ClassDef) and child.name.startswith("_")
            yield from functions_in(child, module, public=public and not hidden)


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function without those of functions inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from own_nodes(child)


# Figure, how to count it, the most it may be; None: no limit.
def figures(structure: Structure) -> list[tuple[str, list[str], int | None]]:
    """Return each figure as (name, findings, limit)."""
    return [
        ("modules", list(structure.texts), LIMITS["modules"]),
        ("modules of at most 80 lines with one importer", list(structure.tiny()), LIMITS["tiny"]),
        ("pairs of modules in a circle of imports", list(structure.circles()), 0),
        ("modules over 400 lines, functions over 60", list(structure.long()), 0),
        ("functions named by a participle", list(structure.participles()), LIMITS["participles"]),
        ("public functions without a docstring", list(structure.without_docstring()), LIMITS["undocumented"]),
        (
            "functions between packages without Args, Returns or Raises",
            list(structure.incomplete()),
            LIMITS["incomplete"],
        ),
    ]


LIMITS = {"modules": 238, "tiny": 8, "participles": 0, "undocumented": 0, "incomplete": 7}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures and return 1 if one is above its limit."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.structure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="print the finding behind each figure")
    parser.add_argument(
        "--modules", action="store_true", help="print every module, its lines and its importers"
    )
    chosen = parser.parse_args(arguments)
    structure = Structure()
    if chosen.modules:
        for name, lines in sorted(structure.lines.items()):
            print(f"{lines:5} {name} <- {', '.join(sorted(structure.importers[name]))}")
        return 0
    public = [each for each in structure.functions if each.public]
    print(
        f"{sum(structure.lines.values()):6} lines, {len(structure.functions)} functions, "
        f"{len(public)} public, "
        f"{len(structure.interface())} between packages"
    )
    failed = 0
    for name, findings, limit in figures(structure):
        above = limit is not None and len(findings) > limit
        failed += above
        print(f"{len(findings):6} {name} (limit: {limit})" + ("  ABOVE" if above else ""))
        if (chosen.list and name != "modules") or above:
            print("".join(f"         {each}\n" for each in findings), end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
