"""The arithmetic of a plan: what is where in which phase, what is changed so that it fits, what is said and refused."""

import copy
import itertools
import os
import shutil
import subprocess
import types

import pytest
from conftest import REPO
from omegaconf import OmegaConf
from test_judge_config import VERL_CONFIG
from test_method_config import SCRIPTS, compose_config, script_overrides
from transformers import Qwen3Config

from common import plan
from common.cluster import ClusterError, Machines
from common.conversation import DataError
from common.demo.world import pointwise_rows
from common.grpo.plan import SERVER, of_policy
from common.grpo.preflight import set_precision
from common.memory import Counted
from common.parquet import write_rows
from common.plan import CARDS, GIB, Plan, of_loop, settle, with_changes

SMALL, MIDDLE, LARGE = CARDS.values()
SHAPE = Qwen3Config(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_key_value_heads=8)
CHECKPOINTING = "model.enable_gradient_checkpointing"
ROWS = [types.SimpleNamespace(tokens=1000, padded_tokens=2000)] * 100


def count(engine_module, config, workers, arguments) -> Counted:
    """As if a model of 4 billion weights had been counted; activations are half a GiB per 1,000 tokens, or a tenth."""
    judge = "actor_rollout_ref" in config
    model = config.actor_rollout_ref.model if judge else config.model
    tokens = config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu if judge else config.data.max_tokens_per_gpu
    kept = 0.05 if model.enable_gradient_checkpointing else 0.5
    weights = 16 * GIB // workers
    return Counted(
        weights=weights,
        trained=weights // 100 if model.lora_rank else weights,
        layer=weights // 36,
        gathered=GIB,
        step=GIB + int(tokens / 1000 * kept * GIB),
        update=GIB // 2,
        largest=2 * GIB,
        parameters=4 * GIB,
        compiled=1 if model.lora_rank else 0.75,
    )


def make_plan(tmp_path, *settings: str, workers: int = 1, host: int | None = None) -> Plan:
    overrides = script_overrides("bradley_terry", tmp_path, MODEL_PATH="m", TRAIN_FILES="t")
    overrides += [f"{CHECKPOINTING}=True"]
    config = compose_config("bradley_terry", [*overrides, *settings])
    return Plan(of_loop("engine", ROWS, config.data.train_batch_size, True), config, workers, count, host)


@pytest.fixture(scope="module")
def judges_config(tmp_path_factory):
    """The settings of a judge's run script with vLLM."""
    folder = tmp_path_factory.mktemp("judge")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_CONFIG", VERL_CONFIG)
        environment = {"MODEL_PATH": "m", "TRAIN_FILES": "t", "ROLLOUT": "vllm"}
        config = compose_config("generative_pointwise", script_overrides("generative_pointwise", folder, **environment))
        set_precision(config, plan.PRECISION)
        yield config


def make_judges_plan(config, workers: int = 1, **changes) -> Plan:
    """Changes by the setting's last name."""
    policy = "actor_rollout_ref"
    sections = ("rollout", "model", "actor.fsdp_config")
    for name, value in changes.items():
        (key,) = (f"{policy}.{part}.{name}" for part in sections if name in OmegaConf.select(config[policy], part))
        config = with_changes(config, {key: value})
    return Plan(of_policy(config, SHAPE, [100, 3000], packed=True), config, workers, count)


def on(card: int, host: int = 2000 * GIB) -> Machines:
    return Machines("cuda", 1, "bf16", card, host)


def parts_of(phases, name: str) -> dict[str, float]:
    """A phase's parts in GiB, those of nothing left out."""
    (phase,) = (phase for phase in phases if phase.name == name)
    return {part: round(size / GIB, 2) for part, size in phase.parts.items() if size}


def test_sixteen_bytes_a_weight_are_on_the_card_or_in_host_memory(tmp_path):
    made = make_plan(tmp_path)
    on_card = made.phases(LARGE, {"engine.offload_policy": False})
    assert parts_of(on_card, "training") == {
        "weights, fp32": 16,
        "gradients, fp32": 16,
        "Adam's two averages, fp32": 32,
        "whole weights, gathered by FSDP2": 1,
        "activations, logits, their gradients": 0.82,
    }
    in_host = made.phases(LARGE, {"engine.offload_policy": True})
    assert parts_of(in_host, "training") == {
        "whole weights, gathered by FSDP2": 1,
        "activations, logits, their gradients": 1.26,  # with a layer's weights on their way, in fp32
    }
    assert [phase.host / GIB for phase in on_card + in_host] == [0, 0, 0, 64]
    assert parts_of(in_host, "loading") == {"weights, fp32": 16, "the largest weight, whole": 2}


