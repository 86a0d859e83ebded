"""A Ray cluster for one command: one that runs already, or one on this machine for as long as it takes."""

from __future__ import annotations

import logging
import os
import socket
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...cpu import available_cores
from ...errors import InputError, MissingPackageError, install_line

try:
    import ray
except ImportError as error:
    raise MissingPackageError(f"--engine ray needs Ray Data ({error}); {install_line('ray,cpu')}") from error
import psutil  # Ray brings it along

_ROOT = Path(__file__).parents[__name__.count(".")]  # what Python finds this package in, whatever its name
_PACKAGE = _ROOT / __name__.partition(".")[0]
_STORE = 2**28  # bytes of a local cluster's object store, and what the model takes
_STARTS = 5  # attempts to start a local cluster


class ClusterError(InputError):
    """A cluster that cannot be reached."""


@contextmanager
def cluster(address: str | None, *, workers: int | None, model_bytes: int) -> Iterator[int]:
    """Connect to a cluster, or start one on this machine for as long as the block lasts.

    Args:
        address: of a running cluster, as `ray.init` takes it; None reads RAY_ADDRESS, and without that starts
            a local cluster.
        workers: cores of a local cluster; None takes all that this process may use.
        model_bytes: size of the model file.

    Yields:
        The cores that the cluster has now.

    Raises:
        ClusterError: if there is no cluster at this address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        if address == "local":
            _start(workers or available_cores(), store=_STORE + 4 * model_bytes)
        else:
            _connect(address)
    except Exception as error:  # Ray raises bare ones too, for a node that is slow to start among others
        raise ClusterError(f"no Ray cluster at {address}: {last_line(error)}") from error
    try:
        yield int(ray.cluster_resources().get("CPU", 0))
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    """Connect to a running cluster; this project's own code goes to its nodes."""
    _knock(address)
    package = str(_PACKAGE)
    environment = {"py_modules": [package], "env_vars": {"OMP_NUM_THREADS": "1"}}
    ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)


def _start(cores: int, *, store: int) -> None:
    """Start a cluster on this machine, which ends with this process.

    Ray gives up if one of its agents needs more than 15 s to start, as on a busy machine; at another attempt
    their files are in memory.
    """
    for left in reversed(range(_STARTS)):
        before = set(_children())
        try:
            with _importable():
                ray.init(
                    address="local",
                    num_cpus=cores,
                    object_store_memory=store,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            return
        except Exception:
            for process in set(_children()) - before:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            if not left:
                raise


def _children() -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


@contextmanager
def _importable() -> Iterator[None]:
    """Let the processes that are started import this very package, where it is not installed."""
    before = os.environ.get("PYTHONPATH")
    if str(_ROOT) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), before]))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


def _knock(address: str) -> None:
    """Ask whether anything listens at host:port; Ray itself would wait for minutes.

    Raises:
        OSError: if nothing does.
    """
    host, colon, port = address.rpartition(":")
    if colon and "/" not in address and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def last_line(error: BaseException) -> str:
    """Return the line of a message that says what is wrong: Ray puts traces before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
