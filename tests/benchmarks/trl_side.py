"""What the benchmarks run inside TRL's environment: our settings in TRL's words, our rows, our way of reporting."""

import argparse
import json
import time
from pathlib import Path

from measure import BATCH, BETAS, CLIP, LR, SEED, WEIGHT_DECAY


def settings(options: argparse.Namespace) -> dict:
    """Return TRL's training arguments that say what our settings say."""
    optim = {"learning_rate": LR, "adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "weight_decay": WEIGHT_DECAY}
    optim |= {"max_grad_norm": CLIP, "lr_scheduler_type": "constant", "num_train_epochs": 1, "seed": SEED}
    data = {"per_device_train_batch_size": BATCH, "train_sampling_strategy": "sequential", "max_length": None}
    compute = {"use_cpu": True, "bf16": False, "gradient_checkpointing": options.gradient_checkpointing}
    logs = {"output_dir": str(options.output), "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
    return optim | data | compute | logs


def ordered_rows(folder: Path):
    """Return the rows in our order."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    return Dataset.from_list([rows[row] for row in json.loads((folder / "order.json").read_text())])


def step_report(output: Path, figure: str = "loss", updates: int = 1):
    """Return a callback that prints and writes TRL's steps as ours are.

    Args:
        figure: what of TRL's log is written.
        updates: how many of TRL's steps are one of ours.
    """
    from transformers import TrainerCallback

    metrics = output / "metrics" / "from_step_000000.jsonl"
    metrics.parent.mkdir(parents=True)

    class Report(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.tokens, self.started = 0, time.perf_counter()

        def on_log(self, args, state, control, logs, **_):
            if figure in logs:
                print(f"step {state.global_step // updates}/{state.max_steps // updates}", flush=True)
                seconds, tokens = time.perf_counter() - self.started, logs.get("num_tokens", 0)
                values = {f"train/{figure}": float(logs[figure]), "train/seconds": seconds}
                values |= {"train/tokens_per_second": (tokens - self.tokens) / seconds}
                with metrics.open("a") as file:
                    file.write(json.dumps({"step": state.global_step, "data": values}) + "\n")
                self.tokens, self.started = tokens, time.perf_counter()

    return Report()
