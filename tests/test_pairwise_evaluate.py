"""evaluate.py of the pairwise judge as it is called: figures of both orders, loaded or served, and pairs kept whole."""

import json
import sys

import pyarrow.parquet as pq
import pytest
from test_endpoint import completion, serve
from test_page import held_by

from common.conversation import DataError
from common.demo.world import pairwise_rows
from common.generation import Answer
from common.parquet import write_rows
from generative_pairwise import evaluate
from generative_pairwise.prompt import PREFERENCES, SWAPPED, ask, read_row, write

ROWS = pairwise_rows("test", 6, seed=0)
LABELS = [row["metadata"]["preferred"] for row in ROWS]


def prompts_of(row: dict) -> list[list[dict]]:
    """Both prompts of a labelled row."""
    orders = (read_row(row), read_row(row).swap())
    return [ask(shown.dialogue, shown.response_a, shown.response_b) for shown in orders]


ASKED = [turn["content"] for row in ROWS for (turn,) in prompts_of(row)]
CLIPPED = "<think>\nHm, let me see"
A, B, TIE = (write(verdict, "as asked") for verdict in PREFERENCES)
# as given and swapped: two pairs right, one judged by the place, one half right, one right, one half cut off
MIXED = dict(zip(ASKED, [A, B, B, A, A, A, TIE, A, TIE, TIE, CLIPPED, A]))
RIGHT = dict(zip(ASKED, [A, B, B, A, B, A, TIE, TIE, TIE, TIE, B, A]))


@pytest.fixture
def run(tiny_model, tmp_path, monkeypatch, capsys):
    """Evaluate rows; return the metrics, the rows written and what was printed."""

    def evaluate_rows(*options, rows=ROWS, model=tiny_model) -> tuple[dict, list[dict], str]:
        data = write_rows(tmp_path / "held_out.parquet", rows)
        arguments = ["--model", model, "--data", data, "--output", tmp_path / "figures", *options]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        evaluate.main()
        printed = capsys.readouterr().out
        votes = next((f"_{value}_votes" for option, value in zip(options, options[1:]) if option == "--votes"), "")
        written = tmp_path / "figures" / f"evaluation_held_out{votes}.json"
        return json.loads(written.read_text()), pq.read_table(written.with_suffix(".parquet")).to_pylist(), printed

    return evaluate_rows


@pytest.fixture
def loaded(monkeypatch):
    """Let answers come from a table, for each prompt its votes or one text, and not from the untrained model."""

    def answer_by(answers: dict) -> list[tuple]:
        calls = []

        def answer(model, tokenizer, prompts, *limits):
            calls.append(limits)
            (*_, votes, _) = limits
            found = [next(answers[text] for text in answers if text in given) for given in prompts]
            texts = [[given] * votes if isinstance(given, str) else given for given in found]
            return [[Answer(text, clipped=text == CLIPPED) for text in given] for given in texts]

        monkeypatch.setattr("common.judging.asking.answer_prompts", answer)
        return calls

    return answer_by


def served(answers: dict):
    """A server that gives those answers."""

    def reply(request, _):
        given = answers[request["messages"][-1]["content"]]
        text = given if isinstance(given, str) else given[request["seed"]]
        return 200, completion(text, "length" if text == CLIPPED else "stop")

    return serve(reply)


def figures(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name != "asked"}


def test_a_judge_that_is_right_on_three_pairs_of_six(run, loaded, tmp_path):
    """By hand: of 11 verdicts six say "A", two "B", three "tie"; the responses of three pairs tell by their length."""
    calls = loaded(MIXED)
    metrics, rows, printed = run("--max-new-tokens", 99)
    assert LABELS == ["A", "B", "B", "tie", "tie", "B"]
    expected = {"pairs": 6, "parse_rate": 11 / 12, "accuracy": 9 / 12, "accuracy_as_given": 4 / 6}
    expected |= {"accuracy_swapped": 5 / 6, "both_right": 3 / 6, "consistency": 3 / 6, "first_rate": 6 / 8}
    expected |= {"tie_precision": 3 / 3, "tie_recall": 3 / 4, "majority_accuracy": 2 / 6, "majority_both_right": 2 / 6}
    expected |= {"longer_both_right": 3 / 6, "clipped": 1 / 12}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics.keys() - expected.keys() == {"calibration", "set_aside", "asked", "rows_digest", "tokens"}
    assert calls == [(99, 16384, 0.0, 1, 0)]  # greedy, once
    assert [row["prompt"][0]["content"] for row in rows] == ASKED
    assert [row["label"] for row in rows] == [word for label in LABELS for word in (label, SWAPPED[label])]
    assert [row["verdict"] for row in rows] == [*"ABBAAA", "tie", "A", "tie", "tie", None, "A"]
    assert [(row["source"], row["order"]) for row in rows[10:]] == [
        ("held_out.parquet row 5", "as given"),
        ("held_out.parquet row 5", "swapped"),
    ]
    assert rows[10]["votes"] == [None] and [row["answers"] for row in rows] == [[text] for text in MIXED.values()]
    assert f"{'both_right':28} 0.5\n" in printed and "set aside" not in printed
    assert (tmp_path / "figures" / "evaluation_held_out.png").read_bytes().startswith(b"\x89PNG")
    (shown,) = held_by(tmp_path / "figures" / "evaluation_held_out.html")["sets"]
    assert shown["title"] == "held_out: 6 rows" and shown["tables"][0] == ["label", "verdict as given"]


