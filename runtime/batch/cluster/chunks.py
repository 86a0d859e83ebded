"""The work of a cluster run in pieces: chunks of image names, and what happens to each, engine or not.

A chunk becomes one part of the output. Only names and counts travel: the images' bytes go from the store into
the process that labels them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...images.find_images import SkippedFiles
from ...text import format_count
from ..columns import Labels
from ..resume import Done
from .parts import Parts
from .reading import Content, StoreError, read_ahead, read_one
from .sources import Place, find

CRASHES = 2  # of a process, each while it had the same image in work alone: then the image is left out
_SMALLEST = 16  # images in a chunk
_CHUNKS_PER_CORE = 16  # the last chunk then leaves a core idle for 1/16 of the run at most
_STORE_GONE = 8  # a chunk with so many images, all of which a store does not give, ends the run
_KINDS = 50  # of failures that are counted apart


@dataclass(frozen=True)
class Job:
    """Settings that every process of a run needs.

    Args:
        sources: paths, URIs and lists, as `runtime.batch.cluster.sources.find` takes them.
        base: the folder that relative paths start from.
        parts: the output.
        largest: images in a chunk, at most.
        cores: of the cluster, when the run began.
        all_files: take every file in a folder, whatever its suffix.
    """

    sources: list[str]
    base: str
    parts: Parts
    largest: int
    cores: int
    all_files: bool = False


@dataclass(frozen=True)
class Chunk:
    """Some images of one place."""

    number: int  # from 1, in the order of the listing
    place: Place
    keys: list[str]
    skipped: int  # images before it, since the chunk before, that were done already
    # Files that are no images, by suffix, since the chunk before.
    left_out: Counter[str] = field(default_factory=Counter)

    def paths(self) -> list[str]:
        """Return what the output calls the images: text that is valid UTF-8 whatever the names are."""
        return [portable(self.place.prefix + key) for key in self.keys]


@dataclass
class Summary:
    """Result of one chunk, or of all chunks."""

    images: int = 0
    skipped: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)  # files in folders that are no images, by suffix

    @property
    def failed(self) -> int:
        """Images without a label."""
        return self.failures.total()

    def add(self, other: Summary) -> None:
        """Add the counts of another; kinds of failures beyond the fiftieth are counted together."""
        self.images += other.images
        self.skipped += other.skipped
        self.classes += other.classes
        self.left_out += other.left_out
        for kind, count in other.failures.items():
            known = kind in self.failures or len(self.failures) < _KINDS
            self.failures[kind if known else "other reasons"] += count


class Attempts(Protocol):
    """The memory of what processes died of; see `Ledger`."""

    def begin(self, chunk: int) -> tuple[bool, list[int]]: ...
    def note(self, chunk: int, at: int) -> None: ...
    def end(self, chunk: int) -> None: ...


class Ledger:
    """Remember which chunks were begun, and which image was in work when a process ended.

    A chunk that is begun a second time goes image by image, each noted first. An image that was noted when
    `CRASHES` processes ended is left out from then on.
    """

    def __init__(self) -> None:
        self._begun: dict[int, tuple[Counter[int], int | None]] = {}

    def begin(self, chunk: int) -> tuple[bool, list[int]]:
        """Note an attempt, and return whether it must go image by image, and the images to leave out."""
        careful = chunk in self._begun
        crashes, last = self._begun.get(chunk, (Counter(), None))
        if last is not None:
            crashes[last] += 1
        self._begun[chunk] = crashes, None
        return careful, [at for at, count in crashes.items() if count >= CRASHES]

    def note(self, chunk: int, at: int) -> None:
        """Note that image `at` of a chunk is in work."""
        self._begun[chunk] = self._begun[chunk][0] if chunk in self._begun else Counter(), at

    def end(self, chunk: int) -> None:
        """Forget a chunk that is written."""
        self._begun.pop(chunk, None)


def chunks(job: Job, known: Sequence[str]) -> Iterator[Chunk]:
    """List the images that no part in `known` holds, in chunks that grow with what was listed before.

    The same sources, parts and cores give the same chunks, so that a listing that is lost can be repeated.
    """
    done = Done(job.parts.paths(known))
    number = skipped = seen = 0
    keys: list[str] = []
    place: Place | None = None
    left_out = SkippedFiles()
    for at, key in find(job.sources, job.base, all_files=job.all_files, left_out=left_out):
        if done.take(portable(at.prefix + key)):
            skipped += 1
            continue
        size = min(job.largest, max(_SMALLEST, seen // (_CHUNKS_PER_CORE * job.cores)))
        if place is not None and (at != place or len(keys) >= size):
            number += 1
            yield Chunk(number, place, keys, skipped, left_out.counts)
            keys, skipped, left_out.counts = [], 0, Counter()
        place = at
        keys.append(key)
        seen += 1
    if place is not None:
        yield Chunk(number + 1, place, keys, skipped, left_out.counts)
    elif skipped or left_out.counts:
        yield Chunk(1, Place("", ""), [], skipped, left_out.counts)


def label_chunk(chunk: Chunk, job: Job, labels: Labels, attempts: Attempts) -> Summary:
    """Label the images of a chunk and write its part.

    Raises:
        StoreError: if a store gives none of its images; that is no answer that should be kept.
        StaleRunError: if another run has resumed the output meanwhile.
        OSError: if the part cannot be written.
    """
    careful, crashing = attempts.begin(chunk.number)
    if not chunk.keys:
        return Summary(skipped=chunk.skipped, left_out=chunk.left_out)
    contents = _carefully(chunk, job, labels, attempts, set(crashing)) if careful else None
    contents = contents or read_ahead(chunk.place, chunk.keys, base=job.base, largest=_largest_file(labels))
    columns: dict[str, list[Any]] = {}
    unread = 0
    for path, content in zip(chunk.paths(), contents, strict=True):
        unread += content.store_failed
        row = labels({"path": [path], "bytes": [content.data], "error": [content.error]})
        for name, values in row.items():
            columns.setdefault(name, []).extend(values)
    if unread == len(chunk.keys) >= _STORE_GONE:
        raise StoreError(
            f"{chunk.place.prefix}: none of {format_count(unread, 'image')} could be read: "
            f"{columns['error'][0]}"
        )
    job.parts.write(chunk.number, columns)
    attempts.end(chunk.number)
    return _summary(chunk, columns)


def portable(path: str) -> str:
    """Return a path as text that every format can hold: bytes that are no UTF-8 as backslash escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def kind_of(error: str) -> str:
    """Return the kind of a failure: its message without the numbers of one image."""
    return re.sub(r"\d[\d,]*", "N", error)


def _largest_file(labels: Labels) -> int:
    return 2**20 + 8 * labels.max_pixels  # what the decoder takes, in bytes


def _carefully(
    chunk: Chunk, job: Job, labels: Labels, attempts: Attempts, crashing: set[int]
) -> Iterator[Content]:
    for at, key in enumerate(chunk.keys):
        if at in crashing:
            why = f"{CRASHES} processes ended while they had it in work alone (no memory left, or a crash)"
            yield Content(None, why)
        else:
            attempts.note(chunk.number, at)
            yield read_one(chunk.place, key, base=job.base, largest=_largest_file(labels))


def _summary(chunk: Chunk, columns: Mapping[str, Sequence[Any]]) -> Summary:
    return Summary(
        images=len(chunk.keys),
        skipped=chunk.skipped,
        left_out=chunk.left_out,
        failures=Counter(kind_of(error) for error in columns["error"] if error is not None),
        classes=Counter(label for label in columns["label"] if label is not None),
    )
