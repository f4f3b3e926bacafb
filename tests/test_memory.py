"""What is counted on tensors without data against the bytes of a real step of the real engine, on tiny shapes."""

import dataclasses
import importlib.util
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import HYBRID
from test_judge_config import VERL_CONFIG
from test_method_config import compose_config, script_overrides
from torch._subclasses.fake_tensor import DataDependentOutputException
from transformers import GPTNeoXConfig, LlamaConfig, Qwen3Config, Qwen3NextConfig

from bradley_terry.dataset import Pair
from common import memory
from common.attention import SEGMENT_ATTENTION
from common.conversation import DataError
from common.grpo.preflight import set_precision
from common.memory import Counter, Step, count, counting
from sft.dataset import Example

SHAPE = {"vocab_size": 700, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
TIED, UNTIED = Qwen3Config(**SHAPE, tie_word_embeddings=True), Qwen3Config(**SHAPE, tie_word_embeddings=False)
LLAMA = LlamaConfig(**SHAPE)
KINDS = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "mlp_only_layers": [0, 1]}
MIXED = Qwen3NextConfig(**HYBRID | KINDS, vocab_size=700)  # a recurrent layer, so it is padded
FEW, MANY = 480, 1800  # tokens of a micro-batch
KEPT, AGAIN = False, True  # activations: kept, or computed once more
slow = partial(pytest.param, marks=pytest.mark.run)  # seconds each, and there are many


@pytest.fixture(autouse=True)
def verl_config(monkeypatch):
    monkeypatch.setenv("VERL_CONFIG", VERL_CONFIG)


