"""Pairs as trees: the packed row, the shared prefix, and token ids equal to those of the chat template."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import assistant, user
from tokenizers.processors import TemplateProcessing

from bradley_terry import dataset
from common.conversation import DataError
from common.demo.world import preference_pairs

Pair, encode_pairs = dataset.Pair, dataset.encode_pairs

LONG = 10**6


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def row(chosen, rejected, margin: float = 0.0, number: int = 0) -> dict:
    return {"chosen": chosen, "rejected": rejected, "margin": margin, "source": f"train.parquet row {number}"}


def demo_rows(count: int = 20) -> list[dict]:
    return [row(**pair, number=number) for number, pair in enumerate(preference_pairs("train", count, seed=0))]


def tokens(tokenizer, array) -> list[str]:
    return tokenizer.convert_ids_to_tokens(array.tolist())


# ---- the tree


def test_a_batch_is_laid_out_as_the_docstring_of_collate_shows():
    batch = dataset.collate([Pair(ids(1, 2), ids(3, 4), ids(5), 2.0, "a"), Pair(ids(), ids(6), ids(7, 8), 0.0, "b")])
    assert [line.tolist() for line in batch["input_ids"].unbind()] == [[1, 2, 3, 4, 5], [6, 7, 8]]
    assert [line.tolist() for line in batch["position_ids"].unbind()] == [[0, 1, 2, 3, 2], [0, 0, 1]]
    assert batch["branch_lengths"].tolist() == [[2, 2, 1], [0, 1, 2]]
    assert batch["margin"].tolist() == [2.0, 0.0]
    assert batch["place"].tolist() == [0, 1]
    assert batch["loss_mask"].tolist() == [[1.0], [1.0]]
    assert batch["input_ids"].dtype == batch["position_ids"].dtype == torch.int64
    assert batch["margin"].dtype == torch.float32


def test_each_side_keeps_the_positions_it_would_have_alone():
    pair = Pair(ids(*range(5)), ids(*range(3)), ids(*range(4)), 0.0, "a")
    positions = dataset.collate([pair])["position_ids"].values()
    prompt, chosen, rejected = positions.split([5, 3, 4])
    assert torch.cat([prompt, chosen]).tolist() == list(range(8))
    assert torch.cat([prompt, rejected]).tolist() == list(range(9))


def test_longest_counts_the_longer_side_and_tokens_the_packed_row():
    pair = Pair(ids(1, 2), ids(3, 4, 5), ids(6), 0.0, "a")
    assert (pair.longest, pair.tokens) == (5, 6)


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(TOKENS, TOKENS, TOKENS)
def test_prefix_and_branches_are_the_two_sides_and_neither_branch_is_empty(prompt, chosen, rejected):
    for left, right in ((chosen, rejected), (prompt + chosen, prompt + rejected), (prompt, prompt + chosen)):
        shared = dataset.shared_prefix(np.array(left), np.array(right))
        assert left[:shared] == right[:shared]
        assert left[shared:] and right[shared:]
        assert left[shared] != right[shared] or 1 in (len(left) - shared, len(right) - shared)  # the prefix is longest


# ---- token ids


def test_ids_of_both_sides_are_those_of_the_chat_template(tiny_tokenizer):
    rows = demo_rows()
    thinking = assistant("<think>\nb\n</think>\nc")
    rows.append(row([user("a"), thinking, user("d\n"), assistant(" é😀 ")], [assistant("f")]))
    pairs, counts = encode_pairs(rows, tiny_tokenizer, LONG, "error")
    assert counts == {}
    assert [pair.source for pair in pairs] == [row["source"] for row in rows]
    for pair, source in zip(pairs, rows):
        for side in ("chosen", "rejected"):
            expected = tiny_tokenizer.apply_chat_template(source[side], tokenize=True, return_dict=True)["input_ids"]
            assert np.concatenate([pair.prompt, getattr(pair, side)]).tolist() == expected


def test_the_prompt_of_demo_pairs_holds_the_user_turn_and_each_side_ends_with_the_turn(tiny_tokenizer):
    """Trap 1: the reward is read at the last token, which must be the end of the turn and never a pad token."""
    pairs, _ = encode_pairs(demo_rows(), tiny_tokenizer, LONG, "error")
    for pair, source in zip(pairs, demo_rows()):
        assert tiny_tokenizer.decode(pair.prompt).startswith(
            f"<|im_start|>user\n{source['chosen'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        )
        for side in (pair.chosen, pair.rejected):
            assert tokens(tiny_tokenizer, side)[-2:] == ["<|im_end|>", "Ċ"]  # Ċ is a line feed in byte-level BPE
            assert tiny_tokenizer.pad_token_id not in side


def add_bos(tokenizer) -> None:
    """Make the tokenizer begin each text with <s> when it adds special tokens, as Llama's does."""
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def test_a_template_that_writes_the_bos_token_gives_one_bos_and_not_two(tiny_tokenizer):
    """Trap 2."""
    add_bos(tiny_tokenizer)
    tiny_tokenizer.chat_template = "{{ bos_token }}" + tiny_tokenizer.chat_template
    (pair,), _ = encode_pairs(demo_rows(1), tiny_tokenizer, LONG, "error")
    assert tokens(tiny_tokenizer, pair.prompt)[:3] == ["<s>", "<|im_start|>", "user"]
    expected = tiny_tokenizer.apply_chat_template(demo_rows(1)[0]["chosen"], return_dict=True)["input_ids"]
    assert np.concatenate([pair.prompt, pair.chosen]).tolist() == expected