def test_host_memory_is_used_only_where_the_card_is_too_small(tmp_path):
    made = make_plan(tmp_path)
    assert made.choose(LARGE) == {"engine.offload_policy": False}
    assert made.choose(MIDDLE) == {"engine.offload_policy": True}
    assert make_plan(tmp_path, workers=8).choose(MIDDLE) == {"engine.offload_policy": False}
    fits, said = made.verdict(MIDDLE)
    assert fits and "engine.offload_policy=auto keeps them in host memory, 64 GiB for each GPU" in said
    asked = make_plan(tmp_path, "engine.offload_policy=false")
    assert asked.choose(MIDDLE) == {}
    assert asked.remedy(MIDDLE) == {"engine.offload_policy": True}


def test_layers_are_computed_twice_only_where_the_card_is_too_small(tmp_path):
    """Without it 16,384 tokens take 8 GiB, with it 0.8. It costs less time than weights in host memory."""
    made = make_plan(tmp_path, f"{CHECKPOINTING}=auto")
    offload = "engine.offload_policy"
    cards = {GIB * size: made.choose(GIB * size) for size in (79, 72, 48, 8)}
    assert [(found[offload], found[CHECKPOINTING]) for found in cards.values()] == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ]
    assert f"{CHECKPOINTING}=auto is False: faster" in made.verdict(79 * GIB)[1]
    assert f"{CHECKPOINTING}=auto is True: less memory" in made.verdict(72 * GIB)[1]
    asked = make_plan(tmp_path, f"{CHECKPOINTING}=auto", f"{offload}=false")
    assert asked.choose(48 * GIB) == {CHECKPOINTING: True} and asked.remedy(48 * GIB) == {offload: True}


def test_compiled_layers_keep_less(tmp_path):
    """16,384 tokens of which as many bytes are kept as in `count`, beside what is there in any case."""
    keeps, eager = f"{CHECKPOINTING}=False", "engine.use_torch_compile=False"
    once, again = (1 + 16.384 * kept for kept in (0.5, 0.05))
    for settings, expected in (((keeps, eager), once), ((keeps,), again + 0.75 * (once - again)), ((), again)):
        made = make_plan(tmp_path, *settings)
        (training,) = (phase for phase in made.phases(LARGE, {}) if phase.name == "training")
        assert sum(training.parts.values()) / GIB == pytest.approx(64 + expected, abs=1e-3)
    padded = make_plan(tmp_path, keeps)
    padded.method = of_loop("engine", ROWS, 64, packed=False)  # never compiled
    (training,) = (phase for phase in padded.phases(LARGE, {}) if phase.name == "training")
    assert sum(training.parts.values()) / GIB == pytest.approx(64 + once, abs=1e-3)


def test_a_machine_that_cannot_compile_is_planned_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "count_in_cluster", count)
    for compiles, again in ((True, False), (False, True)):  # 77 GiB fit without checkpointing only if compiled
        made = make_plan(tmp_path, f"{CHECKPOINTING}=auto")
        settle(made.method, made.config, 1, Machines("cuda", 1, "bf16", int(77 * GIB), 2000 * GIB, compiles))
        assert made.config.engine.use_torch_compile is compiles
        assert made.config.model.enable_gradient_checkpointing is again
        assert ("no C compiler" in capsys.readouterr().out) is not compiles


def test_adapters_are_planned_as_they_are(tmp_path):
    (phase,) = (
        phase
        for phase in make_plan(tmp_path, f"{CHECKPOINTING}=False", "model.lora_rank=8").phases(LARGE, {})
        if phase.name == "training"
    )
    assert sum(phase.parts.values()) / GIB == pytest.approx(16 + 3 * 0.16 + 1 + 16.384 / 2, abs=1e-2)


def test_host_memory_must_be_there(tmp_path, monkeypatch):
    made = make_plan(tmp_path)
    monkeypatch.setattr(plan, "count_in_cluster", count)
    settle(made.method, copy.deepcopy(made.config), 1, on(MIDDLE, 65 * GIB))
    message = "the host needs 64 GiB of memory for each GPU, and has 60 free. It fits with model.lora_rank=16"
    with pytest.raises(ClusterError, match=message):
        settle(made.method, made.config, 1, on(MIDDLE, 60 * GIB))
    settle(made.method, made.config, 1, on(LARGE, 0))  # that is for the card alone