def test_the_same_judge_gets_the_same_figures_on_the_pairs_turned_round(run, loaded):
    loaded(MIXED)
    expected = figures(run()[0])
    turned = [{**row, "output": row["output"][::-1]} for row in ROWS]
    turned = [{**row, "metadata": {"preferred": SWAPPED[label]}} for row, label in zip(turned, LABELS)]
    metrics = figures(run(rows=turned)[0])
    assert metrics["accuracy_as_given"] == expected["accuracy_swapped"] != expected["accuracy_as_given"]
    changed = {"accuracy_as_given", "accuracy_swapped", "rows_digest"}
    assert {name for name in metrics if metrics[name] != expected[name]} == changed


def test_a_served_judge_gets_the_figures_of_a_loaded_one(run, loaded):
    loaded(MIXED)
    expected, rows, _ = run()
    with served(MIXED) as (url, requests):
        metrics, served_rows, _ = run("--endpoint", url, model="judge")
    assert figures(metrics) == figures(expected) and metrics["asked"]["endpoint"] == url
    assert served_rows == rows and len(requests) == 12


def test_two_votes_that_contradict_each_other_are_no_verdict_loaded_or_served(run, loaded):
    """By hand: 8 · 2 + 1 + 0 + 2 + 0 of 24 votes are right; a draw is wrong, on the tie too."""
    votes = {text: [given, given] for text, given in RIGHT.items()}
    votes |= dict(zip(ASKED, [[A, B]])) | dict(zip(ASKED[6:], [[A, B], [TIE, TIE], [CLIPPED, CLIPPED]]))
    calls = loaded(votes)
    metrics, rows, _ = run("--votes", 2)
    assert calls == [(1024, 16384, 1.0, 2, 0)]
    assert [rows[number]["verdict"] for number in (0, 1, 6, 8)] == [None, "B", None, None]
    assert rows[8]["votes"] == [None, None] and rows[0]["votes"] == ["A", "B"]
    assert metrics["both_right"] == pytest.approx(3 / 6) and metrics["accuracy"] == pytest.approx(9 / 12)
    assert metrics["single_vote_accuracy"] == pytest.approx(19 / 24)
    assert metrics["calibration"] == [{"agreeing": 2, "rows": 9, "right": 9}]
    with served(votes) as (url, _):
        assert figures(run("--endpoint", url, "--votes", 2, model="judge")[0]) == figures(metrics)


def rendered(row: dict, **more) -> dict:
    given, swapped = prompts_of(row)
    texts = [answer["answer"]["content"] for answer in row["output"]]
    longer = "A" if len(texts[0]) > len(texts[1]) else "B"
    label = row["metadata"]["preferred"]
    return {"prompt": given, "prompt_swapped": swapped, "label": label, "longer": longer, **more}


def test_rendered_rows_are_judged_as_labelled_ones(run, loaded):
    loaded(MIXED)
    expected = figures(run()[0])
    assert figures(run(rows=[rendered(row) for row in ROWS])[0]) == expected


def test_a_pair_that_is_too_long_in_one_order_is_set_aside_in_both(run, loaded):
    long = [{"role": "user", "content": "long " * 900}]
    rows = [rendered(row) for row in ROWS]
    rows = [{**rows[0], "prompt_swapped": long}, {**rows[1], "prompt": long}, *rows[2:]]
    loaded(MIXED)
    with pytest.raises(
        DataError, match="2 of 12 prompts are longer .*\n  held_out.parquet row 0, swapped: [0-9]+ tokens"
    ):
        run("--max-prompt-length", 600, rows=rows)
    metrics, judged, printed = run("--max-prompt-length", 600, "--filter-overlong-prompts", rows=rows)
    left_out = {"prompt of more than 600 tokens": 2, "prompt left out with another of its row": 2}
    assert metrics["set_aside"] == left_out and all(f"set aside: 2 x {kind}\n" in printed for kind in left_out)
    assert [row["prompt"][0]["content"] for row in judged] == ASKED[4:]
    assert figures(metrics) == figures(run(rows=rows[2:])[0]) | {"set_aside": left_out}


def test_figures_before_and_after_are_shown_side_by_side_if_they_are_of_the_same_pairs(run, loaded, tmp_path):
    strong = [{**row, "metadata": {**row["metadata"], "preference_strength": 2.0}} for row in ROWS]
    loaded(MIXED)
    run(rows=strong)
    before = (tmp_path / "figures" / "evaluation_held_out.json").rename(tmp_path / "before.json")
    calls = loaded(RIGHT)
    _, _, printed = run("--compare-to", before, rows=strong)
    assert f"{'both_right':28} 0.5 -> 1\n" in printed and f"{'first_rate':28} 0.75 -> 0.5\n" in printed
    other = [*ROWS[:5], {**ROWS[5], "metadata": {"preferred": "A"}}]
    for rows in (ROWS[:5], other):
        with pytest.raises(DataError, match=f"not measured on these {2 * len(rows)} rows"):
            run("--compare-to", before, rows=rows)
    assert len(calls) == 1  # found out before anything was judged


def test_an_untrained_model_has_no_verdict_and_nothing_breaks(run):
    for options in ((), ("--votes", 2)):
        metrics, rows, _ = run("--max-new-tokens", 4, *options)
        assert metrics["parse_rate"] == metrics["accuracy"] == metrics["both_right"] == metrics["consistency"] == 0.0
        assert not {"first_rate", "tie_precision"} & metrics.keys() and metrics["tie_recall"] == 0.0
        assert [row["verdict"] for row in rows] == [None] * 12
