"""Drift of the embeddings, in the terminal and on the page."""

from __future__ import annotations

from typing import Any

from export.measure.embeddings import EmbeddingDrift
from export.measure.results import Results
from export.measure.verdict import NAMES

DASH = "-"


def embedding_lines(results: Results) -> list[str]:
    """Return a line of the terminal for each variant."""
    return [
        f"embeddings, {name}: cosine to float32 {each.cosine:.4f} (worst {each.worst_cosine:.4f}), nearest "
        f"image the same {_share(each.nearest)}, of the nearest ten {_share(each.nearest_10)}"
        for name, each in (results.embeddings or {}).items()
    ]


def embedding_section(results: Results) -> dict[str, Any] | None:
    """Return what the template shows; None for a model without embeddings, or with no variant to compare."""
    if not results.embeddings:
        return None
    found = list(results.embeddings.values())
    return {
        "names": [NAMES.get(name, name) for name in results.embeddings],
        "rows": [
            ("Cosine to float32, mean", [f"{each.cosine:.4f}" for each in found]),
            ("Cosine to float32, worst image", [_worst(results, each) for each in found]),
            ("Nearest other image is the same", [_share(each.nearest) for each in found]),
            ("Of the ten nearest, the same", [_share(each.nearest_10) for each in found]),
        ],
        "images": found[0].images,
    }


def _worst(results: Results, each: EmbeddingDrift) -> str:
    return f"{each.worst_cosine:.4f} ({results.images.public_name(each.worst_image)})"


def _share(share: float | None) -> str:
    return DASH if share is None else f"{share:.1f} %"
