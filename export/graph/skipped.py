"""Why a rewrite left a layer alone: rewrites note it with `skip`, `export --verbose` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir


@dataclass
class Skipped:
    """The candidates that rewrites left alone, with the reasons, in the order of the rewrites."""

    rewrite: str = ""  # the one that runs, see `name_rewrite`
    reasons: dict[tuple[str, ir.Node], str] = field(default_factory=dict)  # by rewrite and node

    def lines(self) -> list[str]:
        """Return one line per node, grouped by rewrite.

        Nodes that left the graph later are not listed: another round, or another rewrite, replaced them.
        """
        lines = [
            f"{rewrite}: {node.name} ({node.op_type}) stays as it is: {reason}"
            for (rewrite, node), reason in self.reasons.items()
            if node.graph is not None
        ]
        return ["", "Left alone by the rewrites:" if lines else "Left alone by the rewrites: none", *lines]


_collector: ContextVar[Skipped | None] = ContextVar("skipped", default=None)


def name_rewrite(name: str) -> None:
    """Set the name under which `skip` notes reasons from now on."""
    if (collector := _collector.get()) is not None:
        collector.rewrite = name


@contextmanager
def collect_skipped(wanted: bool = True) -> Iterator[Skipped]:
    """Collect what rewrites skip while a block runs, if wanted; outside of it `skip` does nothing."""
    skipped = Skipped()
    token = _collector.set(skipped if wanted else None)
    try:
        yield skipped
    finally:
        _collector.reset(token)


def skip(node: ir.Node, reason: str) -> Literal[False]:
    """Note that the running rewrite leaves a candidate alone, and return False.

    Args:
        node: starts like the pattern of the rewrite; no other node is a candidate.
        reason: what about it does not fit, in plain words.
    """
    if (collector := _collector.get()) is not None:
        collector.reasons[collector.rewrite, node] = reason
    return False
