"""New weights for vLLM: verl's way, with an end if it fails.

verl's worker hands the weights over in buckets, and waits for vLLM's word after each. If vLLM has failed meanwhile, the
word never comes and verl waits for ever. Here the worker looks every second whether vLLM still takes weights.

Needs vLLM; `common.grpo.servers` names this module to verl.
"""

import asyncio
import shutil

import torch
from ray import ObjectRef
from ray.exceptions import RayError
from verl.workers.rollout.vllm_rollout import ServerAdapter
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

from common.cluster import TrainingError
from common.grpo.servers import SECONDS_OF_SILENCE, WatchedSocket, weights_refused

SHARED_MEMORY = "/dev/shm"


class WatchedSender(BucketedWeightSender):
    """verl's sender.

    Args:
        loading: vLLM's side of the transfer; None on workers beside the first of a server.
    """

    def __init__(self, loading: ObjectRef | None, **settings):
        super().__init__(**settings)
        self.loading = loading.future() if loading else None

    def _init_socket(self) -> None:
        super()._init_socket()
        self.socket = WatchedSocket(self.socket, self.loading)


class WatchedAdapter(ServerAdapter):
    """What verl's worker has of its server."""

    def make_room(self, largest: int) -> None:
        """Have a bucket hold the largest weight, of so many bytes, where verl cannot send it alone.

        That is through shared memory; and with adapters, whose base model's weights verl takes from the host.

        Raises:
            TrainingError: the bucket is shared memory, and there is too little of it: writing would kill the process.
        """
        self.bucket = self.config.checkpoint_engine.update_weights_bucket_megabytes
        if self.use_shm or self.model_config.lora_rank:
            self.bucket = max(self.bucket, -(-largest // 2**20))
        if self.use_shm and (free := shutil.disk_usage(SHARED_MEMORY).free >> 20) < self.bucket:
            raise TrainingError(
                f"new weights go to vLLM through shared memory, {self.bucket} MB at a time, and {SHARED_MEMORY} has "
                f"{free} MB free. Enlarge it (docker run --shm-size=8g), or set ROLLOUT=hf."
            )

    @torch.no_grad()
    async def update_weights(self, weights, global_steps: int | None = None, **settings) -> None:
        """Replace vLLM's weights; as verl's, but for the sender.

        Raises:
            TrainingError: vLLM did not take them.
        """
        wanted = {**settings, "use_shm": self.use_shm}
        loading = await self._execute_method("update_weights_from_ipc", non_block=True, kwargs=wanted)
        sender = WatchedSender(loading, zmq_handle=self.zmq_handle, bucket_size_mb=self.bucket, use_shm=self.use_shm)
        await sender.async_send_weights(weights)
        if self._has_server:
            try:
                await asyncio.wait_for(loading, SECONDS_OF_SILENCE)
                await self.server_handle.clear_kv_cache.remote()
                await self.server_handle.set_global_steps.remote(global_steps)
            except (RayError, asyncio.TimeoutError) as error:  # of Python 3.10, a class of its own
                raise weights_refused(error) from error
