"""HTML pages from templates: style and images are in the file, so that a page needs no network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from html import unescape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, TemplateNotFound
from markupsafe import Markup

HERE = "vit.page"
NO_FILTERS: Mapping[str, Callable[..., Any]] = {}
_HIDDEN = re.compile(r"<(style|title)\b.*?</\1>", re.S)
_TAG = re.compile(r"<[^>]*>")


def render_page(
    package: str, template: str, filters: Mapping[str, Callable[..., Any]] = NO_FILTERS, /, **content: Any
) -> str:
    """Render a template of a package as one self-contained HTML document.

    Args:
        package: where the template is; what it extends or includes may also be in `vit.page`.
        template: file name of the template, which extends "page.html.j2".
        filters: filters of the template, by name.
        content: variables of the template. The terms that occur in it are explained at the page's end.
    """
    environment = _environment(package)
    environment.filters.update(filters)
    found = environment.get_template(template)
    text = visible_text(found.render(terms=(), **content))
    return found.render(terms=find_terms(text), **content)


def visible_text(html: str) -> str:
    """Return the words of a page, without tags, style and title."""
    return " ".join(unescape(_TAG.sub(" ", _HIDDEN.sub(" ", html))).split())


@cache
def _environment(package: str) -> Environment:
    def source(name: str) -> str:
        for each in (package, HERE):
            file = files(each).joinpath(*name.split("/"))
            if file.is_file():
                return file.read_text(encoding="utf-8")
        raise TemplateNotFound(name)

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.loader = FunctionLoader(source)
    environment.globals["style"] = Markup(source("page.css"))
    return environment


# --- Words that a page explains at its end, one line each ---


@dataclass(frozen=True)
class Term:
    """A word of a page and its meaning in one line."""

    name: str
    meaning: str
    pattern: str = ""  # where it occurs; empty: its name, as a word, in any case

    def occurs(self, text: str) -> bool:
        """Return whether the term occurs in the words of a page."""
        pattern = self.pattern or rf"\b{re.escape(self.name)}s?\b"
        return re.search(pattern, text, re.IGNORECASE) is not None


TERMS = (
    Term("float32", "numbers of 32 bits: the model as it was trained, which the others are compared with"),
    Term("FP16", "numbers of 16 bits: half the size, for graphics processors"),
    Term("INT8", "whole numbers of 8 bits: a quarter of the size, and faster on most processors"),
    Term("ONNX", "a file format for models that many programs can run", r"\bONNX\b"),
    Term("ONNX Runtime", "the program library that runs the model file on the device"),
    Term("top-1", "share of images for which the label with the highest score is the right one"),
    Term("points", "percentage points: from 90 % to 89 % is a loss of 1 point"),
    Term("same label", "share of images to which this model and float32 give the same label, right or wrong"),
    Term("score", "how sure a model is of a label, from 0 to 1", r"\bscores?\b"),
    Term("logit", "number that a model gives to a class; the scores are made from these"),
    Term(
        "signal to noise",
        "size of the numbers over that of their error: at 20 dB the error is a tenth, at 40 dB a hundredth",
        r"signal.to.noise|\bdB\b",
    ),
    Term("95 % interval", "range in which the true figure lies, in 95 of 100 such measurements"),
    Term(
        "McNemar's test",
        "tells whether two models differ by more than chance, from the images that only one gets right",
        r"McNemar",
    ),
    Term(
        "p",
        "how often chance alone would give such a difference; below 0.05 is taken as a real one",
        r"\bp [=<] ",
    ),
    Term("median", "the middle one of many measured times: half of them are shorter"),
    Term("thread", "a thread uses one core of the processor"),
    Term("calibration", "running images through the model to find the ranges that INT8 needs", r"\bcalibrat"),
    Term("activation", "number that one layer hands on to the next"),
    Term("linear layer", "a layer that multiplies by a table of weights; most time is spent in these"),
    Term("product", "attention multiplies activations by activations; these products have no weights"),
    Term("clipped", "beyond the range that calibration found, and so replaced by the end of that range"),
    Term("integer kernel", "a routine of the processor that computes with whole numbers"),
    Term(
        "temperature", "number that logits are divided by so that scores are neither too sure nor too unsure"
    ),
    Term(
        "expected calibration error",
        "mean gap between the score and the share that is right: 5 % means scores are 5 points off",
    ),
    Term(
        "embedding",
        "list of numbers that stands for an image; similar images have similar ones",
        r"(?<!position )(?<!patch )embeddings?\b",
    ),
    Term("cosine", "similarity of two embeddings: 1 is the same direction, 0 has nothing in common"),
    Term("token", "piece of an image inside the model; at first one for each patch", r"\btokens?\b"),
    Term("patch", "square piece of an image, the smallest part that the model looks at", r"\bpatch(es)?\b"),
    Term("class token", "token that collects from all patches what decides the class"),
    Term("attention", "how much a token takes from each other token"),
    Term(
        "attention rollout",
        "attention of all blocks multiplied: from which patches the answer is made",
        r"\brollout\b",
    ),
    Term("block", "one of the equal steps of the model: attention, then two linear layers", r"\bblocks?\b"),
    Term("position embedding", "what the model adds to a patch so that it knows where the patch lies"),
    Term("loss", "what training makes smaller: how far the scores are from the right answer"),
    Term("epoch", "one pass over all training images"),
    Term("validation", "images kept out of training, by which the best epoch is chosen", r"\bvalidation\b"),
    Term("VNNI", "instructions of newer x86 processors for 8-bit numbers; INT8 is fastest with them"),
    Term("any-cpu", "form of the INT8 weights that is exact at full speed on every processor"),
    Term("full-range", "more precise form of the INT8 weights, for processors with VNNI, ARM64 and browsers"),
    Term("EXIF orientation", "note inside a photo that says how the camera was held", r"\bEXIF\b"),
    Term("SHA-256", "fingerprint of a file: another file has another one"),
)


def find_terms(text: str) -> tuple[Term, ...]:
    """Return the terms that occur in the words of a page."""
    return tuple(term for term in TERMS if term.occurs(text))
