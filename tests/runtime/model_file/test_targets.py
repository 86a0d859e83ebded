"""Session options by target and kind of CPU, decided in one place; the CPU is pretended."""

from __future__ import annotations

import ast
import json
import logging
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Classifier, DeviceError, Metadata, Preprocess
from runtime import cpu as cpu_module
from runtime import session as options_module
from runtime.cpu import cpu_kind
from runtime.model_file.targets import EXACT_ON, TARGETS, choose_target
from runtime.session import needs_exact_kernels, open_session, session_options

ROOT = Path(__file__).parents[3]
KEY = "session.x64quantprecision"
MakeModel = Callable[..., Path]

# machine, VNNI → kind, the targets that need exact kernels, the target of --target auto
CPUS = {
    "x86 with VNNI": ("x86_64", True, "x86-vnni", set(), "full-range"),
    "Windows' name of it": ("AMD64", True, "x86-vnni", set(), "full-range"),
    "x86 without VNNI": ("x86_64", False, "x86", {"full-range", "npu"}, "any-cpu"),
    "ARM64": ("aarch64", False, "arm64", set(), "full-range"),
    "Apple's name of it": ("arm64", False, "arm64", set(), "full-range"),
    "another": ("riscv64", False, "other", set(), "any-cpu"),
}
Pretend = Callable[[str], None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretend]:
    """Pretend that the CPU is another one, as the operating system would say it."""

    def to_be(name: str) -> None:
        machine, vnni, *_ = CPUS[name]
        flags = "fpu avx2 avx512_vnni" if vnni else "fpu avx2"
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(cpu_module.sys, "platform", "linux")
        monkeypatch.setattr(cpu_module, "_read", lambda path: f"processor : 0\nflags : {flags}\n")
        _forget()

    _forget()
    yield to_be
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    for cached in ("has_vnni",):
        getattr(cpu_module, cached).cache_clear()
    options_module._warn_once.cache_clear()


def asks_for_exact_kernels(options: Any) -> bool:
    try:
        return bool(options.get_session_config_entry(KEY) == "1")
    except RuntimeError:  # no such entry
        return False


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("target", TARGETS)
def test_each_target_on_each_kind_of_cpu_runs_in_exact_kernels(
    make_model: MakeModel, pretend: Pretend, cpu: str, target: Any
) -> None:
    pretend(cpu)
    _, _, kind, careful, chosen = CPUS[cpu]
    assert cpu_kind() == kind
    assert choose_target(cpu_kind()) == chosen
    assert needs_exact_kernels(target) == (target in careful)
    path = make_model(variant="int8", target=target)
    assert asks_for_exact_kernels(session_options(threads=1, target=target)) == (target in careful)
    session = open_session(path, device="cpu", target=target)
    assert asks_for_exact_kernels(session.get_session_options()) == (target in careful)
    classify = Classifier(path)
    assert classify._state.session is not None
    assert asks_for_exact_kernels(classify._state.session.get_session_options()) == (target in careful)


@pytest.mark.parametrize("target", TARGETS)
def test_the_file_says_it_in_a_form_for_any_language(make_model: MakeModel, target: Any) -> None:
    """The rule of docs/reference/model-file.md, from the JSON alone, gives what this runtime does."""
    document = json.loads(
        Metadata(variant="int8", preprocess=Preprocess(), labels=("a",), target=target).to_json()
    )
    for _, _, kind, careful, _ in CPUS.values():
        exact = kind in document["exact_on"]
        assert (not exact and kind == "x86") == (target in careful)
    assert tuple(document["exact_on"]) == EXACT_ON[target]
    assert list(document)[:2] == ["version", "exact_on"]  # which the C++ example reads


def test_slow_kernels_are_said_once(model: Path, pretend: Pretend, caplog: pytest.LogCaptureFixture) -> None:
    pretend("x86 without VNNI")
    with caplog.at_level(logging.WARNING, logger="runtime"):
        for _ in range(2):
            open_session(model, device="cpu", target="full-range")
    assert len(caplog.records) == 1
    assert "--target any-cpu" in caplog.text


def test_a_cpu_that_nobody_tested_is_said_once(
    model: Path, pretend: Pretend, caplog: pytest.LogCaptureFixture
) -> None:
    pretend("another")
    for _ in range(2):
        open_session(model, device="cpu")
    assert [record.getMessage().count("riscv64") for record in caplog.records] == [1]


@pytest.mark.parametrize("cpu", CPUS)
def test_nothing_is_said_where_a_file_is_exact_at_full_speed(
    model: Path, pretend: Pretend, cpu: str, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(cpu)
    for target in TARGETS:
        if CPUS[cpu][2] in EXACT_ON[target]:
            open_session(model, device="cpu", target=target)
    assert not caplog.records


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("target", TARGETS)
def test_openvino_refuses_what_it_would_compute_wrong(
    make_model: MakeModel, pretend: Pretend, cpu: str, target: Any
) -> None:
    """Without the provider every call fails: the message tells the one failure from the other."""
    pretend(cpu)
    found = ""
    try:
        Classifier(make_model(variant="int8", target=target), device="openvino")
    except DeviceError as error:
        found = str(error)
    refused = "overflows with full-range INT8 weights" in found
    assert refused == (target in CPUS[cpu][3])
    if refused:
        assert 'device="cpu"' in found
        assert "--target any-cpu" in found


@pytest.mark.parametrize("target", ["any", "avx2", "vnni", "arm64", "mips"])
def test_an_unknown_target_is_wrong_use(model: Path, target: Any) -> None:
    new = {"any": "any-cpu", "avx2": "any-cpu", "vnni": "full-range", "arm64": "full-range"}.get(target)
    with pytest.raises(ValueError, match=f"{target} is called {new} now" if new else "found 'mips'$"):
        open_session(model, device="cpu", target=target)


SESSIONS = {  # who makes a session of ONNX Runtime, and why it may
    "runtime/session.py": "makes them",
    "calibration/measure/verify.py": "with session_options",
    "export/graph/exporters/freeze.py": "of a float model, without optimizations",
    "runtime/self_test/diagnose.py": "with session_options",
}


def test_sessions_are_made_with_these_options_everywhere() -> None:
    found: dict[str, ast.Module] = {}
    for path in sorted(ROOT.glob("*/**/*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.split("/")[0] in (
            "runtime",
            "calibration",
            "export",
            "vit",
            "benchmarks",
            "tools",
            "examples",
        ):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
            if any(ast.unparse(call).endswith(("InferenceSession", "ort.SessionOptions")) for call in calls):
                found[name] = tree
    assert set(found) <= set(SESSIONS), "open sessions with runtime.session, which knows what a file needs"
    for name, tree in found.items():
        if SESSIONS[name] == "with session_options":
            assert any(isinstance(node, ast.Name) and node.id == "session_options" for node in ast.walk(tree))
