"""verl's V1 GRPO trainer for judges: configured, with a few of its methods extended, never forked.

What is added to it:

- without an inference server the policy itself generates (`common.grpo.rollout`), on CPU and CUDA alike;
- without an inference server each worker asks Ray for a core, and for a GPU if there are any;
- the answers to a prompt stay together, on one worker and in one micro-batch, so that the prompt is computed once;
- one readable line per step and per validation, with the shares that diagnose a judge's training;
- if the policy itself answers in fp32, its log-probabilities are the old ones: a pass less in each step;
- the best policy on the validation rows is exported as soon as it is found, and kept across restarts;
- a loss or gradient that is not finite stops the run; verl would skip the step and go on;
- old checkpoints go after a new one is complete;
- with servers, a run can be repeated, and ends if a server does (`common.grpo.servers`).
"""

import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import ray
import torch
import transfer_queue
from tqdm import tqdm
from verl.single_controller.ray import ResourcePoolManager, base
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import config as config_checks
from verl.utils.device import get_device_name
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions
from verl.workers.rollout.llm_server import LLMServerManager

from common.checkpoint import export_checkpoint, save_checkpoint
from common.cluster import TrainingError, mute
from common.files import write_text
from common.grpo.answering import IN_PROCESS
from common.grpo.policy import PolicyWorker
from common.grpo.rollout import BatchRollout, end_tokens
from common.grpo.servers import SeededAgentLoops, ServerWatch
from common.pool import OneNodeEach, WorkerGroup
from common.report import set_log_file

mute(base, config_checks, trainer_base)

CHECKPOINT, LAST = "checkpoint", "checkpoint_last"
BEST = "best.json"  # which step the checkpoint is of
NOTHING_LEARNT = (
    "the answers to each prompt were all paid alike, so this step has taught nothing. If this goes on, the model is "
    "never right, or always. Never: train it by sft first, or for longer, until most of its answers hold a verdict "
    "(parsed) and some are right. Always: take harder rows."
)
# what the queue holds of an answer and an update does not read; verl would send it all
UNTRAINED = {
    *("data_source", "extra_fields", "extra_info", "index", "interaction_kwargs", "metrics", "multi_modal_inputs"),
    *("num_turns", "prompt", "raw_prompt", "reward_model", "session_id", "tools_kwargs", "uid"),
}
SHOWN = ("reward", "acc", "first", "tie", "parsed", "clipped", "no_signal", "grad_norm", "entropy", "seconds")


class OnePerWorker(ResourcePoolManager):
    """One core for each worker, and a GPU if there are any. verl's own asks for three cores, and always a GPU."""

    def create_resource_pool(self) -> None:
        for name, processes in self.resource_pool_spec.items():
            gpu = get_device_name() != "cpu"
            self.resource_pool_dict[name] = OneNodeEach(processes, use_gpu=gpu, max_colocate_count=1)


async def _start_no_router(manager: LLMServerManager) -> None:
    """In place of verl's method, which starts a process to divide requests between servers. Here are none."""
    manager.global_load_balancer = None


