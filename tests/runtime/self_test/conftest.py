"""The digits in float32 and INT8 with their self-tests, and sessions with a fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import load_model
from runtime.devices import DEVICES


@pytest.fixture
def digits(digits_artifacts: Path, tmp_path: Path) -> Path:
    """A folder with copies of both files, for tests that change them."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for name in ("model.onnx", "model.int8.onnx"):
        shutil.copy(digits_artifacts / name, folder / name)
    return folder


class FaultySession:
    """A session that changes pixels before it runs, and outputs after it."""

    def __init__(self, session: Any, device: str, **faults: Any) -> None:
        self._session, self._faults = session, faults
        self._provider = DEVICES[device].provider

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, names: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        pixels = self._faults.get("pixels", lambda each: each)(feeds["pixels"][0])
        rows = self._session.run(names, {"pixels": np.ascontiguousarray(pixels)[None]})
        return [self._faults.get("outputs", lambda each: each)(row) for row in rows]

    def get_provider_graph_assignment_info(self) -> Any:
        parts = self._session.get_provider_graph_assignment_info()
        nodes = [node for part in parts for node in part.get_nodes()]
        outside = self._faults.get("outside", ())  # operators that the device leaves to the CPU
        for provider, cpu in ((self._provider, False), ("CPUExecutionProvider", True)):
            held = [node for node in nodes if (node.op_type in outside) == cpu]
            yield SimpleNamespace(ep_name=provider, get_nodes=lambda held=held: held)


FaultyDevice = Callable[..., None]


@pytest.fixture
def faulty_device(monkeypatch: pytest.MonkeyPatch) -> FaultyDevice:
    """Let every device be a session of the CPU with a fault; the diagnosis opens sessions without it."""

    def install(**faults: Any) -> None:
        real = load_model.open_session

        def open_session(model: Any, *, device: str, **rest: Any) -> Any:
            return FaultySession(real(model, device="cpu", **rest), device, **faults)

        monkeypatch.setattr(load_model, "open_session", open_session)

    return install
