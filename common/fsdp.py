"""verl's FSDP2 engine for packed rows, on CPU and CUDA alike: what the methods' engines share.

It differs from verl's own FSDP engine in four points. A micro-batch stays one row of tokens, whose sequences
`common.attention` keeps apart. Weights are fp32 and the computation is in `mixed_precision`, on the CPU too. Dropout is
off. And before training, random sequences are computed packed and alone: a model that mixes them up is refused.
"""

import importlib

import ray
import torch
import torch.nn as nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.fsdp_utils import apply_fsdp2, fsdp2_load_full_state_dict
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import TrainingWorker

from common.attention import SEGMENT_ATTENTION, self_test
from common.checkpoint import unwrap
from common.network import use_interface_of


class PackedEngine(FSDPEngineWithLMHead):
    """Builds and shards a transformers model over packed rows. Subclasses say which model, and what goes in and out."""

    auto_class: type  # transformers' class for the task: AutoModelForCausalLM, …
    task_type: str  # peft's name of it
    head: str | None = None  # a small module kept in fp32 and, with LoRA, trained whole

    def _build_module(self) -> PreTrainedModel:
        config = self.model_config.hf_config
        config.attention_dropout = 0.0
        options = {
            "dtype": torch.float32,
            "attn_implementation": "sdpa",
            "trust_remote_code": self.model_config.trust_remote_code,
        }
        torch.manual_seed(self.engine_config.seed)  # a new head is random: same in every run, any world size
        if self.rank == 0:
            module = self.auto_class.from_pretrained(self.model_config.local_path, config=config, **options)
        else:  # filled by broadcast from rank 0, so the checkpoint is read once
            with torch.device("meta"):
                module = self.auto_class.from_config(config, **options)
        for part in module.modules():
            if isinstance(part, nn.Dropout):  # noise that differs between packed sequences would be no fair comparison
                part.p = 0.0
        if self.rank == 0:
            self_test(module)
        module.set_attn_implementation(SEGMENT_ATTENTION)
        if self.model_config.enable_gradient_checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        return module

    def _build_lora_module(self, module: PreTrainedModel) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        module.enable_input_require_grads()  # gradient checkpointing needs an input that asks for gradients
        config = LoraConfig(
            task_type=self.task_type,
            r=self.model_config.lora_rank,
            lora_alpha=self.model_config.lora_alpha,
            target_modules=self.model_config.target_modules,
            modules_to_save=[self.head] if self.head else None,
        )
        return get_peft_model(module, config)

    def _build_fsdp_module(self, module: nn.Module) -> nn.Module:
        """Shard with FSDP2: fp32 master weights, the backbone computed in `mixed_precision`, the head in fp32."""
        compute = PrecisionType.to_dtype(self.engine_config.mixed_precision["param_dtype"])
        self._autocast_dtype = compute
        offload = CPUOffloadPolicy() if self.engine_config.offload_policy else None
        self._uses_fsdp2_cpu_offload_policy = offload is not None
        shard = {"mesh": self.device_mesh, "reshard_after_forward": self.engine_config.reshard_after_forward}
        shard |= {"offload_policy": offload} if offload else {}
        fp32, mixed = (
            MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) for dtype in (torch.float32, compute)
        )
        full_state = module.state_dict()
        if self.head:
            model = unwrap(module)
            fully_shard(getattr(model, self.head), **shard, mp_policy=fp32)
            if model.config.tie_word_embeddings:  # verl keeps a tied embedding gathered; this head is tied to nothing
                fully_shard(model.get_input_embeddings(), **shard, mp_policy=mixed)
        apply_fsdp2(module, {**shard, "mp_policy": mixed}, self.engine_config)
        fsdp2_load_full_state_dict(module, full_state, self.device_mesh, offload)
        return module

    def lr_scheduler_step(self) -> float:
        """Return the rate that this step was made with; verl returns the next one."""
        used = self.lr_scheduler.get_last_lr()[0]
        super().lr_scheduler_step()
        return used


class PackedWorker(TrainingWorker):
    """verl's worker, which knows a method's engine and can write the model for others to load."""

    def __init__(self, config: TrainingWorkerConfig, engine_module: str):
        """`engine_module` is the method's engine.py, which registers its engine when it is imported."""
        importlib.import_module(engine_module)
        use_interface_of(ray.util.get_node_ip_address())
        super().__init__(config)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def export(self, *arguments) -> None:
        """Have the engine write a Hugging Face checkpoint."""
        self.engine.export(*arguments)
