"""Judges from a real model: what SFT and GRPO make of it on two cores, on people's labels, before and after.

    python tests/benchmarks/real_judges.py --data FOLDER --model MODEL --output runs

FOLDER holds three files. pairwise_train.parquet and pointwise_train.parquet: responses that people compared or scored
(in Prometheus' rows the label is the median of three of GPT-4's scores). sft_judge_train.parquet: judgements of GPT-3.5
and GPT-4 on some of them, with reasons. Rows whose prompt has more than --max-prompt-length tokens are left out. All
rows are divided by what they ask.

1. SFT: one judge for both tasks, on the models' judgements of training rows, in the prompts of the two folders.
2. GRPO, one run for each judge: training rows, the labels.

Each run is that of a user, with run_sft.sh, run_pairwise.sh and run_pointwise.sh. Only the numbers in SFT and GRPO
below are others, for a model, rows and a machine as small as these. The model as it came is asked the first --untrained
rows of test, the other judges all of them; answers are greedy. The table is of evaluate's figures, and of Cohen's kappa
with the labels over answers that hold a verdict (scores: quadratic weights). A run that is there is not made again.
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

from real_pairs import REPO, start, stop

PAIRWISE, POINTWISE = "generative_pairwise", "generative_pointwise"
JUDGEMENTS = 2  # of one response, or pair, at most
SHARES = {"train": 0.65, "val": 0.15, "test": 0.2}
SFT = {
    "data.train_batch_size": 16,
    "data.max_tokens_per_gpu": 4096,
    "optim.lr": 2e-4,
    "optim.lr_warmup_steps_ratio": 0.1,
    "trainer.total_epochs": 1,
    "engine.use_torch_compile": False,  # which would take longer than a run this short
    "model.enable_gradient_checkpointing": False,
}
GRPO = {
    "data.train_batch_size": 16,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 16,
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 8192,
    "actor_rollout_ref.actor.optim.lr": 2e-5,
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile": False,
    "actor_rollout_ref.model.enable_gradient_checkpointing": False,
    "trainer.test_freq": 1000,  # at the start and the end
    "trainer.save_freq": 0,
}
SHOWN = {
    PAIRWISE: ("parse_rate", "accuracy", "majority_accuracy", "both_right", "majority_both_right", "first_rate"),
    POINTWISE: ("parse_rate", "accuracy", "majority_accuracy", "within_one", "constant_within_one", "mae", "mean_mae"),
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
    parser.add_argument("--untrained", type=int, default=40, help="rows of test for the model as it came")
    parser.add_argument("--set", nargs="+", default=[], help="key=value for the GRPO runs")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    sys.path.insert(0, str(REPO))
    output = options.output = options.output.absolute()
    options.model = options.model.absolute()
    if not (output / "data" / "transcripts.parquet").exists():
        write_data(options)
    run_once(
        output / "sft",
        "sft/run_sft.sh",
        {"MODEL_PATH": options.model, "TRAIN_FILES": output / "data" / "transcripts.parquet"},
        SFT,
    )
    for judge in options.judges:
        files = {name: output / "data" / judge / f"{name}.parquet" for name in (*SHARES, "untrained")}
        given = {f"{name.upper()}_FILES": files[name] for name in SHARES}
        given |= {"MODEL_PATH": output / "sft" / "checkpoint", "ROLLOUT": "hf"}
        settings = GRPO | {"trainer.total_training_steps": options.steps}
        settings |= {f"data.{name}": getattr(options, name) for name in ("max_prompt_length", "max_response_length")}
        settings |= dict(setting.split("=", 1) for setting in options.set)
        script = f"{judge}/run_{judge.removeprefix('generative_')}.sh"
        run_once(output / judge, script, given, settings)
        untrained = output / f"{judge}_untrained"
        if not (untrained / "evaluation_untrained.json").exists():
            asked = ["--model", options.model, "--data", files["untrained"], "--output", untrained]
            asked += ["--settings", output / judge / "settings.yaml"]
            start([sys.executable, "-m", f"{judge}.evaluate", *map(str, asked)], untrained, {}, 1)
        print(f"\n{table(judge, output)}", flush=True)


def run_once(output: Path, script: str, given: dict[str, object], settings: dict[str, object]) -> None:
    """Make a run, unless its checkpoint is there already."""
    if (output / "checkpoint").exists():
        return
    print(f"{script}, log in {output}.log", flush=True)
    environment = {name: str(value) for name, value in given.items()} | {"OUTPUT": str(output)}
    start(
        ["bash", str(REPO / script), *(f"{name}={value}" for name, value in settings.items())], output, environment, 1
    )


# ---- the data


def write_data(options: argparse.Namespace) -> None:
    """Write what people labelled, divided, and the models' judgements of its training part as conversations."""
    import pyarrow.parquet as pq
    from tqdm import tqdm
    from transformers import AutoTokenizer

    from common.conversation import BadRow
    from common.parquet import split_by_prompt, write_rows

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    judgements = read_judgements(options.data / "sft_judge_train.parquet")
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
        for row in splits["train"]:
            for verdict, reasoning in judgements[judged_texts(row)][:JUDGEMENTS]:
                labelled = row | verdict | {"reasoning": reasoning}
                conversations += [{"messages": messages} for messages in prompt.transcripts(prompt.read_row(labelled))]
        splits["untrained"] = splits["test"][: options.untrained]
        for name, rows in splits.items():
            write_rows(options.output / "data" / judge / f"{name}.parquet", rows)
        print(f"{judge}: {', '.join(f'{name} {len(rows)}' for name, rows in splits.items())}")
        print(f"  {len(conversations)} conversations up to here")
    write_rows(options.output / "data" / "transcripts.parquet", conversations)


