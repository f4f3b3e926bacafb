"""Figures of a language model and of a judge on cases counted by hand, and measurements no batch changes."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from common.demo.world import pairwise_rows, pointwise_rows
from common.judge import write_score
from common.labelled import pairwise_transcripts, pointwise_transcript
from sft import dataset, evaluate

judge_metrics, confusion, token_metrics = evaluate.judge_metrics, evaluate.confusion, evaluate.token_metrics


def test_every_trained_token_weighs_the_same_in_whichever_conversation_it_lies():
    """By hand: losses 1, 1, 1 and 5: mean 2, where the mean of the conversations' means is 3; three of four correct."""
    metrics = token_metrics([np.array([[1.0, 1, 1], [1, 1, 1]]), np.array([[5.0], [0]])])
    assert metrics == {
        "conversations": 2,
        "trained_tokens": 4,
        "loss": 2.0,
        "perplexity": pytest.approx(math.exp(2)),
        "token_accuracy": 0.75,
    }


def test_many_small_fp32_losses_are_not_lost_beside_a_large_one():
    measured = [np.array([[1.0], [1]], dtype=np.float32), np.full((2, 1000), 1e-8, dtype=np.float32)]
    assert token_metrics(measured)["loss"] == pytest.approx((1 + 1e-5) / 1001, rel=1e-10)


# ---- a judge's figures


def test_figures_of_six_scores():
    """By hand: right 4 and 4; errors 0, 1, 3, 0, 2 over the five with a verdict; 0, 1, 0 within one, of six rows."""
    labels, verdicts = [4, 4, 4, 4, 2, 0], [4, 3, 1, 4, 4, None]
    assert judge_metrics(labels, verdicts) == {
        "rows": 6,
        "parse_rate": pytest.approx(5 / 6),
        "accuracy": pytest.approx(2 / 6),
        "majority_accuracy": pytest.approx(4 / 6),
        "within_one": pytest.approx(3 / 6),
        "mean_error": pytest.approx(6 / 5),
    }


def test_figures_of_five_preferences():
    labels, verdicts = ["A", "B", "tie", "tie", "tie"], ["A", "A", "tie", None, "B"]
    assert judge_metrics(labels, verdicts) == {
        "rows": 5,
        "parse_rate": 0.8,
        "accuracy": 0.4,
        "majority_accuracy": 0.6,
        "tie_recall": pytest.approx(1 / 3),
    }


def test_a_missing_verdict_is_wrong_whatever_the_label():
    """Trap 14: no label is 0 by being absent, and none is a tie."""
    for labels in ([0, 0, 2], ["tie", "tie", "A"]):
        metrics = judge_metrics(labels, [None] * 3)
        assert (metrics["parse_rate"], metrics["accuracy"], metrics["majority_accuracy"]) == (
            0,
            0,
            pytest.approx(2 / 3),
        )
        assert metrics.get("within_one", 0) == metrics.get("tie_recall", 0) == 0
        assert "mean_error" not in metrics


def test_there_is_no_recall_of_ties_where_there_are_none():
    assert "tie_recall" not in judge_metrics(["A", "B"], ["tie", "B"])


def test_the_confusion_has_a_row_a_label_and_a_column_for_no_verdict():
    labels, verdicts = ["A", "A", "B", "tie", "tie"], ["A", None, "A", "tie", None]
    assert confusion(labels, verdicts, ("A", "B", "tie")) == (
        ["A", "B", "tie"],
        ["A", "B", "tie", "no verdict"],
        [[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1]],
    )
    counts = confusion([0, 4, 4], [0, 0, None], tuple(range(5)))[2]
    assert counts[0] == [1, 0, 0, 0, 0, 0] and counts[4] == [1, 0, 0, 0, 0, 1] and counts[1] == [0] * 6


def test_judgements_are_found_by_the_last_turn_alone():
    def row(*turns):
        return {"messages": [{"role": "assistant", "content": turn} for turn in turns]}

    scored, compared = row("Hi", write_score(0)), row(write_score(1), "<think></think><preference>tie</preference>")
    rows = [row("Hi"), scored, row(write_score(2), "Thanks"), compared]
    assert evaluate.find_judgements(rows) == {"score": [(scored, 0)], "preference": [(compared, "tie")]}
    assert evaluate.find_judgements(rows[:1]) == {}


# ---- batches, measuring, generating


@pytest.mark.parametrize("max_tokens", [1, 10, 64, 10**6])
def test_batches_hold_each_index_once_and_pad_to_no_more_than_the_budget(max_tokens):
    lengths = np.random.default_rng(0).integers(0, 30, 50).tolist()
    batches = list(evaluate.batches_of(lengths, max_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(50))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= max_tokens
    assert len(batches) == {1: 50, 10**6: 1}.get(max_tokens, len(batches))
    assert list(evaluate.batches_of([], max_tokens)) == []


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@torch.inference_mode()
def measured_alone(model, example) -> np.ndarray:
    """One conversation without padding, -log softmax in float64."""
    ids = torch.from_numpy(example.ids).long()
    logits = model(input_ids=ids[None]).logits[0].double()
    places = [place for place in range(1, len(ids)) if example.mask[place]]
    losses = [-logits[place - 1].log_softmax(0)[ids[place]].item() for place in places]
    correct = [float(logits[place - 1].argmax() == ids[place]) for place in places]
    return np.array([losses, correct])


def test_tokens_are_measured_as_in_each_conversation_alone_whatever_the_batch(model, tiny_tokenizer):
    """Trap 12."""
    chats = [pointwise_transcript(row) for row in pointwise_rows("test", 4, seed=0)]
    chats += [pairwise_transcripts(row)[0] for row in pairwise_rows("test", 2, seed=0)]
    chats.append([{"role": role, "content": "Hi " * 30} for role in ("user", "assistant", "user", "assistant")])
    rows = [{"messages": messages, "source": str(number)} for number, messages in enumerate([*chats, chats[-1][2:]])]
    examples, _ = dataset.encode_conversations(rows, tiny_tokenizer, 4096, "error")
    alone = [measured_alone(model, example) for example in examples]
    for max_tokens in (1, 900, 10**6):
        measured = evaluate.measure_tokens(model, examples, tiny_tokenizer.pad_token_id, max_tokens)
        assert len(measured) == len(examples) == 8
        for example, values, expected in zip(examples, measured, alone):
            assert values.shape == (2, example.mask.sum())
            assert expected[0].std() > 0.01  # the losses differ by far more than the tolerance
            np.testing.assert_allclose(values[0], expected[0], atol=1e-5)
            np.testing.assert_array_equal(values[1], expected[1])


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
        assert evaluate.answer(model, tiny_tokenizer, prompts, 12, max_tokens) == [[text] for text in expected]


def test_sampling_set_by_the_checkpoint_is_not_used(model, tiny_tokenizer, monkeypatch):
    prompts = ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]
    expected = [answered_alone(model, tiny_tokenizer, prompts[0], 12, {tiny_tokenizer.eos_token_id})]
    sampling = GenerationConfig(do_sample=True, temperature=5.0, top_k=50, eos_token_id=tiny_tokenizer.eos_token_id)
    monkeypatch.setattr(model, "generation_config", sampling)
    assert evaluate.answer(model, tiny_tokenizer, prompts, 12, 10**6) == [[text] for text in expected]
