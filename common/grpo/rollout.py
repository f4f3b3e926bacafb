"""Rollouts for GRPO without an inference server, and a stricter queue for those with one.

verl's agent loop sends each answer through four actors, 20 to 35 ms of CPU apiece, which is nothing beside a server on
a GPU and most of a step for a tiny model. `BatchRollout` takes its place if the policy itself generates: all prompts
of a step at once, rewards in this process, one write to verl's queue. Sampling is a function of (seed, step, row,
repetition), so a run can be repeated, and gives the same answers with any number of workers.
"""

import asyncio
import functools
import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transfer_queue
from omegaconf import DictConfig
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transformers import PreTrainedTokenizerBase
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.rollout.replica import RolloutReplicaRegistry

from common.cluster import TrainingError
from common.generation import decode
from common.grpo.answering import IN_PROCESS
from common.grpo.preflight import CHECKED_REWARD

RolloutReplicaRegistry.register(IN_PROCESS, lambda: None)  # verl looks a server up, and then starts none

JAGGED = (
    "prompts",
    "responses",
    "response_mask",
    "loss_mask",
    "input_ids",
    "position_ids",
    "rollout_log_probs",
    "rm_scores",
)

OF_ROW = ("uid", "data_source", "reward_model", "extra_info")  # what verl's metrics and errors still ask of a prompt


@dataclass
class Entry:
    """One rewarded answer, as verl's queue takes it."""

    key: str
    field: dict  # what verl's trainer reads
    tag: dict  # what verl's sampler reads


