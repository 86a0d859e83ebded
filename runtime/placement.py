"""Where the nodes of a model run: nodes, parts and share of the multiply-adds of each device.

ONNX Runtime gives what a device does not take to the CPU, without a word, and its list of providers is the
one that was asked for. Since 1.24 a session records which provider took each node.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .devices import DEVICES, DeviceError
from .model_file.artifact import ArtifactError
from .text import format_count, list_first

if TYPE_CHECKING:
    from .onnx_runtime import InferenceSession

_log = logging.getLogger(__name__.rpartition(".")[0])  # the package

_PRODUCTS = ("Gemm", "MatMul", "Conv")  # the operators that multiply and add
COUNTS = "multiply_adds"  # the field of `measured` in the metadata
MIN_SHARE = 0.9  # of the multiply-adds, that a device which was asked for must hold
_NAMES = {spec.provider: name.partition(":")[0] for name, spec in DEVICES.items()}
_TOO_OLD = "onnxruntime 1.24 or newer says it"
_MOST = 2**53  # the largest count that every JSON reader keeps exact


@dataclass(frozen=True, kw_only=True)
class DevicePart:
    """Share of a model that one device holds."""

    device: str  # its name in this project, or that of ONNX Runtime's provider
    nodes: int
    parts: int  # pieces of the graph, with a transfer between two of them; a device without a compiler: nodes
    share: float | None  # of the multiply-adds, 0 to 1; None where the file does not say how many there are
    operators: Mapping[str, int]  # nodes by operator, most first


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The devices that hold a model, as ONNX Runtime recorded it before it fused operators."""

    parts: tuple[DevicePart, ...]  # most multiply-adds first
    # Share of the multiply-adds in nodes that ONNX Runtime does not list; None: the file does not say
    unlisted: float | None

    def find(self, device: str) -> DevicePart:
        """Return what a device holds, which may be nothing; "openvino:gpu" is found as "openvino"."""
        name = device.partition(":")[0]
        nothing = DevicePart(
            device=name, nodes=0, parts=0, share=None if self.unlisted is None else 0.0, operators={}
        )
        return next((part for part in self.parts if part.device == name), nothing)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def to_text(self) -> str:
        """Return one line, such as "qnn 104 nodes in 2 parts, 100.0 % of the multiply-adds; cpu …"."""
        found = []
        for part in self.parts:
            # A device that compiles nothing has one part per node, which says nothing.
            pieces = f" in {format_count(part.parts, 'part')}" if part.parts < part.nodes else ""
            nodes = format_count(part.nodes, "node")
            found.append(f"{part.device} {nodes}{pieces}, {describe_share(part.share)}")
        if self.unlisted:
            found.append(f"in nodes that ONNX Runtime does not list {describe_share(self.unlisted)}")
        return "; ".join(found)


def describe_placement(placement: Placement | None) -> str:
    """Return a placement in words; "unknown" where ONNX Runtime cannot say.

    Args:
        placement: of a session, as `read_placement` returns it.
    """
    return f"unknown: {_TOO_OLD}" if placement is None else placement.to_text()


def describe_share(share: float | None) -> str:
    """Return a share of the multiply-adds in words; it is never rounded up to 100 %."""
    if share is None:
        return "an unknown share of the multiply-adds"
    return f"{int(share * 1000) / 10:.1f} % of the multiply-adds"


def read_multiply_adds(measured: Mapping[str, Any], model: str) -> dict[str, int]:
    """Return the multiply-adds of one image by node name, from the metadata; empty where it has none.

    Args:
        measured: that field of the metadata, which is not to be trusted.
        model: a name for messages.

    Raises:
        ArtifactError: for anything but counts.
    """
    found = measured.get(COUNTS, {})
    for count in found.values() if isinstance(found, dict) else [repr(found)]:
        if type(count) is not int or not 0 <= count <= _MOST:
            raise ArtifactError(
                f"{model}: expected measured.{COUNTS} of its metadata to hold a count (0 to {_MOST:,}) per "
                f"node, found {count!r:.60}; export it again"
            )
    return dict(found)


def read_placement(session: InferenceSession, multiply_adds: Mapping[str, int]) -> Placement | None:
    """Return where the nodes of a session run; None where this ONNX Runtime cannot say (before 1.24).

    Args:
        session: opened by `runtime.session.open_session`, which has it record the placement.
        multiply_adds: of one image, by node name; empty where they are unknown.
    """
    read = getattr(session, "get_provider_graph_assignment_info", None)
    if read is None:
        return None
    parts, adds = Counter[str](), Counter[str]()
    operators: dict[str, Counter[str]] = {}
    left = dict(multiply_adds)
    for part in read():
        device = _NAMES.get(part.ep_name, part.ep_name)
        parts[device] += 1
        for node in part.get_nodes():
            operators.setdefault(device, Counter())[node.op_type] += 1
            adds[device] += left.pop(node.name, 0)
    # From a cache: each compiled part is one node, and the graph lacks the nodes inside and no others.
    compiled = [device for device, nodes in operators.items() if nodes["EPContext"]]
    if len(compiled) == 1:
        adds[compiled[0]] += sum(left.values())
        left.clear()
    total = sum(multiply_adds.values())
    found = (
        DevicePart(
            device=device,
            nodes=nodes.total(),
            parts=parts[device],
            share=adds[device] / total if total else None,
            operators=dict(nodes.most_common()),
        )
        for device, nodes in operators.items()
    )
    return Placement(
        parts=tuple(sorted(found, key=lambda part: (-(part.share or 0), -part.nodes))),
        unlisted=sum(left.values()) / total if total else None,
    )


def check_placement(placement: Placement | None, device: str, model: str) -> None:
    """Check that a device which was asked for holds at least 90 % of the multiply-adds.

    What cannot be known is logged; `model` is a name for messages.

    Raises:
        DeviceError: when it holds less; the message names the operators outside and counts them.
    """
    if placement is None or (held := placement.find(device)).share is None:
        hint = _TOO_OLD if placement is None else "export the model again"
        _log.warning("how much of %s runs on %s is unknown: %s", model, device, hint)
        return
    if held.share >= MIN_SHARE:
        return
    outside = sum((Counter(part.operators) for part in placement.parts if part is not held), Counter[str]())
    total = outside + Counter(held.operators)
    order = sorted(outside, key=lambda name: (name not in _PRODUCTS, -outside[name]))
    names = list_first([f"{outside[name]} of {total[name]} {name}" for name in order], 6)
    unlisted = f"; {describe_share(placement.unlisted)} is not listed" if placement.unlisted else ""
    raise DeviceError(
        f"{device} holds {describe_share(held.share)} of {model} (minimum: {100 * MIN_SHARE:.0f} %); on "
        f"other devices run {names}{unlisted}; choose another file of the model, or another device, or "
        "accept it with DeviceOptions(partial=True), --partial on the command line"
    )
