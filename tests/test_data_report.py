"""The report on data: what is planted is found and counted, and nothing is found where nothing is."""

import random
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO
from test_layers import imports_of

from common import data_report, similar_texts
from common.conversation import read_conversation, read_dialogue, read_json, read_responses
from common.data_report import CHOSEN_FIRST, TURNED, Item, dialogue_text, find_contradictions, find_leaks, find_repeats
from common.parquet import read_rows


def words(count: int, seed: object, vocabulary: int = 20_000) -> list[str]:
    """Words that are as unevenly frequent as those of a language, the same for the same seed."""
    rng = random.Random(str(seed))
    return [f"w{int(vocabulary ** rng.random())}" for _ in range(count)]


def text(count: int, seed: object) -> str:
    return " ".join(words(count, seed))


def change_word(old: str, seed: int) -> str:
    changed = old.split()
    changed[random.Random(seed).randrange(len(changed))] = f"changed{seed}"
    return " ".join(changed)


def pairs(number: int, label=CHOSEN_FIRST, name="train") -> list[Item]:
    """Pairs without a repetition, a contradiction or a script but Latin; all responses of one length."""
    return [
        Item(
            text(20, (name, row)), (text(30, (name, row, 1))[:100], text(30, (name, row, 2))[:100]), label, f"row {row}"
        )
        for row in range(number)
    ]


def scored(number: int, name="train") -> list[Item]:
    return [Item(text(20, (name, row)), (text(30, (name, row, 1)),), row % 5, f"row {row}") for row in range(number)]


def item(prompt, responses, label, row=0):
    return Item(prompt, tuple(responses), label, f"train.parquet row {row}")


def read(items: list[Item]):
    return data_report.read_items(items)


def counts(found) -> dict[str, int]:
    return {kind: len(twos) for kind, twos in found.items() if twos}


def repeats(items: list[Item]):
    return find_repeats(*read(items))


def clashes(items: list[Item]):
    return find_contradictions(read(items)[0])


# ---- words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes, it is!", "  yes it\nIS "),
        ("**Bold** – “quoted”…", "bold quoted"),
        ("Straße", "STRASSE"),
        ("cafe\u0301", "café"),
        ("１２ Ａ", "12 a"),
        ("zero\u200bwidth", "zero width"),
        ("你好，世界。", "你好世界"),
        ("Это — ответ.", "это ответ"),
    ],
)
def test_case_punctuation_and_spaces_do_not_count(one, other):
    assert similar_texts.split_words(one) == similar_texts.split_words(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a < b", "a > b"),
        ("I 👍", "I 👎"),
        ("दिन", "दीन"),
        ("cat", "cats"),
        ("1 2", "12"),
        ("", "a"),
        ("résumé", "resume"),
    ],
)
def test_anything_else_counts(one, other):
    assert similar_texts.split_words(one) != similar_texts.split_words(other)


def test_texts_of_punctuation_alone_are_not_all_the_same():
    assert similar_texts.read_texts(["…", "?!", "…", "..."], "text")[:2] == ([0, 1, 0, 2], [0, 1, 0, 2])


def test_half_an_emoji_stops_nothing():
    assert repeats([item("\ud83d", ["a"], 1), item("\ud83d", ["a"], 1)])["equal"] == [(0, 1)]


# ---- similar texts


def similar(texts: list[str]) -> set[tuple[int, int]]:
    found = similar_texts.read_texts(texts, "text").similar
    return {(one, other) for one, others in found.items() for other in others if one < other}


def test_one_changed_word_in_fifteen_is_found_and_nothing_else():
    texts = [text(15, row) for row in range(300)]
    copies = [change_word(texts[row], row) for row in range(300)]
    assert similar(texts + copies) == {(row, row + 300) for row in range(300)}


def test_a_sentence_added_to_a_hundred_words_is_found_and_nothing_else():
    texts = [text(100, row) for row in range(200)]
    copies = [f"{texts[row]} {text(15, -1 - row)}" for row in range(200)]
    assert similar(texts + copies) == {(row, row + 200) for row in range(200)}