class JudgeTrainer(PPOTrainerSync):
    """verl's synchronous trainer; `config` is verl's, `trainer.default_local_dir` is where everything goes.

    Args:
        keep_groups: keep the answers to a prompt together; they must all fit into a micro-batch.
    """

    def __init__(self, config, keep_groups: bool):
        self.keep_groups = keep_groups
        self.has_warned = False  # of a step that has taught nothing
        self.output = Path(config.trainer.default_local_dir)
        self.in_process = config.actor_rollout_ref.rollout.name == IN_PROCESS
        self._enable_hybrid_replicas = not self.in_process  # verl's switch for inference servers beside the policy
        if self.in_process:
            config.actor_rollout_ref.rollout.nnodes = 1  # else verl asks where its servers are
            LLMServerManager._init_global_load_balancer = _start_no_router
            trainer_base.RayWorkerGroup = WorkerGroup
        super().__init__(config)

    def train(self) -> dict[str, float]:
        """Set up, train until the last step, export the last policy.

        Returns:
            What the last validation found.
        """
        with ServerWatch(self):
            return self._train()

    def _train(self) -> dict[str, float]:
        transfer_queue.init(self.config.transfer_queue)
        try:
            self.init()
            if self.global_steps == 0:
                (self.output / BEST).unlink(missing_ok=True)
            step, last = self.global_steps, self.total_training_steps
            print(f"\nresuming after step {step} of {last}" if step else "\nstarting", flush=True)
            set_log_file(self.output, step)
            # a resumed run validates at the same steps as an uninterrupted one, or it might choose another best policy
            trainer = self.config.trainer
            trainer.val_before_train = step >= last or step % trainer.test_freq == 0
            self.fit(self._start_rollout())
            export_checkpoint(self.actor_rollout_wg, self.output, LAST)
        finally:
            transfer_queue.close()
        return self.last_validation

    def _start_rollout(self):
        if self.in_process:
            return BatchRollout(self)
        handles = {"teacher_client": None, "reward_loop_worker_handles": self.get_reward_handles()}
        return SeededAgentLoops.create(config=self.config, llm_client=self.get_llm_client(), **handles)

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        self.end_tokens = end_tokens(self.config.actor_rollout_ref.model, self.tokenizer)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        policies = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef, Role.RefPolicy)
        self.role_worker_mapping |= {
            role: ray.remote(PolicyWorker) for role in self.role_worker_mapping if role in policies
        }
        if self.in_process:
            pools = self.resource_pool_manager
            self.resource_pool_manager = OnePerWorker(pools.resource_pool_spec, pools.mapping)

    def on_init_end(self) -> None:
        if not self.in_process:  # nothing to hand the weights to
            super().on_init_end()

    def on_step_end(self) -> None:
        if not self.in_process:
            super().on_step_end()

    def on_sample_end(self) -> None:
        if not self.in_process:
            super().on_sample_end()

    def _balance_batch(self, batch, metrics: dict, **settings):
        """Give each worker about the same number of tokens, and whole groups if they fit."""
        if not self.in_process:
            batch.reorder(self.agent_loop_manager.as_asked(batch.keys))
        batch = super()._balance_batch(batch, metrics, **settings)
        if self.keep_groups:
            groups = defaultdict(list)  # in the order of the batch, not of their random ids: a run can be repeated
            for index, key in enumerate(batch.keys):
                groups[key.split("_")[0]].append(index)
            members = list(groups.values())
            tokens = [sum(batch.tags[index]["seq_len"] for index in group) for group in members]
            workers = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
            shares = get_seqlen_balanced_partitions(tokens, k_partitions=workers, equal_size=True)
            batch.reorder([index for share in shares for group in share for index in members[group]])
        return batch

    def _whole_groups(self, batch):
        """Ask for micro-batches of whole groups; verl forgets what a batch was told when it gets another column."""
        if self.keep_groups:
            batch.extra_info["force_group_size"] = self.config.actor_rollout_ref.rollout.n
        return batch

    def _compute_old_log_prob(self, batch, metrics: dict):
        return super()._compute_old_log_prob(self._whole_groups(batch), metrics)

    def _compute_ref_log_prob(self, batch, metrics: dict):
        return super()._compute_ref_log_prob(self._whole_groups(batch), metrics)

    def _update_actor(self, batch, metrics: dict):
        every = batch.fields
        batch.fields = [name for name in every if name not in UNTRAINED]
        try:
            batch = super()._update_actor(self._whole_groups(batch), metrics)
        except torch.OutOfMemoryError as error:
            remedy = "Lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu, or set "
            remedy += "actor_rollout_ref.model.enable_gradient_checkpointing=True"
            said = f"step {self.global_steps}: a worker ran out of GPU memory. {remedy}. {error}"
            raise TrainingError(said) from error
        finally:
            batch.fields = every
        found = {name: float(metrics[name]) for name in ("actor/pg_loss", "actor/grad_norm")}
        if not all(map(math.isfinite, found.values())):
            rows = transfer_queue.kv_batch_get(
                keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_info"]
            )
            sources = sorted({info["source"] for info in rows["extra_info"]})
            raise TrainingError(
                f"step {self.global_steps}: {found}. Lower actor_rollout_ref.actor.optim.lr, or look at the rows of "
                f"this batch: {', '.join(sources)}"
            )
        return batch

    def _save_checkpoint(self) -> None:
        save_checkpoint(super()._save_checkpoint, self.output, self.global_steps, self.config.trainer.max_ckpt_to_keep)

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs
    ) -> dict[str, float]:
        """Average over all validation rows, each weighing the same; verl averages by data source only."""
        columns = {name: np.array(values, dtype=float) for name, values in reward_extra_infos_dict.items()}
        metrics = {f"val/{name}": values.mean() for name, values in columns.items() if name != "score"}
        sources = np.array(data_sources)
        for source in set(data_sources) if len(set(data_sources)) > 1 and "acc" in columns else ():
            metrics[f"val/{source}/acc"] = columns["acc"][sources == source].mean()
        return {name: float(value) for name, value in metrics.items()}

    def _validate(self) -> dict[str, float]:
        metrics = super()._validate()
        shown = "  ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in metrics.items())
        tqdm.write(f"val at step {self.global_steps}  {shown}")
        best = self.output / BEST
        if not best.exists() or metrics["val/reward"] > json.loads(best.read_text())["val/reward"]:
            export_checkpoint(self.actor_rollout_wg, self.output, CHECKPOINT)
            write_text(best, json.dumps({"step": self.global_steps} | metrics))
        self.last_validation = metrics
        return metrics

    def _compute_metrics(self, batch, metrics: dict, timing_raw: dict, global_steps: int, epoch: int) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        keys = [key for key, tag in zip(batch.keys, batch.tags) if not tag.get("is_padding", False)]
        answers = transfer_queue.kv_batch_get(
            keys=keys, partition_id=batch.partition_id, select_fields=["rm_scores", "extra_fields", "old_log_probs"]
        )
        # without a pass for old log-probabilities verl has none: it is the mean of -log p over what p was sampled from
        metrics.setdefault("actor/entropy", -answers["old_log_probs"].values().mean().item())
        groups = defaultdict(set)
        for key, rewards in zip(keys, answers["rm_scores"].unbind()):
            groups[key.split("_")[0]].add(round(rewards.sum().item(), 6))
        limit = self.config.data.max_response_length
        infos = [fields["reward_extra_info"] for fields in answers["extra_fields"]]
        own = {name: float(np.mean([info[name] for info in infos])) for name in infos[0] if name != "score"}
        own |= {
            "reward": metrics["critic/score/mean"],
            "no_signal": sum(len(rewards) == 1 for rewards in groups.values()) / len(groups),
            "clipped": float(np.mean([tag["response_len"] >= limit for tag in batch.tags if "response_len" in tag])),
            "answer_tokens": metrics["response_length/mean"],
            "grad_norm": metrics["actor/grad_norm"],
            "entropy": metrics["actor/entropy"],
            "lr": metrics["actor/lr"],
            "seconds": timing_raw["step"],
        }
        metrics |= {f"train/{name}": value for name, value in own.items()}
        shown = "  ".join(f"{name} {own[name]:.4g}" for name in SHOWN if name in own)
        tqdm.write(f"step {global_steps}/{self.total_training_steps}  {shown}")
        if own["no_signal"] == 1 and not self.has_warned:
            tqdm.write(f"step {global_steps}: {NOTHING_LEARNT}")
            self.has_warned = True
