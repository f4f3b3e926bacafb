"""A judge's training run as a user starts it: what it leaves, resumed, on two workers, copied elsewhere, as a demo."""

import asyncio
import json
import math
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import POINTWISE_SCRIPT, kill_group, log_of, metrics_of, run, start, wait_for
from safetensors.torch import load_file
from test_page import held_by
from transformers import AutoTokenizer

from common.demo.world import SCORE_RUBRIC, pointwise_rows
from generative_pointwise import evaluate, grader, prompt

pytestmark = [pytest.mark.run, pytest.mark.timeout(1800)]  # the demo takes minutes; its first test waits for it

STEPS = 6
POLICY = "actor_rollout_ref"
SETTINGS = (
    "data.train_batch_size=16",
    "data.max_response_length=48",
    f"{POLICY}.actor.ppo_mini_batch_size=16",  # one update a step: halves of a batch differ between worker counts
    f"{POLICY}.actor.optim.lr=3e-4",
    f"{POLICY}.actor.optim.lr_warmup_steps=1",
    f"{POLICY}.rollout.n=4",
    f"{POLICY}.model.enable_gradient_checkpointing=False",
    "trainer.total_epochs=1",
    "trainer.test_freq=3",
    "trainer.save_freq=2",
    "trainer.max_ckpt_to_keep=1",
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, small_judge_run) -> Path:
    """A small run, nothing interrupted."""
    output = tmp_path_factory.mktemp("reference") / "outputs"
    run(output, *SETTINGS, script=POINTWISE_SCRIPT, **small_judge_run)
    return output


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """What `bash run_pointwise.sh` leaves with nothing set but OUTPUT: data, warm start, GRPO, evaluation."""
    output = tmp_path_factory.mktemp("demo") / "outputs"
    with pytest.MonkeyPatch.context() as environment:
        for name in ("MODEL_PATH", "TRAIN_FILES", "VAL_FILES", "TEST_FILES", "SEED", "ROLLOUT", "RAY_ADDRESS"):
            environment.delenv(name, raising=False)
        run(output, script=POINTWISE_SCRIPT, timeout=1700)
    return output


def largest_difference(output: Path, expected: Path) -> float:
    weights, others = (load_file(folder / "model.safetensors") for folder in (output, expected))
    assert weights.keys() == others.keys()
    return max((weights[name] - others[name]).abs().max().item() for name in others)


def test_the_rewards_of_every_step_are_what_they_should_be(reference):
    """Every answer counts in every share."""
    for name, lowest, highest in (
        ("train/parsed", 0.5, 1),
        ("train/acc", 0.02, 0.98),
        ("train/reward", 0.1, 0.98),
        ("train/no_signal", 0, 0.9),
        ("train/grad_norm", 1e-3, 100),
    ):
        values = metrics_of(reference, name)
        assert list(values) == list(range(1, STEPS + 1)), name
        assert all(lowest <= value <= highest for value in values.values()), (name, values)
    answers = 16 * 4
    for name in ("train/acc", "train/parsed"):
        assert all(
            math.isclose(value * answers, round(value * answers)) for value in metrics_of(reference, name).values()
        )


def test_what_a_run_leaves(reference):
    for name in ("checkpoint", "checkpoint_last"):
        folder = reference / name
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "run.png"} <= {
            path.name for path in folder.iterdir()
        }
        assert AutoTokenizer.from_pretrained(folder).chat_template
    for name in ("checkpoint", "checkpoint_last", "tokenizer"):
        assert (reference / name / "rubric.txt").read_text() == SCORE_RUBRIC  # the one in the rows
    assert sorted(path.name for path in reference.glob("global_step_*")) == [f"global_step_{STEPS}"]
    assert any((reference / "tensorboard").iterdir())
    card = (reference / "checkpoint" / "README.md").read_text()
    for part in ("library_name: transformers", "pipeline_tag: text-generation", "val/acc"):
        assert part in card
    best, rewards = json.loads((reference / "best.json").read_text()), metrics_of(reference, "val/reward")
    assert sorted(rewards) == [0, 3, STEPS]
    assert best["val/reward"] == max(rewards.values()) == rewards[best["step"]]
    text = log_of(reference)
    assert f"val at step 0  reward {rewards[0]:.4g}" in text and f"step {STEPS}/{STEPS}  reward" in text
    assert f"checkpoint of step {STEPS} saved" in text
    for note in ("dataset len: ", "colocated worker", "Initial validation", "Dumped generations", "blocking ray.get"):
        assert note not in text


def test_its_page_shows_the_best_policys_answers_to_the_validation_rows(reference):
    best = json.loads((reference / "best.json").read_text())
    (shown,) = held_by(reference / "report.html")["sets"]
    rows = [dict(zip(shown["columns"], row[1])) for row in shown["rows"]]
    assert [row["source"] for row in rows] == [f"val.parquet row {number}" for number in range(24)]
    assert sum(row["right"] == "yes" for row in rows) / 24 == pytest.approx(best["val/acc"])
    assert sum(row["verdict"] != "no verdict" for row in rows) / 24 == pytest.approx(best["val/parsed"])
    assert shown["title"] == "val: 24 rows"


