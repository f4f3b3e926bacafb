"""Rank n responses to a dialogue by a pairwise judge: every two of them compared, in both orders.

    python rank.py --model outputs/checkpoint --data candidates.parquet    # input, output: two responses or more

For best-of-n sampling, and wherever an order of several answers is wanted. A response's figure is its win rate: the
share of its comparisons that it wins, a tie being half a win. Where all were compared equally often, Bradley-Terry
strengths would order them in the same way (Zermelo 1929).
n responses are n·(n-1) questions.
"""

import logging
from itertools import permutations

from common.asking import judge, place_of, read_options
from common.conversation import Conversation
from common.endpoint import EndpointError
from common.judge import pairwise_prompt
from common.labelled import read_candidates, read_rubric
from common.parquet import DataError, read_rows, write_rows
from common.prompts import read_stored_rubric
from common.verdicts import win_rates

from evaluate import decide
from prompt import RUBRIC, parse


def round_robin(dialogue: Conversation, responses: list[str], rubric: str = RUBRIC) -> list[Conversation]:
    """Return the prompts that compare every response with every other, each in both places.

    They are in the order of `itertools.permutations(range(len(responses)), 2)`: (0, 1), (0, 2), …, (1, 0), …
    """
    return [
        [{"role": "user", "content": pairwise_prompt(dialogue, first, second, rubric)}]
        for first, second in permutations(responses, 2)
    ]


def ranks(rates: list[float | None]) -> list[int | None]:
    """Return each response's place, 1 the best; equal rates share the better place, None has none."""
    return [None if rate is None else 1 + sum(other > rate for other in rates if other is not None) for rate in rates]


def check_candidates(row: dict) -> dict:
    dialogue, responses = read_candidates(row)
    return {**row, "dialogue": dialogue, "responses": responses}


def main() -> None:
    options = read_options(
        "Win rates and ranks of several responses.", "input and output: two responses or more", ranks=True
    )
    rubric = read_rubric(options.rubric) or read_stored_rubric(options.tokenizer or options.model) or RUBRIC
    candidates, bad = read_rows(options.data, ("input", "output"), (), check_candidates, options.on_bad_row)
    asked = [
        {"prompt": prompt, "label": None, "source": row["source"]}
        for row in candidates
        for prompt in round_robin(row["dialogue"], row["responses"], rubric)
    ]
    asked, left_out, answers = judge(options, asked)
    given: dict[str, list[list[str]]] = {}
    for row, texts in zip(asked, answers):
        given.setdefault(row["source"], []).append(texts)
    ranked = []
    for row in candidates:
        if row["source"] in given:
            verdicts = [decide([parse(text) for text in texts]) for texts in given[row["source"]]]
            rates = win_rates(len(row["responses"]), verdicts)
            found = {"win_rate": rates, "rank": ranks(rates), "verdicts": verdicts, "answers": given[row["source"]]}
            ranked.append({name: row[name] for name in ("source", "input", "output")} | found)
    path = write_rows(f"{place_of(options, 'ranked')}.parquet", ranked)
    silent = sum(row["verdicts"].count(None) for row in ranked)
    print(f"{path}: {len(ranked)} rows ranked; {silent} of {len(asked)} comparisons had no verdict")
    for kind, count in (bad + left_out).items():
        print(f"set aside: {count} x {kind}")


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except (DataError, EndpointError) as error:
        raise SystemExit(f"rank.py: {error}") from None
