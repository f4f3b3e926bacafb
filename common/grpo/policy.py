"""The policy that GRPO trains: verl's FSDP2 engine over packed rows, which also generates; on CPU and CUDA alike.

Differs from verl's own in four things. Sequences are packed, without the flash-attn build that verl needs for that.
The prompt that a group of answers shares is computed once, not once per answer. Logits are computed for the answers
alone, and for some tokens at a time (`common/logits.py`): over a vocabulary of 150,000 they would be most of the
memory. And if no inference server runs, the trained module itself generates: no second copy of the weights, nothing to
synchronise, one process fewer.
"""

from collections.abc import Sequence
from functools import partial

import ray
import torch
import torch.nn as nn
from omegaconf import DictConfig
from tensordict import TensorDict
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedModel
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine import EngineRegistry
from verl.workers.engine_workers import ActorRolloutRefWorker

from common.attention import SEGMENT_ATTENTION, Segments
from common.checkpoint import export_language_model, unwrap
from common.fsdp import LanguageEngine
from common.generation import Way, answering, batches_to_answer, generate_batch, make_plain
from common.memory import Step
from common.network import use_interface_of
from common.packing import find_in_rows, pad

MODEL_TYPE = "packed_policy"


def share_prompts(
    sequences: Sequence[torch.Tensor], prompt_lengths: list[int]
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int, int, int]]]:
    """Lay sequences into one row in which each prompt stands once, before the first answer to it.

    [p p a] [p p b b] [q c] becomes the row  p p a | b b | q c, where b b also attends to p p.

    Args:
        sequences: token ids, each a prompt and one answer; some prompts are equal.

    Returns:
        kept: (row,), which tokens of the concatenated sequences make the row.
        before: (answer tokens,), where in the row the token before each answer token stands.
        spans: the row's attention segments, see `common.attention.Segments`.
    """
    kept, before, spans, seen, row = [], [], [], {}, 0
    start = 0
    for ids, prompt in zip(sequences, prompt_lengths):
        end, answer = start + len(ids), len(ids) - prompt
        key = ids[:prompt].cpu().numpy().tobytes()
        first = seen.get(key)
        if first is None:
            seen[key] = row
            kept.append(torch.arange(start, end))
            spans.append((row, row + len(ids), row, row))
            before.append(torch.arange(row + prompt - 1, row + len(ids) - 1))
            row += len(ids)
        else:
            kept.append(torch.arange(start + prompt, end))
            spans.append((row, row + answer, first, first + prompt))
            before.append(torch.tensor([first + prompt - 1, *range(row, row + answer - 1)]))
            row += answer
        start = end
    return torch.cat(kept), torch.cat(before), spans


