"""A tiny judge distilled from a teacher that errs on a fifth of the demo's rows: is it better than its teacher?

    python tests/benchmarks/distillation.py --output /tmp/distilled                      # rows with labels
    python tests/benchmarks/distillation.py --output /tmp/voted --unlabelled --votes 5   # the teacher's majority alone
    python tests/benchmarks/distillation.py --output /tmp/pairs --method generative_pairwise --rows 4000

The teacher is a server in this process (tests/teachers.py). The commands are those of the README: `distil`,
`run_sft.sh`, `evaluate` of the teacher and, compared to it, of the student. Both see the same held-out rows. About four
minutes on two free cores.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from runs import SFT_SCRIPT, run
from teachers import noisy_comparer, noisy_scorer
from test_endpoint import completion, serve

from common.demo.world import PREFERENCE_RUBRIC, SCORE_RUBRIC, pairwise_rows, pointwise_rows
from common.parquet import write_rows

METHODS = {
    "generative_pointwise": (pointwise_rows, noisy_scorer, SCORE_RUBRIC),
    "generative_pairwise": (pairwise_rows, noisy_comparer, PREFERENCE_RUBRIC),
}
SHOWN = ("parse_rate", "accuracy", "both_right", "kappa", "consistency")


def teach(answers: list[dict[str, str]]):
    """Serve the answers to each prompt; each vote asks with a seed of its own. Tokens are counted as words."""

    def reply(request, _):
        prompt = request["messages"][-1]["content"]
        answer = answers[request.get("seed", 0) % len(answers)][prompt]
        counts = len(prompt.split()), len(answer.split())
        return 200, completion(answer) | {
            "usage": dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), (*counts, sum(counts))))
        }

    return serve(reply)


def call(*command: object, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, cwd=cwd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--method", choices=METHODS, default="generative_pointwise")
    parser.add_argument("--rows", type=int, default=3000, help="that the teacher is asked about")
    parser.add_argument("--unlabelled", action="store_true", help="without labels: the majority of --votes")
    parser.add_argument("--votes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the rows, the teacher and the student")
    options = parser.parse_args()
    method, output, started = options.method, options.output.absolute(), time.monotonic()
    rows_of, noisy, rubric = METHODS[method]
    module = importlib.import_module(f"{method}.prepare_data")
    train, held_out = rows_of("train", options.rows, options.seed + 1), rows_of("test", 400, options.seed)
    convert = module.convert_scores if method == "generative_pointwise" else module.convert_comparisons
    arguments = ("demo", None) if method == "generative_pointwise" else ("demo",)
    converted, _ = convert(held_out, *arguments, None, "error")
    written = [{name: row[name] for name in module.WRITTEN if name in row} for row in converted]
    test = write_rows(output / "data" / "test.parquet", written)
    labels = () if options.unlabelled else ("label", "metadata")
    columns = [name for name in ("input", "output", *labels) if name in train[0]]
    data = write_rows(output / "data" / "train.parquet", [{name: row[name] for name in columns} for row in train])
    (output / "rubric.txt").write_text(rubric)

    answers = [noisy([*train, *held_out], seed=options.seed * options.votes + vote) for vote in range(options.votes)]
    with teach(answers) as (url, requests):
        asked = ("--teacher", url, "--teacher-model", "noisy", "--rubric", output / "rubric.txt")
        asked += ("--votes", options.votes, "--seed", options.seed)
        call(f"{method}.distil", *asked, "--data", data, "--output", output / "distilled", cwd=output)
        judged = ("--data", test, "--endpoint", url, "--model", "noisy", "--output", output / "teacher")
        call(f"{method}.evaluate", *judged, cwd=output)
    transcripts = output / "distilled" / "transcripts" / "train.parquet"
    run(output / "sft", script=SFT_SCRIPT, timeout=3600, TRAIN_FILES=str(transcripts), SEED=str(options.seed))
    before = output / "teacher" / "evaluation_test.json"
    judged = ("--model", output / "sft" / "checkpoint", "--data", test, "--output", output / "student")
    call(f"{method}.evaluate", *judged, "--compare-to", before, cwd=output)

    teacher, student = (
        json.loads((output / who / "evaluation_test.json").read_text()) for who in ("teacher", "student")
    )
    lessons = json.loads((output / "distilled" / "teacher_train.json").read_text())
    print("\n| held-out rows | teacher | student |\n|---|---|---|")
    for name in SHOWN:
        if name in teacher:
            print(f"| {name} | {teacher[name]:.3f} | {student[name]:.3f} |")
    for name, (value, low, high) in student["compared"].items():
        print(f"| {name} | {value:.3f} ({low:.3f} to {high:.3f}) | |")
    kept = f"{lessons['kept']:.3f} of {lessons['prompts']} prompts kept, {lessons['answers']} answers asked for"
    print(f"\n{kept}; {len(requests)} requests; {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
