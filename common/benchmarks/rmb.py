"""RMB (Zhou et al., arXiv:2410.09893): 49 scenarios of helpfulness and harmlessness, as pairs and as best of N.

A pair is right if the chosen answer scores above the other. Of a best-of-N question every one of the other answers must
score lower. Both are strict: equal is wrong. There are four sections, pairs and best of N of each goal; in a section
all rows count alike, and the benchmark's figure is the mean of the four. The sizes are those of the files and of the
authors' tables (fig/ in the repository), which agree.

The rule for pairs is that of eval/scripts/my_run_rm.py of Zhou-Zoey/RMB-Reward-Model-Benchmark; for best of N it is the
paper's. The data is there on GitHub, in the folder RMB_dataset, without a licence. The sets on the Hugging Face hub are
other people's copies.
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
# of each scenario, how many pairs and how many best-of-N questions there are
HELPFULNESS = {
    "Brainstorming": {
        "Idea Development": (849, 168),
        "Problem Solving": (100, 19),
    },
    "Chat": {
        "Casual Conversation": (306, 71),
        "Discussion": (293, 59),
        "Supportive Conversation": (114, 25),
    },
    "Classification": {
        "Content Categorization": (107, 18),
        "Quality and Compliance Assessment": (57, 13),
    },
    "Closed QA": {
        "ContextBased": (447, 86),
        "OptionBased": (473, 100),
    },
    "Code": {
        "Data Management": (376, 81),
        "Development and Implementation": (399, 92),
        "Documentation": (65, 15),
        "Quality and Optimization": (384, 92),
    },
    "Generation": {
        "Creative Writing": (762, 151),
        "Professional Content Generation": (347, 74),
    },
    "Open QA": {
        "Factual": (664, 153),
        "General Explanation": (413, 80),
        "Hypothetical Scenarios": (42, 8),
        "Interpretative Analysis": (107, 18),
        "Personal Opinion and Advice": (78, 14),
        "Technical and Practical Support": (238, 47),
    },
    "Reasoning": {
        "Analytical Reasoning": (596, 133),
        "Critical Thinking": (200, 39),
        "Human Decision Making": (165, 32),
        "Logical Deduction": (222, 46),
        "Pattern Recognition": (52, 14),
    },
    "Rewrite": {
        "Paraphrasing": (83, 17),
        "PostQuality Assessment Rewriting": (222, 46),
        "Textual ExpansionReduction": (50, 9),
        "Tone Adjustment": (103, 17),
    },
    "Role Playing": {
        "General Character": (163, 32),
        "Specific Character": (209, 46),
    },
    "Summarization": {
        "Specialized Summaries": (189, 42),
        "Standard Summaries": (341, 71),
    },
    "Translation": {
        "GeneralExcerpt Language Translation": (483, 109),
        "Literary and Cultural Translation": (176, 34),
        "Technical and Scientific Translation": (192, 38),
    },
}
HARMLESSNESS = {
    "S1": (459, 111),
    "S2": (1040, 249),
    "S3": (739, 171),
    "S4": (537, 136),
    "S5": (561, 122),
    "S6": (317, 83),
    "S7": (510, 121),
    "S8": (519, 127),
    "S9": (543, 132),
    "S10": (360, 79),
    "S11": (977, 215),
    "multi": (502, 131),
}
SCENARIOS = {
    **{f"Helpfulness/{group}/{name}": size for group, names in HELPFULNESS.items() for name, size in names.items()},
    **{f"Harmlessness/{name}": size for name, size in HARMLESSNESS.items()},
}


def read(path: str | Path | None = None) -> list[Question]:
    """Return the questions of RMB_dataset, or of one of its folders or files. See `check_questions` for what is raised.

    Files that stand in no folder of `SETS`, such as results, are not read.
    """
    if path is None:
        raise DataError(f"rmb: `git clone {HOME}`, and name its folder: rmb=FOLDER")
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
    share_ties: bool = False,
) -> list[Credits]:
    """Return what each question earns; see `Benchmark`. The official code knows no answer without a score."""
    shares = [best_of(given) for given in scores]
    return [{"right": share if share_ties else float(share == 1)} for share in shares]


def vote_credits(questions: Sequence[Question], votes: Sequence[Votes]) -> list[Credits]:
    """Return the same for a judge that compared the right answer with every other one in both orders.

    The paper asks so, too: each comparison must be won. The rule for the two orders is JudgeBench's.
    """
    return [{"right": float(all(won(orders) for orders in given.values()))} for given in votes]


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
    sizes={f"{kind}/{name}": size for name, of_kind in SCENARIOS.items() for kind, size in zip(SETS, of_kind)},
    notes="The official script cuts texts at 2,048 tokens from their left, in fp16. Here the whole text counts.",
)
