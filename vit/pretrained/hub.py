"""Models by their names on the Hugging Face hub: the files that are needed, in the cache of huggingface_hub.

No torch here: an export of an ONNX model takes names too. The package is an extra and is imported when a name
is used; its variables (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HOME, …) have their usual meaning.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from runtime.command.line import is_installed
from runtime.command.progress import Step, is_on_terminal, print_for_people
from runtime.errors import FailureError, MissingPackageError, install_line
from runtime.text import list_first
from vit.pretrained.description import PREPROCESSOR, PROCESSOR, SourceError

PREFIX = "hf:"
DOCUMENTS = ("config.json", PREPROCESSOR, PROCESSOR)
FORM = f"{PREFIX}OWNER/NAME, with /FILE and @REVISION where they are needed"
_WORD = r"\w(?:[\w.-]{0,94}\w)?"
_FILE = re.compile(r"(?:/[^/@\\:\x00-\x1f]+)+")
_NAME = re.compile(rf"({_WORD}/{_WORD})((?:{_FILE.pattern})?)(?:@(\w[\w./-]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_snapshot(path: Path) -> str:
    """Return hf:OWNER/NAME@COMMIT for a file or folder in the cache; empty for any other path.

    Args:
        path: in the cache it has the parts models--OWNER--NAME/snapshots/COMMIT.
    """
    for folder in (path, *path.parents):
        kind, _, repository = folder.parent.parent.name.partition("--")
        if folder.parent.name == "snapshots" and kind == "models":
            return f"{PREFIX}{repository.replace('--', '/')}@{folder.name}"
    return ""


def name_snapshot(path: Path) -> str:
    """Return the name of the repository, without its owner, for a path in the cache; else empty.

    Args:
        path: a file or folder anywhere.
    """
    return find_snapshot(path).partition("@")[0].rpartition("/")[2]


def describe_download(path: Path, source: object = None) -> dict[str, str]:
    """Return where a model was downloaded from as `downloaded_from`, a field of descriptions, or no field.

    Args:
        path: the model.
        source: the source that a checkpoint was imported from.
    """
    found = find_snapshot(path) or str(source)
    return {"downloaded_from": found} if found.startswith(PREFIX) else {}


def is_hub_name(source: Path) -> bool:
    """Return whether a source is a name on the hub, whatever files there are.

    Args:
        source: what was given as a path.
    """
    return source.as_posix().startswith(PREFIX)


def download(
    source: Path,
    choose: Callable[[Collection[str]], list[str]],
    list_beside: Callable[[Path], Iterable[str]],
    *,
    what: str,
    plain: bool = False,
) -> Path:
    """Bring the files of a model into the cache, and print which they are.

    Args:
        source: hf:OWNER/NAME, with /FILE and @REVISION where they are needed; a path is returned as it is.
        choose: returns the candidates for the model's file among the files of a repository.
        list_beside: returns the names of further files that this file needs beside it.
        what: the model's file in words, "a file of weights".
        plain: take OWNER/NAME for a name too, where neither it nor the folder OWNER exists.

    Returns:
        The folder of the revision, or the FILE in it.

    Raises:
        SourceError: for a name, revision or file that the hub does not have, or does not give to this user.
        FailureError: when the hub cannot be reached, and the cache does not have the revision either.
        MissingPackageError: without huggingface_hub.
    """
    if (name := _parse_name(source, plain=plain)) is None:
        return source
    if not is_installed("huggingface_hub"):
        raise MissingPackageError(f"{name.shown}: it needs huggingface_hub; {install_line('hub')}")
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True
    with _explain_errors(name):
        found = _look_up(name)
        file = _choose_file(name, found, choose, what)
        parent = file[: file.rfind("/") + 1]
        documents = (f"{place}{each}" for place in dict.fromkeys(("", parent)) for each in DOCUMENTS)
        # The documents first: where a download broke off, weights in the cache have theirs beside them.
        files = [each for each in (*documents, file) if each in found.files]
        for each in files:
            folder = _fetch(name, found, each)
        beside = sorted(f"{parent}{each}" for each in list_beside(folder / file))
        for each in beside:
            if each in found.files:
                _fetch(name, found, each)
                files.append(each)
    cached = f"; of the cache alone, since {found.reason}" if found.folder else ""
    print_for_people(f"hub: {PREFIX}{name.repository}@{found.commit}: {', '.join(files)}{cached}")
    return folder / name.file


# --- Names ---


@dataclass(frozen=True)
class _Name:
    """The parts of a name."""

    shown: str  # for messages
    repository: str
    file: str  # empty for none
    revision: str | None


def _parse_name(source: Path, *, plain: bool) -> _Name | None:
    """Return the parts of a name; None for a path."""
    text = source.as_posix()
    match = _NAME.fullmatch(text.removeprefix(PREFIX).lstrip("/"))  # hf://OWNER/NAME is usual too
    if match is None or ".." in text or "--" in match[1] or match[1].endswith(".git"):
        if is_hub_name(source):
            raise SourceError(f"{text}: expected {FORM}")
        return None
    if not is_hub_name(source):
        if not plain or match[2] or os.path.lexists(source) or Path(source.parts[0]).exists():
            return None
        text += " (not here, so looked for on the hub)"
    return _Name(text, match[1], match[2].removeprefix("/"), match[3])


def _choose_file(
    name: _Name, listing: _Listing, choose: Callable[[Collection[str]], list[str]], what: str
) -> str:
    """Return the model's file: the one that is named, or the only candidate."""
    if name.file in listing.files:
        return name.file
    found = [] if name.file else choose(listing.files)
    if len(found) == 1:
        return found[0]
    place = f"in the cache ({listing.reason})" if listing.folder else "in the repository"
    there = f"several: {', '.join(found)}" if found else list_first(sorted(listing.files), 10) or "no file"
    hint = f"name one: {PREFIX}{name.repository}/FILE"
    raise SourceError(f"{name.shown}: expected {name.file or what} {place}, found {there}; {hint}")


