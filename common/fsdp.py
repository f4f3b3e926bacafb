"""verl's FSDP2 engine for packed rows, on CPU and CUDA alike: what the methods' engines share.

It differs from verl's own FSDP engine in six points. A micro-batch stays one row of tokens, whose sequences
`common.attention` keeps apart; a model that cannot be packed gets one padded sequence per row (`common.packing`).
Weights are fp32 and the computation is in `mixed_precision`, on the CPU too. Dropout is off, whatever it is called.
Before training, random sequences are computed packed and alone: a model that mixes them up is refused. Layers can be
compiled. And the first step already trains: verl's warm-up starts at a rate of 0.
"""

import importlib

import ray
import torch
import torch.nn as nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import distributed, tracking
from verl.utils.checkpoint import checkpoint_handler, checkpoint_manager
from verl.utils.device import get_device_name
from verl.utils.fsdp_utils import apply_fsdp2, fsdp2_load_full_state_dict
from verl.utils.profiler import performance
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import TrainingWorker

from common.attention import SEGMENT_ATTENTION, segment_attention, self_test
from common.checkpoint import unwrap
from common.cluster import mute
from common.logits import can_be_split, let_forward_read
from common.network import use_interface_of
from common.packing import for_training, own_attention

mute(checkpoint_handler, checkpoint_manager, tracking, transformer_impl)  # in every process of a run
if get_device_name() == "cpu":  # there is no GPU to stay close to, and no memory of one to be short of
    mute(distributed, performance)


def compile_layers(model: PreTrainedModel) -> int:
    """Have torch compile what each layer computes, when it is called for the first time; return how many there are.

    The many small operations of norms, rotary positions and activations become a few kernels. On an H100 they, and
    starting them, were 0.4 of a step's time. Only the forward is compiled, so FSDP2 and checkpointing stay outside.
    Attention stays as it is: its cuts are new in each batch. Batches of any size share one compilation.
    """
    AttentionInterface.register(SEGMENT_ATTENTION, torch.compiler.disable(segment_attention))
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    return len(layers)


