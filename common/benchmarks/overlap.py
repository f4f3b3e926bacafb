"""Which training prompts are also prompts of a benchmark: after training on them, its score says nothing.

    python -m common.benchmarks.overlap --data data/train.parquet --against judgebench rm_bench=RM-Bench mine.jsonl

This command only reports. `prepare_data … --without judgebench rm_bench=RM-Bench mine.jsonl` leaves such rows out.

- What the user says is compared: all user turns of a dialogue as one text. System messages, answers and labels are not.
  A prompt of plain text is compared as it is.
- Equal means equal without case, punctuation, spaces and Unicode forms. A question of 5 words or more is also found if
  it is the last user turn of a longer dialogue; "Continue" as a last turn is another prompt in each dialogue.
- Of a question that is a dialogue itself, the last user turn is found alone, too, if it has 10 words or more.
- A question of 10 words or more is found too if its words stand in a prompt in their order and close to each other, all
  of them or 85 in 100: inside a longer prompt, or with some words changed. At 80 in 100, most of what was found besides
  were other questions of the same template. In a shorter one, as "What is 2+2?", one other word is another question.
- The textbook takes MinHash, as similar_texts.py does inside one data set. It finds texts that are alike as a whole, so
  not a question inside a long prompt, and it leaves out short texts. A benchmark has only thousands of prompts, so here
  an exact index of their pairs of words says where to look, and a word by word alignment decides.
- Pairs of words that many texts have say little: "take your best guess" is in 311 of JudgeBench's 528 questions.
  They are left out of the search if others remain.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rapidfuzz import fuzz
from tqdm import tqdm

from common.benchmarks import BENCHMARKS, read_questions
from common.conversation import BadRow, Conversation, DataError, read_dialogue, read_messages
from common.files import write_text
from common.pairs import optional_columns, read_sides, split_texts
from common.parquet import Faults, check_rows, expand_paths, short_names
from common.similar_texts import split_words
from common.sources import load_source

NEAR_WORDS = 10  # of a shorter question only equal prompts are found: one word in ten is less than one word
TURN_WORDS = 5  # a shorter last turn of a dialogue says nothing without the turns before it
SAME = 0.85  # the least share of a question's words that stand in a prompt, in their order; see `least_share`
SHARED = 0.4  # the least share of its pairs of words: one changed word changes two pairs
FREQUENT = 20  # texts that share a pair of words; of a large set one in a thousand
LEAST_RARE = 6  # pairs of words; if fewer are left without the frequent ones, all are looked for
AT_ONCE = 1000  # texts
KINDS = {
    "equal": "equal but for case, punctuation and spaces",
    "short": f"the same, of fewer than {TURN_WORDS} words",
    "last turn": "the last turn of a longer dialogue",
    "without context": "the last turn of a question that is a longer dialogue",
    "inside": "inside a longer prompt",
    "near": "some words changed",
}
SETS = f"a benchmark ({', '.join(BENCHMARKS)}; NAME=FOLDER for one of your disk), or a file of your own prompts"
EXAMPLES = 2  # of each kind
FEW = 5  # subsets that are named
SHOWN = 100  # characters of a prompt

Prompt = Conversation | str


class Match(NamedTuple):
    """A question that a prompt asks too. `kind` is one of `KINDS`; `share` of its words stand in the prompt."""

    question: int
    kind: str
    share: float


# ---- texts


def asked_text(prompt: Prompt) -> str:
    """Return what the user says in all turns; of a dialogue without a user's turn, what is said."""
    if isinstance(prompt, str):
        return prompt
    said = [turn["content"] for turn in prompt if turn["role"] == "user"]
    return "\n\n".join(said or [turn["content"] for turn in prompt])


def last_turn(prompt: Prompt) -> str:
    """Return what the user says last; see `asked_text`."""
    if isinstance(prompt, str):
        return prompt
    users = [turn for turn in prompt if turn["role"] == "user"]
    return asked_text(users[-1:] or prompt)


def same_words(text: str) -> str:
    """Return a text without case, punctuation, spaces and Unicode forms; a text of punctuation alone as it is."""
    return " ".join(split_words(text)) or text.strip()


def is_short(words: str) -> bool:
    return len(words.split()) < TURN_WORDS