def test_what_lacks_host_memory_is_not_told_more_than_it_needs(tmp_path):
    """What was chosen for the run as it is may be needless once a setting is changed."""
    keeps = f"{CHECKPOINTING}=False"
    made = make_plan(tmp_path, keeps, "data.max_tokens_per_gpu=32768", host=32 * GIB)  # 16 GiB are kept
    assert made.choose(LARGE) == {"engine.offload_policy": True}
    assert made.remedy(LARGE) == {CHECKPOINTING: True}
    fits, said = made.verdict(LARGE)
    assert not fits and "even with engine.offload_policy=True" not in said
    assert said.endswith(f"It fits with {CHECKPOINTING}=True: 71.3 GiB.")  # on the card alone
    made = make_plan(tmp_path, f"{CHECKPOINTING}=auto", host=20 * GIB)
    assert made.remedy(MIDDLE) == {"model.lora_rank": 16}  # and no shorter micro-batches, and no second GPU
    assert made.choose(MIDDLE, {"model.lora_rank": 16})["engine.offload_policy"] is False
    made = make_plan(tmp_path, keeps, "data.max_tokens_per_gpu=300000", host=20 * GIB)
    assert made.remedy(MIDDLE) == {CHECKPOINTING: True, "model.lora_rank": 16}  # the mild one stays, tokens come back
    assert make_plan(tmp_path, "engine.offload_policy=False", host=20 * GIB).remedy(MIDDLE) == {"model.lora_rank": 16}


def test_no_more_is_proposed_than_is_needed(tmp_path):
    """Whatever is taken back, or half of it, the run does not fit."""
    for tokens, keeps, offload, host, card in itertools.product(
        (300_000,), (False, "auto"), (False,), (5, 200), (10, 48)
    ):
        settings = (f"data.max_tokens_per_gpu={tokens}", f"{CHECKPOINTING}={keeps}", f"engine.offload_policy={offload}")
        made, size = make_plan(tmp_path, *settings, host=host * GIB), card * GIB
        changes = made.remedy(size) or {}
        for key, value in changes.items():
            others = {other: kept for other, kept in changes.items() if other != key}
            assert made._tight(size, others), (settings, host, card, changes)
            for milder in made._towards(key, value):
                assert made._tight(size, others | {key: milder}), (settings, host, card, changes)


def test_more_gpus_of_a_machine_share_its_memory(tmp_path):
    made = make_plan(tmp_path, "engine.offload_policy=True", "model.lora_rank=16", host=10 * GIB)
    assert made.remedy(LARGE) is None
    (lacking,) = (phase for phase in made.phases(LARGE, {"GPUs": 2}) if phase.name == "host memory")
    assert lacking.fault.endswith("and has 5 free.")


def test_a_verdict_says_what_was_tried_and_what_is_needed_beside_the_card(tmp_path):
    said = make_plan(tmp_path, f"{CHECKPOINTING}=auto", "data.max_tokens_per_gpu=1600000").verdict(MIDDLE)[1]
    tried = f"engine.offload_policy=True {CHECKPOINTING}=True"
    assert said.startswith(f"does not fit, even with {tried}: training takes 84.7 GiB on the GPU, ")
    said = make_plan(tmp_path, workers=2).verdict(int(10 * GIB))[1]
    assert "GiB on each of 2 GPUs, and the card has 10.0" in said
    assert (
        "It fits with 4 GPUs (N_GPUS_PER_NODE times NNODES): " in said and "16 GiB of host memory for each GPU." in said
    )


@pytest.mark.parametrize(
    ("value", "name", "size"),
    [
        (24, "24 GB", CARDS["24 GB"]),
        ("80GB", "80 GB", CARDS["80 GB"]),
        ("48 gb", "48 GB", CARDS["48 GB"]),
        (141, "141 GB", int(141 * 0.92 * GIB)),
    ],
)
def test_a_plan_may_name_a_card(value, name, size):
    assert plan.is_asked(value) and plan.card_of(value) == {name: size}


@pytest.mark.parametrize("value", ["yes", "flase", 1, 0, "24GiB", "", None, -24, 24.5])
def test_what_is_no_card_is_refused(value):
    assert plan.is_asked(True) and not plan.is_asked(False)
    with pytest.raises(DataError, match="expected true, false, or the size of a card in GB, such as plan=24"):
        plan.is_asked(value)