def judged_texts(row: dict) -> tuple[str, ...]:
    """Return the text or texts that were judged, and for two also the query, without blanks around them."""
    answers = [answer["answer"]["content"].strip() for answer in row["output"]]
    return (row["input"][-1]["content"].strip(), *answers) if len(answers) == 2 else tuple(answers)


def read_judgements(file: Path) -> dict[tuple[str, ...], list[tuple[dict, str]]]:
    """Return the models' verdicts and reasons, by what they judged; they are read from prompts of two known forms."""
    import pyarrow.parquet as pq

    found = defaultdict(list)
    for row in pq.read_table(file).to_pylist():
        asked, answered = (message["content"] for message in row["messages"])
        if row["source"] == "pandalm_gpt35":
            texts = re.search(
                r"# Query\n(.*)\n# Response A\n(.*)\n# Response B\n(.*)\n# Output Requirement", asked, re.S
            )
            reasoning, preferred = re.fullmatch(
                r"<think>(.*)</think>\s*<preference>(.*)</preference>", answered, re.S
            ).groups()
            reasoning = re.sub(r"Response ([12])", lambda named: f"Response {' AB'[int(named[1])]}", reasoning)
            verdict = {"metadata": {"preferred": preferred}}
        else:
            texts = re.search(r"###Response to evaluate:(.*)###Reference Answer \(Score 5\):", asked, re.S)
            reasoning, score = re.fullmatch(r"Feedback: (.*) \[RESULT\] ([1-5])", answered, re.S).groups()
            verdict = {"label": int(score) - 1}
        found[tuple(text.strip() for text in texts.groups())].append((verdict, reasoning))
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
    places = {
        "as it came": output / f"{judge}_untrained" / "evaluation_untrained",
        "after SFT": output / judge / "before" / "evaluation_test",
        f"after {len(rewards)} steps of GRPO": output / judge / "evaluation_test",
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
    return "\n".join([judge, *text, f"reward of each step: {curve}; {seconds:.0f} s a step"])


if __name__ == "__main__":
    main()
