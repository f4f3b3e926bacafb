"""Bradley-Terry training measured against TRL's RewardTrainer: pairs per second, memory, and the same losses.

    python tests/benchmarks/bt_throughput.py --trl-python /path/to/venv/bin/python --data pairs.parquet

Both sides run as a user would start them, in turns: ours through Ray and verl, TRL in an environment of its own. Equal:
rows and their order, initial weights with the reward head, batch, fp32 on one CPU thread, AdamW's numbers, a constant
rate, no dropout, no pair cut, no gradient checkpointing (TRL's default) unless asked for. One stopwatch times both, the
moment a step's line is read from their output, so loading, logging and Ray's messages count; the first steps do not.

Not equal: batching, which is what is measured (TRL pads to the longest of the batch), and AdamW's implementation (TRL:
fused, no decay of norms; here: torch's default, all decay). Linux only: memory is read from /proc.
"""

import argparse
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
from contextlib import suppress
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
LR, BETAS, WEIGHT_DECAY, CLIP, SEED = 1e-4, (0.9, 0.95), 0.01, 1.0, 0
BATCH, MAX_LENGTH, TIMEOUT = 8, 2048, 900  # pairs of a step; tokens, longer pairs are left out; seconds for one run
# the kinds of pairs in a profile, as (tokens of a prompt), (tokens of an answer). "real" stands in where --data is not
# given: a third short instructions, two thirds questions about a passage, as in public sets of human preferences
SHORT, PASSAGE = ((20, 150), (10, 200)), ((700, 1250), (10, 200))
PROFILES = {"real": [SHORT, PASSAGE, PASSAGE], "long": [((300, 800), (20, 100))], "short": [((10, 60), (50, 300))]}
PROMPT_MARKUP, ANSWER_MARKUP = 8, 2  # tokens that the chat template adds
WATCH_SECONDS, TREE_SECONDS = 0.02, 2.0  # between readings of the process with the model, and of all processes
OURS, TRL = "ours", "TRL"


def synthetic_rows(kinds: list, count: int) -> list[dict]:
    """Make pairs of one-token words; chosen and rejected share a third of them, so there is something to learn."""
    draw = random.Random(SEED)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = [first + second for first in syllables[::3] for second in syllables[::2]]
    third, rows = len(words) // 3, []
    for prompt_tokens, answer_tokens in draw.choices(kinds, k=count):
        prompt = " ".join(draw.choices(words, k=draw.randint(*prompt_tokens) - PROMPT_MARKUP))
        rows.append({})
        for side, vocabulary in (("chosen", words[:-third]), ("rejected", words[third:])):
            answer = " ".join(draw.choices(vocabulary, k=draw.randint(*answer_tokens) - ANSWER_MARKUP))
            rows[-1][side] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return rows


def prepare(folder: Path, profile: str, options: argparse.Namespace) -> dict:
    """Write what both sides read, pairs.parquet, order.json and model/, and say what is in it."""
    import torch
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    sys.path.insert(0, str(REPO / "bradley_terry"))
    from common.checkpoint import EpochShuffle
    from common.parquet import write_rows
    from common.tiny_model import make_tokenizer

    from dataset import encode_pairs, load_pairs

    count, data = options.steps * BATCH, profile == "real" and options.data
    data = data or write_rows(folder / "synthetic.parquet", synthetic_rows(PROFILES[profile], count))
    rows, _ = load_pairs(data, "drop")
    turns = (turn for row in rows for side in ("chosen", "rejected") for turn in row[side])
    texts = (f"{turn['role']}\n{turn['content']}" for turn in turns)
    tokenizer = make_tokenizer().train_new_from_iterator(texts, vocab_size=4096, show_progress=False)
    usable, _ = encode_pairs(rows, tokenizer, MAX_LENGTH, "drop", "drop")
    if len(usable) < count:
        raise SystemExit(f"{profile}: {len(usable)} usable pairs do not fill {options.steps} steps; lower --steps")
    pairs = random.Random(SEED).sample(usable, count)
    by_source = {row["source"]: {side: row[side] for side in ("chosen", "rejected")} for row in rows}
    write_rows(folder / "pairs.parquet", [by_source[pair.source] for pair in pairs])
    order = list(EpochShuffle(count, BATCH, 1, SEED))  # our order, which TRL is given
    (folder / "order.json").write_text(json.dumps(order))
    torch.manual_seed(SEED)
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "max_position_embeddings": 4096}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "num_labels": 1}
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen3ForSequenceClassification(Qwen3Config(vocab_size=4096, **shape, **heads, **tokens))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    longest = [max(pairs[row].longest for row in order[start : start + BATCH]) for start in range(0, count, BATCH)]
    computed = {OURS: sum(pair.tokens for pair in pairs) / count, TRL: 2 * statistics.mean(longest)}
    prompt = statistics.quantiles([len(pair.prompt) for pair in pairs])
    answer = statistics.quantiles([len(part) for pair in pairs for part in (pair.chosen, pair.rejected)])
    return {"prompt tokens, quartiles": prompt, "answer tokens": answer, "tokens computed": computed}