def read_answers(
    logits: torch.Tensor, targets: torch.Tensor, temperature: torch.Tensor, entropy: bool
) -> dict[str, torch.Tensor]:
    """Return of each token its log_probs and, if wanted, the entropy of its distribution: (tokens,) fp32, in nats.

    Args:
        logits: (tokens, vocabulary), any float type, at the position before each target.
        targets: (tokens,) ids.
        temperature: (tokens,).
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_probs = (logits.float() / temperature[:, None]).log_softmax(dim=-1)
    values = {"log_probs": log_probs.gather(1, targets[:, None])[:, 0]}
    if entropy:
        values["entropy"] = -(log_probs.exp() * log_probs).sum(dim=-1)
    return values


@EngineRegistry.register(model_type=MODEL_TYPE, backend="fsdp2", device=["cpu", "cuda"])
class PolicyEngine(LanguageEngine):
    """Builds, shards and runs a language model over packed prompts and answers."""

    def _build_module(self) -> PreTrainedModel:
        module = super()._build_module()
        if self.model_config.generation_config:  # a module that still waits for its weights has none
            module.generation_config = self.model_config.generation_config
        make_plain(module, self.model_config.tokenizer)
        return module

    def _build_fsdp_module(self, module: nn.Module) -> nn.Module:
        module = super()._build_fsdp_module(module)
        if hasattr(module, "peft_config"):  # peft's generate goes past the forward that gathers the root's weights
            register_fsdp_forward_method(module, "generate")
        return module

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict, dict]:
        sequences, ids = micro_batch["input_ids"].unbind(), micro_batch["input_ids"].values()
        prompts, answers = (micro_batch[name].offsets().diff() for name in ("prompts", "responses"))
        if self.packed:
            kept, before, spans = share_prompts(sequences, prompts.tolist())
            kept, before, positions = kept.to(ids.device), before.to(ids.device), micro_batch["position_ids"].values()
            row = {"input_ids": ids[kept][None], "position_ids": positions[kept][None]}
            inputs = row | {"segments": Segments(spans, ids.device), "where": (0, before)}
        else:
            ends = zip(prompts.tolist(), map(len, sequences))
            places = [torch.arange(prompt - 1, end - 1, device=prompts.device) for prompt, end in ends]
            inputs = pad(sequences) | {"where": find_in_rows(places)}
        temperature = micro_batch["temperature"]
        if isinstance(temperature, torch.Tensor):  # one for each sequence
            temperature = temperature.repeat_interleave(answers)
        else:
            temperature = torch.full((int(answers.sum()),), temperature, device=answers.device)
        cuts, place = micro_batch["input_ids"].offsets(), torch.arange(len(ids), device=ids.device)
        answered = place[place >= (cuts[:-1] + prompts).repeat_interleave(cuts.diff())]
        targets = ids[answered]
        entropy = tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False)

        def read(logits: torch.Tensor, part: slice) -> dict[str, torch.Tensor]:
            return read_answers(logits, targets[part], temperature[part], entropy)

        return inputs | {"read": read}, {"before": answered - 1}

    def prepare_model_outputs(
        self, output: dict, output_args: dict, micro_batch: TensorDict, logits_processor_func
    ) -> dict:
        """Return log_probs and, where asked for, entropy, in nats, jagged (sequences, tokens).

        As verl reads them: at each token the value of the next one; 0 if that is not the answer's.
        """
        ids = micro_batch["input_ids"]
        zeros = torch.zeros(len(ids.values()), device=ids.device)
        return {
            name: torch.nested.nested_tensor_from_jagged(
                zeros.index_put((output_args["before"],), value), ids.offsets()
            )
            for name, value in output.items()
        }

    def generate(
        self, prompts: list[list[int]], seeds: list[int], max_new_tokens: int, max_tokens: int, **sampling
    ) -> list[tuple[list[int], list[float]]]:
        """Answer prompts with the weights as they are; see `common.generation.generate_batch`.

        The weights are gathered once and kept for the whole call, so that workers may generate different lengths.
        """
        with self.eval_mode():  # brings the weights to the GPU if they wait in host memory
            return self._generate(prompts, seeds, max_new_tokens, max_tokens, **sampling)

    def _generate(
        self, prompts: list[list[int]], seeds: list[int], max_new_tokens: int, max_tokens: int, **sampling
    ) -> list[tuple[list[int], list[float]]]:
        model = unwrap(self.module)
        model.set_attn_implementation(self.own_attention)
        self.module.set_reshard_after_forward(False)
        pad = self.model_config.tokenizer.pad_token_id
        answers: list[tuple[list[int], list[float]]] = [([], [])] * len(prompts)
        half = self._autocast_dtype != torch.float32  # as in training, or the log-probabilities would be others
        autocast = torch.autocast(model.device.type, self._autocast_dtype, enabled=half)
        eager = torch.compiler.set_stance("force_eager")  # compiled layers are for training
        with autocast, eager, answering(self.module) as way:
            way = way if self.packed else Way.WHOLE
            for batch in batches_to_answer(prompts, max_new_tokens, max_tokens, way, equal=not self.packed):
                chosen, seeds_of_chosen = ([values[index] for index in batch] for values in (prompts, seeds))
                options = sampling | {"way": way}
                generated = generate_batch(self.module, chosen, pad, max_new_tokens, seeds_of_chosen, **options)
                for index, answer in zip(batch, generated):
                    answers[index] = answer
        self.module.set_reshard_after_forward(self.engine_config.reshard_after_forward)
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
        if self.packed:
            model.set_attn_implementation(SEGMENT_ATTENTION)
        return answers

    def export(self, folder: str) -> None:
        """Write a checkpoint that generates as the policy does. See `common.checkpoint.export_model`."""
        export_language_model(self.module, self.model_config, folder, self.rank)


class PolicyWorker(ActorRolloutRefWorker):
    """verl's worker, which can generate and write the model for others to load."""

    def __init__(self, *arguments, **settings):
        use_interface_of(ray.util.get_node_ip_address())
        super().__init__(*arguments, **settings)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Build the engines, and have room for the largest weight on the way to a server."""
        super().init_model()
        if self.rollout:
            weights = self.actor.engine.module.parameters()
            self.rollout.make_room(max(weight.numel() * weight.element_size() for weight in weights))

    @register(dispatch_mode=Dispatch.DP_COMPUTE)
    def generate(self, prompts: list, seeds: list, options: dict) -> list[tuple[list[int], list[float]]]:
        """Answer this worker's share of the prompts."""
        return self.actor.engine.generate(prompts, seeds, **options)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def export(self, folder: str) -> None:
        """Have the engine write a Hugging Face checkpoint."""
        self.actor.engine.export(folder)