def test_two_changed_words_in_twenty_five_are_found():
    texts = [text(25, row) for row in range(300)]
    copies = [change_word(change_word(texts[row], row), row + 1000) for row in range(300)]
    assert similar(texts + copies) == {(row, row + 300) for row in range(300)}


def test_chinese_with_one_character_changed_is_found():
    rng = random.Random(0)
    texts = ["".join(chr(rng.randrange(0x4E00, 0x5E00)) for _ in range(20)) for _ in range(50)]
    copies = [old[:10] + "龘" + old[11:] for old in texts]
    assert similar(texts + copies) == {(row, row + 50) for row in range(50)}


@pytest.mark.parametrize("number", [60, 400])
def test_texts_of_one_template_are_not_similar(number):
    """Nine in ten of the words are the frame, as in a judge's prompt."""
    frame = text(200, "frame")
    texts = [f"{frame[:600]} {text(20, row)} {frame[600:]}" for row in range(number)]
    assert similar(texts) == set()
    assert similar([*texts, texts[5].replace(text(20, 5), change_word(text(20, 5), 1))]) == {(5, number)}


@pytest.mark.parametrize(("texts", "limit"), [(100, 10), (400, 20), (2000, 50), (60_000, 60)])
def test_a_pair_of_words_that_many_texts_have_is_left_out(texts, limit):
    kept, dropped, none = (np.array(hashes, dtype=np.uint32) for hashes in ([1 << 20], [2 << 20], []))
    pairs = [kept] * limit + [dropped] * (limit + 1) + [none] * (texts - 2 * limit - 1)
    sizes = [len(hashes) for hashes in similar_texts.leave_out_frequent(pairs)]
    assert sizes == [1] * limit + [0] * (texts - limit)


def test_another_word_in_a_short_question_makes_it_another_question():
    countries = ("France", "Germany", "Peru", "Chad")
    assert similar([f"What is the capital of {country}?" for country in countries]) == set()


def test_a_long_text_is_compared_by_its_two_ends():
    start, end = text(600, "start"), text(600, "end")
    middles = [text(3000, row) for row in range(3)]
    texts = [f"{start} {middles[0]} {end}", f"{start} {middles[1]} {end}", f"{start} {middles[2]} {text(600, 'other')}"]
    assert similar(texts) == {(0, 1)}


def test_what_is_found_is_what_comparing_all_texts_finds():
    """With no frequent pairs of words, `find_similar` is the search for every similarity of 0.6 or more."""
    rng = np.random.default_rng(0)
    base = [np.unique(rng.integers(0, 2**32, 60, dtype=np.uint32)) for _ in range(60)]
    near = [
        np.unique(np.r_[one[: 60 - change], rng.integers(0, 2**32, change, dtype=np.uint32)])
        for one, change in zip(base, range(60))
    ]
    sets = base + near
    expected = {two for two in combinations(range(120), 2) if similar_texts.jaccard(sets[two[0]], sets[two[1]]) >= 0.6}
    found = similar_texts.find_similar(sets)
    assert {(one, other) for one, others in found.items() for other in others if one < other} == expected
    assert len(expected) == 16


def test_sketches_agree_as_often_as_sets_are_similar():
    rng = np.random.default_rng(0)
    for common in (0, 50, 100):
        sets = []
        for _ in range(300):
            one, other, both = (rng.integers(0, 2**32, size, dtype=np.uint32) for size in (100, 100, common))
            sets += [np.r_[one, both], np.r_[other, both]]
        sketches = similar_texts.sketch(sets)
        assert sketches.shape == (600, 48)
        assert (sketches[::2] == sketches[1::2]).mean() == pytest.approx(common / (200 + common), abs=0.01)


# ---- repeated rows

PROMPT, FIRST, SECOND = text(20, "prompt"), text(30, "first"), text(30, "second")


def test_a_row_that_repeats_another_is_found():
    rows = [item(PROMPT, [FIRST], 1), item(PROMPT, [FIRST], 1), item(PROMPT, [SECOND], 1), item(PROMPT, [FIRST], 1)]
    assert repeats(rows) == {"equal": [(0, 1), (0, 3)], "turned": [], "words": [], "similar": []}


