"""The one real run of the quick tests: two steps of run_bt.sh, and what they leave."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
from rewards import plain_rewards
from runs import metrics_of, run

SIDES = ("chosen", "rejected")


def test_two_steps_leave_a_reward_model_that_transformers_loads(tmp_path, small_run):
    output = tmp_path / "outputs"
    run(output, "data.train_batch_size=8", "trainer.total_training_steps=2", **small_run)

    # 1. It trained for two steps, and measured before and after.
    for name in ("loss", "grad_norm"):
        values = metrics_of(output, f"train/{name}")
        assert list(values) == [1, 2]
        assert all(math.isfinite(value) and value > 0 for value in values.values()), f"{name}: {values}"
    assert list(metrics_of(output, "val/log_loss")) == [0, 2]
    assert metrics_of(output, "val/pairs")[2] == 19

    # 2. It left everything behind.
    checkpoint = output / "checkpoint"
    names = {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md", "run.png"}
    assert names <= {path.name for path in checkpoint.iterdir()}
    assert (checkpoint / "run.png").read_bytes().startswith(b"\x89PNG")
    assert f"| val/accuracy | {metrics_of(output, 'val/accuracy')[2]:.4g} |" in (checkpoint / "README.md").read_text()
    assert json.loads((checkpoint / "config.json").read_text())["problem_type"] == "regression"
    assert list((output / "tensorboard").glob("events.out.tfevents.*"))
    assert (output / "latest_checkpointed_iteration.txt").read_text() == "2"

    # 3. The rewards that it wrote are those of its checkpoint in others' hands.
    rows = pq.read_table(small_run["VAL_FILES"]).to_pylist()
    expected = plain_rewards(checkpoint, [row[side] for row in rows for side in SIDES])
    assert expected.std() > 0.02  # they differ by far more than the tolerance
    written = pq.read_table(output / "val_rewards.parquet").to_pylist()
    assert [row["source"] for row in written] == [f"val.parquet row {number}" for number in range(19)]
    rewards = [row[side] for row in written for side in SIDES]
    np.testing.assert_allclose(rewards, expected, atol=1e-5, rtol=0)
