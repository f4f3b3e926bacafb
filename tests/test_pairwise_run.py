"""A pairwise judge's training run as a user starts it: what it leaves; copied, killed and resumed; on two workers."""

import asyncio
import json
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import PAIRWISE_SCRIPT, finish, kill_group, log_of, metrics_of, run, start, wait_for
from test_pointwise_run import POLICY, SETTINGS, STEPS, largest_difference
from transformers import AutoTokenizer

from common.demo.world import pairwise_rows
from common.judge import SWAPPED
from common.parquet import write_rows
from generative_pairwise import prompt


@pytest.fixture(scope="module")
def reference(tmp_path_factory, small_pair_run) -> Path:
    """A run with held-out pairs that are judged before and after."""
    output = tmp_path_factory.mktemp("reference") / "outputs"
    environment = small_pair_run | {"TEST_FILES": small_pair_run["VAL_FILES"]}
    run(output, *SETTINGS, script=PAIRWISE_SCRIPT, **environment)
    return output


def test_the_rewards_and_log_probs_of_every_step_are_what_they_should_be(reference):
    """48 pairs in both orders are 96 prompts: six steps of 16."""
    for name, lowest, highest in (
        ("training/rollout_probs_diff_max", 0, 1e-4),
        ("train/parsed", 0.5, 1),
        ("train/acc", 0.02, 0.98),
        ("train/first", 0.1, 0.9),
        ("train/reward", 0.1, 0.98),
        ("train/no_signal", 0, 0.9),
        ("train/grad_norm", 1e-3, 100),
    ):
        values = metrics_of(reference, name)
        assert list(values) == list(range(1, STEPS + 1)), name
        assert all(lowest <= value <= highest for value in values.values()), (name, values)
    right, parsed, rewards = (metrics_of(reference, f"train/{name}") for name in ("acc", "parsed", "reward"))
    for step, reward in rewards.items():
        assert reward == pytest.approx(right[step] - 0.5 * (1 - parsed[step]), abs=1e-6)


def test_verl_was_given_every_pair_in_both_orders(reference, small_pair_run):
    rows = pq.read_table(reference / "rows" / "train.parquet").to_pylist()
    pairs = pq.read_table(small_pair_run["TRAIN_FILES"]).to_pylist()
    assert len(rows) == 96 and len(pairs) == 48
    for number, pair in enumerate(pairs):
        as_given, swapped = rows[2 * number : 2 * number + 2]
        assert (as_given["prompt"], swapped["prompt"]) == (pair["prompt"], pair["prompt_swapped"])
        truths = [row["reward_model"]["ground_truth"] for row in (as_given, swapped)]
        assert truths == [pair["label"], SWAPPED[pair["label"]]]
        assert [row["extra_info"]["source"] for row in (as_given, swapped)] == [
            f"train.parquet row {number}, as given",
            f"train.parquet row {number}, swapped",
        ]


def test_what_a_run_leaves(reference):
    for name in ("checkpoint", "checkpoint_last"):
        folder = reference / name
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "run.png"} <= {
            path.name for path in folder.iterdir()
        }
        assert AutoTokenizer.from_pretrained(folder).chat_template
    card = (reference / "checkpoint" / "README.md").read_text()
    for part in ("pipeline_tag: text-generation", "val/acc", "Measured on val.parquet", "both_right", "consistency"):
        assert part in card
    best, rewards = json.loads((reference / "best.json").read_text()), metrics_of(reference, "val/reward")
    assert best["val/reward"] == max(rewards.values()) == rewards[best["step"]]


def test_the_exported_judge_gives_the_trainers_verdicts(reference):
    """Greedy answers of the checkpoint, by transformers alone, agree with the trainer's validation in both orders."""
    before, after = (
        json.loads((reference / path).read_text()) for path in ("before/evaluation_val.json", "evaluation_val.json")
    )
    best = json.loads((reference / "best.json").read_text())
    for found, step in ((before, 0), (after, best["step"])):
        assert found["pairs"] == 12
        assert found["accuracy"] == pytest.approx(metrics_of(reference, "val/acc")[step])
        assert found["parse_rate"] == pytest.approx(metrics_of(reference, "val/parsed")[step])
    answered = pq.read_table(reference / "evaluation_val.parquet").to_pylist()
    assert [row["order"] for row in answered] == ["as given", "swapped"] * 12
    assert [prompt.parse(row["answers"][0]) for row in answered] == [row["verdict"] for row in answered]


