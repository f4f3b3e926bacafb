"""A judge's settings are verl's: known to the pinned verl, accepted by its dataclasses, each number set once."""

import copy
import importlib
import importlib.util
import inspect
import os
import re
import subprocess

import pytest
from conftest import REPO
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from test_method_config import attributes_read, run_script, script_overrides

from common.cluster import Machines
from common.conversation import DataError
from common.grpo.preflight import check_reward, check_settings, fill_in, set_precision
from common.grpo.rollout import checked_reward

VERL_CONFIG = f"{importlib.util.find_spec('verl').submodule_search_locations[0]}/trainer/config"
JUDGES = ("generative_pointwise", "generative_pairwise")


@pytest.fixture(params=JUDGES)
def judge(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def verl_config(monkeypatch):
    monkeypatch.setenv("VERL_CONFIG", VERL_CONFIG)


def compose_judge(judge: str, overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(REPO / judge), version_base=None):
        return compose("config", overrides)


def keys_of(config: DictConfig, prefix: str = "") -> set[str]:
    """Every leaf's dotted name, except those of free-form dicts."""
    found = set()
    for name in config:
        value = None if OmegaConf.is_missing(config, name) else config._get_node(name)
        found |= keys_of(value, f"{prefix}{name}.") if isinstance(value, DictConfig) and len(value) else {prefix + name}
    return found


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {
            "MODEL_PATH": "Qwen/Qwen3-8B",
            "TRAIN_FILES": "a b.parquet,c.parquet",
            "NNODES": "4",
            "ROLLOUT": "vllm",
            "SEED": "3",
        },
        {"N_GPUS_PER_NODE": "8", "OUTPUT": "my outputs (2)", "TRAIN_FILES": "t.parquet", "VAL_FILES": "v=1.parquet"},
    ],
)
def test_verls_dataclasses_accept_what_the_script_sets(judge, tmp_path, environment):
    from verl.utils.config import omega_conf_to_dataclass

    config = compose_judge(judge, script_overrides(judge, tmp_path, **environment))
    ours = {key for key in OmegaConf.missing_keys(config) if not key.startswith(("critic.", "reward.reward_model."))}
    assert ours <= {"actor_rollout_ref.actor.fsdp_config.wrap_policy"}, ours
    assert config.data.train_files == environment.get("TRAIN_FILES", "outputs/data/train.parquet").replace(
        "outputs", environment.get("OUTPUT", "outputs")
    )
    assert config.trainer.output == config.trainer.default_local_dir == environment.get("OUTPUT", "outputs")
    policy = config.actor_rollout_ref
    assert policy.rollout.name == environment.get("ROLLOUT", "hf")
    rollout, actor = omega_conf_to_dataclass(policy.rollout), omega_conf_to_dataclass(policy.actor)
    assert rollout.n == 8 and rollout.response_length == config.data.max_response_length
    assert rollout.seed == config.data.seed == actor.data_loader_seed == int(environment.get("SEED", 0))
    actor.validate(8, config.data.train_batch_size, policy.model)
    assert actor.strategy == "fsdp2" and actor.engine.seed == config.trainer.seed
    assert config.data.train_batch_size % actor.ppo_mini_batch_size == 0
    assert config.algorithm.adv_estimator == "grpo"


def test_a_key_that_verl_does_not_know_is_refused(judge, tmp_path):
    for key in ("actor_rollout_ref.actor.clip_ration=0.2", "trainer.total_epoch=3"):
        with pytest.raises(ConfigCompositionException, match=key.partition("=")[0].rpartition(".")[2]):
            compose_judge(judge, [*script_overrides(judge, tmp_path), key])


@pytest.fixture(scope="module")
def verls_keys() -> set[str]:
    with initialize_config_dir(VERL_CONFIG, version_base=None):
        return keys_of(compose("ppo_trainer"))