def our_command(folder: Path, output: Path, options: argparse.Namespace) -> list:
    data = f"train_files={folder / 'pairs.parquet'} train_batch_size={BATCH} max_length={MAX_LENGTH}"
    optim = f"lr={LR} betas=[{BETAS[0]},{BETAS[1]}] weight_decay={WEIGHT_DECAY} clip_grad={CLIP}"
    sections = {
        "data": f"{data} max_tokens_per_gpu={options.max_tokens}",
        "model": f"path={folder / 'model'} enable_gradient_checkpointing={options.gradient_checkpointing}",
        "optim": f"{optim} lr_scheduler_type=constant lr_warmup_steps_ratio=0 min_lr_ratio=1.0",
        "loss": "margin_scale=0 centering=0",
        "trainer": f"output={output} seed={SEED} total_epochs=1 test_freq=0 save_freq=0 max_ckpt_to_keep=1 nnodes=1",
    }
    settings = [f"{section}.{setting}" for section, text in sections.items() for setting in text.split()]
    return [sys.executable, str(REPO / "bradley_terry/train.py"), *settings]


def trl_command(folder: Path, output: Path, options: argparse.Namespace) -> list:
    settings = ["--folder", folder, "--output", output] + ["--gradient-checkpointing"] * options.gradient_checkpointing
    return [str(part) for part in (options.trl_python, __file__, "--role", "trl", *settings)]


