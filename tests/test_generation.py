"""Answers of a transformers model: in batches, and greedy, as one prompt at a time gives them."""

import math
import random
from functools import partial

import pytest
import torch
from conftest import HYBRID
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GenerationConfig,
    MambaConfig,
    MistralConfig,
    MistralForCausalLM,
    NemotronConfig,
    OpenAIGPTConfig,
    Qwen3Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)

from common import generation
from common.attention import ANSWERING_ATTENTION
from common.conversation import DataError
from common.generation import (
    PLACES,
    SeededSampling,
    Way,
    answer_prompts,
    answering,
    batches_of,
    batches_to_answer,
    begun_answer,
    check_begun,
    generate_batch,
    load_answering,
)


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("prompt", "begun"),
    [
        ("<|im_start|>assistant\n", ""),
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
        ("Reason between <think> and </think>.", ""),  # the tags are said, not opened
        ("<think>Hm.</think>", ""),
        ("<｜Assistant｜></think>", "</think>"),
        ("<｜Assistant｜><think>", "<think>"),
        (" " * 100_000 + "<think>\n", "<think>\n"),
        ("", ""),
    ],
)
def test_what_a_prompt_has_begun_of_the_answer_stands_at_its_very_end(prompt, begun):
    """Trap 23."""
    assert begun_answer(prompt) == begun_answer(prompt, "a frame") == begun
    check_begun(prompt, "a frame")


# how the templates of other families end a prompt, and what then follows of the answer
OPENED = {
    "Magistral": ("[/INST]", "[THINK]"),
    "Seed-OSS": ("<seed:bos>assistant\n", "<seed:think>\n"),
    "Kimi VL": ("<|im_assistant|>assistant<|im_middle|>", "◁think▷"),
    "Kimi K3": ('<|open|>message role="assistant"<|sep|>', "<|open|>think<|sep|>"),
    "Command": ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|START_THINKING|>"),
    "EXAONE Deep": ("[|assistant|]", "<thought>\n"),
    "MiniMax M3": ("]~b]ai\n", "<mm:think>\n"),
    "LongCat": ("ASSISTANT:", "<longcat_think>\n"),
    "gpt-oss": ("<|start|>assistant", "<|channel|>analysis<|message|>"),
}
CLOSED = {
    "Gemma 4": ("<|turn>model\n", "<|channel>thought\n<channel|>"),
    "Seed-OSS, nothing to spend on thinking": ("<seed:think>\nNo budget.</seed:cot_budget_reflect>\n", "</seed:think>"),
    "Command": ("<|CHATBOT_TOKEN|>", "<|START_THINKING|><|END_THINKING|>"),
    "MiniMax M3": ("]~b]ai\n", "<mm:think>\n\n</mm:think>\n"),
    "Magistral": ("[/INST]", "[THINK]\n[/THINK] "),
}


@pytest.mark.parametrize(("head", "begun"), OPENED.values(), ids=OPENED)
def test_a_template_that_begins_with_other_thinking_tags_is_refused_unless_the_prompt_asks_for_them(head, begun):
    with pytest.raises(DataError, match="the chat template begins the answer with '.*PROMPT, write, parse"):
        check_begun(head + begun, "Reason between <think> and </think>.")
    frame = f"Reason between {begun} and so on."
    check_begun(head + begun, frame)
    assert begun_answer(head + begun, frame) == begun and begun_answer(head + begun) == begun_answer(head) == ""
    check_begun(head, "")


@pytest.mark.parametrize(("head", "begun"), CLOSED.values(), ids=CLOSED)
def test_behind_other_thinking_tags_that_are_closed_the_answer_begins(head, begun):
    check_begun(head + begun, "Reason between <think> and </think>.")
    assert begun_answer(head + begun) == "" and begun_answer(head + begun, f"Reason between {begun}.") == begun


