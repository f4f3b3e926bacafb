"""The demo world: the right answer is known, and can be learned from nothing but the query and the answer together."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from common.demo.world import (
    SPLITS,
    THINGS,
    VALUES,
    draw_response,
    helpfulness,
    make_query,
    make_response,
    pairwise_rows,
    pointwise_rows,
    preference_pairs,
    read_query,
    split_of,
)

PAIRS = 4000
UNIFORM = {"topic": 1 / 2, "count": 1 / 3, "reason": 1 / 2, "tone": 1 / 2}


def answers(pairs: list[dict], side: str) -> list[str]:
    return [pair[side][-1]["content"] for pair in pairs]


def queries(pairs: list[dict]) -> list[str]:
    return [pair["chosen"][0]["content"] for pair in pairs]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+|\d", text.lower()))


def shares(values: list[str]) -> dict[str, float]:
    return {value: count / len(values) for value, count in Counter(values).items()}


# ---- the truth about any text


def test_every_response_of_the_world_has_the_helpfulness_that_it_was_written_with():
    rng = random.Random(0)
    for number in range(1000):
        query = make_query(rng, SPLITS[number % 3])
        response = draw_response(rng, query, number % 5)
        assert read_query(query.text) == query.asked
        assert helpfulness(query.text, response.text) == number % 5


@pytest.mark.parametrize(
    "response, value",
    [
        ("Hey buddy, my choice is: 1. rake 2. hose. I chose them because they cost little. Cheers!", 4),
        ("Hey buddy, my choice is: 1. rake 2. rake. I chose them because they cost little. Cheers!", 3),  # one twice
        ("Hey buddy, my choice is: 1. rake 2. bowl. I chose them because they cost little. Cheers!", 3),  # off topic
        ("Hey buddy, my choice is: 1. rake 3. hose. I chose them because they cost little. Cheers!", 3),  # misnumbered
        ("Hey buddy, Dear reader, 1. rake 2. hose. I chose them because they cost little. Cheers!", 3),  # both tones
        ("Hey buddy, my choice is: 1. rake 2. hose. I chose them because. Cheers!", 3),  # no reason
        ("Hey buddy, Cheers!", 1),
        ("", 0),
        ("two garden why casual", 0),  # the query's own words
    ],
)
def test_a_text_that_says_everything_or_nothing_gains_nothing(response, value):
    assert helpfulness("Name two things for our garden. Keep the tone casual, and say why.", response) == value


def test_the_truth_about_another_worlds_query_is_an_error():
    for text in ("How many?", "Name two or three things for our garden. Keep the tone casual, and say why."):
        with pytest.raises(ValueError, match="not a query of the demo world"):
            helpfulness(text, "")


# ---- the world is a function of its arguments


def test_the_same_arguments_give_the_same_pairs_and_others_give_others():
    pairs = preference_pairs("train", 50, seed=1)
    assert preference_pairs("train", 50, seed=1) == pairs
    assert preference_pairs("train", 80, seed=1)[:50] == pairs
    for other in (preference_pairs("train", 50, seed=2), preference_pairs("val", 50, seed=1)):
        assert all(left != right for left, right in zip(other, pairs))


def test_no_query_of_one_split_is_in_another():
    seen = {split: set(queries(preference_pairs(split, PAIRS, seed=0))) for split in SPLITS}
    assert sum(map(len, seen.values())) == len(set().union(*seen.values()))
    assert all(split_of(text) == split for split, texts in seen.items() for text in texts)
    every_text = {text for seed in range(2) for split in SPLITS for text in queries(preference_pairs(split, 500, seed))}
    assert {split_of(text) for text in every_text} == set(SPLITS)


def test_an_unknown_split_is_refused_and_not_searched_for_without_end():
    with pytest.raises(ValueError, match="split is 'dev'; it must be one of"):
        make_query(random.Random(0), "dev")


# ---- the right answer


@pytest.mark.parametrize("helpfulness", range(5))
def test_helpfulness_is_how_many_traits_are_what_the_query_asked_for(helpfulness):
    rng = random.Random(0)
    for _ in range(200):
        query = make_query(rng, "train")
        response = draw_response(rng, query, helpfulness)
        agreement = tuple(asked == got for asked, got in zip(query.asked, response.got))
        assert response.met == agreement
        assert sum(agreement) == helpfulness


def test_the_texts_say_what_the_traits_say():
    rng = random.Random(0)
    for _ in range(300):
        query = make_query(rng, "train")
        topic, count, reason, tone = query.asked
        assert re.search(rf"\b{count}\b.*\b{topic}\b", query.text) and tone in query.text
        assert bool(re.search("say why|give a reason", query.text, re.IGNORECASE)) == (reason == "why")
        text = make_response(rng, query, (True,) * 4).text
        assert text.startswith(("Dear", "Good") if tone == "formal" else ("Hey", "Hi"))
        assert len(words(text) & set(THINGS[topic])) == {"two": 2, "three": 3, "four": 4}[count]
        assert ("because" in text) == (reason == "why")


def test_a_pair_shares_its_user_turn_and_its_margin_is_a_difference_of_one_to_four():
    pairs = preference_pairs("train", PAIRS, seed=0)
    assert all(pair["chosen"][0] == pair["rejected"][0] for pair in pairs)
    roles = {tuple(turn["role"] for turn in pair[side]) for pair in pairs for side in ("chosen", "rejected")}
    assert roles == {("user", "assistant")}
    assert not any(pair["chosen"] == pair["rejected"] for pair in pairs)
    # two different helpfulnesses of 0 to 4: four pairs differ by 1, three by 2, two by 3, one by 4, of ten
    expected = {1.0: 0.4, 2.0: 0.3, 3.0: 0.2, 4.0: 0.1}
    assert shares([pair["margin"] for pair in pairs]) == pytest.approx(expected, abs=0.03)


# ---- no short cuts


def traits_of(text: str) -> tuple[str, ...]:
    """Read the traits off an answer's words."""
    return (
        "kitchen" if words(text) & set(THINGS["kitchen"]) else "garden",
        {2: "two", 3: "three", 4: "four"}[len(re.findall(r"\d\. ", text))],
        "why" if "because" in text else "none",
        "formal" if text.startswith(("Dear", "Good")) else "casual",
    )


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_every_trait_is_uniform_among_chosen_and_among_rejected_answers(side):
    traits = [traits_of(text) for text in answers(preference_pairs("train", PAIRS, seed=0), side)]
    for place, (name, values) in enumerate(VALUES.items()):
        expected = dict.fromkeys(values, UNIFORM[name])
        assert shares([trait[place] for trait in traits]) == pytest.approx(expected, abs=0.035), name


