"""Where verl's own dataset of conversations fails, and what ours makes of the same rows."""

import jinja2
import pytest
from shapes import NO_THINKING, SHAPES, assistant, make_tokenizer, user
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

from common.parquet import write_rows
from common.tokenizer import set_template_options
from sft import dataset

PLAIN = [user("1?"), assistant("1."), user("2?"), assistant("2.")]
THOUGHTS = ["<think>\none\n</think>\n\n1.", "<think>\ntwo\n</think>\n\n2."]
THOUGHTFUL = [user("1?"), assistant(THOUGHTS[0]), user("2?"), assistant(THOUGHTS[1])]


def stock(path, name: str, ignore_mismatch: bool) -> tuple[str, str]:
    """verl's rendering of the first conversation, and what of it is trained on."""
    tokenizer = make_tokenizer(SHAPES[name])
    settings = {"ignore_input_ids_mismatch": ignore_mismatch, "apply_chat_template_kwargs": dict(SHAPES[name].options)}
    row = MultiTurnSFTDataset(str(path), tokenizer, {"pad_mode": "no_padding", "max_length": 999, **settings})[0]
    return tokenizer.decode(row["input_ids"]), tokenizer.decode(row["input_ids"][row["loss_mask"] == 1])


def ours(path, name: str) -> tuple[str, str]:
    tokenizer = make_tokenizer(SHAPES[name])
    rows, _ = dataset.load_conversations(path)
    set_template_options(tokenizer, dict(SHAPES[name].options), "data.template_options")
    (example,), _ = dataset.encode_conversations(rows, tokenizer, 999, "error")
    return tokenizer.decode(example.ids), tokenizer.decode(example.ids[example.mask])


def served(messages, name: str) -> str:
    """The conversation as a server of the model renders it."""
    return make_tokenizer(SHAPES[name]).apply_chat_template(messages, tokenize=False, **dict(SHAPES[name].options))


@pytest.mark.parametrize("messages", [PLAIN, THOUGHTFUL, PLAIN[:2]])
def test_the_stock_dataset_refuses_every_conversation_under_qwen3s_template(messages, tmp_path):
    """It renders each message alone, and Qwen3's template writes a think block into the last turn of a whole
    conversation only. verl compares the two and raises, naming a switch that ignores the difference.
    """
    path = write_rows(tmp_path / "train.parquet", [{"messages": messages}])
    with pytest.raises(AssertionError, match="ignore_input_ids_mismatch=True"):
        stock(path, "qwen3", ignore_mismatch=False)
    assert ours(path, "qwen3")[0] == served(messages, "qwen3")


def test_told_to_ignore_it_the_stock_dataset_trains_without_any_thinking(tmp_path):
    """An assistant message alone counts as one before the last question, so the template drops its thinking."""
    path = write_rows(tmp_path / "train.parquet", [{"messages": THOUGHTFUL}])
    text, trained = stock(path, "qwen3", ignore_mismatch=True)
    assert "think" not in text
    assert trained == "1.<|im_end|>\n2.<|im_end|>\n"
    text, trained = ours(path, "qwen3")
    assert text == served(THOUGHTFUL, "qwen3")
    assert trained == f"1.<|im_end|>{THOUGHTS[1]}<|im_end|>"


def test_told_to_ignore_it_the_stock_dataset_leaves_out_the_empty_think_block(tmp_path):
    """The model, served with thinking on, never sees an answer that begins without one."""
    path = write_rows(tmp_path / "train.parquet", [{"messages": PLAIN}])
    assert stock(path, "qwen3", ignore_mismatch=True)[1] == "1.<|im_end|>\n2.<|im_end|>\n"
    assert ours(path, "qwen3")[1] == f"1.<|im_end|>{NO_THINKING}2.<|im_end|>"


def test_with_thinking_switched_off_the_stock_dataset_leaves_out_the_first_four_tokens_of_each_answer(tmp_path):
    """It masks as many tokens as the generation prompt has, and that has a think block which the message has not.
    "1.<|im_end|>\\n" has four tokens: nothing at all is trained on.
    """
    path = write_rows(tmp_path / "train.parquet", [{"messages": PLAIN}])
    assert stock(path, "qwen3, thinking switched off", ignore_mismatch=True)[1] == ""
    assert ours(path, "qwen3, thinking switched off")[1] == "1.<|im_end|>2.<|im_end|>"


@pytest.mark.parametrize(("name", "trained"), [("gemma", "{}<end_of_turn>"), ("inst", " {}</s>")])
def test_the_stock_dataset_cannot_begin_under_a_template_that_refuses_two_questions_in_a_row(name, trained, tmp_path):
    """It renders two empty user messages to find a system prompt, before it reads any row."""
    path = write_rows(tmp_path / "train.parquet", [{"messages": PLAIN}])
    with pytest.raises(jinja2.TemplateError, match="take turns"):
        stock(path, name, ignore_mismatch=True)
    assert ours(path, name) == (served(PLAIN, name), trained.format("1.") + trained.format("2."))


def test_under_a_template_that_treats_each_message_alone_both_train_on_the_same(tmp_path):
    """But for the line feed behind the end of a turn, which verl trains on though no model is asked for it."""
    path = write_rows(tmp_path / "train.parquet", [{"messages": THOUGHTFUL}])
    text, trained = stock(path, "chatml", ignore_mismatch=False)
    assert ours(path, "chatml") == (text, trained.replace("<|im_end|>\n", "<|im_end|>"))