def train_with_trl(options: argparse.Namespace) -> None:
    """Run TRL's trainer; its steps are printed and written as ours are."""
    import pyarrow.parquet as pq
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RewardConfig, RewardTrainer

    metrics = options.output / "metrics" / "from_step_000000.jsonl"
    metrics.parent.mkdir(parents=True)

    class Report(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.started = time.perf_counter()

        def on_log(self, args, state, control, logs, **_):
            if "loss" in logs:
                print(f"step {state.global_step}/{state.max_steps}", flush=True)
                values = {"train/loss": float(logs["loss"]), "train/seconds": time.perf_counter() - self.started}
                with metrics.open("a") as file:
                    file.write(json.dumps({"step": state.global_step, "data": values}) + "\n")
                self.started = time.perf_counter()

    optim = {"learning_rate": LR, "adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "weight_decay": WEIGHT_DECAY}
    optim |= {"max_grad_norm": CLIP, "lr_scheduler_type": "constant", "num_train_epochs": 1, "seed": SEED}
    data = {"per_device_train_batch_size": BATCH, "train_sampling_strategy": "sequential", "max_length": None}
    compute = {"use_cpu": True, "bf16": False, "gradient_checkpointing": options.gradient_checkpointing}
    logs = {"output_dir": str(options.output), "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
    rows = pq.read_table(options.folder / "pairs.parquet").to_pylist()
    ordered = Dataset.from_list([rows[row] for row in json.loads((options.folder / "order.json").read_text())])
    config = RewardConfig(**optim, **data, **compute, **logs)
    RewardTrainer(str(options.folder / "model"), config, train_dataset=ordered, callbacks=[Report()]).train()


def memory_mib(pid: int, file: str, *fields: str) -> list[float]:
    text = Path(f"/proc/{pid}/{file}").read_text()
    return [int(re.search(rf"^{field}:\s+(\d+) kB", text, re.M)[1]) / 1024 for field in fields]


def measure(command: list[str], output: Path, holder_name: str, options: argparse.Namespace) -> dict:
    """Run one side, time its steps by the lines it prints, and watch the memory of the process named `holder_name`."""
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
    for line in root.stdout:
        if line.startswith("step "):
            now, running = time.perf_counter(), processes()
            held = sum(seconds for _, name, seconds in running if holder_name in name)
            marks.append((now, held, sum(seconds for *_, seconds in running)))
    code = root.wait()
    limit.cancel()
    finished.set()
    watcher.join()
    if code or len(marks) != options.steps:
        raise SystemExit(f"{errors.read_text()[-4000:]}\n{' '.join(command)}\nended with status {code}")
    history = read_history(output)
    first, last = marks[0][0] - history["train/seconds"][0][1], marks[-1][0]
    before = [mib for now, mib, _ in resident if now <= first][-1]
    peak = [record for now, _, record in resident if now <= last][-1]  # the kernel's own record, which misses no spike
    pairs = (options.steps - options.skip) * BATCH
    wall, holder_cpu, all_cpu = (end - start for start, end in zip(marks[options.skip - 1], marks[-1]))
    return {
        "pairs/s": pairs / wall,
        "pairs/CPU-s": pairs / holder_cpu,
        "pairs/CPU-s, all processes": pairs / all_cpu,
        "peak RSS, MiB": peak,
        "growth in training, MiB": peak - before,
        "all processes, MiB": max(mib for now, mib in total if now <= last),
        "loss": [loss for _, loss in history["train/loss"]],
    }


def report(results: dict) -> str:
    """Lay the runs out as a table: median (min-max) over the runs."""
    rows = []
    for profile, result in results.items():
        both = list(zip(result["runs"][OURS], result["runs"][TRL]))
        gap = max(abs(ours - trl) for ours, trl in zip(*(run["loss"] for run in both[0])))
        for side, runs in result["runs"].items():
            tokens = result["facts"]["tokens computed"][side]
            row = {"lengths, side": f"{profile}, {side}", "tokens a pair": f"{tokens:.0f}"}
            for name in [name for name in runs[0] if name != "loss"]:
                values = [run[name] for run in runs]
                row[name] = f"{statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})"
            for name, part in (("first 10", slice(10)), ("last 10", slice(-10, None))):
                row[f"loss, {name} steps"] = f"{statistics.mean(runs[0]['loss'][part]):.4f}"
            rows.append(row)
        for name in ("pairs/s", "pairs/CPU-s", "pairs/CPU-s, all processes"):
            ratios = [ours[name] / trl[name] for ours, trl in both]
            print(
                f"{profile}: {name}, ours/TRL {statistics.median(ratios):.2f};", *(f"{ratio:.2f}" for ratio in ratios)
            )
        print(f"{profile}: the losses of a step differ by at most {gap:.1e}")
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Bradley-Terry training against TRL's RewardTrainer on a CPU.")
    parser.add_argument("--trl-python", help="the interpreter of an environment with trl")
    parser.add_argument("--data", help="Parquet of preference pairs for the profile 'real'; without it, synthetic ones")
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=list(PROFILES))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--skip", type=int, default=5, help="steps before the stopwatch starts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=16384, help="our micro-batch; TRL's is the whole batch")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--output", type=Path, help="write all results here as JSON")
    parser.add_argument("--role", choices=["trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        return train_with_trl(options)
    sides, results = {OURS: (our_command, "PairWorker"), TRL: (trl_command, "--role trl")}, {}
    for profile in options.profiles:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            results[profile] = {"facts": prepare(folder, profile, options), "runs": {side: [] for side in sides}}
            print(profile, json.dumps(results[profile]["facts"]), flush=True)
            for repeat, (side, (command, holder)) in itertools.product(range(options.repeats), sides.items()):
                output = folder / f"{side}_{repeat}"
                run = measure(command(folder, output, options), output, holder, options)
                results[profile]["runs"][side].append(run)
                print(
                    f"  {side}:",
                    *(f"{name} {value:.4g}  " for name, value in run.items() if name != "loss"),
                    flush=True,
                )
    print(report(results))
    if options.output:
        options.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
