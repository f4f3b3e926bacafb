"""verl's FSDP2 engine, taught to score pairs; on CPU and CUDA alike.

Four things differ from verl's own engine for value models. The module is transformers' sequence classifier with one
label, so the checkpoint is what servers and libraries load. A micro-batch stays one packed row of pairs (see
dataset.py). Only the two ends of each pair are scored, in fp32. And LoRA trains the reward head too.
"""

import types

import torch
import torch.nn as nn
from tensordict import TensorDict
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.fsdp_utils import apply_fsdp2, fsdp2_load_full_state_dict
from verl.utils.metric import AggregationType, Metric
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import TrainingWorker

from common.attention import SEGMENT_ATTENTION, Segments
from common.checkpoint import export_model

from loss import batch_sums, pair_losses

SELF_TEST_TOLERANCE = 1e-3  # of the rewards' spread; fp32 rounding is far below, a leak between branches far above


def pack(branch_lengths: torch.Tensor, device: torch.device) -> tuple[Segments, torch.Tensor]:
    """Cut a packed row of pairs into attention segments.

    Args:
        branch_lengths: (pairs, 3), tokens of prompt, chosen and rejected of each pair in row order.

    Returns:
        The segments, and (pairs * 2,) the positions in the row where the rewards are read: the last token of chosen
        and of rejected, pair by pair.
    """
    spans, ends, start = [], [], 0
    for prompt, chosen, rejected in branch_lengths.tolist():
        middle, end = start + prompt + chosen, start + prompt + chosen + rejected
        spans += [(start, middle, start, start), (middle, end, start, start + prompt)]
        ends += [middle - 1, end - 1]
        start = end
    return Segments(spans, device), torch.tensor(ends, device=device)


def score_ends(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    segments: Segments,
    ends: torch.Tensor,
    **_,
) -> dict[str, torch.Tensor]:
    """Replace the model's forward: the backbone over the packed row, the head at the ends alone.

    The class's own forward would score every token and find the end by comparing ids with the pad token.

    Returns:
        rewards: (pairs, 2) fp32.
    """
    hidden = model.base_model(
        input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False, segments=segments
    ).last_hidden_state
    with torch.autocast(input_ids.device.type, enabled=False):
        rewards = model.score(hidden[0, ends].float())
    return {"rewards": rewards.view(-1, 2)}


def pair_loss(model_output: dict, data: TensorDict, dp_group, margin_scale: float, centering: float):
    """Call the pure loss on one micro-batch, scaled so that the sum over all is the mean over the global batch."""
    rewards = model_output["rewards"].values().view(-1, 2)
    workers = data["dp_size"]  # FSDP averages gradients over the workers, verl the metrics
    losses = pair_losses(rewards, margin_scale * data["margin"], centering)
    metrics = {name: Metric(AggregationType.SUM, value * workers) for name, value in batch_sums(rewards).items()}
    return losses.sum() / data["global_batch_size"] * workers, metrics


