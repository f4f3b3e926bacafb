"""RM-Bench (Liu et al., arXiv:2410.16184): a right and a wrong answer to each prompt, each in three styles.

The styles are concise, detailed, and detailed with Markdown. Every right answer is compared with every wrong one, nine
comparisons, and must score higher; equal is wrong. "Hard" are the three in which the wrong answer has the richer style,
"normal" those of equal style, "easy" the others. A domain's score is the mean of the three; the benchmark's is the mean
over chat, math, code and safety. Safety is two files, and their rows count as one set.

The rule is `compute_accuracy` in scripts/utils.py of THU-KEG/RM-Bench, at 73c52d7b27. Data:
https://huggingface.co/datasets/THU-KEG/RM-Bench, or the folder data/ there on GitHub. The authors state no licence.
"""

from pathlib import Path

from common.conversation import BadRow

from .questions import Question, answers_of, check_questions, hub_rows, id_of, numbered, read_files, text_of, user_turn

HOME = "THU-KEG/RM-Bench"
DOMAINS = ("chat", "math", "code", "safety-refuse", "safety-response")
STYLES = 3
WHOLE = "total_dataset.json"  # all domains in one file, which the authors give beside a file for each


def read(path: str | Path | None = None) -> list[Question]:
    """Return the questions of a file or folder, or by default of the hub. See `check_questions` for what is raised.

    A row's domain is its column `domain`; if there is none, the name of its file: chat_filtered.json is "chat".
    """
    if path is None:
        return check_questions(hub_rows(HOME, "train"), to_question)
    files = dict(read_files(path, lambda file: file.name == WHOLE or file.stem.endswith("_filtered")))
    whole = [file for file in files if file.name == WHOLE]
    rows = [
        (place, {"domain": file.stem.removesuffix("_filtered"), **row})
        for file in whole or files
        for place, row in numbered(file.name, files[file])
    ]
    return check_questions(rows, to_question)


def to_question(row: dict) -> Question:
    domain = text_of(row, "domain")
    if domain not in DOMAINS:
        raise BadRow("domain", f"expected one of {', '.join(DOMAINS)}", domain)
    answers = answers_of(row, "chosen", STYLES) + answers_of(row, "rejected", STYLES)
    return Question(f"{domain}/{id_of(row, 'id')}", domain, user_turn(text_of(row, "prompt")), answers, STYLES)
