"""Files that a walk through folders leaves out: counted, and told in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ..text import printable
from .files import suffix_of

LINKS = "links to folders"
_NO_SUFFIX, _OTHER = "no suffix", "other"
_LONGEST, _KINDS, _SHOWN = 12, 200, 10  # characters of a suffix; kinds that are counted; that a line names


class LeftOut:
    """Count of the files that a walk through folders passed by, by suffix; its size is bounded."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @staticmethod
    def of(parts: Iterable[LeftOut]) -> LeftOut:
        """Return all counts together; images that were split share one, which counts once."""
        together = LeftOut()
        for left_out in {id(part): part for part in parts}.values():
            together.counts += left_out.counts
        return together

    def aside(self) -> str:
        """Return the counts in brackets for the middle of a message; empty where nothing was left out."""
        line = left_out_line(self.counts)
        return f" ({line})" if line else ""

    def add_link(self) -> None:
        """Count a link to a folder."""
        self.add(LINKS)

    def add(self, kind: str) -> None:
        """Count one; kinds beyond the two-hundredth are counted together."""
        self.counts[kind if kind in self.counts or len(self.counts) < _KINDS else _OTHER] += 1

    def add_file(self, name: str) -> None:
        """Count a file by its suffix."""
        suffix = suffix_of(name)
        self.add(suffix if 0 < len(suffix) <= _LONGEST else _OTHER if suffix else _NO_SUFFIX)


def left_out_line(counts: Mapping[str, int]) -> str:
    """Return what was left out as one line, "skipped 12 files: .dng 9, .jxl 3"; empty where nothing was.

    Args:
        counts: of a `LeftOut`.
    """
    kinds = sorted(((kind, n) for kind, n in counts.items() if kind != LINKS), key=lambda each: -each[1])
    parts = []
    if total := sum(n for _, n in kinds):
        named = [f"{printable(kind)} {n:,}" for kind, n in kinds[:_SHOWN]]
        named += [f"others {sum(n for _, n in kinds[_SHOWN:]):,}"] if len(kinds) > _SHOWN else []
        parts.append(f"{total:,} {'file' if total == 1 else 'files'}: {', '.join(named)}")
    if links := counts.get(LINKS, 0):
        parts.append("1 link to a folder" if links == 1 else f"{links:,} links to folders")
    return f"skipped {'; '.join(parts)}" if parts else ""