def word_pairs(text: str) -> list[tuple[str, str]]:
    words = split_words(text)
    return list(zip(words, words[1:]))


def least_share(words: int) -> float:
    """Return what share of a question's words has to stand in a prompt: 0.85, or all but one in ten.

    One in ten is rounded up: 2 of 11 to 13 words, which is a little more than 15 in 100.
    """
    return min(SAME, 1 - ceil(words / 10) / words)


def share_of(question: list[str], prompt: list[str]) -> float:
    """Return how much of a question stands in a prompt, word by word in their order; 0 if it is not enough.

    Of a longer prompt the part of the question's length counts that fits best. It is twice the longest common
    subsequence, divided by both lengths: one changed word in ten is 0.9.
    """
    compare = fuzz.partial_ratio if len(prompt) > len(question) else fuzz.ratio
    # the library computes in floats of 0 to 100: nine of eleven must not fail by a rounding
    return compare(question, prompt, score_cutoff=100 * least_share(len(question)) - 1e-6) / 100


# ---- matching


def find_matches(prompts: list[Prompt], questions: list[Prompt]) -> list[list[Match]]:
    """Return of each prompt the questions that it asks too, one match for each."""
    asked = [asked_text(question) for question in questions]
    with_words: dict[str, list[int]] = defaultdict(list)
    ends_with: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(asked):
        if words := same_words(text):
            with_words[words].append(number)
        if (last := last_turn(questions[number])) != text and len(split_words(last)) >= NEAR_WORDS:
            ends_with[same_words(last)].append(number)

    compared = [(asked_text(prompt), last_turn(prompt)) for prompt in prompts]
    places = {texts: place for place, texts in enumerate(dict.fromkeys(compared))}
    found: list[dict[int, Match]] = [{} for _ in places]
    for (text, last), place in tqdm(places.items(), desc="look for equal prompts", unit="prompt", delay=1):
        words = same_words(text)
        for number in with_words.get(words, ()):
            found[place][number] = Match(number, "short" if is_short(words) else "equal", 1.0)
        if last != text and not is_short(words := same_words(last)):
            for number in with_words.get(words, ()):
                found[place][number] = Match(number, "last turn", 1.0)
        for number in ends_with.get(same_words(last), ()):
            found[place].setdefault(number, Match(number, "without context", 1.0))
    for place, match in near_matches([text for text, _ in places], asked):
        found[place].setdefault(match.question, match)
    return [list(found[places[texts]].values()) for texts in compared]


def near_matches(texts: list[str], asked: list[str]) -> Iterator[tuple[int, Match]]:
    """Yield the place of each text that holds a long question, whole or with some words changed, and the match."""
    words_of = {number: words for number, text in enumerate(asked) if len(words := split_words(text)) >= NEAR_WORDS}
    if not words_of:
        return
    in_prompts, in_questions = count_pairs(texts, [asked[number] for number in words_of])
    searched = leave_out_frequent(in_questions, in_prompts)
    sizes = np.asarray(searched.sum(axis=1)).ravel()
    numbers = list(words_of)
    for start in tqdm(range(0, len(texts), AT_ONCE), desc="compare", unit="prompt", unit_scale=AT_ONCE, delay=1):
        shared = (in_prompts[start : start + AT_ONCE] @ searched.T).tocoo()
        enough = shared.data >= SHARED * sizes[shared.col]
        candidates = defaultdict(list)
        for row, column in zip(shared.row[enough].tolist(), shared.col[enough].tolist()):
            candidates[start + row].append(numbers[column])
        for place, possible in candidates.items():
            prompt = split_words(texts[place])
            for number in possible:
                if share := share_of(words_of[number], prompt):
                    yield place, Match(number, "inside" if share == 1 else "near", share)


def count_pairs(texts: list[str], questions: list[str]):
    """Return which pairs of words of the questions stand in each text, and in each question.

    Returns:
        Two sparse matrices of 0 and 1: (texts, pairs) and (questions, pairs).
    """
    from sklearn.feature_extraction.text import CountVectorizer  # only here: importing it takes a second

    vectorizer = CountVectorizer(analyzer=word_pairs, binary=True, dtype=np.int32)
    in_questions = vectorizer.fit_transform(questions)
    return vectorizer.transform(tqdm(texts, desc="read prompts", unit="prompt", delay=1)), in_questions