# --- The library ---


@dataclass(frozen=True)
class _Listing:
    """The files of a revision, of the repository or, where the hub does not answer, of the cache alone."""

    commit: str
    files: Collection[str]
    folder: Path | None = None  # in the cache, where the hub does not answer
    reason: str = ""  # why it does not


def _client_errors() -> tuple[type[BaseException], ...]:
    """Return the root of the errors of the library's HTTP client, another package by version, and OSError."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast("tuple[type[BaseException], ...]", HfHubHTTPError.__bases__)


def _look_up(name: _Name) -> _Listing:
    """Ask the hub for the files of a revision; without network, the cache."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        info = HfApi().model_info(name.repository, revision=name.revision)
    except HfHubHTTPError:
        raise
    except _client_errors() as error:
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} cannot be reached ({error})"
        try:
            found = snapshot_download(
                name.repository, revision=name.revision, local_files_only=True, allow_patterns=[]
            )
        except LocalEntryNotFoundError:
            there = f"{reason}, and {constants.HF_HUB_CACHE} does not have revision {name.revision or 'main'}"
            raise FailureError(f"{name.shown}: {there}; run it once with a connection to the hub") from error
        folder = Path(found)
        files = [each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()]
        return _Listing(folder.name, files, folder, reason)
    except (ValueError, TypeError, KeyError) as error:
        told = f"{constants.ENDPOINT} does not answer as a hub ({error})"
        raise FailureError(f"{name.shown}: {told}") from error
    if not _COMMIT.fullmatch(commit := str(info.sha)):
        raise FailureError(f"{name.shown}: expected the hash of a commit from the hub, found {commit!r:.60}")
    names = [each.rfilename for each in info.siblings or ()]
    return _Listing(commit, [each for each in names if _FILE.fullmatch(f"/{each}") and ".." not in each])


def _fetch(name: _Name, found: _Listing, file: str) -> Path:
    """Download a file that the cache does not have yet, and return the folder of the revision."""
    if found.folder is not None:
        return found.folder
    from huggingface_hub import hf_hub_download

    what = f"downloading {file} of {name.repository}"
    with Step("hub", what, unit="byte", quiet=not is_on_terminal()) as step:
        path = hf_hub_download(name.repository, file, revision=name.revision, tqdm_class=_make_bar(step))
    folder = Path(path).parents[file.count("/")]
    # The library takes a file of the cache where the connection is lost.
    if folder.name != found.commit:
        raise FailureError(f"{name.shown}: the revision changed during the download; run it again")
    return folder


def _make_bar(step: Step) -> Any:
    """Return the class of a progress bar of the library that is not drawn, and moves a step."""
    from huggingface_hub import utils

    bars: list[Any] = []  # a download from Xet makes two, of which the first counts the bytes of the file

    class Bar(cast("Any", utils).tqdm):  # type: ignore[misc]
        def __init__(self, *words: Any, **settings: Any) -> None:
            super().__init__(*words, **settings | {"disable": True})
            bars.append(self)
            if self is bars[0]:
                step.total = settings.get("total") or 0
                step.to(settings.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            if self is bars[0]:
                step.update(int(n or 0))

    return Bar


@contextmanager
def _explain_errors(name: _Name) -> Iterator[None]:
    """Turn the errors of the library into one line each."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{name.repository}"
    branch = name.revision or "main"
    known: dict[type[Exception], str] = {
        errors.RevisionNotFoundError: f"no revision {branch} in the repository; {page}/commits lists them",
        errors.GatedRepoError: "access to the repository is restricted; "
        f"accept its terms at {page}, then set HF_TOKEN or run hf auth login",
        errors.RepositoryNotFoundError: f"no such model at {constants.ENDPOINT}; "
        "check the name; a private repository needs HF_TOKEN or hf auth login",
    }
    try:
        yield
    except errors.HfHubHTTPError as error:
        for kind, words in known.items():
            if isinstance(error, kind):
                raise SourceError(f"{name.shown}: {words}") from error
        status = error.response.status_code
        token = "check the token (HF_TOKEN, or hf auth login)" if status in (401, 403) else "try again later"
        how = f"{token}, or set HF_HUB_OFFLINE=1 to take what the cache has"
        raise FailureError(f"{name.shown}: {constants.ENDPOINT} answered {status}; {how}") from error
    except _client_errors() as error:
        first = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
        raise FailureError(f"{name.shown}: the download stopped ({first:.300}); run it again") from error
