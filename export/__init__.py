"""From a float model to measured ONNX files for a device.

In reading order:

    image_sets      which images calibrate, search and measure
    write_artifact  model files with metadata, written aside and renamed
    graph/          the canonical float graph, its rewrites, and the float16 copy
    sources/        a checkpoint or an ONNX model to the canonical graph
    options         options of an export, one field each
    check_options   checks of the options, as more is known: options, source, graph
    measure/        outputs and latency of each variant, and the limits on them
    report/         the sections of report.json, report.html and the terminal
    check_results   checks of the files: equal to the source, within the limits
    pipeline        the whole export: check, quantize, measure, write
    card/           model card and list of components, from report.json
    command_line    parser of python -m export, and the order of its work
    __main__        python -m export

`from export import export` exports from Python; the import alone loads neither torch nor onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.options import Options
    from export.pipeline import export
    from export.report.section import Results

__all__ = ["Options", "Results", "export"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from export import pipeline

    return getattr(pipeline, name)
