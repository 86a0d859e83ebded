"""Text from files that strangers made, on its way to a terminal or a log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_LONGEST = 400  # characters of a message
# What a terminal obeys instead of showing it: control characters (but tabs and ends of lines, which a quoted
# cell may hold), and marks of the writing direction, which make text look like other text.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str, *, longest: int | None = None) -> str:
    """Text that does nothing to a terminal but appear on it.

    Args:
        text: any text.
        longest: characters to keep, of its start and its end; None for all.
    """
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if longest is None or len(shown) <= longest:
        return shown
    half = longest // 2
    return f"{shown[:half]}…{shown[1 - half :]}"


def without_controls(text: str) -> str:
    """Return text with the characters escaped that a terminal obeys; all others are data and stay."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """A message as one printable line of bounded length: start and end, which say what and what to do."""
    return printable(" ".join(text.split()), longest=_LONGEST)


def counted(count: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun: 1 image, 2,000 images.

    Args:
        count: how many.
        one: the noun for one.
        several: the noun for any other number; None for `one` with an s.
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def first_few(names: Sequence[str], most: int = 5) -> str:
    """Return the first names of a list, and that there are more where there are."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question with the word that is most like one that was typed, or nothing where none is."""
    from difflib import get_close_matches

    # Without the dashes, in which all options are alike.
    bare = {name.lstrip("-"): name for name in known}
    close = get_close_matches(word.lstrip("-").casefold(), list(bare), n=1, cutoff=0.6)
    return f"; did you mean {bare[close[0]]}?" if close else ""


def flaw(error: Exception) -> str:
    """Describe an error in a document for a message; a `KeyError` alone states only a name."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)
