"""How many rows of benchmarks `common.benchmarks.overlap` finds among 100,000 training rows, and how long it takes.

    python tests/benchmarks/overlap.py --benchmarks judgebench rm_bench=RM-Bench rmb=RMB llmbar=LLMBar

A thousand prompts of the benchmarks are mixed in as they are, and a thousand each in other cases, with other spaces,
with one word in ten changed, and inside longer prompts. All other rows are paragraphs of the docstrings of installed
packages: real English that no benchmark asks.
"""

import argparse
import ast
import random
import re
import sysconfig
import time
import warnings
from math import ceil
from pathlib import Path

from tqdm import tqdm

from common.benchmarks.overlap import NEAR_WORDS, asked_text, different, find_matches, read_held_out
from common.similar_texts import split_words

EACH = 1000  # prompts of each kind


def docstrings(wanted: int) -> list[str]:
    """Return different paragraphs of the docstrings of installed packages."""
    warnings.simplefilter("ignore")  # of other people's code
    found: dict[str, str] = {}
    files = sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))
    random.shuffle(files)
    with tqdm(total=wanted, desc="read docstrings") as bar:
        for file in files:
            try:
                tree = ast.parse(file.read_text(errors="ignore"))
            except (SyntaxError, ValueError, RecursionError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                    for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                        if len(paragraph.split()) > 3:
                            found.setdefault(" ".join(split_words(paragraph)), paragraph)
            bar.update(len(found) - bar.n)
            if len(found) >= wanted:
                break
    return list(found.values())[:wanted]


def change(text: str, count: int, words: list[str]) -> str:
    changed = text.split()
    for place in random.sample(range(len(changed)), count):
        changed[place] = random.choice([word for word in random.sample(words, 5) if word != changed[place]])
    return " ".join(changed)


def space(text: str) -> str:
    return " " + re.sub(r"\s+", lambda _: random.choice(["  ", "\n\n", "\t ", "\u00a0"]), text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what is found of benchmarks among training rows.")
    parser.add_argument("--benchmarks", nargs="+", required=True, help="NAME or NAME=FOLDER")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)

    held_out = read_held_out(options.benchmarks)
    questions = [asked_text(prompt) for prompt in different([one for of_set in held_out.values() for one in of_set])]
    others = docstrings(options.rows)
    words = [word for text in others[:3000] for word in text.split() if word.isalpha()]
    kinds = {
        "as it is": lambda text: text,
        "upper case": str.upper,
        "lower case": str.lower,
        "other spaces": space,
        "one word in ten changed": lambda text: change(text, max(1, round(len(text.split()) / 10)), words),
        "the same, rounded up": lambda text: change(text, ceil(len(text.split()) / 10), words),
        "inside a longer prompt": lambda text: f"{random.choice(others)}\n\n{text}\n\n{random.choice(others)}",
    }
    rows = [
        (kind, number, make(questions[number]))
        for kind, make in kinds.items()
        for number in random.sample(range(len(questions)), EACH)
    ]
    rows += [("unrelated", -1, text) for text in others[: options.rows - len(rows)]]
    random.shuffle(rows)

    start, processor = time.perf_counter(), time.process_time()
    matches = find_matches([text for _, _, text in rows], questions)
    took = f"{time.perf_counter() - start:.0f} s, of which {time.process_time() - processor:.0f} s on the processor"
    print(f"{len(rows)} rows, {len(questions)} prompts of benchmarks: {took}")
    is_long = [len(split_words(text)) >= NEAR_WORDS for text in questions]
    for kind in (*kinds, "unrelated"):
        found = {True: 0, False: 0}
        total = {True: 0, False: 0}
        for (of_kind, number, _), of_row in zip(rows, matches):
            if of_kind == kind:
                key = kind == "unrelated" or is_long[number]
                total[key] += 1
                found[key] += bool(of_row) if kind == "unrelated" else number in [match.question for match in of_row]
        short = f"; of shorter ones {found[False]} of {total[False]}" if total[False] else ""
        print(f"{kind}: found {found[True]} of {total[True]}{short}")


if __name__ == "__main__":
    main()
