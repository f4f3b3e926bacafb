"""A pairwise judge's training run as a user starts it: the demo with nothing set."""

import asyncio
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import PAIRWISE_SCRIPT, log_of, metrics_of, run
from test_page import held_by
from transformers import AutoTokenizer

from common.demo.world import PREFERENCE_RUBRIC, pairwise_rows
from common.report import format_value
from generative_pairwise import evaluate, prompt
from generative_pairwise.grader import PairwiseGrader

# The demo takes five to six minutes on two free cores. The first test of this file waits for it.
pytestmark = [pytest.mark.run, pytest.mark.timeout(2400)]
STEPS = 20


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """What `bash run_pairwise.sh` leaves with nothing set but OUTPUT: data, warm start, GRPO, evaluation."""
    output = tmp_path_factory.mktemp("demo") / "outputs"
    run(output, script=PAIRWISE_SCRIPT, timeout=2000)
    return output


def figures_of(demo: Path) -> tuple[dict, dict]:
    """The figures of the test pairs, before training and after."""
    return tuple(json.loads((demo / name / "evaluation_test.json").read_text()) for name in ("before", "."))


def test_the_demo_mends_the_judges_bias(demo):
    """On 200 held-out pairs. Before, two of three ties are called "A", because that response is shown first."""
    before, after = figures_of(demo)
    assert before["pairs"] == after["pairs"] == 200 and before["rows_digest"] == after["rows_digest"]
    assert after["both_right"] >= before["both_right"] + 0.2
    assert before["both_right"] >= before["longer_both_right"] + 0.1  # the warm start has learned to judge
    assert before["first_rate"] > 0.6 and after["first_rate"] == pytest.approx(0.5, abs=0.02)
    assert after["tie_recall"] >= before["tie_recall"] + 0.5
    text = log_of(demo)
    for name in ("both_right", "first_rate", "tie_recall"):
        assert f"{name:28} {format_value(before[name])} -> {format_value(after[name])}\n" in text
    assert "Traceback" not in text


def test_the_figures_of_every_step_are_shares_that_make_the_reward(demo):
    """320 pairs in both orders are 640 prompts: 20 steps of 32."""
    right, parsed, first, tie, rewards = (
        metrics_of(demo, f"train/{name}") for name in ("acc", "parsed", "first", "tie", "reward")
    )
    assert list(rewards) == list(range(1, STEPS + 1))
    for step, reward in rewards.items():
        assert reward == pytest.approx(right[step] - 0.5 * (1 - parsed[step]), abs=1e-6)
        assert 0.1 <= first[step] <= 0.8 and 0 <= tie[step] <= 0.6 and first[step] + tie[step] <= parsed[step] <= 1
    assert right[1] < 0.9 and tie[1] < tie[STEPS]


def test_verl_was_given_every_pair_in_both_orders(demo):
    rows = pq.read_table(demo / "rows" / "train.parquet").to_pylist()
    pairs = pq.read_table(demo / "data" / "train.parquet").to_pylist()
    assert len(rows) == 640 and len(pairs) == 320
    for number, pair in enumerate(pairs):
        as_given, swapped = rows[2 * number : 2 * number + 2]
        assert (as_given["prompt"], swapped["prompt"]) == (pair["prompt"], pair["prompt_swapped"])
        truths = [row["reward_model"]["ground_truth"] for row in (as_given, swapped)]
        assert truths == [pair["label"], prompt.SWAPPED[pair["label"]]]
        assert [row["extra_info"]["source"] for row in (as_given, swapped)] == [
            f"train.parquet row {number}, as given",
            f"train.parquet row {number}, swapped",
        ]


def test_what_a_run_leaves(demo):
    files = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "run.png", "rubric.txt"}
    for name in ("checkpoint", "checkpoint_last"):
        folder = demo / name
        assert files <= {path.name for path in folder.iterdir()}
        assert AutoTokenizer.from_pretrained(folder).chat_template
        assert (folder / "rubric.txt").read_text() == PREFERENCE_RUBRIC
    card = (demo / "checkpoint" / "README.md").read_text()
    for part in ("pipeline_tag: text-generation", "val/acc", "Measured on test.parquet", "both_right", "consistency"):
        assert part in card
    best, rewards = json.loads((demo / "best.json").read_text()), metrics_of(demo, "val/reward")
    assert sorted(rewards) == [0, 5, 10, 15, STEPS]
    assert best["val/reward"] == max(rewards.values()) == rewards[best["step"]]
    (shown,) = held_by(demo / "report.html")["sets"]
    rows = [dict(zip(shown["columns"], row[1])) for row in shown["rows"]]
    right = [row[f"verdict {order}"] == row["label"] for row in rows for order in ("as given", "swapped")]
    assert sum(right) / len(right) == pytest.approx(best["val/acc"])


@pytest.mark.parametrize("judge", ["warm_start/checkpoint", "checkpoint"])
def test_evaluate_gives_the_trainers_validation(demo, tmp_path, monkeypatch, judge):
    """Greedy answers of a checkpoint, by transformers alone, are right as often as in the trainer's validation."""
    step = json.loads((demo / "best.json").read_text())["step"] if judge == "checkpoint" else 0
    options = {"--model": demo / judge, "--data": demo / "data" / "val.parquet", "--settings": demo / "settings.yaml"}
    arguments = [str(part) for option in options.items() for part in option]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "--output", str(tmp_path)])
    evaluate.main()
    found = json.loads((tmp_path / "evaluation_val.json").read_text())
    assert found["pairs"] == 100
    for name, trainers in (("accuracy", "val/acc"), ("parse_rate", "val/parsed")):
        assert found[name] == pytest.approx(metrics_of(demo, trainers)[step])


@pytest.mark.parametrize("place, judge", [("before", "warm_start/checkpoint"), (".", "checkpoint")])
def test_the_grader_gives_the_verdicts_of_evaluate(demo, place, judge):
    """In both orders. The trained judge's rubric is what the run left in its checkpoint; SFT's leaves none."""
    rows = pq.read_table(demo / place / "evaluation_test.parquet").to_pylist()
    assert [row["order"] for row in rows] == ["as given", "swapped"] * 200
    assert [prompt.parse(row["answers"][0]) for row in rows] == [row["verdict"] for row in rows]
    said = {row["prompt"][0]["content"]: row["verdict"] for row in rows}
    pairs = [prompt.read_row(row) for row in pairwise_rows("test", 200, seed=0)[:40]]

    rubric = {} if judge == "checkpoint" else {"rubric": PREFERENCE_RUBRIC}
    grader = PairwiseGrader(str(demo / judge), max_new_tokens=48, **rubric)

    async def grade_all() -> list:
        calls = [{"query": p.dialogue, "response_a": p.response_a, "response_b": p.response_b} for p in pairs]
        return await asyncio.gather(*(grader.aevaluate(**call) for call in calls))

    expected = []
    for pair in pairs:
        asked = (
            prompt.ask(shown.dialogue, shown.response_a, shown.response_b, PREFERENCE_RUBRIC)
            for shown in (pair, pair.swap())
        )
        as_given, swapped = (said[question[0]["content"]] for question in asked)
        expected.append([as_given, prompt.SWAPPED.get(swapped)])
    assert [result.metadata["verdicts"] for result in asyncio.run(grade_all())] == expected
