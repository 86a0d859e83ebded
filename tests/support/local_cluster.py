"""A Ray cluster of two nodes with one core each on this machine.

    python -m tests.support.local_cluster

It prints its address and then obeys lines on standard input: kill (the second node), add (another one), quit.
Each is answered by a line when it is done.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

_AGENTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "runtime_env_agent_port",
    "dashboard_agent_listen_port",
)
_STARTS = 3  # attempts to start a node: Ray gives up when a machine is busy


def main() -> None:
    """Start the cluster and obey."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=_node(include_dashboard=False)))
    second = _patiently(lambda: cluster.add_node(**_node()))
    print(cluster.address, flush=True)
    for line in sys.stdin:
        match line.strip():
            case "kill":
                cluster.remove_node(second, allow_graceful=False)
            case "add":
                second = _patiently(lambda: cluster.add_node(**_node()))
            case _:
                break
        print("done", flush=True)
    cluster.shutdown()


def _node(**more: Any) -> dict[str, Any]:
    """One core, and agents at given ports: for ports of their own choice Ray waits 15 s and no longer."""
    names = (
        "metrics_agent_port",
        "metrics_export_port",
        "runtime_env_agent_port",
        "dashboard_agent_listen_port",
    )
    return {"num_cpus": 1, **dict(zip(names, _free_ports(len(names)), strict=True)), **more}


def _free_ports(count: int) -> list[int]:
    taken = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return ports


def _patiently(start: Callable[[], Any]) -> Any:
    for left in reversed(range(_STARTS)):
        try:
            return start()
        except Exception:  # Ray raises bare ones
            if not left:
                raise
    raise AssertionError("the last attempt returns or raises")


if __name__ == "__main__":
    main()
