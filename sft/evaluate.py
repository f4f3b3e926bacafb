"""How well does a model continue held-out conversations? And if they are a judge's, how often is it right?

    python -m sft.evaluate --model outputs/checkpoint --data test.parquet

Loads the checkpoint with transformers alone, so its figures are what a user of the checkpoint gets, not what the
trainer's own engine reports. Every conversation counts in the perplexity of the assistant's tokens.

This file knows no judge's prompt and no scale. If the last turns reason and then end with one of a few verdicts
(`<score>3</score>`, `<preference>tie</preference>`, `{"score": 7}`), the model also judges by itself: greedily, from
the same prompt. An answer without such a verdict is wrong and is counted, never guessed at.
"""

import argparse
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from common.base_model import readable_tokens
from common.card import extend_model_card
from common.conversation import DataError
from common.files import said_of_earlier, write_text
from common.generation import answer_prompts, batches_of, begun_answer
from common.logits import CHUNK
from common.page.page import Page, explained, write_page
from common.parquet import write_rows
from common.report import Table, draw, format_value
from common.tokenizer import ensure_pad_token, load_tokenizer

from .dataset import Example, encode_conversations, load_conversations
from .loss import token_losses
from .page import BASELINES, conversation_examples, conversation_pictures

RESULTS = ("loss", "token_accuracy", "accuracy", "parse_rate")  # for the hub, of each kind of verdict
MOST_VERDICTS = 25  # different ones that a judge's data holds, if they are words; answers to questions are many more
LONGEST_VERDICT = 60  # characters
NO_TAG = "verdict"  # the kind of those that stand between no tags
TIMES_AGAIN = 4  # how often such a verdict comes again, on average
# options that a run's settings set, unless the command does; else these values
USUAL = {"max_length": None, "truncation": "error", "on_bad_row": "error", "turns": "all", "trust_remote_code": False}


def token_metrics(measured: list[np.ndarray]) -> dict[str, float]:
    """Return how well a model knows the trained tokens of conversations.

    Args:
        measured: for each conversation (2, trained tokens): each token's loss in nats, and 1 if it is the most probable
            one, else 0.

    Returns:
        conversations: how many there are; trained_tokens: how many tokens of the assistant are in them. Over all these
        tokens, each weighing the same: loss, in nats; perplexity, e to the loss; token_accuracy: how often the token is
        the one that the model finds most probable.
    """
    losses, correct = np.concatenate(measured, axis=1).astype(np.float64)
    return {
        "conversations": len(measured),
        "trained_tokens": losses.size,
        "loss": float(losses.mean()),
        "perplexity": float(np.exp(losses.mean())),
        "token_accuracy": float(correct.mean()),
    }


def split_answer(text: str) -> tuple[str, str] | None:
    """Return what an answer ends with, behind its closed reasoning, as (kind, verdict); None if it has no such end.

    `<score>3</score>` is ("score", "3"); an end without a tag is of the kind `NO_TAG`.
    """
    reasoning, closing, end = text.partition("</think>")
    # an empty think block first is a chat template's, which switches thinking off; the model may think all the same
    if reasoning.strip() in ("", "<think>") and end.lstrip().startswith("<think>"):
        reasoning, closing, end = end.partition("</think>")
    if not closing or "<think>" in reasoning.lstrip().removeprefix("<think>"):
        return None
    end = end.strip()
    if not end:
        return None
    tagged = re.fullmatch(r"<(\w+)>([^<>]+)</\1>", end)
    return (tagged[1], tagged[2]) if tagged else (NO_TAG, end)


def find_judgements(rows: Iterable[dict]) -> dict[str, list[tuple[dict, str]]]:
    """Return, by kind, the rows whose last turn ends with a verdict, each with that verdict.

    Only if they are a judge's. Between tags, verdicts are numbers, or a few different words. Without a tag, they are a
    few different short texts that come again and again.
    """
    found: dict[str, list[tuple[dict, str]]] = {}
    for row in rows:
        if (end := split_answer(row["messages"][-1]["content"])) and len(end[1]) <= LONGEST_VERDICT:
            found.setdefault(end[0], []).append((row, end[1]))
    return {kind: judgements for kind, judgements in found.items() if _are_verdicts(kind, judgements)}


def _are_verdicts(kind: str, judgements: list[tuple[dict, str]]) -> bool:
    different = {verdict for _, verdict in judgements}
    if kind == NO_TAG:
        return len(different) <= MOST_VERDICTS and len(judgements) >= TIMES_AGAIN * len(different)
    return len(different) <= MOST_VERDICTS or are_numbers(different)


