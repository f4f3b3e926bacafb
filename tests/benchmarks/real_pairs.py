"""Bradley-Terry on real preferences: held-out accuracy of each option, beside simple baselines and TRL.

    python tests/benchmarks/real_pairs.py --data FOLDER --model MODEL --output runs
    python tests/benchmarks/real_pairs.py … --variants baseline two_epochs --seeds 0 1 2 --parallel 6
    python tests/benchmarks/real_pairs.py … --variants baseline --trl-python /path/to/venv/bin/python

FOLDER holds bt_train.parquet and bt_val_json.parquet, with the columns of run_bt.sh's data and no prompt in common. The
README's figures are of human preferences of PandaLM and of FineGrainedRLHF's qa_feedback; these rows are not in this
repository. MODEL is the folder that tests/real_model.py prints. Rows that cannot be used, and pairs whose longer
conversation has more than --max-length tokens, are left out. A tenth of the training pairs, by prompt, is val. The
second file (with --pairs a part of it) is held out, and is measured once, at the end of a run.

Each variant and seed is a run of run_bt.sh, as a user would start it, with the settings in `settings_of` and VARIANTS.
Several can run at a time, on one GPU or on the CPU's cores: each starts its own Ray, in a folder of its own. A run's
figures are a line in runs/results.jsonl; started again, the command makes the runs that are missing there. Weights are
deleted (--keep).

TRL trains from the same weights, head included, on the same tokens in the same order, at the same rate in each step.
Not equal: weight decay (TRL: not of norms), and batching. TRL pads. It takes as many pairs at a time as fit
--max-tokens if all had the greatest length, at most half a step's. With --trl-defaults it trains once more with its own
batches: 8 pairs at a time, and layers computed twice to save memory. All log the same loss if they do the same.

The table: "majority" is a guess, since a pair has no order. Accuracy is the mean over seeds; ± is its standard error,
with prompts drawn at random, because the pairs of one prompt are alike. Spread is the standard deviation over seeds.
The gain on the baseline is paired: the same pairs, the same seeds.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FILES = {"train": "bt_train.parquet", "test": "bt_val_json.parquet"}
BASELINE, TRL, TRL_ALONE = "baseline", "TRL", "TRL, its defaults"
TRL_PAIRS = 8  # at a time by default
BATCH, LR = 16, 2e-5  # for a model and a set as small as these
VARIANTS = {
    BASELINE: (),
    "two_epochs": ("trainer.total_epochs=2",),
    "lora": ("model.lora_rank=16", "model.lora_alpha=32", "optim.lr=5e-4"),
    "lr_1e-5": ("optim.lr=1e-5",),
    "lr_5e-5": ("optim.lr=5e-5",),
    "lr_1e-4": ("optim.lr=1e-4",),
    "batch_8": ("data.train_batch_size=8",),
    "batch_32": ("data.train_batch_size=32",),
    "batch_64": ("data.train_batch_size=64",),
    "no_centering": ("loss.centering=0",),
}
SECONDS = 7200  # for one run
DRAWING = threading.Lock()  # a head is drawn from torch's one generator
RUNNING: list[subprocess.Popen] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=f"folder with {' and '.join(FILES.values())}")
    parser.add_argument("--model", type=Path, help="folder of the language model to start from")
    parser.add_argument("--output", type=Path, required=True, help="folder for runs, their logs and results.jsonl")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of the longer conversation of a pair")
    parser.add_argument("--max-tokens", type=int, default=4096, help="of a micro-batch: memory and speed only")
    parser.add_argument("--pairs", type=int, help="of train, val and test together, drawn at random; default: all")
    parser.add_argument("--set", nargs="+", default=[], help="key=value for every run whose variant does not set it")
    parser.add_argument(
        "--trl-python", help="the interpreter of an environment with trl: trains the baseline there too"
    )
    parser.add_argument("--trl-defaults", action="store_true", help="TRL once more, with its own batches")
    parser.add_argument("--keep", action="store_true", help="keep all that a run leaves")
    parser.add_argument("--role", choices=["trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        return train_with_trl(options.output)
    if not options.data or not options.model:
        parser.error("--data and --model are needed")
    look_for_files([options.data / name for name in FILES.values()], options.model, parser)
    if options.trl_python and (BASELINE not in options.variants or options.set):
        parser.error(f"--trl-python repeats the variant {BASELINE}, without --set")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    sys.path.insert(0, str(REPO))
    options.output, options.model = options.output.absolute(), options.model.absolute()
    splits = split_data(options)
    rows = read_results(options.output)
    jobs = [(train, variant, seed) for variant in options.variants for seed in options.seeds]
    failed = work_off(jobs, splits, rows, options)
    if options.trl_python:
        jobs = [(train_beside, name, seed) for name in sides_of_trl(options) for seed in options.seeds]
        failed += work_off(jobs, splits, rows, options)
    print(f"\n{describe(splits)}\n\n{table(rows, splits, options)}")
    if failed:
        raise SystemExit("\n".join(["", "failed:", *failed]))


def look_for_files(data: list[Path], model: Path, parser: argparse.ArgumentParser) -> None:
    """End with the usage and what is missing if a file of --data, or the model, is not there."""
    if missing := [str(file) for file in (*data, model / "config.json") if not file.exists()]:
        parser.error(f"there is no {', no '.join(missing)}")


def stop(number: int, _) -> None:
    """End with all that was started; what has finished is noted already."""
    for process in RUNNING:
        kill(process)
    os._exit(128 + number)


def kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# ---- the data


def split_data(options: argparse.Namespace) -> dict[str, list]:
    """Write train.parquet, val.parquet and test.parquet, and return their pairs, tokenised."""
    import random

    from bradley_terry.dataset import load_pairs, prompt_of
    from common.parquet import split_by_prompt, write_rows

    folder, about = options.output / "data", options.output / "data" / "about.json"
    wanted = {name: str(getattr(options, name)) for name in ("data", "model", "max_length", "pairs")}
    if not about.exists():
        rows_of = {}
        for name, file in FILES.items():
            rows, _ = load_pairs(options.data / file, "drop")
            fits = {pair.source for pair in encode(rows, options) if pair.longest <= options.max_length}
            rows_of[name] = [row for row in rows if row["source"] in fits]
        for name, rows in rows_of.items() if options.pairs else ():
            random.Random(0).shuffle(rows)
            rows_of[name] = rows[: options.pairs * (4 if name == "train" else 1) // 5]
        if shared := {prompt_of(row) for row in rows_of["train"]} & {prompt_of(row) for row in rows_of["test"]}:
            raise SystemExit(f"{len(shared)} prompts are in both files of {options.data}, so nothing is held out")
        splits = split_by_prompt(rows_of["train"], {"train": 0.9, "val": 0.1}, 0, prompt_of) | {"test": rows_of["test"]}
        for name, rows in splits.items():
            write_rows(
                folder / f"{name}.parquet", [{side: row[side] for side in ("chosen", "rejected")} for row in rows]
            )
        about.write_text(json.dumps(wanted))
    elif json.loads(about.read_text()) != wanted:
        raise SystemExit(f"{options.output} holds runs of {json.loads(about.read_text())}. Choose another --output.")
    read = {name: load_pairs(folder / f"{name}.parquet")[0] for name in ("train", "val", "test")}
    return {name: list(zip(rows, encode(rows, options))) for name, rows in read.items()}


def encode(rows: list[dict], options: argparse.Namespace) -> list:
    """Return the pairs as training sees them."""
    from bradley_terry.dataset import encode_pairs

    return encode_pairs(rows, read_tokenizer(options), sys.maxsize, "error", "drop")[0]


def read_tokenizer(options: argparse.Namespace):
    from common.tokenizer import end_at_turn, load_tokenizer

    tokenizer = load_tokenizer(str(options.model), False)
    end_at_turn(tokenizer)
    return tokenizer


def describe(splits: dict[str, list]) -> str:
    from bradley_terry.dataset import prompt_of

    return ". ".join(
        f"{name}: {len(pairs)} pairs, {len({prompt_of(row) for row, _ in pairs})} prompts, "
        f"{sum(pair.tokens for _, pair in pairs) / len(pairs):.0f} tokens a pair"
        for name, pairs in splits.items()
    )


# ---- the runs


def read_results(output: Path) -> list[dict]:
    file = output / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")] if file.exists() else []


def work_off(jobs: list[tuple], splits: dict, rows: list[dict], options: argparse.Namespace) -> list[str]:
    """Make the runs that `rows` lacks, several at a time, and add what they found; return what failed."""
    from tqdm import tqdm

    def is_made(job: tuple) -> bool:
        _, name, seed = job
        wanted = settings_of(BASELINE if name in (TRL, TRL_ALONE) else name, options)
        return any((row["variant"], row["seed"], row["settings"]) == (name, seed, wanted) for row in rows)

    waiting = [job for job in jobs if not is_made(job)]
    waiting.sort(key=lambda job: -passes(job[1]))  # the longest first, or one of them would be alone at the end
    failed = []
    with ThreadPoolExecutor(options.parallel) as pool, tqdm(total=len(waiting), desc="runs", unit="run") as progress:
        running = {pool.submit(make, name, seed, splits, rows, options): (name, seed) for make, name, seed in waiting}
        for done in as_completed(running):
            name, seed = running[done]
            progress.update()
            if error := done.exception():
                failed.append(f"{name}, seed {seed}: {error}")
                progress.write(failed[-1])
                continue
            rows.append(done.result())
            with (options.output / "results.jsonl").open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            right = sum(margin > 0 for margin in rows[-1]["margins"]) / len(rows[-1]["margins"])
            progress.write(f"{name}, seed {seed}: accuracy {right:.3f}, {rows[-1]['seconds']:.0f} s")
    return failed


def sides_of_trl(options: argparse.Namespace) -> list[str]:
    return [TRL] * bool(options.trl_python) + [TRL_ALONE] * bool(options.trl_python and options.trl_defaults)


def passes(variant: str) -> int:
    named = [setting for setting in VARIANTS.get(variant, ()) if setting.startswith("trainer.total_epochs=")]
    return int(named[0].partition("=")[2]) if named else 1


def settings_of(variant: str, options: argparse.Namespace) -> list[str]:
    """Return what follows run_bt.sh on the command line."""
    given = {
        "data.max_length": options.max_length,
        "data.max_tokens_per_gpu": options.max_tokens,
        "data.train_batch_size": BATCH,
        "model.enable_gradient_checkpointing": False,  # 135 M parameters need no saving
        "engine.use_torch_compile": False,  # which would take longer than a run this short
        "optim.lr": LR,
        "trainer.test_freq": 0,
        "trainer.save_freq": 0,
        "trainer.logger": "[file]",
    }
    given |= dict(setting.split("=", 1) for setting in (*options.set, *VARIANTS[variant]))
    return [f"{name}={value}" for name, value in given.items()]


def train(variant: str, seed: int, splits: dict, rows: list[dict], options: argparse.Namespace) -> dict:
    """Run run_bt.sh; return its figures."""
    import pyarrow.parquet as pq

    from common.report import read_history

    output, data = options.output / f"{variant}_seed_{seed}", options.output / "data"
    settings = settings_of(variant, options)
    files = {f"{name.upper()}_FILES": str(data / f"{name}.parquet") for name in ("train", "val", "test")}
    environment = files | {"MODEL_PATH": str(options.model), "OUTPUT": str(output), "SEED": str(seed)}
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    start(["bash", str(REPO / "bradley_terry" / "run_bt.sh"), *settings], output, environment, options.parallel)
    seconds = time.perf_counter() - started
    history = read_history(output)
    rewards = pq.read_table(output / "test_rewards.parquet").to_pydict()
    row = {"variant": variant, "seed": seed, "settings": settings, "seconds": seconds}
    row["margins"] = [chosen - rejected for chosen, rejected in zip(rewards["chosen"], rewards["rejected"])]
    row["training"] = sum(value for _, value in history["train/seconds"])
    row |= {name: [value for _, value in history[f"train/{name}"]] for name in ("loss", "lr")}
    if not options.keep:
        forget_weights(output)
    return row


def start(command: list[str], output: Path, environment: dict[str, str], parallel: int) -> None:
    """Run a command to its end, its words in OUTPUT.log; no run sees another's Ray, and each has its share of cores.

    Raises:
        RuntimeError: it failed or took too long; its last words.
    """
    from common.cluster import WAIT_BRIEFLY

    cores = max(1, (os.cpu_count() or 1) // parallel)
    with tempfile.TemporaryDirectory(prefix="rr", dir="/tmp", ignore_cleanup_errors=True) as place:
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH")))),
            "RAY_TMPDIR": place,
            # Ray starts a process for each core that it counts, and keeps a third of the memory for objects
            "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2, "object_store_memory": 2**28}),
            "OMP_NUM_THREADS": str(cores),
            **(WAIT_BRIEFLY if parallel > 1 else {}),  # alone, TRL's threads wait as they usually do
            "RAYON_NUM_THREADS": str(cores),  # of the tokenizer
        }
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{output}.log", "wb") as log:
            words = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, env=inherited | own | environment, start_new_session=True, **words)
        RUNNING.append(process)
        try:
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            status = f"after {SECONDS} s"
            kill(process)
        RUNNING.remove(process)
    if status:
        words = Path(f"{output}.log").read_text(errors="replace")
        raise RuntimeError(f"ended with status {status}, {output}.log:\n{words[-1500:]}")


def forget_weights(output: Path) -> None:
    for folder in (*output.glob("global_step_*"), *output.glob("checkpoint*"), *output.glob("start")):
        shutil.rmtree(folder)


# ---- TRL


def train_beside(name: str, seed: int, splits: dict, rows: list[dict], options: argparse.Namespace) -> dict:
    """Train in TRL what the baseline trained, with the numbers that it noted, and measure it by our code."""
    import pyarrow.parquet as pq

    from common.checkpoint import RUN_FILE, EpochShuffle
    from common.parquet import write_rows
    from common.report import read_history

    settings = settings_of(BASELINE, options)
    (ours,) = (row for row in rows if (row["variant"], row["seed"], row["settings"]) == (BASELINE, seed, settings))
    output = options.output / f"{name}_seed_{seed}"
    shutil.rmtree(output, ignore_errors=True)
    noted = json.loads((options.output / f"{BASELINE}_seed_{seed}" / RUN_FILE).read_text())
    batch = noted["data.train_batch_size"]
    pairs = [pair for _, pair in splits["train"]]
    order = list(EpochShuffle(len(pairs), batch, 1, seed))[: batch * len(ours["lr"])]
    write_rows(output / "rows.parquet", [ids_of(pair) for pair in pairs])
    (output / "order.json").write_text(json.dumps(order))
    sizes = [size for size in range(1, batch // 2 + 1) if batch % size == 0]
    fitting = [size for size in sizes if 2 * size * options.max_length <= options.max_tokens]
    shape = {"pairs_at_once": max(fitting, default=1), "computed_twice": False}
    if name == TRL_ALONE:
        shape = {"pairs_at_once": TRL_PAIRS, "computed_twice": True}
    (output / "settings.json").write_text(json.dumps(noted | shape | {"rates": ours["lr"]}))
    save_start(output / "start", seed, options)
    started = time.perf_counter()
    start([options.trl_python, __file__, "--role", "trl", "--output", str(output)], output, {}, options.parallel)
    seconds = time.perf_counter() - started
    test = ["--model", str(output / "checkpoint"), "--data", str(options.output / "data" / "test.parquet")]
    start([sys.executable, "-m", "bradley_terry.evaluate", *test], output / "evaluate", {}, options.parallel)
    rewards = pq.read_table(output / "evaluation_test.parquet").to_pydict()
    history = read_history(output)
    row = {"variant": name, "seed": seed, "settings": settings, "seconds": seconds}
    row["margins"] = [chosen - rejected for chosen, rejected in zip(rewards["chosen"], rewards["rejected"])]
    row["training"] = sum(value for _, value in history["train/seconds"])
    row["loss"] = [value for _, value in history["train/loss"]]
    if not options.keep:
        forget_weights(output)
    return row


def ids_of(pair) -> dict[str, list[int]]:
    """Return both conversations of a pair as TRL's trainer takes tokens."""
    sides = {"chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
    return {name: [*pair.prompt.tolist(), *answer.tolist()] for name, answer in sides.items()}


def save_start(folder: Path, seed: int, options: argparse.Namespace) -> None:
    """Write the model with the head that our run draws with this seed."""
    import torch
    from transformers import AutoModelForSequenceClassification

    tokenizer = read_tokenizer(options)
    with DRAWING:
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_with_trl(folder: Path) -> None:
    """Run TRL's trainer, in its own environment; its steps are printed and written as ours are."""
    import torch
    from trl import RewardConfig, RewardTrainer
    from trl_side import ordered_rows, step_report

    noted = json.loads((folder / "settings.json").read_text())
    optim, batch = noted["optim"], noted["data.train_batch_size"]
    on_gpu = torch.cuda.is_available()

    class AtOurRates(RewardTrainer):
        def create_scheduler(self, num_training_steps: int, optimizer=None):
            share = [rate / optim["lr"] for rate in noted["rates"]] + [0.0]  # it moves on once more after the last step
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, lambda step: share[step])
            return self.lr_scheduler

    config = RewardConfig(
        output_dir=str(folder),
        learning_rate=optim["lr"],
        adam_beta1=optim["betas"][0],
        adam_beta2=optim["betas"][1],
        weight_decay=optim["weight_decay"],
        max_grad_norm=optim["clip_grad"],
        center_rewards_coefficient=noted["loss"]["centering"],
        num_train_epochs=1,
        per_device_train_batch_size=noted["pairs_at_once"],
        gradient_accumulation_steps=batch // noted["pairs_at_once"],
        train_sampling_strategy="sequential",
        max_length=None,
        gradient_checkpointing=noted["computed_twice"],
        bf16=on_gpu,
        use_cpu=not on_gpu,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    data, start = ordered_rows(folder), str(folder / "start")
    trainer = AtOurRates(start, config, train_dataset=data, callbacks=[step_report(folder)])
    trainer.train()
    trainer.save_model(str(folder / "checkpoint"))


# ---- the table


def table(rows: list[dict], splits: dict[str, list], options: argparse.Namespace) -> str:
    """Lay the variants out as Markdown, the baselines first."""
    import numpy as np

    from bradley_terry.dataset import prompt_of

    pairs = [pair for _, pair in splits["test"]]
    prompts = [prompt_of(row) for row, _ in splits["test"]]
    prompts = np.unique(prompts, return_inverse=True)[1]
    gaps = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs])
    longer, shorter, every = gaps > 0, gaps < 0, np.full(len(gaps), True)

    def mean_of(values: np.ndarray, kind: np.ndarray, sign: str = "") -> str:
        """Return a mean over pairs, with its standard error if their prompts are drawn at random."""
        mean = values[kind].mean()
        of_prompts = np.bincount(prompts[kind], values[kind] - mean)
        return f"{mean:{sign}.3f} ± {np.square(of_prompts).sum() ** 0.5 / kind.sum():.3f}"

    def line(name: str, right: np.ndarray, more: list[str]) -> list[str]:
        return [name, *(mean_of(right, kind) for kind in (every, longer, shorter)), *more]

    nothing = [""] * 5
    lines = [["majority", "0.500", "0.500", "0.500", *nothing]]
    lines.append(line("the longer answer", longer + 0.5 * (gaps == 0), nothing))
    lines.append(line("bag of words", bag_of_words(splits), nothing))
    right_of = {}
    for name in [*options.variants, *sides_of_trl(options)]:
        wanted = settings_of(BASELINE if name in (TRL, TRL_ALONE) else name, options)
        found = {row["seed"]: row for row in rows if (row["variant"], row["settings"]) == (name, wanted)}
        found = {seed: found[seed] for seed in options.seeds if seed in found}
        if not found:
            continue
        right_of[name] = {seed: np.array(row["margins"]) > 0 for seed, row in found.items()}
        means = [right.mean() for right in right_of[name].values()]
        spread = f"{np.std(means, ddof=1):.3f}" if len(means) > 1 else ""
        gain = ""
        if name != BASELINE and (both := sorted(right_of.get(BASELINE, {}).keys() & found.keys())):
            gains = sum(right_of[name][seed] * 1.0 - right_of[BASELINE][seed] for seed in both) / len(both)
            gain = mean_of(gains, every, "+")
        losses = [np.logaddexp(0, -np.array(row["margins"])).mean() for row in found.values()]
        seconds = f"{np.mean([row['training'] for row in found.values()]):.0f}"
        right = sum(right * 1.0 for right in right_of[name].values()) / len(found)
        seeds = " ".join(map(str, found))
        lines.append(line(name, right, [spread, gain, f"{np.mean(losses):.3f}", seconds, seeds]))
    head = ["", "accuracy", "longer is better", "shorter is better", "spread", "gain"]
    head += ["log loss", "s of training", "seeds"]
    text = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)]
    return "\n".join([*text, "", *compare_losses(rows, options)])


