"""Before a judge's run by GRPO: check what it must satisfy, and fill in what follows for verl's settings.

Nothing here imports verl, which takes seconds: bad input is reported before.
"""

import copy
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from common.cluster import Machines
from common.conversation import DataError
from common.grpo.answering import IN_PROCESS, serves_on_cpu
from common.training import equal_parts

OWN_REWARD = ".reward"  # the method folder's reward.py
CHECKED_REWARD = "checked_reward"  # of common/grpo/rollout.py: calls compute_score of the module that the settings name
VALIDATION = "validation"  # folder of the answers to the validation rows, a file for each step that was validated
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # precisions, as vLLM calls them
FP32 = ("fp32", "float32")  # what it is called by verl and by vLLM
NOT_READ = {  # verl's settings that common/grpo/policy.py does not use
    "model": ("lora_adapter_path", "exclude_modules", "target_parameters", "use_liger", "use_fused_kernels"),
    "actor": ("use_prefix_grouper",),
}


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, answer: str, parse: Callable[[str], object]) -> None:
    """Raise `DataError` if a right answer is no longer one after it went through the vocabulary.

    Training keeps special tokens in answers, and servers return answers without: if a vocabulary calls `<think>`
    special, no answer of the trained judge could be read there.
    """
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if parse(found := tokenizer.decode(ids, skip_special_tokens=True)) == parse(answer):
        return
    remedy = "Choose another model."
    if lost := sorted(token for token in tokenizer.all_special_tokens if token in answer):
        remedy = (
            f"It calls {', '.join(lost)} special, and servers return answers without special tokens. In a copy of the "
            'model, set "special": false for them in tokenizer.json, and take them out of the special tokens that '
            "tokenizer_config.json lists."
        )
    raise DataError(f"{tokenizer.name_or_path}: the vocabulary turns {answer!r} into {found!r}. {remedy}")


def check_reward(config: DictConfig, package: str, answer: str, label: object) -> None:
    """Raise `DataError` if the reward function cannot be used; else the first answer would tell, after Ray has started.

    Args:
        package: the method folder's.
        answer, label: a well-formed answer and its label, to try the folder's own function with its options.
    """
    function = config.reward.custom_reward_function
    if function.name != CHECKED_REWARD:
        return  # a function that verl finds by its own settings
    options = OmegaConf.to_container(function.reward_kwargs, resolve=True)
    named = options.pop("module", OWN_REWARD)
    where = f"reward.custom_reward_function.reward_kwargs.module={named}"
    try:
        compute_score = importlib.import_module(named, package).compute_score
    except (ImportError, AttributeError) as error:
        raise DataError(f"{where}: no module with compute_score ({error})") from error
    if inspect.iscoroutinefunction(compute_score):
        raise DataError(f"{where}: compute_score is `async def`. Use `def`: it is called directly.")
    if named == OWN_REWARD:
        try:
            compute_score("judge", answer, label, None, **options)
        except (TypeError, ValueError) as error:
            raise DataError(f"reward.custom_reward_function.reward_kwargs={options}: {error}") from error


def check_settings(config: DictConfig, prompts: int, longest: int | None = None) -> None:
    """Raise `DataError` for settings that contradict each other, the number of training prompts or the model.

    Args:
        longest: tokens that the model reads, if its config says so.
    """
    data, actor = config.data, config.actor_rollout_ref.actor
    if prompts < data.train_batch_size:
        fitting = 2 ** max(0, int(math.log2(prompts / 4)))  # four steps a pass, or more
        raise DataError(
            f"data.train_batch_size={data.train_batch_size} is larger than the {prompts} prompts. For example, set "
            f"data.train_batch_size={fitting} actor_rollout_ref.actor.ppo_mini_batch_size={fitting}, and "
            "trainer.test_freq lower"
        )
    if data.train_batch_size % actor.ppo_mini_batch_size:
        raise DataError(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} does not divide "
            f"data.train_batch_size={data.train_batch_size}. Set it to {data.train_batch_size} for one update a step"
        )
    if config.trainer.test_freq < 1:
        raise DataError(
            f"trainer.test_freq={config.trainer.test_freq}: validation chooses the best policy; set 1 or more"
        )
    settings = {"model": config.actor_rollout_ref.model, "actor": actor}
    ignored = [f"{part}.{name}" for part, names in NOT_READ.items() for name in names if settings[part].get(name)]
    if ignored:
        raise DataError(f"actor_rollout_ref.{', '.join(ignored)}: not supported here, as verl's own engine is not used")
    check_sampling(config)
    check_correction(config)
    if config.algorithm.filter_groups and config.algorithm.filter_groups.enable:
        raise DataError(
            "algorithm.filter_groups.enable=True: not supported here. Prompts whose answers were all paid alike teach "
            "nothing and do no harm; `no_signal` is their share"
        )
    largest = data.max_prompt_length + data.max_response_length
    if largest > actor.ppo_max_token_len_per_gpu:
        raise DataError(
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu} does not hold the "
            f"largest sequence, data.max_prompt_length + data.max_response_length = {largest} tokens. Raise it."
        )
    if longest is not None and largest > longest:
        raise DataError(
            f"data.max_prompt_length + data.max_response_length = {largest} tokens, and the model reads {longest}. "
            "Lower one of them."
        )
    if unused := prompts % data.train_batch_size:
        print(f"  {unused} of the {prompts} prompts, others each epoch, do not fill a step's batch and are left out")


