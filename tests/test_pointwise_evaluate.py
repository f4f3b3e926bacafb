"""evaluate.py as it is called: a loaded and a served judge get the same figures, and what it leaves is whole."""

import json
import shutil
import sys

import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from sklearn.metrics import cohen_kappa_score
from test_endpoint import completion, serve
from test_page import held_by

from common.conversation import DataError
from common.demo.world import pointwise_rows
from common.generation import Answer
from common.grading.endpoint import EndpointError
from common.parquet import write_rows
from generative_pointwise import evaluate
from generative_pointwise.prompt import ask, read_row, write

ROWS = pointwise_rows("test", 8, seed=0)
LABELS = [row["label"] for row in ROWS]
JUDGED = [read_row(row) for row in ROWS]
ASKED = [ask(judged.dialogue, judged.response)[0]["content"] for judged in JUDGED]
RIGHT = [write(label, "as asked") for label in LABELS]
CLIPPED = "<think>\nHm, let me see"
# by hand: six right, one off by one, one without an end
MIXED = [*RIGHT[:6], write(LABELS[6] - 1 if LABELS[6] else 1), CLIPPED]


@pytest.fixture
def run(tiny_model, tmp_path, monkeypatch, capsys):
    """Evaluate rows; return the metrics, the rows written and what was printed."""

    def evaluate_rows(*options, rows=ROWS, model=tiny_model) -> tuple[dict, list[dict], str]:
        data = write_rows(tmp_path / "held_out.parquet", rows)
        arguments = ["--model", model, "--data", data, "--output", tmp_path / "figures", *options]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        evaluate.main()
        votes = next((f"_{value}_votes" for option, value in zip(options, options[1:]) if option == "--votes"), "")
        written = tmp_path / "figures" / f"evaluation_held_out{votes}.json"
        return json.loads(written.read_text()), pq.read_table(written.with_suffix(".parquet")).to_pylist(), printed()

    def printed() -> str:
        return capsys.readouterr().out

    return evaluate_rows


@pytest.fixture
def loaded(monkeypatch):
    """Let answers come from a list, for each row its votes or one text, and not from the untrained model."""

    def answer_by(answers: list) -> list[tuple]:
        calls = []

        def answer(model, tokenizer, prompts, *limits):
            calls.append(limits)
            (*_, votes, _) = limits
            found = [next(number for number, text in enumerate(ASKED) if text in given) for given in prompts]
            texts = [([answers[n]] * votes if isinstance(answers[n], str) else answers[n]) for n in found]
            return [[Answer(text, clipped=text == CLIPPED) for text in given] for given in texts]

        monkeypatch.setattr("common.judging.asking.answer_prompts", answer)
        return calls

    return answer_by


def served(answers: list, split: bool = False):
    """A server that gives those answers; `split` as one behind a reasoning parser."""

    def reply(request, _):
        given = answers[ASKED.index(request["messages"][-1]["content"])]
        text = given if isinstance(given, str) else given[request["seed"]]
        message = {"content": text}
        if split:
            reasoning, _, rest = text.removeprefix("<think>").partition("</think>")
            message = {"content": rest or None, "reasoning_content": reasoning}
        return 200, completion(message, "length" if text == CLIPPED else "stop")

    return serve(reply)


def figures(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name != "asked"}


