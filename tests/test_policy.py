"""The policy engine against the textbook: same log-probabilities, entropy and gradients; answers by seed alone."""

import pytest
import torch
from conftest import HYBRID, note_gradients
from tensordict import TensorDict
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3NextConfig

from common import logits
from common.demo.transcripts import scoring
from common.demo.world import pointwise_rows
from common.generation import generate_batch

ANSWERS = 3  # to each prompt


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    """The logits of the answers' tokens are computed in several chunks, as in large batches."""
    monkeypatch.setattr(logits, "CHUNK", 20)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def sequences(tokenizer) -> list[tuple[list[int], list[int]]]:
    """Prompts with three answers each, not next to one another: of the label, cut short, and of one token."""
    pairs = []
    for number, row in enumerate(pointwise_rows("train", 5, seed=0)):
        prompt, answer = scoring(row)
        ids = tokenizer.apply_chat_template([prompt], add_generation_prompt=True, return_dict=False)
        written = tokenizer(answer["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        pairs += [(number * 7 % 5, ids, tokens) for tokens in (written, written[: 5 + number], written[:1])]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    return [pairs[index][1:] for index in order]


def make_engine(tiny_model, use_torch_compile: bool = False, **model_settings):
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig

    from common.grpo.policy import PolicyEngine

    built = PolicyEngine(
        HFModelConfig(path=str(tiny_model), enable_gradient_checkpointing=False, **model_settings),
        FSDPEngineConfig(
            strategy="fsdp2", mixed_precision={"param_dtype": "fp32"}, use_torch_compile=use_torch_compile
        ),
        FSDPOptimizerConfig(lr=0.0, weight_decay=0.0, clip_grad=1e9, total_training_steps=10),
        CheckpointConfig(),
    )
    built.initialize()
    return built


@pytest.fixture(scope="module", params=["packed", "padded"])
def engine(request, tiny_model, process_group):
    """Packed, and as a model that cannot be packed is computed."""
    attention = {} if request.param == "packed" else {"attn_implementation": "sdpa"}
    return make_engine(tiny_model, override_config=attention)


def make_batch(sequences, temperature, max_tokens: int = 10**6, packed: bool = True) -> TensorDict:
    """What verl's trainer sends: prompts and answers apart and together, jagged."""
    from verl.utils import tensordict_utils as tu

    def jagged(rows) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)

    whole = [prompt + answer for prompt, answer in sequences]
    tensors = {
        "input_ids": jagged(whole),
        "position_ids": jagged([list(range(len(row))) for row in whole]),
        "prompts": jagged([prompt for prompt, _ in sequences]),
        "responses": jagged([answer for _, answer in sequences]),
        "loss_mask": jagged([[1] * len(answer) for _, answer in sequences]),
    }
    settings = {"use_dynamic_bsz": packed, "max_token_len_per_gpu": max_tokens, "calculate_entropy": True}
    settings |= {"micro_batch_size_per_gpu": len(sequences) if max_tokens > 1000 else 3}
    return tu.get_tensordict(tensors, settings | {"temperature": temperature})


def alone(model, prompt: list[int], answer: list[int], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of an answer's tokens by transformers alone."""
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
    distribution = torch.distributions.Categorical(logits=logits)
    return distribution.log_prob(torch.tensor(answer)), distribution.entropy()


def at_answers(values: torch.Tensor, sequences) -> list[torch.Tensor]:
    """Read a jagged output as verl does: at each token the value of the next; the rest must be 0."""
    read = []
    for row, (prompt, answer) in zip(values.unbind(), sequences):
        assert not row[: len(prompt) - 1].any() and row[-1] == 0
        read.append(row[len(prompt) - 1 : len(prompt) + len(answer) - 1])
    return read


@pytest.mark.parametrize("max_tokens", [10**6, 400])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_entropy_are_those_of_transformers(engine, tiny_model, sequences, temperature, max_tokens):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa").eval()
    with torch.no_grad():
        expected = [alone(model, *sequence, temperature) for sequence in sequences]
        with engine.eval_mode():
            output = engine.infer_batch(make_batch(sequences, temperature, max_tokens, engine.packed))["model_output"]
    for name, column in (("log_probs", 0), ("entropy", 1)):
        for found, pair in zip(at_answers(output[name], sequences), expected, strict=True):
            torch.testing.assert_close(found, pair[column], atol=1e-5, rtol=0)


def test_sequences_may_have_temperatures_of_their_own(engine, tiny_model, sequences):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa").eval()
    temperatures = torch.linspace(0.5, 2.0, len(sequences))
    with torch.no_grad(), engine.eval_mode():
        output = engine.infer_batch(make_batch(sequences, temperatures))["model_output"]
        for found, sequence, temperature in zip(at_answers(output["log_probs"], sequences), sequences, temperatures):
            torch.testing.assert_close(found, alone(model, *sequence, temperature)[0], atol=1e-5, rtol=0)


def weighted(model_output: dict, data: TensorDict, dp_group=None):
    """A loss that weighs every token of every answer differently, its gradient reaching prompts through all of them."""
    values = model_output["log_probs"]
    weights = torch.sin(data["input_ids"].values().float())  # of the token, so the same in any order
    return -(values.values() * weights).sum(), {}


def test_gradients_are_those_of_transformers_though_prompts_are_shared(engine, tiny_model, sequences):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa").train()
    total = 0.0
    for prompt, answer in sequences:
        ids = torch.tensor(prompt + answer)
        weights = torch.sin(ids[len(prompt) - 1 : -1].float())
        total = total - (alone(model, prompt, answer, 1.0)[0] * weights).sum()
    total.backward()
    for max_tokens in (10**6, 400):
        gradients = {}
        note_gradients(engine, gradients)
        with engine.train_mode():
            output = engine.train_batch(make_batch(sequences, 1.0, max_tokens, engine.packed), weighted)
        assert sum(output["loss"]) == pytest.approx(total.item(), rel=1e-5)
        expected = {name: weight.grad for name, weight in model.named_parameters()}
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_a_hybrid_policy_generates_with_the_log_probs_that_it_trains_with(
    process_group, tmp_path, tokenizer, sequences
):
    """Recurrent layers see padding on the left, so answers to prompts of other lengths are not batched with it."""
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen3NextConfig(vocab_size=len(tokenizer), **HYBRID, **ends)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    built = make_engine(tmp_path, override_config={"attn_implementation": "sdpa"})
    prompts, seeds = [prompt for prompt, _ in sequences], list(range(len(sequences)))
    assert len(set(map(len, prompts))) > 1
    answers = built.generate(prompts, seeds, 12, 10**6, **SAMPLING)
    answered = [(prompt, tokens) for prompt, (tokens, _) in zip(prompts, answers)]
    with torch.no_grad(), built.eval_mode():
        output = built.infer_batch(make_batch(answered, 1.0, packed=False))["model_output"]
    for found, (_, log_probs) in zip(at_answers(output["log_probs"], answered), answers):
        torch.testing.assert_close(found, torch.tensor(log_probs), atol=1e-5, rtol=0)
    few = built.generate(prompts[::4], seeds[::4], 12, 200, **SAMPLING)
    assert [tokens for tokens, _ in few] == [tokens for tokens, _ in answers[::4]]


def test_each_prompt_stands_once_in_the_row():
    from common.grpo.policy import share_prompts

    rows = [torch.tensor(row) for row in ([1, 2, 3], [7, 8], [1, 2, 4, 5], [1, 2, 3])]
    kept, before, spans = share_prompts(rows, [2, 1, 2, 2])
    assert torch.cat(rows)[kept].tolist() == [1, 2, 3, 7, 8, 4, 5, 3]
    assert spans == [(0, 3, 0, 0), (3, 5, 3, 3), (5, 7, 0, 2), (7, 8, 0, 2)]
    assert before.tolist() == [1, 3, 1, 5, 1]


SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}


def test_an_answer_depends_on_its_prompt_and_seed_alone(engine, sequences, shared_prompts):
    prompts, seeds = [prompt for prompt, _ in sequences], list(range(100, 100 + len(sequences)))
    together = engine.generate(prompts, seeds, 12, 10**6, **SAMPLING)
    shared_prompts.clear()
    assert together == engine.generate(prompts, seeds, 12, 10**6, **SAMPLING)
    assert bool(shared_prompts) == engine.packed
    few = engine.generate(prompts[::4], seeds[::4], 12, 200, **SAMPLING)
    assert [tokens for tokens, _ in few] == [tokens for tokens, _ in together[::4]]
    others = engine.generate(prompts, [seed + 1000 for seed in seeds], 12, 10**6, **SAMPLING)
    assert [tokens for tokens, _ in others] != [tokens for tokens, _ in together]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_rollouts_log_probs_are_the_trainers(engine, sequences, temperature):
    prompts, seeds = [prompt for prompt, _ in sequences], list(range(len(sequences)))
    answers = engine.generate(prompts, seeds, 20, 10**6, **SAMPLING | {"temperature": temperature})
    answered = [(prompt, tokens) for prompt, (tokens, _) in zip(prompts, answers)]
    with torch.no_grad(), engine.eval_mode():
        output = engine.infer_batch(make_batch(answered, temperature))["model_output"]
    for found, (_, log_probs) in zip(at_answers(output["log_probs"], answered), answers):
        torch.testing.assert_close(found, torch.tensor(log_probs), atol=1e-5, rtol=0)


def test_sampling_follows_the_distribution(tiny_model, tokenizer):
    """4,000 draws of one token from a prompt: frequencies within five standard errors of the model's probabilities."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    prompt, draws = tokenizer("Name three things.")["input_ids"], 4000
    for temperature in (1.0, 0.5):
        with torch.no_grad():
            expected = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(dim=-1)
        drawn = generate_batch(model, [prompt] * draws, tokenizer.pad_token_id, 1, list(range(draws)), temperature)
        counts = torch.bincount(torch.tensor([tokens[0] for tokens, _ in drawn]), minlength=len(expected))
        error = (expected * (1 - expected) / draws).sqrt()
        assert ((counts / draws - expected).abs() <= 5 * error + 2 / draws).all()
        assert counts.max() > 2  # some tokens are likelier than the tolerance


def test_cuts_are_kept_to(tiny_model, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    prompt = tokenizer("Name three things.")["input_ids"]
    with torch.no_grad():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(dim=-1)
    likeliest = set(probabilities.topk(3).indices.tolist())
    cut = generate_batch(model, [prompt] * 200, tokenizer.pad_token_id, 1, list(range(200)), 1.0, top_k=3)
    assert {tokens[0] for tokens, _ in cut} == likeliest
    greedy = generate_batch(model, [prompt] * 2, tokenizer.pad_token_id, 1, [0, 1], 0.0)
    assert {tokens[0] for tokens, _ in greedy} == {int(probabilities.argmax())}
    assert greedy[0][1][0] == pytest.approx(probabilities.max().log().item(), abs=1e-5)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_generation_leaves_the_weights_sharded_with_and_without_adapters(
    tiny_model, sequences, process_group, shared_prompts, lora_rank
):
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    built = make_engine(tiny_model, lora_rank=lora_rank)
    prompts, seeds = [prompt for prompt, _ in sequences], list(range(len(sequences)))
    built.generate(prompts[:1], seeds[:1], 1, 10**6, **SAMPLING)  # what the model can do is tried
    shared_prompts.clear()
    answers = built.generate(prompts, seeds, 8, 10**6, **SAMPLING)
    assert shared_prompts
    answered = [(prompt, tokens) for prompt, (tokens, _) in zip(prompts, answers)]
    assert sum(isinstance(part, FSDPModule) for part in built.module.modules()) == 3
    assert all(isinstance(weight, DTensor) for weight in built.module.parameters())
    with torch.no_grad(), built.eval_mode():
        output = built.infer_batch(make_batch(answered, 1.0))["model_output"]
    for found, (_, log_probs) in zip(at_answers(output["log_probs"], answered), answers):
        torch.testing.assert_close(found, torch.tensor(log_probs), atol=1e-5, rtol=0)
