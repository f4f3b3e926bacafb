"""The platform "cpu" for verl: what verl asks of an accelerator, answered by the host.

- `current_device()` is the string "cpu": verl hands it to `Tensor.to()`, where an integer would mean cuda:0.
- verl asks for the process group "cpu:gloo,<device>:<backend>". With device "cpu" torch refuses the string, because
  it names cpu twice, but verl skips the call when a group is already up. So the group is brought up when verl asks
  for the backend's name, which it does one line earlier.
- Workers need no accelerator, so Ray is asked for CPUs only (`use_gpu=False` on the resource pool). The name "GPU"
  below is what verl's GRPO trainer counts; a local Ray declares it as a number without hardware.
"""

import os
from contextlib import contextmanager
from types import ModuleType

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _cpu_device_module() -> ModuleType:
    """torch.cpu with the memory and random-number calls that verl makes on torch.cuda; memory readings are 0."""
    module = ModuleType("torch_cpu_as_accelerator")
    module.__dict__.update({name: value for name, value in vars(torch.cpu).items() if not name.startswith("__")})
    for reading in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, reading, lambda *args, **kwargs: 0)
    for action in ("empty_cache", "ipc_collect", "reset_peak_memory_stats", "set_per_process_memory_fraction"):
        setattr(module, action, lambda *args, **kwargs: None)
    module.mem_get_info = lambda *args, **kwargs: (0, 0)
    module.get_device_name = lambda *args, **kwargs: "CPU"
    module.manual_seed = module.manual_seed_all = torch.manual_seed
    module.get_rng_state, module.set_rng_state = torch.get_rng_state, torch.set_rng_state
    return module


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """One host, one device, no memory to manage."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _cpu_device_module()

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        if "MASTER_ADDR" in os.environ and "RANK" in os.environ and not torch.distributed.is_initialized():
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None
