"""A Ray cluster on this machine: a head without CPUs and two nodes of one CPU, so that one can be killed.
Each node says that it has a GPU, so that shares of one can be asked for; nothing computes on it.
Import it before ray: it tells Ray to keep to 127.0.0.1, whatever addresses the machine has.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LOCAL = "127.0.0.1"
MEMORY = 80 * 2**20  # bytes of each node's object store, the least that Ray takes

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # a driver that is given 127.0.0.1 doesn't look for another
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@dataclass
class TwoNodes:
    """The cluster's address, and its nodes that work."""

    cluster: Any
    nodes: list[Any]

    @property
    def address(self) -> str:
        """What --ray is given."""
        address: str = self.cluster.address
        return address

    def kill(self, number: int = 0) -> None:
        """End a node and all its processes by SIGKILL."""
        self.cluster.remove_node(self.nodes.pop(number), allow_graceful=False)


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """A cluster that is ended on leaving."""
    from ray.cluster_utils import Cluster

    options = {"node_ip_address": LOCAL, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "num_cpus": 0, "include_dashboard": False})
    try:
        yield TwoNodes(cluster, [cluster.add_node(num_cpus=1, num_gpus=1, **options) for _ in range(2)])
    finally:
        cluster.shutdown()
