"""verl's FSDP2 engine for pairs, on CPU and CUDA alike.

Three things differ from verl's own engine for value models. The module is transformers' sequence classifier with one
label, so the checkpoint is what servers and libraries load. A micro-batch stays one packed row of pairs (see
dataset.py), or, for a model that cannot be packed, two padded rows a pair. And only the two ends of each pair are
scored, in fp32.
"""

import types
from collections.abc import Sequence
from functools import partial

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine import EngineRegistry

from common.attention import Segments
from common.checkpoint import export_model
from common.fsdp import PackedEngine
from common.memory import Step
from common.packing import pad
from common.training import fullest, make_batch, verl_settings

from .dataset import Pair, collate
from .loss import batch_sums, pair_losses
from .reward_model import score_ends


def cut_pairs(branch_lengths: torch.Tensor, device: torch.device) -> tuple[Segments, torch.Tensor]:
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


def unpack_pairs(rows: Sequence[torch.Tensor], branch_lengths: torch.Tensor) -> list[torch.Tensor]:
    """Return each pair's two whole texts, prompt and chosen, prompt and rejected, from its row of tokens."""
    texts = []
    for ids, lengths in zip(rows, branch_lengths.tolist()):
        prompt, chosen, rejected = ids.split(lengths)
        texts += [torch.cat([prompt, chosen]), torch.cat([prompt, rejected])]
    return texts


def score_pairs(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    ends: tuple,
    **options,
) -> dict[str, torch.Tensor]:
    """Replace the model's forward: the backbone over the batch, the head at the ends alone.

    Returns:
        rewards: (pairs, 2) fp32.
    """
    layout = {name: options[name] for name in ("position_ids", "segments", "attention_mask") if name in options}
    return {"rewards": score_ends(model, input_ids, ends, **layout).view(-1, 2)}


def pair_loss(model_output: dict, data: TensorDict, dp_group, margin_scale: float, centering: float):
    """Call the pure loss on one micro-batch, scaled so that the sum over all is the mean over the global batch.

    The metrics are sums over pairs, and under "rewards" for each pair its place in the batch and its two rewards.
    """
    rewards = model_output["rewards"].values().view(-1, 2)
    workers = data["dp_size"]  # FSDP averages gradients over the workers, verl the metrics
    losses = pair_losses(rewards, margin_scale * data["margin"], centering)
    metrics = {name: Metric(AggregationType.SUM, value * workers) for name, value in batch_sums(rewards).items()}
    metrics["rewards"] = torch.cat([data["place"][:, None], rewards.detach().float()], dim=1).tolist()
    return losses.sum() / data["global_batch_size"] * workers, metrics


@EngineRegistry.register(model_type="reward_model", backend="fsdp2", device=["cpu", "cuda"])
class PairEngine(PackedEngine):
    """Builds, shards and runs a one-label sequence classifier over packed pairs."""

    auto_class = AutoModelForSequenceClassification
    task_type = "SEQ_CLS"
    head = "score"

    def _build_module(self) -> PreTrainedModel:
        self.model_config.hf_config.num_labels = 1
        module = super()._build_module()
        module.forward = types.MethodType(score_pairs, module)
        return module

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict, dict]:
        if not self.packed:
            texts = unpack_pairs(micro_batch["input_ids"].unbind(), micro_batch["branch_lengths"])
            ends = torch.tensor([len(ids) - 1 for ids in texts], device=texts[0].device)
            return pad(texts) | {"ends": (torch.arange(len(texts), device=ends.device), ends)}, {}
        ids = micro_batch["input_ids"].values()
        segments, ends = cut_pairs(micro_batch["branch_lengths"], ids.device)
        positions = micro_batch["position_ids"].values()
        return {"input_ids": ids[None], "position_ids": positions[None], "segments": segments, "ends": (0, ends)}, {}

    def prepare_model_outputs(self, output: dict, output_args, micro_batch: TensorDict, logits_processor_func) -> dict:
        rewards = output["rewards"]  # verl reassembles micro-batches from jagged tensors, one row per pair
        offsets = torch.arange(0, 2 * len(rewards) + 1, 2, device=rewards.device)
        return {"rewards": torch.nested.nested_tensor_from_jagged(rewards.flatten(), offsets)}

    def export(self, folder: str) -> None:
        """Write a checkpoint whose config transformers, vLLM and SGLang read as a regression to one unbounded number.

        With LoRA the adapter has the reward head too. See `common.checkpoint.export_model`.
        """
        changes = {
            "problem_type": "regression",  # without it vLLM squashes the single logit through a sigmoid
            "id2label": {0: "reward"},  # without the two, SGLang normalises hidden states
            "label2id": {"reward": 0},
        }
        export_model(self.module, self.auto_class, changes, self.model_config.tokenizer, folder, self.rank)


def step_to_count(config: DictConfig, workers: int, pairs: list[Pair], packed: bool) -> Step:
    """Return the training step whose memory is counted: with a micro-batch as large as any can become.

    Args:
        pairs: the largest of the run.
    """
    limit = config.data.max_tokens_per_gpu
    share = pairs[: max(1, config.data.train_batch_size // workers)]
    batch = make_batch(fullest(share, limit, packed), collate, limit, packed=packed)
    return Step(PairEngine, verl_settings(config), partial(pair_loss, **config.loss), batch, workers)