def test_a_judge_that_is_right_six_times_of_eight(run, loaded, tmp_path):
    calls = loaded(MIXED)
    metrics, rows, printed = run("--max-new-tokens", 99)
    expected = {"rows": 8, "parse_rate": 7 / 8, "accuracy": 6 / 8, "within_one": 7 / 8, "mae": 1 / 7, "clipped": 1 / 8}
    assert {name: metrics[name] for name in expected} == expected
    assert calls == [(99, 16384, 0.0, 1, 0)]  # greedy, once
    assert [row["label"] for row in rows] == LABELS
    assert [row["verdict"] for row in rows][:6] == LABELS[:6] and rows[7]["verdict"] is None
    assert [row["answers"] for row in rows] == [[text] for text in MIXED]
    assert [row["prompt"][0]["content"] for row in rows] == ASKED
    assert rows[7]["source"] == "held_out.parquet row 7" and rows[7]["votes"] == [None]
    assert f"{'accuracy':28} 0.75\n" in printed and "set aside" not in printed
    assert (tmp_path / "figures" / "evaluation_held_out.png").read_bytes().startswith(b"\x89PNG")
    (shown,) = held_by(tmp_path / "figures" / "evaluation_held_out.html")["sets"]
    assert shown["title"] == "held_out: 8 rows" and shown["tables"][0] == ["label", "verdict"]
    assert not {"evidence", "single_vote_accuracy"} & metrics.keys() and metrics["calibration"] == []


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_a_served_judge_gets_the_figures_of_a_loaded_one(run, loaded, tiny_model, split, with_tokenizer):
    """Trap 28."""
    loaded(MIXED)
    expected, rows, _ = run()
    tokenizer = ["--tokenizer", tiny_model] if with_tokenizer else []
    with served(MIXED, split) as (url, requests):
        metrics, served_rows, _ = run("--endpoint", url, *tokenizer, model="judge")
    assert figures(metrics) == figures(expected) and metrics["asked"]["endpoint"] == url
    assert [row["verdict"] for row in served_rows] == [row["verdict"] for row in rows]
    assert len(requests) == 8 and all("seed" not in request for request in requests)


def test_several_votes_are_sampled_counted_and_alike_loaded_or_served(run, loaded):
    """By hand: 1 + 2 + 18 of 24 votes are right; six rows are unanimous, one has two of three, one has no verdict."""
    votes = [[RIGHT[0], "Hm", CLIPPED], [RIGHT[1], RIGHT[1], ""], *([text] * 3 for text in RIGHT[2:])]
    calls = loaded(votes)
    metrics, rows, _ = run("--votes", 3)
    assert calls == [(1024, 16384, 1.0, 3, 0)]
    assert metrics["single_vote_accuracy"] == pytest.approx(21 / 24)
    assert metrics["parse_rate"] == metrics["accuracy"] == 7 / 8  # one of three votes is no verdict
    assert metrics["calibration_error"] == pytest.approx((1 - 2 / 3) / 7)
    assert metrics["calibration"] == [
        {"agreeing": 2, "rows": 1, "right": 1},
        {"agreeing": 3, "rows": 6, "right": 6},
    ]
    assert metrics["clipped"] == pytest.approx(1 / 24)
    assert rows[1]["votes"] == [LABELS[1], LABELS[1], None]
    with served(votes) as (url, requests):
        assert figures(run("--endpoint", url, "--votes", 3, model="judge")[0]) == figures(metrics)
    assert len(requests) == 24 and {request["temperature"] for request in requests} == {1.0}


def test_an_untrained_model_has_no_verdict_and_nothing_breaks(run):
    for options in ((), ("--votes", 2)):
        metrics, rows, _ = run("--max-new-tokens", 8, *options)
        assert metrics["parse_rate"] == metrics["accuracy"] == metrics["within_one"] == 0.0
        assert metrics["majority_accuracy"] > 0 and not {"mae", "kappa", "spearman"} & metrics.keys()
        assert [row["verdict"] for row in rows] == [None] * 8
    assert metrics["clipped"] > 0 and metrics["single_vote_accuracy"] == 0.0


def test_what_the_chat_template_began_belongs_to_the_answer(run, loaded, tiny_tokenizer, monkeypatch):
    """Trap 23: the prompt ends with a closed think block, and the model answers with the score alone."""
    tiny_tokenizer.chat_template = "{% set enable_thinking = false %}" + tiny_tokenizer.chat_template
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: tiny_tokenizer)
    bare = [f"<score>{label}</score>" for label in LABELS]
    loaded(bare)
    expected, rows, _ = run()
    assert expected["parse_rate"] == expected["accuracy"] == 1.0
    assert rows[0]["answers"] == ["<think>\n\n</think>\n\n" + bare[0]]
    with served(bare) as (url, _):
        assert figures(run("--endpoint", url, "--tokenizer", "it", model="judge")[0]) == figures(expected)
        assert run("--endpoint", url, model="judge")[0]["parse_rate"] == 0.0  # what began the answer is unknown


