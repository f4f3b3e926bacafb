"""One command for the day with a GPU: what was computed, or run without one, is measured on one card in ten minutes.

    python tests/gpu_check.py --output /tmp/gpu_check             # a table for each part; all figures in figures.json
    python tests/gpu_check.py --output /tmp/gpu_check --parts parity speed
    python tests/gpu_check.py --output /tmp/gpu_check --trl-python /path/to/venv/bin/python

- parity: rewards, token losses, log-probabilities and gradients of our packed engines against transformers, text by
  text, in fp32 and in bf16 with the flash kernel.
- speed: seconds of a step, tokens per second, share of the card's peak (MFU), and the most memory that it took beside
  what `common/memory.py` counts before it starts, for the shapes of 0.6B, 1.7B and 8B (by LoRA) with random weights.
- answers: what the policy itself generates, and its log-probabilities there and in training.
- scripts: the run scripts with nothing set; Bradley-Terry at 0.6B, killed and resumed; judges with vLLM where it is
  installed.
- trl_reward: pairs per second beside TRL's RewardTrainer, from the same shape and pairs.

Each part is a process of its own, so one that fails leaves the others. Without a GPU all shapes are tiny: that shows
that the command works, and no figure of it means anything. The exit status is 1 if something failed or missed its bar.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
# seconds that a part may take. `predict` computes on the CPU what `speed` measures, beside the others
PARTS = {"predict": 300, "parity": 180, "speed": 300, "answers": 120, "scripts": 900, "trl_reward": 200}


PREDICTED = 0.15  # how far a prediction may be from the measured peak, as a share of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for logs and figures.json")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS)[1:], help="all, if none is named")
    parser.add_argument("--trl-python", help="an interpreter whose environment has trl; needed for trl_reward")
    options = parser.parse_args()
    if "trl_reward" in (options.parts or ()) and not options.trl_python:
        parser.error("trl_reward needs --trl-python")
    options.output.mkdir(parents=True, exist_ok=True)
    parts = options.parts or [part for part in list(PARTS)[1:] if part != "trl_reward" or options.trl_python]
    print(f"{device_name()}, torch {torch.__version__}: {', '.join(parts)}", flush=True)

    started = time.monotonic()
    predicting = start("predict", options) if "speed" in parts else None
    figures, failed = {}, []
    for part in parts:
        figures[part] = finish(part, start(part, options), options, failed)
    if predicting:
        predicted = finish("predict", predicting, options, failed)
        figures["speed"] = [row | predicted_for(row, predicted) for row in figures["speed"]]
    for part, rows in figures.items():
        print(f"\n{part}\n{table(rows)}", flush=True)
    (options.output / "figures.json").write_text(json.dumps({"device": device_name(), **figures}, indent=1))
    missed = [row for rows in figures.values() for row in rows if row.get("ok") is False]
    print(f"\n{time.monotonic() - started:.0f} s; {len(missed)} bars missed; failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(missed or failed))


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU, tiny shapes"


def start(part: str, options: argparse.Namespace) -> subprocess.Popen:
    """Start a part; it prints to its log, and writes its rows to a file as they come."""
    (options.output / f"{part}.jsonl").unlink(missing_ok=True)
    command = [sys.executable, HERE / "gpu" / f"{part}.py", options.output / f"{part}.jsonl"]
    command += [options.trl_python] if part == "trl_reward" else []
    with (options.output / f"{part}.log").open("w") as log:
        return subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=environment(part))


def environment(part: str) -> dict[str, str]:
    path = [str(HERE.parent), str(HERE), str(HERE / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "TOKENIZERS_PARALLELISM": "false"}
    platform = "nvidia" if torch.cuda.is_available() and part != "predict" else "cpu"
    return os.environ | own | ({} if part == "scripts" else {"VERL_PLATFORM": platform})


def finish(part: str, process: subprocess.Popen, options: argparse.Namespace, failed: list[str]) -> list[dict]:
    """Wait for a part; return its rows, also those of a part that failed, whose log's end is printed."""
    try:
        status = process.wait(PARTS[part])
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends what it has started
        process.wait(30)
        status = f"after {PARTS[part]} s, stopped"
    if status:
        failed.append(part)
        log = (options.output / f"{part}.log").read_text(errors="replace")
        print(f"\n{part} failed ({status}):\n{log[-3000:]}", flush=True)
    rows = options.output / f"{part}.jsonl"
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def predicted_for(row: dict, predicted: list[dict]) -> dict:
    """Return what was predicted for a row of `speed`, and how far the measured peak is from it."""
    for other in predicted:
        if other["case"] != row["case"]:
            continue
        found = {"predicted GiB": other["predicted GiB"]}
        if row.get("peak GiB"):
            off = other["predicted GiB"] / row["peak GiB"] - 1
            found |= {"prediction": f"{off:+.1%}", "ok": row.get("ok", True) and abs(off) <= PREDICTED}
        return found
    return {}


def table(rows: list[dict]) -> str:
    """Lay rows out as Markdown, with all columns that any of them has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([cell(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


if __name__ == "__main__":
    main()
