"""Where a cluster's images are: folders, every URI that pyarrow or fsspec reads, lists in Parquet."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...errors import InputError
from ...images.find_images import SkippedFiles, find_images, is_system_file, walk

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

LIST_SUFFIX = ".parquet"
_ROWS = 4096  # of a list of paths, read at a time


class PlaceError(InputError):
    """A source or an output that is not there, or that no file system opens."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file system and how its files are named in the output.

    Args:
        uri: what opens the file system, options included; empty for local files.
        prefix: what stands before a key in the output: "s3://" for a bucket, nothing for local files.
    """

    uri: str
    prefix: str


LOCAL = Place("", "")


def find(
    sources: list[str], base: str, *, all_files: bool = False, left_out: SkippedFiles | None = None
) -> Iterator[tuple[Place, str]]:
    """Find the images of all sources, in an order that depends on nothing but their names.

    A file that is named is given whatever it is called; in a folder the suffix decides. A folder that cannot
    be listed is given itself, so that it fails where every other failure is told. At most one folder's
    listing is held at a time, and those of the folders around it.

    Args:
        sources: paths, URIs, and Parquet files with a column `path` of either.
        base: the folder that relative paths start from.
        all_files: give every file in a folder, whatever its suffix.
        left_out: counts the files in folders that are not given.

    Yields:
        The place and the key of each image: what to open there.
    """
    left_out = SkippedFiles() if left_out is None else left_out
    for source in sources:
        if source.endswith(LIST_SUFFIX) or urlsplit(source).path.endswith(LIST_SUFFIX):
            yield from _listed(source, base)
        elif is_uri(source):
            place, path = place_of(source)
            yield from ((place, key) for key in _walk(place, path, all_files, left_out))
        else:
            absolute = Path(base, source)
            found = find_images(absolute, all_files=all_files, skipped=left_out)
            if Path(source).is_absolute():
                yield from ((LOCAL, str(path)) for path in found)
            else:
                yield from ((LOCAL, str(Path(source, path.relative_to(absolute)))) for path in found)


def check(sources: list[str], base: str) -> None:
    """Look whether each source is there.

    Raises:
        PlaceError: if one is not, or cannot be read; what to do is in the message.
    """
    for source in sources:
        system, path = _open(source, base)
        try:
            kind = system.get_file_info([path])[0].type.name
        except OSError as error:
            raise PlaceError(f"{bare(source)}: it cannot be listed: {_reason(error)}") from error
        if kind == "NotFound":
            raise PlaceError(f"{bare(source)}: no such image, folder or list; expected a path or a URI")
        if path.endswith(LIST_SUFFIX) and kind == "File":
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                names = pq.read_schema(path, filesystem=system).names
            except (pa.ArrowException, OSError) as error:
                raise PlaceError(f"{bare(source)}: expected a Parquet file: {_reason(error)}") from error
            if "path" not in names:
                raise PlaceError(
                    f"{bare(source)}: expected a column path in this list, found {', '.join(names) or 'none'}"
                )


def is_uri(text: str) -> bool:
    """Return whether a source or output is a URI, `file:` among them, and not a path."""
    scheme, colon, _ = text.partition("://")
    return bool(colon) and len(scheme) > 1 and scheme.replace("+", "").replace("-", "").isalnum()


def place_of(uri: str) -> tuple[Place, str]:
    """Return the file system that a URI is in, and its path there."""
    _, path = open_uri(uri)
    plain = bare(uri)
    scheme = plain.partition("://")[0]
    return Place(uri, "" if scheme == "file" else _prefix(plain, path)), path


def _prefix(plain: str, path: str) -> str:
    """Return the prefix that turns a key of this file system into a URI; if escaped, only the scheme."""
    plain, path = plain.rstrip("/"), path.rstrip("/")
    return plain.removesuffix(path) if plain.endswith(path) else plain.partition("://")[0] + "://"


def bare(uri: str) -> str:
    """Return a URI without its options and without a password, fit for a message."""
    if not is_uri(uri):
        return uri
    scheme, _, rest = uri.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2] if ':' in host.rpartition('@')[0] else host}{slash}{path}"


@lru_cache(64)
def open_uri(uri: str) -> tuple[FileSystem, str]:
    """Open the file system of a URI with pyarrow, or with fsspec where pyarrow does not know the scheme.

    Returns:
        The file system, and the path that the URI names in it.

    Raises:
        PlaceError: if neither can.
    """
    import pyarrow as pa
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        system, path = FileSystem.from_uri(uri)
        return system, path
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError) as refused:
        try:
            from fsspec.core import url_to_fs

            inner, path = url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise PlaceError(
                f"{bare(uri)}: neither pyarrow ({_reason(refused)}) nor fsspec ({_reason(error)}) opens it"
            ) from error
        return PyFileSystem(FSSpecHandler(inner)), path


def _open(source: str, base: str) -> tuple[FileSystem, str]:
    from pyarrow.fs import LocalFileSystem

    return open_uri(source) if is_uri(source) else (LocalFileSystem(), str(Path(base, source)))


def _listed(source: str, base: str) -> Iterator[tuple[Place, str]]:
    """Read a list; its URIs are opened with the options of the list's own URI where the schemes agree."""
    import pyarrow.parquet as pq

    system, path = _open(source, base)
    if not system.get_file_info([path])[0].is_file:  # a folder of this name
        raise PlaceError(f"{bare(source)}: expected a Parquet file with a column path, found a folder")
    options = urlsplit(source).query if is_uri(source) else ""
    scheme = urlsplit(source).scheme if is_uri(source) else ""
    with system.open_input_file(path) as file:
        for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=["path"]):
            for entry in batch.column(0).to_pylist():
                if entry is not None:
                    yield _entry(entry, scheme, options)


def _entry(entry: str, scheme: str, options: str) -> tuple[Place, str]:
    if not is_uri(entry):
        return LOCAL, entry
    found = urlsplit(entry)
    root = f"{found.scheme}://{found.netloc}"
    place = _root(root + (f"?{options}" if options and scheme == found.scheme else ""))
    return place, entry.removeprefix(place.prefix)


@lru_cache(1024)
def _root(uri: str) -> Place:
    plain = bare(uri)
    scheme = plain.partition("://")[0]
    _, path = open_uri(uri)
    return Place(uri, "" if scheme == "file" else _prefix(plain, path))


def _walk(place: Place, path: str, all_files: bool, left_out: SkippedFiles) -> Iterator[str]:
    """The image files below a path of a file system, depth first, sorted by name in each folder."""
    system, _ = open_uri(place.uri)
    if system.get_file_info([path])[0].type.name != "Directory":
        yield path
        return
    entries = partial(_entries, system)
    yield from walk(path, entries, posixpath.basename, all_files=all_files, skipped=left_out)


def _entries(system: FileSystem, folder: str) -> list[tuple[str, bool]] | None:
    from pyarrow.fs import FileSelector

    try:
        found = system.get_file_info(FileSelector(folder, recursive=False))
    except OSError:
        return None
    # Not to be listed endlessly: some stores give a folder as an entry of itself.
    return sorted(
        (info.path, info.type.name == "Directory")
        for info in found
        if info.path != folder and not is_system_file(posixpath.basename(info.path))
    )


def _reason(error: Any) -> str:
    from ...text import clean_line

    return clean_line(getattr(error, "strerror", None) or str(error)) or type(error).__name__
