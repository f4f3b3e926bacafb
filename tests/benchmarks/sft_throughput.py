"""Supervised fine-tuning measured against TRL's SFTTrainer: tokens per second, memory, and the same losses.

    python tests/benchmarks/sft_throughput.py --trl-python /path/to/venv/bin/python --data conversations.parquet

A token counts if it is a conversation's own, trained on or not; padding does not. Both sides run as a user would start
them, in turns: ours through Ray and verl, TRL in an environment of its own. Equal: rows and their order, initial
weights, the tokens trained on (the assistant's), the loss as a mean over the batch's trained tokens, batch, fp32 on one
CPU thread, fused AdamW and its numbers, a constant rate, no conversation cut, no gradient checkpointing (which TRL does
by default) unless asked for. How it is timed: measure.py.

Not equal: batching, which is what is measured, TRL's in every way that runs on a CPU and keeps the rows of a step
together, and packing; where logits are computed (here: only before trained tokens; TRL on a CPU: everywhere); and
weight decay (TRL: not of norms; here: of all weights).
"""

import argparse
import random
import statistics
from functools import partial
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

MAX_LENGTH = 1500  # tokens; longer conversations are left out
# in a profile: how many exchanges, (tokens of a user's turn), (tokens of an assistant's turn). "judge" stands in where
# --data is not given: a long prompt with what is to be judged, a short judgement
PROFILES = {"judge": ((1, 1), (250, 1250), (60, 250)), "chat": ((2, 5), (10, 50), (50, 220))}
MARKUP = 4  # tokens that the chat template adds to a turn
# TRL's batching. The first three compute the very batches of ours; "grouped" (by length) and packing put other
# conversations into a step. "padding-free" and "packed" need no flash attention to be right: transformers keeps the
# conversations apart by their positions, at the price of a mask over the whole row, squared. "wrapped" cuts
# conversations in two and lets them see one another, so it is another training, not only a faster one
MODES = {
    "padded": {},
    "padding-free": {"padding_free": True},
    "one by one": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": BATCH},
    "grouped": {"train_sampling_strategy": "group_by_length"},
    "packed": {"packing": True, "packing_strategy": "bfd"},
    "wrapped": {"packing": True, "packing_strategy": "wrapped"},
}
DEFAULT_MODES = ["padded", "padding-free", "one by one", "packed"]