def test_the_grader_gives_the_verdicts_of_evaluate(reference):
    """Of the checkpoint alone, in both orders; the rubric, too, is what the run left in it."""
    from generative_pairwise import grader as module

    grader = module.PairwiseGrader(str(reference / "checkpoint"), max_new_tokens=48)

    async def grade_all() -> list:
        return await asyncio.gather(
            *(
                grader.aevaluate(query=row["input"], response_a=first, response_b=second)
                for row in pairwise_rows("val", 12, seed=0)
                for first, second in [[answer["answer"]["content"] for answer in row["output"]]]
            )
        )

    verdicts = pq.read_table(reference / "evaluation_val.parquet")["verdict"].to_pylist()
    expected = [[as_given, SWAPPED.get(swapped)] for as_given, swapped in zip(verdicts[::2], verdicts[1::2])]
    given = [result.metadata.get("verdicts") for result in asyncio.run(grade_all())]
    assert given == [None if None in pair else pair for pair in expected]
    assert any(given)


def test_a_copied_folder_killed_and_resumed_equals_the_original_uninterrupted(tmp_path, small_pair_run, reference):
    folder, output = tmp_path / "elsewhere" / "my_judge", tmp_path / "outputs"
    shutil.copytree(PAIRWISE_SCRIPT.parent, folder, ignore=shutil.ignore_patterns("outputs", "__pycache__"))
    script = folder / PAIRWISE_SCRIPT.name
    assert finish(start(tmp_path / "none", script=script, TRAIN_FILES=small_pair_run["TRAIN_FILES"])) != 0
    assert "Set MODEL_PATH to a chat model or to a judge" in log_of(tmp_path / "none")
    process = start(output, *SETTINGS, script=script, **small_pair_run)
    wait_for(lambda: max(metrics_of(output, "train/reward"), default=0) >= 3)
    kill_group(process)
    assert 2 <= int((output / "latest_checkpointed_iteration.txt").read_text()) < STEPS
    run(output, *SETTINGS, script=script, **small_pair_run)
    for name in ("train/reward", "train/first", "train/grad_norm", "val/reward"):
        values, expected = (metrics_of(where, name) for where in (output, reference))
        values = {step: value for step, value in values.items() if step in expected}  # what was resumed is measured too
        assert values == pytest.approx(expected, abs=1e-5), name
    for name in ("checkpoint", "checkpoint_last"):
        assert largest_difference(output / name, reference / name) <= 1e-6


def test_two_workers_get_the_same_answers(tmp_path, small_pair_run, reference):
    """Before the first update exactly; then nearly, until a draw on the edge falls to the other side."""
    settings = (*SETTINGS, f"{POLICY}.actor.ppo_max_token_len_per_gpu=4000", "trainer.total_training_steps=2")
    limits = ("data.max_prompt_length=512",)
    run(tmp_path / "outputs", *settings, *limits, script=PAIRWISE_SCRIPT, **small_pair_run, N_GPUS_PER_NODE="2")
    for name, step, tolerance in (
        ("val/reward", 0, 1e-6),
        ("train/reward", 1, 1e-6),
        ("train/first", 1, 1e-6),
        ("train/grad_norm", 1, 1e-3),
        ("train/reward", 2, 0.1),
    ):
        values, expected = (metrics_of(folder, name)[step] for folder in (tmp_path / "outputs", reference))
        assert values == pytest.approx(expected, abs=tolerance), (name, step)


def test_bad_rows_are_listed_by_the_script_within_seconds(tmp_path, small_pair_run):
    rows = [{name: row[name] for name in ("input", "output", "metadata")} for row in pairwise_rows("train", 30, seed=0)]
    rows[3]["metadata"] = {"preferred": "C"}
    rows[11]["metadata"] = {"preferred": None}
    rows[12]["output"] = rows[12]["output"][:1]
    rows = [{name: json.dumps(value) for name, value in row.items()} for row in rows]
    rows[20]["output"] = rows[20]["output"][:-2]
    environment = small_pair_run | {"TRAIN_FILES": str(write_rows(tmp_path / "bad.parquet", rows))}
    started = time.monotonic()
    assert finish(start(tmp_path / "outputs", *SETTINGS, script=PAIRWISE_SCRIPT, **environment), timeout=60) != 0
    assert time.monotonic() - started < 40  # it imports torch, on a machine that may be busy
    message = log_of(tmp_path / "outputs")
    assert "train.py: 4 of 30 rows cannot be used:" in message
    for number, fault in ((3, "'preferred': 'C'"), (11, "'preferred': None")):
        kind = "column 'metadata': `preferred` is not one of A, B, tie"
        assert f"bad.parquet row {number}, {kind} (found {{{fault}}})" in message
    assert "bad.parquet row 12, column 'output': expected a list of 2 responses" in message
    assert "bad.parquet row 20, column 'output': JSON that does not parse" in message
    assert "data.on_bad_row=drop" in message
    assert "Traceback" not in message and not (tmp_path / "outputs").exists()
