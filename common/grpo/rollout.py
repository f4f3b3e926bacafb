"""Rollouts for GRPO without an inference server, and a stricter queue for those with one.

verl's agent loop sends each answer through four actors, 20 to 35 ms of CPU apiece, which is nothing beside a server on
a GPU and most of a step for a tiny model. `BatchRollout` takes its place where the policy itself generates: the whole
step's prompts at once, rewards in this process, one write to verl's queue. Sampling is a function of (seed, step, row,
repetition), so a run can be repeated, and gives the same answers with any number of workers.
"""

import functools
import importlib
import inspect
import math

import torch
import transfer_queue
from tensordict import NonTensorData, NonTensorStack, TensorDict
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.rollout.replica import RolloutReplicaRegistry

from common.cluster import TrainingError
from common.generation import decode
from common.grpo.preflight import IN_PROCESS

RolloutReplicaRegistry.register(IN_PROCESS, lambda: None)  # verl looks a server up, and then starts none

JAGGED = ("prompts", "responses", "response_mask", "loss_mask", "input_ids", "position_ids")
JAGGED += ("rollout_log_probs", "rm_scores")


class BatchRollout:
    """verl's agent-loop manager, over the trainer's own worker group.

    Args:
        trainer: gives `config`, `tokenizer`, `actor_rollout_wg` (see `common.grpo.policy`) and `end_tokens`.
    """

    def __init__(self, trainer):
        self.trainer, self.rollout = trainer, trainer.config.actor_rollout_ref.rollout
        self.reward_function, self.columns = get_custom_reward_fn(trainer.config), None
        if inspect.iscoroutinefunction(self.reward_function):
            raise TrainingError("the reward function is a coroutine; where the policy itself generates it is called")

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Answer and reward a batch of prompts, and put both into verl's queue."""
        rows = _rows_of(prompts)
        step, validate = int(rows[0]["global_steps"]), bool(rows[0].pop("validate", False))
        settings = self.rollout.val_kwargs if validate else self.rollout
        sampling = {name: settings[name] for name in ("temperature", "top_p", "top_k")}
        tokenizer, repeats = self.trainer.tokenizer, settings.n
        template = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        encoded = [tokenizer.apply_chat_template(list(row["raw_prompt"]), **template) for row in rows]
        answers = self._generate([ids for ids in encoded for _ in range(repeats)], sampling, step, validate)
        keys, fields, tags = [], [], []
        for number, (tokens, log_probs) in enumerate(answers):
            row, prompt = rows[number // repeats], encoded[number // repeats]
            text = decode(tokenizer, tokens, self.trainer.end_tokens)
            result = call_reward(self.reward_function, row, text)
            self.columns = self.columns or result.keys()
            if result.keys() != self.columns:
                found = f"columns {list(result)}, others have {list(self.columns)}"
                raise TrainingError(f"the reward of {row['extra_info']['source']}: {found}")
            keys.append(f"{row['uid']}_{number % repeats}_0")
            fields.append(_field(row, prompt, tokens, log_probs, result, step) | {"session_id": number % repeats})
            lengths = {"prompt_len": len(prompt), "response_len": len(tokens), "seq_len": len(prompt) + len(tokens)}
            versions = {"global_steps": step, "min_global_steps": step - 1, "max_global_steps": step - 1}
            tags.append({"status": "success", **lengths, **versions})
        batch = list_of_dict_to_tensordict(fields)
        for name in JAGGED:
            batch[name] = torch.nested.as_nested_tensor([field[name] for field in fields], layout=torch.jagged)
        partition, groups = "val" if validate else "train", [row["uid"] for row in rows]
        transfer_queue.kv_batch_put(keys=keys, fields=batch, tags=tags, partition_id=partition)
        finished = [{"status": "finished"}] * len(groups)
        transfer_queue.kv_batch_put(keys=groups, tags=finished, partition_id=partition)

    def _generate(self, prompts: list[list[int]], sampling: dict, step: int, validate: bool) -> list:
        """Share the prompts out between the workers in turn, and put their answers back in order."""
        workers = self.trainer.actor_rollout_wg.world_size
        first_seed = (self.rollout.seed * 1_000_003 + 2 * step + validate) * 1_000_003
        seeds = [(first_seed + number) % 2**63 for number in range(len(prompts))]
        # a worker without a prompt would leave the others waiting for its share of the weights
        count, missing = len(prompts), max(0, workers - len(prompts))
        prompts, seeds = prompts + prompts[:1] * missing, seeds + seeds[:1] * missing
        options = sampling | {
            "max_new_tokens": self.rollout.response_length,
            "max_tokens": self.rollout.max_num_batched_tokens,
        }
        shares = [[values[worker::workers] for worker in range(workers)] for values in (prompts, seeds)]
        answered = self.trainer.actor_rollout_wg.generate(*shares, [options] * workers)
        answers = [None] * len(prompts)
        for worker, share in enumerate(answered):
            answers[worker::workers] = share
        return answers[:count]


def call_reward(reward_function, row: dict, text: str) -> dict[str, float]:
    """Call the method's reward function on one answer.

    Raises:
        TrainingError: naming the row, where the function raises, or returns what verl cannot train on.
    """
    where = f"the reward of {row['extra_info']['source']}"
    truth = row["reward_model"]["ground_truth"]
    try:
        result = reward_function(
            data_source=row["data_source"], solution_str=text, ground_truth=truth, extra_info=row["extra_info"]
        )
    except TrainingError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}. The label was {truth!r}, the answer {text[:200]!r}"
        raise TrainingError(f"{where}: the reward function raised {found}") from error
    numbers = result.values() if isinstance(result, dict) and "score" in result else [None]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise TrainingError(f"{where}: expected a dict of finite numbers with a `score`, found {result!r}")
    return result


def checked_reward(
    data_source: str, solution_str: str, ground_truth, extra_info: dict, module: str, **options
) -> dict[str, float]:
    """Reward an answer by `compute_score` of the module of that name, with `call_reward`'s errors.

    For verl's settings, `reward_kwargs` gives module and options: its processes would log an error without the row.
    """
    compute_score = functools.partial(importlib.import_module(module).compute_score, **options)
    row = {"data_source": data_source, "extra_info": extra_info, "reward_model": {"ground_truth": ground_truth}}
    return call_reward(compute_score, row, solution_str)


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


def _field(row: dict, prompt: list[int], tokens: list[int], log_probs: list[float], result: dict, step: int) -> dict:
    """What verl's trainer reads of one answer."""
    prompts, responses = torch.tensor(prompt), torch.tensor(tokens)
    ids = torch.cat([prompts, responses])
    rewards = torch.zeros(len(tokens))
    rewards[-1] = result["score"]  # the outcome's reward stands at the last token
    return {
        **row,
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
            "reward_extra_info": result,
            "global_steps": step - 1,
            "min_global_steps": step - 1,
            "max_global_steps": step - 1,
            "turn_scores": [],
            "tool_rewards": [],
        },
    }


class StrictReplayBuffer(ReplayBuffer):
    """verl's queue of answers, looked at often, and never short of one.

    verl looks every two seconds. And where an answer or its reward fails it trains on the rest of the batch; here the
    run stops. The cause is in the log above, from the process where it happened.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"poll_interval": 0.05} | kwargs)

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        failed = sum(map(len, self.failure_keys.values()))
        if failed:
            raise TrainingError(f"{failed} prompts could not be answered or rewarded; the log above says why")
