"""Plugins of ONNX Runtime, which bring devices: find them, register them, choose their options."""

from __future__ import annotations

import json
import logging
import os
import threading
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .cpu import is_x86
from .devices import CHIPS, DEVICES, OPENVINO, DeviceError, DeviceOptions, DeviceSpec
from .onnx_runtime import onnxruntime
from .text import clean_line

_log = logging.getLogger(__name__.rpartition(".")[0])  # the package
OLDEST = (1, 24)  # of ONNX Runtime, for plugins
_registering = threading.Lock()
_registered: set[str] = set()  # providers whose plugin this process has registered
_opened_in: dict[str, int] = {}  # the process that first opened a session, by provider of a plugin

if hasattr(os, "register_at_fork"):  # a thread that held the old lock is not in the child
    os.register_at_fork(after_in_child=lambda: globals().update(_registering=threading.Lock()))


def find_plugin_device(spec: DeviceSpec) -> Any | None:
    """Return the hardware of a device, as the OrtEpDevice of its plugin, registered if it was not yet.

    It is None where the provider is built in.

    Args:
        spec: the device.

    Raises:
        DeviceError: when it is neither built in nor installed, when its plugin does not load or needs a newer
            ONNX Runtime, and when the plugin lists no hardware of the kinds of this device.
    """
    if _is_built_in(spec):
        return None
    with _registering:
        if not _is_registered(spec):
            _register_plugin(spec)
    listed: dict[str, Any] = {}
    for each in _list_hardware(spec):  # the first of each kind
        listed.setdefault(each.device.type.name.lower(), each)
    for kind in spec.hardware:
        if kind in listed:
            return listed[kind]
    raise DeviceError(
        f"no {spec.name} on this machine: the plugin {spec.package} lists {', '.join(listed) or 'nothing'}, "
        f"expected {' or '.join(spec.hardware)}; {spec.note}"
    )


def is_simulated(device: str) -> bool:
    """Return whether a simulator computes on a device: that of Qualcomm's NPU, on a CPU.

    Args:
        device: its name.

    Raises:
        DeviceError: as for `find_plugin_device`.
    """
    plugin = find_plugin_device(DEVICES["qnn"]) if device == "qnn" else None
    return plugin is not None and plugin.device.type.name.lower() == "cpu"


def _is_built_in(spec: DeviceSpec) -> bool:
    """Return whether it is part of this ONNX Runtime, which lists registered plugins as available, too."""
    return spec.provider in onnxruntime.get_available_providers() and not _is_registered(spec)


def _is_registered(spec: DeviceSpec) -> bool:
    """Return whether its plugin is registered: by this module, or by the app."""
    return spec.provider in _registered or bool(_list_hardware(spec))


def _list_hardware(spec: DeviceSpec) -> list[Any]:
    """Return what the plugin lists; what is built in, such as the CPU, has no path of a library."""
    every = onnxruntime.get_ep_devices() if hasattr(onnxruntime, "get_ep_devices") else ()  # since 1.23
    return [each for each in every if each.ep_name == spec.provider and "library_path" in each.ep_metadata]


def _register_plugin(spec: DeviceSpec) -> None:
    """Register the plugin of a device, once per process; a fork inherits it, and so does this module."""
    if spec.package is None:
        built = ", ".join(name for name, each in DEVICES.items() if _is_built_in(each))
        raise DeviceError(
            f"no {spec.name} in this ONNX Runtime (it has: {built}); install it: {spec.install}"
        )
    if find_spec(spec.module) is None:
        raise DeviceError(
            f"no {spec.name} here: the package {spec.package} is not installed; install it: {spec.install}"
        )
    found = onnxruntime.__version__
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        raise DeviceError(
            f"{spec.name} needs ONNX Runtime {'.'.join(map(str, OLDEST))} or newer, found {found}: "
            f"pip install --upgrade onnxruntime {spec.package}"
        )
    try:
        library = getattr(import_module(spec.module), spec.library)()
        onnxruntime.register_execution_provider_library(spec.provider, str(library))
    except Exception as error:  # of the package, or pybind's own classes, of which there is no list
        reason = clean_line(f"{type(error).__name__}: {error}")
        raise DeviceError(
            f"the plugin {spec.package} of {spec.name} does not load ({reason}); install it again: "
            f"pip install --upgrade --force-reinstall onnxruntime {spec.package}"
        ) from error
    _registered.add(spec.provider)


