"""How good is a reward model on held-out pairs? And is it better than counting characters?

    python -m bradley_terry.evaluate --model outputs/checkpoint --data test.parquet

Loads the checkpoint with transformers alone and pads like everyone else, so its figures are what a user of the
checkpoint gets, not what the trainer's own engine reports. The metrics are pure functions, and training calls the same.
A tie is never a win: equal rewards count as wrong and their share is reported.
"""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.conversation import DataError
from common.files import said_of_earlier, write_text
from common.page.page import Page, explained, write_page
from common.pairs import DIFFERENT_PROMPTS
from common.parquet import write_rows
from common.report import Histogram, draw, format_value

from .dataset import Pair, encode_pairs, load_pairs
from .page import BASELINES, pair_examples, pair_pictures
from .reward_model import batches_of, load_reading, load_reward_model

CALIBRATION_BINS = 10


def pair_metrics(rewards: np.ndarray, pairs: list[Pair]) -> dict[str, float]:
    """Return accuracy, margins, calibration, and accuracy by length and by labelled margin.

    Args:
        rewards: (pairs, 2), chosen then rejected.

    Returns:
        accuracy: share of pairs with r_chosen > r_rejected; tie_rate: share with equal rewards.
        longer_wins_accuracy: what "the answer with more tokens is better" scores, equal lengths counting one half.
        majority_accuracy: what a constant scorer reaches. A pair has no order, so neither answer is the more
            frequent class, and guessing gets one half.
        accuracy_chosen_longer, accuracy_chosen_shorter: a model that learned length is good at one of them only.
        accuracy_short_quarter, accuracy_long_quarter: over the pairs with the fewest and the most tokens.
        accuracy_margin_X: by the data's `margin` column, if it holds at most ten different values above 0.
        margin_mean, margin_std: of r_chosen - r_rejected; log_loss: -log σ of it;
        calibration_error: mean gap between the confidence σ(|margin|) and how often it is right, over ten bins.
    """
    margin = rewards[:, 0].astype(np.float64) - rewards[:, 1]
    correct = margin > 0
    length_gap = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs])
    tokens = np.array([pair.tokens for pair in pairs])
    quarter = np.quantile(tokens, [0.25, 0.75])
    subsets = {
        "accuracy_chosen_longer": length_gap > 0,
        "accuracy_chosen_shorter": length_gap < 0,
        "accuracy_short_quarter": tokens <= quarter[0],
        "accuracy_long_quarter": tokens >= quarter[1],
    }
    labels = np.array([pair.margin for pair in pairs])
    values = sorted(set(labels[labels > 0].tolist()))
    if 1 < len(values) <= 10:
        subsets |= {f"accuracy_margin_{value:g}": labels == value for value in values}
    return {
        "pairs": len(pairs),
        "accuracy": float(correct.mean()),
        "tie_rate": float((margin == 0).mean()),
        "longer_wins_accuracy": float((length_gap > 0).mean() + 0.5 * (length_gap == 0).mean()),
        "majority_accuracy": 0.5,
        "margin_mean": float(margin.mean()),
        "margin_std": float(margin.std()),
        "log_loss": float(np.logaddexp(0, -margin).mean()),
        "calibration_error": calibration_error(margin),
        **{name: float(correct[chosen].mean()) for name, chosen in subsets.items() if chosen.any()},
    }