def test_plain_text_is_tokenised_as_it_is_with_the_tokenizers_own_special_tokens(tiny_tokenizer):
    (pair,), _ = encode_pairs([row("Q: 12", "Q: 13")], tiny_tokenizer, LONG, "error")
    assert tiny_tokenizer.decode(pair.prompt) == "Q: 1"
    assert [tiny_tokenizer.decode(side) for side in (pair.chosen, pair.rejected)] == ["2", "3"]
    add_bos(tiny_tokenizer)
    (pair,), _ = encode_pairs([row("Q: 12", "Q: 13")], tiny_tokenizer, LONG, "error")
    assert tiny_tokenizer.decode(pair.prompt) == "<s>Q: 1"


def test_plain_text_among_conversations_is_refused_because_its_ids_would_depend_on_the_other_rows(tiny_tokenizer):
    """Trap 12: alone, plain text gets the tokenizer's special tokens; beside conversations it would go without."""
    with pytest.raises(DataError, match="plain text and conversations"):
        encode_pairs([row("Q: 12", "Q: 13"), *demo_rows(1)], tiny_tokenizer, LONG, "error")


def test_rows_beyond_one_tokenizer_call_keep_their_own_text_and_margin(tiny_tokenizer, monkeypatch):
    at_once, _ = encode_pairs(demo_rows(7), tiny_tokenizer, LONG, "error")
    monkeypatch.setattr(dataset, "TOKENIZE_AT_ONCE", 3)
    in_chunks, _ = encode_pairs(demo_rows(7), tiny_tokenizer, LONG, "error")
    for left, right, source in zip(at_once, in_chunks, demo_rows(7)):
        assert left.margin == right.margin == source["margin"]
        assert left.source == right.source == source["source"]
        for part in ("prompt", "chosen", "rejected"):
            assert getattr(left, part).tolist() == getattr(right, part).tolist()


def test_a_pair_is_shown_with_its_branches_marked(tiny_tokenizer):
    (pair,), _ = encode_pairs([row("Q: 12", "Q: 134")], tiny_tokenizer, LONG, "error")
    shown = dataset.describe(pair, tiny_tokenizer)
    start = f"[both start with, tokens: {len(pair.prompt)}]\nQ: 1\n"
    assert shown == f"{start}[chosen goes on, tokens: 1]\n2\n[rejected goes on, tokens: 2]\n34"


# ---- length: every digit is one token, so the texts below have as many tokens as digits

CUT = row("1234567890" + "22", "1234567890" + "333")  # prompt 10, chosen 2, rejected 3: the longer side has 13
TOO_LONG = row("12" + "2" * 12, "12" + "3" * 11, number=1)  # prompt 2, chosen 12
SHORT = row("12", "13", number=2)


def decoded(pair, tokenizer) -> list[str]:
    return [tokenizer.decode(part) for part in (pair.prompt, pair.chosen, pair.rejected)]


def test_a_pair_of_exactly_max_length_is_kept_whole(tiny_tokenizer):
    (pair,), counts = encode_pairs([CUT], tiny_tokenizer, 13, "error")
    assert (decoded(pair, tiny_tokenizer), counts) == (["1234567890", "22", "333"], {})


def test_truncation_error_names_the_longest_pairs_and_the_remedies(tiny_tokenizer):
    with pytest.raises(DataError) as caught:
        encode_pairs([CUT, TOO_LONG, SHORT], tiny_tokenizer, 11, "error")
    assert str(caught.value).splitlines() == [
        "2 of 3 pairs are longer than data.max_length=11 tokens. The longest:",
        "  train.parquet row 1: 14 tokens",
        "  train.parquet row 0: 13 tokens",
        "Raise data.max_length (--max-length) if the model reads more, or set data.truncation (--truncation):",
        "drop leaves them out, left cuts the start of the prompt.",
    ]


def test_truncation_drop_leaves_long_pairs_out_and_counts_them(tiny_tokenizer):
    pairs, counts = encode_pairs([CUT, TOO_LONG, SHORT], tiny_tokenizer, 11, "drop")
    assert [pair.source for pair in pairs] == ["train.parquet row 2"]
    assert counts == {"longer than 11 tokens, dropped": 2}


def test_truncation_left_cuts_one_prompt_for_both_sides_and_never_an_answer(tiny_tokenizer):
    """Trap 7: cutting each side by itself would leave chosen and rejected with different prompts."""
    pairs, counts = encode_pairs([CUT, TOO_LONG, SHORT], tiny_tokenizer, 11, "left")
    by_source = {pair.source: decoded(pair, tiny_tokenizer) for pair in pairs}
    assert by_source == {
        "train.parquet row 0": ["34567890", "22", "333"],
        "train.parquet row 2": ["1", "2", "3"],
    }
    assert counts == {"longer than 11 tokens, prompt cut": 1, "longer than 11 tokens, dropped": 1}
    assert max(pair.longest for pair in pairs) == 11


def test_truncation_left_may_cut_the_whole_prompt_but_no_more(tiny_tokenizer):
    (pair,), _ = encode_pairs([CUT], tiny_tokenizer, 3, "left")
    assert decoded(pair, tiny_tokenizer) == ["", "22", "333"]
    with pytest.raises(DataError, match="no usable pair: all 1 are longer than data.max_length=2 tokens"):
        encode_pairs([CUT], tiny_tokenizer, 2, "left")


def test_an_unknown_truncation_is_refused_with_the_known_ones(tiny_tokenizer):
    with pytest.raises(DataError, match="data.truncation='right': expected one of error, drop, left"):
        encode_pairs([SHORT], tiny_tokenizer, LONG, "right")