def test_evidence_is_counted_where_rows_carry_it(run, loaded):
    rows = [{**row, "evidence": ["as asked"] if number < 4 else []} for number, row in enumerate(ROWS)]
    loaded([*RIGHT[:3], write(LABELS[3], "no idea"), *RIGHT[4:]])
    metrics, _, _ = run(rows=rows)
    assert (metrics["evidence"], metrics["evidence_rows"]) == (3 / 4, 4)
    with serve(lambda *_: "<score>3</score>") as (url, _):
        hidden, _, _ = run("--endpoint", url, "--hidden-reasoning", rows=rows, model="judge")
    assert hidden["parse_rate"] == 1 and "evidence" not in hidden


def test_rendered_rows_are_judged_as_labelled_ones(run, loaded):
    loaded(MIXED)
    expected = figures(run()[0])
    rendered = [{"prompt": [{"role": "user", "content": text}], "label": label} for text, label in zip(ASKED, LABELS)]
    assert figures(run(rows=rendered)[0]) == expected


def test_labelled_rows_are_asked_by_the_rubric_that_the_judge_was_trained_by(run, loaded, tiny_model, tmp_path):
    """A run leaves it in the checkpoint; behind an endpoint --tokenizer names it. Written prompts stay."""
    trained = shutil.copytree(tiny_model, tmp_path / "trained")
    (trained / "rubric.txt").write_text("Brevity.")
    brief = [ask(judged.dialogue, judged.response, "Brevity.")[0]["content"] for judged in JUDGED]
    asked = [text for text in brief]
    with serve(lambda request, _: RIGHT[asked.index(request["messages"][-1]["content"])]) as (url, _):
        metrics, rows, _ = run("--endpoint", url, "--tokenizer", trained, model="judge")
        assert metrics["accuracy"] == 1 and [row["prompt"][0]["content"] for row in rows] == brief
        asked[:] = ASKED
        assert run("--endpoint", url, "--tokenizer", tiny_model, model="judge")[0]["accuracy"] == 1
        written = [{"prompt": [{"role": "user", "content": text}], "label": 3} for text in ASKED]
        rows = run("--endpoint", url, "--tokenizer", trained, rows=written, model="judge")[1]
        assert [row["prompt"][0]["content"] for row in rows] == ASKED
    rows = run("--max-new-tokens", 8, model=trained)[1]
    assert [row["prompt"][0]["content"] for row in rows] == brief


# ---- what is set aside, and the run's own settings


def test_bad_and_long_rows_are_refused_or_set_aside_and_never_judged(run, loaded, tmp_path):
    broken, long = {**ROWS[0], "label": 7}, {**ROWS[0], "input": [{"role": "user", "content": "long " * 900}]}
    loaded(RIGHT)
    with pytest.raises(DataError, match="row 8, column 'label'"):
        run(rows=[*ROWS, broken])
    with pytest.raises(DataError, match="row 0: [0-9]+ tokens"):
        run("--max-prompt-length", 600, rows=[long, *ROWS])
    expected = run()[0]
    settings = tmp_path / "settings.yaml"
    data = {"max_prompt_length": 600, "max_response_length": 7, "filter_overlong_prompts": True, "on_bad_row": "drop"}
    settings.write_text(json.dumps({"data": data, "actor_rollout_ref": {"model": {"trust_remote_code": False}}}))
    calls = loaded(RIGHT)
    metrics, rows, printed = run("--settings", settings, rows=[long, *ROWS, broken])
    assert metrics["set_aside"] == {
        "column 'label': expected a whole number from 0 to 4, the scale that SCORES sets": 1,
        "prompt of more than 600 tokens": 1,
    }
    assert "set aside: 1 x prompt of more than 600 tokens" in printed
    assert calls[0][0] == 7 and metrics["asked"]["max_new_tokens"] == 7
    assert metrics | {"set_aside": {}, "asked": {}} == expected | {"asked": {}}
    assert [row["source"] for row in rows] == [f"held_out.parquet row {number}" for number in range(1, 9)]


# ---- the card, and before and after


def test_figures_before_and_after_are_shown_side_by_side_if_they_are_of_the_same_rows(run, loaded, tmp_path):
    loaded(MIXED)
    run()
    before = (tmp_path / "figures" / "evaluation_held_out.json").rename(tmp_path / "before.json")
    loaded(RIGHT)
    _, _, printed = run("--compare-to", before)
    assert f"{'accuracy':28} 0.75 -> 1\n" in printed and f"{'mae':28} 0.1429 -> 0\n" in printed
    assert "before.parquet: not there, so verdicts are not compared one by one" in printed and "both_" not in printed
    calls = loaded(RIGHT)
    with pytest.raises(DataError, match="not measured on these 7 rows"):
        run("--compare-to", before, rows=ROWS[:7])
    assert calls == []  # found out before anything was judged
    with pytest.raises(DataError, match="no such file"):
        run("--compare-to", tmp_path / "absent.json")


