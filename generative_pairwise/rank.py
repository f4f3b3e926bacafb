"""Rank n responses to a dialogue by a pairwise judge: every two of them compared, in both orders.

    python -m generative_pairwise.rank --model outputs/checkpoint --data candidates.parquet

The file holds `input` and `output` with two responses or more. For best-of-n sampling, and wherever an order of several
answers is wanted. A response's figure is its win rate: the share of its comparisons that it wins; a tie is half a win.
If all were compared equally often, Bradley-Terry strengths would order them in the same way (Zermelo 1929).
n responses are n·(n-1) questions.
"""

import logging
from itertools import permutations
from pathlib import Path

from common.conversation import Conversation, DataError, read_dialogue, read_responses
from common.grading.endpoint import EndpointError
from common.judging.asking import ask_judge, make_parser, place_of, read_options
from common.judging.rubric import read_rubric, read_stored_rubric
from common.parquet import read_rows, write_rows

from .evaluate import decide
from .prompt import FRAME, RUBRIC, ask, parse
from .win_rates import ranks, win_rates


def round_robin(dialogue: Conversation, responses: list[str], rubric: str = RUBRIC) -> list[Conversation]:
    """Return the prompts that compare every response with every other, each in both places.

    They are in the order of `itertools.permutations(range(len(responses)), 2)`: (0, 1), (0, 2), …, (1, 0), …
    """
    return [ask(dialogue, first, second, rubric) for first, second in permutations(responses, 2)]


def read_candidates(row: dict) -> dict:
    """Return a row with what it holds, "dialogue" and "responses"; raise `BadRow` if it is not such a row."""
    return {**row, "dialogue": read_dialogue(row["input"]), "responses": read_responses(row["output"], 2)}


def main() -> None:
    parser = make_parser("Win rates and ranks of several responses.", "input and output: two responses or more")
    rubric_help = "text file: what to judge by; default: the checkpoint's, else prompt.py's"
    parser.add_argument("--rubric", type=Path, help=rubric_help)
    options = read_options(parser)
    rubric = read_rubric(options.rubric) or read_stored_rubric(options.tokenizer or options.model) or RUBRIC
    candidates, bad = read_rows(options.data, ("input", "output"), (), read_candidates, options.on_bad_row)

    questions = [
        {"prompt": prompt, "label": None, "source": row["source"]}
        for row in candidates
        for prompt in round_robin(row["dialogue"], row["responses"], rubric)
    ]
    judged = ask_judge(options, questions, parse, decide, FRAME)
    verdicts_of: dict[str, list] = {}
    answers_of: dict[str, list] = {}
    for question, verdict, answers in zip(judged.rows, judged.verdicts, judged.answers):
        verdicts_of.setdefault(question["source"], []).append(verdict)
        answers_of.setdefault(question["source"], []).append(answers)

    ranked = []
    for row in candidates:
        if (source := row["source"]) in verdicts_of:
            rates = win_rates(len(row["responses"]), verdicts_of[source])
            found = {"win_rate": rates, "rank": ranks(rates)}
            said = {"verdicts": verdicts_of[source], "answers": answers_of[source]}
            ranked.append({name: row[name] for name in ("source", "input", "output")} | found | said)
    path = write_rows(f"{place_of(options, 'ranked')}.parquet", ranked)
    silent = judged.verdicts.count(None)
    print(f"{path}: {len(ranked)} rows ranked; {silent} of {len(judged.rows)} comparisons had no verdict")
    for kind, count in (bad + judged.left_out).items():
        print(f"set aside: {count} x {kind}")


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except (DataError, EndpointError) as error:
        raise SystemExit(f"rank.py: {error}") from None
