"""What does a reward model reach on the benchmarks that every reward model is asked for?

    python -m bradley_terry.benchmark --model outputs/checkpoint --on rewardbench2 rm_bench judgebench

Each benchmark is scored by `score.py`, so a killed command goes on where it was, and by its authors' rule
(`common/benchmarks/`). All that can be checked of all benchmarks is, before the first one is scored.

Where it differs from the official scripts: those of RewardBench 2, RM-Bench and RMB cut texts at 2,048 tokens and
compute in fp16. Here nothing is cut, and the model computes in fp32 (`--dtype bfloat16` rounds). An answer that is
longer than the model reads, or than `--max-length`, or cannot be scored for another reason, is listed, and its question
counts as wrong.
"""

import argparse
import logging
import os
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq

from common.benchmarks import BENCHMARKS
from common.benchmarks.choosing import add_choice, load_choice
from common.benchmarks.questions import Question
from common.benchmarks.results import answer_by_scores, digest, report
from common.checkpoint import CheckpointError, claim_folder
from common.cluster import ClusterError
from common.conversation import DataError
from common.parquet import Faults, write_rows

from .parts import check_same_run
from .score import add_scoring, check_input, check_scoring, identity, score_files


def write_questions(questions: list[Question], folder: Path) -> Path:
    """Write the rows that `score.py` reads, and return the file. Its name tells other questions apart.

    So a command with other files of a benchmark does not replace what the folder's scores belong to.
    """
    rows = [
        {
            "input": question.prompt,
            "output": [{"answer": {"role": "assistant", "content": answer}} for answer in question.answers],
        }
        for question in questions
    ]
    name = sha256("".join(map(digest, questions)).encode()).hexdigest()[:12]
    return write_rows(folder / f"questions-{name}.parquet", rows)


def read_scores(questions: list[Question], folder: Path) -> list[list[float]]:
    """Return the rewards of each question's answers, NaN where the model gives none."""
    parts = [pq.read_table(part, columns=["rewards"]) for part in sorted(folder.glob("part-*.parquet"))]
    scored = [rewards for part in parts for rewards in part["rewards"].to_pylist()]
    lost = float("nan")
    return [rewards or [lost] * len(question.answers) for question, rewards in zip(questions, scored, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description="A reward model's figures on public benchmarks, beside baselines.")
    add_choice(parser)
    add_scoring(parser)
    parser.add_argument("--output", help="folder for what is written; default: benchmarks, beside the checkpoint")
    options = parser.parse_args()
    check_scoring(options)
    chosen, faults, checked = load_choice(options), Faults(), {}
    with ExitStack() as claims:
        for name, questions in chosen.items():
            try:
                scoring = argparse.Namespace(**vars(options) | {"output": options.output / name / "scored"})
                claims.enter_context(claim_folder(scoring.output))
                scoring.input = str(write_questions(questions, options.output / name))
                files, shape = check_input(scoring)
                check_same_run(scoring.output, identity(scoring, files))
                checked[name] = files, shape, scoring
            except (DataError, CheckpointError) as error:
                faults.append(f"{name}: {error}")
        faults.raise_all()
        for name, questions in chosen.items():
            score_files(*checked[name])
            scores = read_scores(questions, options.output / name / "scored")
            answered = answer_by_scores(BENCHMARKS[name], questions, scores)
            answered.said["computed in"] = options.dtype
            report(answered, options.output, options.model, options.card)


if __name__ == "__main__":
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except (DataError, ClusterError, CheckpointError) as error:
        raise SystemExit(f"benchmark.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("\nbenchmark.py: stopped; the same command scores what is left") from None
