"""Text from files that strangers made, on its way to a terminal or a log."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 400  # characters of a message


def printable(text: str) -> str:
    """Text that does nothing to a terminal but appear on it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """A message as one printable line of bounded length: start and end, which say what and what to do."""
    line = printable(" ".join(text.split()))
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]}…{line[1 - half :]}"


def counted(count: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun: 1 image, 2,000 images.

    Args:
        count: how many.
        one: the noun for one.
        several: the noun for any other number; None for `one` with an s.
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question with the word that is most like one that was typed, or nothing where none is."""
    from difflib import get_close_matches

    close = get_close_matches(word.casefold(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def flaw(error: Exception) -> str:
    """Describe an error in a document for a message; a `KeyError` alone states only a name."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)