def refuse_fork(spec: DeviceSpec) -> None:
    """Raise DeviceError in a fork of a process that has opened the device: its first run would hang."""
    if _opened_in.setdefault(spec.provider, os.getpid()) != os.getpid():
        raise DeviceError(
            f"{spec.name} was opened before this process was forked, and its threads are not in a fork; open "
            'the model after the fork, or start processes with multiprocessing.get_context("spawn")'
        )


def provider_options(
    spec: DeviceSpec,
    plugin: Any | None,
    *,
    threads: int,
    cores: int,
    given: DeviceOptions,
    folder: Path | None,
) -> dict[str, str]:
    """Return the options of a provider.

    Args:
        spec: the device.
        plugin: of `find_plugin_device`.
        threads: CPU threads of one prediction.
        cores: that this process may use.
        given: what the caller chose.
        folder: for what this provider compiles of this model; None for nowhere.

    Raises:
        DeviceError: for a chip where there is no simulator.
    """
    found = dict(spec.options)
    if folder is not None:
        found |= {name: value.format(folder=folder) for name, value in spec.cache.items()}
    if spec.provider == OPENVINO:
        # As many predictions at a time as in ONNX Runtime.
        return found | _openvino_options(spec, plugin, threads, max(1, cores // threads), given, folder)
    if spec.name == "qnn" and plugin is not None:
        return found | _qnn_options(spec, plugin, given)
    return found


def _openvino_options(
    spec: DeviceSpec, plugin: object, threads: int, streams: int, given: DeviceOptions, folder: Path | None
) -> dict[str, str]:
    kind, exact = spec.hardware[0].upper(), given.precision == "exact"
    if plugin is None:  # the provider that is built in, which has options of its own
        found = {"device_type": kind} | ({} if folder is None else {"cache_dir": str(folder)})
        if kind == "CPU":
            found |= {"num_of_threads": str(threads), "num_streams": str(streams)}
            found |= {"precision": "FP32"} if exact else {}
        return found
    config = {} if folder is None else {"CACHE_DIR": str(folder)}
    if kind == "CPU":
        config |= {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(streams * threads)}
        config["ENABLE_CPU_PINNING"] = "NO"  # several processes would pin their threads to the same cores
        config |= {"INFERENCE_PRECISION_HINT": "f32"} if exact else {}
    return {"load_config": json.dumps({kind: config})} if config else {}


def _qnn_options(spec: DeviceSpec, plugin: Any, given: DeviceOptions) -> dict[str, str]:
    """Return the backend and, for the simulator, the NPU: without it QNN fails with MEM_ALLOC."""
    options = {"backend_path": str(import_module(spec.module).get_qnn_htp_path())}
    options["offload_graph_io_quantization"] = "0"  # or the CPU dequantizes the outputs
    # QNN takes an unknown word for its default without an error, so `DeviceOptions` checks them.
    if given.performance is not None:
        options["htp_performance_mode"] = given.performance
    if given.finalization is not None:
        options["htp_graph_finalization_optimization_mode"] = str(given.finalization)
    if plugin.device.type.name.lower() == "npu":
        if given.chip is not None:
            raise DeviceError(f"chip is for the simulator, and here is an NPU: leave chip={given.chip!r} out")
        return options
    if not is_x86():
        raise DeviceError(f"no qnn on this machine: the plugin {spec.package} lists no NPU; {spec.note}")
    chip = next(iter(CHIPS)) if given.chip is None else given.chip
    _warn_of_simulator(chip)
    if isinstance(chip, int):
        return options | {"soc_model": str(chip)}
    htp_arch, soc_model = CHIPS[chip]
    return options | {"htp_arch": htp_arch, "soc_model": soc_model}


@cache  # so that it is logged once per process
def _warn_of_simulator(chip: str | int) -> None:
    _log.warning("qnn: no NPU here; Qualcomm's simulator of chip %s computes, whose times mean nothing", chip)
