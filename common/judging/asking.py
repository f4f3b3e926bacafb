"""How a judge is asked for evaluation: a checkpoint or an endpoint, the command's options, what is printed and written.

A checkpoint is loaded with transformers alone, so its figures are what a user of it gets, not what the trainer reports.
A served model, at any OpenAI-compatible endpoint, gets the same figures: one prompt, one parser.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig

from common.base_model import cannot_load, readable_tokens
from common.card import extend_model_card
from common.conversation import DataError
from common.files import said_of_earlier, tails_digest, write_text
from common.generation import Answer, answer_prompts, load_answering
from common.grading.endpoint import EndpointError, ask
from common.judging.examples import judge_examples, judge_pictures
from common.judging.kept import kept_answers
from common.judging.prompts import digest_prompts, measure_rows
from common.judging.soft import Probabilities, Verdicts, mean_of, weigh_answers, weigh_served
from common.judging.votes import (
    agreement,
    agreement_bounds,
    confusion,
    fault_of,
    tokens_of,
    vote_metrics,
    vote_table,
)
from common.page.page import Page, explained, write_page
from common.parquet import Faults, read_rows, write_rows
from common.report import draw, format_value
from common.tokenizer import ensure_pad_token, load_tokenizer

# options that a run's settings set, unless the command does; else these values
USUAL = {
    "max_new_tokens": 1024,
    "max_prompt_length": None,
    "filter_overlong_prompts": False,
    "on_bad_row": "error",
    "trust_remote_code": False,
}
CLIPPED = "clipped: of all answers, how many ran out of tokens before their end."
RESULTS = ("accuracy", "both_right", "kappa", "parse_rate")  # for the hub, those that a judge has
MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py")  # that its answers depend on
KEPT = ("source", "order", "data_source", "prompt", "label")  # what is written of a row beside its answers


def make_parser(description: str, columns: str | None, teacher: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options of every command that asks a judge.

    Args:
        columns: what --data holds; None: the command measures on benchmarks.
        teacher: the judge is a teacher: --teacher and --teacher-model name it, and --output has no default.
    """
    parser = argparse.ArgumentParser(description=description)
    model, endpoint = (["--teacher-model"], ["--teacher"]) if teacher else ([], [])
    of_model = f"checkpoint folder or hub id; with {[*endpoint, '--endpoint'][0]} the served name"
    parser.add_argument(*model, "--model", dest="model", required=True, help=of_model)
    if columns is not None:
        parser.add_argument("--data", required=True, help=f"Parquet with {columns}")
    of_endpoint = "http://host:8000/v1 of a served model; a key is taken from OPENAI_API_KEY"
    parser.add_argument(*endpoint, "--endpoint", dest="endpoint", help=of_endpoint)
    parser.add_argument(
        "--tokenizer", help="checkpoint or hub id of tokenizer and chat template, if they are not --model's"
    )
    parser.add_argument(
        "--hidden-reasoning", action="store_true", help="the endpoint returns only what follows </think>"
    )
    parser.add_argument("--concurrency", type=int, default=16, help="with --endpoint: requests at once")
    parser.add_argument("--timeout", type=float, default=600.0, help="with --endpoint: seconds for one request")
    beside = "" if teacher else f"; default: {'' if columns else 'benchmarks, '}beside the checkpoint"
    parser.add_argument("--output", required=teacher, help=f"folder for what is written{beside}")
    parser.add_argument("--votes", type=int, default=1, help="how often every row is judged")
    parser.add_argument("--temperature", type=float, help="0 is greedy; default: 0, or 1 for several votes")
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled")
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=16384,
        help="tokens in memory at a time, padding included",
    )
    parser.add_argument("--settings", type=Path, help="a run's settings.yaml: measure as it did, leave out what it did")
    parser.add_argument("--max-new-tokens", type=int, help="of an answer; default: 1024")
    parser.add_argument("--max-prompt-length", type=int, help="tokens; default: what the model can take")
    too_long = "set longer prompts aside, else they are an error"
    parser.add_argument("--filter-overlong-prompts", action="store_true", default=None, help=too_long)
    parser.add_argument("--on-bad-row", choices=("error", "drop"), help="default: error")
    parser.add_argument("--trust-remote-code", action="store_true", default=None)
    return parser


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that measures a judge."""
    parser.add_argument("--compare-to", type=Path, help="an earlier evaluation_*.json of these rows: print both")
    parser.add_argument("--card", action="store_true", help="add the figures to the checkpoint's model card")
    soft = "also how probable each verdict was; an endpoint has to give log-probabilities"
    parser.add_argument("--soft", action="store_true", help=soft)


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the command's options, completed from --settings; raise `DataError` if they contradict each other."""
    options = parser.parse_args()
    usual = USUAL | (_limits_of(load_settings(options.settings)) if options.settings else {})
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.temperature is None:
        options.temperature = 1.0 if options.votes > 1 else 0.0
    if min(options.votes, options.concurrency) < 1:
        raise DataError("--votes and --concurrency are at least 1")
    if options.votes > 1 and options.temperature == 0:
        raise DataError(f"--votes {options.votes} --temperature 0: greedy votes are all the same; leave one out")
    if options.endpoint and options.max_prompt_length and not options.tokenizer:
        raise DataError("prompts for an endpoint are measured by its --tokenizer: name it, or set no limit")
    if hasattr(options, "compare_to"):
        check_comparison(options)
    return options


