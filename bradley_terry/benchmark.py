"""What does a reward model reach on the benchmarks that every reward model is asked for?

    python -m bradley_terry.benchmark --model outputs/checkpoint --on rewardbench2 rm_bench judgebench

Each benchmark is scored by `score.py`, so a killed command goes on where it was, and by its authors' rule
(`common/benchmarks/`). Where it differs from the official scripts: texts are not cut at 2,048 tokens, and the model
computes in fp32; `--max-length` and `--dtype` change that. An answer that is too long, or cannot be scored for another
reason, is listed, and its question counts as wrong.
"""

import argparse
import logging
import os
from pathlib import Path

import pyarrow.parquet as pq

from common.benchmarks import BENCHMARKS
from common.benchmarks.choosing import add_choice, load_choice
from common.benchmarks.questions import Question
from common.benchmarks.results import answer_by_scores, report
from common.checkpoint import CheckpointError
from common.cluster import ClusterError
from common.conversation import DataError
from common.parquet import write_rows

from .score import add_scoring, check_scoring, score_all


def score_questions(questions: list[Question], folder: Path, options: argparse.Namespace) -> list[list[float]]:
    """Return the rewards of each question's answers, NaN where the model gives none; go on with what is in the folder.

    Raises:
        See `score_all`.
    """
    rows = [
        {
            "input": question.prompt,
            "output": [{"answer": {"role": "assistant", "content": answer}} for answer in question.answers],
        }
        for question in questions
    ]
    file = write_rows(folder / "questions.parquet", rows)
    score_all(argparse.Namespace(**vars(options) | {"input": str(file), "output": folder / "scored"}))
    parts = [pq.read_table(part, columns=["rewards"]) for part in sorted((folder / "scored").glob("part-*.parquet"))]
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
    for name, questions in load_choice(options).items():
        scores = score_questions(questions, options.output / name, options)
        report(answer_by_scores(BENCHMARKS[name], questions, scores), options.output, options.model, options.card)


if __name__ == "__main__":
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except (DataError, ClusterError, CheckpointError) as error:
        raise SystemExit(f"benchmark.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("\nbenchmark.py: stopped; the same command scores what is left") from None
