"""Where the images of a cluster are (folders, URIs of stores, lists in Parquet), and reading them ahead."""

from __future__ import annotations

import os
import posixpath
import stat
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ..concurrency import in_parallel
from ..errors import FailureError, InputError
from ..images.find_images import SkippedFiles, find_images, is_system_file, walk_folder
from ..text import clean_line

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_LIST_SUFFIX = ".parquet"
_ROWS = 4096  # of a list of paths, read at a time
_THREADS = 8  # what hides 100 ms of a store's latency behind images of 30 ms, and leaves some room
_AHEAD = 16  # files
_LARGE = 2**23  # bytes; larger files are read when it is their turn: 16 × 8 MiB is what may lie ready
_PAUSES = (0.5, 2.0)  # seconds before a store is asked again


class LocationError(InputError):
    """A source or an output that does not exist, or that no file system opens."""


class StoreError(FailureError):
    """A store that gave none of the files of a chunk: not the files are at fault."""


class Store(NamedTuple):
    """A file system, and how its files are named in the output."""

    uri: str = ""  # what opens it, options included; empty for local files
    prefix: str = ""  # what stands before a key in the output: "s3://" for a bucket, nothing for local files
    base: str = ""  # the folder that relative local paths start from


def is_uri(text: str) -> bool:
    """Return whether a source or output is a URI, `file:` among them, and not a path."""
    scheme, colon, _ = text.partition("://")
    return bool(colon) and len(scheme) > 1 and scheme.replace("+", "").replace("-", "").isalnum()


def hide_secrets(uri: str) -> str:
    """Return a URI without its options and without a password, for messages; a path as it is."""
    if not is_uri(uri):
        return uri
    scheme, _, rest = uri.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    user, _, name = host.rpartition("@")
    return f"{scheme}://{name if ':' in user else host}{slash}{path}"


def open_location(location: str) -> tuple[FileSystem, str]:
    """Open the file system of a URI, or of a path that may be relative; return it with the path there.

    pyarrow opens a URI, or fsspec where pyarrow does not know the scheme, or LocationError is raised.
    """
    if is_uri(location):
        return _open_uri(location)
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem(), os.path.abspath(location)  # noqa: PTH100 (links stay as they are typed)


@lru_cache(64)
def _open_uri(uri: str) -> tuple[FileSystem, str]:
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
            raise LocationError(
                f"{hide_secrets(uri)}: neither pyarrow ({_reason(refused)}) nor fsspec ({_reason(error)}) "
                "opens it"
            ) from error
        return PyFileSystem(FSSpecHandler(inner)), path


@lru_cache(1024)
def find_store(uri: str) -> tuple[Store, str]:
    """Return the store that a URI is in, and its path there; raise LocationError if nothing opens it."""
    path, scheme = _open_uri(uri)[1], urlsplit(uri).scheme
    if scheme == "file":
        return Store(), path
    plain, key = hide_secrets(uri).rstrip("/"), path.rstrip("/")
    # A path with escapes is not the end of its URI: then the scheme alone is the prefix.
    return Store(uri, plain.removesuffix(key) if plain.endswith(key) else f"{scheme}://"), path


def check_sources(sources: Sequence[str]) -> None:
    """Raise a LocationError unless each path, URI, and Parquet file with a column `path` of either exists."""
    for source in sources:
        system, path = open_location(source)
        shown = hide_secrets(source)
        try:
            info = system.get_file_info([path])[0]
        except OSError as error:
            raise LocationError(f"{shown}: it cannot be listed: {_reason(error)}") from error
        if info.type.name == "NotFound":
            raise LocationError(f"{shown}: no such image, folder or list; expected a path or a URI")
        if not path.endswith(_LIST_SUFFIX):
            continue
        if not info.is_file:
            raise LocationError(f"{shown}: expected a Parquet file with a column path, found a folder")
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            names = pq.read_schema(path, filesystem=system).names
        except (pa.ArrowException, OSError) as error:
            raise LocationError(f"{shown}: expected a Parquet file: {_reason(error)}") from error
        if "path" not in names:
            found = ", ".join(names) or "none"
            raise LocationError(f"{shown}: expected a column path in this list, found {found}")


def list_stored_images(
    sources: Sequence[str], *, all_files: bool = False, left_out: SkippedFiles | None = None
) -> Iterator[tuple[Store, str]]:
    """Yield the store and the key of each image, in an order that depends on nothing but their names.

    A file that is named is yielded whatever its suffix; in a folder the suffix decides, unless `all_files`.
    A folder that cannot be listed is yielded itself, so that it fails where every other failure is reported.
    At most one folder's listing is held at a time, and those of the folders around it.
    """
    local = Store(base=str(Path.cwd()))
    for source in sources:
        if source.endswith(_LIST_SUFFIX) or urlsplit(source).path.endswith(_LIST_SUFFIX):
            yield from _read_list(source, local)
            continue
        store, path = find_store(source) if is_uri(source) else (local, source)
        if store.uri:
            yield from ((store, key) for key in _walk_store(store, path, all_files, left_out))
        else:
            found = find_images(path, all_files=all_files, skipped=left_out)
            yield from ((local, str(image)) for image in found)


