"""verl's FSDP2 engine for packed rows, on CPU and CUDA alike: what the methods' engines share.

Differs from verl's own FSDP engine in four things. A micro-batch stays one row of tokens, kept apart by
`common.attention`. Weights are fp32 and the computation is in `mixed_precision`, on the CPU too. Dropout is off. And
before training, random sequences are computed packed and alone: a model that mixes them up is refused.
"""

import torch
import torch.nn as nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.fsdp_utils import apply_fsdp2, fsdp2_load_full_state_dict
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import TrainingWorker

from common.attention import SEGMENT_ATTENTION, Segments
from common.checkpoint import unwrap

SELF_TEST_TOLERANCE = 1e-3  # of the values' spread; fp32 rounding is far below, a leak between sequences far above


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
    """verl's worker with one more call: write the model for others to load.

    A method's engine.py has a subclass of it, so that the processes that receive the class import its engine too.
    """

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def export(self, *arguments) -> None:
        """Have the engine write a Hugging Face checkpoint."""
        self.engine.export(*arguments)


@torch.no_grad()
def self_test(model: PreTrainedModel) -> None:
    """Compute a few random sequences packed, two of them behind a shared prompt, and one by one; both must agree.

    An architecture that routes tokens past transformers' attention interface (recurrent or convolutional layers)
    would let packed sequences leak into one another, and train without a word.

    Raises:
        ValueError: the hidden states differ.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = [(6, 4, 3), (5, 2, 5), (1, 3, 2)]  # prompt, and two continuations of it
    trees = [[torch.randint(0, model.config.vocab_size, (n,), generator=generator) for n in row] for row in lengths]
    was_training = model.training
    model.eval()
    model.set_attn_implementation("sdpa")

    def hidden(ids: list[torch.Tensor], **kwargs) -> torch.Tensor:
        return model.base_model(input_ids=torch.cat(ids)[None], use_cache=False, **kwargs).last_hidden_state[0].float()

    alone, spans, positions, start = [], [], [], 0
    for (prompt, first, second), (p, a, b) in zip(trees, lengths):
        alone += [hidden([prompt, first]), hidden([prompt, second])[p:]]
        spans += [(start, start + p + a, start, start), (start + p + a, start + p + a + b, start, start + p)]
        positions += [torch.arange(p + a), torch.arange(p, p + b)]
        start += p + a + b
    model.set_attn_implementation(SEGMENT_ATTENTION)
    row = {"position_ids": torch.cat(positions)[None], "attention_mask": None}
    packed = hidden([part for tree in trees for part in tree], **row, segments=Segments(spans, torch.device("cpu")))
    model.train(was_training)
    worst, spread = (packed - torch.cat(alone)).abs().max(), torch.cat(alone).std()
    if worst > SELF_TEST_TOLERANCE * spread:
        raise ValueError(
            f"{type(model).__name__}: hidden states of packed sequences differ by up to {worst:.2g} from those of the "
            f"same sequences alone, whose spread is {spread:.2g}. This architecture does not keep packed sequences "
            "apart; choose a model whose layers all attend through transformers' attention interface (Qwen, Llama, "
            "Mistral, Phi, OLMo, text-only Gemma 3, …)."
        )