def test_the_mildest_settings_are_proposed(tmp_path):
    keeps = f"{CHECKPOINTING}=False"
    tight = int(10 * GIB)
    assert make_plan(tmp_path, keeps).remedy(LARGE) == {}
    long = "data.max_tokens_per_gpu=200000"
    assert make_plan(tmp_path, keeps, long).remedy(LARGE) == {CHECKPOINTING: True}
    longer = make_plan(tmp_path, "data.max_tokens_per_gpu=1600000").remedy(MIDDLE)
    assert longer == {"data.max_tokens_per_gpu": 400000}
    assert make_plan(tmp_path).remedy(tight) == {"GPUs": 4}  # 16 GiB of weights do not even load
    assert make_plan(tmp_path).remedy(int(3 * GIB)) is None
    assert "It fits on no 8 such GPUs" in make_plan(tmp_path).verdict(int(3 * GIB))[1]


def test_a_micro_batch_holds_the_largest_row_whatever_is_proposed(tmp_path):
    """A row of 1,000 tokens; two packed texts of a pair that cannot be packed are 2,000."""
    made = make_plan(tmp_path, "data.max_tokens_per_gpu=1999")
    assert made.method.least_tokens == 1000
    assert of_loop("engine", ROWS, 64, packed=False).least_tokens == 2000
    (phase,) = (phase for phase in made.phases(LARGE, {}) if phase.name == "training")
    assert {"data.max_tokens_per_gpu": 999} not in list(made._milder(phase, {}))


def test_what_a_server_leaves_of_the_card_and_needs_of_it(judges_config):
    phases = make_judges_plan(judges_config).phases(LARGE, {})
    assert [phase.name for phase in phases] == ["loading", "training", "handing weights to vLLM", "answering by vLLM"]
    assert parts_of(phases, "training")["vLLM, asleep"] == SERVER / GIB
    # the trainer waits in host memory: nothing of it is on the card
    answering = parts_of(phases, "answering by vLLM")
    assert set(answering) == {"vLLM's weights and work", "vLLM's keys and values", "vLLM, beside its share"}
    share = answering["vLLM's weights and work"] + answering["vLLM's keys and values"]
    assert share == pytest.approx(0.6 * LARGE / GIB, abs=0.02)
    # 36 layers x 8 heads x 128 x keys and values x 2 bytes, for 4,096 tokens
    of_answer = 36 * 8 * 128 * 2 * 2 * 4096 / GIB
    answers = answering["vLLM's keys and values"] / of_answer
    assert f"holds {answers:.0f} answers" in phases[-1].note
    assert parts_of(phases, "handing weights to vLLM") == {
        "vLLM's weights": 8,
        "the largest weight, whole": 2,
        "bucket": 2,
        "vLLM, beside its share": SERVER / GIB,
    }
    assert phases[-1].host == 48 * GIB


@pytest.mark.parametrize(
    ("moved", "stays"),
    [
        ({}, set()),
        ({"param_offload": False}, {"weights, fp32"}),
        ({"optimizer_offload": False}, {"Adam's two averages, fp32"}),
        ({"param_offload": False, "optimizer_offload": False}, {"weights, fp32", "Adam's two averages, fp32"}),
        ({"param_offload": False, "optimizer_offload": False, "offload_policy": True}, set()),
    ],
)
def test_what_of_the_trainer_stays_while_a_server_answers(judges_config, moved, stays):
    phases = make_judges_plan(judges_config, **moved).phases(LARGE, {})
    for name in ("answering by vLLM", "handing weights to vLLM"):
        assert {part for part in parts_of(phases, name) if "fp32" in part} == stays


def test_an_adapter_is_handed_over_from_the_whole_model_on_the_card(judges_config):
    for offload in (False, True):
        made = make_judges_plan(judges_config, lora_rank=16, offload_policy=offload)
        assert ("weights, fp32" in parts_of(made.phases(LARGE, {}), "handing weights to vLLM")) is not offload


def test_a_servers_share_must_hold_its_weights_and_one_answer(judges_config):
    share, split = (
        f"actor_rollout_ref.rollout.{name}" for name in ("gpu_memory_utilization", "tensor_model_parallel_size")
    )
    made = make_judges_plan(judges_config, gpu_memory_utilization=0.3)
    fits, said = made.verdict(SMALL)
    assert not fits and f"{share}=0.3: vLLM's share is 6.6 GiB. Its weights take 8.0" in said
    assert made.remedy(SMALL) == {share: 0.8}
    assert make_judges_plan(judges_config, gpu_memory_utilization=0.99).remedy(LARGE) == {share: 0.9}
    tight = int(12 * GIB)
    assert make_judges_plan(judges_config, workers=2).remedy(tight) == {split: 2}


