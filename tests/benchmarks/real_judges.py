"""Judges from a real model: what SFT and GRPO make of it, before and after.

    python tests/benchmarks/real_judges.py --data FOLDER --model MODEL --output runs

FOLDER holds three files, which are not in this repository; MODEL is the folder that tests/real_model.py prints.

- pairwise_train.parquet, with the columns of run_pairwise.sh: responses that people compared, of PandaLM and of
  FineGrainedRLHF's qa_feedback.
- pointwise_train.parquet, with those of run_pointwise.sh: responses that people scored, of UniEval's Topical-Chat, and
  Prometheus' rows. GPT-4 scored these three times; the label is the median. It followed a rubric of each row, which is
  not shown here: prompts would be too long.
- sft_judge_train.parquet, with `messages` and `source`: judgements, with reasons, of GPT-3.5 on some of PandaLM's rows
  (source pandalm_gpt35) and of GPT-4 on some of Prometheus' (any other), in the prompts of these two.

Rows whose prompt is longer than --max-prompt-length are left out. The rows of each task are divided by what they ask.

1. SFT: one judge for both tasks, on the models' judgements of training rows, at most two of a row and shorter than
   --max-response-length, in the prompts of the two folders. With --labels also on rows without such a judgement, as
   all of Topical-Chat's: their answer is the label, with no reasons.
2. GRPO, one run for each judge: training rows, the labels.

Each run is that of a user, with run_sft.sh, run_pairwise.sh and run_pointwise.sh. Other numbers than theirs are in SFT
and GRPO below and in the options here: for a model, rows and a machine that are small. The policy answers by itself.
The model as it came is asked the first --untrained rows of test, the other judges all of them; answers are greedy. The
table is of evaluate's figures, and of Cohen's kappa with the labels over answers that hold a verdict (scores: quadratic
weights). GRPO's row is of the policy that was best on validation rows, at the start or at the end. Runs that are there
are not made again; for other settings choose another --output. Another judge may take other --steps.
"""

import argparse
import json
import re
import signal
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from statistics import mean

from real_pairs import REPO, look_for_files, start, stop

