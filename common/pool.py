"""Where the workers run: on as many machines as the run asks for.

verl asks Ray for one group of places per machine, each group on one machine, but nothing keeps two groups from the same
machine if it has room for both. Then one machine does all the work and another none.
"""

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from verl.single_controller.ray.base import RayResourcePool, sort_placement_group_by_node_ip

from common.cluster import pick_nodes


class OneNodeEach(RayResourcePool):
    """verl's pool, with every group of processes on a node of its own."""

    def get_placement_groups(
        self, strategy: str = "STRICT_PACK", name: str | None = None, device_name: str = "cuda"
    ) -> list[PlacementGroup]:
        if len(self.store) == 1:
            return super().get_placement_groups(strategy, name, device_name)
        if self.pgs is None:
            place = {"CPU": self.max_colocate_count} | ({"GPU": 1} if self.use_gpu else {})
            processes = self.store[0]
            nodes = pick_nodes(len(self.store), {resource: count * processes for resource, count in place.items()})
            groups = [
                # every node has one of a resource by its own name
                placement_group([place | {f"node:{address}": 0.001}] * processes, strategy=strategy)
                for address in nodes
            ]
            ray.get([group.ready() for group in groups])
            self.pgs = sort_placement_group_by_node_ip(groups)
        return self.pgs