def synthetic_rows(profile: str, count: int) -> list[dict]:
    """Make conversations of one-token words; the assistant uses two thirds of them, so there is something to learn."""
    draw, words = random.Random(SEED), word_list()
    exchanges, *lengths = PROFILES[profile]
    vocabularies, rows = (words, words[len(words) // 3 :]), []
    for _ in range(count):
        messages = []
        for turn in range(2 * draw.randint(*exchanges)):
            size = draw.randint(*lengths[turn % 2]) - MARKUP
            content = " ".join(draw.choices(vocabularies[turn % 2], k=size))
            messages.append({"role": ("user", "assistant")[turn % 2], "content": content})
        rows.append({"messages": messages})
    return rows


def mark_turns(template: str) -> str:
    """Return the chat template with the assistant's turns marked as TRL wants them; it renders the same text."""
    turn = "content + '<|im_end|>'"
    marked = f"{{% generation %}}{{{{- {turn} }}}}{{% endgeneration %}}"
    either = f"{{%- if message.role == 'assistant' %}}{marked}{{%- else %}}{{{{- {turn} }}}}{{%- endif %}}"
    return template.replace("+ content + '<|im_end|>\\n' }}", f"}}}}{either}{{{{- '\\n' }}}}")


def prepare(folder: Path, profile: str, options: argparse.Namespace) -> dict:
    """Write what both sides read, and say what is in it."""
    from transformers import Qwen3ForCausalLM

    from common.parquet import write_rows
    from sft.dataset import encode_conversations, load_conversations

    data = profile == "judge" and options.data
    data = data or write_rows(folder / "data.parquet", synthetic_rows(profile, options.steps * BATCH))
    rows, _ = load_conversations(data, "drop")
    tokenizer = train_tokenizer(turn for row in rows for turn in row["messages"])
    examples = sample(encode_conversations(rows, tokenizer, MAX_LENGTH, "drop", "drop")[0], options)
    by_source = {row["source"]: {"messages": row["messages"]} for row in rows}
    chosen_rows = [by_source[example.source] for example in examples]
    order = write_inputs(folder, chosen_rows, tokenizer, Qwen3ForCausalLM)
    marked = mark_turns(tokenizer.chat_template)
    for row in chosen_rows:
        texts = {
            tokenizer.apply_chat_template(row["messages"], chat_template=template, tokenize=False)
            for template in (None, marked)
        }
        assert "{% generation %}" in marked and len(texts) == 1, "TRL's chat template renders another text"
    (folder / "marked.jinja").write_text(marked)
    lengths = [example.tokens for example in examples]
    own = statistics.mean(lengths)
    (folder / "packed_rows").write_text(str(max(1, round(BATCH * own / MAX_LENGTH))))
    computed = {OURS: own, **{trl_name(mode): own for mode in MODES}, trl_name("padded"): padded_tokens(lengths, order)}
    del computed[trl_name("grouped")]  # known only to TRL
    return {
        "tokens of a conversation, quartiles": statistics.quantiles(lengths),
        "trained on": sum(int(example.mask.sum()) for example in examples) / sum(lengths),
        "tokens computed, a conversation": computed,
    }


def trl_name(mode: str) -> str:
    return f"TRL {mode}"


def run_ours(folder: Path, output: Path, options: argparse.Namespace) -> list[str]:
    more = f"data.max_length={MAX_LENGTH} data.template_options={{}}"
    return our_command("sft", folder, output, options, more)


def run_trl(mode: str, folder: Path, output: Path, options: argparse.Namespace) -> list[str]:
    return trl_command(__file__, folder, output, options, "--mode", mode, "--attention", options.attention)


def train_with_trl(options: argparse.Namespace) -> None:
    """Run TRL's trainer; its steps are printed and written as ours are."""
    from trl import SFTConfig, SFTTrainer
    from trl_side import ordered_rows, settings, step_report

    rows, report = ordered_rows(options.folder), step_report(options.output)
    mode = dict(MODES[options.mode])
    if mode.get("packing"):
        # packed by falling length, so drawn at random; as many tokens to a step as in the other modes, one row at a
        # time, as rows together would share one mask
        packed_rows = int((options.folder / "packed_rows").read_text())
        mode |= {"max_length": MAX_LENGTH, "train_sampling_strategy": "random"}
        mode |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": packed_rows}
    data = {"assistant_only_loss": True, "chat_template_path": str(options.folder / "marked.jinja")}
    model = {"model_init_kwargs": {"attn_implementation": options.attention}}
    config = SFTConfig(**{**settings(options), **data, **model, **mode})
    SFTTrainer(str(options.folder / "model"), config, train_dataset=rows, callbacks=[report]).train()


def count_tokens(history: dict) -> list[int]:
    rates, seconds = (history[f"train/{name}"] for name in ("tokens_per_second", "seconds"))
    return [round(rate * time) for (_, rate), (_, time) in zip(rates, seconds)]


def main() -> None:
    data = "Parquet of conversations for the profile 'judge'; without it, synthetic ones"
    parser = make_parser("Measure supervised fine-tuning against TRL's SFTTrainer on a CPU.", PROFILES, data)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=DEFAULT_MODES, help="TRL's batching")
    parser.add_argument("--attention", default="sdpa", help="TRL's attention implementation")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        return train_with_trl(options)
    sides = {OURS: (run_ours, "PackedWorker")}
    sides |= {trl_name(mode): (partial(run_trl, mode), "--role trl") for mode in options.modes}
    compare(prepare, sides, "tokens", count_tokens, options)


if __name__ == "__main__":
    main()