PAIRWISE, POINTWISE = "generative_pairwise", "generative_pointwise"
FILES = ("pairwise_train.parquet", "pointwise_train.parquet", "sft_judge_train.parquet")
JUDGEMENTS = 2  # of one response, or pair, at most
SHARES = {"train": 0.65, "val": 0.15, "test": 0.2}
SFT = {
    "data.train_batch_size": 16,
    "data.max_tokens_per_gpu": 4096,
    "optim.lr": 2e-4,
    "optim.lr_warmup_steps_ratio": 0.1,
    "trainer.total_epochs": 1,
    "model.enable_gradient_checkpointing": False,
}
GRPO = {
    "data.train_batch_size": 16,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 16,
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 8192,
    "actor_rollout_ref.actor.optim.lr": 2e-5,
    "actor_rollout_ref.model.enable_gradient_checkpointing": False,
    "trainer.test_freq": 1000,  # at the start and the end alone
    "trainer.save_freq": 2,
}
SHOWN = {
    PAIRWISE: (
        *("parse_rate", "accuracy", "majority_accuracy"),
        *("both_right", "majority_both_right", "longer_both_right", "first_rate"),
    ),
    POINTWISE: (
        *("parse_rate", "accuracy", "majority_accuracy", "within_one", "constant_within_one"),
        *("mae", "majority_mae", "mean_mae"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the three files")
    parser.add_argument("--model", type=Path, required=True, help="folder of the chat model to start from")
    parser.add_argument("--output", type=Path, required=True, help="folder for the data, the runs and their logs")
    parser.add_argument("--judges", nargs="+", choices=[PAIRWISE, POINTWISE], default=[PAIRWISE, POINTWISE])
    parser.add_argument("--steps", type=int, default=12, help="of GRPO, each of 16 prompts with 8 answers")
    parser.add_argument("--max-prompt-length", type=int, default=512)
    parser.add_argument("--max-response-length", type=int, default=192)
    parser.add_argument("--labels", action="store_true", help="SFT learns the labels of rows without a judgement")
    parser.add_argument("--untrained", type=int, default=40, help="rows of test for the model as it came")
    options = parser.parse_args()
    look_for_files([options.data / name for name in FILES], options.model, parser)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    sys.path.insert(0, str(REPO))
    output, options.model = options.output.absolute(), options.model.absolute()
    wanted = {name: str(value) for name, value in vars(options).items() if name not in ("output", "judges", "steps")}
    note, transcripts = output / "options.json", output / "data" / "transcripts.parquet"
    known = json.loads(note.read_text()) if note.exists() else wanted
    others = [judge for judge in options.judges if known.get(judge, options.steps) != options.steps]
    if others or {name: known.get(name) for name in wanted} != wanted:
        raise SystemExit(f"{output} holds runs of {known}. Choose another --output.")
    if not note.exists():
        write_data(output, options)
        note.write_text(json.dumps(wanted))
    taught = output / "sft" / "checkpoint"
    make(taught, "sft/run_sft.sh", {"MODEL_PATH": options.model, "TRAIN_FILES": transcripts}, SFT)
    for judge in options.judges:
        files = {name: output / "data" / judge / f"{name}.parquet" for name in (*SHARES, "untrained")}
        given = {f"{name.upper()}_FILES": files[name] for name in SHARES} | {"MODEL_PATH": taught, "ROLLOUT": "hf"}
        settings = GRPO | {"trainer.total_training_steps": options.steps}
        settings |= {f"data.{name}": getattr(options, name) for name in ("max_prompt_length", "max_response_length")}
        script = f"{judge}/run_{judge.removeprefix('generative_')}.sh"
        known[judge] = options.steps
        note.write_text(json.dumps(known))
        make(output / judge / "evaluation_test.json", script, given, settings)
        untrained = output / f"{judge}_untrained"
        if not (untrained / "evaluation_untrained.json").exists():
            asked = {"model": options.model, "data": files["untrained"], "output": untrained}
            asked["settings"] = output / judge / "settings.yaml"
            command = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
            start([sys.executable, "-m", f"{judge}.evaluate", *command], untrained, {}, 1)
        print(f"\n{table(judge, output)}", flush=True)


def make(wanted: Path, script: str, given: dict[str, object], settings: dict[str, object]) -> None:
    """Make the run whose last file is `wanted`, unless it is there; one that was broken off goes on."""
    if wanted.exists():
        return
    output = wanted.parent
    print(f"{script}, log in {output}.log", flush=True)
    environment = {name: str(value) for name, value in given.items()} | {"OUTPUT": str(output)}
    # verl's queue and trainer want a core each, beside the worker
    environment["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 4, "object_store_memory": 2**28})
    given_settings = [f"{name}={value}" for name, value in settings.items()]
    start(["bash", str(REPO / script), *given_settings], output, environment, 1)


# ---- the data


def write_data(output: Path, options: argparse.Namespace) -> None:
    """Write the labelled rows, divided, and as conversations what SFT learns from their training part."""
    import pyarrow.parquet as pq
    from tqdm import tqdm
    from transformers import AutoTokenizer

    from common.conversation import BadRow
    from common.parquet import split_by_prompt, write_rows

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    judgements = read_judgements(options.data / "sft_judge_train.parquet")
    print(f"{sum(map(len, judgements.values()))} judgements")
    conversations = []
    for judge in (PAIRWISE, POINTWISE):
        prompt = import_module(f"{judge}.prompt")
        file = options.data / f"{judge.removeprefix('generative_')}_train.parquet"
        usable = []
        for row in tqdm(pq.read_table(file).to_pylist(), desc=file.name, unit="row", delay=1):
            row = {name: row[name] for name in prompt.COLUMNS}
            try:
                conversation = prompt.transcripts(prompt.read_row(row))[0]
            except BadRow:
                continue
            asked = tokenizer.apply_chat_template(conversation[:-1], add_generation_prompt=True, return_dict=False)
            if len(asked) <= options.max_prompt_length:
                usable.append(row)
        splits = split_by_prompt(usable, SHARES, 0, lambda row: json.dumps(row["input"]))
        shown, too_long, alone, rows_alone = [], 0, [], 0
        for row in splits["train"]:
            fitting = []
            for verdict, reasoning in judgements[judged_texts(row)]:
                labelled = row | verdict | {"reasoning": reasoning}
                (messages,) = prompt.transcripts(prompt.read_row(labelled))
                if len(tokenizer(messages[-1]["content"])["input_ids"]) < options.max_response_length:
                    fitting.append({"messages": messages})
                else:
                    too_long += 1
            shown += fitting[:JUDGEMENTS]
            if options.labels and not fitting:
                alone += [{"messages": messages} for messages in prompt.transcripts(prompt.read_row(row))]
                rows_alone += 1
        splits["untrained"] = splits["test"][: options.untrained]
        for name, rows in splits.items():
            write_rows(output / "data" / judge / f"{name}.parquet", rows)
        sizes = ", ".join(f"{name} {len(rows)}" for name, rows in splits.items())
        print(f"{judge}: {sizes}; {len(shown)} judgements to learn from, {too_long} more are too long to be answered")
        if options.labels:
            print(f"{judge}: {len(alone)} conversations of {rows_alone} rows' labels alone")
        conversations += shown + alone
    write_rows(output / "data" / "transcripts.parquet", conversations)


def judged_texts(row: dict) -> tuple[str, ...]:
    """Return what a judgement of a row is known by: the last question and its answers, without blanks at the ends."""
    texts = [row["input"][-1]["content"], *(answer["answer"]["content"] for answer in row["output"])]
    return tuple(text.strip() for text in texts)


def read_judgements(file: Path) -> dict[tuple[str, ...], list[tuple[dict, str]]]:
    """Return the models' verdicts and reasons, by what they judged; they are read from prompts of two known forms."""
    import pyarrow.parquet as pq

    found = defaultdict(list)
    for row in pq.read_table(file).to_pylist():
        asked, answered = (message["content"] for message in row["messages"])
        if row["source"] == "pandalm_gpt35":
            query, *answers = re.search(
                r"# Query\n(.*)\n# Response A\n(.*)\n# Response B\n(.*)\n# Output Requirement", asked, re.S
            ).groups()
            reasoning, preferred = re.fullmatch(
                r"<think>(.*)</think>\s*<preference>(.*)</preference>", answered, re.S
            ).groups()
            reasoning = re.sub(r"Response ([12])", lambda named: f"Response {' AB'[int(named[1])]}", reasoning)
            verdict = {"metadata": {"preferred": preferred}}
        else:
            query, *answers = re.search(
                r"###The instruction to evaluate:(.*)###Response to evaluate:(.*)###Reference Answer", asked, re.S
            ).groups()
            query = re.sub(r"\s*Assistant:\s*$", "", query.rpartition("\nUser: ")[2])  # a dialogue's last question
            reasoning, score = re.fullmatch(r"Feedback: (.*) \[RESULT\] ([1-5])", answered, re.S).groups()
            verdict = {"label": int(score) - 1}
        found[tuple(text.strip() for text in (query, *answers))].append((verdict, reasoning))
    return found


# ---- the table


def table(judge: str, output: Path) -> str:
    """Lay a judge's figures out as Markdown: as it came, after SFT, after GRPO."""
    import pyarrow.parquet as pq

    from common.judging.votes import agreement
    from common.report import read_history

    history, values = read_history(output / judge), import_module(f"{judge}.prompt").VERDICTS
    rewards = [value for _, value in history["train/reward"]]
    seconds = mean(value for _, value in history["train/seconds"])
    best = json.loads((output / judge / "best.json").read_text())["step"]
    places = {
        "as it came": output / f"{judge}_untrained" / "evaluation_untrained",
        "after SFT": output / judge / "before" / "evaluation_test",
        f"after {best} of {len(rewards)} steps of GRPO": output / judge / "evaluation_test",
    }
    lines = [["", "answers", *SHOWN[judge], "kappa"]]
    lines.append(["---"] * len(lines[0]))
    for name, place in places.items():
        figures, answers = json.loads(Path(f"{place}.json").read_text()), pq.read_table(f"{place}.parquet").to_pylist()
        labels, verdicts = zip(*((answer["label"], answer["verdict"]) for answer in answers))
        kappa = agreement(labels, verdicts, values, "quadratic" if judge == POINTWISE else None).get("kappa")
        shown = [figures.get(figure) for figure in SHOWN[judge]] + [kappa]
        cells = ["" if figure is None else f"{figure:.3f}" for figure in shown]
        lines.append([name, str(len(answers)), *cells])
    text = [f"| {' | '.join(cells)} |" for cells in lines]
    curve = ", ".join(f"{reward:.3f}" for reward in rewards)
    ends = {name: [f"{history[f'val/{name}'][place][1]:.3f}" for place in (0, -1)] for name in ("parsed", "acc")}
    said = [f"reward of each step: {curve}; {seconds:.0f} s a step"]
    said += [f"val/{name} before and after the last step: {' -> '.join(values)}" for name, values in ends.items()]
    return "\n".join([judge, *text, *said])


if __name__ == "__main__":
    main()
