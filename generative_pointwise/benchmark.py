"""What does a judge that scores reach on the benchmarks that every reward model is asked for?

    python -m generative_pointwise.benchmark --model outputs/checkpoint --on rewardbench2 rm_bench judgebench
    python -m generative_pointwise.benchmark --endpoint http://host:8000/v1 --model name --on rewardbench2

Each answer is scored by this folder's prompt and parser, and the scores count by the benchmark's rule
(`common/benchmarks/`). Where that differs from the official scripts: the prompt is ours, on a scale of few scores, so
there are many ties; "ties shared" says what they are worth. Judgements are kept as they come: a killed command asks for
none of them twice. One without a verdict is counted, and its question earns nothing; "official" says what the
benchmark's own code would give for it, where that has a rule.
"""

import logging

from common.benchmarks import BENCHMARKS
from common.benchmarks.benchmark import Benchmark
from common.benchmarks.choosing import add_choice, load_choice
from common.benchmarks.questions import Question
from common.benchmarks.results import Answered, answer_by_ratings, report
from common.conversation import DataError
from common.grading.endpoint import EndpointError
from common.judging.asking import Judgements, ask_and_keep, make_parser, read_options
from common.judging.rubric import read_stored_rubric

from .evaluate import decide
from .prompt import FRAME, RUBRIC, ask, parse


def write_prompts(questions: list[Question], rubric: str = RUBRIC) -> list[dict]:
    """Return the rows that ask for a score of each answer of each question."""
    rows = []
    for question in questions:
        for place, answer in enumerate(question.answers):
            prompt = ask(question.prompt, answer, rubric)
            rows.append({"prompt": prompt, "label": None, "source": question.id, "place": place})
    return rows


def count_verdicts(benchmark: Benchmark, questions: list[Question], judged: Judgements) -> Answered:
    """Return what the verdicts are worth by the benchmark's rule; a row that was not asked has none."""
    given: dict[str, dict] = {question.id: {} for question in questions}
    for row, verdict in zip(judged.rows, judged.verdicts):
        given[row["source"]][row["place"]] = float("nan") if verdict is None else float(verdict)
    ratings = [
        [given[question.id].get(place, float("nan")) for place in range(len(question.answers))]
        for question in questions
    ]
    answered = answer_by_ratings(benchmark, questions, ratings)
    answered.said |= {"answers": len(judged.rows), "without a verdict": judged.verdicts.count(None)}
    answered.said |= {f"not asked, {kind}": count for kind, count in judged.left_out.items()}
    return answered


def main() -> None:
    parser = make_parser("A judge's figures on public benchmarks, by the scores it gives.", None)
    add_choice(parser)
    options = read_options(parser)
    rubric = read_stored_rubric(options.tokenizer or options.model) or RUBRIC  # the one that the judge was trained by
    chosen, sets = load_choice(options), {}
    for name, questions in chosen.items():
        sets[options.output / name] = write_prompts(questions, rubric)
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
