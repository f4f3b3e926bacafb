"""What does a judge that compares reach on the benchmarks that every reward model is asked for?

    python -m generative_pairwise.benchmark --model outputs/checkpoint --on rewardbench2 rm_bench judgebench
    python -m generative_pairwise.benchmark --endpoint http://host:8000/v1 --model name --on rewardbench2

Each right answer is compared with each wrong one, in both orders, by this folder's prompt and parser, and the verdicts
count by the benchmark's rule (`common/benchmarks/`). Where that differs from the official scripts: the prompt is ours.
RewardBench 2 shows a judge four answers at once; this one knows A, B and tie, so every two answers are compared, and
their win rates stand for scores. Judgements are kept as they come: a killed command asks for none of them twice. One
without a verdict is counted, and its question (in RM-Bench its pair) earns nothing; "official" says what the
benchmark's own code would give for it, where that has a rule.
"""

import logging
import math
from collections import Counter
from fractions import Fraction
from itertools import permutations, product

from common.benchmarks import BENCHMARKS
from common.benchmarks.benchmark import Benchmark
from common.benchmarks.choosing import add_choice, load_choice
from common.benchmarks.questions import Question
from common.benchmarks.results import Answered, answer_by_ratings, answer_by_votes, report
from common.conversation import DataError
from common.grading.endpoint import EndpointError
from common.judging.asking import Judgements, ask_and_keep, make_parser, read_options
from common.judging.rubric import read_stored_rubric

from .evaluate import decide
from .prompt import FRAME, RUBRIC, SWAPPED, Preference, ask, parse
from .win_rates import POINTS

VOTES = {"A": 1, "B": -1, "tie": 0, None: None}  # for the answer that is shown first


def comparisons(benchmark: Benchmark, question: Question) -> list[tuple[int, int]]:
    """Return which answers are compared, first and second, each two in both orders.

    They are each right answer with each wrong one; or every two, if answers are ranked by their win rates.
    """
    places = range(len(question.answers))
    if benchmark.vote_credits is None:
        return list(permutations(places, 2))
    pairs = product(places[: question.right], places[question.right :])
    return [order for right, wrong in pairs for order in ((right, wrong), (wrong, right))]


def write_prompts(benchmark: Benchmark, questions: list[Question], rubric: str = RUBRIC) -> list[dict]:
    """Return the rows that ask for the better one of two answers of each question, in both orders."""
    rows = []
    for question in questions:
        for first, second in comparisons(benchmark, question):
            prompt = ask(question.prompt, question.answers[first], question.answers[second], rubric)
            rows.append({"prompt": prompt, "label": None, "source": question.id, "place": (first, second)})
    return rows


def count_verdicts(benchmark: Benchmark, questions: list[Question], judged: Judgements) -> Answered:
    """Return what the verdicts are worth by the benchmark's rule; a row that was not asked has none."""
    given: dict[str, dict] = {question.id: {} for question in questions}
    for row, verdict in zip(judged.rows, judged.verdicts):
        given[row["source"]][row["place"]] = verdict
    if benchmark.vote_credits is None:
        ratings = [rates_of(question, given[question.id]) for question in questions]
        answered = answer_by_ratings(benchmark, questions, ratings)
    else:
        votes = [votes_of(question, given[question.id]) for question in questions]
        answered = answer_by_votes(benchmark, questions, votes)
    answered.said |= {"answers": len(judged.rows), "without a verdict": judged.verdicts.count(None)}
    answered.said |= {f"not asked, {kind}": count for kind, count in judged.left_out.items()}
    answered.said |= both_orders(list(given.values()))
    return answered


def rates_of(question: Question, verdicts: dict[tuple[int, int], Preference | None]) -> list[Fraction | float]:
    """Return each answer's win rate, 0 to 1, over both orders; NaN if one of its comparisons lacks a verdict.

    `win_rates` leaves out what is missing; here that could make an answer the best that lost where nobody looked. The
    rates are Fractions, because floats make 12/12 - 10/12 and 10/12 - 8/12 two numbers, and Ties asks which is larger.
    """
    rates: list[Fraction | float] = []
    for answer in range(len(question.answers)):
        others = [other for other in range(len(question.answers)) if other != answer]
        said = [verdicts.get((answer, other)) for other in others]
        said += [SWAPPED.get(verdicts.get((other, answer))) for other in others]
        rates.append(math.nan if None in said else Fraction(sum(POINTS[verdict] for verdict in said)) / len(said))
    return rates


def votes_of(question: Question, verdicts: dict[tuple[int, int], Preference | None]) -> dict:
    """Return what each order says for the right answer: +1, -1, 0 for a tie, None without a verdict."""
    pairs = product(range(question.right), range(question.right, len(question.answers)))
    return {
        (right, wrong): (VOTES[verdicts.get((right, wrong))], VOTES[SWAPPED.get(verdicts.get((wrong, right)))])
        for right, wrong in pairs
    }


def both_orders(given: list[dict[tuple[int, int], Preference | None]]) -> dict[str, float]:
    """Return how often both orders prefer the same answer, or none; and how often the first one is preferred.

    consistency: over all pairs that were asked about, a missing verdict being inconsistent. first_rate: over the
    answers that prefer one; 0.5 is no bias. A figure over nothing is absent.
    """
    pairs = [
        (verdict, verdicts[second, first])
        for verdicts in given
        for (first, second), verdict in verdicts.items()
        if first < second
    ]
    same = [one is not None and one == SWAPPED.get(other) for one, other in pairs]
    said = Counter(verdict for pair in pairs for verdict in pair)
    preferring = said["A"] + said["B"]
    consistency = {"consistency of both orders": sum(same) / len(same)} if same else {}
    return consistency | ({"first_rate": said["A"] / preferring} if preferring else {})


def main() -> None:
    parser = make_parser("A judge's figures on public benchmarks, by the answers it prefers.", None)
    add_choice(parser)
    options = read_options(parser)
    rubric = read_stored_rubric(options.tokenizer or options.model) or RUBRIC  # the one that the judge was trained by
    chosen, sets = load_choice(options), {}
    for name, questions in chosen.items():
        sets[options.output / name] = write_prompts(BENCHMARKS[name], questions, rubric)
    for folder, judged in ask_and_keep(options, sets, parse, decide, FRAME).items():
        benchmark, questions = BENCHMARKS[folder.name], chosen[folder.name]
        report(count_verdicts(benchmark, questions, judged), options.output, options.model, options.card)


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except (DataError, EndpointError) as error:
        raise SystemExit(f"benchmark.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("\nbenchmark.py: stopped; the same command asks for what is left") from None
