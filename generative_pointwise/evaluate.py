"""How good is a judge on held-out rows? And is it better than one that always gives the same score?

    python evaluate.py --model outputs/checkpoint --data test.parquet
    python evaluate.py --endpoint http://host:8000/v1 --model name --data test.parquet

A checkpoint is loaded with transformers alone, so its figures are what a user of it gets, not what the trainer reports.
A served model, at any OpenAI-compatible endpoint, gets the same figures: one prompt, one parser. Answers are greedy;
with `--votes K` every row is judged K times by sampling, and `decide` gives the verdict. An answer without a verdict is
wrong and is counted, never guessed at.
"""

import argparse
import json
import logging
import sys
from collections import Counter
from pathlib import Path

import torch
from omegaconf import OmegaConf
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from common.endpoint import EndpointError, ask
from common.generation import Answer, answer
from common.parquet import DataError, write_rows
from common.report import draw, extend_model_card, format_value, write_text
from common.tokenizer import ensure_pad_token

from dataset import digest, load_rows, measure_rows
from prompt import VERDICTS, parse


def decide(votes: list[int | None]) -> int | None:
    """Return the verdict of several votes on one row: the most frequent score among those that parsed.

    Of equally frequent scores the one nearest to the votes' mean counts, then the lower. None where fewer than half of
    the votes parsed: what is left would be the verdict of a few.
    """
    parsed = [vote for vote in votes if vote is not None]
    if not parsed or 2 * len(parsed) < len(votes):
        return None
    counts = Counter(parsed)
    frequent = [score for score in counts if counts[score] == max(counts.values())]
    return min(frequent, key=lambda score: (abs(len(parsed) * score - sum(parsed)), score))


def judge_metrics(labels: list[int], verdicts: list[int | None]) -> dict[str, float]:
    """Return how near a judge's verdicts, None where it gave none, are to the labels.

    Returns:
        rows; parse_rate: share with a verdict. Over all rows, a missing verdict being wrong: accuracy, within_one.
        Over the rows with a verdict, so to be read beside parse_rate: mae, the mean of |verdict - label|; spearman,
        absent where labels or verdicts are all equal; kappa, Cohen's with quadratic weights, absent where there is but
        one value in all.
        What a judge that reads nothing reaches, over all rows: majority_accuracy and majority_mae of always giving the
        most frequent label (of several, the one with the smallest error); mean_mae of always giving the mean of the
        labels; constant_within_one of always giving the score that suits it best.
    """
    rows = len(labels)
    known = [(label, verdict) for label, verdict in zip(labels, verdicts) if verdict is not None]
    errors = [abs(label - verdict) for label, verdict in known]
    metrics = {
        "rows": rows,
        "parse_rate": len(known) / rows,
        "accuracy": errors.count(0) / rows,
        "within_one": sum(error <= 1 for error in errors) / rows,
    }
    if known:
        right, given = zip(*known)
        metrics["mae"] = sum(errors) / len(errors)
        if len(set(right)) > 1 and len(set(given)) > 1:
            metrics["spearman"] = float(spearmanr(right, given).statistic)
        if len({*right, *given}) > 1:
            metrics["kappa"] = float(cohen_kappa_score(right, given, weights="quadratic", labels=VERDICTS))

    def mean_error(score: float) -> float:
        return sum(abs(label - score) for label in labels) / rows

    counts = Counter(labels)
    most = max(counts.values())
    return metrics | {
        "majority_accuracy": most / rows,
        "majority_mae": min(mean_error(label) for label in counts if counts[label] == most),
        "mean_mae": mean_error(sum(labels) / rows),
        "constant_within_one": max(sum(abs(label - score) <= 1 for label in labels) for score in VERDICTS) / rows,
    }


def vote_metrics(labels: list[int], votes: list[list[int | None]]) -> tuple[dict[str, float], list[dict[str, int]]]:
    """Return what is known only of a judge that was asked several times, every row equally often.

    Returns:
        single_vote_accuracy: share of all votes on all rows that are right, one without a verdict being wrong.
        calibration_error: the expected calibration error (Guo et al., arXiv:1706.04599), the confidence being the share
        of the row's votes that its verdict has, and each such share a bin: Σ rows/N · |right/rows - share|, over the
        rows with a verdict. Absent where there is none.
        And the bins: by how many votes were for the verdict, the number of rows, and of those judged rightly.
    """
    hits = [vote == label for label, cast in zip(labels, votes) for vote in cast]
    metrics, found = {"single_vote_accuracy": sum(hits) / len(hits)}, {}
    for label, cast in zip(labels, votes):
        if (verdict := decide(cast)) is not None:
            found.setdefault(cast.count(verdict), []).append(verdict == label)
    bins = [{"agreeing": count, "rows": len(found[count]), "right": sum(found[count])} for count in sorted(found)]
    if bins:
        gaps = [abs(part["right"] - part["rows"] * part["agreeing"] / len(votes[0])) for part in bins]
        metrics["calibration_error"] = sum(gaps) / sum(part["rows"] for part in bins)
    return metrics, bins


def evidence_metrics(evidence: list[list[str]], answers: list[list[str]]) -> dict[str, float]:
    """Return the share of answers that hold all of their row's evidence, letter by letter, before `</think>`.

    Rows without evidence do not count; `evidence_rows` says how many do, and without any there is no figure.
    """
    sought = [(texts, given) for texts, given in zip(evidence, answers) if texts]
    found = [all(text in one.partition("</think>")[0] for text in texts) for texts, given in sought for one in given]
    return {"evidence": sum(found) / len(found), "evidence_rows": len(sought)} if sought else {}


