"""Part of gpu_check.py: the run scripts as users start them, on the GPU, three at a time.

- Every method's demo, with nothing set but where its output goes.
- Bradley-Terry at 0.6B with random weights and the script's numbers for a pretrained model: killed after a checkpoint,
  then started again.
- A judge's demo with vLLM's servers, where vLLM is installed.
"""

import importlib.util
import json
import subprocess
import tempfile
import time
from pathlib import Path

import runs
import torch
from shared import note, shape
from transformers import AutoConfig, AutoModelForCausalLM

SECONDS = 200  # for the demos together
DEMOS = {
    runs.RUN_SCRIPT: ("test/accuracy", 0.9),
    runs.POINTWISE_SCRIPT: ("accuracy", 0.8),
    runs.PAIRWISE_SCRIPT: ("both_right", 0.8),
}
BATCHES, SAVED = 6, 3  # steps at 0.6B, and after how many it is killed


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        started, folder = time.monotonic(), Path(folder)
        rollouts = {script: {} for script in DEMOS}
        running = {script: runs.start(folder / script.stem, script=script, **rollouts[script]) for script in DEMOS}
        large = start_large(folder)
        for script, process in running.items():
            status = wait(process, started + SECONDS - time.monotonic())
            note(**figures_of(script, folder / script.stem, status), seconds=time.monotonic() - started)
        finish_large(folder, large)
        if importlib.util.find_spec("vllm"):
            output = folder / "vllm"
            status = wait(runs.start(output, script=runs.POINTWISE_SCRIPT, ROLLOUT="vllm"), SECONDS)
            note(**figures_of(runs.POINTWISE_SCRIPT, output, status))


def wait(process: subprocess.Popen, seconds: float) -> int | str:
    """Return a run's exit status, or that it took too long."""
    try:
        return runs.finish(process, max(1, seconds))
    except subprocess.TimeoutExpired:
        return "stopped, took too long"


def figures_of(script: Path, output: Path, status: int | str) -> dict:
    """Return a demo's figure on the rows held out, and the seconds of a step."""
    row = {"run": f"{script.parent.name}/{script.name}, {output.name}", "status": status}
    if status:
        return row | {"ok": False, "said": runs.log_of(output)[-1500:]}
    name, bar = DEMOS[script]
    if script == runs.RUN_SCRIPT:
        value = list(runs.metrics_of(output, name).values())[-1]
    else:
        value = json.loads((output / "evaluation_test.json").read_text())[name]
    seconds = sorted(runs.metrics_of(output, "train/seconds").values())
    return row | {name: value, "step s, median": seconds[len(seconds) // 2], "ok": value >= bar}


def start_large(folder: Path):
    """Start Bradley-Terry at 0.6B on the demo's pairs."""
    model = shape("0.6B")
    with torch.device("cuda"):
        built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.bfloat16)
    built.cpu().save_pretrained(model)
    del built
    torch.cuda.empty_cache()
    return runs.start(folder / "large", *LARGE, MODEL_PATH=str(model))


LARGE = (f"trainer.total_training_steps={BATCHES}", f"trainer.save_freq={SAVED}")


def finish_large(folder: Path, process) -> None:
    """Kill it behind its first checkpoint, start it again, and look at what it says."""
    output, model = folder / "large", str(shape("0.6B"))
    try:
        saved = output / "latest_checkpointed_iteration.txt"
        runs.wait_for(lambda: saved.exists() or process.poll() is not None, 120)
    finally:
        runs.kill_group(process)
    started = time.monotonic()
    status = wait(runs.start(output, *LARGE, MODEL_PATH=model), 120)
    said = runs.log_of(output)
    resumed = f"resuming after step {SAVED} of {BATCHES}" in said
    row = {"run": "bradley_terry/run_bt.sh at 0.6B, killed and started again", "status": status, "resumed": resumed}
    row |= {"memory": next((line for line in said.splitlines() if line.startswith("GPU memory")), "")}
    note(**row, seconds=time.monotonic() - started, ok=not status and resumed, said="" if not status else said[-1500:])


if __name__ == "__main__":
    main()
