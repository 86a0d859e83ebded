"""The work of a cluster run in pieces: chunks of image names, each of which becomes a part of the output.

Only names and counts travel: the images' bytes go from the store into the process that labels them. Nothing
here knows the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ..text import format_count
from .cluster_output import Parts
from .cluster_sources import Store, StoreError, read_ahead
from .label_columns import Labels
from .tally import Tally

_SMALLEST = 16  # images in a chunk
_CHUNKS_PER_CORE = 16  # the last chunk then leaves a core idle for 1/16 of the run at most
_STORE_GONE = 8  # a chunk with so many images, all of which a store does not give, ends the run
Rows = list[tuple[dict[str, Any], bool]]  # the record of each image, and whether its store failed


class Chunk(NamedTuple):
    """Some images of one store."""

    number: int  # from 1, in the order of the listing; names the part of the output
    store: Store
    keys: list[str]


def name_image(image: tuple[Store, str]) -> str:
    """Return what the output calls an image; bytes in its key that are no UTF-8 become backslash escapes."""
    store, key = image
    return (store.prefix + key).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def list_chunks(images: Iterable[tuple[Store, str]], *, largest: int, cores: int) -> Iterator[Chunk]:
    """Group images into chunks of at most `largest`, which grow with the number of images before."""
    number, store, keys = 0, Store(), list[str]()
    for listed, (at, key) in enumerate(images):
        size = min(largest, max(_SMALLEST, listed // (_CHUNKS_PER_CORE * cores)))
        if keys and (at != store or len(keys) >= size):
            number += 1
            yield Chunk(number, store, keys)
            keys = []
        store = at
        keys.append(key)
    if keys:
        yield Chunk(number + 1, store, keys)


def read_and_label_chunk(chunk: Chunk, labels: Labels) -> Rows:
    """Read and label the images of a chunk."""
    largest = 2**20 + 8 * labels.max_pixels  # bytes that the decoder takes
    contents = read_ahead(chunk.store, chunk.keys, largest=largest)
    return [
        (labels.label(name_image((chunk.store, key)), content.data, content.error), content.store_failed)
        for key, content in zip(chunk.keys, contents, strict=True)
    ]


def label_chunk(chunk: Chunk, parts: Parts, label: Callable[[Chunk], Rows]) -> Tally:
    """Label the images of a chunk with `label`, write its part, and return its counts.

    Raises:
        StoreError: if a store gives none of its images; that is no answer that should be kept.
    """
    records, store_failed = zip(*label(chunk), strict=True)
    if all(store_failed) and len(records) >= _STORE_GONE:
        images = format_count(len(records), "image")
        raise StoreError(f"{chunk.store.prefix}: none of {images} could be read: {records[0]['error']}")
    parts.write(chunk.number, records)
    tally = Tally()
    for row in records:
        tally.add(row["path"], error=row["error"], label=row["label"])
    return tally