def test_what_the_config_adds_to_verls_is_read(judge, verls_keys):
    declared = OmegaConf.load(REPO / judge / "config.yaml")
    added = keys_of(OmegaConf.create({name: declared[name] for name in declared if name not in ("hydra", "defaults")}))
    added = {key for key in added if not any(key == name or key.startswith(f"{name}.") for name in verls_keys)}
    added = {key for key in added if not any(name.startswith(f"{key}.") for name in verls_keys)}
    folders = (REPO / judge, REPO / "common", REPO / "common" / "grpo", REPO / "common" / "judging")
    read = set().union(*map(attributes_read, folders))
    fields = {"model.model_type", "actor.optim.betas", "fsdp_config.mixed_precision"}  # of verl's dataclasses
    functions = (checked_reward, importlib.import_module(f"{judge}.reward").compute_score)
    fields |= {f"reward_kwargs.{name}" for function in functions for name in inspect.signature(function).parameters}
    ours = {key: tuple(f"config.{key}".split(".")[-2:]) for key in added if not key.endswith(tuple(fields))}
    unread = {key for key, attribute in ours.items() if attribute not in read}
    assert unread == set() and {"data.on_bad_row", "trainer.output", "trainer.max_ckpt_to_keep"} <= added


def test_a_number_is_set_in_one_place_only(judge):
    text = run_script(judge).read_text()
    set_there = re.findall(r"^    ((?:data|actor_rollout_ref|reward|algorithm|trainer)\.[\w.]+)=", text, flags=re.M)
    config = OmegaConf.load(REPO / judge / "config.yaml")
    null = {"trainer.n_gpus_per_node"}  # all
    own = set()
    for name in set_there:
        section, _, key = name.rpartition(".")
        own |= set() if OmegaConf.is_missing(OmegaConf.select(config, section), key) else {name}
    assert own == null and len(set_there) > 25


def test_who_answers_is_what_answering_says(judge, tmp_path):
    """The script asks common/grpo/answering.py, and stops if what is set cannot run."""
    overrides = script_overrides(judge, tmp_path, MODEL_PATH="m", TRAIN_FILES="t.parquet", CHOSEN="vllm")
    assert "actor_rollout_ref.rollout.name=vllm" in overrides
    (tmp_path / "python").write_text("#!/bin/sh\nexit 7\n")
    settings = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "ROLLOUT": "vllm"}
    done = subprocess.run(["bash", run_script(judge)], env=settings, cwd=tmp_path, timeout=30, capture_output=True)
    assert (done.returncode, done.stdout) == (7, b"")


@pytest.mark.parametrize(
    ("precision", "wanted", "trained", "answered"),
    [
        ("bf16", [], "bf16", "bfloat16"),
        ("fp32", [], "fp32", "float32"),  # a CPU, or GPUs before Ampere
        ("bf16", ["actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype: fp32}"], "fp32", "float32"),
        ("bf16", ["actor_rollout_ref.rollout.dtype=half"], "bf16", "half"),
    ],
)
def test_vllm_computes_as_training_does(judge, tmp_path, precision, wanted, trained, answered):
    files = {"train": tmp_path / "train.parquet", "val": tmp_path / "val.parquet"}
    filled = {}
    for name in ("vllm", "hf"):
        config = compose_judge(judge, [*script_overrides(judge, tmp_path, ROLLOUT=name), *wanted])
        machines = Machines("cuda", 1, precision, card=None)
        set_precision(config, precision)
        filled[name] = fill_in(config, judge, tmp_path, files, 640, machines).actor_rollout_ref
    policy = filled["vllm"]
    assert policy.actor.fsdp_config.mixed_precision.param_dtype == trained and policy.rollout.dtype == answered
    assert policy.model.external_lib == "common.grpo.servers"  # registers what is ours, in every process of verl's
    assert filled["hf"].model.external_lib == "common.grpo.policy"


SAMPLED, COMPUTED = True, False
CORRECTION = "algorithm.rollout_correction"