def _read_list(source: str, local: Store) -> Iterator[tuple[Store, str]]:
    """Yield the entries of a list; its own options open their stores where the schemes agree."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    system, path = open_location(source)
    own = urlsplit(source) if is_uri(source) else urlsplit("")
    try:
        with system.open_input_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=["path"]):
                for entry in filter(None, batch.column(0).to_pylist()):
                    yield _find_entry(entry, own.scheme, own.query) if is_uri(entry) else (local, entry)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{hide_secrets(source)}: it cannot be read: {_reason(error)}") from error


def _find_entry(entry: str, scheme: str, options: str) -> tuple[Store, str]:
    """Return the store and key of a URI whose path is no part of a URI: nothing in it is escaped."""
    found = urlsplit(entry)
    root = f"{found.scheme}://{found.netloc}"
    store, _ = find_store(root + (f"?{options}" if options and scheme == found.scheme else ""))
    return store, entry.removeprefix(store.prefix or "file://")


def _walk_store(store: Store, path: str, all_files: bool, left_out: SkippedFiles | None) -> Iterator[str]:
    """Yield the image files below a path of a store, depth first, sorted by name in each folder."""
    system, _ = _open_uri(store.uri)
    if system.get_file_info([path])[0].type.name != "Directory":
        yield path
        return
    entries = partial(_list_folder, system)
    yield from walk_folder(path, entries, posixpath.basename, all_files=all_files, skipped=left_out)


def _list_folder(system: FileSystem, folder: str) -> list[tuple[str, bool]] | None:
    from pyarrow.fs import FileSelector

    try:
        found = system.get_file_info(FileSelector(folder, recursive=False))
    except OSError:
        return None
    # Some stores list a folder as an entry of itself.
    return sorted(
        (info.path, info.type.name == "Directory")
        for info in found
        if info.path != folder and not is_system_file(posixpath.basename(info.path))
    )


class Content(NamedTuple):
    """Content of one file, or why there is none."""

    data: bytes | Path | None  # a local path where the decoder reads, or refuses, the file itself
    error: str | None = None
    store_failed: bool = False  # not the file is at fault, which may be missing or too large


def read_ahead(store: Store, keys: Sequence[str], *, largest: int) -> Iterator[Content]:
    """Read files of a store in order, some ahead on other threads; more than `largest` bytes are an error."""
    read = partial(_read, store, largest=largest, limit=min(_LARGE, largest))
    for key, content in zip(keys, in_parallel(read, keys, workers=_THREADS, ahead=_AHEAD), strict=True):
        content = content or _read(store, key, largest=largest, limit=largest)
        assert content is not None  # nothing is above this limit that is not an error
        yield content


def _read(store: Store, key: str, *, largest: int, limit: int) -> Content | None:
    """Read a file of at most `limit` bytes; None if it has more of them, and not more than `largest`."""
    if not store.uri:
        return _read_local(Path(store.base, key), limit)
    for pause in (*_PAUSES, None):
        try:
            return _read_remote(store, key, largest, limit)
        except OSError as error:
            reason = _reason(os.strerror(error.errno) if error.errno else error)
            if isinstance(error, FileNotFoundError | IsADirectoryError):
                return Content(None, f"it cannot be opened: {reason}")
            if pause is None or isinstance(error, PermissionError):
                return Content(None, f"the store did not give it: {reason}", store_failed=True)
            time.sleep(pause)
    raise AssertionError("the last attempt returns")


def _read_local(path: Path, limit: int) -> Content:
    """Read an ordinary file; the decoder opens any other itself, and explains what is wrong with it."""
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and 0 < status.st_size <= limit:
            return Content(path.read_bytes())
    except (OSError, ValueError):
        pass  # the decoder reports it, in the words that a single machine uses
    return Content(path)


def _read_remote(store: Store, key: str, largest: int, limit: int) -> Content | None:
    system, _ = _open_uri(store.uri)
    with system.open_input_file(key) as file:
        size = file.size()
        if size > largest:
            return Content(None, f"it has {size:,} bytes, more than the limit of {largest:,}")
        return Content(file.read(size)) if size <= limit else None


def _reason(error: Any) -> str:
    return clean_line(getattr(error, "strerror", None) or str(error)) or type(error).__name__
