"""Open a session of ONNX Runtime on a device: its options, exact INT8 kernels, and errors in clear words."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, get_args

from .cpu import available_cores, cpu_kind
from .devices import DEVICES, Device, DeviceError, DeviceOptions, DeviceSpec
from .errors import InputError
from .model_file.artifact import ArtifactError, display_name
from .model_file.targets import EXACT_ON, Target, unknown_target
from .onnx_runtime import onnxruntime
from .text import clean_line

_log = logging.getLogger(__name__.rpartition(".")[0])  # the package
_DEFAULTS = DeviceOptions()

# --- Options: how threads wait, and exact INT8 kernels ---

_SLOW_KERNELS = (
    "the INT8 weights use the full range and this CPU has no VNNI: exact but slower kernels are used; "
    "python -m export --target any-cpu makes a model for this CPU"
)
_UNTESTED_CPU = (
    "model files were tested on x86-64 and ARM64, and never on {}; compare a few answers with those of a "
    "tested machine"
)


def session_options(*, threads: int, target: Target) -> onnxruntime.SessionOptions:
    """Return the options of a session of a model file.

    Args:
        threads: CPU threads of one prediction.
        target: the form of the INT8 weights, which decides whether exact kernels are needed.

    Raises:
        ValueError: for an unknown target.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # a ViT is one chain of operators
    options.log_severity_level = 3  # errors
    for entry, value in waiting_options(onnxruntime.__version__).items():
        options.add_session_config_entry(entry, value)
    if target == "npu":
        # Or ONNX Runtime 1.32 rounds activations to 8 bits: 40.6 in the place of 44.7 dB for the digits.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if needs_exact_kernels(target):
        _warn_once(_SLOW_KERNELS)
        options.add_session_config_entry("session.x64quantprecision", "1")
    elif cpu_kind() not in EXACT_ON[target]:
        _warn_once(_UNTESTED_CPU.format(platform.machine()))
    return options


def waiting_options(version: str) -> dict[str, str]:
    """Return the options for how the threads of a session wait for each other.

    They spin for 20 µs, then sleep, and never spin between predictions. Median time of a ViT-S prediction
    with two threads on Zen 4, idle and with ten times the work it can do: 19.8 and 38.9 ms with this limit,
    21.8 and 33.2 ms for threads that sleep at once, 68.0 ms with work for unlimited spinning.

    Args:
        version: of ONNX Runtime. Before 1.26 it has no such limit; there threads sleep at once.
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
    """Return whether the fast INT8 kernels of this CPU would overflow 16-bit sums.

    Args:
        target: the form of the INT8 weights.

    Raises:
        ValueError: for an unknown target.
    """
    if target not in EXACT_ON:
        raise ValueError(unknown_target(target))
    return cpu_kind() == "x86" and "x86" not in EXACT_ON[target]


@cache  # so that each message is logged once per process
def _warn_once(message: str) -> None:
    _log.warning(message)


# --- Sessions and devices ---

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A model to open, on any device."""

    model: Path | str | bytes
    weights: Path | None
    threads: int
    target: Target
    options: DeviceOptions


def available_devices() -> tuple[str, ...]:
    """Return the devices that can be opened here: built in, or by a plugin that finds its hardware.

    It loads the plugins that are installed. The logger "runtime" has, as information, why others are missing.
    """
    from .plugins import find_plugin_device

    found = []
    for name, spec in DEVICES.items():
        try:
            find_plugin_device(spec)
            found.append(name)
        except DeviceError as error:
            _log.info("%s", error)
    return tuple(found)