class BatchRollout:
    """verl's agent-loop manager, over the trainer's own worker group.

    Args:
        trainer: gives `config`, `tokenizer`, `actor_rollout_wg` (see `common.grpo.policy`) and `end_tokens`.

    If the reward function is `async def`, all answers of a step are rewarded at once; such a function may ask a
    reward model, which then takes them as a batch.
    """

    def __init__(self, trainer):
        self.trainer, self.rollout = trainer, trainer.config.actor_rollout_ref.rollout
        self.reward_keys = None  # those of the first answer's reward
        function = get_custom_reward_fn(trainer.config)
        is_checked = trainer.config.reward.custom_reward_function.name == CHECKED_REWARD
        self.reward_function = function if is_checked else functools.partial(check_reward, function)
        self.async_function = function if inspect.iscoroutinefunction(function) else None

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Answer and reward a batch of prompts, and put both into verl's queue."""
        rows = _rows_of(prompts)
        step, validate = int(rows[0]["global_steps"]), bool(rows[0].pop("validate", False))
        settings = self.rollout.val_kwargs if validate else self.rollout
        sampling = {name: settings[name] for name in ("temperature", "top_p", "top_k")}

        encoded = [self._encode(row) for row in rows]
        asked = [(row, ids, number) for row, ids in zip(rows, encoded) for number in range(settings.n)]
        answers = self._generate([ids for _, ids, _ in asked], sampling, step, validate)
        rewards = self._rewards([row for row, _, _ in asked], [tokens for tokens, _ in answers])
        entries = [
            self._entry(row, ids, number, tokens, log_probs, reward, step)
            for (row, ids, number), (tokens, log_probs), reward in zip(asked, answers, rewards)
        ]
        _put(entries, [row["uid"] for row in rows], "val" if validate else "train")

    def _encode(self, row: dict) -> list[int]:
        template = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        return self.trainer.tokenizer.apply_chat_template(list(row["raw_prompt"]), **template)

    def _generate(self, prompts: list[list[int]], sampling: dict, step: int, validate: bool) -> list:
        """Give each worker its share of the prompts, equal ones together; return the answers in their order."""
        first = first_seed(self.rollout.seed, step, validate)
        seeds = [seed_of(first, number) for number in range(len(prompts))]
        workers = self.trainer.actor_rollout_wg.world_size
        # a worker without a prompt would leave the others waiting for its share of the weights
        missing = max(0, workers - len(prompts))
        padded = {"prompts": prompts + prompts[:1] * missing, "seeds": seeds + seeds[:1] * missing}
        cuts = [len(padded["prompts"]) * worker // workers for worker in range(workers + 1)]
        shares = [[values[start:end] for start, end in zip(cuts, cuts[1:])] for values in padded.values()]
        options = sampling | {
            "max_new_tokens": self.rollout.response_length,
            "max_tokens": self.rollout.max_num_batched_tokens,
        }
        answered = self.trainer.actor_rollout_wg.generate(*shares, [options] * workers)
        return [answer for share in answered for answer in share][: len(prompts)]

    def _rewards(self, rows: list[dict], answers: list[list[int]]) -> list[dict]:
        """Reward the answers, one to each row."""
        calls = [
            {
                "data_source": row["data_source"],
                "solution_str": decode(self.trainer.tokenizer, tokens, self.trainer.end_tokens),
                "ground_truth": row["reward_model"]["ground_truth"],
                "extra_info": row["extra_info"],
            }
            for row, tokens in zip(rows, answers)
        ]
        if self.async_function is None:
            return [self.reward_function(**call) for call in calls]

        async def at_once() -> list:
            return await asyncio.gather(*(self.async_function(**call) for call in calls), return_exceptions=True)

        found = asyncio.run(at_once())
        return [check_reward(functools.partial(_given, reward), **call) for call, reward in zip(calls, found)]

    def _entry(
        self, row: dict, prompt: list[int], number: int, tokens: list[int], log_probs: list, reward: dict, step: int
    ) -> Entry:
        """Return one rewarded answer, the one of that number to its prompt."""
        self.reward_keys = self.reward_keys or reward.keys()
        if reward.keys() != self.reward_keys:
            found = f"columns {list(reward)}, others have {list(self.reward_keys)}"
            raise TrainingError(f"the reward of {row['extra_info']['source']}: {found}")
        field = _field(row, prompt, tokens, log_probs, reward, step) | {"session_id": number}
        lengths = {"prompt_len": len(prompt), "response_len": len(tokens), "seq_len": len(prompt) + len(tokens)}
        return Entry(f"{row['uid']}_{number}_0", field, {"status": "success", **lengths, **_versions(step)})


def first_seed(seed: int, step: int, validate: bool) -> int:
    """Return the seed of a step's first answer; the other answers' are counted on from it."""
    return (seed * 1_000_003 + 2 * step + validate) * 1_000_003


def seed_of(first: int, number: int) -> int:
    """Return the seed of the answer with that number in its step."""
    return (first + number) % 2**63


def end_tokens(model: DictConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens at which an answer ends, given verl's settings of the model."""
    settings = omega_conf_to_dataclass(model).generation_config
    ends = settings.eos_token_id if settings else tokenizer.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def _put(entries: list[Entry], groups: list[str], partition: str) -> None:
    """Put answers into verl's queue, then the word that their groups are complete."""
    fields = [entry.field for entry in entries]
    batch = list_of_dict_to_tensordict(fields)
    for name in JAGGED:
        batch[name] = torch.nested.as_nested_tensor([field[name] for field in fields], layout=torch.jagged)
    keys, tags = [entry.key for entry in entries], [entry.tag for entry in entries]
    transfer_queue.kv_batch_put(keys=keys, fields=batch, tags=tags, partition_id=partition)
    finished = [{"status": "finished"}] * len(groups)
    transfer_queue.kv_batch_put(keys=groups, tags=finished, partition_id=partition)


def checked_reward(
    data_source: str, solution_str: str, ground_truth, extra_info: dict, module: str, **options
) -> dict[str, float]:
    """Reward an answer by `compute_score` of the module of that name; see `check_reward` for errors.

    This is what verl's settings name, with module and options as `reward_kwargs`. verl's own processes would log an
    error without the row.
    """
    compute_score = functools.partial(importlib.import_module(module).compute_score, **options)
    return check_reward(compute_score, data_source, solution_str, ground_truth, extra_info)


def check_reward(
    reward_function: Callable, data_source: str, solution_str: str, ground_truth, extra_info: dict
) -> dict[str, float]:
    """Call a reward function on one answer.

    Raises:
        TrainingError: the function raises, or returns what verl cannot train on; the row is named.
    """
    where = f"the reward of {extra_info['source']}"
    try:
        reward = reward_function(
            data_source=data_source, solution_str=solution_str, ground_truth=ground_truth, extra_info=extra_info
        )
    except Exception as error:  # whatever a user's function raises
        found = f"{type(error).__name__}: {error}. The label was {ground_truth!r}, the answer {solution_str[:200]!r}"
        raise TrainingError(f"{where}: the reward function raised {found}") from error
    numbers = reward.values() if isinstance(reward, dict) and "score" in reward else [None]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise TrainingError(f"{where}: expected a dict of finite numbers with a `score`, found {reward!r}")
    return reward


def _given(reward: object, **_) -> object:
    """Return what a reward function has returned, or raise what it has raised."""
    if isinstance(reward, BaseException):
        raise reward
    return reward


def _rows_of(batch: TensorDict) -> list[dict]:
    """Undo verl's batching: one dict per prompt."""
    rows = [{} for _ in range(len(batch))]
    for name, values in batch.items():
        for index, row in enumerate(rows):
            if isinstance(values, NonTensorData):
                row[name] = values.data
            else:
                row[name] = values[index].data if isinstance(values, NonTensorStack) else values[index]
    return rows


def _field(row: dict, prompt: list[int], tokens: list[int], log_probs: list[float], reward: dict, step: int) -> dict:
    """What verl's trainer reads of one answer."""
    prompts, responses = torch.tensor(prompt), torch.tensor(tokens)
    ids = torch.cat([prompts, responses])
    rewards = torch.zeros(len(tokens))
    rewards[-1] = reward["score"]  # the outcome's reward stands at the last token
    return {
        **{name: row[name] for name in OF_ROW},
        "prompts": prompts,
        "responses": responses,
        "response_mask": torch.ones_like(responses),
        "loss_mask": torch.ones_like(responses),
        "input_ids": ids,
        "position_ids": torch.arange(len(ids)),
        "rollout_log_probs": torch.tensor(log_probs),
        "rm_scores": rewards,
        "multi_modal_inputs": {},
        "num_turns": 2,
        "metrics": {},
        "extra_fields": {
            "reward_extra_info": reward,
            "turn_scores": [],
            "tool_rewards": [],
            **_versions(step),
            "global_steps": step - 1,
        },
    }


def _versions(step: int) -> dict[str, int]:
    """With which weights an answer was made: those of the step before."""
    return {"global_steps": step, "min_global_steps": step - 1, "max_global_steps": step - 1}


class StrictReplayBuffer(ReplayBuffer):
    """verl's queue of answers, looked at often, and never short of one.

    verl looks every two seconds. And if an answer or its reward fails, verl trains on the rest of the batch; here the
    run stops. The cause is in the log above, from the process where it happened.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"poll_interval": 0.05} | kwargs)

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        failed = sum(map(len, self.failure_keys.values()))
        if failed:
            raise TrainingError(f"{failed} prompts could not be answered or rewarded; the log above says why")