def calibration_error(margin: np.ndarray) -> float:
    """Return the expected calibration error of P(chosen > rejected) = σ(margin) over ten equal bins of confidence."""
    confidence = 1 / (1 + np.exp(-np.abs(margin)))  # in [0.5, 1]
    bins = np.minimum(((confidence - 0.5) * 2 * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [
        abs(confidence[bins == number].mean() - (margin[bins == number] > 0).mean()) * (bins == number).mean()
        for number in np.unique(bins)
    ]
    return float(np.sum(gaps))


@torch.inference_mode()
def score_pairs(model, pairs: list[Pair], pad_token_id: int, max_tokens: int) -> np.ndarray:
    """Score pairs with a plain transformers classifier: right-padded batches of similar length.

    Args:
        max_tokens: padded tokens per batch.

    Returns:
        (pairs, 2) float32, chosen then rejected.
    """
    model.config.get_text_config().pad_token_id = pad_token_id  # transformers scores the last token that is not this
    sequences = [np.concatenate([pair.prompt, branch]) for pair in pairs for branch in (pair.chosen, pair.rejected)]
    rewards = np.empty(len(sequences), dtype=np.float32)
    with tqdm(total=len(sequences), desc="score", unit="text") as progress:
        for batch in batches_of([len(sequence) for sequence in sequences], max_tokens):
            lengths = torch.tensor([len(sequences[index]) for index in batch])
            ids = torch.full((len(batch), int(lengths.max())), pad_token_id)
            for line, index in enumerate(batch):
                ids[line, : lengths[line]] = torch.from_numpy(sequences[index])
            mask = torch.arange(ids.shape[1]) < lengths[:, None]
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
            rewards[batch] = logits[:, 0].float().cpu().numpy()
            progress.update(len(batch))
    return rewards.reshape(-1, 2)


def save_rewards(path: Path, pairs: list[Pair], rewards: np.ndarray) -> None:
    """Keep the two rewards of every pair, to look at the ones the model gets wrong."""
    rows = zip((pair.source for pair in pairs), *rewards.T.tolist())
    columns = [dict(zip(("source", "chosen", "rejected"), row)) for row in rows]
    if columns:
        write_rows(path, columns)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pair accuracy of a reward model, beside its baselines.")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    parser.add_argument("--data", required=True, help="Parquet with chosen and rejected")
    parser.add_argument("--output", help="folder for evaluation_*.html, .json …; default: beside the checkpoint")
    parser.add_argument("--max-length", type=int, help="tokens; default: what the model can take")
    parser.add_argument("--truncation", default="error", choices=("error", "drop", "left"))
    parser.add_argument("--on-bad-row", default="error", choices=("error", "drop"))
    parser.add_argument("--different-prompts", default="error", choices=DIFFERENT_PROMPTS, help="of the two sides")
    parser.add_argument("--max-tokens", type=int, default=16384, help="padded tokens per batch")
    parser.add_argument("--trust-remote-code", action="store_true")
    options = parser.parse_args()

    rows, bad = load_pairs(options.data, options.on_bad_row, options.different_prompts)
    reading = load_reading(options.model, options.trust_remote_code)
    max_length = min(reading.longest, options.max_length or reading.longest)
    limits = (max_length, options.truncation, options.on_bad_row, reading.embeddings)
    pairs, cut = encode_pairs(rows, reading.tokenizer, *limits)
    model, _ = load_reward_model(options.model, packed=False, trust_remote_code=options.trust_remote_code)
    rewards = score_pairs(model, pairs, reading.tokenizer.pad_token_id, options.max_tokens)
    figures, set_aside = pair_metrics(rewards, pairs), bad + cut
    metrics = figures | {"set_aside": dict(set_aside)}
    for name, value in metrics.items():
        print(f"{name:28} {format_value(value)}")
    beside = Path(options.model).parent if Path(options.model).is_dir() else Path.cwd()
    output = Path(options.output or beside)
    output.mkdir(parents=True, exist_ok=True)
    name = Path(options.data).stem
    said = said_of_earlier(output / f"evaluation_{name}.json")
    write_text(output / f"evaluation_{name}.json", json.dumps(metrics, indent=1))
    save_rewards(output / f"evaluation_{name}.parquet", pairs, rewards)
    sides = {"chosen": rewards[:, 0].tolist(), "rejected": rewards[:, 1].tolist()}
    margins = {"margin": (rewards[:, 0] - rewards[:, 1]).tolist()}
    panels = [Histogram("reward", sides, "answers"), Histogram("chosen - rejected", margins, "pairs")]
    draw(output / f"evaluation_{name}.png", panels)
    texts = {row["source"]: row for row in rows}
    page = Page(
        title=f"Reward model on {Path(options.data).name}",
        about={"model": options.model, "data": options.data, "longest pair, tokens": max_length},
        figures={name: figures},
        baselines=BASELINES,
        left_out={name: set_aside},
        pictures=pair_pictures(name, pairs, rewards, texts),
        examples=[pair_examples(name, pairs, rewards, texts)],
        meaning=explained(pair_metrics),
        rest=f"All rewards are in evaluation_{name}.parquet, the texts in {Path(options.data).name}, by their source.",
    )
    write_page(output / f"evaluation_{name}.html", page)
    print(f"written: {output}/evaluation_{name}.json, .parquet and .png{said}")
    print(f"what it gets wrong: open {output}/evaluation_{name}.html in a browser")


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except DataError as error:
        raise SystemExit(f"evaluate.py: {error}") from None
