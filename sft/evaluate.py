"""How well does a model continue held-out conversations? And if they are a judge's, how often is it right?

    python evaluate.py --model outputs/checkpoint --data test.parquet

Loads the checkpoint with transformers alone, so its figures are what a user of the checkpoint gets, not what the
trainer's own engine reports. Every conversation counts in the perplexity of the assistant's tokens. Where the last
turn is a judge's answer with a verdict (`common/judge.py`), the model also judges for itself: greedily, from the same
prompt. An answer without a verdict is wrong and is counted, never guessed at.
"""

import argparse
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from common.generation import answer, batches_of
from common.judge import PREFERENCES, SCORES, begun_answer, parse_preference, parse_score
from common.parquet import DataError, write_rows
from common.report import draw, extend_model_card, format_value, write_text
from common.tokenizer import ensure_pad_token
from common.verdicts import confusion

from dataset import Example, encode_rows, load_rows
from loss import token_losses

PARSERS = {"score": parse_score, "preference": parse_preference}
VERDICTS = {"score": tuple(SCORES), "preference": PREFERENCES}


def token_metrics(measured: list[np.ndarray]) -> dict[str, float]:
    """Return loss, perplexity and accuracy over all trained tokens of all conversations, each token weighing the same.

    Args:
        measured: for each conversation (2, trained tokens): each token's loss in nats, and 1 where it is the most
            probable one, else 0.
    """
    losses, correct = np.concatenate(measured, axis=1).astype(np.float64)
    return {
        "conversations": len(measured),
        "trained_tokens": losses.size,
        "loss": float(losses.mean()),
        "perplexity": float(np.exp(losses.mean())),
        "token_accuracy": float(correct.mean()),
    }


def judge_metrics(labels: list, verdicts: list) -> dict[str, float]:
    """Return how often a judge's answers have a verdict, and how often it is the label.

    Args:
        labels: the right verdicts, all scores or all preferences.
        verdicts: the judge's, None where its answer has none.

    Returns:
        rows; parse_rate: share of answers with a verdict. accuracy: share of all rows with the right verdict, a missing
        one being wrong. majority_accuracy: what always giving the most frequent label reaches. For scores also
        within_one, over all rows, and mean_error, |score - label| over the rows with a verdict; for preferences
        tie_recall, where there are ties.
    """
    rows, pairs = len(labels), list(zip(labels, verdicts))
    metrics = {
        "rows": rows,
        "parse_rate": sum(verdict is not None for verdict in verdicts) / rows,
        "accuracy": sum(verdict == label for label, verdict in pairs) / rows,
        "majority_accuracy": max(Counter(labels).values()) / rows,
    }
    if isinstance(labels[0], int):
        errors = [abs(verdict - label) for label, verdict in pairs if verdict is not None]
        metrics["within_one"] = sum(error <= 1 for error in errors) / rows
        metrics |= {"mean_error": sum(errors) / len(errors)} if errors else {}
    elif ties := [verdict for label, verdict in pairs if label == "tie"]:
        metrics["tie_recall"] = ties.count("tie") / len(ties)
    return metrics


@torch.inference_mode()
def measure_tokens(model, examples: list[Example], pad_token_id: int, max_tokens: int) -> list[np.ndarray]:
    """Compute what `token_metrics` takes with a plain transformers model, in right-padded batches."""
    measured: list[np.ndarray] = [np.empty((2, 0))] * len(examples)
    with tqdm(total=len(examples), desc="measure", unit="row", delay=1) as progress:
        for batch in batches_of([example.tokens for example in examples], max_tokens):
            ids = torch.full((len(batch), examples[batch[0]].tokens), pad_token_id)
            for line, index in enumerate(batch):
                ids[line, : examples[index].tokens] = torch.from_numpy(examples[index].ids)
            mask = torch.arange(ids.shape[1]) < torch.tensor([examples[index].tokens for index in batch])[:, None]
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
            for line, index in enumerate(batch):
                targets = torch.from_numpy(np.flatnonzero(examples[index].mask))
                before, wanted = logits[line, targets - 1], ids[line, targets].to(model.device)
                correct = before.argmax(dim=1) == wanted
                measured[index] = torch.stack([token_losses(before, wanted), correct.float()]).cpu().numpy()
            progress.update(len(batch))
    return measured


