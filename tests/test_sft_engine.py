"""The packed engine against the textbook: one conversation at a time, the same loss and the same gradients."""

import json
import shutil

import pytest
import torch
from conftest import HYBRID, note_gradients
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    GenerationConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
    Qwen3NextConfig,
)

from common import logits, training
from common.checkpoint import unwrap
from common.demo.transcripts import comparing, scoring
from common.demo.world import pairwise_rows, pointwise_rows
from sft import dataset, engine

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "pad_token_id": 0}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    """The logits of the examples' 1,000 trained tokens are computed in several chunks, as in large batches."""
    monkeypatch.setattr(logits, "CHUNK", 100)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def examples(tokenizer):
    """24 judge's conversations, some of them with several turns."""
    conversations = [scoring(row) for row in pointwise_rows("train", 10, seed=0)]
    conversations += [comparing(row) for row in pairwise_rows("train", 10, seed=0)]
    conversations += [conversations[turn] + conversations[turn + 11] for turn in range(4)]
    rows = [{"messages": messages, "source": f"row {number}"} for number, messages in enumerate(conversations)]
    return dataset.encode_conversations(rows, tokenizer, 2048, "error")[0]


def make_engine(model_path, compute: str = "fp32", **model_settings):
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig

    settings = {"enable_gradient_checkpointing": False, **model_settings}
    built = engine.SFTEngine(
        HFModelConfig(path=str(model_path), **settings),
        FSDPEngineConfig(strategy="fsdp2", mixed_precision={"param_dtype": compute}, use_torch_compile=False),
        FSDPOptimizerConfig(lr=1e-3, weight_decay=0.0, clip_grad=1e9, total_training_steps=10),
        CheckpointConfig(),
    )
    built.initialize()
    return built


def packed(model_path, examples, max_tokens: int, **settings) -> tuple[int, float, dict[str, torch.Tensor]]:
    """One training step of the engine: its number of micro-batches, its loss, its gradients."""
    built, gradients = make_engine(model_path, **settings), {}
    note_gradients(built, gradients)
    with built.train_mode():
        batch = training.make_batch(examples, dataset.collate, max_tokens, packed=built.packed)
        output = built.train_batch(batch, engine.sft_loss)
    return len(output["loss"]), sum(output["loss"]), gradients


def one_at_a_time(model_path, examples, attention: str = "sdpa") -> tuple[float, dict[str, torch.Tensor]]:
    """The same with transformers alone: no packing, no padding, the model's own attention and all logits."""
    model = AutoModelForCausalLM.from_pretrained(model_path, attn_implementation=attention)
    total, count = 0.0, sum(int(example.mask.sum()) for example in examples)
    for example in examples:
        ids = torch.from_numpy(example.ids).long()
        logits = model(ids[None]).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        part = losses[torch.from_numpy(example.mask[1:])].sum() / count
        part.backward()
        total += part.item()
    return total, {name: weight.grad for name, weight in model.named_parameters()}


