"""Metrics of a reward model on cases counted by hand, and rewards that do not depend on the batch."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from test_page import held_by
from transformers import AutoModelForSequenceClassification

from bradley_terry import dataset, evaluate, page
from common.demo.world import preference_pairs
from common.parquet import write_rows

pair_metrics, score_pairs, calibration_error = evaluate.pair_metrics, evaluate.score_pairs, evaluate.calibration_error


def pair(chosen: int = 1, rejected: int = 1, prompt: int = 0, margin: float = 0.0):
    """A pair of so many tokens."""
    return dataset.Pair(*(np.zeros(count, dtype=np.int32) for count in (prompt, chosen, rejected)), margin, "row")


def metrics_of(margins: list[float], pairs: list) -> dict[str, float]:
    rewards = np.array([[margin + 1, 1] for margin in margins], dtype=np.float32)
    return pair_metrics(rewards, pairs)


def test_accuracy_margins_and_loss_of_four_pairs():
    """By hand: differences 2, 1, 0, -1; mean 0.5, variance 6/4 - 1/4."""
    metrics = metrics_of([2, 1, 0, -1], [pair()] * 4)
    assert metrics["pairs"] == 4
    assert metrics["accuracy"] == 0.5
    assert metrics["tie_rate"] == 0.25
    assert metrics["margin_mean"] == 0.5
    assert metrics["margin_std"] == pytest.approx(math.sqrt(1.25))
    assert metrics["log_loss"] == pytest.approx((0.1269280 + 0.3132617 + 0.6931472 + 1.3132617) / 4, abs=1e-6)


def test_a_scorer_that_gives_every_text_the_same_reward_is_wrong_everywhere():
    """Trap 29: a tie is never a win, so a constant scorer does not reach the majority baseline."""
    metrics = metrics_of([0, 0, 0], [pair()] * 3)
    assert (metrics["accuracy"], metrics["tie_rate"], metrics["majority_accuracy"]) == (0.0, 1.0, 0.5)


def test_rewards_that_differ_by_one_bit_are_no_tie():
    rewards = np.array([[np.nextafter(np.float32(100), np.float32(101)), 100]], dtype=np.float32)
    metrics = pair_metrics(rewards, [pair()])
    assert (metrics["accuracy"], metrics["tie_rate"]) == (1.0, 0.0)


def test_the_length_baseline_counts_equal_lengths_one_half_and_ignores_the_prompt():
    pairs = [pair(5, 2), pair(2, 5), pair(3, 3, prompt=9), pair(4, 1)]
    assert metrics_of([1] * 4, pairs)["longer_wins_accuracy"] == (1 + 0 + 0.5 + 1) / 4


def test_accuracy_by_which_answer_is_longer():
    """A model that likes length: right where chosen is longer, wrong where it is shorter."""
    metrics = metrics_of([1, 2, -1, -2, 3], [pair(5, 2), pair(4, 1), pair(2, 5), pair(1, 4), pair(2, 2)])
    assert (metrics["accuracy_chosen_longer"], metrics["accuracy_chosen_shorter"]) == (1.0, 0.0)
    assert metrics["accuracy"] == 0.6


def test_accuracy_on_the_pairs_with_fewest_and_most_tokens():
    """By hand: tokens 2, 3, …, 9; quartiles 3.75 and 7.25, so the two shortest and the two longest pairs count."""
    metrics = metrics_of([1, 1, -1, -1, -1, -1, -1, 1], [pair(1, 1, prompt=number) for number in range(8)])
    assert (metrics["accuracy_short_quarter"], metrics["accuracy_long_quarter"]) == (1.0, 0.5)


def test_accuracy_by_the_datas_margin():
    pairs = [pair(margin=margin) for margin in (1, 1, 2.5, 2.5, 0)]
    metrics = metrics_of([1, -1, 1, 1, -1], pairs)
    by_margin = {name: value for name, value in metrics.items() if name.startswith("accuracy_margin_")}
    assert by_margin == {"accuracy_margin_1": 0.5, "accuracy_margin_2.5": 1.0}


@pytest.mark.parametrize("margins", [[0, 0, 0], [2, 2, 2], range(1, 12)], ids=["none", "one", "eleven"])
def test_no_accuracy_by_margin_where_margins_are_missing_all_alike_or_too_many(margins):
    metrics = metrics_of([1] * len(margins), [pair(margin=margin) for margin in margins])
    assert not [name for name in metrics if name.startswith("accuracy_margin_")]


def test_empty_subsets_are_left_out_and_every_figure_is_a_number():
    metrics = metrics_of([1, -1], [pair(3, 3), pair(2, 2)])
    assert "accuracy_chosen_longer" not in metrics and "accuracy_chosen_shorter" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())


def test_calibration_error_of_known_cases():
    """By hand: confidence σ(log 3) = 0.75. Right three times of four, the gap is 0; always right, 0.25; never, 0.75."""
    margin = math.log(3)
    assert calibration_error(np.array([margin, margin, margin, -margin])) == pytest.approx(0, abs=1e-12)
    assert calibration_error(np.array([margin] * 4)) == pytest.approx(0.25)
    assert calibration_error(np.array([-margin] * 4)) == pytest.approx(0.75)


def test_calibration_error_weighs_each_bin_by_its_pairs_and_takes_any_margin():
    """By hand: three sure and right pairs (gap 0), one at 0.75 and wrong (gap 0.75): 0.75 / 4."""
    assert calibration_error(np.array([1e4, 800.0, 50.0, -math.log(3)])) == pytest.approx(0.75 / 4)
    assert calibration_error(np.array([-1e4])) == pytest.approx(1.0)


# ---- scoring


@pytest.fixture(scope="module")
def reward_model(tiny_model):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1, dtype=torch.float32)
    return model.eval()


@pytest.fixture
def pairs(tiny_tokenizer):
    rows = [{**row, "source": ""} for row in preference_pairs("test", 12, seed=0)]
    short, long = ([{"role": "assistant", "content": text}] for text in ("1", "2 and much more " * 20))
    rows.append({"chosen": short, "rejected": long, "margin": 0.0, "source": ""})
    return dataset.encode_pairs(rows, tiny_tokenizer, 10**6, "error")[0]


@torch.inference_mode()
def scored_alone(model, pairs) -> np.ndarray:
    """Each side in a batch of its own, the reward head at its last token: no padding, no pooling."""
    rewards = []
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            ids = torch.from_numpy(np.concatenate([pair.prompt, side])).long()
            rewards.append(model.score(model.model(input_ids=ids[None]).last_hidden_state[0, -1]).item())
    return np.array(rewards).reshape(-1, 2)


@pytest.mark.parametrize("max_tokens", [1, 100, 700, 10**6])
def test_rewards_are_those_of_each_text_alone_whatever_the_batch(reward_model, tiny_tokenizer, pairs, max_tokens):
    """Traps 1 and 12: read at the known end of each text, whatever the batch size, the padding and the other texts."""
    rewards = score_pairs(reward_model, pairs, tiny_tokenizer.pad_token_id, max_tokens)
    assert rewards.shape == (13, 2) and rewards.dtype == np.float32
    assert rewards.std() > 0.05  # the rewards differ by far more than the tolerance
    np.testing.assert_allclose(rewards, scored_alone(reward_model, pairs), atol=1e-5)


def test_rewards_follow_their_pairs_through_any_row_order(reward_model, tiny_tokenizer, pairs):
    order = np.random.default_rng(0).permutation(len(pairs))
    rewards = score_pairs(reward_model, pairs, tiny_tokenizer.pad_token_id, 700)
    shuffled = score_pairs(reward_model, [pairs[index] for index in order], tiny_tokenizer.pad_token_id, 700)
    np.testing.assert_allclose(shuffled, rewards[order], atol=1e-5)


@pytest.mark.parametrize("configured", [None, 7])
def test_rewards_do_not_depend_on_the_pad_token_in_the_models_config(reward_model, pairs, monkeypatch, configured):
    """Trap 1: transformers reads the last token that is not the config's pad token, maybe not the tokenizer's."""
    expected = scored_alone(reward_model, pairs)
    monkeypatch.setattr(reward_model.config, "pad_token_id", configured)
    np.testing.assert_allclose(score_pairs(reward_model, pairs, 0, 700), expected, atol=1e-5)


# ---- the command


def test_the_command_writes_the_figures_that_the_pure_functions_give(
    reward_model, tiny_tokenizer, tmp_path, monkeypatch, capsys
):
    held_out = write_rows(tmp_path / "test.parquet", preference_pairs("test", 8, seed=0))
    model = tmp_path / "checkpoint"
    reward_model.save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    arguments = ["--model", str(model), "--data", str(held_out), "--output", str(tmp_path / "figures")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    evaluate.main()
    written = json.loads((tmp_path / "figures" / "evaluation_test.json").read_text())
    pairs, _ = dataset.encode_pairs(dataset.load_pairs(held_out)[0], tiny_tokenizer, 4096, "error")
    expected = pair_metrics(scored_alone(reward_model, pairs), pairs)
    assert written.pop("set_aside") == {}
    assert written == pytest.approx(expected, abs=1e-5)
    assert (tmp_path / "figures" / "evaluation_test.png").read_bytes().startswith(b"\x89PNG")
    assert "accuracy_margin_1" in capsys.readouterr().out
    (shown,) = held_by(tmp_path / "figures" / "evaluation_test.html")["sets"]
    margins = [row[1][shown["columns"].index("margin")] for row in shown["rows"]]
    assert margins == pytest.approx((scored_alone(reward_model, pairs) @ [1, -1]).tolist(), abs=1e-5)


# ---- the page


def test_a_pair_is_shown_with_its_texts_its_figures_and_whether_it_is_right():
    messages = [[{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": text}] for text in ("4", "5")]
    row = {"chosen": messages[0], "rejected": messages[1], "margin": 2.0, "source": "a.parquet row 7"}
    tokens = dataset.Pair(*(np.zeros(count, dtype=np.int32) for count in (5, 1, 2)), 2.0, "a.parquet row 7")
    shown = page.pair_examples("test", [tokens], np.array([[1.0, 3.0]], np.float32), {"a.parquet row 7": row})
    (example,) = shown.rows
    assert example.values == {
        "source": "a.parquet row 7",
        "right": "no",
        "margin": -2.0,
        "chosen": 1.0,
        "rejected": 3.0,
        "confidence": pytest.approx(1 / (1 + math.exp(-2))),
        "label strength": 2.0,
        "tokens": 8,
        "tokens of chosen": 1,
        "tokens of rejected": 2,
        "file": "a.parquet",
    }
    texts = [[(text.title, text.text) for column in band.columns for text in column] for band in example.bands]
    assert texts == [[("user", "2+2?")], [("chosen", "4"), ("rejected", "5")]]
    assert (
        example.key == dataset.digest_row(row) != dataset.digest_row({"chosen": messages[1], "rejected": messages[0]})
    )


def test_a_tie_is_shown_as_wrong_and_plain_text_is_cut_where_the_answers_begin():
    row = {"chosen": "Human: 2+2?\n\nAssistant: 4", "rejected": "Human: 2+2?\n\nAssistant: 5", "source": "row"}
    shown = page.pair_examples("test", [pair()], np.ones((1, 2), np.float32), {"row": row})
    assert shown.rows[0].values["right"] == "no" and "label strength" not in shown.rows[0].values
    texts = [text.text for band in shown.rows[0].bands for column in band.columns for text in column]
    assert texts == ["Human: 2+2?\n\nAssistant:", " 4", " 5"]


def test_sides_with_prompts_of_their_own_are_shown_with_both():
    first, second = ([{"role": "user", "content": text}, {"role": "assistant", "content": "4"}] for text in "ab")
    bands = page.pair_bands({"chosen": first, "rejected": second})
    assert [[column[0].text for column in band.columns] for band in bands] == [["a", "b"], ["4", "4"]]


def test_pairs_are_shown_and_pictured_by_their_subset(tmp_path):
    made = [
        {**row, "subset": name} for row, name in zip(preference_pairs("test", 3, seed=0), ("chat", "chat", "maths"))
    ]
    rows = {row["source"]: row for row in dataset.load_pairs(write_rows(tmp_path / "test.parquet", made))[0]}
    measured = [dataset.Pair(*[np.zeros(1, dtype=np.int32)] * 3, 1.0, source) for source in rows]
    rewards = np.array([[1, 0], [3, 0], [0, 5]], dtype=np.float32)
    shown = page.pair_examples("test", measured, rewards, rows)
    assert [row.values["subset"] for row in shown.rows] == ["chat", "chat", "maths"]
    assert shown.choices == ("right", "subset")
    assert page.pair_pictures("test", measured, rewards, rows)[-1].panel.series == {"chat": [1, 3], "maths": [-5]}
