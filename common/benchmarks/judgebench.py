"""JudgeBench (Tan et al., arXiv:2410.12784): pairs of answers by one strong model, one right and one wrong.

A judge sees each pair in both orders. An order counts +1 if it prefers the right answer, -1 if it prefers the wrong
one, else 0; the pair is right if the sum is above 0. A reward model scores each answer once, so both orders say the
same, and of two equal scores the official code names the second in each order: such a pair is wrong.

The published figure is over the 350 pairs of GPT-4o, by the four groups of sources and over all pairs. The 270 pairs of
Claude 3.5 Sonnet are reported beside it. The rule is `compute_final_metrics` in utils/metrics.py of
ScalerLab/JudgeBench, at e2c52c284e. Data: https://huggingface.co/datasets/ScalerLab/JudgeBench, whose card states the
licence mit; or the folder data/ on GitHub, where none is stated.
"""

from collections.abc import Sequence
from pathlib import Path

from common.benchmarks.benchmark import Benchmark, Credits, Votes, beats, won
from common.benchmarks.questions import (
    Question,
    cell,
    check_questions,
    hub_rows,
    id_of,
    numbered,
    read_files,
    text_of,
    user_turn,
)
from common.conversation import BadRow, read_response

HOME = "ScalerLab/JudgeBench"
GROUPS = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")  # a source's name starts with one
RESPONSE_MODELS = {"gpt-4o-2024-05-13": "gpt", "claude-3-5-sonnet-20240620": "claude"}  # as the hub names the splits


def read(path: str | Path | None = None) -> list[Question]:
    """Return the questions of a file or folder, or by default of the hub. See `check_questions` for what is raised.

    Files of judges' answers, which the authors keep beside the pairs (judge_name=…), are not read.
    """
    if path is None:
        rows = [row for split in RESPONSE_MODELS.values() for row in hub_rows(HOME, split)]
    else:
        files = read_files(path, lambda file: "judge_name=" not in file.name)
        rows = [row for file, rows in files for row in numbered(file.name, rows)]
    return check_questions(rows, to_question)


def to_question(row: dict) -> Question:
    label, source, model = text_of(row, "label"), text_of(row, "source"), text_of(row, "response_model")
    if label not in ("A>B", "B>A"):
        raise BadRow("label", "expected A>B or B>A", label)
    if model not in RESPONSE_MODELS:
        raise BadRow("response_model", f"expected one of {', '.join(RESPONSE_MODELS)}", model)
    group = next((group for group in GROUPS if source.startswith(group)), None)
    if group is None:
        raise BadRow("source", f"expected a name that starts with one of {', '.join(GROUPS)}", source)
    answers = [read_response(cell(row, f"response_{letter}"), f"response_{letter}") for letter in label.split(">")]
    subset = f"{RESPONSE_MODELS[model]}/{group}"
    return Question(f"{subset}/{id_of(row, 'pair_id')}", subset, user_turn(text_of(row, "question")), answers)


def credits(
    questions: Sequence[Question],
    scores: Sequence[Sequence[float]],
    share_ties: bool = False,
) -> list[Credits]:
    """Return what each question earns; see `Benchmark`. The official code knows no answer without a score."""
    return [{"right": beats(*given, tie=0.5 if share_ties else 0.0)} for given in scores]


def vote_credits(
    questions: Sequence[Question], votes: Sequence[Votes], official_missing: bool = False
) -> list[Credits]:
    """Return the same for a judge that was shown each pair in both orders; officially no verdict counts as a tie."""
    return [{"right": won(given[0, 1], official_missing)} for given in votes]


BENCHMARK = Benchmark(
    name="judgebench",
    title="JudgeBench",
    read=read,
    credits=credits,
    vote_credits=vote_credits,
    subsets=tuple(f"{model}/{group}" for model in RESPONSE_MODELS.values() for group in GROUPS),
    section_of=lambda subset: subset.partition("/")[0],
    official=("gpt",),
    official_missing=("votes",),
    sizes={"gpt/mmlu-pro": 154, "gpt/livebench-reasoning": 98, "gpt/livebench-math": 56, "gpt/livecodebench": 42},
    notes="The official code scores whole texts, in the precision that a model's authors advise (fp16 or bf16).",
)
