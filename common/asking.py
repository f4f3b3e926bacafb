"""How a judge is asked for evaluation: a checkpoint or an endpoint, the command's options, the prompts' measure.

A checkpoint is loaded with transformers alone, so its figures are what a user of it gets, not what the trainer reports.
A served model, at any OpenAI-compatible endpoint, gets the same figures: one prompt, one parser.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoTokenizer

from common.endpoint import ask
from common.files import write_text
from common.generation import Answer, answer, load_answering
from common.parquet import DataError, write_rows
from common.prompts import digest, measure_rows
from common.report import draw, extend_model_card, format_value
from common.tokenizer import cannot_load, ensure_pad_token


def read_options(description: str, columns: str, ranks: bool = False) -> argparse.Namespace:
    """Read the options of a command that asks a judge. Raise `DataError` where they contradict.

    Args:
        columns: what --data holds.
        ranks: whether the command ranks responses; else it measures, and can compare with earlier figures.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id; with --endpoint the served name")
    parser.add_argument("--data", required=True, help=f"Parquet with {columns}")
    parser.add_argument("--endpoint", help="http://host:8000/v1 of a served model; a key is taken from OPENAI_API_KEY")
    parser.add_argument(
        "--tokenizer", help="checkpoint or hub id of tokenizer and chat template, where they are not --model's"
    )
    parser.add_argument(
        "--hidden-reasoning", action="store_true", help="the endpoint returns only what follows </think>"
    )
    parser.add_argument("--concurrency", type=int, default=16, help="with --endpoint: requests at once")
    parser.add_argument("--output", help="folder for what is written; default: beside the checkpoint")
    if ranks:
        parser.add_argument(
            "--rubric", type=Path, help="text file: what to judge by; default: the checkpoint's, else prompt.py's"
        )
        parser.set_defaults(compare_to=None, card=False)
    else:
        parser.add_argument("--compare-to", type=Path, help="an earlier evaluation_*.json of these rows: print both")
        parser.add_argument("--card", action="store_true", help="add the figures to the checkpoint's model card")
    parser.add_argument("--votes", type=int, default=1, help="how often every row is judged")
    parser.add_argument("--temperature", type=float, help="0 is greedy; default: 0, or 1 for several votes")
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled")
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="of an answer")
    parser.add_argument("--max-prompt-length", type=int, help="tokens; default: what the model can take")
    parser.add_argument("--filter-overlong-prompts", action="store_true", help="set longer ones aside, else an error")
    parser.add_argument("--max-tokens", type=int, default=16384, help="padded tokens per batch")
    parser.add_argument("--on-bad-row", default="error", choices=("error", "drop"))
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--settings", type=Path, help="a run's settings.yaml: measure as it did, leave out what it did")
    options = parser.parse_args()
    if options.settings:
        run = load_settings(options.settings)
        kept = {name: run.data[name] for name in ("max_prompt_length", "filter_overlong_prompts", "on_bad_row")}
        trust = run.actor_rollout_ref.model.trust_remote_code
        parser.set_defaults(max_new_tokens=run.data.max_response_length, trust_remote_code=trust, **kept)
        options = parser.parse_args()
    if options.temperature is None:
        options.temperature = float(options.votes > 1)
    if min(options.votes, options.concurrency) < 1:
        raise DataError("--votes and --concurrency are at least 1")
    if options.votes > 1 and options.temperature == 0:
        raise DataError(f"--votes {options.votes} --temperature 0: greedy votes are all the same; leave one out")
    if options.card and not Path(options.model).is_dir():
        raise DataError(f"--card writes into the checkpoint's folder, and {options.model} is none")
    if options.compare_to and not options.compare_to.is_file():
        raise DataError(f"--compare-to {options.compare_to}: no such file")
    if options.endpoint and options.max_prompt_length and not options.tokenizer:
        raise DataError("prompts for an endpoint are measured by its --tokenizer: name it, or set no limit")
    return options


def load_settings(path: Path) -> DictConfig:
    """Return a judge's run's settings, as train.py leaves them in its output."""
    run = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
    if OmegaConf.select(run, "actor_rollout_ref.model") is None:
        raise DataError(f"--settings {path}: no settings.yaml of a judge's run by GRPO")
    return run