def leave_out_frequent(in_questions, in_prompts):
    """Return `in_questions` without the pairs of words that many texts have, unless a question has hardly any other."""
    texts = in_prompts.shape[0] + in_questions.shape[0]
    counts = np.asarray(in_prompts.sum(axis=0) + in_questions.sum(axis=0)).ravel()
    is_rare = counts <= max(FREQUENT, texts // 1000)
    has_rare = in_questions @ is_rare.astype(np.int32) >= LEAST_RARE
    searched = in_questions.copy()
    question_of = np.repeat(np.arange(searched.shape[0]), np.diff(searched.indptr))
    searched.data[has_rare[question_of] & ~is_rare[searched.indices]] = 0
    searched.eliminate_zeros()
    return searched


# ---- rows


def prompt_in(row: dict) -> Prompt:
    """Return what a row of any method asks, by its columns: those of a pair, `messages`, `input` or `prompt`.

    Raises:
        BadRow: none of these columns, or what it holds is not a prompt.
    """
    if row.get("chosen") is not None and row.get("rejected") is not None:
        names = ("chosen", "rejected", *optional_columns(list(row)))
        sides = read_sides({name: row[name] for name in names if name in row})
        chosen, rejected = sides["chosen"], sides["rejected"]
        return split_texts(chosen, rejected)[0] if isinstance(chosen, str) else chosen[:-1]
    if row.get("messages") is not None:
        messages = read_messages("messages", row["messages"])
        is_answered = not isinstance(messages, str) and len(messages) > 1 and messages[-1]["role"] == "assistant"
        return messages[:-1] if is_answered else messages
    column = next((name for name in ("input", "prompt") if row.get(name) is not None), None)
    if column is None:
        raise BadRow("prompt", "expected a column input, messages or prompt, or chosen and rejected", sorted(row))
    return read_dialogue(row[column], column)


def read_prompts(path: str, name: str) -> list[dict]:
    """Return each row of a file, a folder or a set of the hub as its `prompt` and its `source`.

    Args:
        name: what the rows are called.

    Raises:
        DataError: what cannot be read, all bad rows in one report.
    """
    rows = [{**row, "source": f"{name} row {number}"} for number, row in enumerate(load_source(path, "train"))]
    return check_rows(rows, lambda row: {"prompt": prompt_in(row)}, "error")[0]


def read_held_out(words: Iterable[str]) -> dict[str, list[Prompt]]:
    """Return the different prompts of benchmarks and files, by what was given for them.

    Args:
        words: names of benchmarks, which are read from their public home; "NAME=PLACE" for a benchmark's file or
            folder; or a file or folder of prompts of your own.

    Raises:
        DataError: no such benchmark or path, or rows that cannot be read; all of them in one report.
    """
    held_out, faults = {}, Faults()
    for word in dict.fromkeys(words):
        name, _, place = word.partition("=")
        with faults.gathered():
            if name in BENCHMARKS:
                questions = read_questions(name, place or None)
                held_out[word] = different([question.prompt for question in questions])
                if missing := BENCHMARKS[name].missing(questions):
                    few = ", ".join(missing[:FEW]) + f" and {len(missing) - FEW} more" * (len(missing) > FEW)
                    print(f"{word}: not whole, so not all of it is looked for; missing: {few}")
            elif Path(word).exists():
                held_out[word] = different([row["prompt"] for row in read_prompts(word, word)])
            else:
                faults.append(f"{word}: expected a benchmark ({', '.join(BENCHMARKS)}), NAME=PLACE of one, or a file")
    faults.raise_all()
    return held_out


def different(prompts: list[Prompt]) -> list[Prompt]:
    """Return prompts without those that are equal to an earlier one; RMB has six rows for each."""
    return list({same_words(asked_text(prompt)): prompt for prompt in reversed(prompts)}.values())[::-1]


def find_overlap(prompts: list[Prompt], held_out: dict[str, list[Prompt]]) -> tuple[list[dict], list[str]]:
    """Look for held-out prompts among the prompts of rows.

    Returns:
        All finds, one for each row and set: `row`, its number; `held_out`, the set; `kind`; `share`; `prompt` and
        `question`, what the user says in both. And the lines to print about them.
    """
    sets = [name for name, of_set in held_out.items() for _ in of_set]
    questions = [question for of_set in held_out.values() for question in of_set]
    order = list(KINDS)
    finds = []
    for number, matches in enumerate(find_matches(prompts, questions)):
        # of the questions of one set the closest counts
        closest = sorted(matches, key=lambda match: (order.index(match.kind), -match.share), reverse=True)
        for name, match in {sets[match.question]: match for match in closest}.items():
            texts = {"prompt": asked_text(prompts[number]), "question": asked_text(questions[match.question])}
            finds.append({"row": number, "held_out": name, "kind": match.kind, "share": match.share, **texts})
    return finds, [line for name in held_out for line in describe(name, held_out[name], finds, len(prompts))]


def leave_out(rows: list[dict], held_out: dict[str, list[Prompt]]) -> tuple[list[dict], Counter]:
    """Leave out the rows whose prompt is held out, and say which.

    Args:
        rows: of any method; see `prompt_in`.

    Returns:
        The other rows, and how many were left out.

    Raises:
        DataError: no row is left.
    """
    if not held_out:
        return rows, Counter()
    finds, lines = find_overlap([prompt_in(row) for row in rows], held_out)
    found = {find["row"] for find in finds}
    kept = [row for number, row in enumerate(rows) if number not in found]
    print("\n".join(lines))
    if not kept:
        raise DataError(f"--without leaves no row: the prompts of all {len(rows)} are held out")
    return kept, +Counter({"prompt that is held out by --without": len(found)})


def describe(name: str, questions: list[Prompt], finds: list[dict], rows: int) -> list[str]:
    """Say how many rows have a prompt of one set, and show some of each kind."""
    of_set = [find for find in finds if find["held_out"] == name]
    if not of_set:
        return [f"{name}: none of its {len(questions)} prompts found in {rows} rows"]
    counts = Counter(find["kind"] for find in of_set)
    found = {find["question"] for find in of_set}
    listed = "; ".join(f"{counts[kind]} x {text}" for kind, text in KINDS.items() if counts[kind])
    lines = [f"{name}: {len(found)} of its {len(questions)} prompts found, in {len(of_set)} of {rows} rows: {listed}"]
    for kind in KINDS:
        examples = {find["question"]: find for find in reversed(of_set) if find["kind"] == kind}
        for find in list(reversed(examples.values()))[:EXAMPLES]:
            verb = {"last turn": "has", "inside": "has", "near": "has", "without context": "ends"}.get(kind)
            row = f"{shorten(find['prompt'])} {verb} " if verb else ""
            lines.append(f"  {kind}: {row}{shorten(find['question'])}")
    return lines


def shorten(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def add_without(parser: argparse.ArgumentParser) -> None:
    """Add `--without` to a command that prepares data."""
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="SET", help=f"leave out rows whose prompt is also in {SETS}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Say which prompts of training data are also prompts of benchmarks.")
    parser.add_argument("--data", nargs="+", required=True, help="Parquet files, or folders of them")
    parser.add_argument("--against", nargs="+", required=True, metavar="SET", help=SETS)
    parser.add_argument("--output", help="a .jsonl file: also write all that is found, a line for each")
    options = parser.parse_args()

    faults, rows, held_out = Faults(), [], {}
    if options.output and Path(options.output).suffix != ".jsonl":
        faults.append(f"--output {options.output}: expected a name that ends with .jsonl")
    with faults.gathered():
        held_out = read_held_out(options.against)
    with faults.gathered():
        for path, name in short_names(expand_paths(options.data)).items():
            with faults.gathered():
                rows += read_prompts(str(path), name)
    faults.raise_all()
    finds, lines = find_overlap([row["prompt"] for row in rows], held_out)
    print("\n".join(lines))
    if options.output:  # without finds, too: an earlier file would be taken for today's
        found = [json.dumps(find | {"row": rows[find["row"]]["source"]}, ensure_ascii=False) for find in finds]
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(options.output), "".join(line + "\n" for line in found))
        print(f"all {len(finds)} finds: {options.output}")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"overlap.py: {error}") from None
