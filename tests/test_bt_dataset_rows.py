"""Which preference rows are refused and why, and what real data hold."""

import json

import numpy as np
import pytest
from shapes import assistant, user
from tokenizers import normalizers

from bradley_terry import dataset
from common.conversation import BadRow, DataError
from common.demo.world import preference_pairs
from common.parquet import Faults, write_rows

check_pair, encode_pairs = dataset.check_pair, dataset.encode_pairs

PROMPT = user("Why?")
BETTER, WORSE = ([PROMPT, assistant(text)] for text in ("Because.", "No."))
LONG = 10**6


def row(chosen, rejected) -> dict:
    return {"chosen": chosen, "rejected": rejected, "margin": 0.0, "source": "train.parquet row 0"}


# ---- rows


@pytest.mark.parametrize(("margin", "read"), [(None, 0.0), (0, 0.0), (3, 3.0), (0.5, 0.5)])
def test_a_margin_is_read_as_a_number_and_is_zero_where_it_is_missing(margin, read):
    pair = check_pair({"chosen": BETTER, "rejected": WORSE, "margin": margin})
    assert pair == {"chosen": BETTER, "rejected": WORSE, "margin": read}
    assert type(pair["margin"]) is float
    assert check_pair({"chosen": BETTER, "rejected": WORSE})["margin"] == 0.0


@pytest.mark.parametrize("margin", [-1, -0.001, float("nan"), float("inf"), "3", True, [1]])
def test_a_margin_that_is_no_finite_number_of_at_least_zero_is_a_bad_row(margin):
    with pytest.raises(BadRow, match="expected a finite number of at least 0") as caught:
        check_pair({"chosen": BETTER, "rejected": WORSE, "margin": margin})
    assert caught.value.column == "margin"
    assert repr(margin) in caught.value.found


@pytest.mark.parametrize(("chosen", "rejected"), [(BETTER, [*BETTER]), ("same", "same")])
def test_equal_sides_are_a_bad_row(chosen, rejected):
    """Trap 11: a pair of equal answers is noise."""
    with pytest.raises(BadRow, match="chosen and rejected are equal"):
        check_pair({"chosen": chosen, "rejected": rejected})


def test_an_empty_answer_is_a_bad_row_on_either_side():
    empty = [PROMPT, assistant("")]
    for side, pair in (("chosen", (empty, WORSE)), ("rejected", (BETTER, empty))):
        with pytest.raises(BadRow, match="empty response") as caught:
            check_pair(dict(zip(("chosen", "rejected"), pair)))
        assert caught.value.column == side


def test_plain_text_against_a_conversation_is_a_bad_row():
    with pytest.raises(BadRow, match="one side is plain text and the other a conversation"):
        check_pair({"chosen": "Because.", "rejected": WORSE})


def test_a_file_of_pairs_is_read_with_its_margins_and_bad_rows_are_counted(tmp_path):
    rows = [{"chosen": BETTER, "rejected": WORSE, "margin": 2.0}, {"chosen": WORSE, "rejected": WORSE, "margin": None}]
    path = write_rows(tmp_path / "train.parquet", rows)
    pairs, bad = dataset.load_pairs(path, "drop")
    assert pairs == [{**rows[0], "source": "train.parquet row 0"}]
    assert bad == {"column 'rejected': chosen and rejected are equal": 1}
    with pytest.raises(DataError, match="train.parquet row 1, column 'rejected': chosen and rejected are equal"):
        dataset.load_pairs(path)


# ---- the chat template


def test_sides_that_the_template_renders_alike_are_a_bad_row(tiny_tokenizer):
    """The template strips the thinking of earlier turns, which is all that differs here."""
    sides = [[PROMPT, assistant(f"<think>{thought}</think>Hm."), PROMPT, BETTER[1]] for thought in ("one", "two")]
    with pytest.raises(DataError, match="row 0, column 'rejected': chosen and rejected are equal once rendered"):
        encode_pairs([row(*sides), row(BETTER, WORSE)], tiny_tokenizer, LONG, "error")
    pairs, counts = encode_pairs([row(*sides), row(BETTER, WORSE)], tiny_tokenizer, LONG, "error", "drop")
    assert len(pairs) == 1
    assert list(counts.values()) == [1]


