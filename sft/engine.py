"""verl's FSDP2 engine for language models, over packed conversations; on CPU and CUDA alike.

Two things differ from verl's own. A micro-batch stays one packed row, without the flash-attn build that verl's needs
for that. And logits are computed only where the next token is trained on, of a judge's conversation a fifth, and for
some tokens at a time (`common/logits.py`): over a vocabulary of 150,000 they would be most of the memory.
"""

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine import EngineRegistry

from common.attention import Segments
from common.checkpoint import export_language_model
from common.fsdp import LanguageEngine
from common.memory import Step
from common.packing import find_in_rows, pad
from common.training import fullest, make_batch, verl_settings

from .dataset import Example, collate
from .loss import token_losses


def cut_conversations(offsets: torch.Tensor) -> Segments:
    """Cut a packed row of conversations into attention segments.

    Args:
        offsets: (conversations + 1,), where each starts and the last one ends.
    """
    cuts = offsets.tolist()
    return Segments([(start, end, start, start) for start, end in zip(cuts, cuts[1:])], offsets.device)


def read_tokens(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return of each token its loss, and whether the target is the most probable one (1 or 0): both (tokens,) fp32.

    Args:
        logits: (tokens, vocabulary), at the position before each target.
        targets: (tokens,) ids.
    """
    with torch.autocast(logits.device.type, enabled=False):
        losses = token_losses(logits, targets)
    return {"losses": losses, "correct": (logits.detach().argmax(dim=1) == targets).float()}


def sft_loss(model_output: dict, data: TensorDict, dp_group):
    """Sum one micro-batch's token losses, scaled so that the sum over all is the mean over the global batch."""
    losses, correct = (model_output[name].values() for name in ("losses", "correct"))
    workers = data["dp_size"]  # FSDP averages gradients over the workers, verl the metrics
    sums = {"tokens": torch.tensor(float(len(losses))), "correct": correct.sum()}
    metrics = {name: Metric(AggregationType.SUM, value * workers) for name, value in sums.items()}
    return losses.sum() / data["batch_num_tokens"] * workers, metrics


@EngineRegistry.register(model_type="packed_language_model", backend="fsdp2", device=["cpu", "cuda"])
class SFTEngine(LanguageEngine):
    """Builds, shards and runs a language model over packed conversations."""

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict, dict]:
        if self.packed:
            ids, positions = (micro_batch[name].values() for name in ("input_ids", "position_ids"))
            trained = micro_batch["loss_mask"].values().nonzero()[:, 0]
            segments = cut_conversations(micro_batch["input_ids"].offsets())
            inputs = {"input_ids": ids[None], "position_ids": positions[None], "segments": segments}
            inputs["where"], targets = (0, trained - 1), ids[trained]
        else:
            sequences, masks = (micro_batch[name].unbind() for name in ("input_ids", "loss_mask"))
            trained = [mask.nonzero()[:, 0] for mask in masks]
            inputs = pad(sequences) | {"where": find_in_rows([places - 1 for places in trained])}
            targets = torch.cat([ids[places] for ids, places in zip(sequences, trained)])
        return inputs | {"read": lambda logits, part: read_tokens(logits, targets[part])}, {}

    def prepare_model_outputs(self, output: dict, output_args, micro_batch: TensorDict, logits_processor_func) -> dict:
        """Return losses and correct, jagged (conversations, trained tokens)."""
        trained = torch.stack([mask.sum() for mask in micro_batch["loss_mask"].unbind()])
        offsets = torch.cat([trained.new_zeros(1), trained.cumsum(0)])
        return {name: torch.nested.nested_tensor_from_jagged(value, offsets) for name, value in output.items()}

    def export(self, folder: str, end_of_turn: list[int]) -> None:
        """Write a checkpoint that generates, and stops at the tokens that ended the turns it was trained on.

        See `common.checkpoint.export_language_model`.
        """
        export_language_model(self.module, self.model_config, folder, self.rank, end_of_turn)


def step_to_count(config: DictConfig, workers: int, examples: list[Example], packed: bool) -> Step:
    """Return the training step whose memory is counted: with a micro-batch as large as any can become.

    Args:
        examples: the longest of the run. How many of their tokens are trained matters little: see `common.logits`.
    """
    limit = config.data.max_tokens_per_gpu
    share = examples[: max(1, config.data.train_batch_size // workers)]
    batch = make_batch(fullest(share, limit, packed), collate, limit, packed=packed)
    return Step(SFTEngine, verl_settings(config), sft_loss, batch, workers)