@pytest.mark.parametrize(
    "changed", [{"rollout.dtype": "float32"}, {"actor.fsdp_config.mixed_precision": {"param_dtype": "fp32"}}]
)
def test_a_server_that_computes_in_fp32_takes_twice_as_much(judges_config, changed):
    in_fp32 = with_changes(judges_config, {f"actor_rollout_ref.{name}": value for name, value in changed.items()})
    half, whole = (
        parts_of(make_judges_plan(config).phases(LARGE, {}), "handing weights to vLLM")["vLLM's weights"]
        for config in (judges_config, in_fp32)
    )
    assert (half, whole) == (8, 16)
    told = [
        next(phase.note for phase in make_judges_plan(config).phases(LARGE, {}) if phase.note)
        for config in (judges_config, in_fp32)
    ]
    half, whole = (int(note.split("vLLM holds ")[1].split()[0]) for note in told)
    assert whole < half / 2  # answers at a time: each takes twice as much, and the weights leave less room


def test_a_policy_that_answers_itself_gathers_all_its_weights(judges_config):
    made = make_judges_plan(judges_config, name="hf", max_num_batched_tokens=65536, param_offload=False)
    phases = make_judges_plan(made.config, optimizer_offload=False).phases(LARGE, {})
    assert [phase.name for phase in phases] == ["loading", "training", "answering by the policy"]
    parts = parts_of(phases, "answering by the policy")
    assert parts["weights, fp32"] == 16 and parts["Adam's two averages, fp32"] == 32
    assert parts["all weights, gathered"] == 8
    assert parts["keys and values"] == 65536 * 36 * 8 * 128 * 2 * 2 / GIB
    answers, layer = 65536 // 1024, 65536 * (3 * 12288 + 4 * 4096) * 2  # side by side, however short their prompts
    assert parts["activations, logits"] == pytest.approx((layer + answers * 151_936 * 20) / GIB, abs=0.01)
    assert made.remedy(SMALL) == {"actor_rollout_ref.rollout.max_num_batched_tokens": 32768}


def test_what_cannot_fit_is_refused_with_the_number_and_the_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "count_in_cluster", count)
    made = make_plan(tmp_path, "data.max_tokens_per_gpu=800000", "engine.offload_policy=false")
    with pytest.raises(ClusterError) as refused:
        settle(made.method, made.config, 1, on(LARGE))
    assert str(refused.value) == (
        "GPU memory: does not fit: training takes 109.7 GiB on the GPU, and the card has 79.1. The largest parts: "
        "activations, logits, their gradients 40.0, Adam's two averages, fp32 32.0, weights, fp32 16.0. It fits with "
        "engine.offload_policy=True: 46.1 GiB, and 64 GiB of host memory for each GPU."
    )


def test_what_is_left_open_is_decided_before_the_workers_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "count_in_cluster", count)
    for card, offload in ((LARGE, False), (MIDDLE, True)):
        made = make_plan(tmp_path)
        settle(made.method, made.config, 1, on(card))
        assert made.config.engine.offload_policy is offload
        assert ("engine.offload_policy=auto" in capsys.readouterr().out) is offload


def test_nothing_is_counted_or_refused_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "count_in_cluster", None)
    made = make_plan(tmp_path, "data.max_tokens_per_gpu=100000000", f"{CHECKPOINTING}=auto")
    settle(made.method, made.config, 1, Machines("cpu", 1, "fp32"))
    assert made.config.engine.offload_policy is False and made.config.model.enable_gradient_checkpointing is True


def test_a_model_that_cannot_be_counted_is_not_refused(tmp_path, monkeypatch, capsys):
    from ray.exceptions import RayTaskError

    def fail(*arguments):
        raise RayTaskError("count_run", "traceback", DataError("RouterModel: what its layers do depends on values"))

    monkeypatch.setattr(plan, "count_in_cluster", fail)
    made = make_plan(tmp_path)
    settle(made.method, made.config, 1, on(LARGE))
    assert made.config.engine.offload_policy is False
    assert "nothing is refused: RouterModel: what its layers do depends on values" in capsys.readouterr().out


