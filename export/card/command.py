"""Command line `vit-edge card FOLDER`: write a model card and a list of components."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.command.line import PACKAGE, run_command
from runtime.command.parser import REQUIRED, Parser, argument, option, options_from
from runtime.errors import DONE
from runtime.text import make_printable
from runtime.writing import write_atomically

CARD, COMPONENTS = "README.md", "model.cdx.json"
_REST = f"""\
{CARD} is a model card with the front matter of the Hugging Face hub; {COMPONENTS} is a CycloneDX 1.6 document
with the models, the data and the packages of the runtime. Each figure is one of report.json.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted."""


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """Write the papers of an exported model."""

    folder: Path = argument(REQUIRED, "folder that the export wrote", metavar="FOLDER")
    license: str | None = option(None, 'license of the model, as "apache-2.0" (default: not stated)')
    out: Path | None = option(None, "folder for both files (default: FOLDER)", metavar="DIR")


def main(arguments: Sequence[str] | None = None, *, prog: str) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: the words; None takes those of the process.
        prog: the command as it was typed.
    """
    parser = Parser(prog=prog, options=CardOptions, first_word=PACKAGE)
    parser.add_version()
    parser.add_examples("artifacts/flowers --license apache-2.0", rest=_REST)
    options = options_from(CardOptions, parser.parse_args(arguments))
    return run_command(parser.first_word, lambda: _run(options), extra="export")


def _run(options: CardOptions) -> int:
    from export.card.components import write_components
    from export.card.facts import Facts
    from export.card.model_card import write_model_card

    facts, folder = Facts.read(options.folder), options.out or options.folder
    texts = {
        CARD: write_model_card(facts, license_name=options.license),
        COMPONENTS: write_components(facts, license_name=options.license),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode("utf-8"))
        print(make_printable(str(folder / name)))
    if options.license is None:
        print("the license is not stated; --license adds it", file=sys.stderr)
    return DONE
