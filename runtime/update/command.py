"""Command lines `vit-edge sign`, `verify`, `install`, `rollback` and `status`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..batch.options import DeviceChoice
from ..command.line import PACKAGE, divert_standard_output, run_command
from ..command.parser import REQUIRED, Parser, argument, natural, option, options_from
from ..errors import DONE, FAILED
from ..text import make_printable

_MODEL = "an .onnx file, or a folder: every model in it"


@dataclass(frozen=True, kw_only=True)
class SignOptions:
    """Sign a model file, and the file of weights beside it: MODEL.sig."""

    model: Path = argument(REQUIRED, _MODEL, metavar="MODEL")
    key: Path = option(
        REQUIRED, "private key in PEM: openssl genpkey -algorithm ed25519 -out KEY", metavar="KEY"
    )
    version: int = option(
        0, "whole number that an update has to raise (default: none)", parse=natural, metavar="N"
    )


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Verify the signature of a model file."""

    model: Path = argument(REQUIRED, _MODEL, metavar="MODEL")
    key: Path = option(REQUIRED, "public key in PEM: openssl pkey -in KEY -pubout", metavar="PUBLIC")


@dataclass(frozen=True, kw_only=True)
class InstallOptions(DeviceChoice):
    """Install a model on this device, if its signature, version and self-test are right."""

    new: Path = argument(REQUIRED, "an .onnx file, or a folder with that for the device", metavar="NEW")
    into: Path = option(REQUIRED, "the folder that the app opens", metavar="FOLDER")
    key: Path | None = option(
        None, "public key in PEM that must have signed it (default: it need not be signed)", metavar="PUBLIC"
    )
    downgrade: bool = option(False, "accept a smaller version, and a model that was rolled back")
    labels_changed: bool = option(False, "accept other labels than those of the current model")
    untested: bool = option(False, "accept a file without a self-test")
    max_mb: int = option(2048, "refuse files with more MiB")


@dataclass(frozen=True, kw_only=True)
class RollbackOptions:
    """Go back to the model before the current one."""

    folder: Path = argument(REQUIRED, "the folder of vit-edge install", metavar="FOLDER")


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Say which model is installed."""

    folder: Path = argument(REQUIRED, "the folder of vit-edge install", metavar="FOLDER")
    json: bool = option(False, "print it as JSON")


def _sign(options: SignOptions) -> int:
    from .signature import sign_model, signature_path

    for file in _list_files(options.model):
        signed = sign_model(file, options.key, options.version)
        print(make_printable(f"{signature_path(file)}: version {signed.version or 'none'}, key {signed.key}"))
    return DONE


def _verify(options: VerifyOptions) -> int:
    from ..model_file.artifact import read_artifact
    from .signature import read_signature

    for file in _list_files(options.model):
        signed = read_signature(file, options.key)
        _ = read_artifact(file, sha256=signed.sha256).sha256
        print(make_printable(f"{file}: verified, version {signed.version or 'none'}, key {signed.key}"))
    return DONE


def _list_files(model: Path) -> list[Path]:
    """Return the model files that are meant: in a folder all; of a folder of installed ones, the current."""
    from ..model_file.artifact import FILE_NAMES, choose_model_file

    first = choose_model_file(model, tuple(FILE_NAMES))
    beside = [first.with_name(name) for name in FILE_NAMES.values()]
    return [first] if first == model else [file for file in beside if file.exists()]


def _install(options: InstallOptions) -> int:
    from .install import Conditions, install_model

    conditions = Conditions(
        key=options.key,
        downgrade=options.downgrade,
        labels_changed=options.labels_changed,
        untested=options.untested,
        most=options.max_mb * 2**20,
        device=options.device,
        options=options.device_options,
    )
    with divert_standard_output():
        line = install_model(options.new, options.into, conditions)
    print(make_printable(line))
    return DONE


def _roll_back(options: RollbackOptions) -> int:
    from .install import roll_back

    print(make_printable(roll_back(options.folder)))
    return DONE


def _show_status(options: StatusOptions) -> int:
    from .folder import read_status

    status = read_status(options.folder)
    current = status["current"]
    if options.json:
        print(json.dumps(status, ensure_ascii=False, indent=1))
    elif current is None:
        print(make_printable(status["error"]))
    else:
        signed = f"signed, version {current['version'] or 'none'}" if current["signed"] else "not signed"
        before = f"model {status['previous']}" if status["previous"] else "none"
        lines = [
            f"current   model {current['model']}, since {current['since'] or 'an unknown time'}",
            f"file      {current['file']} ({current['variant']}, {current['labels']} labels)",
            f"SHA-256   {current['sha256']}",
            f"signature {signed}",
            f"before    {before}",
        ]
        print(*map(make_printable, lines), sep="\n")
    return DONE if current else FAILED


class Command(NamedTuple):
    """One command: the dataclass of its options, what does it, its line of help, and examples."""

    options: type[Any]
    work: Callable[[Any], int]
    summary: str
    examples: tuple[str, ...]


COMMANDS = {
    "sign": Command(
        SignOptions, _sign, "sign a model file for updates", ("artifacts/flowers --key key.pem --version 4",)
    ),
    "verify": Command(
        VerifyOptions, _verify, "verify the signature of a model file", ("model.int8.onnx --key public.pem",)
    ),
    "install": Command(
        InstallOptions,
        _install,
        "install a model on this device: verify, test, switch",
        ("artifacts/flowers --into models", "new/model.int8.onnx --into models --key public.pem"),
    ),
    "rollback": Command(RollbackOptions, _roll_back, "go back to the model before", ("models",)),
    "status": Command(
        StatusOptions, _show_status, "say which model is installed", ("models", "models --json")
    ),
}


def main(arguments: Sequence[str] | None = None, *, prog: str) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: the words; None takes those of the process.
        prog: the command as it was typed, without the word for one of `COMMANDS`.
    """
    top = Parser(prog=prog, first_word=PACKAGE, description="Sign, install and roll back models on a device.")
    top.add_version()
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (options, _, summary, examples) in COMMANDS.items():
        parser = commands.add_parser(name, help=summary, options=options, first_word=PACKAGE)
        parser.add_examples(*examples, rest="Exit codes: 0 done, 1 failed, 2 refused, 130 interrupted.")
    found = top.parse_args(arguments)
    command = COMMANDS[found.command]
    return run_command(PACKAGE, lambda: command.work(options_from(command.options, found)), extra="cpu")
