"""A real Ray cluster on this machine: on loopback, with a token, its nodes killed and started by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# before Ray is imported: on loopback, with a token, without calls home
os.environ.update(
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN="0123456789abcdef" * 4,
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
)
NODE = {
    "num_cpus": 1,
    "object_store_memory": 80 << 20,
    "node_ip_address": "127.0.0.1",
    "include_dashboard": False,
    "include_log_monitor": False,
    "no_monitor": True,
}

# a dead node is noticed within two seconds
NOTICE = {"health_check_period_ms": 400, "health_check_failure_threshold": 4, "health_check_initial_delay_ms": 1000}


class Machines:
    """Nodes by name; each keeps its disk in a folder of its name under `data`."""

    def __init__(self, data: Path, names: tuple[str, ...]) -> None:
        from ray.cluster_utils import Cluster

        self.data = str(data)
        head = {**NODE, "node_name": names[0], "_system_config": NOTICE}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: dict[str, Any] = {}
        for name in names[1:]:
            self.add(name)

    @property
    def address(self) -> str:
        """Where Ray listens."""
        return str(self._cluster.address)

    @property
    def spare(self) -> str:
        """A node that is neither the head nor the one that this process is connected by."""
        import ray

        own = ray.get_runtime_context().get_node_id()
        return next(n["NodeName"] for n in ray.nodes() if n["NodeName"] in self._nodes and n["NodeID"] != own)

    def add(self, name: str) -> None:
        """Start a node."""
        self._nodes[name] = self._cluster.add_node(**NODE, node_name=name)

    def lose(self, name: str) -> None:
        """Kill a node and all that runs on it."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def close(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()