def check_comparison(options: argparse.Namespace) -> None:
    """Raise `DataError` if what `add_comparison` added cannot be done."""
    if options.card and not Path(options.model).is_dir():
        raise DataError(f"--card writes into the checkpoint's folder, and {options.model} is not a folder")
    if options.compare_to and not options.compare_to.is_file():
        raise DataError(f"--compare-to {options.compare_to}: no such file")


def load_settings(path: Path) -> DictConfig:
    """Return the settings of a judge's run, as train.py leaves them in its output."""
    run = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
    if OmegaConf.select(run, "actor_rollout_ref.model") is None:
        raise DataError(f"--settings {path}: no settings.yaml of a judge's run by GRPO")
    return run


def _limits_of(run: DictConfig) -> dict:
    return {
        "max_new_tokens": run.data.max_response_length,
        "max_prompt_length": run.data.max_prompt_length,
        "filter_overlong_prompts": run.data.filter_overlong_prompts,
        "on_bad_row": run.data.on_bad_row,
        "trust_remote_code": run.actor_rollout_ref.model.trust_remote_code,
    }


@dataclass
class Judgements:
    """What a judge said: the rows that were asked, and for each its answers, their verdicts and what these decide."""

    rows: list[dict]
    answers: list[list[Answer]]  # one for each vote, whole: with what the chat template began
    votes: list[list]  # the answers' verdicts, None if an answer has none
    verdicts: list  # None if the votes decide nothing
    left_out: Counter  # rows that were not asked, by reason
    soft: list[Probabilities | None] | None = None  # of each row, the mean over its votes with a verdict; if asked for

    @property
    def labels(self) -> list:
        return [row["label"] for row in self.rows]


def ask_judge(
    options: argparse.Namespace,
    rows: list[dict],
    parse: Callable[[str], object],
    decide: Callable[[list], object],
    frame: str = "",
    soft: Verdicts | None = None,
) -> Judgements:
    """Ask a judge for its verdicts, after everything that can be checked before a model is loaded.

    Args:
        rows: with "prompt", "label" and "source".
        parse, decide: the method's: the verdict of an answer, and that of several votes.
        frame: the method's prompt without its slots: the tags in it stay.
        soft: also weigh the verdicts, written so.

    Raises:
        DataError: as `measure_rows`; --compare-to was not measured on these rows.
        EndpointError: the endpoint gives no answer.
    """
    tokenizer, limit = _load_measure(options)
    rows, left_out = _measure(options, rows, frame, tokenizer, limit)
    before = read_earlier(options)
    if before and before.get("rows_digest") != digest_prompts(rows):
        raise DataError(
            f"--compare-to {options.compare_to}: not measured on these {len(rows)} rows; measure it on them"
        )
    answers = _ask(options, rows, tokenizer, soft)
    votes = [[parse(text) for text in given] for given in answers]
    weighed = [mean_of([text.probabilities for text in given]) for given in answers] if soft else None
    return Judgements(rows, answers, votes, [decide(cast) for cast in votes], left_out, weighed)


