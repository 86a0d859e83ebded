"""A Ray cluster of two nodes on this machine, which obeys lines on standard input: kill, quit."""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Print the address, then obey."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(second, allow_graceful=False)
            print("killed", flush=True)
        else:
            break
    cluster.shutdown()


if __name__ == "__main__":
    main()
