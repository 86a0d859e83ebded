"""HTML pages from templates: style and images are inside, so that a page needs no network and no folder."""

from __future__ import annotations

import re
from functools import cache
from html import unescape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, TemplateNotFound
from markupsafe import Markup

from vit.page.terms import used_terms

HERE = "vit.page"
_HIDDEN = re.compile(r"<(style|title)\b.*?</\1>", re.S)
_TAG = re.compile(r"<[^>]*>")


def render_page(package: str, template: str, **content: Any) -> str:
    """Render a template of a package as one self-contained HTML document.

    Args:
        package: where the template is; what it extends or includes may also be in `vit.page`.
        template: file name of the template, which extends "page.html.j2".
        content: what the template shows. The terms that occur in it are explained at the page's end.
    """
    found = _environment(package).get_template(template)
    text = visible_text(found.render(terms=(), **content))
    return found.render(terms=used_terms(text), **content)


def visible_text(html: str) -> str:
    """Return the words of a page."""
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
        loader=FunctionLoader(source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["style"] = Markup(source("page.css"))
    return environment