def ask_and_keep(
    options: argparse.Namespace,
    sets: dict[Path, list[dict]],
    parse: Callable[[str], object],
    decide: Callable[[list], object],
    frame: str = "",
    anywhere: bool = False,
) -> dict[Path, Judgements]:
    """Ask a judge about several sets of rows, and keep each answer as it comes: a later run does not ask for it again.

    All rows are measured, and all folders looked at, before a model is loaded. It is loaded once, for all sets.

    Args:
        sets: the rows, by the folder that keeps their answers.
        parse, decide, frame: see `ask_judge`.
        anywhere: answers of a served model count for one of its name at another address, too.

    Raises:
        DataError: as `measure_rows`; a folder holds another run, or another command writes there. All sets are in one
            report.
        EndpointError: the endpoint gives no answer.
    """
    tokenizer, limit = _load_measure(options)
    faults, measured, kept = Faults(), {}, {}
    with ExitStack() as claims:
        for folder, rows in sets.items():
            with faults.gathered(f"{folder.name}: "):
                measured[folder] = _measure(options, rows, frame, tokenizer, limit)
                run = identity(options, measured[folder][0], anywhere)
                kept[folder] = claims.enter_context(kept_answers(folder, run))
        faults.raise_all()
        places = []  # of each answer: where it is kept, and its number there
        for folder, (rows, _) in measured.items():
            total = len(rows) * options.votes
            places += [(kept[folder], number) for number in range(total)]
            if found := len(kept[folder].known):
                print(f"{found} of {total} answers are from an earlier run, kept in {kept[folder].path}")
        known = {place: there.known[number] for place, (there, number) in enumerate(places) if number in there.known}

        def keep(place: int, answer: Answer) -> None:
            there, number = places[place]
            there.keep(number, answer)

        together = [row for rows, _ in measured.values() for row in rows]
        try:
            given = iter(_ask(options, together, tokenizer, None, known=known, keep=keep))
        except EndpointError as error:
            done = sum(len(there.known) for there in kept.values())
            there = f"{done} of {len(places)} answers are kept in {', '.join(map(str, sets))}"
            raise EndpointError(f"{error}\n{there}; the same command goes on from there") from error
    judged = {}
    for folder, (rows, left_out) in measured.items():
        answers = [next(given) for _ in rows]
        votes = [[parse(text) for text in of_row] for of_row in answers]
        judged[folder] = Judgements(rows, answers, votes, [decide(cast) for cast in votes], left_out)
    return judged


def identity(options: argparse.Namespace, rows: list[dict], anywhere: bool = False) -> dict:
    """Return what must be equal for a run to go on with the answers that an earlier one left in its folder.

    What is served behind an endpoint cannot be seen: a model that was trained anew and is served by the same name at
    the same place is only noticed if --tokenizer names its folder.
    """
    model = {
        "model": options.model if options.endpoint else known_as(options.model),
        "endpoint": "any" if anywhere and options.endpoint else options.endpoint,
        "tokenizer": known_as(options.tokenizer),
    }
    asked = {name: getattr(options, name) for name in ("votes", "temperature", "seed", "max_new_tokens")}
    read = {"hidden_reasoning": options.hidden_reasoning, "begun": sorted({row.get("begun", "") for row in rows})}
    return model | {"prompts": digest_prompts(rows)} | asked | read


def known_as(model: str | None) -> str | None:
    """Return how a model is known again: a folder by what is in it, wherever it lies now; else its name."""
    if model is None or not Path(model).is_dir():
        return model
    return tails_digest(path for path in Path(model).iterdir() if path.suffix in MODEL_FILES)


def _load_measure(options: argparse.Namespace):
    """Return the judge's tokenizer, None if an endpoint has none, and how many tokens a prompt may have."""
    name = options.tokenizer or (None if options.endpoint else options.model)
    limit = options.max_prompt_length or sys.maxsize
    if not name:
        return None, limit
    try:
        tokenizer = load_tokenizer(name, options.trust_remote_code)
        if not options.endpoint:
            config = AutoConfig.from_pretrained(options.model, trust_remote_code=options.trust_remote_code)
            limit = min(limit, (readable_tokens(config) or sys.maxsize) - options.max_new_tokens)
    except (OSError, ValueError) as error:
        raise cannot_load(name, error, "Correct --model or --tokenizer.") from error
    return tokenizer, limit


def _measure(options: argparse.Namespace, rows: list[dict], frame: str, tokenizer, limit: int):
    """Return the rows measured by the judge's tokenizer, and what was left out; without a tokenizer all as they are."""
    if tokenizer is None:
        return rows, Counter()
    return measure_rows(rows, tokenizer, limit, options.filter_overlong_prompts, options.on_bad_row, frame)


def _ask(options: argparse.Namespace, rows: list[dict], tokenizer, soft: Verdicts | None, **keeping):
    """Return the answers to each row; with `soft` those that have a verdict hold the probabilities of all verdicts."""
    if options.endpoint:
        return _ask_endpoint(options, rows, soft, **keeping)
    return _ask_checkpoint(options, rows, tokenizer, soft, **keeping)