@pytest.mark.parametrize(
    ("settings", "rollout", "precision", "old"),
    [
        ([], "hf", "fp32", SAMPLED),
        (["actor_rollout_ref.rollout.top_k=0"], "hf", "fp32", SAMPLED),
        ([], "hf", "bf16", COMPUTED),
        (["actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype: fp32}"], "hf", "bf16", SAMPLED),
        ([], "vllm", "fp32", COMPUTED),
        (["actor_rollout_ref.rollout.top_p=0.9"], "hf", "fp32", COMPUTED),
        (["actor_rollout_ref.rollout.top_k=20"], "hf", "fp32", COMPUTED),
        ([f"{CORRECTION}.rollout_is=token"], "hf", "fp32", COMPUTED),
        ([f"{CORRECTION}.rollout_rs=token_k1"], "hf", "fp32", COMPUTED),
        ([f"{CORRECTION}.bypass_mode=False"], "hf", "fp32", COMPUTED),
        ([f"{CORRECTION}.bypass_mode=True"], "vllm", "bf16", SAMPLED),
    ],
)
def test_old_log_probs_are_those_sampled_with_where_they_are_the_same(
    composed, tmp_path, settings, rollout, precision, old
):
    settings = [f"actor_rollout_ref.rollout.name={rollout}", *settings]
    config = OmegaConf.merge(composed, OmegaConf.from_dotlist(settings))
    set_precision(config, precision)
    check_settings(config, 1000)
    files = {"train": tmp_path / "train.parquet", "val": tmp_path / "val.parquet"}
    machines = Machines("cuda", 1, precision, card=None)
    filled = fill_in(config, "generative_pairwise", tmp_path, files, 640, machines)
    assert filled.algorithm.rollout_correction.bypass_mode is old


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bypass_mode": "yes"}, "bypass_mode=yes: expected true, false or auto"),
        ({"bypass_mode": None}, "bypass_mode=None: expected true, false or auto"),
        ({"loss_type": "reinforce"}, "loss_type=reinforce: not supported here"),
        ({"bypass_mode": True, "rollout_is": "token"}, "with rollout_is=token: verl would correct nothing"),
        (None, "algorithm.rollout_correction=null: leave it out"),
    ],
)
def test_a_correction_that_verl_would_not_make_is_refused(composed, settings, message):
    config = copy.deepcopy(composed)
    kept = None if settings is None else OmegaConf.merge(config.algorithm.rollout_correction, settings)
    config.algorithm.rollout_correction = kept
    with pytest.raises(DataError, match=re.escape(message)):
        check_settings(config, 1000)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rollout.top_k=null", "rollout.top_k=None: expected a number"),
        ("rollout.val_kwargs.top_p=all", "rollout.val_kwargs.top_p=all: expected a number"),
        ("rollout.temperature=.nan", "rollout.temperature=nan: expected a number"),
        ("rollout.temperature=0", "rollout.temperature=0: all answers to a prompt would be the same"),
        ("rollout.top_k=1", "rollout.top_k=1: all answers to a prompt would be the same"),
        ("rollout.n=1", "rollout.n=1: GRPO compares answers to the same prompt"),
    ],
)
def test_sampling_that_is_not_numbers_or_teaches_nothing_is_refused(composed, setting, message):
    config = OmegaConf.merge(composed, OmegaConf.from_dotlist([f"actor_rollout_ref.{setting}"]))
    with pytest.raises(DataError, match=re.escape(f"actor_rollout_ref.{message}")):
        check_settings(config, 1000)


def test_starting_over_is_said_to_the_demos_warm_start_too(judge, tmp_path):
    note = tmp_path / "calls"
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@" >> "$NOTE"\n')
    (tmp_path / "python").chmod(0o755)
    settings = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTE": str(note), "ROLLOUT": "hf"}
    for mode, settings_given in (("auto", ()), ("disable", ("trainer.resume_mode=disable",))):
        note.write_text("")
        command = ["bash", run_script(judge), *settings_given]
        subprocess.run(command, env=settings, check=True, timeout=30, cwd=tmp_path, capture_output=True)
        calls = [call.split() for call in note.read_text().splitlines()]
        calls = [call for call in calls if call[1:2] == ["train"]]
        assert [call[0] for call in calls] == [str(REPO / "sft"), str(REPO / judge)]
        assert f"trainer.resume_mode={mode}" in calls[0]
        assert mode == "auto" or "trainer.resume_mode=disable" in calls[1]