def test_a_pair_in_the_other_order_with_its_label_turned_is_a_repetition():
    rows = [item(PROMPT, [FIRST, SECOND], "A"), item(PROMPT, [SECOND, FIRST], "B"), item("?", [SECOND, FIRST], "B")]
    assert repeats(rows)["turned"] == [(0, 1)]
    assert counts(repeats(rows)) == {"turned": 1}
    assert counts(clashes(rows)) == {}
    assert counts(repeats([item(PROMPT, [FIRST, SECOND], "tie"), item(PROMPT, [SECOND, FIRST], "tie")])) == {
        "turned": 1
    }


def test_a_row_that_differs_in_case_and_punctuation_is_found_in_either_order():
    loud = FIRST.upper() + "!"
    rows = [item(PROMPT, [FIRST, SECOND], "A"), item(PROMPT, [loud, SECOND], "A"), item(PROMPT, [SECOND, loud], "B")]
    assert counts(repeats(rows)) == {"words": 1, "turned": 1}  # the last one turns the second
    assert repeats([rows[0], rows[2]])["words"] == [(0, 1)]


def test_a_row_is_similar_if_each_part_is():
    near_prompt, near_first = change_word(PROMPT, 1), change_word(FIRST, 2)
    pair = item(PROMPT, [FIRST, SECOND], CHOSEN_FIRST)
    assert repeats([pair, item(near_prompt, [near_first, SECOND], CHOSEN_FIRST)])["similar"] == [(0, 1)]
    assert repeats([pair, item(PROMPT, [SECOND, near_first], CHOSEN_FIRST)])["similar"] == [(0, 1)]
    assert repeats([pair, item(PROMPT, [near_first, near_first], CHOSEN_FIRST)])["similar"] == []
    assert repeats([pair, item(text(20, "other"), [FIRST, SECOND], CHOSEN_FIRST)])["similar"] == []
    assert repeats([pair, item(PROMPT, [FIRST], CHOSEN_FIRST)])["similar"] == []


def test_the_first_similar_row_is_named():
    rows = [item(PROMPT, [change_word(FIRST, seed)], 1) for seed in range(4)]
    assert repeats(rows)["similar"] == [(0, 1), (0, 2), (0, 3)]


def test_short_answers_to_one_long_prompt_are_not_alike():
    long = text(300, "long")
    assert counts(repeats([item(long, [answer], 1) for answer in ("Yes.", "No.", "Maybe.", "I think so.")])) == {}


def test_rows_whose_prompt_shows_everything_are_compared_by_it():
    assert counts(repeats([item(PROMPT, [], 1), item(PROMPT, [], 1), item(change_word(PROMPT, 1), [], 1)])) == {
        "equal": 1,
        "similar": 1,
    }


# ---- contradictions


def test_a_pair_with_both_preferences():
    for rows in (
        [item(PROMPT, [FIRST, SECOND], CHOSEN_FIRST), item(PROMPT, [SECOND, FIRST], CHOSEN_FIRST)],
        [item(PROMPT, [FIRST, SECOND], "A"), item(PROMPT, [FIRST, SECOND], "B")],
        [item(PROMPT, [FIRST, SECOND], "A"), item("?", [FIRST, SECOND], "B"), item(PROMPT, [FIRST, SECOND], "B")],
    ):
        assert clashes(rows)["preference"] == [(0, len(rows) - 1)]
        assert counts(clashes(rows)) == {"preference": 1}
        assert counts(repeats(rows)) == {}


def test_a_label_that_stays_when_the_order_is_turned():
    rows = [item(PROMPT, [FIRST, SECOND], "A"), item(PROMPT, [SECOND, FIRST], "A")]
    assert clashes(rows)["order"] == [(0, 1)]
    assert counts(clashes(rows)) == {"order": 1}
    # a third row that says the opposite in the same order makes it more than a matter of order
    assert counts(clashes([*rows, item(PROMPT, [SECOND, FIRST], "B")])) == {"preference": 1}


def test_a_tie_and_a_preference():
    rows = [item(PROMPT, [FIRST, SECOND], "tie"), item(PROMPT, [SECOND, FIRST], "A")]
    assert clashes(rows)["tie"] == [(0, 1)]
    assert counts(clashes(rows)) == {"tie": 1}


