"""The tiny model: the same bytes for the same seed, special tokens apart, any text decodes to itself, Qwen3's turns."""

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from common.demo.tiny_model import make_tokenizer, save_tiny_model
from common.demo.world import preference_pairs

USER = {"role": "user", "content": "Name two gifts."}
ANSWER = {"role": "assistant", "content": "A kettle."}


def files(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.run
def test_the_same_seed_writes_the_same_bytes_in_another_process_too(tiny_model, tmp_path):
    command = [sys.executable, "-m", "common.demo.tiny_model", "--output", str(tmp_path / "again"), "--seed", "0"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    assert files(tmp_path / "again") == files(tiny_model)


def test_another_seed_changes_the_weights_and_nothing_else(tiny_model, tmp_path):
    save_tiny_model(tmp_path, seed=1)
    ours, theirs = files(tiny_model), files(tmp_path)
    assert {name for name in ours | theirs if ours.get(name) != theirs.get(name)} == {"model.safetensors"}


def test_the_checkpoint_loads_as_a_qwen3_whose_special_ids_are_the_tokenizers(tiny_model, tiny_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.config.pad_token_id == tiny_tokenizer.pad_token_id
    assert model.config.eos_token_id == tiny_tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings >= len(tiny_tokenizer)


# ---- the tokenizer


def test_pad_end_and_start_of_a_turn_are_three_tokens(tiny_tokenizer):
    """Trap 1."""
    assert (tiny_tokenizer.pad_token, tiny_tokenizer.eos_token, tiny_tokenizer.bos_token) == (
        "<|endoftext|>",
        "<|im_end|>",
        None,
    )
    marks = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>"]
    ids = tiny_tokenizer.convert_tokens_to_ids(marks)
    assert len(set(ids)) == 5
    assert tiny_tokenizer("".join(marks))["input_ids"] == ids


def test_thinking_marks_survive_decoding_without_special_tokens(tiny_tokenizer):
    """Trap 23: a grader that decodes so must still see them."""
    ids = tiny_tokenizer("<think>\nHm.\n</think>\n\nA kettle.<|im_end|>")["input_ids"]
    assert tiny_tokenizer.decode(ids, skip_special_tokens=True) == "<think>\nHm.\n</think>\n\nA kettle."


TOKENIZER = make_tokenizer()


@given(st.text())
def test_any_text_decodes_to_itself(text):
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


HARD_TEXTS = ["it 's  a\tb \n\n c .", "日本語 عربى é e\u0301", "\u200b\ufeff\u202e\x00", "😀👩‍👩‍👧", " , ?"]


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_text_decodes_to_itself(text):
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_words_of_the_demo_world_are_one_token_each():
    text = " ".join(turn["content"] for pair in preference_pairs("test", 50, seed=3) for turn in pair["chosen"])
    words = set(re.findall(r" ([a-z]+)", text))
    assert len(words) > 50
    assert {word: len(TOKENIZER(f" {word}")["input_ids"]) for word in words} == dict.fromkeys(words, 1)


# ---- the chat template


def rendered(*messages: dict, **options) -> str:
    return TOKENIZER.apply_chat_template(list(messages), tokenize=False, **options)


def test_turns_are_rendered_as_chatml_and_a_system_message_is_one_of_them():
    system = {"role": "system", "content": "Be kind."}
    assert rendered(system, USER, ANSWER) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nName two gifts.<|im_end|>\n"
        "<|im_start|>assistant\nA kettle.<|im_end|>\n"
    )


def test_a_generation_prompt_opens_the_assistants_turn_and_without_thinking_an_empty_thought():
    turn = "<|im_start|>user\nName two gifts.<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(USER, add_generation_prompt=True) == turn
    assert rendered(USER, add_generation_prompt=True, enable_thinking=True) == turn
    assert rendered(USER, add_generation_prompt=True, enable_thinking=False) == f"{turn}<think>\n\n</think>\n\n"


def test_the_thinking_of_earlier_turns_is_stripped_and_that_of_the_last_kept():
    thinking = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nA kettle."}
    assert rendered(USER, thinking, USER, thinking) == (
        "<|im_start|>user\nName two gifts.<|im_end|>\n<|im_start|>assistant\nA kettle.<|im_end|>\n"
        "<|im_start|>user\nName two gifts.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nHm.\n</think>\n\nA kettle.<|im_end|>\n"
    )
