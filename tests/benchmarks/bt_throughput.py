"""Bradley-Terry training measured against TRL's RewardTrainer: pairs per second, memory, and the same losses.

    python tests/benchmarks/bt_throughput.py --trl-python /path/to/venv/bin/python --data pairs.parquet

Both sides run as a user would start them, in turns: ours through Ray and verl, TRL in an environment of its own. Equal:
rows and their order, initial weights with the reward head, batch, fp32 on one CPU thread, AdamW's numbers, a constant
rate, no dropout, no pair cut, no gradient checkpointing (which TRL does by default) unless asked for, fused AdamW. How
it is timed: measure.py.

Not equal: batching, which is what is measured (TRL pads to the longest of the batch), and weight decay (TRL: not of
norms; here: of all weights).
"""

import argparse
import random
import statistics
from pathlib import Path

from measure import (
    BATCH,
    OURS,
    SEED,
    compare,
    make_parser,
    our_command,
    padded_tokens,
    sample,
    train_tokenizer,
    trl_command,
    word_list,
    write_inputs,
)

MAX_LENGTH = 2048  # tokens; longer pairs are left out
# the kinds of pairs in a profile, as (tokens of a prompt), (tokens of an answer). "real" stands in where --data is not
# given: a third short instructions, two thirds questions about a passage, as in public sets of human preferences
SHORT, PASSAGE = ((20, 150), (10, 200)), ((700, 1250), (10, 200))
PROFILES = {"real": [SHORT, PASSAGE, PASSAGE], "long": [((300, 800), (20, 100))], "short": [((10, 60), (50, 300))]}
PROMPT_MARKUP, ANSWER_MARKUP = 8, 2  # tokens that the chat template adds
TRL = "TRL"


def synthetic_rows(kinds: list, count: int) -> list[dict]:
    """Make pairs of one-token words; chosen and rejected share a third of them, so there is something to learn."""
    draw, words = random.Random(SEED), word_list()
    third, rows = len(words) // 3, []
    for prompt_tokens, answer_tokens in draw.choices(kinds, k=count):
        prompt = " ".join(draw.choices(words, k=draw.randint(*prompt_tokens) - PROMPT_MARKUP))
        rows.append({})
        for side, vocabulary in (("chosen", words[:-third]), ("rejected", words[third:])):
            answer = " ".join(draw.choices(vocabulary, k=draw.randint(*answer_tokens) - ANSWER_MARKUP))
            rows[-1][side] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return rows


def prepare(folder: Path, profile: str, options: argparse.Namespace) -> dict:
    """Write what both sides read, and say what is in it."""
    from transformers import Qwen3ForSequenceClassification

    from bradley_terry.dataset import encode_pairs, load_pairs
    from common.parquet import write_rows

    data = profile == "real" and options.data
    data = data or write_rows(folder / "data.parquet", synthetic_rows(PROFILES[profile], options.steps * BATCH))
    rows, _ = load_pairs(data, "drop")
    tokenizer = train_tokenizer(turn for row in rows for side in ("chosen", "rejected") for turn in row[side])
    pairs = sample(encode_pairs(rows, tokenizer, MAX_LENGTH, "drop", "drop")[0], options)
    by_source = {row["source"]: {side: row[side] for side in ("chosen", "rejected")} for row in rows}
    chosen_rows = [by_source[pair.source] for pair in pairs]
    order = write_inputs(folder, chosen_rows, tokenizer, Qwen3ForSequenceClassification, num_labels=1)
    padded = 2 * padded_tokens([pair.longest for pair in pairs], order)
    prompt = statistics.quantiles([len(pair.prompt) for pair in pairs])
    answer = statistics.quantiles([len(part) for pair in pairs for part in (pair.chosen, pair.rejected)])
    computed = {OURS: statistics.mean(pair.tokens for pair in pairs), TRL: padded}
    return {"prompt tokens, quartiles": prompt, "answer tokens": answer, "tokens computed, a pair": computed}


def run_ours(folder: Path, output: Path, options: argparse.Namespace) -> list[str]:
    more = f"data.max_length={MAX_LENGTH} loss.margin_scale=0 loss.centering=0"
    return our_command("bradley_terry", folder, output, options, more)


def run_trl(folder: Path, output: Path, options: argparse.Namespace) -> list[str]:
    return trl_command(__file__, folder, output, options)


def train_with_trl(options: argparse.Namespace) -> None:
    """Run TRL's trainer; its steps are printed and written as ours are."""
    from trl import RewardConfig, RewardTrainer
    from trl_side import ordered_rows, settings, step_report

    rows, report = ordered_rows(options.folder), step_report(options.output)
    config = RewardConfig(**settings(options))
    RewardTrainer(str(options.folder / "model"), config, train_dataset=rows, callbacks=[report]).train()


def main() -> None:
    data = "Parquet of preference pairs for the profile 'real'; without it, synthetic ones"
    parser = make_parser("Measure Bradley-Terry training against TRL's RewardTrainer on a CPU.", PROFILES, data)
    options = parser.parse_args()
    if options.role:
        return train_with_trl(options)
    sides = {OURS: (run_ours, "PackedWorker"), TRL: (run_trl, "--role trl")}
    compare(prepare, sides, "pairs", lambda history: [BATCH] * len(history["train/loss"]), options)


if __name__ == "__main__":
    main()
