"""The default run from end to end: it learns, it leaves everything behind, and what it leaves loads elsewhere."""

import asyncio
import json
import subprocess
import sys

import pytest
import torch
from runs import log_of, metrics_of, run
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from common.parquet import read_rows

pytestmark = pytest.mark.run

SETTINGS = ("MODEL_PATH", "TRAIN_FILES", "VAL_FILES", "TEST_FILES", "SEED", "NNODES", "N_GPUS_PER_NODE", "RAY_ADDRESS")


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """`bash run_bt.sh` as a newcomer starts it, with nothing set but OUTPUT."""
    output = tmp_path_factory.mktemp("default") / "outputs"
    with pytest.MonkeyPatch.context() as environment:
        for name in SETTINGS:
            environment.delenv(name, raising=False)
        run(output, timeout=880)  # a busy machine is no bug
    return output


@pytest.fixture(scope="module")
def val_texts(default_run):
    """The val conversations as rendered text, chosen and rejected in turn, and the rewards the trainer gave them."""
    tokenizer = AutoTokenizer.from_pretrained(default_run / "checkpoint")
    rows, _ = read_rows(default_run / "data" / "val.parquet", ("chosen", "rejected"))
    rewards, _ = read_rows(default_run / "val_rewards.parquet", ("chosen", "rejected"))
    texts = [
        tokenizer.apply_chat_template(row[side], tokenize=False) for row in rows for side in ("chosen", "rejected")
    ]
    return texts, torch.tensor([row[side] for row in rewards for side in ("chosen", "rejected")])


def test_it_learns_what_its_baselines_cannot(default_run):
    """On the whole demo: 10,000 pairs in 625 steps of 16, measured on 1,000 pairs with other prompts."""
    assert metrics_of(default_run, "test/pairs") == {625: 1000}
    assert metrics_of(default_run, "test/accuracy")[625] >= 0.95
    assert 0.45 <= metrics_of(default_run, "test/longer_wins_accuracy")[625] <= 0.55
    assert metrics_of(default_run, "val/accuracy")[0] < 0.65  # it did not know before


def test_it_leaves_checkpoint_card_picture_logs_and_progress(default_run):
    checkpoint = default_run / "checkpoint"
    names = {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md", "run.png"}
    assert names <= {path.name for path in checkpoint.iterdir()}
    card = (checkpoint / "README.md").read_text()
    accuracy = metrics_of(default_run, "val/accuracy")[625]
    assert f"| val/accuracy | {accuracy:.4g} |" in card and "pipeline_tag: text-classification" in card
    assert (checkpoint / "run.png").stat().st_size > 10_000
    assert list((default_run / "tensorboard").glob("events.out.tfevents.*"))
    assert len(metrics_of(default_run, "train/loss")) == 625
    log = log_of(default_run)
    assert "train: 100%" in log and "checkpoint of step 625 saved" in log
    for note in ("Total steps: ", "Before FSDP, ", "Creating file logger", "Checkpoint tracker", "NUMA affinity"):
        assert note not in log


def test_no_pickle_is_in_the_checkpoint_others_load(default_run):
    assert not [path for path in (default_run / "checkpoint").rglob("*") if path.suffix in (".pt", ".bin", ".pkl")]


def test_config_reads_as_one_unbounded_number(default_run):
    config = json.loads((default_run / "checkpoint" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    assert config["problem_type"] == "regression"  # otherwise served as a sigmoid
    assert config["id2label"] == {"0": "reward"} and config["label2id"] == {"reward": 0}
    assert config["pad_token_id"] not in (None, config["eos_token_id"])
    assert "attn_implementation" not in json.dumps(config)


def test_evaluate_finds_what_the_trainer_found(default_run):
    command = [sys.executable, "-m", "bradley_terry.evaluate", "--model", "checkpoint", "--data", "data/test.parquet"]
    subprocess.run(command, cwd=default_run, check=True, timeout=300, capture_output=True)
    found = json.loads((default_run / "evaluation_test.json").read_text())
    for name in ("accuracy", "tie_rate", "margin_mean", "log_loss", "calibration_error", "accuracy_margin_1"):
        assert found[name] == pytest.approx(metrics_of(default_run, f"test/{name}")[625], abs=1e-5), name


@pytest.mark.parametrize("batch", [1, 16])
def test_plain_transformers_gives_the_trainers_rewards(default_run, val_texts, batch):
    model, report = AutoModelForSequenceClassification.from_pretrained(
        default_run / "checkpoint", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(default_run / "checkpoint", padding_side="right")
    texts, rewards = val_texts[0][:96], val_texts[1][:96]
    with torch.no_grad():
        scored = [
            model(**tokenizer(texts[start : start + batch], padding=True, return_tensors="pt")).logits[:, 0]
            for start in range(0, len(texts), batch)
        ]
    torch.testing.assert_close(torch.cat(scored), rewards, atol=1e-5, rtol=0)


def test_the_pipeline_gives_the_trainers_rewards(default_run, val_texts):
    score = pipeline("text-classification", model=str(default_run / "checkpoint"), device="cpu")
    answers = score(val_texts[0][:32], function_to_apply="none", batch_size=8)
    torch.testing.assert_close(torch.tensor([a["score"] for a in answers]), val_texts[1][:32], atol=1e-5, rtol=0)
    assert {answer["label"] for answer in answers} == {"reward"}


def test_the_grader_gives_the_trainers_rewards(default_run):
    from bradley_terry.grader import BradleyTerryGrader

    grader = BradleyTerryGrader(str(default_run / "checkpoint"))
    rows, _ = read_rows(default_run / "data" / "test.parquet", ("chosen", "rejected"))
    rewards, _ = read_rows(default_run / "test_rewards.parquet", ("chosen", "rejected"))

    async def grade_all() -> list:
        asked = [(row[side][:-1], row[side][-1]["content"]) for row in rows for side in ("chosen", "rejected")]
        return await asyncio.gather(*(grader.aevaluate(query=query, response=text) for query, text in asked))

    expected = [reward[side] for reward in rewards for side in ("chosen", "rejected")]
    assert [result.score for result in asyncio.run(grade_all())] == pytest.approx(expected, abs=1e-5)