def confusion(labels: list[int], verdicts: list[int | None]) -> tuple[list[str], list[str], list[list[int]]]:
    """Return names of labels, names of verdicts, and how often they came together: one row a label."""
    together = Counter(zip(labels, verdicts))
    counts = [[together[label, verdict] for verdict in (*VERDICTS, None)] for label in VERDICTS]
    return [*map(str, VERDICTS)], [*map(str, VERDICTS), "no verdict"], counts


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A judge's scores beside the labels.")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id; with --endpoint the served name")
    parser.add_argument("--data", required=True, help="Parquet with input, output and label, or prompt and label")
    parser.add_argument("--endpoint", help="http://host:8000/v1 of a served model; a key is taken from OPENAI_API_KEY")
    parser.add_argument(
        "--tokenizer", help="checkpoint or hub id of tokenizer and chat template, where they are not --model's"
    )
    parser.add_argument("--concurrency", type=int, default=16, help="with --endpoint: requests at once")
    parser.add_argument("--output", help="folder for evaluation_*.json, .png, .parquet; default: beside the checkpoint")
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
        run = OmegaConf.load(options.settings)
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


def load_tokenizer(options: argparse.Namespace, rows: list[dict]):
    """Return the judge's tokenizer, the rows measured by it, and what was left out; an endpoint may have none."""
    name, trust = options.tokenizer or (None if options.endpoint else options.model), options.trust_remote_code
    if not name:
        return None, rows, Counter()
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
    limit = options.max_prompt_length or sys.maxsize
    if not options.endpoint:
        config = AutoConfig.from_pretrained(options.model, trust_remote_code=trust).get_text_config()
        limit = min(limit, config.max_position_embeddings - options.max_new_tokens)
    return tokenizer, *measure_rows(rows, tokenizer, limit, options.filter_overlong_prompts, options.on_bad_row)


def judge(options: argparse.Namespace, rows: list[dict], tokenizer) -> list[list[Answer]]:
    """Return each row's answers, whole: with what the chat template began."""
    draws = (options.temperature, options.votes, options.seed)
    begun, prompts = [row.get("begun", "") for row in rows], [row["prompt"] for row in rows]
    if options.endpoint:
        return ask(options.endpoint, options.model, prompts, options.max_new_tokens, *draws, begun, options.concurrency)
    ensure_pad_token(tokenizer)
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    trust = {"trust_remote_code": options.trust_remote_code}
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, **trust).to(device).eval()
    texts = [tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) for prompt in prompts]
    answers = answer(model, tokenizer, texts, options.max_new_tokens, options.max_tokens, *draws)
    return [[Answer(start + text, text.clipped) for text in given] for start, given in zip(begun, answers)]


def main() -> None:
    options = read_options()
    before = json.loads(options.compare_to.read_text(encoding="utf-8")) if options.compare_to else {}
    rows, bad = load_rows(options.data, options.on_bad_row)
    tokenizer, rows, left_out = load_tokenizer(options, rows)
    if before and before.get("rows_digest") != digest(rows):
        raise DataError(f"--compare-to {options.compare_to}: not measured on these {len(rows)} rows; measure it anew")
    answers = judge(options, rows, tokenizer)
    labels, votes = [row["label"] for row in rows], [[parse(text) for text in given] for given in answers]
    verdicts = [decide(cast) for cast in votes]
    metrics = judge_metrics(labels, verdicts) | evidence_metrics([row["evidence"] for row in rows], answers)
    metrics["clipped"] = sum(text.clipped for given in answers for text in given) / (len(rows) * options.votes)
    more, bins = vote_metrics(labels, votes) if options.votes > 1 else ({}, [])
    tables = {"label (row), verdict (column)": confusion(labels, verdicts)}
    if bins:
        names = [f"{part['agreeing']} of {options.votes}" for part in bins]
        counts = [[part["right"], part["rows"] - part["right"]] for part in bins]
        tables["votes for the verdict (row)"] = names, ["right", "wrong"], counts
    for name, value in (metrics := metrics | more).items():
        earlier = f"{format_value(before[name])} -> " if name in before else ""
        print(f"{name:28} {earlier}{format_value(value)}")
    for kind, count in (bad + left_out).items():
        print(f"set aside: {count} x {kind}")
    beside = Path(options.model).parent if Path(options.model).is_dir() else Path.cwd()
    output, name = Path(options.output or beside), f"evaluation_{Path(options.data).stem}"
    output.mkdir(parents=True, exist_ok=True)
    asked = {key: getattr(options, key) for key in ("model", "endpoint", "votes", "temperature", "max_new_tokens")}
    notes = {"set_aside": dict(bad + left_out), "calibration": bins, "asked": asked, "rows_digest": digest(rows)}
    write_text(output / f"{name}.json", json.dumps(metrics | notes, indent=1))
    columns = [{key: row[key] for key in ("source", "data_source", "prompt", "label")} for row in rows]
    answered = zip(columns, verdicts, votes, answers)
    kept = [{**row, "verdict": verdict, "votes": cast, "answers": given} for row, verdict, cast, given in answered]
    write_rows(output / f"{name}.parquet", kept)
    draw(output / f"{name}.png", {}, {}, tables)
    print(f"written: {output}/{name}.*")
    if options.card:
        draw(Path(options.model) / f"{name}.png", {}, {}, tables)
        extend_model_card(Path(options.model), f"Measured on {Path(options.data).name}", metrics, f"{name}.png")


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except (DataError, EndpointError) as error:
        raise SystemExit(f"evaluate.py: {error}") from None
