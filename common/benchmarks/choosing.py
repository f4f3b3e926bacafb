"""The options that every benchmark command has: which benchmarks, where their files are, where to write."""

import argparse
from pathlib import Path

from common.benchmarks import BENCHMARKS, read_questions
from common.benchmarks.questions import Question
from common.parquet import Faults, named_twice


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add --on, --path and --card, to a command that has --model and --output."""
    parser.add_argument("--on", nargs="+", required=True, choices=BENCHMARKS, help="which benchmarks")
    parser.add_argument(
        "--path", nargs="+", default=[], metavar="NAME=PLACE", help="a benchmark's file or folder; default: the hub"
    )
    parser.add_argument("--card", action="store_true", help="add the figures to the checkpoint's model card")


def load_choice(options: argparse.Namespace) -> dict[str, list[Question]]:
    """Return the questions of the chosen benchmarks; complete the output's folder, and make it.

    Raises:
        DataError: options that fit nothing, or files that cannot be used; all of them in one report.
    """
    faults, chosen, paths = Faults(), {}, {}
    for word in options.path:
        name, _, place = word.partition("=")
        if name not in options.on or not place:
            faults.append(f"--path {word}: expected NAME=PLACE, NAME one of --on {' '.join(options.on)}")
        paths[name] = place
    if twice := named_twice([*options.on, *(f"--path {word.partition('=')[0]}" for word in options.path)]):
        faults.append(f"named twice: {', '.join(twice)}")
    if options.card and not Path(options.model).is_dir():
        faults.append(f"--card writes into the checkpoint's folder, and {options.model} is not a folder")
    for name in options.on:
        with faults.gathered():
            chosen[name] = read_questions(name, paths.get(name))
    faults.raise_all()
    beside = Path(options.model).parent if Path(options.model).is_dir() else Path.cwd()
    options.output = Path(options.output or beside / "benchmarks")
    options.output.mkdir(parents=True, exist_ok=True)
    return chosen
