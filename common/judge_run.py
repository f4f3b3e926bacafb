"""What a judge's run by GRPO must satisfy, checked before anything heavy starts: settings, sizes, vocabulary."""

from collections.abc import Callable

from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from common.parquet import DataError

NOT_READ = {  # verl's settings that common/policy.py has no use for
    "model": ("lora_adapter_path", "exclude_modules", "target_parameters", "use_liger", "use_fused_kernels"),
    "actor": ("use_prefix_grouper",),
}


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, answer: str, parse: Callable[[str], object]) -> None:
    """Make sure that a right answer is still one after it went through the vocabulary.

    verl decodes without special tokens; a vocabulary that calls `<think>` special would make every answer malformed.
    """
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if parse(found := tokenizer.decode(ids, skip_special_tokens=True)) != parse(answer):
        raise DataError(
            f"{tokenizer.name_or_path}: the vocabulary turns {answer!r} into {found!r}; choose another model"
        )


def check_reward(config: DictConfig, compute_score: Callable, answer: str, label: object) -> None:
    """Refuse options that the method's reward function does not take; without this the first answer would tell."""
    options = dict(config.reward.custom_reward_function.reward_kwargs)
    if options.pop("module") == compute_score.__module__:
        try:
            compute_score("judge", answer, label, None, **options)
        except (TypeError, ValueError) as error:
            raise DataError(f"reward.custom_reward_function.reward_kwargs={options}: {error}") from error


def check_sizes(config: DictConfig, count: int) -> None:
    """Refuse settings that contradict each other or the number of prompts, and set how many steps there will be."""
    data, actor = config.data, config.actor_rollout_ref.actor
    if count < data.train_batch_size:
        raise DataError(
            f"data.train_batch_size={data.train_batch_size} is larger than the {count} prompts; lower it, "
            "and actor_rollout_ref.actor.ppo_mini_batch_size with it"
        )
    if data.train_batch_size % actor.ppo_mini_batch_size:
        raise DataError(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} does not divide "
            f"data.train_batch_size={data.train_batch_size}"
        )
    if config.trainer.test_freq < 1:
        raise DataError(
            f"trainer.test_freq={config.trainer.test_freq}: validation chooses the best policy; set 1 or more"
        )
    if unused := count % data.train_batch_size:
        print(f"  {unused} of the {count} prompts, others each epoch, do not fill a step's batch and are left out")
    steps = count // data.train_batch_size * config.trainer.total_epochs
    config.trainer.total_training_steps = min(steps, config.trainer.total_training_steps or steps)
    settings = {"model": config.actor_rollout_ref.model, "actor": actor}
    ignored = [f"{part}.{name}" for part, names in NOT_READ.items() for name in names if settings[part].get(name)]
    if ignored:
        raise DataError(f"actor_rollout_ref.{', '.join(ignored)}: not supported here, as verl's own engine is not used")
    largest = data.max_prompt_length + data.max_response_length
    if largest > actor.ppo_max_token_len_per_gpu:
        raise DataError(
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu} does not hold the "
            f"largest sequence, data.max_prompt_length + data.max_response_length = {largest} tokens. Raise it."
        )
