"""Responses ranked by a pairwise judge: the round robin, win rates and places by hand, and rank.py as it is called."""

import json
import sys
from itertools import permutations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from test_endpoint import serve

from common.conversation import DataError
from common.generation import Answer
from common.parquet import write_rows
from generative_pairwise import rank
from generative_pairwise.prompt import PREFERENCES, ask, write
from generative_pairwise.win_rates import POINTS, left_out, ranks, win_rates

LABEL = st.sampled_from(PREFERENCES)


# ---- win rates and places


def test_every_response_is_compared_with_every_other_in_both_places():
    dialogue = [{"role": "user", "content": "Why?"}]
    shown = [("a", "b"), ("a", "c"), ("b", "a"), ("b", "c"), ("c", "a"), ("c", "b")]
    prompts = rank.round_robin(dialogue, ["a", "b", "c"])
    assert prompts == [ask(dialogue, *two) for two in shown]
    (asked, _) = rank.round_robin(dialogue, ["a", "b"], "Which is shorter?")
    assert asked == ask(dialogue, "a", "b", "Which is shorter?")


def test_win_rates_by_hand():
    """Points of the first: 1, 1/2, 1, 0; of the second 0, 0; of the third 1/2, 1; theirs lacks an order."""
    assert win_rates(3, ["A", "tie", "B", None, "A", "tie"]) == pytest.approx([2.5 / 4, 0, 1.5 / 2])
    assert win_rates(3, ["A", "tie", "B", None, "A", "tie"], all_count=True) == pytest.approx([2.5 / 4, 0, 1.5 / 4])
    assert left_out(3, ["A", "tie", "B", None, "A", "tie"]) == [0, 0.5, 0.5]
    assert win_rates(2, [None, None]) == [None, None]
    assert win_rates(3, [None, None, None, "A", None, "B"]) == [None, 1.0, 0.0]
    with pytest.raises(ValueError):
        win_rates(3, ["A", "B"])


def test_a_missing_verdict_makes_no_order_of_what_stands_first():
    for missing in range(6):
        verdicts = ["A"] * 6
        verdicts[missing] = None
        assert win_rates(3, verdicts) == [0.5, 0.5, 0.5]


def test_equal_rates_share_the_better_place_and_none_has_none():
    assert ranks([0.5, None, 1.0, 0.5, 0.0]) == [2, None, 1, 2, 4]
    assert ranks([None, None]) == [None, None]


@given(st.integers(2, 7).flatmap(lambda count: st.permutations(range(count))))
def test_a_judge_that_knows_the_order_ranks_in_that_order_and_one_that_looks_at_the_place_in_none(places):
    count, pairs = len(places), list(permutations(places, 2))
    rates = win_rates(count, ["A" if first < second else "B" for first, second in pairs])
    assert rates == pytest.approx([(count - 1 - place) / (count - 1) for place in places])
    assert ranks(rates) == [1 + place for place in places]
    assert ranks(win_rates(count, ["A"] * len(pairs))) == [1] * count


@settings(max_examples=50)
@given(st.integers(2, 5).flatmap(lambda n: st.lists(LABEL, min_size=n * (n - 1), max_size=n * (n - 1))))
def test_win_rates_order_responses_as_bradley_terry_strengths_do(verdicts):
    """Fitted with a small penalty, as the strength of one that wins always has no end; the order is the same."""
    count = next(n for n in range(2, 6) if n * (n - 1) == len(verdicts))
    first, second = np.array(list(permutations(range(count), 2))).T
    won = np.array([POINTS[verdict] for verdict in verdicts])

    def loss(strengths):
        odds = strengths[first] - strengths[second]
        return np.logaddexp(0, -odds) @ won + np.logaddexp(0, odds) @ (1 - won) + 0.05 * strengths @ strengths

    strengths = minimize(loss, np.zeros(count), tol=1e-8).x.round(3)
    assert ranks(win_rates(count, verdicts)) == ranks(list(strengths))


# ---- the command

A, B, TIE = (write(verdict) for verdict in PREFERENCES)
UNREADABLE = "<think>\nHm, let me see"
TEXTS = ["one", "two", "three"]
CANDIDATES = [{"input": "Why?", "output": TEXTS}, {"input": "How?", "output": TEXTS[:2]}]
CANDIDATES = [
    {**row, "output": [{"answer": {"role": "assistant", "content": text}} for text in row["output"]]}
    for row in CANDIDATES
]
SHOWN = {"Why?": [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)], "How?": [(0, 1), (1, 0)]}
COMPARED = [
    ask([{"role": "user", "content": question}], TEXTS[first], TEXTS[second])[0]["content"]
    for question, places in SHOWN.items()
    for first, second in places
]
# three beats all; one and two draw; one comparison of two with three has no verdict
VERDICTS = dict(zip(COMPARED, [TIE, B, TIE, UNREADABLE, A, A, A, B]))


