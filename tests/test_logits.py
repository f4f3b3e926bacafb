"""What is read of logits chunk by chunk, against a language model's own forward: values, gradients, memory."""

import pytest
import torch
from live_bytes import LiveBytes
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from common import logits
from common.grpo.policy import read_answers
from common.packing import find_in_rows, pad, small_copy
from sft.engine import read_tokens

# families, and what their forward does to logits behind the head; None: nothing
FAMILIES = {
    "qwen3": None,
    "gemma2": {"final_logit_softcapping": 2.0},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.0625},
    "phi": None,  # a bias
    "gpt2": None,
    "olmo2": None,
    "qwen3_moe": None,
    "gpt_oss": None,
    "qwen3_next": None,
    "jamba": None,
}
NOT_SPLIT = "opt"  # its language model calls the decoder within its backbone


def model_of(family: str, **changes) -> PreTrainedModel:
    return small_copy(CONFIG_MAPPING[family](**(FAMILIES.get(family) or {}) | changes), AutoModelForCausalLM)


def forwards(model: PreTrainedModel, split: bool) -> tuple[list[dict], list[torch.Tensor]]:
    """Read two padded rows at 29 places as SFT and as GRPO do: in chunks, and from the model's own whole logits.

    Returns:
        The values; and the gradients, of a sum that weighs every value differently.
    """
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(1, 500, (length,), generator=generator) for length in (23, 12)]
    inputs = pad(sequences)
    places = find_in_rows([torch.arange(3, 22), torch.arange(1, 11)])
    targets = inputs["input_ids"][places[0], places[1] + 1]
    temperature = torch.linspace(0.5, 2.0, len(targets))

    def read(of_some: torch.Tensor, part: slice) -> dict[str, torch.Tensor]:
        return read_tokens(of_some, targets[part]) | read_answers(of_some, targets[part], temperature[part], True)

    whole = read(model(**inputs, use_cache=False).logits[places], slice(None))
    logits.let_forward_read(model, split)
    chunked = model(**inputs, use_cache=False, read=read, where=places)
    gradients = []
    for values in (whole, chunked):
        parts = (values[name] for name in ("losses", "log_probs", "entropy"))
        weights = torch.linspace(-1, 1, 3 * len(targets)).cos()
        model.zero_grad()
        (torch.cat(list(parts)) * weights).sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    return [whole, chunked], gradients


def assert_alike(values: list[dict], gradients: list[dict]) -> None:
    (whole, chunked), (of_whole, of_chunked) = values, gradients
    assert whole.keys() == chunked.keys() == {"losses", "correct", "log_probs", "entropy"}
    for name, expected in whole.items():
        torch.testing.assert_close(chunked[name], expected, rtol=1e-5, atol=1e-6)
    assert of_whole.keys() == of_chunked.keys()
    for name, expected in of_whole.items():
        # fp32 rounding; most of a recurrent layer's, whose order of additions follows the number of threads
        assert (of_chunked[name] - expected).norm() <= 5e-5 * expected.norm(), name


@pytest.mark.parametrize("chunk", [4, 29, 1024])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_the_models_own_forward(monkeypatch, family, chunk):
    monkeypatch.setattr(logits, "CHUNK", chunk)
    model = model_of(family)
    assert logits.can_be_split(model)
    assert_alike(*forwards(model, split=True))


@pytest.mark.parametrize("tied", [False, True])
def test_with_and_without_tied_weights(monkeypatch, tied):
    monkeypatch.setattr(logits, "CHUNK", 4)
    model = model_of("qwen3", tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert_alike(*forwards(model, split=True))


@pytest.mark.parametrize("family", [family for family, behind in FAMILIES.items() if behind])
def test_these_families_do_change_logits_behind_the_head(family):
    """A check of the check: with the head alone, the values would be others."""
    model, ids = model_of(family), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        own, hidden = model(ids).logits, model.base_model(ids).last_hidden_state
        assert (own - model.get_output_embeddings()(hidden)).abs().max() > 0.1 * own.std()


@pytest.mark.parametrize("chunk", [4, 1024])
def test_a_model_that_cannot_be_split_is_found_and_is_exact_all_the_same(monkeypatch, chunk):
    monkeypatch.setattr(logits, "CHUNK", chunk)
    model = model_of(NOT_SPLIT)
    assert not logits.can_be_split(model)
    assert_alike(*forwards(model, split=False))


def test_a_model_whose_logits_need_more_than_hidden_states_is_not_split():
    model = model_of("qwen3")

    class Shifted(type(model)):
        def forward(self, input_ids=None, **options):
            output = super().forward(input_ids, **options)
            if input_ids is not None:
                output.logits = output.logits + input_ids[..., None]
            return output

    assert logits.can_be_split(model)
    model.__class__ = Shifted
    assert not logits.can_be_split(model)


def test_afterwards_the_model_is_as_it_was():
    """Generation goes through the same forward, and so does whoever looks at its arguments."""
    import inspect

    model, other = model_of("qwen3"), model_of("qwen3")
    forwards(model, split=True)
    assert "forward" not in vars(model.base_model)
    assert inspect.signature(model.forward) == inspect.signature(other.forward)
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**prompt), other.generate(**prompt))


# ---- memory

VOCABULARY, FEW_TOKENS, MANY_TOKENS = 16384, 128, 512
LOGIT_BYTES = 4 * VOCABULARY  # of a token, in fp32


def peak_per_token(read, chunk: int, monkeypatch) -> float:
    """Bytes that one token more needs at the peak of a training step."""
    monkeypatch.setattr(logits, "CHUNK", chunk)
    config = Qwen3Config(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=8)
    config.num_attention_heads, config.num_key_value_heads = 2, 1
    model = AutoModelForCausalLM.from_config(config)
    logits.let_forward_read(model, split=True)
    peaks = []
    for tokens in (FEW_TOKENS, MANY_TOKENS):
        with LiveBytes() as memory:
            ids = torch.arange(tokens)[None]
            values = model(input_ids=ids, read=read, where=(0, ids[0]))
            sum(value.sum() for value in values.values()).backward()
        peaks.append(memory.peak)
        model.zero_grad()
    return (peaks[1] - peaks[0]) / (MANY_TOKENS - FEW_TOKENS)


def sft(of_some: torch.Tensor, part: slice) -> dict[str, torch.Tensor]:
    return read_tokens(of_some, torch.ones(len(of_some), dtype=torch.long))


def grpo(of_some: torch.Tensor, part: slice) -> dict[str, torch.Tensor]:
    ones = torch.ones(len(of_some))
    return read_answers(of_some, ones.long(), ones, entropy=True)


@pytest.mark.parametrize("read", [sft, grpo])
def test_the_memory_of_logits_does_not_grow_with_the_tokens(monkeypatch, read):
    assert peak_per_token(read, 32, monkeypatch) < 0.1 * LOGIT_BYTES
    assert peak_per_token(read, 10**6, monkeypatch) > 1.9 * LOGIT_BYTES, "the counter does not see logits"
