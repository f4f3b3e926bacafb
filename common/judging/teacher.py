"""A teacher's judgements as a student's first lessons: which answers are kept, why others are not, what it all cost.

A teacher is any judge: a model that you pay for, a larger one of your own, or the student itself (STaR,
arXiv:2203.14465). It is asked as `asking.py` asks every judge, and each answer is kept as it comes.

- An answer is a lesson only if its verdict is right: that of the label, or, if a row has none, that of more than half
  of the teacher's votes on it. So a student can become better than its teacher: the teacher's errors are left out.
- A prompt gives one lesson at most, the first right answer. Else easy prompts, on which all votes are right, would
  outnumber the hard ones.
- What is left out is left out of the lessons only. GRPO's rows keep it: where the teacher errs there is most to learn.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from common.conversation import Conversation, DataError
from common.files import write_text
from common.judging.asking import Judgements, ask_and_keep, make_parser, read_options
from common.judging.votes import agreement, fault_of, tokens_of
from common.parquet import expand_paths, write_rows

WRONG = "its verdict is not the label"
UNDECIDED = "no label, and no verdict has more than half of the votes"


def make_teacher_parser(columns: str) -> argparse.ArgumentParser:
    """Return a parser with the options of a command that asks a teacher; `columns` says what --data holds."""
    parser = make_parser("A teacher's judgements, and those of them that are right, for sft.", columns, teacher=True)
    parser.add_argument("--rubric", type=Path, help="text file: what to judge by, for rows that have no prompt yet")
    return parser


def read_teacher_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the command's options.

    Raises:
        DataError: the output would replace the input, or the teacher's reasoning does not come, so that the lessons
            would teach to give none.
    """
    options = read_options(parser)
    folders = {path.resolve().parent for path in expand_paths(options.data)}
    if Path(options.output).resolve() in folders:
        raise DataError(f"--output {options.output} holds a file of --data, which would be replaced. Name another.")
    if options.hidden_reasoning:
        raise DataError(
            "--hidden-reasoning: a lesson holds the reasoning that leads to the verdict, and this teacher keeps it to "
            "itself. Ask a server that returns it, or a teacher that reasons in its answer"
        )
    return options


def ask_teacher(
    options: argparse.Namespace, rows: list[dict], parse: Callable, decide: Callable, frame: str
) -> Judgements:
    """Ask a teacher about rows whose label may be None; see `ask_and_keep`. A killed command goes on where it was.

    It does so at another address, too: a teacher that is served anew has the same name, and its answers cost hours.
    """
    folder = Path(options.output) / "answers" / Path(options.data).stem
    return ask_and_keep(options, {folder: rows}, parse, decide, frame, anywhere=True)[folder]


def choose_lessons(judged: Judgements, labels: Sequence[Hashable | None]) -> tuple[list[int | None], list[str]]:
    """Return for each prompt which of its answers is the lesson, None if there is none, and why, "" for a lesson.

    Args:
        labels: the right verdict of each prompt, None if it is not known.
    """
    chosen, reasons = [], []
    for label, votes, answers in zip(labels, judged.votes, judged.answers):
        right = label is not None and label in votes
        chosen.append(votes.index(label) if right else None)
        if right:
            reasons.append("")
        elif not any(vote is not None for vote in votes):
            reasons.append(f"no verdict: {fault_of(answers[0])}")
        else:
            reasons.append(UNDECIDED if label is None else WRONG)
    return chosen, reasons


def teacher_metrics(
    judged: Judgements, reasons: Sequence[str], values: Sequence[Hashable], weights: str | None
) -> dict[str, float]:
    """Return what a teacher's answers are worth.

    Returns:
        prompts, answers; parse_rate: share of all answers with a verdict. Over all answers to labelled prompts:
        agreement and kappa, of `votes.agreement`. kept: share of the prompts that give a lesson. tokens_asked and
        tokens_answered, of a thousand judgements, if the server counts them.
    """
    cast = [(label, vote) for label, votes in zip(judged.labels, judged.votes) for vote in votes]
    labelled = [pair for pair in cast if pair[0] is not None]
    metrics = {
        "prompts": len(reasons),
        "answers": len(cast),
        "parse_rate": sum(vote is not None for _, vote in cast) / len(cast),
    }
    if labelled:
        metrics |= agreement(*zip(*labelled), values, weights)
    return metrics | {"kept": reasons.count("") / len(reasons)} | tokens_of(judged.answers)


def write_lessons(
    options: argparse.Namespace,
    judged: Judgements,
    labels: Sequence[Hashable | None],
    labelled_rows: list[dict],
    retell: Callable[[Hashable, str], str],
    values: Sequence[Hashable],
    dropped: Counter,
    weights: str | None = None,
) -> None:
    """Write a teacher's lessons, the rows for GRPO and all judgements; print the figures and write them, too.

    Args:
        labels: see `choose_lessons`.
        labelled_rows: for GRPO.
        retell: the answer with a verdict, in the form that the student should write.
        dropped: rows that could not be read, by fault.
        values, weights: see `agreement`.

    Raises:
        DataError: there is no lesson.
    """
    chosen, reasons = choose_lessons(judged, labels)
    metrics = teacher_metrics(judged, reasons, values, weights)
    not_kept, output, stem = Counter(filter(None, reasons)), Path(options.output), Path(options.data).stem
    for name, value in metrics.items():
        print(f"{name:28} {value:,.0f}" if value > 1 else f"{name:28} {value:.3f}")
    if "tokens_asked" not in metrics:
        print("the server does not say how many tokens it counted")
    if None in judged.labels and options.votes == 1:
        print("rows without a label have one vote on each prompt: --votes 5 leaves out more of what the teacher doubts")
    for reason, count in not_kept.most_common():
        print(f"not kept: {count} x {reason}")
    for kind, count in (dropped + judged.left_out).items():
        print(f"set aside: {count} x {kind}")
    asked = {key: getattr(options, key) for key in ("model", "endpoint", "votes", "temperature", "max_new_tokens")}
    figures = metrics | {"not_kept": dict(not_kept), "set_aside": dict(dropped + judged.left_out), "asked": asked}
    write_text(output / f"teacher_{stem}.json", json.dumps(figures, indent=1))
    kept = zip(judged.rows, labels, judged.votes, judged.answers, reasons)
    written = [
        {"source": row["source"], "label": label, "votes": votes, "answers": answers, "not_kept": reason}
        for row, label, votes, answers, reason in kept
    ]
    write_rows(output / f"teacher_{stem}.parquet", written)
    lessons = [
        {"messages": lesson(row, retell(label, answers[place]))}
        for row, label, answers, place in zip(judged.rows, labels, judged.answers, chosen)
        if place is not None
    ]
    if not lessons:
        raise DataError(f"no answer is right, so there is nothing to learn from: {output / f'teacher_{stem}.parquet'}")
    print(f"{write_rows(output / 'transcripts' / f'{stem}.parquet', lessons)}: {len(lessons)} conversations for sft")
    print(f"{write_rows(output / f'{stem}.parquet', labelled_rows)}: {len(labelled_rows)} labelled rows for GRPO")


def lesson(row: dict, answer: str) -> Conversation:
    """Return a prompt, as it was written, and its answer as a conversation."""
    return [*row.get("written", row["prompt"]), {"role": "assistant", "content": answer}]