def verdict_metrics(labels: list[str], verdicts: list[str | None]) -> dict[str, float]:
    """Return how often a judge's answers have a verdict, and how often it is the label.

    Args:
        labels: the right verdicts, all of one kind.
        verdicts: the judge's, None if its answer has none.

    Returns:
        rows; parse_rate: share of answers with a verdict. accuracy: share of all rows with the right verdict, a missing
        one being wrong. majority_accuracy: what always giving the most frequent label reaches. For numbers also
        within_one, over all rows, and mean_error, |verdict - label| over the rows with a verdict; for words recall_X,
        over the rows with the label X.
    """
    rows, counts = len(labels), Counter(labels)
    right = Counter(label for label, verdict in zip(labels, verdicts) if verdict == label)
    metrics = {
        "rows": rows,
        "parse_rate": sum(verdict is not None for verdict in verdicts) / rows,
        "accuracy": right.total() / rows,
        "majority_accuracy": max(counts.values()) / rows,
    }
    if not are_numbers(labels):
        return metrics | {f"recall_{label}": right[label] / counts[label] for label in sorted(counts)}
    errors = [abs(float(verdict) - float(label)) for label, verdict in zip(labels, verdicts) if verdict is not None]
    metrics["within_one"] = sum(error <= 1 for error in errors) / rows
    if errors:
        metrics["mean_error"] = sum(errors) / len(errors)
    return metrics


