"""Options of every session of a model file: how threads wait, and which INT8 kernels are exact."""

from __future__ import annotations

import logging
import platform
from functools import cache

from .cpu import cpu_kind
from .model_file.targets import EXACT_ON, Target, unknown_target
from .onnx_runtime import onnxruntime

_log = logging.getLogger(__name__.rpartition(".")[0])  # the package


def session_options(*, threads: int, target: Target) -> onnxruntime.SessionOptions:
    """Return the options of every session of a model file, whoever opens it.

    Args:
        threads: CPU threads of one prediction.
        target: the form of the INT8 weights; it decides about exact kernels.

    Raises:
        ValueError: for an unknown target.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # a ViT is one chain of operators
    options.log_severity_level = 3  # errors
    for entry, value in waiting_options(onnxruntime.__version__).items():
        options.add_session_config_entry(entry, value)
    if needs_exact_kernels(target):
        _warn_of_slow_kernels()
        options.add_session_config_entry("session.x64quantprecision", "1")
    elif cpu_kind() not in EXACT_ON[target]:
        _warn_of_untested_cpu()
    return options


def waiting_options(version: str) -> dict[str, str]:
    """Return how the threads of a session wait for each other, for a version of ONNX Runtime.

    They spin for 20 µs, then sleep, and never spin between predictions. With two threads on an idle Zen 4
    a ViT-S prediction takes 19.8 ms so, 21.8 ms with threads that sleep at once; on a machine with ten times
    the work it can do 38.9 and 33.2 ms, 68.0 ms where spinning has no limit (medians). Versions before
    1.26 know no limit: there threads sleep at once.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < (1, 26):
        return {"session.intra_op.allow_spinning": "0"}
    return {
        "session.intra_op.allow_spinning": "1",
        "session.intra_op.spin_duration_us": "20",
        "session.force_spinning_stop": "1",
    }


def needs_exact_kernels(target: Target) -> bool:
    """Return whether the fast INT8 kernels of this CPU would overflow 16-bit sums of a file for `target`.

    Raises:
        ValueError: for an unknown target.
    """
    if target not in EXACT_ON:
        raise ValueError(unknown_target(target))
    return cpu_kind() == "x86" and "x86" not in EXACT_ON[target]


@cache  # said once
def _warn_of_slow_kernels() -> None:
    _log.warning(
        "the INT8 weights use the full range and this CPU has no VNNI: exact but slower kernels are used; "
        "python -m export --target any-cpu makes a model for this CPU"
    )


@cache  # said once
def _warn_of_untested_cpu() -> None:
    _log.warning(
        "model files were tested on x86-64 and ARM64, and never on %s; compare a few answers with those of "
        "a tested machine",
        platform.machine(),
    )