def step_to_count(config: DictConfig, workers: int, shortest: int, longest: int, packed: bool) -> Step:
    """Return the training step whose memory is counted: with a micro-batch as large as any can become.

    It holds as many answers of the greatest length as it can, so their prompts are short, but fill it up.

    Args:
        shortest, longest: tokens of the shortest and of the longest prompt.
    """
    from verl.trainer.config import CheckpointConfig
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.losses import ppo_loss

    policy, answer = config.actor_rollout_ref, config.data.max_response_length
    limit, group = policy.actor.ppo_max_token_len_per_gpu, policy.rollout.n
    share = max(group, policy.actor.ppo_mini_batch_size * group // workers)
    if not packed:
        shortest = longest
    if not packed or group * (longest + answer) > limit:
        group = 1  # a prompt may stand alone
    prompts = max(1, min(share, limit // (shortest + answer)) // group)
    prompt = min(longest, limit // (prompts * group) - answer)
    rows = [[1 + number] * prompt for number in range(prompts) for _ in range(group)]

    def jagged(values: list[list], dtype=torch.long) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.tensor(row, dtype=dtype) for row in values], layout=torch.jagged)

    answers, numbers = [[1] * answer] * len(rows), jagged([[0.0] * answer] * len(rows), torch.float32)
    batch = {
        "input_ids": jagged([row + [1] * answer for row in rows]),
        "position_ids": jagged([list(range(prompt + answer))] * len(rows)),
        "prompts": jagged(rows),
        "responses": jagged(answers),
        "response_mask": jagged(answers),
        "loss_mask": jagged(answers),
        **{name: numbers for name in ("old_log_probs", "advantages", "ref_log_prob")},
    }
    actor = omega_conf_to_dataclass(policy.actor)
    settings = {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": len(rows), "global_batch_size": len(rows)}
    settings |= {"temperature": policy.rollout.temperature}
    settings |= {"calculate_entropy": actor.calculate_entropy or actor.entropy_coeff != 0}
    engine_of = {
        "model_config": omega_conf_to_dataclass(policy.model),
        "engine_config": actor.engine,
        "optimizer_config": actor.optim,
        "checkpoint_config": CheckpointConfig(),
    }
    loss = partial(ppo_loss, config=actor)
    return Step(PolicyEngine, engine_of, loss, tu.get_tensordict(batch, settings), workers)