# ---- options of the pairwise reward

OPTIONS = "reward.custom_reward_function.reward_kwargs"
BY_SPREAD = "algorithm.norm_adv_by_std_in_grpo"


@pytest.fixture(scope="module")
def composed(tmp_path_factory) -> DictConfig:
    """The pairwise judge's settings as the run script gives them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_CONFIG", VERL_CONFIG)
        overrides = script_overrides("generative_pairwise", tmp_path_factory.mktemp("script"))
        return compose_judge("generative_pairwise", overrides)


@pytest.fixture
def changed(composed):
    """Return the settings with others in their place."""

    def change(**settings) -> DictConfig:
        config = copy.deepcopy(composed)
        for name, value in settings.items():
            place = BY_SPREAD if name == "by_spread" else f"{OPTIONS}.{name}"
            OmegaConf.update(config, place, value, force_add=True)
        return config

    return change


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"tie_credit": 1.5}, "tie_credit is 1.5; expected at least 0 and less than 1"),
        ({"tie_credit": None}, "tie_credit is None"),
        ({"by_strength": "maybe"}, "by_strength is 'maybe'; expected True or False"),
        ({"tie_credti": 0.5}, "unexpected keyword argument 'tie_credti'"),
    ],
)
def test_a_reward_option_that_cannot_be_is_refused_before_anything_starts(changed, option, message):
    from generative_pairwise import prompt

    check_reward(changed(), "generative_pairwise", prompt.write("A"), "A")
    with pytest.raises(DataError, match=message):
        check_reward(changed(**option), "generative_pairwise", prompt.write("A"), "A")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (".rewrad", "module=.rewrad: no module with compute_score"),
        ("json", "module=json: no module with compute_score"),
        ("waiting_reward", "compute_score is `async def`"),
    ],
)
def test_a_reward_module_that_cannot_be_used_is_refused_before_anything_starts(
    changed, module, message, tmp_path, monkeypatch
):
    (tmp_path / "waiting_reward.py").write_text("async def compute_score(*given, **options):\n    return {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=re.escape(message)):
        check_reward(changed(module=module), "generative_pairwise", "", "A")


def test_replacing_prompts_paid_alike_is_refused(composed):
    """verl would leave it out without a word: it gives the setting to its own queue alone."""
    config = copy.deepcopy(composed)
    check_settings(config, 1000)
    config.algorithm.filter_groups.enable = True
    with pytest.raises(DataError, match="algorithm.filter_groups.enable=True: not supported here"):
        check_settings(config, 1000)


@pytest.mark.parametrize(("prompts", "fitting"), [(86, 16), (127, 16), (4, 1), (1, 1)])
def test_few_prompts_are_refused_with_settings_that_fit(composed, prompts, fitting):
    config = copy.deepcopy(composed)
    config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size = 128, 64
    with pytest.raises(DataError) as caught:
        check_settings(config, prompts)
    for name, value in re.findall(r"([\w.]+size)=(\d+)", str(caught.value).partition("set ")[2]):
        assert int(value) == fitting
        OmegaConf.update(config, name, int(value))
    check_settings(config, prompts)


def test_weighing_by_strength_is_refused_where_it_would_do_nothing(changed):
    from generative_pairwise.train import check_strength

    known, unknown = [{"strength": None}, {"strength": 2.0}], [{"strength": None}]
    check_strength(changed(), unknown)
    check_strength(changed(by_strength=True, by_spread=False), known)
    for settings, rows, message in (
        ({"by_strength": True}, known, "norm_adv_by_std_in_grpo"),
        ({"by_strength": True, "by_spread": False}, unknown, "no row of data.train_files"),
    ):
        with pytest.raises(DataError, match=message):
            check_strength(changed(**settings), rows)
