"""The parser of `python -m export CHECKPOINT --quantize --calibration IMAGES --out DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from export.command.arguments import add_arguments
from runtime.command.line import Parser, run_command
from vit.data.public import public_command


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m export") -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: None takes those of the process.
        prog: the command as it was typed, for usage.
    """
    options = parser(prog).parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    options.command = public_command(["python", "-m", "export", *words])
    extra = "export" if options.onnx is None else "onnx"
    stopped = "stopped; the files of the last export are as they were"

    def work() -> int:
        from export.command.run import run

        return run(options)

    return run_command("export", work, stopped=stopped, extra=extra)


def parser(prog: str) -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=prog,
        description="Turn a checkpoint into ONNX files for a device; measure them against the float model.",
    )
    parser.name = "export"
    add_arguments(parser)
    parser.add_version()
    parser.add_examples(
        "runs/flowers --quantize --calibration PHOTOS",
        "runs/flowers --quantize --calibration PHOTOS --max-drift 0.5",
        "--onnx vit-onnx/ --quantize --calibration PHOTOS",
        rest="Exit codes: 0 done; 1 the export failed, or a variant misses a limit: nothing was written;\n"
        "2 wrong use; 130 interrupted.",
    )
    return parser
