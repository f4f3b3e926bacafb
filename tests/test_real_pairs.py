"""The benchmark on real preferences works: on made pairs and the tiny model, and a real model learns real pairs."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from conftest import REPO
from real_model import cache
from rewards import plain_rewards
from runs import metrics_of, run

from bradley_terry.dataset import encode_pairs, load_pairs
from bradley_terry.reward_model import encode, load_reward_model, score
from common.demo.world import preference_pairs
from common.packing import is_packed
from common.parquet import write_rows
from common.tokenizer import load_tokenizer

MODEL = cache() / "SmolLM2-135M-Instruct"
MISSING = f"needs a real model: {MODEL} is missing, and `python tests/real_model.py` makes it"
pytestmark = pytest.mark.run


def test_the_benchmark_says_what_its_runs_measured_and_makes_none_twice(tmp_path, tiny_model):
    """Beside the baselines on the same rows."""
    write_rows(tmp_path / "bt_train.parquet", preference_pairs("train", 96, seed=0))
    write_rows(tmp_path / "bt_val_json.parquet", preference_pairs("val", 24, seed=0))
    command = [sys.executable, REPO / "tests" / "benchmarks" / "real_pairs.py", "--data", tmp_path, "--seeds", "3"]
    command += ["--model", tiny_model, "--output", tmp_path / "runs", "--set", "optim.lr=1e-3"]
    command += ["--variants", "baseline"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert said.returncode == 0, said.stdout + said.stderr
    lines = (tmp_path / "runs" / "results.jsonl").read_text().splitlines()
    rows = {row["variant"]: row for row in map(json.loads, lines)}
    assert len(lines) == 1 and {row["seed"] for row in rows.values()} == {3}

    for name, row in rows.items():
        output = tmp_path / "runs" / f"{name}_seed_3"
        (accuracy,) = metrics_of(output, "test/accuracy").values()
        assert sum(margin > 0 for margin in row["margins"]) / 24 == accuracy
        assert f"| {name} | {accuracy:.3f} ± " in said.stdout
        assert not list(output.glob("global_step_*")) and not (output / "checkpoint").exists()
    (longer,) = metrics_of(output, "test/longer_wins_accuracy").values()
    assert f"| the longer answer | {longer:.3f} ± " in said.stdout and "| bag of words | " in said.stdout

    again = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and again.stdout == said.stdout.replace("\r", "")[-len(again.stdout) :]
    assert (tmp_path / "runs" / "results.jsonl").read_text().splitlines() == lines


@pytest.mark.skipif(not MODEL.is_dir(), reason=MISSING)
def test_a_real_model_learns_real_pairs_by_lora_and_scores_alike_elsewhere(tmp_path, shared_data):
    """Twelve short pairs, four times: the loss falls, and transformers gives the rewards that the trainer gave."""
    rows, _ = load_pairs(shared_data / "bt_train.parquet", "drop")
    pairs, _ = encode_pairs(rows[:400], load_tokenizer(str(MODEL), False), 10**6, "error", "drop")
    short = {pair.source for pair in sorted(pairs, key=lambda pair: pair.longest)[:12]}
    rows = [{side: row[side] for side in ("chosen", "rejected")} for row in rows if row["source"] in short]
    file = str(write_rows(tmp_path / "short.parquet", rows))
    settings = ("model.lora_rank=8", "optim.lr=1e-3", "data.train_batch_size=6", "trainer.total_epochs=4")
    settings += ("engine.use_torch_compile=False",)  # takes longer than the run
    output = tmp_path / "outputs"
    run(output, *settings, "data.max_length=512", MODEL_PATH=str(MODEL), TRAIN_FILES=file, VAL_FILES=file, timeout=800)
    losses = list(metrics_of(output, "train/loss").values())
    assert len(losses) == 8 and sum(losses[-2:]) < 0.8 * sum(losses[:2])
    val = metrics_of(output, "val/log_loss")
    assert val[8] < 0.8 * val[0]
    rewards = pq.read_table(output / "val_rewards.parquet").to_pylist()
    for side in ("chosen", "rejected"):
        plain = plain_rewards(output / "checkpoint", [row[side] for row in rows])
        assert plain.tolist() == pytest.approx([row[side] for row in rewards], abs=1e-4)
    model, reading = load_reward_model(str(output / "checkpoint"), packed=True)
    assert is_packed(model), "rounding of real weights is taken for a leak between texts"
    found = score(model, [encode(row[side], reading, side) for row in rows for side in ("chosen", "rejected")])
    assert found.tolist() == pytest.approx([row[side] for row in rewards for side in ("chosen", "rejected")], abs=1e-4)
