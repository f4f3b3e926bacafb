"""Where the workers run: on as many machines as the run asks for.

Differs from verl's own in two points. verl asks Ray for one group of places per machine, each group on one machine, but
nothing keeps two groups from the same machine if it has room for both: then one machine does all the work and another
none. And verl has Ray start processes that only say that the places are there, and at which address the workers meet.
Each takes seconds. Here we wait without one, and on a Ray of our own the address is known.
"""

import os
import socket

from ray.util.placement_group import PlacementGroup, placement_group
from verl.single_controller.ray.base import RayResourcePool, RayWorkerGroup, sort_placement_group_by_node_ip

from common.cluster import LOOPBACK, pick_nodes


class OneNodeEach(RayResourcePool):
    """verl's pool, with every group of processes on a node of its own."""

    def get_placement_groups(
        self, strategy: str = "STRICT_PACK", name: str | None = None, device_name: str = "cuda"
    ) -> list[PlacementGroup]:
        if self.pgs is None:
            place = {"CPU": self.max_colocate_count} | ({"GPU": 1} if self.use_gpu else {})
            processes, nodes = self.store[0], [{}]
            if len(self.store) > 1:
                needed = {resource: count * processes for resource, count in place.items()}
                # every node has one of a resource by its own name
                nodes = [{f"node:{address}": 0.001} for address in pick_nodes(len(self.store), needed)]
            groups = [placement_group([place | node] * processes, strategy=strategy) for node in nodes]
            for group in groups:
                while not group.wait():
                    pass
            self.pgs = sort_placement_group_by_node_ip(groups)
        return self.pgs


class WorkerGroup(RayWorkerGroup):
    """verl's workers, which meet at an address of this machine if Ray is one that we have started."""

    def _get_master_addr_port(self, pg: PlacementGroup, bundle_index: int = 0, master_port_range=None) -> None:
        if os.environ.get("RAY_ADDRESS"):
            super()._get_master_addr_port(pg, bundle_index, master_port_range)
            return
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            self._master_addr, self._master_port = LOOPBACK, str(probe.getsockname()[1])