def are_numbers(labels: Iterable[str]) -> bool:
    return all(re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", label) for label in labels)


def confusion(labels: list[str], verdicts: list[str | None], title: str) -> Table:
    """Return how often each label and each verdict came together: one row a label, "no verdict" the last column."""
    order = float if are_numbers(labels) else str
    values, said = sorted(set(labels), key=order), sorted({*labels, *verdicts} - {None}, key=order)
    together = Counter(zip(labels, verdicts))
    counts = [[together[label, verdict] for verdict in (*said, None)] for label in values]
    return Table(title, values, [*said, "no verdict"], counts)


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
                found = []  # of some tokens at a time, as each time their logits are copied, in fp32
                for targets in torch.from_numpy(np.flatnonzero(examples[index].mask)).split(CHUNK):
                    predicted, wanted = logits[line, targets - 1], ids[line, targets].to(model.device)
                    correct = predicted.argmax(dim=1) == wanted
                    found.append(torch.stack([token_losses(predicted, wanted), correct.float()]).cpu())
                measured[index] = torch.cat(found, dim=1).numpy()
            progress.update(len(batch))
    return measured


def judge_rows(
    model, tokenizer, kind: str, judgements: list[tuple[dict, str]], max_new_tokens: int | None, max_tokens: int
) -> list[dict]:
    """Have the model judge rows of a kind by itself; return each with its label, verdict, prompt and answer."""
    rows, labels = zip(*judgements)
    template = {"tokenize": False, "add_generation_prompt": True}
    prompts = [tokenizer.apply_chat_template(row["messages"][:-1], **template) for row in rows]
    given = tokenizer([row["messages"][-1]["content"] for row in rows])["input_ids"]
    room = max_new_tokens or 2 * max(map(len, given))
    answers = [text for (text,) in answer_prompts(model, tokenizer, prompts, room, max_tokens)]
    judged = []
    for row, label, prompt, text in zip(rows, labels, prompts, answers):
        found, verdict = split_answer(begun_answer(prompt) + text) or (None, None)
        # an end that no row has is a verdict only between tags, as a number among numbers
        known = found == kind and (verdict in labels or (kind != NO_TAG and are_numbers([verdict, *labels])))
        columns = {"kind": kind, "label": label, "verdict": verdict if known else None}
        judged.append({"source": row["source"], **columns, "prompt": prompt, "answer": text})
    return judged


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Perplexity of a language model, and its verdicts on a judge's data.")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    parser.add_argument("--data", required=True, help="Parquet with messages")
    parser.add_argument("--output", help="folder for evaluation_*.html, .json …; default: beside the checkpoint")
    parser.add_argument("--max-length", type=int, help="tokens; default: what the model can take")
    parser.add_argument("--truncation", choices=("error", "drop", "left"), help="default: error")
    parser.add_argument("--on-bad-row", choices=("error", "drop"), help="default: error")
    parser.add_argument("--turns", choices=("all", "last"), help="assistant turns that are measured; default: all")
    parser.add_argument("--max-new-tokens", type=int, help="of an answer; default: twice the longest in the data")
    parser.add_argument("--max-tokens", type=int, default=16384, help="tokens in memory at a time, padding included")
    parser.add_argument("--card", action="store_true", help="add the figures to the checkpoint's model card")
    parser.add_argument("--trust-remote-code", action="store_true", default=None)
    parser.add_argument("--settings", type=Path, help="a run's settings.yaml: measure as it did, leave out what it did")
    options = parser.parse_args()
    usual = dict(USUAL)
    if options.settings:
        run = OmegaConf.load(options.settings)
        usual |= {name: run.data[name] for name in ("max_length", "truncation", "on_bad_row", "turns")}
        usual["trust_remote_code"] = run.model.trust_remote_code
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.card and not Path(options.model).is_dir():
        raise DataError(f"--card writes into the checkpoint's folder, and {options.model} is not a folder")
    return options


def main() -> None:
    options = read_options()
    rows, bad = load_conversations(options.data, options.on_bad_row)
    from transformers import AutoModelForCausalLM

    # 1. How well it continues the conversations
    trust = {"trust_remote_code": options.trust_remote_code}
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    tokenizer = load_tokenizer(options.model, **trust)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, **trust).to(device).eval()
    embeddings = model.config.get_text_config().vocab_size
    ensure_pad_token(tokenizer, embeddings)
    longest = min(filter(None, (options.max_length, readable_tokens(model.config))), default=sys.maxsize)
    limits = (longest, options.truncation, options.on_bad_row, options.turns, embeddings)
    examples, cut = encode_conversations(rows, tokenizer, *limits)
    # all logits of a batch at once, so batches a quarter the size
    token_values = measure_tokens(model, examples, tokenizer.pad_token_id, options.max_tokens // 4)
    metrics = token_metrics(token_values)

    # 2. What it says by itself
    tables, judged, measured = [], [], {example.source for example in examples}
    for kind, judgements in find_judgements(row for row in rows if row["source"] in measured).items():
        of_kind = judge_rows(model, tokenizer, kind, judgements, options.max_new_tokens, options.max_tokens)
        labels, verdicts = [row["label"] for row in of_kind], [row["verdict"] for row in of_kind]
        metrics |= {f"{kind}/{name}": value for name, value in verdict_metrics(labels, verdicts).items()}
        tables.append(confusion(labels, verdicts, f"{kind}: label (row), verdict (column)"))
        judged += of_kind
        if not any(verdicts):
            print(f"{kind}: no answer of the model ends with a verdict. Train it for longer: trainer.total_epochs=…")
    reasoned = sum(bool(split_answer(row["messages"][-1]["content"])) for row in rows if row["source"] in measured)
    if reasoned > len(judged):
        print(f"{reasoned - len(judged)} last turns reason, but do not end with one of a few verdicts: not judged")
    if judged and len(judged) < len(examples):
        metrics["conversations_without_a_verdict"] = len(examples) - len(judged)  # measured, not judged

    # 3. What people read
    for name, value in metrics.items():
        print(f"{name:28} {format_value(value)}")
    for kind, count in (bad + cut).items():
        print(f"set aside: {count} x {kind}")
    beside = Path(options.model).parent if Path(options.model).is_dir() else Path.cwd()
    output, name = Path(options.output or beside), f"evaluation_{Path(options.data).stem}"
    output.mkdir(parents=True, exist_ok=True)
    said = said_of_earlier(output / f"{name}.json")
    write_text(output / f"{name}.json", json.dumps(metrics | {"set_aside": dict(bad + cut)}, indent=1))
    if judged:
        write_rows(output / f"{name}.parquet", judged)
        draw(output / f"{name}.png", tables)
    split, texts = Path(options.data).stem, {row["source"]: row for row in rows}
    page = Page(
        title=f"Language model on {Path(options.data).name}",
        about={"model": options.model, "data": options.data, "turns": options.turns},
        figures={split: metrics},
        baselines=BASELINES,
        left_out={split: bad + cut},
        pictures=conversation_pictures(split, examples, token_values),
        examples=[conversation_examples(split, examples, token_values, texts, judged)],
        meaning=explained(token_metrics, *([verdict_metrics] if judged else [])),
        rest=f"All conversations are in {Path(options.data).name}, by their source.",
    )
    write_page(output / f"{name}.html", page)
    print(f"written: {output}/{name}.*{said}")
    print(f"what it gets wrong: open {output}/{name}.html in a browser")
    if options.card:
        if judged:
            draw(Path(options.model) / f"{name}.png", tables)
        title, picture = f"Measured on {Path(options.data).name}", f"{name}.png"
        results = [each for each in metrics if each.rpartition("/")[2] in RESULTS]
        extend_model_card(Path(options.model), title, metrics, picture, results, options.data)


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except DataError as error:
        raise SystemExit(f"evaluate.py: {error}") from None
