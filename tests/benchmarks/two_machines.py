"""All four methods on two machines, one of which dies in between, against one machine with as many workers.

    python tests/benchmarks/two_machines.py            # as root: it makes network namespaces, see ../machines.py

Both sides start from the same model and rows and are compared at every step, so a number that two machines get wrong
shows: a gradient that is not averaged, rows that are seen twice, a schedule that forgets the crash. A run on two
machines loses the second one after a few steps, by a crash of all that runs there, and is started again. It takes about
ten minutes on two cores.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import pair_inputs, pair_judge_inputs, score_judge_inputs, sft_inputs
from machines import ADDRESS, Machines, readme_commands, start_ray, why_not
from runs import (
    PAIRWISE_SCRIPT,
    POINTWISE_SCRIPT,
    RUN_SCRIPT,
    SFT_SCRIPT,
    finish,
    log_of,
    metrics_of,
    run,
    start,
    wait_for,
)

from common.demo.tiny_model import save_tiny_model

STEPS, CRASH_AT, TIMEOUT = 6, 3, 1800
SHARED = ("trainer.test_freq=3", "trainer.save_freq=2", f"trainer.total_training_steps={STEPS}")
OWN_LOOP = ("data.train_batch_size=8", "optim.lr=1e-3", *SHARED)
GRPO = (
    "data.train_batch_size=16",
    "data.max_response_length=48",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "actor_rollout_ref.actor.optim.lr=3e-4",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=1",
    "actor_rollout_ref.rollout.n=4",
    *SHARED,
)
JUDGED = ("train/reward", "train/grad_norm", "val/reward", "actor/pg_loss")
METHODS = {  # script, settings, what makes model and rows, metrics
    "bradley_terry": (RUN_SCRIPT, OWN_LOOP, pair_inputs, ("train/loss", "train/grad_norm", "val/log_loss")),
    "sft": (SFT_SCRIPT, OWN_LOOP, sft_inputs, ("train/loss", "train/grad_norm", "val/loss")),
    "generative_pointwise": (POINTWISE_SCRIPT, GRPO, score_judge_inputs, JUDGED),
    "generative_pairwise": (PAIRWISE_SCRIPT, GRPO, pair_judge_inputs, JUDGED),
}


def compare(method: str, folder: Path, machines: list, commands: list[str]) -> str:
    """Make both runs; return the row of the table."""
    script, settings, make_inputs, names = METHODS[method]
    save_tiny_model(folder / "tiny_model", seed=0)
    inputs = make_inputs(folder / "tiny_model", folder)
    started = time.perf_counter()
    run(folder / "one", *settings, script=script, timeout=TIMEOUT, **inputs, N_GPUS_PER_NODE="2")
    one = time.perf_counter() - started

    first, second = machines
    output = folder / "two"
    tokens = [word for word in commands[0].split() if word.startswith("RAY_AUTH_TOKEN_PATH=")]
    on_first = {"script": script, "on": [*first.on, "env", *tokens], "RAY_ADDRESS": ADDRESS, "NNODES": "2"}
    process = start(output, *settings, **on_first, **inputs)
    progress = names[0]
    wait_for(lambda: process.poll() is not None or max(metrics_of(output, progress), default=0) >= CRASH_AT, TIMEOUT)
    second.crash()
    crashed = time.perf_counter()
    status = finish(process, 120)
    noticed = time.perf_counter() - crashed
    message = next(line for line in log_of(output).splitlines() if line.startswith("train.py: "))
    print(f"\n{method}: exit status {status}, {noticed:.0f} s after the crash:\n  {message}", flush=True)
    start_ray(second, commands[1])
    started = time.perf_counter()
    run(output, *settings, timeout=TIMEOUT, **on_first, **inputs)
    again = time.perf_counter() - started

    differences = []
    for name in names:
        values, expected = metrics_of(output, name), metrics_of(folder / "one", name)
        assert values.keys() == expected.keys() and len(expected) > 1, (name, values, expected)
        differences.append(f"{name} {max(abs(values[step] - expected[step]) for step in expected):.1g}")
    return f"| {method} | {one:.0f} s | {noticed:.0f} s | {again:.0f} s | {', '.join(differences)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Two machines against one, for all methods.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    chosen = parser.parse_args().methods
    if reason := why_not():
        raise SystemExit(f"two_machines.py: {reason}")
    os.environ.pop("RAY_ADDRESS", None)
    table = ["| method | one machine | crash noticed after | resumed, to the end | largest difference at a step |"]
    table.append("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = readme_commands(folder)
        with Machines(folder / "machines") as machines:
            for machine, command in zip(machines, commands):
                start_ray(machine, command)
            for method in chosen:
                table.append(compare(method, folder / method, machines, commands))
    print("\n".join(["", *table]))


if __name__ == "__main__":
    main()