class PackedEngine(FSDPEngineWithLMHead):
    """Builds and shards a transformers model over packed rows. Subclasses say which model, and what goes in and out."""

    auto_class: type  # transformers' class for the task: AutoModelForCausalLM, …
    task_type: str  # peft's name of it
    head: str | None = None  # a small module kept in fp32 and, with LoRA, trained whole

    @property
    def packed(self) -> bool:
        """Whether a micro-batch is one packed row; else each sequence is a row. Decided in `common.packing`."""
        return self.model_config.override_config.get("attn_implementation", SEGMENT_ATTENTION) == SEGMENT_ATTENTION

    def _build_module(self) -> PreTrainedModel:
        config = for_training(self.model_config.hf_config)
        self.model_config.hf_config = config
        self.own_attention = own_attention(config, self.auto_class)
        options = {
            "dtype": torch.float32,
            "attn_implementation": self.own_attention,
            "trust_remote_code": self.model_config.trust_remote_code,
        }
        torch.manual_seed(self.engine_config.seed)  # a new head is random: same in every run, any world size
        module = self._load_weights(config, options)
        if self.packed:
            module.set_attn_implementation(SEGMENT_ATTENTION)
        if self.model_config.enable_gradient_checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        return module

    def _load_weights(self, config: PreTrainedConfig, options: dict) -> PreTrainedModel:
        """Return the model as its folder holds it; on all workers but the first a model that waits for its weights."""
        if self.rank != 0:  # filled by broadcast from rank 0, so the checkpoint is read once
            with torch.device("meta"):
                return self.auto_class.from_config(config, **options)
        module, loading = self.auto_class.from_pretrained(
            self.model_config.local_path, config=config, output_loading_info=True, **options
        )
        self._check_complete(set(loading["missing_keys"]))
        if self.packed:
            try:
                self_test(module)
            except ValueError as error:
                raise ValueError(f"{error} Set data.packing=padded: slower, and exact.") from error
            except ArithmeticError as error:
                raise ValueError(f"{error} Perhaps some weights are not numbers: take another checkpoint.") from error
        return module

    def _check_complete(self, missing: set[str]) -> None:
        """Raise `ValueError` if weights are missing that would start at random; a new head does, and it is said."""
        starts_as_head = self.model_config.architectures[0].endswith("ForSequenceClassification")
        new = set() if starts_as_head or not self.head else {f"{self.head}.weight", f"{self.head}.bias"}
        if lost := sorted(missing - new):
            raise ValueError(f"weights are missing, among them {', '.join(lost[:5])}: is the model's folder complete?")

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
        """Shard with FSDP2: fp32 master weights, the backbone computed in `mixed_precision`, the head in fp32.

        Before, its layers are compiled; not earlier, as they are tried on the CPU when the model is built.
        """
        if self.engine_config.use_torch_compile and get_device_name() != "cpu":
            compiled = compile_layers(module) if self.packed else 0
            if not compiled and self.rank == 0:
                why = "they are none of transformers' own" if self.packed else "its rows are padded"
                print(f"use_torch_compile=True: the model's layers are not compiled, because {why}. Steps are slower.")
        compute = PrecisionType.to_dtype(self.engine_config.mixed_precision["param_dtype"])
        self._autocast_dtype = compute
        offload = CPUOffloadPolicy() if self._in_host_memory() else None
        self._uses_fsdp2_cpu_offload_policy = offload is not None
        if offload:  # FSDP2 moves the weights itself, verl must not
            self._is_offload_param = self._is_offload_optimizer = False
        shard = {"mesh": self.device_mesh, "reshard_after_forward": self.engine_config.reshard_after_forward}
        shard |= {"offload_policy": offload} if offload else {}
        fp32, mixed = (
            MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) for dtype in (torch.float32, compute)
        )
        full_state = module.state_dict()
        model = unwrap(module)
        if self.head:
            fully_shard(getattr(model, self.head), **shard, mp_policy=fp32)
        tied = model.config.tie_word_embeddings
        if self.head or not tied:  # a small head is tied to nothing
            fully_shard(model.get_input_embeddings(), **shard, mp_policy=mixed)
        # of models whose weights are tied, verl shards no lm_head by itself. Nor should it here: it would be gathered
        # for each chunk of tokens (common/logits.py). With the root's weights it is gathered once for all of them
        model.config.tie_word_embeddings = True
        apply_fsdp2(module, {**shard, "mp_policy": mixed}, self.engine_config)
        model.config.tie_word_embeddings = tied
        self._spread_weights(module, full_state, offload)
        return module

    def _in_host_memory(self) -> bool:
        """Whether weights, gradients and optimizer stay in host memory; a reference model's always, as in verl."""
        wanted = self.engine_config.offload_policy or self.engine_config.forward_only
        return wanted and get_device_name() != "cpu"

    def _spread_weights(self, module: nn.Module, full_state: dict, offload: CPUOffloadPolicy | None) -> None:
        """Give each worker its share of the weights that the first has loaded."""
        fsdp2_load_full_state_dict(module, full_state, self.device_mesh, offload)

    def _build_lr_scheduler(self, optimizer):
        scheduler = super()._build_lr_scheduler(optimizer)
        scheduler.step()  # verl's warm-up starts at a rate of 0, so the first step would train nothing
        return scheduler

    def lr_scheduler_step(self) -> float:
        """Return the rate that this step was made with; verl returns the next one."""
        used = self.lr_scheduler.get_last_lr()[0]
        super().lr_scheduler_step()
        return used


class LanguageEngine(PackedEngine):
    """A packed engine for language models. Its module's forward can read logits some tokens at a time."""

    auto_class = AutoModelForCausalLM
    task_type = "CAUSAL_LM"

    def _build_module(self) -> PreTrainedModel:
        module = super()._build_module()
        split = [self.rank == 0 and self._can_be_split(module)]
        torch.distributed.broadcast_object_list(split)  # the other workers' modules have no weights yet
        if self.rank == 0 and not split[0]:
            print(
                f"{type(module).__name__} computes the logits of a micro-batch all at once. This is exact, and needs "
                "more memory. If it is not enough, lower the tokens per micro-batch (data.max_tokens_per_gpu, "
                "of a judge actor_rollout_ref.actor.ppo_max_token_len_per_gpu)."
            )
        let_forward_read(module, split[0])
        return module

    def _can_be_split(self, module: PreTrainedModel) -> bool:
        return can_be_split(module)


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
