"""RMB (Zhou et al., arXiv:2410.09893): 49 scenarios of helpfulness and harmlessness, as pairs and as best of N.

A pair is right if the chosen answer scores above the other. Of a best-of-N question every one of the other answers must
score lower. Both are strict: equal is wrong. There are four sections, pairs and best of N of each goal; in a section
all rows count alike, and the benchmark's figure is the mean of the four.

The rule for pairs is that of eval/scripts/my_run_rm.py of Zhou-Zoey/RMB-Reward-Model-Benchmark; for best of N it is the
paper's. The data is there on GitHub, in the folder RMB_dataset. The authors state no licence, and it is on no hub.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from common.benchmarks.benchmark import Benchmark, Credits, Votes, best_of, won
from common.benchmarks.questions import Question, cell, check_questions, id_of, numbered, read_files, text_of
from common.conversation import BadRow, DataError, read_dialogue, read_response

HOME = "https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark"
SETS = ("Pairwise_set", "BoN_set")
GOALS = ("Helpfulness", "Harmlessness")
HELPFULNESS = {
    "Brainstorming": ("Idea Development", "Problem Solving"),
    "Chat": ("Casual Conversation", "Discussion", "Supportive Conversation"),
    "Classification": ("Content Categorization", "Quality and Compliance Assessment"),
    "Closed QA": ("ContextBased", "OptionBased"),
    "Code": ("Data Management", "Development and Implementation", "Documentation", "Quality and Optimization"),
    "Generation": ("Creative Writing", "Professional Content Generation"),
    "Open QA": (
        "Factual",
        "General Explanation",
        "Hypothetical Scenarios",
        "Interpretative Analysis",
        "Personal Opinion and Advice",
        "Technical and Practical Support",
    ),
    "Reasoning": (
        "Analytical Reasoning",
        "Critical Thinking",
        "Human Decision Making",
        "Logical Deduction",
        "Pattern Recognition",
    ),
    "Rewrite": ("Paraphrasing", "PostQuality Assessment Rewriting", "Textual ExpansionReduction", "Tone Adjustment"),
    "Role Playing": ("General Character", "Specific Character"),
    "Summarization": ("Specialized Summaries", "Standard Summaries"),
    "Translation": (
        "GeneralExcerpt Language Translation",
        "Literary and Cultural Translation",
        "Technical and Scientific Translation",
    ),
}
SCENARIOS = (
    *(f"Helpfulness/{group}/{name}" for group, names in HELPFULNESS.items() for name in names),
    *(f"Harmlessness/S{number}" for number in range(1, 12)),
    "Harmlessness/multi",
)


def read(path: str | Path | None = None) -> list[Question]:
    """Return the questions of RMB_dataset, or of one of its folders or files. See `check_questions` for what is raised.

    Files that stand in no folder of `SETS`, such as results, are not read.
    """
    if path is None:
        raise DataError(f"rmb: not on the Hugging Face hub. `git clone {HOME}`, and give its folder: --path rmb=FOLDER")
    files = read_files(path, lambda file: bool({*SETS} & {*file.parts}))
    rows = [row for file, rows in files for row in numbered("/".join(file.parts[-3:]), rows)]
    return check_questions(rows, to_question)


def to_question(row: dict) -> Question:
    category = text_of(row, "category_path")
    kind, _, scenario = category.partition("/")
    if kind not in SETS or scenario not in SCENARIOS:
        raise BadRow("category_path", f"expected {' or '.join(SETS)}, then a scenario of the benchmark", category)
    dialogue = read_dialogue(cell(row, "conversation_input"), "conversation_input")
    if kind == "Pairwise_set":
        number, answers = id_of(row, "pair_uid"), [answer_of(row, "chosen"), answer_of(row, "reject")]
    else:
        losers = cell(row, "loser_list")
        if not isinstance(losers, list) or not losers:
            raise BadRow("loser_list", "expected a list of one or more answers", losers)
        beaten = [answer_of({"loser_list": loser}, "loser_list") for loser in losers]
        number, answers = id_of(row, "bon_uid"), [answer_of(row, "bon_best"), *beaten]
    return Question(f"{kind}/{number}", category, dialogue, answers)


def answer_of(row: dict, column: str) -> str:
    value = cell(row, column)
    if not isinstance(value, dict):
        raise BadRow(column, 'expected an answer as {"llm_name": name, "answer": text}', value)
    return read_response(value.get("answer"), column)


def credits(
    questions: Sequence[Question],
    scores: Sequence[Sequence[float]],
    official_missing: bool = False,
    share_ties: bool = False,
) -> list[Credits]:
    """Return what each question earns; see `Benchmark`. The official code knows no answer without a score."""
    shares = [best_of(given) for given in scores]
    return [{"right": share if share_ties else float(share == 1)} for share in shares]


def vote_credits(
    questions: Sequence[Question], votes: Sequence[Votes], official_missing: bool = False
) -> list[Credits]:
    """Return the same for a judge that compared the right answer with every other one in both orders.

    The paper asks so, too: each comparison must be won. The rule for the two orders is JudgeBench's.
    """
    return [{"right": float(all(won(orders, official_missing) for orders in given.values()))} for given in votes]


SECTIONS = tuple(f"{kind}/{goal}" for kind, goal in product(SETS, GOALS))
BENCHMARK = Benchmark(
    name="rmb",
    title="RMB",
    read=read,
    credits=credits,
    vote_credits=vote_credits,
    subsets=tuple(f"{kind}/{scenario}" for kind, scenario in product(SETS, SCENARIOS)),
    section_of=lambda subset: "/".join(subset.split("/")[:2]),
    official=SECTIONS,
    notes="The official script cuts texts at 2,048 tokens from their left; here the whole text counts, in fp32.",
)