def check_sampling(config: DictConfig) -> None:
    """Raise `DataError` for settings of sampling that are not numbers, or with which there is nothing to learn from."""
    rollout, faults = config.actor_rollout_ref.rollout, []
    for place, settings in {"rollout": rollout, "rollout.val_kwargs": rollout.val_kwargs}.items():
        for name in ("n", "temperature", "top_p", "top_k"):
            value = settings[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                faults.append(
                    f"actor_rollout_ref.{place}.{name}={value}: expected a number; leave it out for the usual one"
                )
    if faults:
        raise DataError("\n".join(faults))
    alike = {"temperature": rollout.temperature <= 0, "top_p": rollout.top_p <= 0, "top_k": rollout.top_k == 1}
    for name in (name for name, is_alike in alike.items() if is_alike):
        faults.append(
            f"actor_rollout_ref.rollout.{name}={rollout[name]}: all answers to a prompt would be the same, and nothing "
            "could be learned from them"
        )
    if rollout.n < 2 and config.algorithm.adv_estimator == "grpo":
        faults.append(
            f"actor_rollout_ref.rollout.n={rollout.n}: GRPO compares answers to the same prompt; set 2 or more"
        )
    if faults:
        raise DataError("\n".join(faults))


def check_correction(config: DictConfig) -> None:
    """Raise `DataError` for settings of `algorithm.rollout_correction` that verl does not know, or would not read."""
    correction, name = config.algorithm.rollout_correction, "algorithm.rollout_correction"
    if correction is None:
        raise DataError(f"{name}=null: leave it out, or set {name}.bypass_mode=False")
    if correction.bypass_mode not in (True, False, "auto"):
        raise DataError(f"{name}.bypass_mode={correction.bypass_mode}: expected true, false or auto")
    if correction.loss_type != "ppo_clip":
        raise DataError(f"{name}.loss_type={correction.loss_type}: not supported here, verl's trainer does not read it")
    wanted = [part for part in ("rollout_is", "rollout_rs") if correction[part]]
    if correction.bypass_mode is True and wanted:
        found = f"{name}.bypass_mode=True with {wanted[0]}={correction[wanted[0]]}"
        raise DataError(f"{found}: verl would correct nothing. Set one of them.")


def takes_sampled_log_probs(config: DictConfig) -> bool:
    """Return whether updates start from the log-probabilities that the answers were sampled with, for "auto".

    PPO's ratio compares the policy with what it was before the step's updates. If the policy itself answers in fp32,
    and its distribution is not cut, then it has sampled with just these probabilities, and they need not be computed
    again. vLLM's differ by rounding; in bf16 the policy's own do, too. And verl's correction needs both.
    """
    rollout, correction = config.actor_rollout_ref.rollout, config.algorithm.rollout_correction
    is_exact = config.actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype in FP32
    is_whole = rollout.top_p == 1 and rollout.top_k <= 0
    is_corrected = bool(correction.rollout_is or correction.rollout_rs)
    return rollout.name == IN_PROCESS and is_exact and is_whole and not is_corrected


def check_workers(config: DictConfig, workers: int) -> None:
    """Raise `DataError` if the prompts of an update cannot be shared equally by the workers."""
    prompts = config.actor_rollout_ref.actor.ppo_mini_batch_size
    if prompts % workers:
        raise DataError(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts} prompts cannot be shared equally by {workers} "
            "workers"
        )