def open_session(
    model: Path | str | bytes,
    *,
    device: Device = "auto",
    threads: int | None = None,
    target: Target = "any-cpu",
    weights: Path | None = None,
    options: DeviceOptions = _DEFAULTS,
) -> onnxruntime.InferenceSession:
    """Open a model for inference.

    Args:
        model: an .onnx file, or its bytes.
        device: where it runs. "auto" is CUDA where it works, else the CPU.
        threads: CPU threads of one prediction; None takes every core that this process may use.
        target: the form of the INT8 weights, from the metadata of the file. Full-range weights run in slower,
            exact kernels on an x86 CPU without VNNI, where the fast kernels overflow; the logger "runtime"
            warns of it once.
        weights: the second file of the model, which was checked; None where the weights are in the model.
        options: how it runs on a device other than the plain CPU.

    Returns:
        The session, on the device. A device with static shapes takes one image at a time.

    Raises:
        DeviceError: when the device is not available, or would compute wrong numbers for this target.
        ArtifactError: when ONNX Runtime does not accept the model.
        ValueError: for an unknown device or target, or fewer than one thread.
    """
    if device not in get_args(Device):
        raise ValueError(f"device must be one of {', '.join(get_args(Device))}, found {device!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, found {threads}")
    if device == "openvino" and needs_exact_kernels(target):
        raise DeviceError(
            "OpenVINO overflows with full-range INT8 weights on an x86 CPU without VNNI and has no exact "
            'kernels; use device="cpu", or make the file with python -m export --target any-cpu'
        )
    threads = threads or available_cores()
    request = _Request(model=model, weights=weights, threads=threads, target=target, options=options)
    return open_first_device(devices_for(device), lambda choice: _open_on(DEVICES[choice], request))


def pass_weights(
    weights: Path | None, model: Path | str | bytes, options: onnxruntime.SessionOptions
) -> bytes | None:
    """Pass ONNX Runtime the bytes of weights behind a link that it does not follow.

    DVC and git-annex keep each file in a folder of its own, and ONNX Runtime 1.32 follows a link only into
    the model's own folder. A version that accepts no bytes gets the link.

    Returns:
        The bytes, to be kept until the session is open; None where ONNX Runtime reads the file itself.
    """
    if weights is None or isinstance(model, bytes) or not weights.is_symlink():
        return None
    add = getattr(options, "add_external_initializers_from_files_in_memory", None)
    if add is None or weights.resolve().parent == Path(model).resolve().parent:
        return None
    content = weights.read_bytes()
    add([weights.name], [content], [len(content)])
    return content


def device_of(session: onnxruntime.InferenceSession) -> str:
    """Return the name of the device that a session runs on, "openvino" for each of OpenVINO's."""
    first = session.get_providers()[0]
    return next((spec.name for spec in DEVICES.values() if spec.provider == first), first)


def devices_for(device: Device) -> tuple[Device, ...]:
    """Return the devices to try, best first: "auto" is CUDA where this ONNX Runtime has it, then the CPU."""
    if device != "auto":
        return (device,)
    available = DEVICES["cuda"].provider in onnxruntime.get_available_providers()
    return ("cuda", "cpu") if available else ("cpu",)


def open_first_device(devices: tuple[Device, ...], open_on: Callable[[Device], T]) -> T:
    """Return the result of `open_on` for the first device that works; log those that do not."""
    for device in devices[:-1]:
        try:
            return open_on(device)
        except DeviceError as error:
            _log.warning("not on %s: %s", device, error)
    return open_on(devices[-1])


def _open_on(spec: DeviceSpec, request: _Request) -> onnxruntime.InferenceSession:
    """Open a session on one device, from the cache where the caller named one and the device has one."""
    if spec.name == "cpu":
        return _create(spec, None, request, {}, None)
    from .plugins import find_plugin_device, provider_options, refuse_fork

    plugin = find_plugin_device(spec)
    if plugin is not None:
        refuse_fork(spec)
    given, cores = request.options, available_cores()
    choose = partial(provider_options, spec, plugin, threads=request.threads, cores=cores, given=given)
    if given.cache is None or not spec.compiles:
        return _create(spec, plugin, request, choose(folder=None), None)
    from .compile_cache import entry_name, hash_files, open_cached

    files = (request.model, request.weights)
    model = hash_files(*files)

    def open_in(folder: Path) -> onnxruntime.InferenceSession:
        session = _create(spec, plugin, request, choose(folder=folder), folder)
        # Or the cache would keep another model under this one's name.
        if folder.name != entry and hash_files(*files) != model:
            name = display_name(request.model)
            raise ArtifactError(f"{name}: it was replaced while it was opened; open it again")
        return session

    entry = entry_name(spec, plugin, model, choose(folder=None))
    return open_cached(Path(given.cache), entry, open_in)