def test_a_response_with_different_labels_is_counted_once():
    rows = [item(PROMPT, [FIRST], label) for label in (3, 3, 4, 0)] + [item(PROMPT, [SECOND], 0)]
    assert clashes(rows)["label"] == [(0, 2)]
    assert counts(clashes(rows)) == {"label": 1}


def test_a_contradiction_up_to_case_and_punctuation():
    rows = [item(PROMPT, [FIRST, SECOND], "A"), item(PROMPT.upper(), [FIRST + ".", SECOND], "B")]
    assert clashes(rows)["words"] == [(0, 1)]
    assert counts(clashes(rows)) == {"words": 1}
    assert counts(repeats(rows)) == {}
    # an exact contradiction is not counted again
    assert counts(clashes([*rows, item(PROMPT, [FIRST, SECOND], "B")])) == {"preference": 1}


def test_responses_that_are_equal_but_for_case_have_no_other_order():
    rows = [item(PROMPT, [FIRST, FIRST.upper()], "A"), item(PROMPT, [FIRST.upper(), FIRST], "B")]
    assert counts(clashes(rows)) == {}
    assert counts(repeats(rows)) == {"turned": 1}


def test_no_label_is_no_contradiction():
    assert counts(clashes([item(PROMPT, [FIRST], None), item(PROMPT, [FIRST], 1), item(PROMPT, [FIRST], None)])) == {}


# ---- prompts of held-out rows


def test_prompts_of_held_out_rows_are_found_in_train_by_the_closest_sameness():
    train = scored(200)
    held_out = scored(50, "val")
    leaks = [train[7].prompt, train[7].prompt, train[8].prompt.upper() + "?!", change_word(train[9].prompt, 1)]
    held_out += [Item(prompt, ("other",), 1, f"row {50 + row}") for row, prompt in enumerate(leaks)]
    rows, similar_prompts, _ = read(train + held_out)
    assert find_leaks(rows[:200], rows[200:], similar_prompts) == {
        "equal": [(7, 50), (7, 51)],
        "words": [(8, 52)],
        "similar": [(9, 53)],
    }


# ---- lines


def report(items, **options) -> list[str]:
    return data_report.data_report({"train": items}, **options)


def test_clean_data_needs_three_lines():
    lines = data_report.data_report({"train": pairs(300), "val": pairs(40, name="val"), "test": []})
    assert lines == [
        "train: 300 rows, 300 different prompts",
        "val: 40 rows, 40 different prompts",
        "no duplicates, no contradictions, no held-out prompts in train found",
    ]
    assert data_report.data_report({"train": []}) == []


def test_every_kind_of_find_is_counted_and_its_first_case_named():
    clean = pairs(100, "A", "clean")
    rows = [Item(one.prompt, one.responses, one.label, f"train.parquet row {row}") for row, one in enumerate(clean)]
    first, second = rows[3].responses
    planted = [
        (rows[3].prompt, (first, second), "A"),
        (rows[3].prompt, (second, first), "B"),
        (rows[3].prompt, (first.upper(), second), "A"),
        (change_word(rows[4].prompt, 1), rows[4].responses, "A"),
        (rows[5].prompt, rows[5].responses, "B"),
        (rows[6].prompt, rows[6].responses[::-1], "A"),
        (rows[7].prompt, rows[7].responses, "tie"),
        (rows[8].prompt.upper(), rows[8].responses, "B"),
    ]
    rows += [item(*values, row=100 + row) for row, values in enumerate(planted)]
    test = [Item(rows[2].prompt, ("a", "b"), "A", "test.parquet row 9"), *pairs(10, "A", "test")]
    assert data_report.data_report({"train": rows, "test": test}) == [
        "train: 108 rows, 102 different prompts",
        "  duplicates: 1 x equal to an earlier row (train.parquet row 3 and row 100); "
        "1 x the same pair in the other order, label turned too (train.parquet row 3 and row 101)",
        "  near duplicates: 1 x equal but for case, punctuation or spaces (train.parquet row 3 and row 102); "
        "1 x some words changed (train.parquet row 4 and row 103)",
        "  contradictions: 1 x a pair with both preferences (train.parquet row 5 and row 104); "
        "1 x a pair whose label stays when the order is turned (train.parquet row 6 and row 105); "
        "1 x a pair that is a tie and is not (train.parquet row 7 and row 106); "
        "1 x one of these but for case, punctuation or spaces (train.parquet row 8 and row 107)",
        "  labels: A: 104, B: 3, tie: 1; always saying A is right in 96.3%",
        "test: 11 rows, 11 different prompts",
        "  prompts also in train: 1 x equal (train.parquet row 2 and test.parquet row 9)",
    ]