@pytest.fixture(scope="module", autouse=True)
def flash_without_a_gpu():
    """The flash kernel on the CPU: results of the right shape, and of no right value."""
    varlen = importlib.import_module("torch.nn.attention.varlen")

    def forward(query, key, value, *arguments):
        heads, total = query.shape[1], query.shape[0]
        return torch.zeros_like(query), query.new_zeros((heads, total), dtype=torch.float32), query.new_zeros(2)

    def backward(gradient, query, key, value, *arguments):
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)

    varlen._varlen_attn.register_kernel("cpu")(forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(backward)


def save(config, tiny_model, folder):
    """A folder with a model of that shape, with weights, and a tokenizer."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in tiny_model.glob("*token*"):
        shutil.copy(path, folder)
    return folder


def make_step(
    method: str, folder, tmp_path, checkpointing: bool, packed: bool, lora=0, workers=1, tokens: int = FEW
) -> Step:
    """The step of a method with its run script's settings, and few tokens."""
    attention = SEGMENT_ATTENTION if packed else "sdpa"
    overrides = script_overrides(method, tmp_path, MODEL_PATH=str(folder), TRAIN_FILES="t")
    judge = method.startswith("generative")
    model, engine = ("actor_rollout_ref.model", "actor_rollout_ref.actor.fsdp_config") if judge else ("model", "engine")
    overrides += [f"{model}.enable_gradient_checkpointing={checkpointing}", f"{model}.lora_rank={lora}"]
    overrides += [f"{engine}.use_torch_compile=False"]
    if judge:
        actor = "actor_rollout_ref.actor"
        overrides += [f"{actor}.ppo_max_token_len_per_gpu={tokens}", "data.max_response_length=60"]
        overrides += ["data.max_prompt_length=100", "actor_rollout_ref.rollout.n=2"]
        overrides += [f"actor_rollout_ref.model.override_config.attn_implementation={attention}"]
        config = compose_config(method, overrides)
        set_precision(config, "bf16")
        return importlib.import_module("common.grpo.policy").step_to_count(config, workers, 30, 100, packed)
    config = compose_config(method, [*overrides, f"data.max_tokens_per_gpu={tokens}"])
    config.model.override_config = {"attn_implementation": attention}
    config.engine.mixed_precision = {"param_dtype": "bf16"}
    ids = np.arange(1, 61, dtype=np.int32)
    if method == "sft":
        rows = [Example(ids, ids > 20, "")] * 64
    else:
        rows = [Pair(ids[:20], ids[20:40], ids[40:], 0.0, "")] * 64
    return importlib.import_module(f"{method}.engine").step_to_count(config, workers, rows, packed)


def count_really(step: Step, monkeypatch) -> int:
    """Return the most bytes that are alive during the second step of two micro-batches, with real tensors.

    Values that would come from another worker do not come, so a gradient's norm may be anything.
    """
    counter = Counter()
    monkeypatch.setattr(torch, "isfinite", lambda norm: True)
    with memory._process_group(step.workers):
        engine = step.engine_class(**step.settings)
        engine.initialize()
        counter.see([weight.to_local() for weight in engine.module.parameters()] + list(engine.module.buffers()))
        with memory._kernels_of_a_gpu(step), counting(counter), engine.train_mode():
            for moment in ("first", "second"):
                engine.optimizer_zero_grad()
                counter.enter(moment)
                for _ in range(2):
                    engine.forward_backward_batch(step.batch.clone(), step.loss)
                engine.optimizer_step()
    return counter.most["second"][0]


@pytest.mark.parametrize(
    ("method", "config", "checkpointing", "lora", "workers"),
    [
        ("bradley_terry", UNTIED, KEPT, 0, 1),
        slow("bradley_terry", TIED, AGAIN, 0, 2),
        ("bradley_terry", LLAMA, AGAIN, 8, 1),
        slow("bradley_terry", MIXED, KEPT, 0, 1),
        slow("sft", UNTIED, AGAIN, 0, 1),
        ("sft", TIED, KEPT, 0, 2),
        slow("sft", TIED, KEPT, 8, 1),
        slow("sft", MIXED, AGAIN, 0, 1),
        ("generative_pointwise", TIED, AGAIN, 0, 1),
        slow("generative_pointwise", LLAMA, KEPT, 0, 1),
        slow("generative_pointwise", UNTIED, AGAIN, 8, 1),
        slow("generative_pointwise", MIXED, KEPT, 0, 1),
    ],
)
def test_a_step_takes_what_was_counted(method, config, checkpointing, lora, workers, tiny_model, tmp_path, monkeypatch):
    folder = save(config, tiny_model, tmp_path / "model")
    tokens = MANY if method == "sft" and lora else FEW  # also more than 1,024 whose logits are computed
    step = make_step(method, folder, tmp_path, checkpointing, config is not MIXED, lora, workers, tokens)
    counted = count(step)
    predicted = counted.weights + 3 * counted.trained + max(counted.step, counted.update)
    found = count_really(step, monkeypatch)
    print(f"\npredicted {predicted / 2**20:.2f} MiB, counted {found / 2**20:.2f}: {predicted / found - 1:+.1%}")
    assert predicted == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize(("method", "checkpointing", "lora"), [("bradley_terry", AGAIN, 0), slow("sft", KEPT, 8)])
def test_many_layers_follow_from_a_few(method, checkpointing, lora, tiny_model, tmp_path):
    """To the byte: the largest moment of a deep model need not be that of a shallow one."""
    deep = Qwen3Config(**SHAPE | {"num_hidden_layers": 7}, tie_word_embeddings=True)
    step = make_step(method, save(deep, tiny_model, tmp_path / "model"), tmp_path, checkpointing, True, lora)
    few = dataclasses.asdict(count(step))
    with memory._process_group(1), memory._kernels_of_a_gpu(step):
        all_layers = memory._count_with(step, 7)
    moments = [
        (size, all_layers[f"{name}, gathered"])
        for name, size in all_layers.items()
        if f"{name}, gathered" in all_layers
    ]
    assert max(moments) == (few.pop("step"), few.pop("gathered"))
    del few["compiled"]  # an estimate
    assert few == {name: all_layers[name] for name in few}


def test_compiled_layers_keep_less_in_families_where_that_was_measured(tiny_model, tmp_path):
    folder = save(TIED, tiny_model, tmp_path / "model")
    assert count(make_step("sft", folder, tmp_path, KEPT, True)).compiled == memory.COMPILED
    assert count(make_step("sft", folder, tmp_path, KEPT, True, lora=8)).compiled == 1
    neox = GPTNeoXConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    folder = save(neox, tiny_model, tmp_path / "neox")
    assert count(make_step("sft", folder, tmp_path, KEPT, True)).compiled == 1


def test_torchs_own_tracker_finds_the_same(tiny_model, tmp_path):
    """Another counter, which knows FSDP2's hooks: the peak of forward and backward, and what it consists of."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    step = make_step("bradley_terry", save(UNTIED, tiny_model, tmp_path / "model"), tmp_path, AGAIN, True)
    counted = count(step)
    with memory._process_group(1):
        engine = step.engine_class(**step.settings)
        engine.initialize()
        tracker = FSDPMemTracker(engine.module, engine.optimizer)
        with memory._kernels_of_a_gpu(step), tracker, engine.train_mode():
            engine.forward_backward_batch(step.batch.clone(), step.loss)
    found = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    assert found["Sharded Param"] == counted.weights
    assert found["Unsharded Param"] == counted.gathered
    assert counted.step == pytest.approx(found["Total"] - found["Sharded Param"] - found["Sharded Grad"], rel=0.1)


def test_a_model_that_looks_at_values_is_not_counted(tiny_model, tmp_path, monkeypatch):
    def look(*arguments, **named):
        raise DataDependentOutputException("aten.equal")

    step = make_step("sft", save(TIED, tiny_model, tmp_path / "model"), tmp_path, KEPT, True)
    monkeypatch.setattr(step.engine_class, "prepare_model_outputs", look)
    with pytest.raises(DataError, match="Qwen3ForCausalLM: what its layers do depends on values"):
        count(step)