def _ask_endpoint(
    options: argparse.Namespace, rows: list[dict], soft: Verdicts | None, **keeping
) -> list[list[Answer]]:
    answers = ask(
        options.endpoint,
        options.model,
        [row["prompt"] for row in rows],
        options.max_new_tokens,
        options.temperature,
        options.votes,
        options.seed,
        [row.get("begun", "") for row in rows],
        options.concurrency,
        options.hidden_reasoning,
        soft is not None,
        **keeping,
        timeout=options.timeout,
    )
    if soft:
        weigh_served(soft, [text for given in answers for text in given])
    return answers


def _ask_checkpoint(
    options: argparse.Namespace, rows: list[dict], tokenizer, soft: Verdicts | None, **keeping
) -> list[list[Answer]]:
    known = keeping.get("known", {})
    if len(known) == len(rows) * options.votes:  # no model has to be loaded
        given = [known[number] for number in range(len(known))]
        return [_whole(row, given[place * options.votes :][: options.votes]) for place, row in enumerate(rows)]
    model = load_answering(options.model, options.trust_remote_code)
    ensure_pad_token(tokenizer, model.config.get_text_config().vocab_size)
    template = {"tokenize": False, "add_generation_prompt": True}
    texts = [tokenizer.apply_chat_template(row["prompt"], **template) for row in rows]
    draws = (options.temperature, options.votes, options.seed)
    answers = answer_prompts(model, tokenizer, texts, options.max_new_tokens, options.max_tokens, *draws, **keeping)
    whole = [_whole(row, given) for row, given in zip(rows, answers)]
    if soft:
        asked = [(text, row["begun"], answer) for text, row, given in zip(texts, rows, whole) for answer in given]
        weigh_answers(model, tokenizer, soft, asked, options.max_tokens)
    return whole


def _whole(row: dict, given: list[Answer]) -> list[Answer]:
    """Return the answers to a row with what the chat template began."""
    whole = [Answer(row["begun"] + text, text.clipped) for text in given]
    for text, answer in zip(given, whole):
        answer.usage = text.usage
    return whole


def read_earlier(options: argparse.Namespace) -> dict:
    """Return the figures to compare with, or none."""
    compare_to = getattr(options, "compare_to", None)
    return json.loads(compare_to.read_text(encoding="utf-8")) if compare_to else {}


def place_of(options: argparse.Namespace, kind: str) -> Path:
    """Return where to write, without an ending, and make the folder. Several votes have files of their own."""
    beside = Path(options.model).parent if Path(options.model).is_dir() else Path.cwd()
    output = Path(options.output or beside)
    output.mkdir(parents=True, exist_ok=True)
    several = f"_{options.votes}_votes" if options.votes > 1 else ""
    return output / f"{kind}_{Path(options.data).stem}{several}"


def report(
    options: argparse.Namespace,
    judged: Judgements,
    metrics: dict,
    measures: Sequence[Callable],
    values: Sequence[Hashable],
    dropped: Counter,
    baselines: dict[str, str],
    turn: Callable[[object], object] = lambda verdict: verdict,
    weights: str | None = None,
) -> None:
    """Print the figures, beside earlier ones if there are; write them, their pictures, the judged rows and the page.

    Args:
        metrics: the method's figures. What any judge has is added: clipped, the share of answers whose tokens ran out
            before their end; and for several votes those of `vote_metrics`.
        measures: the functions whose figures these are; the page says what they mean.
        values: the verdicts that there are.
        dropped: rows that could not be read, by fault.
        baselines, turn: see `common.page.page.Page` and `judge_examples`.
        weights: of kappa between this judge and the earlier one; see `agreement`.
    """
    given = [text for texts in judged.answers for text in texts]
    metrics, bins = metrics | {"clipped": sum(text.clipped for text in given) / len(given)}, []
    if options.votes > 1:
        more, bins = vote_metrics(judged.labels, judged.votes, judged.verdicts)
        metrics |= more
    before, left_out, tokens = read_earlier(options), dropped + judged.left_out, tokens_of(judged.answers)
    both = compare_verdicts(options, judged, values, weights) if before else {}
    print_figures(options, judged, metrics, bins, before, tokens, both, left_out)

    place = place_of(options, "evaluation")
    asked = ("model", "endpoint", "votes", "temperature", "max_new_tokens", "soft")
    asked = {key: getattr(options, key) for key in asked}
    digest = digest_prompts(judged.rows)
    notes = {"calibration": bins, "rows_digest": digest, "set_aside": dict(left_out), "asked": asked, "tokens": tokens}
    notes |= {"compared": both} if both else {}
    said = said_of_earlier(Path(f"{place}.json"))
    write_text(Path(f"{place}.json"), json.dumps(metrics | notes, indent=1))
    write_rows(f"{place}.parquet", rows_of(judged))
    panels = [confusion(judged.labels, judged.verdicts, values, "label (row), verdict (column)")]
    panels += [vote_table(bins, options.votes)] if bins else []
    draw(Path(f"{place}.png"), panels)
    name = Path(options.data).stem
    examples = judge_examples(name, judged.rows, judged.answers, judged.votes, judged.verdicts, turn)
    earlier = {key: value for key, value in before.items() if key in metrics}
    page = Page(
        title=f"Judge on {Path(options.data).name}",
        about=asked | {"data": options.data},
        figures=({"earlier": earlier} if before else {}) | {name: metrics},
        baselines=baselines,
        left_out={name: left_out},
        pictures=judge_pictures(name, examples, bins, options.votes),
        examples=[examples],
        meaning=[*explained(*measures, *([vote_metrics] if bins else [])), CLIPPED],
        rest=f"All rows and answers are in {place.name}.parquet.",
    )
    write_page(Path(f"{place}.html"), page)
    print(f"written: {place}.*{said}")
    print(f"what it gets wrong: open {place}.html in a browser")
    if options.card:
        draw(Path(options.model) / f"{place.name}.png", panels)
        title, picture = f"Measured on {Path(options.data).name}", f"{place.name}.png"
        extend_model_card(Path(options.model), title, metrics, picture, RESULTS, options.data)