@pytest.mark.parametrize("max_tokens", [1, 10, 64, 10**6])
def test_batches_hold_each_index_once_and_pad_to_no_more_than_the_budget(max_tokens):
    lengths = random.Random(0).choices(range(30), k=50)
    batches = list(batches_of(lengths, max_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(50))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= max_tokens
    assert len(batches) == {1: 50, 10**6: 1}.get(max_tokens, len(batches))
    assert list(batches_of([], max_tokens)) == []


@pytest.mark.parametrize("max_tokens", [1, 40, 100, 10**6])
def test_batches_of_answers_count_a_prompt_once_where_it_is_kept_once(max_tokens):
    draw = random.Random(0)
    texts = [draw.choices(range(9), k=draw.randrange(1, 20)) for _ in range(10)]
    prompts = [texts[draw.randrange(10)] for _ in range(50)]
    count = {}
    for way in (Way.BY_PROMPT, Way.BY_ROW):
        batches = list(batches_to_answer(prompts, 5, max_tokens, way))
        assert sorted(index for batch in batches for index in batch) == list(range(50))
        for batch in batches:
            chosen = [prompts[index] for index in batch]
            kept = len(set(map(tuple, chosen))) if way == Way.BY_PROMPT else len(chosen)
            assert len(batch) == 1 or kept * max(map(len, chosen)) + len(chosen) * 5 <= max_tokens
        count[way] = len(batches)
        assert list(batches_to_answer([], 5, max_tokens, way)) == []
    if max_tokens in (40, 100):
        assert count[Way.BY_PROMPT] < count[Way.BY_ROW]


def test_a_batch_is_filled_to_the_last_token():
    """Three of a prompt, and five new ones for each answer to it."""
    sizes = {most: [*map(len, batches_to_answer([[1, 2, 3]] * 4, 5, most, Way.BY_PROMPT))] for most in (22, 23)}
    assert sizes == {22: [3, 1], 23: [4]}


def test_a_prompt_with_many_answers_does_not_stand_beside_many_prompts_with_one():
    """Attention computes as many places for every prompt as the fullest one has rows."""
    prompts = [[1, 2, 3]] * 100 + [[4, 5, number] for number in range(100)]
    batches = list(batches_to_answer(prompts, 5, 10**6, Way.BY_PROMPT))
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    for batch in batches:
        rows = [tuple(prompts[index]) for index in batch]
        assert len(set(rows)) * max(map(rows.count, rows)) <= PLACES * len(rows)
    groups = [[1, 2, number] for number in range(100) for _ in range(8)]
    assert len(list(batches_to_answer(groups, 5, 10**6, Way.BY_PROMPT))) == 1


def test_where_a_prompt_of_one_token_keeps_all_from_being_shared_each_counts():
    prompts = [[1]] + [[1, 2, 3]] * 9
    assert max(map(len, batches_to_answer(prompts, 7, 30, Way.BY_PROMPT))) == 3


@torch.inference_mode()
def answered_alone(model, tokenizer, prompt: str, room: int, ends: set[int]) -> str:
    """Greedy, one token at a time, without cache or padding."""
    ids, written = tokenizer(prompt, add_special_tokens=False)["input_ids"], []
    while len(written) < room:
        token = model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax().item()
        if token in ends:
            break
        written.append(token)
    return tokenizer.decode(written)


def test_greedy_answers_are_those_of_each_prompt_alone_and_stop_at_an_end_token(model, tiny_tokenizer, monkeypatch):
    asked = ("Hi", "a garden " * 9, "1 2 3")
    prompts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in asked]
    free = [answered_alone(model, tiny_tokenizer, prompt, 12, set()) for prompt in prompts]
    # an untrained model does not end by itself: its end tokens shall be two that it writes
    written = [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] for text in free]
    ends = {written[0][4], written[1][7]}
    expected = [answered_alone(model, tiny_tokenizer, prompt, 12, ends) for prompt in prompts]
    assert len(set(expected)) == 3 and any(len(short) < len(long) for short, long in zip(expected, free))
    monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=sorted(ends)))
    for max_tokens in (1, 300, 10**6):
        assert answer_prompts(model, tiny_tokenizer, prompts, 12, max_tokens) == [[text] for text in expected]