def test_labels_are_listed_in_their_order_with_what_the_most_frequent_gets():
    assert data_report.describe_labels(["tie", "A", "A", "B"]) == [
        "labels: A: 2, B: 1, tie: 1; always saying A is right in 50.0%"
    ]
    assert data_report.describe_labels([10, 9, 9]) == ["labels: 9: 2, 10: 1; always saying 9 is right in 66.7%"]
    assert data_report.describe_labels([row / 100 for row in range(101)]) == [
        "labels: 101 different, from 0 to 1, half of them up to 0.5"
    ]
    assert data_report.describe_labels([CHOSEN_FIRST] * 3) == data_report.describe_labels([]) == []


def test_length_bias_of_pairs_by_quarter_of_the_difference():
    rows = []
    for difference in range(1, 101):  # up to 50 the shorter response is better, above that the longer one
        longer = "x" * (50 + difference)
        label = "A" if (difference > 50) == (difference % 2 == 0) else "B"
        responses = (longer, "y" * 50) if difference % 2 == 0 else ("y" * 50, longer)
        rows.append(item("p", responses, label))
    rows += [item("p", ("a", "bb"), "tie"), item("p", ("aa", "bb"), "A")]
    assert data_report.describe_lengths(rows) == [
        "length: the longer response is better in 50.0% of 100 pairs whose lengths differ; "
        "by quarter of the difference in characters: 0% (up to 25), 0% (up to 50), 100% (up to 75), 100% (up to 100)"
    ]
    assert data_report.describe_lengths(
        [item("p", ("aaa", "b"), CHOSEN_FIRST), item("p", ("a", "bb"), CHOSEN_FIRST)]
    ) == ["length: the longer response is better in 50.0% of 2 pairs whose lengths differ"]