def find_judgements(rows: list[dict]) -> dict[str, list[tuple[dict, object]]]:
    """Return by kind, score or preference, the rows whose last turn has a verdict, each with that verdict."""
    found = {
        kind: [(row, verdict) for row in rows if (verdict := parse(row["messages"][-1]["content"])) is not None]
        for kind, parse in PARSERS.items()
    }
    return {kind: judgements for kind, judgements in found.items() if judgements}


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity of a language model, and its verdicts on a judge's data.")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    parser.add_argument("--data", required=True, help="Parquet with messages")
    parser.add_argument(
        "--output", help="folder for evaluation_*.json, .png and .parquet; default: beside the checkpoint"
    )
    parser.add_argument("--max-length", type=int, help="tokens; default: what the model can take")
    parser.add_argument("--truncation", default="error", choices=("error", "drop", "left"))
    parser.add_argument("--on-bad-row", default="error", choices=("error", "drop"))
    parser.add_argument("--turns", default="all", choices=("all", "last"), help="assistant turns that are measured")
    parser.add_argument("--max-new-tokens", type=int, help="of an answer; default: twice the longest in the data")
    parser.add_argument("--max-tokens", type=int, default=16384, help="padded tokens per batch")
    parser.add_argument("--card", action="store_true", help="add the figures to the checkpoint's model card")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--settings", type=Path, help="a run's settings.yaml: measure as it did, leave out what it did")
    options = parser.parse_args()
    if options.settings:
        run = OmegaConf.load(options.settings)
        kept = ("max_length", "truncation", "on_bad_row", "turns")
        parser.set_defaults(trust_remote_code=run.model.trust_remote_code, **{name: run.data[name] for name in kept})
        options = parser.parse_args()
    if options.card and not Path(options.model).is_dir():
        raise DataError(f"--card writes into the checkpoint's folder, and {options.model} is none")

    rows, bad = load_rows(options.data, options.on_bad_row)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trust = {"trust_remote_code": options.trust_remote_code}
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model, **trust)
    ensure_pad_token(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, **trust).to(device).eval()
    limits = (options.max_length or model.config.max_position_embeddings, options.truncation, options.on_bad_row)
    examples, cut = encode_rows(rows, tokenizer, *limits, options.turns)
    # all logits of a batch at once, so batches a quarter the size
    metrics = token_metrics(measure_tokens(model, examples, tokenizer.pad_token_id, options.max_tokens // 4))
    tables, answered, kept = {}, [], {example.source for example in examples}
    for kind, judgements in find_judgements([row for row in rows if row["source"] in kept]).items():
        prompts = [
            tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)
            for row, _ in judgements
        ]
        labels = [label for _, label in judgements]
        given = tokenizer([row["messages"][-1]["content"] for row, _ in judgements])["input_ids"]
        room = options.max_new_tokens or 2 * max(map(len, given))
        answers = [text for (text,) in answer(model, tokenizer, prompts, room, options.max_tokens)]
        verdicts = [PARSERS[kind](begun_answer(prompt) + text) for prompt, text in zip(prompts, answers)]
        metrics |= {f"{kind}/{name}": value for name, value in judge_metrics(labels, verdicts).items()}
        tables[f"{kind}: label (row), verdict (column)"] = confusion(labels, verdicts, VERDICTS[kind])
        for (row, label), verdict, prompt, text in zip(judgements, verdicts, prompts, answers):
            columns = {"label": str(label), "verdict": None if verdict is None else str(verdict)}
            answered.append({"source": row["source"], "kind": kind, **columns, "prompt": prompt, "answer": text})
    if answered and len(answered) < len(examples):
        metrics["conversations_without_a_verdict"] = len(examples) - len(answered)  # measured, not judged
    for name, value in metrics.items():
        print(f"{name:28} {format_value(value)}")
    for kind, count in (bad + cut).items():
        print(f"set aside: {count} x {kind}")
    beside = Path(options.model).parent if Path(options.model).is_dir() else Path.cwd()
    output, name = Path(options.output or beside), f"evaluation_{Path(options.data).stem}"
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / f"{name}.json", json.dumps(metrics | {"set_aside": dict(bad + cut)}, indent=1))
    if answered:
        write_rows(output / f"{name}.parquet", answered)
        draw(output / f"{name}.png", {}, {}, tables)
    print(f"written: {output}/{name}.*")
    if options.card:
        if answered:
            draw(Path(options.model) / f"{name}.png", {}, {}, tables)
        extend_model_card(Path(options.model), f"Measured on {Path(options.data).name}", metrics, f"{name}.png")


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except DataError as error:
        raise SystemExit(f"evaluate.py: {error}") from None