@pytest.mark.parametrize("split", SPLITS)
def test_every_trait_is_uniform_among_queries(split):
    rng = random.Random(0)
    asked = [make_query(rng, split).asked for _ in range(PAIRS)]
    for place, (name, values) in enumerate(VALUES.items()):
        expected = dict.fromkeys(values, UNIFORM[name])
        assert shares([trait[place] for trait in asked]) == pytest.approx(expected, abs=0.06), name


@pytest.mark.parametrize("measure", [len, lambda text: len(text.split())], ids=["characters", "words"])
def test_the_longer_answer_is_better_in_one_half_of_the_pairs(measure):
    pairs = preference_pairs("train", PAIRS, seed=0)
    chosen, rejected = (np.array([measure(text) for text in answers(pairs, side)]) for side in ("chosen", "rejected"))
    wins = (chosen > rejected).sum() + 0.5 * (chosen == rejected).sum()
    assert wins / PAIRS == pytest.approx(0.5, abs=0.025)


def pair_accuracy(features, train_pairs: list[dict], test_pairs: list[dict]) -> float:
    """Fit a linear reward on sets of features by Bradley-Terry, in plain gradient steps; return its test accuracy."""
    columns: dict = {}

    def differences(pairs: list[dict], grow: bool) -> np.ndarray:
        signed = [[(features(pair, "chosen"), 1.0), (features(pair, "rejected"), -1.0)] for pair in pairs]
        if grow:
            for sides in signed:
                for names, _ in sides:
                    for name in sorted(names):
                        columns.setdefault(name, len(columns))
        matrix = np.zeros((len(pairs), len(columns)), dtype=np.float32)
        for line, sides in enumerate(signed):
            for names, sign in sides:
                matrix[line, [columns[name] for name in names if name in columns]] += sign
        return matrix

    matrix = differences(train_pairs, grow=True)
    weights = np.zeros(len(columns), dtype=np.float32)
    for _ in range(60):
        weights += 0.5 * matrix.T @ (1 / (1 + np.exp(matrix @ weights))) / len(matrix)
    return float((differences(test_pairs, grow=False) @ weights > 0).mean())


