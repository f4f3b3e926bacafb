"""Part of gpu_check.py: the run scripts as users start them, on the GPU, three at a time.

- The demos of Bradley-Terry and of both judges, which begin with sft, with nothing set but where the output goes.
- Bradley-Terry at 0.6B with random weights and the script's numbers for a pretrained model: killed after a checkpoint,
  then started again.
- A judge's demo with vLLM's servers, where vLLM is installed.
"""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import runs
import torch
from shared import note, shape
from transformers import AutoConfig, AutoModelForCausalLM

SECONDS = 300  # for the demos together, and as many with vLLM
DEMOS = {
    runs.RUN_SCRIPT: ("test/accuracy", 0.9),
    runs.POINTWISE_SCRIPT: ("accuracy", 0.8),
    runs.PAIRWISE_SCRIPT: ("both_right", 0.8),
}
STEPS, SAVED = 6, 3  # at 0.6B, and after how many it is killed
LARGE = (f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={SAVED}")
STARTED = []  # processes, each with its group


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped from outside"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            run_all(Path(folder))
    finally:
        for process in STARTED:
            runs.kill_group(process)


def run_all(folder: Path) -> None:
    began = time.monotonic()
    demos = {script: start(folder / script.stem, script=script) for script in DEMOS}
    run_large(folder)
    for script, process in demos.items():
        status = wait(process, began + SECONDS - time.monotonic())
        note(**figures_of(script, folder / script.stem, status), seconds=time.monotonic() - began)
    if importlib.util.find_spec("vllm"):
        output = folder / "vllm"
        status = wait(start(output, script=runs.POINTWISE_SCRIPT, ROLLOUT="vllm"), SECONDS)
        note(**figures_of(runs.POINTWISE_SCRIPT, output, status))


def start(output: Path, *overrides: str, **environment) -> subprocess.Popen:
    STARTED.append(runs.start(output, *overrides, **environment))
    return STARTED[-1]


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


def run_large(folder: Path) -> None:
    """Train Bradley-Terry at 0.6B on the demo's pairs, kill it behind its first checkpoint, and start it again."""
    model, output = shutil.copytree(shape("0.6B"), folder / "model"), folder / "large"
    with torch.device("cuda"):
        built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.bfloat16)
    built.cpu().save_pretrained(model)
    del built
    torch.cuda.empty_cache()
    first, saved = start(output, *LARGE, MODEL_PATH=str(model)), output / "latest_checkpointed_iteration.txt"
    runs.wait_for(lambda: saved.exists() or first.poll() is not None, 240)
    killed = first.poll() is None
    runs.kill_group(first)
    began = time.monotonic()
    status = wait(start(output, *LARGE, MODEL_PATH=str(model)), 180)
    said = runs.log_of(output)
    resumed = killed and f"resuming after step {SAVED} of {STEPS}" in said
    row = {"run": "bradley_terry/run_bt.sh at 0.6B, killed and started again", "status": status, "resumed": resumed}
    row |= {"memory": next((line for line in said.splitlines() if line.startswith("GPU memory")), "")}
    note(**row, seconds=time.monotonic() - began, ok=not status and resumed, said="" if not status else said[-1500:])


if __name__ == "__main__":
    main()