def _create(
    spec: DeviceSpec, plugin: Any | None, request: _Request, values: dict[str, str], folder: Path | None
) -> onnxruntime.InferenceSession:
    """Create the session; `values` are the options of the provider, `folder` is that of the cache."""
    source = request.model if isinstance(request.model, bytes) else str(request.model)
    options = session_options(threads=request.threads, target=request.target)
    _content = pass_weights(request.weights, request.model, options)  # needed until the session is open
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # since 1.24
    options.enable_profiling = request.options.profile is not None
    options.profile_file_prefix = str(request.options.profile or "")
    if spec.fixed_batch:
        options.add_free_dimension_override_by_name("batch", 1)
    if folder is not None and spec.context:
        context = folder / "model.onnx"
        if context.is_file():
            source = str(context)
        else:
            options.add_session_config_entry("ep.context_enable", "1")
            options.add_session_config_entry("ep.context_file_path", str(context))
    if spec.name in ("cuda", "tensorrt") and hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    # No second attempt on the CPU, which prints to standard output (1.22 ignores it).
    settings: dict[str, Any] = {"enable_fallback": 0}
    try:
        if plugin is None:
            settings["providers"] = _providers_of(spec, values)
        else:
            options.add_provider_for_devices([plugin], values)
        session = onnxruntime.InferenceSession(source, options, **settings)
    except Exception as error:  # pybind's own exception classes, of which there is no list
        raise translate_error(error, spec.name, source, "does not accept") from error
    trim_memory()
    session.disable_fallback()  # a failing GPU must not become a CPU in the middle of a run
    if isinstance(source, bytes):
        session._model_bytes = None  # kept only for that fallback
    if session.get_providers()[0] != spec.provider:
        raise DeviceError(
            f"{spec.name} was asked for and ONNX Runtime fell back to {device_of(session)}: "
            f"is there such a device, and its driver? ({spec.install})"
        )
    return session


def trim_memory() -> None:
    """Return the memory that loading a model has freed to the system: on Linux, a third of what is resident.

    The C library keeps such memory for later, and what a ViT needs later does not fit into the pieces.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # musl has none
        trim(ctypes.c_size_t(0))


def translate_error(error: Exception, device: str, source: bytes | str, what: str) -> InputError:
    """Return a DeviceError or an ArtifactError for an error of ONNX Runtime.

    Args:
        error: that of ONNX Runtime.
        device: name of the device.
        source: the model, or its name.
        what: what ONNX Runtime does not do with the model, for the message ("does not accept").
    """
    name, text = display_name(source), clean_line(str(error))
    if "allocate" in text or "bad alloc" in text or "bad_alloc" in text:
        return DeviceError(f"{device} has too little memory for {name}: {text}")
    failed = isinstance(error, RuntimeError) or type(error).__name__ in ("EPFail", "RuntimeException")
    if device != "cpu" and failed:
        return DeviceError(f"{device} cannot run {name}: {text}")
    return ArtifactError(f"{name}: ONNX Runtime {what} it ({text}); export it again")


def _providers_of(spec: DeviceSpec, values: dict[str, str]) -> list[str | tuple[str, dict[str, str]]]:
    """Return the built-in providers of a device, best first; the CPU runs what the others cannot."""
    first = (spec.provider, values) if values else spec.provider
    others = {"cpu": (), "tensorrt": ("cuda", "cpu")}.get(spec.name, ("cpu",))
    return [first, *(DEVICES[name].provider for name in others)]
