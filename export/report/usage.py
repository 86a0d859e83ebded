"""Use of the exported file: lines that run as they stand, in the folder of the files."""

from __future__ import annotations

from dataclasses import dataclass

from export.measure.results import Results, VariantResult
from runtime.model_file.artifact import MAX_BYTES
from runtime.model_file.integrity import DATA_SUFFIX

IMAGE = "photo.jpg"
FIRST = ("int8", "float32", "float16")  # the variant that is shown, as `choose_file` takes it


@dataclass(frozen=True)
class Usage:
    """Lines for one file."""

    file: str
    python: str
    shell: str
    beside: str  # the file that must lie beside it, of a model too large for one file; else empty


def usage(results: Results) -> Usage:
    """Return the lines that use the best variant of an export."""
    chosen = chosen_file(results)
    beside = f"{chosen.file}.*{DATA_SUFFIX}" if chosen.bytes > MAX_BYTES else ""
    return Usage(chosen.file, _python(results, chosen.file), _shell(results, chosen.file), beside)


def chosen_file(results: Results) -> VariantResult:
    """Return the variant that the runtime takes from the folder of an export."""
    by_name = {each.variant: each for each in results.variants}
    return next(by_name[name] for name in FIRST if name in by_name)


def _python(results: Results, file: str) -> str:
    if results.labels:
        lines = (
            "from runtime import Classifier",
            f'classify = Classifier("{file}")',
            f'print(classify("{IMAGE}").label)',
        )
    else:
        lines = "from runtime import Embedder", f'embed = Embedder("{file}")', f'print(embed("{IMAGE}"))'
    return "\n".join(lines)


def _shell(results: Results, file: str) -> str:
    if results.labels:
        return f"python -m runtime {file} {IMAGE}"
    return f"python -m runtime {file} {IMAGE} --embeddings embeddings.npy"