def print_figures(
    options: argparse.Namespace,
    judged: Judgements,
    metrics: dict,
    bins: list[dict[str, int]],
    before: dict,
    tokens: dict[str, float],
    both: dict[str, tuple[float, float, float]],
    left_out: Counter,
) -> None:
    """Print the figures, each behind the earlier one if there is one; then what has no verdict, and why."""
    for part in bins:
        name = f"{part['agreeing']} of {options.votes} votes agree"
        print(f"{name:28} {part['right']} of {part['rows']} verdicts right")
    for name, value in metrics.items():
        earlier = f"{format_value(before[name])} -> " if name in before else ""
        print(f"{name:28} {earlier}{format_value(value)}")
    for name, value in tokens.items():
        earlier = f"{before['tokens'][name]:,.0f} -> " if name in before.get("tokens", {}) else ""
        print(f"{name:28} {earlier}{value:,.0f} in a thousand judgements")
    for name, (value, low, high) in both.items():
        print(f"{name:28} {value:.3f}, 95% interval {low:.3f} to {high:.3f}")
    unread = zip(judged.answers, judged.votes)
    faults = Counter(fault_of(text) for texts, cast in unread for text, vote in zip(texts, cast) if vote is None)
    for fault, count in faults.most_common():
        print(f"no verdict: {count} x {fault}")
    reasons = [text.unweighed for texts in judged.answers for text in texts if text.unweighed]
    for reason, count in Counter(reasons).items():
        print(f"not weighed: {count} x {reason}")
    for kind, count in left_out.items():
        print(f"set aside: {count} x {kind}")


def rows_of(judged: Judgements) -> list[dict]:
    """Return what is written of each row that was asked: where it comes from, its verdict, votes and whole answers."""
    rows = [
        {key: row[key] for key in KEPT if key in row} | {"verdict": verdict, "votes": votes, "answers": answers}
        for row, verdict, votes, answers in zip(judged.rows, judged.verdicts, judged.votes, judged.answers)
    ]
    if judged.soft:
        named = [found and {str(verdict): share for verdict, share in found.items()} for found in judged.soft]
        rows = [row | {"probabilities": found} for row, found in zip(rows, named)]
    return rows


def compare_verdicts(
    options: argparse.Namespace, judged: Judgements, values: Sequence[Hashable], weights: str | None
) -> dict[str, tuple[float, float, float]]:
    """Return how often this judge says what the one of --compare-to said, each figure with its interval.

    The earlier verdicts are read from the Parquet file beside the figures. If it is not there, that is said.
    """
    place = options.compare_to.with_suffix(".parquet")
    if not place.is_file():
        print(f"{place}: not there, so verdicts are not compared one by one")
        return {}
    earlier, _ = read_rows(place, ("verdict",), optional=tuple)
    verdicts = [row["verdict"] for row in earlier], judged.verdicts
    found = agreement(*verdicts, values, weights)
    bounds = agreement_bounds(*verdicts, values, weights, [row["source"] for row in judged.rows])
    return {f"both_{name}": (value, *bounds[name]) for name, value in found.items()}