def assert_same(ours: tuple, reference: tuple) -> None:
    loss, gradients = ours[-2:]
    assert loss == pytest.approx(reference[0], abs=1e-5)
    assert gradients.keys() == reference[1].keys()
    for name, gradient in reference[1].items():
        if gradient is None:  # an expert that no token was sent to
            continue
        difference = (gradients[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-4, f"{name}: relative difference {difference:.2e}"


@pytest.mark.parametrize("max_tokens", [65536, 700])
def test_packed_conversations_learn_like_single_ones(process_group, tiny_model, examples, max_tokens):
    ours = packed(tiny_model, examples, max_tokens)
    assert ours[0] == 1 if max_tokens == 65536 else ours[0] > 6
    assert_same(ours, one_at_a_time(tiny_model, examples))


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL),
        MistralConfig(**SMALL, sliding_window=64),
        Qwen3Config(**SMALL, head_dim=16, use_sliding_window=True, sliding_window=32, max_window_layers=1),
        GraniteConfig(**SMALL, logits_scaling=8.0),
    ],
    ids=["llama", "mistral, sliding window", "qwen3, full and sliding layers", "granite, scaled logits"],
)
def test_other_architectures_learn_alike(process_group, tmp_path, tokenizer, examples, config):
    torch.manual_seed(0)
    config.vocab_size = len(tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert_same(packed(tmp_path, examples, 4096), one_at_a_time(tmp_path, examples))


def test_a_model_that_cannot_be_split_learns_alike_and_it_is_said(process_group, tmp_path, tokenizer, examples, capsys):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 2, "pad_token_id": 0}
    config = OPTConfig(**sizes, num_attention_heads=4, enable_bias=False, vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert_same(packed(tmp_path, examples, 4096), one_at_a_time(tmp_path, examples))
    assert "OPTForCausalLM computes the logits of a micro-batch all at once" in capsys.readouterr().out


RECURRENT = Qwen3NextConfig(**HYBRID, pad_token_id=0)
BLOOM = BloomConfig(hidden_size=64, n_layer=2, n_head=4, pad_token_id=0)


@pytest.mark.parametrize("config", [LlamaConfig(**SMALL), RECURRENT, BLOOM], ids=["llama", "hybrid", "bloom"])
def test_padded_rows_learn_alike(process_group, tmp_path, tokenizer, examples, config):
    """For models that cannot be packed; and one that can, as a check of the check."""
    torch.manual_seed(0)
    config.vocab_size = len(tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    attention = {"override_config": {"attn_implementation": "eager" if config is BLOOM else "sdpa"}}
    ours = packed(tmp_path, examples, 4096, **attention)
    assert ours[0] == 24 // rows_that_fit(examples, 4096) > 1
    assert_same(ours, one_at_a_time(tmp_path, examples, attention["override_config"]["attn_implementation"]))


def rows_that_fit(examples, max_tokens: int) -> int:
    most = max_tokens // max(example.tokens for example in examples)
    return max(size for size in (1, 2, 3, 4, 6, 8, 12, 24) if size <= most)


def test_a_real_batch_learns_alike(process_group, tiny_model, tokenizer, shared_data):
    rows, _ = dataset.load_conversations(shared_data / "sft_judge_train.parquet", on_bad_row="drop")
    examples, _ = dataset.encode_conversations(rows[-200:], tokenizer, 1500, "drop", "drop")
    assert_same(packed(tiny_model, examples[:8], 4096), one_at_a_time(tiny_model, examples[:8]))


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"lora_rank": 4, "enable_gradient_checkpointing": True}, 1e-5),
        ({"compute": "bf16", "enable_gradient_checkpointing": True}, 1e-2),  # each chunk's gradient is rounded
    ],
    ids=["lora", "bf16"],
)
def test_one_chunk_and_many_learn_alike(process_group, monkeypatch, tmp_path, tokenizer, examples, settings, tolerance):
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    results = []
    for chunk in (10**6, 100):
        monkeypatch.setattr(logits, "CHUNK", chunk)
        results.append(packed(tmp_path, examples, 65536, **settings))
    (_, whole_loss, whole), (batches, loss, gradients) = results
    assert batches == 1 and loss == pytest.approx(whole_loss, abs=1e-5)
    for name, expected in whole.items():
        assert (gradients[name] - expected).norm() <= tolerance * expected.norm(), name


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_head_is_gathered_once_for_all_chunks_and_the_embedding_alone(
    process_group, tmp_path, tokenizer, lora_rank
):
    """An untied head that FSDP shards by itself would be gathered for each chunk, and its gradient reduced for each."""
    AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = unwrap(make_engine(tmp_path, lora_rank=lora_rank).module)
    sharded = {name for name, part in model.named_modules() if isinstance(part, FSDPModule)}
    assert sharded - {""} == {"model.embed_tokens", *(f"model.layers.{number}" for number in range(3))}
    assert not model.config.tie_word_embeddings


def test_gradient_checkpointing_changes_nothing(process_group, tiny_model, examples):
    plain = packed(tiny_model, examples, 2048)
    assert_same(packed(tiny_model, examples, 2048, enable_gradient_checkpointing=True), plain[-2:])


def test_logits_are_computed_only_where_a_token_is_trained_on(process_group, tiny_model, examples):
    built, seen = make_engine(tiny_model), []
    built.module.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    with built.eval_mode():
        built.infer_batch(training.make_batch(examples, dataset.collate, 65536), loss_function=None)
    assert sum(seen) == sum(int(example.mask.sum()) for example in examples)
    assert sum(seen) < 0.3 * sum(example.tokens for example in examples)
    assert len(seen) > 5 and max(seen) == 100


def test_a_conversation_is_measured_alike_in_any_company_and_order(process_group, tiny_model, examples):
    built = make_engine(tiny_model)

    def measure(rows: list, max_tokens: int) -> list[torch.Tensor]:
        with built.eval_mode():
            batch = training.make_batch(rows, dataset.collate, max_tokens)
            return built.infer_batch(batch, loss_function=None)["model_output"]["losses"].unbind()

    alone = [measure([example], 4096)[0] for example in examples]
    assert [len(losses) for losses in alone] == [example.mask.sum() for example in examples]
    for together in (measure(examples, 65536), measure(examples, 900), measure(examples[::-1], 65536)[::-1]):
        for ours, reference in zip(together, alone, strict=True):
            torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)


def test_the_loss_is_fp32_over_a_bf16_model(process_group, tiny_model, examples):
    built = make_engine(tiny_model, compute="bf16")
    assert {weight.dtype for weight in built.module.parameters()} == {torch.float32}
    with built.eval_mode():
        output = built.infer_batch(training.make_batch(examples, dataset.collate, 65536), loss_function=None)
    losses = output["model_output"]["losses"].values()
    assert losses.dtype == torch.float32 and (losses != losses.bfloat16().float()).float().mean() > 0.9


def test_a_base_model_whose_own_generation_settings_contradict_each_other_is_still_exported(
    process_group, tiny_model, tmp_path, tokenizer
):
    """Such settings load, but transformers refuses to save them: the run would fail at its very end."""
    shutil.copytree(tiny_model, tmp_path / "base")
    settings = {"do_sample": False, "temperature": 0.5, "eos_token_id": tokenizer.eos_token_id}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(settings))
    built = make_engine(tmp_path / "base")
    built.export(str(tmp_path / "checkpoint"), [tokenizer.pad_token_id])
    exported = GenerationConfig.from_pretrained(tmp_path / "checkpoint")
    assert exported.eos_token_id == sorted([tokenizer.pad_token_id, tokenizer.eos_token_id])
    assert not exported.do_sample and exported.temperature in (None, 1.0)
