"""Make untrusted text safe to print; counts, lists and suggestions for messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_LONGEST = 400  # characters of a message
# What a terminal obeys instead of showing it: control characters (but tabs and ends of lines, which a quoted
# cell may hold), and marks of the writing direction, which make text look like other text.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def make_printable(text: str, *, longest: int | None = None) -> str:
    """Return text with every character escaped that does more to a terminal than appear on it.

    Args:
        text: any text.
        longest: characters to keep, half of its start and half of its end; None for all.
    """
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if longest is None or len(shown) <= longest:
        return shown
    half = longest // 2
    return f"{shown[:half]}…{shown[1 - half :]}"


def escape_controls(text: str) -> str:
    """Return text with the characters escaped that a terminal obeys; line ends and tabs stay, as data."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def clean_line(text: str) -> str:
    """Return a message as one printable line of at most 400 characters, cut out of its middle.

    Args:
        text: the message; its start and its end are kept.
    """
    return make_printable(" ".join(text.split()), longest=_LONGEST)


def format_count(count: int, one: str, several: str | None = None) -> str:
    """Return a number and its noun: 1 image, 2,000 images.

    Args:
        count: how many.
        one: the noun for one.
        several: the noun for any other number; None for `one` with an s.
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def list_first(names: Sequence[str], most: int = 5) -> str:
    """Return the first names of a list with commas between them, and "…" where there are more.

    Args:
        names: all names.
        most: how many to list.
    """
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def suggest(word: str, words: Iterable[str]) -> str:
    """Return "; did you mean WORD?" with the most similar word; empty where none is similar.

    Args:
        word: what was typed.
        words: all that exist.
    """
    from difflib import get_close_matches

    # Without the dashes, in which all options are alike.
    bare = {name.lstrip("-"): name for name in words}
    close = get_close_matches(word.lstrip("-").casefold(), list(bare), n=1, cutoff=0.6)
    return f"; did you mean {bare[close[0]]}?" if close else ""


def describe_error(error: Exception) -> str:
    """Return the message of an error that reading a document raised; that of a `KeyError` is only a name.

    Args:
        error: the error.
    """
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)