def test_two_judges_are_compared_verdict_by_verdict(run, loaded, tmp_path):
    """By hand: the first is right six times of eight, off by one once and silent once; the second is right."""
    loaded(MIXED)
    _, rows, printed = run()
    assert "written: " in printed and "in place of" not in printed
    for kind in (".json", ".parquet"):
        shutil.copy(tmp_path / "figures" / f"evaluation_held_out{kind}", tmp_path / f"before{kind}")
    loaded(RIGHT)
    metrics, _, printed = run("--compare-to", tmp_path / "before.json")
    assert "evaluation_held_out.* in place of an earlier evaluation (--output FOLDER keeps both)\n" in printed
    value, low, high = metrics["compared"]["both_agreement"]
    assert value == 6 / 8 and 0.3 < low < value < high <= 1
    first, second = zip(*[(row["verdict"], label) for row, label in zip(rows, LABELS) if row["verdict"] is not None])
    assert metrics["compared"]["both_kappa"][0] == cohen_kappa_score(first, second, weights="quadratic")
    assert f"{'both_agreement':28} 0.750, 95% interval {low:.3f} to {high:.3f}\n" in printed


def test_the_tokens_of_both_judges_are_shown(run, loaded, tmp_path):
    usage = {"prompt_tokens": 120, "completion_tokens": 30, "total_tokens": 150}
    with serve(lambda request, _: (200, completion(RIGHT[0]) | {"usage": usage})) as (url, _):
        metrics, _, printed = run("--endpoint", url, model="judge")
        assert metrics["tokens"] == {"tokens_asked": 120_000, "tokens_answered": 30_000}
        assert f"{'tokens_asked':28} 120,000 in a thousand judgements\n" in printed
        before = (tmp_path / "figures" / "evaluation_held_out.json").rename(tmp_path / "before.json")
        usage["completion_tokens"] = 15
        _, _, printed = run("--endpoint", url, "--compare-to", before, model="judge")
    assert f"{'tokens_answered':28} 30,000 -> 15,000 in a thousand judgements\n" in printed


def test_the_card_has_the_figures_and_their_picture(run, loaded, tiny_model, tmp_path):
    loaded(MIXED)
    checkpoint = shutil.copytree(tiny_model, tmp_path / "checkpoint")
    run("--card", model=checkpoint)
    card = (checkpoint / "README.md").read_text()
    assert "## Measured on held_out.parquet" in card and "| accuracy | 0.75 |" in card
    assert "(evaluation_held_out.png)" in card and (checkpoint / "evaluation_held_out.png").exists()

    (checkpoint / "README.md").write_text("---\ntags: [reward-recipes]\n---\n# Judge\n")
    run("--card", model=checkpoint)
    results = {
        each.metric_type: each.metric_value for each in ModelCard.load(checkpoint / "README.md").data.eval_results
    }
    assert results["accuracy"] == 0.75 and results.keys() == {"accuracy", "parse_rate", "kappa"}


@pytest.mark.parametrize(
    "options, message",
    [
        (("--votes", 3, "--temperature", 0), "greedy votes are all the same"),
        (("--votes", 0), "at least 1"),
        (("--concurrency", 0), "at least 1"),
        (("--endpoint", "http://127.0.0.1:1/v1", "--max-prompt-length", 9), "--tokenizer"),
        (("--endpoint", "http://127.0.0.1:1/v1", "--card"), "--card writes into the checkpoint's folder"),
    ],
)
def test_options_that_contradict_each_other_are_refused(run, options, message):
    with pytest.raises(DataError, match=message):
        run(*options, model="judge")


def test_an_endpoint_that_refuses_leaves_no_figures(run, tmp_path):
    error = (400, {"error": {"message": "no model judge"}})
    with serve(lambda *_: error) as (url, _), pytest.raises(EndpointError, match="no model judge"):
        run("--endpoint", url, model="judge")
    assert not (tmp_path / "figures").exists()
