"""Checks of a self-contained HTML page, for tests: whole, readable without a network, and accessible."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "img", "br"}
ADDRESSES = ("src", "href", "srcset", "xlink:href", "data", "action", "poster")
SIGNS = {0x2013: "-", 0xD7: "x", 0x2212: "-"}  # typographic signs to plain ones


class Page(HTMLParser):
    """A parsed page; making one fails unless every tag is closed in order.

    Attributes:
        attributes: every attribute of every tag, as (name, value).
        images: the attributes of each `img`.
        headings: the level and words of each heading, in order.
        words: the visible text in pieces.
        code: the text of each `pre`, as it stands.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.open = html, list[str]()
        self.attributes: list[tuple[str, str | None]] = []
        self.images: list[dict[str, str | None]] = []
        self.headings: list[tuple[int, str]] = []
        self.words: list[str] = []
        self.code: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag == "img":
            self.images.append(dict(attrs))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag == "pre":
            self.code.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        found = self.open.pop()
        assert found == tag, f"expected </{found}>, found </{tag}>"

    def handle_data(self, data: str) -> None:
        if {"style", "title"} & set(self.open[-1:]):
            return
        self.words.append(data)
        if "pre" in self.open:
            self.code[-1] += data
        if any(re.fullmatch(r"h[1-6]", tag) for tag in self.open):
            level, words = self.headings[-1]
            self.headings[-1] = (level, words + data)

    @property
    def text(self) -> str:
        """The visible words, with plain signs and single spaces."""
        return " ".join(" ".join(self.words).translate(SIGNS).split())

    def flaws(self) -> list[str]:
        """Return what is wrong for a reader without a network, with a screen reader, or with a printer."""
        found = [
            f"asks for {value}"
            for name, value in self.attributes
            if name in ADDRESSES and not re.match(r"data:image/(jpeg|png);base64,", value or "")
        ]
        if re.search(r"@import|url\(|<script|<link|https?://", self.html):
            found.append("refers to something outside of itself")
        found += [
            "an image without words for it" for image in self.images if not (image.get("alt") or "").strip()
        ]
        levels = [level for level, _ in self.headings]
        if levels[:1] != [1] or levels.count(1) != 1:
            found.append(f"expected one h1, and it first, found levels {levels}")
        found += [
            f"a heading of level {after} below one of level {before}"
            for before, after in pairwise(levels)
            if after > before + 1
        ]
        if '<html lang="en">' not in self.html:
            found.append("does not say its language")
        if 'name="viewport" content="width=device-width' not in self.html:
            found.append("does not fit a phone")
        if "@media print" not in self.html or "prefers-color-scheme: dark" not in self.html:
            found.append("knows nothing of paper or of dark screens")
        return found