def test_length_bias_of_scores_by_quarter_of_the_length():
    rows = [item("p", ("x" * length,), length // 25) for length in range(100)]
    assert data_report.describe_lengths(rows) == [
        "length: mean label by quarter of characters: 0.00 (up to 24), 1.00 (up to 49), 2.00 (up to 74), "
        "3.00 (up to 99); rank correlation 0.97"
    ]
    for label in (1, None, "good"):
        assert data_report.describe_lengths([item("p", (one.responses[0],), label) for one in rows]) == []


def test_quarters_of_equal_lengths_are_not_sorted_by_their_values():
    assert data_report.quarters([(5, 1), (5, 0)] * 4) == [(5, 0.5)] * 4


def test_responses_over_the_limit_are_counted_if_tokens_are_known():
    rows = scored(3)
    lines = report(rows, tokens_of={"train": [5, 9, 11]}, token_limit=8)
    assert "  too long: 2 x a response of more than 8 tokens, the longest 11 (row 2)" in lines
    assert not any("too long" in line for line in report(rows, tokens_of={"train": [5, 9, 11]}, token_limit=11))
    with pytest.raises(ValueError, match="2 numbers of tokens for 3 rows"):
        report(rows, tokens_of={"train": [5, 9]}, token_limit=8)


def test_scripts_are_listed_if_there_is_more_than_one():
    texts = ["Hello", "Привет, world", "你好，世界", "مرحبا", "नमस्ते दुनिया", "안녕", "ひらがな", "123", "Hola, señor"]
    names = ["Latin", "Cyrillic", "Han", "Arabic", "Devanagari", "Hangul", "Kana", "none", "Latin"]
    assert [data_report.main_script(one) for one in texts] == names
    rows = [item("p", (one,), None) for one in ("Hello", "Hola", "Привет", "42")]
    assert data_report.describe_scripts(rows) == ["rows by script: Latin 2, Cyrillic 1"]
    assert data_report.describe_scripts(rows[:2]) == []


def test_a_response_to_many_prompts_is_shown():
    rows = [item(text(20, row), ("I don't know.",), None) for row in range(5)]
    rows += [item(text(20, row), ("Only twice",), None) for row in range(5, 7)]
    assert report(rows)[1:] == [
        '  one response to several prompts: 2 x; "I don\'t know." answers 5 prompts',
        "no duplicates, no contradictions found",
    ]
    assert len(report(rows[5:])) == 2


def test_a_pair_has_one_of_four_labels():
    with pytest.raises(ValueError, match="train.parquet row 0: label of a pair is 'chosen', expected A, B, tie or"):
        item("p", ("a", "b"), "chosen")
    with pytest.raises(ValueError, match="3 responses, expected two at most"):
        item("p", ("a", "b", "c"), "A")


def test_the_worst_of_three_splits_fits_a_screen():
    def bad(name):
        rows = pairs(60, "A", "shared")
        rows = [
            replace(one, responses=(one.responses[0] + "x" * row, one.responses[1])) for row, one in enumerate(rows)
        ]
        rows += [rows[0], replace(rows[1], responses=rows[1].responses[::-1], label="B"), replace(rows[2], label="B")]
        rows += [replace(rows[3], prompt=rows[3].prompt.upper())]
        return rows + [item(text(20, (name, row)), ("Нет, спасибо.", "Да."), "tie") for row in range(3)]

    rows = {name: bad(name) for name in ("train", "val", "test")}
    lines = data_report.data_report(rows, {name: [9] * len(rows[name]) for name in rows}, token_limit=5)
    assert len(lines) == 25
    assert max(map(len, lines)) < 250


def test_nothing_heavy_is_imported():
    used = imports_of(REPO / "common" / "data_report.py") | imports_of(REPO / "common" / "similar_texts.py")
    assert used & {"torch", "transformers", "verl", "ray"} == set()
    assert {name for name in used if name.startswith("common")} == {"common.conversation", "common.similar_texts"}


# ---- real data


def read_pair(row):
    chosen, rejected = (read_conversation(side, row[side]) for side in ("chosen", "rejected"))
    return dialogue_text(chosen[:-1]), (chosen[-1]["content"], rejected[-1]["content"]), CHOSEN_FIRST


def read_compared(row):
    preferred = read_json("metadata", row["metadata"])["preferred"]
    return dialogue_text(read_dialogue(row["input"])), tuple(read_responses(row["output"], 2, 2)), preferred


def read_scored(row):
    return dialogue_text(read_dialogue(row["input"])), tuple(read_responses(row["output"], 1, 1)), int(row["label"])


def read_chat(row):
    messages = read_conversation("messages", row["messages"])
    return dialogue_text(messages[:-1]), (messages[-1]["content"],), None


# how each real file is read: its columns, and a row's prompt, responses and label
REAL = {
    "bt_train": (("chosen", "rejected"), read_pair),
    "bt_val_json": (("chosen", "rejected"), read_pair),
    "pairwise_train": (("input", "output", "metadata"), read_compared),
    "pairwise_multiturn_train_json": (("input", "output", "metadata"), read_compared),
    "pointwise_human_json": (("input", "output", "label"), read_scored),
    "pointwise_train": (("input", "output", "label"), read_scored),
    "sft_judge_train": (("messages",), read_chat),
}


@cache
def real_items(path: Path) -> list[Item]:
    columns, read_row = REAL[path.stem]
    rows, _ = read_rows(path, columns, (), lambda row: {"values": read_row(row)}, on_bad_row="drop")
    return [Item(*row["values"], row["source"]) for row in rows]


@pytest.fixture(params=REAL)
def real(request, shared_data) -> list[Item]:
    return real_items(shared_data / f"{request.param}.parquet")


def check_by_counting(items: list[Item], repeated, contradicting) -> None:
    """Compare what was found with what a table of all rows says: equal rows, and texts with two labels."""
    better = [
        one.label if len(one.responses) < 2 or one.label == "tie" else one.responses[one.label == "B"] for one in items
    ]
    said = Counter((one.prompt, tuple(sorted(one.responses)), label) for one, label in zip(items, better))
    texts = Counter((prompt, responses) for prompt, responses, _ in said)
    assert len(repeated["equal"]) + len(repeated["turned"]) == len(items) - len(said)
    exact = sum(len(twos) for kind, twos in contradicting.items() if kind != "words")
    assert exact == sum(number > 1 for number in texts.values())


def test_what_is_planted_in_real_data_is_found(real):
    """Ten rows each: copied, copied in capitals, copied with a word changed, and with another label.

    Of rows whose responses have 15 different words: "the, the, the" is not compared.
    """
    real = real[:400]
    rows, *near = read(real)
    before, clashes_before = find_repeats(rows, *near), find_contradictions(rows)
    check_by_counting(real, before, clashes_before)
    touched = {row for found in (before, clashes_before) for twos in found.values() for two in twos for row in two}
    usable = [
        one
        for row, one in enumerate(real)
        if row not in touched and all(len(set(response.split())) >= 15 for response in one.responses)
    ]
    random.Random(0).shuffle(usable)
    copied, loud, changed, turned, disputed = (usable[start::5][:10] for start in range(5))
    assert len(disputed) == 10
    planted = list(copied)
    planted += [
        replace(one, prompt=one.prompt.swapcase(), responses=tuple(f"«{text}»" for text in one.responses))
        for one in loud
    ]
    planted += [
        replace(one, responses=tuple(change_word(text, row) for text in one.responses))
        for row, one in enumerate(changed)
    ]
    is_pair, has_order = len(real[0].responses) == 2, real[0].label != CHOSEN_FIRST
    expected = {"equal": 10, "words": 10, "similar": 10}
    if is_pair and has_order:
        planted += [replace(one, responses=one.responses[::-1], label=TURNED[one.label]) for one in turned]
        expected["turned"] = 10
    expected_clashes = {}
    if is_pair and not has_order:
        planted += [replace(one, responses=one.responses[::-1]) for one in disputed]
        expected_clashes = {"preference": 10}
    elif is_pair:
        planted += [replace(one, label="A" if one.label == "B" else "B") for one in disputed]
        ties = sum(one.label == "tie" for one in disputed)
        expected_clashes = {"preference": 10 - ties, "tie": ties}
    elif real[0].label is not None:
        planted += [replace(one, label=one.label + 1) for one in disputed]
        expected_clashes = {"label": 10}
    rows, *near = read(real + planted)
    after, clashes_after = find_repeats(rows, *near), find_contradictions(rows)
    check_by_counting(real + planted, after, clashes_after)
    assert {kind: len(after[kind]) - len(before[kind]) for kind in after} == {**dict.fromkeys(after, 0), **expected}
    assert {kind: len(clashes_after[kind]) - len(clashes_before[kind]) for kind in clashes_after} == {
        **dict.fromkeys(clashes_after, 0),
        **expected_clashes,
    }


def test_prompts_that_leak_in_real_data_are_found(shared_data):
    train, val = (real_items(shared_data / f"{name}.parquet") for name in ("bt_train", "bt_val_json"))
    prompts = sorted({one.prompt for one in train if len(one.prompt.split()) >= 15})[:90:3]
    leaks = [
        *prompts[:10],
        *(prompt.swapcase() + " !" for prompt in prompts[10:20]),
        *(change_word(prompt, row) for row, prompt in enumerate(prompts[20:])),
    ]
    held_out = val + [Item(prompt, (), None, "planted") for prompt in leaks]
    rows, similar_prompts, _ = read([replace(one, responses=()) for one in train + held_out])
    found = find_leaks(rows[: len(train)], rows[len(train) :], similar_prompts)
    assert counts(found) == {"equal": 10, "words": 10, "similar": 10}


def test_ten_thousand_rows_take_less_than_ten_seconds(shared_data):
    real = real_items(shared_data / "bt_train.parquet")
    started = time.process_time()
    report(real)
    assert (time.process_time() - started) / len(real) * 10_000 < 10
