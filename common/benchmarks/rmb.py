"""RMB (Zhou et al., arXiv:2410.09893): 49 scenarios of helpfulness and harmlessness, as pairs and as best of N.

A pair is right if the chosen answer scores above the other. Of a best-of-N question every one of the other answers must
score lower. Both are strict: equal is wrong. There are four sections, pairs and best of N of each goal; in a section
all rows count alike, and the benchmark's figure is the mean of the four.

The rule for pairs is that of eval/scripts/my_run_rm.py of Zhou-Zoey/RMB-Reward-Model-Benchmark; for best of N it is the
paper's. The data is there on GitHub, in the folder RMB_dataset. The authors state no licence, and it is on no hub.
"""

from pathlib import Path

from common.conversation import BadRow, DataError, read_dialogue, read_response

from .questions import Question, cell, check_questions, id_of, numbered, read_files, text_of

HOME = "https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark"
SETS = ("Pairwise_set", "BoN_set")
GOALS = ("Helpfulness", "Harmlessness")


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
    if kind not in SETS or scenario.split("/")[0] not in GOALS:
        raise BadRow("category_path", f"expected {' or '.join(SETS)}, then {' or '.join(GOALS)}", category)
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
