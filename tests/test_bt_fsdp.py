"""The sharded engine in one process, with the precision that a GPU run has: bf16 compute over fp32 weights."""

from types import SimpleNamespace

import pytest
import torch
from conftest import note_gradients
from transformers import AutoTokenizer

from bradley_terry import dataset, engine
from common import fsdp, training
from common.checkpoint import unwrap
from common.demo.world import preference_pairs


@pytest.fixture(scope="module")
def pairs(tiny_model):
    rows = [dataset.check_pair(row) | {"source": ""} for row in preference_pairs("train", 16, seed=0)]
    return dataset.encode_pairs(rows, AutoTokenizer.from_pretrained(tiny_model), 512, "error")[0]


def make_engine(tiny_model, compute: str, compiled: bool = False, **model_settings):
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig

    settings = {"enable_gradient_checkpointing": False, **model_settings}
    built = engine.PairEngine(
        HFModelConfig(path=str(tiny_model), **settings),
        FSDPEngineConfig(strategy="fsdp2", mixed_precision={"param_dtype": compute}, use_torch_compile=compiled),
        FSDPOptimizerConfig(lr=2e-6, weight_decay=0.0, total_training_steps=10),
        CheckpointConfig(),
    )
    built.initialize()
    return built


@pytest.fixture
def bf16_engine(process_group, tiny_model):
    return make_engine(tiny_model, "bf16")


def loss_function(model_output, data, dp_group):
    return engine.pair_loss(model_output, data, dp_group, margin_scale=0.0, centering=0.0)


def weights_of(built) -> dict[str, torch.Tensor]:
    return {name: weight.full_tensor().clone() for name, weight in built.module.named_parameters()}


def test_small_steps_move_the_weights(bf16_engine, pairs):
    """Trap 5: bf16 weights stepped by 2e-6 stay where they are, because the step is lost in rounding."""
    before = weights_of(bf16_engine)
    assert {weight.dtype for weight in before.values()} == {torch.float32}
    gradients = {}
    note_gradients(bf16_engine, gradients)
    with bf16_engine.train_mode():
        bf16_engine.train_batch(training.make_batch(pairs, dataset.collate, 4096), loss_function)
    moved, asked, moved_in_bf16 = 0, 0, 0
    for name, after in weights_of(bf16_engine).items():
        has_gradient = gradients[name] != 0
        asked += int(has_gradient.sum())
        moved += int((before[name] != after)[has_gradient].sum())
        moved_in_bf16 += int((before[name].bfloat16() != after.bfloat16())[has_gradient].sum())
    print(f"moved: {moved / asked:.3f} of fp32 weights, {moved_in_bf16 / asked:.3f} would in bf16")
    assert asked > 100_000
    assert moved / asked > 0.95
    assert moved_in_bf16 / asked < 0.2  # the same step in bf16


def test_the_head_is_fp32_over_a_bf16_backbone(bf16_engine, pairs):
    """Trap 6: rewards rounded to bf16 would make ties of close answers."""
    seen = {}
    base = unwrap(bf16_engine.module)
    base.score.register_forward_hook(lambda module, inputs, output: seen.update(head=(inputs[0].dtype, output.dtype)))
    base.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: seen.update(body=output.dtype))
    with bf16_engine.eval_mode():
        output = bf16_engine.infer_batch(training.make_batch(pairs, dataset.collate, 4096), loss_function=None)
    assert seen == {"head": (torch.float32, torch.float32), "body": torch.bfloat16}
    rewards = output["model_output"]["rewards"].values()
    assert (rewards != rewards.bfloat16().float()).float().mean() > 0.9


def test_the_token_budget_changes_neither_loss_nor_gradient(process_group, tiny_model, pairs):
    results = []
    for max_tokens in (4096, 200):  # one micro-batch, eight
        built = make_engine(tiny_model, "fp32")
        gradients = {}
        note_gradients(built, gradients)
        batch = training.make_batch(pairs, dataset.collate, max_tokens)
        with built.train_mode():
            output = built.train_batch(batch, loss_function)
        results.append((len(output["loss"]), sum(output["loss"]), gradients))
    (one, loss, gradients), (many, loss_of_many, gradients_of_many) = results
    assert one == 1 and many > 4
    assert loss_of_many == pytest.approx(loss, abs=1e-6)
    for name, gradient in gradients.items():
        difference = (gradients_of_many[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-5, name


def test_padded_rows_give_the_loss_and_gradient_of_packed_ones(process_group, tiny_model, pairs):
    """What a model gets that cannot be packed: two padded rows a pair."""
    results = []
    for attention, max_tokens in (({}, 4096), ({"attn_implementation": "sdpa"}, 1000)):
        built, gradients = make_engine(tiny_model, "fp32", override_config=attention), {}
        note_gradients(built, gradients)
        batch = training.make_batch(pairs, dataset.collate, max_tokens, packed=built.packed)
        with built.train_mode():
            output = built.train_batch(batch, loss_function)
        results.append((len(output["loss"]), sum(output["loss"]), gradients))
    (_, loss, gradients), (batches, padded_loss, padded_gradients) = results
    assert batches in (2, 4, 8)
    assert padded_loss == pytest.approx(loss, abs=1e-6)
    for name, gradient in gradients.items():
        assert (padded_gradients[name] - gradient).norm() / gradient.norm() < 1e-4, name


@pytest.mark.parametrize(
    ("max_tokens", "rows"), [(10_000, 12), (240, 12), (239, 6), (100, 4), (40, 2), (39, 1), (1, 1)]
)
def test_padded_rows_fill_micro_batches_that_are_all_alike(max_tokens, rows):
    of_ten = [SimpleNamespace(padded_tokens=tokens) for tokens in (20, 10, 5) * 8]
    assert training.rows_that_fit(of_ten, max_tokens, workers=2) == rows


def test_the_first_step_has_a_rate_above_0(process_group, tiny_model, pairs):
    """verl's warm-up would start at 0, and the first batch would teach nothing."""
    from verl.workers.config import FSDPOptimizerConfig

    built = make_engine(tiny_model, "fp32")
    built.optimizer_config = FSDPOptimizerConfig(lr=1e-3, lr_warmup_steps=4, total_training_steps=10)
    built.lr_scheduler = built._build_lr_scheduler(built.optimizer)
    rates = [built.lr_scheduler_step() for _ in range(5)]
    assert rates[0] > 0 and rates == sorted(rates) and rates[3] == pytest.approx(max(rates))


def test_the_cuts_of_a_row_are_computed_once_not_once_a_layer():
    """FSDP2 walks through the arguments of every layer and rebuilds what it knows; ours must pass untouched."""
    from torch.distributed.utils import _apply_to_tensors

    segments = engine.Segments([(0, 4, 0, 0)], torch.device("cpu"))
    assert _apply_to_tensors(lambda tensor: tensor, {"segments": segments})["segments"] is segments


@pytest.mark.parametrize(
    ("device", "wanted", "only_measured", "there"),
    [
        ("cuda", True, False, True),
        ("cuda", False, False, False),
        ("cuda", False, True, True),  # a reference model waits while the policy trains
        ("cpu", True, True, False),  # it is there anyway
    ],
)
def test_whose_weights_are_kept_in_host_memory(monkeypatch, device, wanted, only_measured, there):
    monkeypatch.setattr(fsdp, "get_device_name", lambda: device)
    built = object.__new__(engine.PairEngine)
    built.engine_config = SimpleNamespace(offload_policy=wanted, forward_only=only_measured)
    assert bool(built._in_host_memory()) is there