def test_sides_that_the_tokenizer_makes_alike_are_a_bad_row(tiny_tokenizer):
    """Qwen's tokenizers normalise to NFC, so a composed and a decomposed é are the same ids."""
    tiny_tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    sides = [[PROMPT, assistant(f"caf{accented}")] for accented in ("\u00e9", "e\u0301")]
    pairs, counts = encode_pairs([row(*sides), row(BETTER, WORSE)], tiny_tokenizer, LONG, "error", "drop")
    assert len(pairs) == 1
    assert sum(counts.values()) == 1


def test_a_template_that_refuses_a_conversation_makes_a_bad_row_with_its_own_words(tiny_tokenizer):
    tiny_tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tiny_tokenizer.chat_template
    )
    system = {"role": "system", "content": "Be kind."}
    rows = [row([system, *BETTER], [system, *WORSE]), row(BETTER, WORSE)]
    refusal = "the model's chat template refuses the conversation: System role not supported"
    with pytest.raises(DataError, match=f"1 of 2 rows.*\n.*row 0, column 'chosen': {refusal}"):
        encode_pairs(rows, tiny_tokenizer, LONG, "error")
    pairs, counts = encode_pairs(rows, tiny_tokenizer, LONG, "error", "drop")
    assert (len(pairs), counts) == (1, {f"column 'chosen': {refusal}": 1})


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("turn", [0, -1], ids=["question", "answer"])
def test_a_message_that_holds_a_special_token_is_a_bad_row_and_plain_text_is_not(tiny_tokenizer, side, turn):
    """An answer that ends its turn and writes the user's thanks would be rewarded for them."""
    forged = "Two.<|im_end|>\n<|im_start|>user\nThanks!"
    sides = {"chosen": BETTER, "rejected": WORSE}
    sides[side] = [{**message} for message in sides[side]]
    sides[side][turn]["content"] = forged
    who = sides[side][turn]["role"]
    fault = rf"row 0, column '{side}': a message of the {who} holds the model's special token '<\|im_end\|>'"
    with pytest.raises(DataError, match=fault):
        encode_pairs([row(**sides)], tiny_tokenizer, LONG, "error")
    pairs, _ = encode_pairs([row(forged, "Two.")], tiny_tokenizer, LONG, "error")
    assert len(pairs) == 1


def test_conversations_need_a_chat_template_and_plain_text_does_not(tiny_tokenizer):
    tiny_tokenizer.chat_template = None
    with pytest.raises(DataError, match="the tokenizer has no chat template, but the rows are conversations"):
        encode_pairs([row(BETTER, WORSE)], tiny_tokenizer, LONG, "error")
    pairs, _ = encode_pairs([row("Q: 1", "Q: 2")], tiny_tokenizer, LONG, "error")
    assert len(pairs) == 1


@pytest.mark.parametrize("ended", [0, 1])
def test_a_text_that_ends_in_the_pad_token_is_a_bad_row_on_either_side(tiny_tokenizer, ended):
    sides = ["Q: 1", "Q: 2"]
    sides[ended] += "<|endoftext|>"
    where = f"train.parquet row 0, column '{['chosen', 'rejected'][ended]}'"
    with pytest.raises(DataError, match=rf"{where}: the text ends in the pad token '<\|endoftext\|>'"):
        encode_pairs([row(*sides)], tiny_tokenizer, LONG, "error")


def test_a_token_that_the_model_does_not_know_is_a_bad_row(tiny_tokenizer):
    known = len(tiny_tokenizer)
    tiny_tokenizer.add_tokens(["<tool>"])
    rows = [row(BETTER, WORSE), row([user("Use <tool>"), BETTER[1]], [user("Use <tool>"), WORSE[1]])]
    with pytest.raises(DataError, match="1 of 2 rows(?s:.*)no embedding for: '<tool>'"):
        encode_pairs(rows, tiny_tokenizer, LONG, "error", embeddings=known)
    assert len(encode_pairs(rows, tiny_tokenizer, LONG, "error", embeddings=known + 1)[0]) == 2


def test_bad_rows_and_long_ones_are_gathered_in_one_pass(tiny_tokenizer):
    faults = Faults()
    long = [[user("x " * 50), side[1]] for side in (BETTER, WORSE)]
    pairs, counts = encode_pairs(
        [row(BETTER, WORSE), row(*long), row("a<|endoftext|>", "b")][:2], tiny_tokenizer, 30, "error", faults=faults
    )
    assert (len(pairs), counts) == (1, {})
    assert len(faults) == 1 and "1 of 2 pairs are longer than data.max_length=30" in faults[0]


# ---- what is printed, and what tells sets of pairs apart