@pytest.fixture
def ranked(tiny_model, tmp_path, monkeypatch, capsys):
    """Rank rows; return the rows written and what was printed."""

    def rank_rows(rows: list[dict], *options, model=tiny_model) -> tuple[list[dict], str]:
        data = write_rows(tmp_path / "candidates.parquet", rows)
        arguments = ["--model", model, "--data", data, "--output", tmp_path / "ranks", *options]
        monkeypatch.setattr(sys, "argv", ["rank.py", *map(str, arguments)])
        rank.main()
        votes = next((f"_{value}_votes" for option, value in zip(options, options[1:]) if option == "--votes"), "")
        written = tmp_path / "ranks" / f"ranked_candidates{votes}.parquet"
        return pq.read_table(written).to_pylist(), capsys.readouterr().out

    return rank_rows


@pytest.fixture
def loaded(monkeypatch):
    """Let answers come from a table, for each prompt its votes or one text, and not from the untrained model."""

    def answer_by(answers: dict) -> list[tuple]:
        calls = []

        def answer(model, tokenizer, prompts, *limits):
            calls.append(limits)
            found = [next(answers[text] for text in answers if text in given) for given in prompts]
            return [[Answer(text, False) for text in ([given] if isinstance(given, str) else given)] for given in found]

        monkeypatch.setattr("common.judging.asking.answer_prompts", answer)
        return calls

    return answer_by


@pytest.mark.parametrize("form", [lambda cell: cell, json.dumps], ids=["native", "json"])
def test_responses_are_ranked_by_the_share_of_comparisons_that_they_win_loaded_or_served(ranked, loaded, form):
    """By hand: points 1/2, 0, 1/2, 0; 1/2, 1/2; 1, 1; between the others an order lacks. Traps 24 and 29."""
    calls = loaded(VERDICTS)
    cells = [{"id": 7, **row, "output": form(row["output"])} for row in CANDIDATES]
    rows, printed = ranked(cells)
    first, second = rows
    assert (first["win_rate"], first["rank"]) == ([1 / 4, 1 / 2, 1.0], [3, 2, 1])
    assert (second["win_rate"], second["rank"], second["verdicts"]) == ([1.0, 0.0], [1, 2], ["A", "B"])
    assert first["input"] == "Why?" and first["output"] == form(CANDIDATES[0]["output"])
    assert first["verdicts"].count(None) == 1 and second["source"] == "candidates.parquet row 1"
    assert "ranked_candidates.parquet: 2 rows ranked; 1 of 8 comparisons had no verdict\n" in printed
    assert calls == [(1024, 16384, 0.0, 1, 0)]
    with serve(lambda request, _: VERDICTS[request["messages"][-1]["content"]]) as (url, requests):
        assert ranked(cells, "--endpoint", url, model="judge") == (rows, printed) and len(requests) == 8


def test_several_votes_on_a_comparison_are_one_verdict(ranked, loaded):
    loaded(dict(zip(COMPARED[6:], [[A, A, B], [A, TIE, UNREADABLE]])))
    rows, _ = ranked(CANDIDATES[1:], "--votes", 3)
    assert rows[0]["win_rate"] == [0.75, 0.25] and rows[0]["verdicts"] == ["A", "tie"]
    assert rows[0]["answers"] == [[A, A, B], [A, TIE, UNREADABLE]]


def test_one_response_alone_is_refused_with_its_row_or_set_aside(ranked, loaded):
    loaded(VERDICTS)
    rows = [CANDIDATES[1], {"input": "Who?", "output": CANDIDATES[1]["output"][:1]}]
    kind = "column 'output': expected a list of 2 or more responses, each "
    with pytest.raises(DataError, match=f"1 of 2 rows cannot be used:\n  candidates.parquet row 1, {kind}"):
        ranked(rows)
    made, printed = ranked(rows, "--on-bad-row", "drop")
    assert [row["source"] for row in made] == ["candidates.parquet row 0"] and f"set aside: 1 x {kind}" in printed


def test_a_row_with_a_response_that_is_too_long_is_not_ranked_by_what_is_left_of_it(ranked, loaded):
    loaded(VERDICTS)
    long = {"answer": {"role": "assistant", "content": "long " * 900}}
    rows = [CANDIDATES[1], {"input": "Why?", "output": [*CANDIDATES[0]["output"][:2], long]}]
    made, printed = ranked(rows, "--max-prompt-length", 600, "--filter-overlong-prompts")
    assert [row["source"] for row in made] == ["candidates.parquet row 0"]
    assert "1 rows ranked; 0 of 2 comparisons" in printed and "set aside: 4 x prompt of more than 600 tokens" in printed


def test_without_any_verdict_nothing_is_ranked(ranked, loaded):
    loaded(dict.fromkeys(COMPARED, UNREADABLE))
    rows, printed = ranked(CANDIDATES)
    assert [(row["win_rate"], row["rank"]) for row in rows] == [([None] * 3, [None] * 3), ([None] * 2, [None] * 2)]
    assert [row["verdicts"] for row in rows] == [[None] * 6, [None] * 2]
    assert "8 of 8 comparisons had no verdict" in printed