def test_the_table_has_a_column_for_each_card_and_says_what_fits(tmp_path):
    lines = plan.table(make_plan(tmp_path), CARDS)
    assert lines[0].split()[-6:] == ["24", "GB", "48", "GB", "80", "GB"]
    (training,) = (line for line in lines if line.startswith("training"))
    assert [float(cell) for cell in training.split()[1:]] == [4.6, 5.5, 70.5]
    assert [line.split(":")[0] for line in lines[-3:]] == list(CARDS)
    assert {len(line) for line in lines[:-4]} == {52 + 3 * 10}


@pytest.fixture
def no_ray(monkeypatch):
    import ray

    def refuse(*arguments, **settings):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)
    for name in (*plan.ENVIRONMENT, *plan.ON_CPU):  # taken back after the test
        monkeypatch.setenv(name, os.environ.get(name, ""))


def test_plan_true_counts_the_run_and_starts_nothing(small_run, tmp_path, no_ray, capsys):
    from bradley_terry.train import train

    config = compose_config("bradley_terry", script_overrides("bradley_terry", tmp_path, **small_run) + ["plan=true"])
    config.trainer.output = str(tmp_path / "outputs")
    train(config)
    said = capsys.readouterr().out
    for card in CARDS:
        assert f"{card}: fits, at most" in said
    assert not (tmp_path / "outputs").exists()

    config.plan, config.trainer.n_gpus_per_node = "141GB", 8
    model = shutil.copytree(config.model.path, tmp_path / "without_weights")
    (model / "model.safetensors").unlink()
    config.model.path = str(model)
    train(config)
    said = capsys.readouterr().out
    assert "141 GB: fits, at most" in said and "GiB per GPU, of 8" in said and "24 GB" not in said
    config.trainer.n_gpus_per_node = "eight"
    with pytest.raises(ClusterError, match="N_GPUS_PER_NODE=eight: expected a whole number of at least 1"):
        train(config)
    config.trainer.n_gpus_per_node, config.model.lora_rank = 8, "abc"
    with pytest.raises(DataError, match="lora_rank=abc: expected a whole number, 0 for no adapters"):
        train(config)


def test_plan_true_of_a_judge_starts_nothing(tiny_model, tmp_path, no_ray, monkeypatch, capsys):
    monkeypatch.setenv("VERL_CONFIG", VERL_CONFIG)
    monkeypatch.setattr(plan, "count_here", count)
    from generative_pointwise.train import train

    rows = write_rows(tmp_path / "train.parquet", pointwise_rows("train", 96, seed=0))
    inputs = {"MODEL_PATH": str(tiny_model), "TRAIN_FILES": str(rows), "ROLLOUT": "vllm"}
    overrides = script_overrides("generative_pointwise", tmp_path, **inputs)
    overrides += ["data.train_batch_size=32", "actor_rollout_ref.actor.ppo_mini_batch_size=16", "plan=true"]
    config = compose_config("generative_pointwise", overrides)
    config.trainer.output = str(tmp_path / "outputs")
    train(config)
    said = capsys.readouterr().out
    assert "answering by vLLM" in said and "80 GB: fits" in said
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("method", SCRIPTS)
def test_a_plans_script_ends_with_it(method, tmp_path):
    """Nothing is trained, so there is nothing to evaluate; and no judge is trained to start from."""
    (tmp_path / "python").write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$2" >> "$NOTE"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTE": str(tmp_path / "note"), "ROLLOUT": "hf"}
    for plan_for in ("plan=true", "plan=24GB"):
        (tmp_path / "note").unlink(missing_ok=True)
        command = ["bash", REPO / method / SCRIPTS[method], plan_for]
        result = subprocess.run(command, env={**os.environ, **environment}, cwd=tmp_path, timeout=30)
        assert result.returncode == 0
        assert (tmp_path / "note").read_text().split() == ["prepare_data", "common.demo.tiny_model", "train"]


def test_verls_settings_follow_for_a_server(judges_config, tmp_path):
    from common.grpo.preflight import fill_in

    eight = Machines("cuda", 8, "bf16", card=CARDS["80 GB"])
    config = make_judges_plan(judges_config, lora_rank=16).config
    OmegaConf.update(config, "reward.custom_reward_function.name", "another")
    filled = fill_in(config, "pkg", tmp_path, {"train": tmp_path, "val": tmp_path}, 128, eight).actor_rollout_ref
    assert filled.rollout.max_model_len == 3072 + 1024 and filled.rollout.load_format == "auto"
    config.actor_rollout_ref.model.lora_rank = 0
    filled = fill_in(config, "pkg", tmp_path, {"train": tmp_path, "val": tmp_path}, 128, eight).actor_rollout_ref
    assert filled.rollout.load_format == "dummy"
