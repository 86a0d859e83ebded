"""A folder for what a provider compiles from a model, so that the next start is faster.

It holds native code. So a folder inside it is used only if it belongs to this user (or root) and nobody else
can write to it, and it gets its name when everything in it is written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, TypeVar

from .devices import DeviceError, DeviceSpec
from .errors import InputError
from .onnx_runtime import onnxruntime

_log = logging.getLogger(__name__.rpartition(".")[0])  # the package
T = TypeVar("T")


def hash_files(*files: Path | str | bytes | None) -> str:
    """Return the SHA-256 of a model and of the file with its weights, if it has one, as one."""
    digests = []
    for each in files:
        if isinstance(each, bytes):
            digests.append(hashlib.sha256(each))
        elif each is not None:
            with Path(each).open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256"))
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def entry_name(spec: DeviceSpec, plugin: Any | None, model: str, options: Mapping[str, str]) -> str:
    """Return the name of the folder for one model, by its digest, on one device with the provider's options.

    Another version, driver or CPU has another.
    """
    found = [model, spec.name, dict(options), _cpu(), onnxruntime.__version__]
    if plugin is not None:
        # QNN's plugin calls itself 0.1.0 in every version of its package.
        found += [each.version for each in distributions(name=str(spec.package))]
        # Names of hardware and, from some plugins, the version of the driver.
        device = plugin.device
        found += [device.vendor_id, device.device_id, dict(device.metadata), dict(plugin.ep_metadata)]
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return f"{spec.name.replace(':', '-')}-{digest[:32]}"


def open_cached(root: Path, name: str, open_in: Callable[[Path], T]) -> T:
    """Return what `open_in` opens from a folder of the cache, or compiles into a new one.

    Args:
        root: the folder that the caller named; made where it is missing.
        name: of the folder inside it, from `entry_name`.
        open_in: opens the model from a folder, or compiles it into an empty one.

    Raises:
        DeviceError: when the folder cannot be made, or others can write to it.
    """
    folder = root / name
    if os.path.lexists(folder):
        _check_owner(folder)
        try:
            return open_in(folder)
        except InputError as error:
            _log.warning("%s cannot be used (%s); the model is compiled again", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{name[:12]}-", dir=root))  # for this user alone
    except OSError as error:
        raise DeviceError(f"{root}: expected a folder to cache in: {error.strerror or error}") from error
    try:
        opened = open_in(aside)
        try:
            aside.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # another process was not faster
                _log.warning("%s: what was compiled is not kept: %s", folder, error.strerror or error)
        return opened
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_owner(folder: Path) -> None:
    status = folder.lstat()
    if not folder.is_dir() or folder.is_symlink():
        raise DeviceError(f"{folder}: expected a folder that the cache made, found something else; remove it")
    if os.name == "posix" and (status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022):
        raise DeviceError(
            f"{folder}: it holds native code and another user can write to it; remove it, and name a folder "
            "of this user alone"
        )


def _cpu() -> list[str]:
    """Return what tells this CPU from others: its name and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    return sorted({each for each in lines if each.partition("\t")[0] in ("model name", "flags", "Features")})
