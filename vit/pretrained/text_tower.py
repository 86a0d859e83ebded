"""Class vectors from words: the text tower of a CLIP or SigLIP model, run once by transformers' own code.

Each text is a class in a template. Its vector is scaled to length 1; the vectors of one class are averaged
over the templates and scaled again (arXiv 2103.00020, section 3.1.4). Texts are in lower case: CLIP's and
SigLIP's tokenizers turn them so, and SigLIP 2, whose tokenizer may not, was trained on such.
"""

# To mypy, what transformers returns is Any.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.command.line import is_installed
from runtime.errors import MissingPackageError, install_line
from runtime.text import describe_error, list_first
from vit.pretrained.description import SourceError, read_json

MODEL_TYPES = ("clip", "siglip")  # SigLIP 2 of fixed size has the second, too
SENTENCEPIECE = "spiece.model"  # the vocabulary of SigLIP's first tokenizer
BATCH = 64  # texts that are computed at once


@dataclass(frozen=True)
class TextTower:
    """Class vectors and constants of a model of two towers, for a head on its image tower."""

    vectors: Tensor  # float32 [classes, width], of length 1
    scale: float  # the factor of the cosines
    bias: float  # added to each logit: SigLIP's, 0 for CLIP
    projection: Tensor | None  # CLIP's, float32 [width, pooled features]
    image: Tensor  # its own embedding of the pixels that it was asked for, float32 [1, width], of length 1


def check_text_tower(folder: Path) -> None:
    """Refuse a source without a text tower that is known here, and a machine without transformers.

    Raises:
        SourceError: naming what was found.
        MissingPackageError: with the line to type.
    """
    if not folder.is_dir():
        hint = "with config.json, weights and tokenizer"
        raise SourceError(f"{folder}: --classes expects the folder of a CLIP or SigLIP model, {hint}")
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in MODEL_TYPES:
        hint = "--examples makes classes for any model"
        expected = f"the two towers of transformers' CLIP or SigLIP (model_type {' or '.join(MODEL_TYPES)})"
        raise SourceError(f"{folder}: --classes expects {expected}, found model_type {kind!r:.60}; {hint}")
    needs = ["transformers", *(["sentencepiece"] if (folder / SENTENCEPIECE).exists() else [])]
    for package in needs:
        if not is_installed(package):
            raise MissingPackageError(
                f"--classes needs {package}, which is not installed; {install_line('train,cpu,words')}"
            )


def run_text_tower(
    folder: Path,
    words: Sequence[str],
    templates: Sequence[str],
    pixels: Tensor,
    progress: Callable[[int], object] = lambda _: None,
) -> TextTower:
    """Compute the vectors of classes in words, from the files of a folder alone.

    Args:
        folder: of a model that `check_text_tower` accepts, with its tokenizer.
        words: the classes.
        templates: texts with one `{}` each, in whose place a class is written.
        pixels: normalized, float32 `[1, 3, H, W]`, whose embedding is returned for a comparison.
        progress: called with the number of classes that are done.

    Raises:
        SourceError: for a folder that transformers cannot read, one without a text tower or a tokenizer, and
            for a text that is longer than the model takes.
    """
    tokenizer, model = _load(folder)
    longest = model.config.text_config.max_position_embeddings
    # SigLIP reads its answer from the last place, which the padding fills.
    padding = "max_length" if model.config.model_type == "siglip" else "longest"
    vectors = []
    step = max(BATCH // len(templates), 1)
    for start in range(0, len(words), step):
        chosen = words[start : start + step]
        texts = [template.replace("{}", word).lower() for word in chosen for template in templates]
        for text, found in zip(texts, tokenizer(texts).input_ids, strict=True):
            if max(found, default=0) >= model.config.text_config.vocab_size:
                raise SourceError(f"{folder}: the tokenizer is of another model, whose vocabulary is larger")
            if len(found) > longest:
                raise SourceError(f"{text!r:.100} has {len(found)} tokens (limit: {longest}); shorten it")
        inputs = tokenizer(texts, padding=padding, max_length=longest, return_tensors="pt")
        embedded = F.normalize(_as_tensor(model.get_text_features(**inputs)), dim=-1)
        vectors.append(F.normalize(embedded.unflatten(0, (len(chosen), -1)).mean(1), dim=-1))
        progress(start + len(chosen))
    size = (
        {"interpolate_pos_encoding": True}
        if pixels.shape[-1] != model.config.vision_config.image_size
        else {}
    )
    image = F.normalize(_as_tensor(model.get_image_features(pixels, **size)), dim=-1)
    projection, bias = getattr(model, "visual_projection", None), getattr(model, "logit_bias", None)
    return TextTower(
        torch.cat(vectors),
        float(model.logit_scale.exp()),
        0.0 if bias is None else float(bias),
        None if projection is None else projection.weight,
        image,
    )


def _load(folder: Path) -> tuple[Any, Any]:
    """Return tokenizer and model of a folder, in float32; nothing in the folder is executed."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    only = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **only)
        model, facts = transformers.AutoModel.from_pretrained(folder, output_loading_info=True, **only)
    except Exception as error:  # of any kind, from files of any content
        hint = "give the whole folder of the model, with its tokenizer"
        raise SourceError(
            f"{folder}: transformers cannot read it ({describe_error(error):.300}); {hint}"
        ) from error
    # transformers would go on with random numbers in their place.
    if missing := sorted(facts["missing_keys"]):
        raise SourceError(f"{folder}: {len(missing)} tensors are missing ({list_first(missing, 3)})")
    return tokenizer, model.float().eval().requires_grad_(False)


def _as_tensor(found: Any) -> Tensor:
    """Return the vectors in an answer of transformers: from version 5 on they are a field."""
    return found if isinstance(found, Tensor) else found.pooler_output