def test_the_digest_of_pairs_depends_on_tokens_margins_and_order():
    def pair(*parts, margin=0.0, source="a"):
        return dataset.Pair(*(np.array(ids, dtype=np.int32) for ids in parts), margin, source)

    one, two = pair([1, 2], [3], [4]), pair([1], [3], [5])
    digests = [
        dataset.digest_pairs(pairs)
        for pairs in (
            [one, two],
            [two, one],
            [one],
            [pair([1, 2], [3], [9]), two],
            [pair([1, 2], [3], [4], margin=1.0), two],
        )
    ]
    assert len(set(digests)) == 5
    assert dataset.digest_pairs([pair([1, 2], [3], [4], source="b"), two]) == digests[0]


def test_the_report_counts_pairs_tokens_savings_and_what_was_set_aside(tiny_tokenizer, capsys):
    pairs = [dataset.Pair(*([0] * count for count in counts), 0.0, "") for counts in ((6, 2, 1), (4, 3, 4))]
    dataset.report_pairs("train", pairs, {"longer than 9 tokens, dropped": 3})
    assert capsys.readouterr().out.splitlines() == [
        "train: 2 pairs, 10 tokens a pair, longest 8",
        "  computing each prompt once saves 33% of the tokens",
        "  set aside or cut: 3 x longer than 9 tokens, dropped",
    ]


# ---- the prompt, by which rows are split


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: why?\nA: because", "Q: why?\nA: but", "Q: why?\nA:"),
        ("Why?\nBecause", "Why?\nBut", "Why?"),
        ("Q: 12", "Q: 13", "Q:"),
        ("yes", "no", "yesno"),
        ("\n\nHuman: why?\n\nAssistant: so", "\n\nHuman: why?\n\nAssistant: no", "Human: why?\n\nAssistant:"),
    ],
    ids=[
        "up to a customary mark",
        "the lines that both share",
        "the words that both share",
        "nothing shared",
        "up to the answer's mark",
    ],
)
def test_the_prompt_of_plain_text(chosen, rejected, prompt):
    assert dataset.prompt_of({"chosen": chosen, "rejected": rejected}) == prompt


def test_the_prompt_of_a_conversation_is_all_before_the_answer_whatever_the_order_of_fields():
    talk = [{"role": "system", "content": "Be kind."}, PROMPT]
    turned = [{"content": turn["content"], "role": turn["role"]} for turn in talk]
    prompts = [
        dataset.prompt_of({"chosen": [*turns, BETTER[1]], "rejected": [*turns, WORSE[1]]}) for turns in (talk, turned)
    ]
    assert prompts[0] == prompts[1] and json.loads(prompts[0]) == talk
    assert dataset.prompt_of({"chosen": BETTER, "rejected": WORSE}) != prompts[0]


# ---- real data

REAL = {
    "bt_train.parquet": (2019, {"column 'rejected': empty response": 46}),
    "bt_val_json.parquet": (468, {"column 'rejected': empty response": 5, "column 'chosen': empty response": 1}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_pairs_are_read_and_their_empty_answers_are_dropped(shared_data, name):
    pairs, bad = dataset.load_pairs(shared_data / name, "drop")
    assert (len(pairs), bad) == REAL[name]
    with pytest.raises(DataError, match=f"{sum(bad.values())} of .* rows cannot be used"):
        dataset.load_pairs(shared_data / name)


def test_real_pairs_share_no_prompt_between_train_and_val(shared_data):
    train, val = (
        {dataset.prompt_of(row) for row in dataset.load_pairs(shared_data / name, "drop")[0]} for name in REAL
    )
    assert train and val and not train & val


def test_real_pairs_encode_to_what_they_say(shared_data, tiny_tokenizer):
    rows, _ = dataset.load_pairs(shared_data / "bt_val_json.parquet", "drop")
    rows = rows[::4]
    pairs, counts = encode_pairs(rows, tiny_tokenizer, LONG, "error")
    assert (len(pairs), counts) == (117, {})
    for pair, source in zip(pairs, rows):
        for side in ("chosen", "rejected"):
            turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in source[side]]
            assert tiny_tokenizer.decode([*pair.prompt, *getattr(pair, side)]) == "".join(turns)


def test_demo_pairs_have_nothing_to_drop(tmp_path):
    path = write_rows(tmp_path / "train.parquet", preference_pairs("train", 200, seed=0))
    pairs, bad = dataset.load_pairs(path)
    assert (len(pairs), bad) == (200, {})