def test_killed_and_resumed_equals_uninterrupted(tmp_path, small_judge_run, reference):
    output = tmp_path / "outputs"
    process = start(output, *SETTINGS, script=POINTWISE_SCRIPT, **small_judge_run)
    wait_for(lambda: max(metrics_of(output, "train/reward"), default=0) >= 3)
    kill_group(process)
    saved = int((output / "latest_checkpointed_iteration.txt").read_text())
    assert 2 <= saved < STEPS
    assert f"resuming after step {saved} of {STEPS}" in run(
        output, *SETTINGS, script=POINTWISE_SCRIPT, **small_judge_run
    )
    for name in ("train/reward", "train/acc", "train/grad_norm", "val/reward"):
        values, expected = (metrics_of(folder, name) for folder in (output, reference))
        values = {step: value for step, value in values.items() if step in expected}  # what was resumed is measured too
        assert values == pytest.approx(expected, abs=1e-5), name
    for name in ("checkpoint", "checkpoint_last"):
        assert largest_difference(output / name, reference / name) <= 1e-6


def test_two_workers_get_the_same_answers(tmp_path, small_judge_run, reference):
    """Before the first update exactly; then nearly, until a draw on the edge falls to the other side.

    Here the old log-probabilities are computed, not the sampler's as in the reference: it makes no difference.
    """
    output = tmp_path / "outputs"
    settings = (*SETTINGS, f"{POLICY}.actor.ppo_max_token_len_per_gpu=4000", "trainer.total_training_steps=3")
    limits = ("data.max_prompt_length=512", "algorithm.rollout_correction.bypass_mode=False")
    run(output, *settings, *limits, script=POINTWISE_SCRIPT, **small_judge_run, N_GPUS_PER_NODE="2")
    for name, step, tolerance in (
        ("val/reward", 0, 1e-6),
        ("train/reward", 1, 1e-6),
        ("train/acc", 1, 1e-6),
        ("train/grad_norm", 1, 1e-3),
        ("train/reward", 3, 0.1),
        ("val/reward", 3, 0.05),
    ):
        values, expected = (metrics_of(folder, name)[step] for folder in (output, reference))
        assert values == pytest.approx(expected, abs=tolerance), (name, step)
    name = "training/rollout_probs_diff_max"
    differences, in_reference = metrics_of(output, name), metrics_of(reference, name)
    assert list(differences) == [1, 2, 3] and max(differences.values()) <= 1e-4 and not in_reference
    computed, estimated = (metrics_of(folder, "train/entropy")[1] for folder in (output, reference))
    assert estimated == pytest.approx(computed, rel=0.1)  # from some 2,000 tokens


def test_the_demo_mends_the_judges_leniency(demo):
    """On 400 held-out rows. The warm start has learned to judge, and to call good what is not; GRPO corrects that."""
    text = log_of(demo)
    stages = [line for line in text.splitlines() if line.startswith("=== ")]
    assert stages == [
        "=== the demo's data",
        "=== warm start: a judge to start from, by SFT",
        "=== GRPO",
        "=== before training:",
        "=== before training -> the best policy:",
    ]
    before, after = (
        json.loads((demo / path).read_text()) for path in ("before/evaluation_test.json", "evaluation_test.json")
    )
    assert before["rows"] == after["rows"] == 400
    assert before["parse_rate"] == pytest.approx(1, abs=0.01) and after["parse_rate"] == pytest.approx(1, abs=0.01)
    assert before["majority_accuracy"] < before["accuracy"] < 0.75  # lenient, not clueless
    assert after["accuracy"] >= before["accuracy"] + 0.2
    assert after["mae"] < before["mae"] and after["kappa"] > before["kappa"]
    shown = next(line for line in reversed(text.splitlines()) if line.startswith("accuracy "))
    assert shown.split() == ["accuracy", f"{before['accuracy']:.4g}", "->", f"{after['accuracy']:.4g}"]
    assert "Measured on test.parquet" in (demo / "checkpoint" / "README.md").read_text()


@pytest.mark.parametrize("judge", ["warm_start/checkpoint", "checkpoint"])
def test_evaluate_gives_the_trainers_validation(demo, tmp_path, monkeypatch, judge):
    """Greedy answers of a checkpoint, by transformers alone, are right as often as in the trainer's validation."""
    step = json.loads((demo / "best.json").read_text())["step"] if judge == "checkpoint" else 0
    options = {"--model": demo / judge, "--data": demo / "data" / "val.parquet", "--settings": demo / "settings.yaml"}
    options |= {"--tokenizer": demo / "tokenizer"} if judge != "checkpoint" else {}  # as the script does
    arguments = [str(part) for option in options.items() for part in option]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "--output", str(tmp_path)])
    evaluate.main()
    found = json.loads((tmp_path / "evaluation_val.json").read_text())
    assert found["rows"] == 200
    for name, trainers in (("accuracy", "val/acc"), ("parse_rate", "val/parsed")):
        assert found[name] == pytest.approx(metrics_of(demo, trainers)[step])


def test_the_grader_gives_the_verdicts_of_evaluate(demo):
    """Of the checkpoint alone: the rubric, too, is what the run left in it."""
    answered = pq.read_table(demo / "evaluation_test.parquet").to_pylist()
    assert [prompt.parse(row["answers"][0]) for row in answered] == [row["verdict"] for row in answered]
    judge = grader.PointwiseGrader(str(demo / "checkpoint"), max_new_tokens=48)

    async def grade_all() -> list:
        rows = pointwise_rows("test", 400, seed=0)[:40]
        asked = [(row["input"], row["output"][0]["answer"]["content"]) for row in rows]
        return await asyncio.gather(*(judge.aevaluate(query=query, response=text) for query, text in asked))

    expected = [row["verdict"] for row in answered[:40]]
    assert [getattr(result, "score", None) for result in asyncio.run(grade_all())] == expected