def set_precision(config: DictConfig, precision: str) -> None:
    """Have the policy computed in this precision, "bf16" or "fp32", unless the settings name one."""
    settings = config.actor_rollout_ref.actor.fsdp_config
    settings.mixed_precision = settings.mixed_precision or {"param_dtype": precision}


def room_for(config: DictConfig) -> dict[str, int | bool]:
    """Return what `common.cluster.connect` must ask for: cores of each worker, and of the processes beside them."""
    queue = 1 + config.transfer_queue.backend.SimpleStorage.num_data_storage_units
    rollout = config.actor_rollout_ref.rollout
    if rollout.name == IN_PROCESS:
        return {"cores_per_worker": 1, "cores_beside": queue}
    beside_servers = config.reward.num_workers + rollout.agent.num_workers
    needed = {"cores_per_worker": 3, "cores_beside": queue + beside_servers}  # verl asks for three beside a server
    return needed | {"servers_on_cpu": serves_on_cpu(config)}


def keeps_groups(config: DictConfig, longest_prompt: int) -> bool:
    """Return whether a micro-batch holds all answers to the longest prompt, which is then computed once for them."""
    group = config.actor_rollout_ref.rollout.n * (longest_prompt + config.data.max_response_length)
    if group <= config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu:
        return True
    print(f"all answers to the longest prompt may have {group} tokens, more than")
    print("actor_rollout_ref.actor.ppo_max_token_len_per_gpu: prompts are computed again for most answers")
    return False


def pad_rows(config: DictConfig, workers: int) -> None:
    """Set micro-batches of as many padded rows as fit, were all as long as the settings allow; they are all alike."""
    data, policy = config.data, config.actor_rollout_ref
    row = data.max_prompt_length + data.max_response_length
    share = policy.actor.ppo_mini_batch_size * policy.rollout.n // workers
    rows = equal_parts(share, policy.actor.ppo_max_token_len_per_gpu // row)
    policy.actor.use_dynamic_bsz, policy.actor.ppo_micro_batch_size_per_gpu = False, rows
    for part in (policy.ref, policy.rollout):
        part.log_prob_use_dynamic_bsz, part.log_prob_micro_batch_size_per_gpu = False, rows


def fill_in(
    config: DictConfig, package: str, output: Path, files: dict[str, Path], prompts: int, machines: Machines
) -> DictConfig:
    """Return verl's settings with what follows from the data and the machine.

    Args:
        package: the method folder's.
        output: where the run's tokenizer is, and everything else goes.
        files: of "train" and "val", in the columns of verl's dataset.
        prompts: how many there are for training.
        machines: of `common.cluster.connect`.
    """
    config = copy.deepcopy(config)
    data, trainer, policy = config.data, config.trainer, config.actor_rollout_ref
    data.train_files, data.val_files = str(files["train"]), str(files["val"])
    data.filter_overlong_prompts = False  # done
    data.apply_chat_template_kwargs = {}  # in the tokenizer's template now
    policy.model.tokenizer_path = str(output / "tokenizer")
    if config.algorithm.rollout_correction.bypass_mode == "auto":
        config.algorithm.rollout_correction.bypass_mode = takes_sampled_log_probs(config)
    if policy.rollout.name == IN_PROCESS:
        config.reward.num_workers = 0  # rewards are computed in this process
    else:
        policy.rollout.max_model_len = data.max_prompt_length + data.max_response_length
        if policy.model.lora_rank:  # verl would send the weights below the adapter once, which fails above 2 GiB each
            policy.rollout.load_format = "auto"
        computed = policy.actor.fsdp_config.mixed_precision.param_dtype
        policy.rollout.dtype = policy.rollout.dtype or DTYPES.get(computed, computed)
        policy.model.external_lib = "common.grpo.servers"
    function = config.reward.custom_reward_function
    if function.name == CHECKED_REWARD:  # its module by a name that every process knows
        function.reward_kwargs.module = importlib.util.resolve_name(function.reward_kwargs.module, package)
    trainer.device, trainer.n_gpus_per_node = machines.device, machines.workers_per_node
    trainer.default_local_dir = str(output)
    trainer.validation_data_dir = str(output / VALIDATION)
    steps = prompts // data.train_batch_size * trainer.total_epochs
    trainer.total_training_steps = min(steps, trainer.total_training_steps or steps)
    return config