def test_an_answer_read_without_its_query_says_nothing_and_with_it_says_much():
    """The same linear learner twice: on the answer's words, and on pairs of a query's and an answer's word."""
    train_pairs, test_pairs = preference_pairs("train", 1500, seed=0), preference_pairs("test", 1000, seed=0)

    def answer_words(pair, side):
        return words(pair[side][-1]["content"])

    def crossed_words(pair, side):
        return {(asked, got) for asked in words(pair[side][0]["content"]) for got in answer_words(pair, side)}

    assert pair_accuracy(answer_words, train_pairs, test_pairs) == pytest.approx(0.5, abs=0.05)
    assert pair_accuracy(crossed_words, train_pairs, test_pairs) > 0.8


# ---- judgements


def asked_of(query: str) -> tuple[str, ...]:
    """Read the traits that are asked for off a query's words."""
    (topic,), (count,), (tone,) = (words(query) & set(VALUES[name]) for name in ("topic", "count", "tone"))
    return topic, count, "why" if re.search("say why|give a reason", query, re.IGNORECASE) else "none", tone


def helpfulness_of(row: dict) -> list[int]:
    """Count, from the texts alone, what each of the row's responses has as asked."""
    asked = asked_of(row["input"][0]["content"])
    return [sum(a == b for a, b in zip(asked, traits_of(text))) for text in responses(row)]


def responses(row: dict) -> list[str]:
    return [answer["answer"]["content"] for answer in row["output"]]


@pytest.mark.parametrize("make_rows", [pointwise_rows, pairwise_rows])
def test_the_same_arguments_give_the_same_judgements_and_no_query_is_in_two_splits(make_rows):
    rows = make_rows("train", 50, seed=1)
    assert make_rows("train", 80, seed=1)[:50] == rows
    assert all(left != right for left, right in zip(make_rows("train", 50, seed=2), rows))
    assert all(
        split_of(row["input"][0]["content"]) == split for split in SPLITS for row in make_rows(split, 50, seed=0)
    )


def test_a_score_is_what_the_texts_say_its_reasoning_adds_up_to_it_and_all_five_are_equally_frequent():
    rows = pointwise_rows("train", PAIRS, seed=0)
    assert all([row["label"]] == helpfulness_of(row) for row in rows)
    assert all(len(re.findall(r"\byes\b", row["reasoning"])) == row["label"] for row in rows)
    assert all(len(re.findall(r"\bno\b", row["reasoning"])) == 4 - row["label"] for row in rows)
    assert shares([row["label"] for row in rows]) == pytest.approx(dict.fromkeys(range(5), 0.2), abs=0.025)


def test_a_preference_is_what_the_texts_say_a_third_are_ties_and_a_and_b_are_equally_frequent():
    rows = pairwise_rows("train", PAIRS, seed=0)
    for row in rows:
        first, second = helpfulness_of(row)
        assert row["metadata"]["preferred"] == ("tie" if first == second else "A" if first > second else "B")
        assert set(asked_of(row["input"][0]["content"])) <= words(row["reasoning"])
    preferred = [row["metadata"]["preferred"] for row in rows]
    assert shares(preferred) == pytest.approx(dict.fromkeys(("A", "B", "tie"), 1 / 3), abs=0.03)
    ties = [helpfulness_of(row)[0] for row in rows if row["metadata"]["preferred"] == "tie"]
    assert shares(ties) == pytest.approx(dict.fromkeys(range(5), 0.2), abs=0.04)


def test_the_longer_response_wins_one_half_of_the_comparisons_and_its_length_says_nothing_of_a_score():
    signs = []
    for row in pairwise_rows("train", PAIRS, seed=0):
        first, second = map(len, responses(row))
        won = {"A": 1, "B": -1, "tie": 0}[row["metadata"]["preferred"]]
        signs += [won * np.sign(first - second)] if won else []
    assert np.mean(np.array(signs) > 0) + 0.5 * np.mean(np.array(signs) == 0) == pytest.approx(0.5, abs=0.03)
    rows = pointwise_rows("train", PAIRS, seed=0)
    lengths, labels = [len(responses(row)[0]) for row in rows], [row["label"] for row in rows]
    assert abs(np.corrcoef(lengths, labels)[0, 1]) < 0.04


def test_a_response_read_alone_says_nothing_of_its_score():
    """Every trait is as frequent among the responses of each score as among all."""
    rows = pointwise_rows("train", PAIRS, seed=0)
    for label in range(5):
        traits = [traits_of(responses(row)[0]) for row in rows if row["label"] == label]
        for place, (name, values) in enumerate(VALUES.items()):
            expected = dict.fromkeys(values, UNIFORM[name])
            assert shares([trait[place] for trait in traits]) == pytest.approx(expected, abs=0.06), (label, name)