@EngineRegistry.register(model_type="reward_model", backend="fsdp2", device=["cpu", "cuda"])
class PairEngine(FSDPEngineWithLMHead):
    """Builds, shards and runs a one-label sequence classifier over packed pairs."""

    def _build_module(self) -> PreTrainedModel:
        config = self.model_config.hf_config
        config.num_labels, config.attention_dropout = 1, 0.0
        options = {
            "dtype": torch.float32,
            "attn_implementation": "sdpa",
            "trust_remote_code": self.model_config.trust_remote_code,
        }
        torch.manual_seed(self.engine_config.seed)  # a new reward head is random: same in every run, any world size
        if self.rank == 0:
            path = self.model_config.local_path
            module = AutoModelForSequenceClassification.from_pretrained(path, config=config, **options)
        else:  # filled by broadcast from rank 0, so the checkpoint is read once
            with torch.device("meta"):
                module = AutoModelForSequenceClassification.from_config(config, **options)
        for part in module.modules():
            if isinstance(part, nn.Dropout):  # noise on a prompt that two branches share would not be a fair comparison
                part.p = 0.0
        if self.rank == 0:
            self_test(module)
        module.set_attn_implementation(SEGMENT_ATTENTION)
        module.forward = types.MethodType(score_ends, module)
        if self.model_config.enable_gradient_checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        return module

    def _build_lora_module(self, module: PreTrainedModel) -> nn.Module:
        from peft import LoraConfig, TaskType, get_peft_model

        module.enable_input_require_grads()  # gradient checkpointing needs an input that asks for gradients
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=self.model_config.lora_rank,
            lora_alpha=self.model_config.lora_alpha,
            target_modules=self.model_config.target_modules,
            modules_to_save=["score"],
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
        model = unwrap(module)
        fully_shard(model.score, **shard, mp_policy=fp32)
        if model.config.tie_word_embeddings:  # verl keeps a tied embedding gathered; a classifier has nothing to tie
            fully_shard(model.get_input_embeddings(), **shard, mp_policy=mixed)
        apply_fsdp2(module, {**shard, "mp_policy": mixed}, self.engine_config)
        fsdp2_load_full_state_dict(module, full_state, self.device_mesh, offload)
        return module

    def lr_scheduler_step(self) -> float:
        """Return the rate that this step was made with; verl returns the next one."""
        used = self.lr_scheduler.get_last_lr()[0]
        super().lr_scheduler_step()
        return used

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict, dict]:
        ids = micro_batch["input_ids"].values()
        segments, ends = pack(micro_batch["branch_lengths"], ids.device)
        positions = micro_batch["position_ids"].values()
        return {"input_ids": ids[None], "position_ids": positions[None], "segments": segments, "ends": ends}, {}

    def prepare_model_outputs(self, output: dict, output_args, micro_batch, logits_processor_func) -> dict:
        rewards = output["rewards"]  # verl reassembles micro-batches from jagged tensors, one row per pair
        offsets = torch.arange(0, 2 * len(rewards) + 1, 2, device=rewards.device)
        return {"rewards": torch.nested.nested_tensor_from_jagged(rewards.flatten(), offsets)}


class PairWorker(TrainingWorker):
    """verl's worker with one more call: write the model for others to load."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def export(self, folder: str) -> None:
        """Write a Hugging Face checkpoint; see `common.checkpoint.export_model`."""
        tokenizer = self.model_config.tokenizer
        export_model(self.engine.module, unwrap(self.engine.module).config, tokenizer, folder, self.engine.rank)


def unwrap(module: nn.Module) -> PreTrainedModel:
    return module.get_base_model() if hasattr(module, "peft_config") else module


@torch.no_grad()
def self_test(model: PreTrainedModel) -> None:
    """Score a few random pairs packed and one by one with the model's own attention; both must agree.

    An architecture that routes tokens past transformers' attention interface (recurrent or convolutional layers)
    would let pairs leak into one another, and train without a word.

    Raises:
        ValueError: the rewards differ.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([[6, 4, 3], [5, 2, 5], [1, 3, 2]])
    pairs = [
        [torch.randint(0, model.config.vocab_size, (n,), generator=generator) for n in row] for row in lengths.tolist()
    ]
    was_training = model.training
    model.eval()
    model.set_attn_implementation("sdpa")

    def hidden(ids: list[torch.Tensor], **kwargs) -> torch.Tensor:
        return model.base_model(input_ids=torch.cat(ids)[None], use_cache=False, **kwargs).last_hidden_state[0].float()

    alone = torch.stack([model.score(hidden(ids)[-1]) for p, c, r in pairs for ids in ([p, c], [p, r])])
    model.set_attn_implementation(SEGMENT_ATTENTION)
    segments, ends = pack(lengths, torch.device("cpu"))
    row = [part for pair in pairs for part in pair]
    positions = torch.cat([torch.cat([torch.arange(p + c), torch.arange(p, p + r)]) for p, c, r in lengths.tolist()])
    packed = model.score(hidden(row, position_ids=positions[None], attention_mask=None, segments=segments)[ends])
    model.train(was_training)
    if (packed - alone).abs().max() > SELF_TEST_TOLERANCE * alone.std():
        raise ValueError(
            f"{type(model).__name__}: packed pairs score {packed.flatten().tolist()}, the same pairs alone "
            f"{alone.flatten().tolist()}. This architecture does not keep packed sequences apart; choose a model whose "
            "layers all attend through transformers' attention interface (Qwen, Llama, Mistral, Gemma, Phi, OLMo, …)."
        )