def test_answers_that_are_known_are_not_asked_for_again(model, tiny_tokenizer, shared_prompts):
    """Five of six are left over from a killed command: also sampled answers are those of a command that ran whole."""
    prompts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in ("Hi", "Name one.", "Why?")]
    draws = {"temperature": 1.0, "votes": 2, "seed": 3}
    with answering(model):  # tried
        shared_prompts.clear()
    whole, kept = answer_prompts(model, tiny_tokenizer, prompts, 8, 10**6, **draws), {}
    assert shared_prompts
    known = {number: whole[number // 2][number % 2] for number in (0, 1, 2, 4, 5)}
    again = answer_prompts(model, tiny_tokenizer, prompts, 8, 10**6, **draws, known=known, keep=kept.__setitem__)
    assert again == whole and kept == {3: whole[1][1]} and whole[1][0] != whole[1][1]


def test_sampling_set_by_the_checkpoint_is_not_used(model, tiny_tokenizer, monkeypatch):
    prompts = ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]
    expected = [answered_alone(model, tiny_tokenizer, prompts[0], 12, {tiny_tokenizer.eos_token_id})]
    sampling = GenerationConfig(do_sample=True, temperature=5.0, top_k=50, eos_token_id=tiny_tokenizer.eos_token_id)
    monkeypatch.setattr(model, "generation_config", sampling)
    assert answer_prompts(model, tiny_tokenizer, prompts, 12, 10**6) == [[text] for text in expected]


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [(None, torch.float32), ((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_a_model_answers_in_bf16_where_a_gpu_has_it(monkeypatch, capability, dtype):
    def load(path, **options):
        assert options["dtype"] == dtype
        raise OSError("far enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(DataError, match="far enough"):
        load_answering("/")


@pytest.mark.parametrize("stage", [1, 5, 16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("window", [None, 8])
def test_answers_that_have_ended_leave_the_batch_and_change_no_other(
    tiny_tokenizer, monkeypatch, stage, temperature, window
):
    """Tokens are the same, log-probabilities to the rounding, also where layers keep only the latest tokens."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": window}
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(vocab_size=len(tiny_tokenizer), **shape, **heads)).eval()
    texts = ["Name two tools for our garden.", "Name one.", "Name one.", "Why?", "And what may we bring to the lake?"]
    prompts = tiny_tokenizer([f"<|im_start|>user\n{text}<|im_end|>\n" for text in texts])["input_ids"]
    draws = {"seeds": list(range(5)), "temperature": temperature}
    ask = partial(generate_batch, model, prompts, tiny_tokenizer.pad_token_id, 12, **draws)
    model.generation_config = GenerationConfig(eos_token_id=-1)
    free = [tokens for tokens, _ in ask()]
    # an untrained model does not end by itself: its end tokens shall be three that it writes
    model.generation_config = GenerationConfig(eos_token_id=[free[0][2], free[1][6], free[3][9]])
    expected, rows = ask(), []  # rows: in each call of the model
    monkeypatch.setattr(generation, "STAGE", stage)
    model.register_forward_pre_hook(lambda _, inputs, named: rows.append(len(named["input_ids"])), with_kwargs=True)
    with answering(model):
        tried = len(rows)
    with answering(model) as way:
        assert model.config._attn_implementation == ANSWERING_ATTENTION
        assert way == (Way.BY_ROW if window else Way.BY_PROMPT) and len(rows) == tried > 0  # not tried again
        answers = ask(way=way)
    assert model.config._attn_implementation == "sdpa"
    assert [tokens for tokens, _ in answers] == [tokens for tokens, _ in expected]
    assert len({len(tokens) for tokens, _ in answers}) >= 3
    for (tokens, log_probs), (_, others) in zip(answers, expected):
        assert len(log_probs) == len(tokens) and log_probs == pytest.approx(others, abs=1e-5)
    distinct, first, *later = rows[tried:]
    assert distinct == 4 and first == 5 and (min(later) < 5) == (stage < 12)


@pytest.mark.parametrize(
    "config",
    [
        Qwen3NextConfig(vocab_size=64, **HYBRID),  # recurrent layers in its cache
        RecurrentGemmaConfig(vocab_size=64, hidden_size=32, lru_width=32, num_hidden_layers=3, num_attention_heads=2),
        OpenAIGPTConfig(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2),  # no cache at all
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2),
    ],
    ids=lambda config: config.model_type,
)
def test_where_more_than_tokens_is_kept_no_answer_leaves_the_batch(config):
    """One answer ends early, one not at all."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=-1)
    free = [tokens for tokens, _ in generate_batch(model, [[5, 6, 7], [8, 9, 10]], 0, 5, [3, 4], 1.0)]
    end = next(token for token in free[0] if token not in free[1])
    model.generation_config = GenerationConfig(eos_token_id=end)
    with answering(model) as way:
        assert way == Way.WHOLE
        assert config.model_type != "qwen3_next" or model.config._attn_implementation == ANSWERING_ATTENTION
        answers = [tokens for tokens, _ in generate_batch(model, [[5, 6, 7], [8, 9, 10]], 0, 5, [3, 4], 1.0, way=way)]
    assert answers == [free[0][: free[0].index(end) + 1], free[1]] and len(answers[0]) < 5


@pytest.mark.parametrize("way", [Way.BY_PROMPT, Way.BY_ROW])
def test_equal_prompts_are_read_once_and_answered_as_if_each_were_read(model, tiny_tokenizer, shared_prompts, way):
    """Log-probabilities to the rounding; the tokens are the same."""
    with answering(model) as best:
        assert best == Way.BY_PROMPT
    shared_prompts.clear()
    texts = ["Name two tools for our garden.", "Name one.", "Name two tools for our garden.", "Name one.", "Why?"]
    prompts = tiny_tokenizer([f"<|im_start|>user\n{text}<|im_end|>\n" for text in texts])["input_ids"]
    sizes = []  # tokens in each call of the model
    noting = model.register_forward_pre_hook(
        lambda _, inputs, named: sizes.append(named["input_ids"].numel()), with_kwargs=True
    )
    ask = partial(generate_batch, model, prompts, tiny_tokenizer.pad_token_id, 12, list(range(5)), 1.0)
    expected = ask()
    with answering(model):
        answers = ask(way=way)
    noting.remove()
    longest = max(map(len, prompts))
    assert sizes[0] == 5 * longest and sizes.count(5 * longest) == 1  # all of them, only where each is read
    assert bool(shared_prompts) == (way == Way.BY_PROMPT)
    assert sizes[12:14] == [3 * (longest - 1), 5]  # the distinct prompts, then the last token of each
    assert [tokens for tokens, _ in answers] == [tokens for tokens, _ in expected]
    for (_, log_probs), (_, others) in zip(answers, expected):
        assert log_probs == pytest.approx(others, abs=1e-5)


def test_a_prompt_is_not_left_out_where_the_attention_would_not_see_it(model):
    with pytest.raises(ValueError, match="generate within `answering`"):
        generate_batch(model, [[5, 6, 7], [5, 6, 7]], 0, 4, [0, 1], way=Way.BY_PROMPT)


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "way"),
    [
        # both attend by code of their own
        (FalconConfig(**SMALL, alibi=False), Way.BY_ROW),
        (NemotronConfig(**SMALL, intermediate_size=64, num_key_value_heads=2), Way.BY_ROW),
        (Qwen3Config(**SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=8), Way.BY_PROMPT),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_faster_way_to_answer_is_taken_only_if_it_leaves_the_answers_as_they_are(config, way):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 if weight.ndim == 1 else 5)  # so that attention matters
    model.generation_config = GenerationConfig(eos_token_id=-1)
    prompts = [[5, 6, 7, 8], [9, 5], [9, 5], [5, 6, 7, 8], [7] * 9]
    ask = partial(generate_batch, model, prompts, 0, 20, list(range(5)), 1.0)
    expected = ask()
    with answering(model) as found:
        answers = ask(way=found)
    assert found == way and [tokens for tokens, _ in answers] == [tokens for tokens, _ in expected]
    for (_, log_probs), (_, others) in zip(answers, expected):
        assert log_probs == pytest.approx(others, abs=1e-4)


def test_no_number_is_noted_and_not_chosen_away():
    """A policy that is broken says so in its log-probabilities; one row's fault stays in this row."""
    scores = torch.zeros(3, 4)
    scores[0], scores[1, 2] = torch.nan, torch.nan
    sampling = SeededSampling([0, 1, 2], 1, torch.device("cpu"))
    sampling(None, scores)
    noted = torch.tensor(sampling.take_log_probs())[:, 0]
    assert noted.isnan().tolist() == [True, True, False] and noted[2] == pytest.approx(math.log(1 / 4))


def test_draws_follow_the_probabilities_and_only_their_own_seed():
    """Of 20,000 rows with neighbouring seeds, two tokens each; the tolerance is five standard errors."""
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.0, 0.15, 0.05])
    scores, seeds = probabilities.log(), list(range(20_000))
    sampling = SeededSampling(seeds, 2, torch.device("cpu"))
    first, second = (sampling(None, scores.expand(len(seeds), -1)).argmax(dim=-1) for _ in range(2))
    for drawn in (first, second):
        shares = torch.bincount(drawn, minlength=len(scores)) / len(seeds)
        assert ((shares - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / len(seeds)).sqrt()).all()
    both = ((first == 0) & (second == 0)).float().mean()
    assert both == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / len(seeds)) ** 0.5)  # not one by the other
    noted = torch.tensor(sampling.take_log_probs())
    assert torch.equal(noted, torch.stack([scores[first], scores[second]], dim=1))

    few = SeededSampling([7, 11], 2, torch.device("cpu"))
    assert few(None, scores.expand(2, -1)).argmax(dim=-1).tolist() == first[[7, 11]].tolist()
    few.keep([1])
    assert few(None, scores.expand(1, -1)).argmax(dim=-1).tolist() == second[[11]].tolist()
