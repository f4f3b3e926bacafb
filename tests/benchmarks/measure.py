"""What the benchmarks share: the same settings for both sides, a stopwatch, a watch on memory, the table of results.

Both sides of a comparison are commands, run in turns as a user would start them. They print a line `step 3/40 …` after
each step and write losses and times to metrics/; nothing else is asked of them. The lines are timed as they are read,
so loading, logging and Ray's messages count, and the first steps do not. CPU seconds are taken at the same moments: on
a machine with other work they vary less than the wall's. Memory is read from /proc, so Linux only.

`trl_side.py` is what runs in TRL's environment. It asks for no more than TRL's own packages.
"""

import argparse
import collections
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
LR, BETAS, WEIGHT_DECAY, CLIP, SEED = 1e-4, (0.9, 0.95), 0.01, 1.0, 0
BATCH, TIMEOUT = 8, 3600  # rows of a step; seconds for one run
WATCH_SECONDS, TREE_SECONDS = 0.02, 2.0  # between readings of the process with the model, and of all processes
OURS = "ours"


def make_parser(description: str, profiles: Iterable[str], data: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--trl-python", help="the interpreter of an environment with trl")
    parser.add_argument("--data", help=data)
    parser.add_argument("--profiles", nargs="+", choices=profiles, default=list(profiles))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--skip", type=int, default=5, help="steps before the stopwatch starts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=16384, help="our micro-batch; TRL's is the whole batch")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--output", type=Path, help="write all results here as JSON")
    parser.add_argument("--role", choices=["trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def word_list() -> list[str]:
    """Return words that are one token each once a tokenizer has been trained on them."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    return [first + second for first in syllables[::3] for second in syllables[::2]]


def train_tokenizer(turns: Iterable[dict]):
    from common.demo.tiny_model import make_tokenizer

    texts = (f"{turn['role']}\n{turn['content']}" for turn in turns)
    return make_tokenizer().train_new_from_iterator(texts, vocab_size=4096, show_progress=False)


def write_inputs(folder: Path, rows: list[dict], tokenizer, model_class: type, **config) -> list[int]:
    """Write what both sides read, rows.parquet, order.json and model/; return the order, which is ours."""
    import torch
    from transformers import Qwen3Config

    from common.checkpoint import EpochShuffle
    from common.parquet import write_rows

    write_rows(folder / "rows.parquet", rows)
    order = list(EpochShuffle(len(rows), BATCH, 1, SEED))
    (folder / "order.json").write_text(json.dumps(order))
    torch.manual_seed(SEED)
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "max_position_embeddings": 4096}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32}
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model_class(Qwen3Config(vocab_size=4096, **shape, **heads, **tokens, **config)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return order


def sample(usable: list, options: argparse.Namespace) -> list:
    """Draw the rows of all steps."""
    count = options.steps * BATCH
    if len(usable) < count:
        raise SystemExit(f"{len(usable)} usable rows do not fill {options.steps} steps; lower --steps")
    return random.Random(SEED).sample(usable, count)


def padded_tokens(lengths: list[int], order: list[int]) -> float:
    """Return the tokens of a row when every row is padded to the longest of its batch."""
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    return statistics.mean(max(lengths[row] for row in batch) for batch in batches)


def our_command(method: str, folder: Path, output: Path, options: argparse.Namespace, more: str) -> list[str]:
    sections = {
        "data": f"train_files={folder / 'rows.parquet'} train_batch_size={BATCH} "
        f"max_tokens_per_gpu={options.max_tokens}",
        "model": f"path={folder / 'model'} enable_gradient_checkpointing={options.gradient_checkpointing}",
        "optim": f"lr={LR} betas=[{BETAS[0]},{BETAS[1]}] weight_decay={WEIGHT_DECAY} clip_grad={CLIP} min_lr_ratio=1.0 "
        "lr_scheduler_type=constant lr_warmup_steps_ratio=0",
        "trainer": f"output={output} seed={SEED} total_epochs=1 test_freq=0 save_freq=0 max_ckpt_to_keep=1 nnodes=1",
    }
    settings = [f"{section}.{setting}" for section, text in sections.items() for setting in text.split()]
    return [sys.executable, str(REPO / method), "train", *settings, *more.split()]


def trl_command(file: str, folder: Path, output: Path, options: argparse.Namespace, *more: str) -> list[str]:
    settings = ["--folder", folder, "--output", output] + ["--gradient-checkpointing"] * options.gradient_checkpointing
    return [str(part) for part in (options.trl_python, file, "--role", "trl", *settings, *more)]


def memory_mib(pid: int, file: str, *fields: str) -> list[float]:
    text = Path(f"/proc/{pid}/{file}").read_text()
    return [int(re.search(rf"^{field}:\s+(\d+) kB", text, re.M)[1]) / 1024 for field in fields]


def measure(
    command: list[str], output: Path, holder_name: str, unit: str, count: Callable, skip: int, figure: str
) -> dict:
    """Run one side, time its steps by the lines it prints, and watch the memory of the process named `holder_name`.

    Args:
        unit, count: what is counted, and how many of it each step had, as a function of the run's metrics.
        figure: what else is kept of each step.
    """
    import psutil

    from common.report import read_history

    fixed = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    marks, resident, total, finished = [], [], [], threading.Event()
    errors = output.with_suffix(".stderr")
    with errors.open("w") as file:
        pipes = {"stdout": subprocess.PIPE, "stderr": file, "text": True}
        root = psutil.Popen(command, cwd=output.parent, env=os.environ | fixed, **pipes)

    def processes() -> list[tuple]:  # with command line and CPU seconds; one that ends meanwhile is left out
        found = []
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                found.append((process, " ".join(process.cmdline()), sum(process.cpu_times()[:2])))
        return found

    def watch() -> None:
        due, holders = 0.0, []
        while not finished.wait(WATCH_SECONDS):
            now = time.perf_counter()
            with suppress(psutil.NoSuchProcess, OSError, TypeError):  # a process ended while it was read
                if now > due:
                    running = processes()
                    holders = [process for process, name, _ in running if holder_name in name]
                    due = now + TREE_SECONDS if holders else now  # look for it until it is there
                    pids = [process.pid for process, *_ in running]
                    total.append((now, sum(memory_mib(pid, "smaps_rollup", "Pss")[0] for pid in pids)))
                if holders:
                    resident.append((now, *memory_mib(holders[0].pid, "status", "VmRSS", "VmHWM")))

    def stop() -> None:
        for process, *_ in processes()[::-1]:  # children first, so that each still has the parent that reaps it
            with suppress(psutil.NoSuchProcess):
                process.kill()

    watcher, limit = threading.Thread(target=watch), threading.Timer(TIMEOUT, stop)
    watcher.start()
    limit.start()
    said = collections.deque(maxlen=20)
    for line in root.stdout:
        said.append(line)
        if step := re.match(r"step (\d+)/(\d+)", line):
            now, running = time.perf_counter(), processes()
            held = sum(seconds for _, name, seconds in running if holder_name in name)
            marks.append((now, held, sum(seconds for *_, seconds in running), step[1] == step[2]))
    code = root.wait()
    limit.cancel()
    finished.set()
    watcher.join()
    if code or not marks or not marks[-1][-1]:
        raise SystemExit(f"{''.join(said)}{errors.read_text()[-4000:]}\n{' '.join(command)}\nended with status {code}")
    history = read_history(output)
    work = count(history)
    first, last = marks[0][0] - history["train/seconds"][0][1], marks[-1][0]
    before = [mib for now, mib, _ in resident if now <= first][-1]
    peak = [record for now, _, record in resident if now <= last][-1]  # the kernel's own record, which misses no spike
    wall, holder_cpu, all_cpu = (end - start for start, end in zip(marks[skip - 1][:3], marks[-1]))
    return {
        f"{unit}/s": sum(work[skip:]) / wall,
        f"{unit}/CPU-s": sum(work[skip:]) / holder_cpu,
        f"{unit}/CPU-s, all processes": sum(work[skip:]) / all_cpu,
        "peak RSS, MiB": peak,
        "growth in training, MiB": peak - before,
        "all processes, MiB": max(mib for now, mib in total if now <= last),
        figure: [value for _, value in history[f"train/{figure}"]],
        "work": work,
    }


def compare(
    prepare: Callable, sides: dict, unit: str, count: Callable, options: argparse.Namespace, figure: str = "loss"
) -> None:
    """Run all sides in turns on every profile, and print the table.

    Args:
        prepare: writes a profile's inputs to a folder and returns facts about them; a dict among them is a column.
        sides: name -> the function that makes its command, and the name of the process that holds its model.
        figure: what is shown of both sides' steps: the loss, or the reward where each side draws its own answers.
    """
    if not options.trl_python:
        raise SystemExit("--trl-python is needed: the interpreter of an environment with `pip install trl==1.16.0`")
    results = {}
    for profile in options.profiles:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            results[profile] = {"facts": prepare(folder, profile, options), "runs": {side: [] for side in sides}}
            print(profile, json.dumps(results[profile]["facts"]), flush=True)
            for number, (_, side) in enumerate(itertools.product(range(options.repeats), sides)):
                (command, holder), output = sides[side], folder / f"run_{number}"
                run = measure(command(folder, output, options), output, holder, unit, count, options.skip, figure)
                results[profile]["runs"][side].append(run)
                figures = [f"{name} {value:.4g}  " for name, value in run.items() if not isinstance(value, list)]
                print(f"  {side}:", *figures, flush=True)
    print(report(results, figure))
    if options.output:
        options.output.write_text(json.dumps(results, indent=1))


def report(results: dict, figure: str) -> str:
    """Print the ratios, and lay the runs out as a table: median (min-max) over the runs."""
    rows = []
    for profile, result in results.items():
        columns = {name: values for name, values in result["facts"].items() if isinstance(values, dict)}
        ours = result["runs"][OURS]
        for side, runs in result["runs"].items():
            row = {"rows, side": f"{profile}, {side}"}
            row |= {name: f"{values[side]:.0f}" if side in values else "" for name, values in columns.items()}
            for name in [name for name, value in runs[0].items() if not isinstance(value, list)]:
                values = [run[name] for run in runs]
                row[name] = f"{statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})"
                if "/" in name and side != OURS:
                    ratios = [one[name] / other[name] for one, other in zip(ours, runs)]
                    median, each = statistics.median(ratios), " ".join(f"{ratio:.2f}" for ratio in ratios)
                    print(f"{profile}: {name}, {OURS}/{side} {median:.2f}; {each}")
            for name, part in (("first 10", slice(10)), ("last 10", slice(-10, None))):
                row[f"{figure}, {name} steps"] = f"{statistics.mean(runs[0][figure][part]):.4f}"
            rows.append(row)
            if side == OURS or figure != "loss":
                continue
            if runs[0]["work"] == ours[0]["work"]:
                gap = max(abs(one - other) for one, other in zip(ours[0]["loss"], runs[0]["loss"]))
                print(f"{profile}: the losses of a step differ by at most {gap:.1e} from {OURS} to {side}")
            else:
                print(f"{profile}: {side} puts other rows into a step, so no step's loss can be compared")
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