def compare_losses(rows: list[dict], options: argparse.Namespace) -> list[str]:
    """Say by how much the losses of the same step differ from ours to TRL's."""
    wanted, said = settings_of(BASELINE, options), []
    runs = {(row["variant"], row["seed"]): row for row in rows if row["settings"] == wanted}
    for name, seed in product(sides_of_trl(options), options.seeds):
        if (BASELINE, seed) in runs and (name, seed) in runs:
            gaps = [abs(a - b) for a, b in zip(runs[BASELINE, seed]["loss"], runs[name, seed]["loss"])]
            said.append(
                f"seed {seed}, {name}: loss differs by {gaps[0]:.1e} in the first step, {max(gaps):.1e} at most"
            )
    return said


def bag_of_words(splits: dict[str, list]):
    """Return which held-out pairs a logistic regression on words gets right, its strength chosen on val."""
    import numpy as np
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    def answers(name: str, side: str) -> list[str]:
        return [row[side][-1]["content"] for row, _ in splits[name]]

    words = TfidfVectorizer(sublinear_tf=True, min_df=2)
    words.fit(answers("train", "chosen") + answers("train", "rejected"))
    gap = {
        name: words.transform(answers(name, "chosen")) - words.transform(answers(name, "rejected")) for name in splits
    }
    both_ways, label = vstack([gap["train"], -gap["train"]]), np.repeat([1, 0], gap["train"].shape[0])
    models = [
        LogisticRegression(C=strength, fit_intercept=False, max_iter=1000) for strength in (0.01, 0.1, 1, 10, 100)
    ]
    right_of = [model.fit(both_ways, label).decision_function(gap["val"]) > 0 for model in models]
    best = models[int(np.argmax([right.mean() for right in right_of]))]
    return (np.sign(best.decision_function(gap["test"])) + 1) / 2  # half right where it sees no difference


if __name__ == "__main__":
    main()