def judge(options: argparse.Namespace, rows: list[dict]) -> tuple[list[dict], Counter, list[list[Answer]]]:
    """Ask a judge for its answers, after everything that can be checked before a model is loaded.

    Returns:
        The rows that were asked, how many were left out and why, and each row's answers, `options.votes` of them,
        whole: with what the chat template began.

    Raises:
        DataError: as `measure_rows`; or --compare-to is no measurement of these rows.
        EndpointError: the endpoint gives no answer.
    """
    tokenizer, rows, left_out = _measure(options, rows)
    before = read_earlier(options)
    if before and before.get("rows_digest") != digest(rows):
        raise DataError(f"--compare-to {options.compare_to}: not measured on these {len(rows)} rows; measure it anew")
    draws = (options.temperature, options.votes, options.seed)
    begun, prompts = [row.get("begun", "") for row in rows], [row["prompt"] for row in rows]
    if options.endpoint:
        served = (options.endpoint, options.model, prompts, options.max_new_tokens)
        return rows, left_out, ask(*served, *draws, begun, options.concurrency, options.hidden_reasoning)
    ensure_pad_token(tokenizer)
    model = load_answering(options.model, options.trust_remote_code)
    texts = [tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) for prompt in prompts]
    answers = answer(model, tokenizer, texts, options.max_new_tokens, options.max_tokens, *draws)
    whole = [[Answer(start + text, text.clipped) for text in given] for start, given in zip(begun, answers)]
    return rows, left_out, whole


def _measure(options: argparse.Namespace, rows: list[dict]):
    """Return the judge's tokenizer, the rows measured by it, and what was left out; an endpoint may have none."""
    name, trust = options.tokenizer or (None if options.endpoint else options.model), options.trust_remote_code
    if not name:
        return None, rows, Counter()
    limit = options.max_prompt_length or sys.maxsize
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
        if not options.endpoint:
            config = AutoConfig.from_pretrained(options.model, trust_remote_code=trust).get_text_config()
            limit = min(limit, config.max_position_embeddings - options.max_new_tokens)
    except (OSError, ValueError) as error:
        raise cannot_load(name, error, "Mend --model or --tokenizer.") from error
    return tokenizer, *measure_rows(rows, tokenizer, limit, options.filter_overlong_prompts, options.on_bad_row)


def read_earlier(options: argparse.Namespace) -> dict:
    """Return the figures to compare with, or none."""
    return json.loads(options.compare_to.read_text(encoding="utf-8")) if options.compare_to else {}


def place_of(options: argparse.Namespace, kind: str) -> Path:
    """Return where to write, without an ending; the folder is made if need be. Several votes stand beside one."""
    beside = Path(options.model).parent if Path(options.model).is_dir() else Path.cwd()
    output = Path(options.output or beside)
    output.mkdir(parents=True, exist_ok=True)
    several = f"_{options.votes}_votes" * (options.votes > 1)
    return output / f"{kind}_{Path(options.data).stem}{several}"


def clipped_share(answers: list[list[Answer]]) -> float:
    """Return the share of answers whose tokens ran out before they came to an end."""
    given = [text.clipped for texts in answers for text in texts]
    return sum(given) / len(given)


def report(
    options: argparse.Namespace, metrics: dict, tables: dict, left_out: Counter, rows: list[dict], notes: dict
) -> None:
    """Print the figures, beside earlier ones if there are; write them, their pictures and the judged rows.

    Args:
        tables: what `common.report.draw` draws.
        rows: what was asked and answered, one written row each.
        notes: what else belongs into the .json; `rows_digest` of what was asked, for a later --compare-to.
    """
    before = read_earlier(options)
    for name, value in metrics.items():
        earlier = f"{format_value(before[name])} -> " if name in before else ""
        print(f"{name:28} {earlier}{format_value(value)}")
    for kind, count in left_out.items():
        print(f"set aside: {count} x {kind}")
    place = place_of(options, "evaluation")
    figures, judged, picture = (Path(f"{place}.{ending}") for ending in ("json", "parquet", "png"))
    asked = {key: getattr(options, key) for key in ("model", "endpoint", "votes", "temperature", "max_new_tokens")}
    notes |= {"set_aside": dict(left_out), "asked": asked}
    write_text(figures, json.dumps(metrics | notes, indent=1))
    write_rows(judged, rows)
    draw(picture, {}, {}, tables)
    print(f"written: {place}.*")
    if options.card:
        draw(Path(options.model) / picture.name, {}, {}, tables)
        extend_model_card(Path(options.model), f"Measured on {Path(options.data).name}", metrics, picture.name)
