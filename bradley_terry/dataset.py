"""One pair, one row, one tree.

The textbook batch holds a preference pair as two padded sequences and so computes the shared prompt twice. Here a
pair is one row of tokens,

    prompt  chosen  rejected            prompt = the longest common token prefix of the two rendered conversations
    0..p-1  p..p+c-1  p..p+r-1          position ids: `rejected` restarts where the prompt ends

and the attention lets `rejected` see the prompt but not `chosen`. A pair therefore cannot be torn apart by
micro-batching, no token is padding, and any chat template works, because the prefix is found, not assumed.

Conversations are rendered by the chat template once and tokenised once; plain text is tokenised as it is. The same
ids result when the finished model scores the same text, which is what makes the two rewards equal.
"""

import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from common.conversation import BadRow, DataError
from common.data_report import CHOSEN_FIRST, Item, dialogue_text
from common.pairs import DIFFERENT_PROMPTS, optional_columns, read_pair, split_texts
from common.parquet import Faults, check_rows, read_rows, report_fault
from common.tokenizer import MessageCheck, check_end, check_tokens, encode_texts, render

TRUNCATIONS = ("error", "drop", "left")
TOKENIZE_AT_ONCE = 512  # rows per call of the tokenizer, which spreads a call over all cores


@dataclass(frozen=True)
class Pair:
    """One preference pair as token ids, and where it came from."""

    prompt: np.ndarray  # (p,) int32; chosen: (c,), rejected: (r,)
    chosen: np.ndarray
    rejected: np.ndarray
    margin: float  # by how much chosen is better, 0 if the data does not say
    source: str

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two conversations: what `max_length` bounds."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def tokens(self) -> int:
        """Tokens of the packed row: what the token budget of a micro-batch counts."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def padded_tokens(self) -> int:
        """Tokens of two padded rows, for a model that cannot be packed."""
        return 2 * self.longest


def check_pair(row: dict, different_prompts: str = "error") -> dict:
    """Read one row's pair and its optional `margin`; raise `BadRow` if it is not a preference.

    A `subset`, the name of a part of the data, is kept for the page. See `common.pairs.read_pair` for the other columns
    and faults.
    """
    chosen, rejected = read_pair(row, different_prompts)
    margin = row.get("margin")
    if margin is None:
        margin = 0.0
    elif isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < float("inf"):
        raise BadRow("margin", "expected a finite number of at least 0", margin)
    subset = row.get("subset")
    if isinstance(subset, bool) or not isinstance(subset, str | int | None):
        raise BadRow("subset", "expected the name of a part of the data, as text or as a whole number", subset)
    named = {} if subset is None else {"subset": str(subset)}
    return {"chosen": chosen, "rejected": rejected, "margin": float(margin), **named}


def prompt_of(row: dict) -> str:
    """Return what both sides of a checked row answer, as text: rows of the same text stay together in a split."""
    chosen, rejected = row["chosen"], row["rejected"]
    if not isinstance(chosen, str):
        return json.dumps(chosen[:-1], sort_keys=True)
    return split_texts(chosen, rejected)[0].strip() or chosen + rejected


def as_item(row: dict) -> Item:
    """Return a checked row as what the report on the data reads."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str):
        prompt, *responses = split_texts(chosen, rejected)
    else:
        prompt, responses = dialogue_text(chosen[:-1]), (chosen[-1]["content"], rejected[-1]["content"])
    return Item(prompt, tuple(responses), CHOSEN_FIRST, row["source"])


def digest_row(row: dict) -> str:
    """Return a short hash of a checked row's two texts: the row's name, whatever file or split it stands in."""
    return hashlib.sha256(json.dumps([row["chosen"], row["rejected"]]).encode()).hexdigest()[:16]


def load_pairs(
    files, on_bad_row: str = "error", different_prompts: str = "error", faults: Faults | None = None
) -> tuple[list[dict], Counter]:
    """Read and check preference pairs; see `common.parquet.read_rows` for arguments and errors."""
    if different_prompts not in DIFFERENT_PROMPTS:
        raise DataError(f"data.different_prompts={different_prompts!r}: expected one of {', '.join(DIFFERENT_PROMPTS)}")

    def check(row: dict) -> dict:
        return check_pair(row, different_prompts)

    return read_rows(files, ("chosen", "rejected"), columns_beside, check, on_bad_row, faults)


def columns_beside(names: list[str]) -> tuple[str, ...]:
    """Return which columns of a file are read if they are there, beside the pair."""
    return (*optional_columns(names), "subset")


def add_texts(row: dict, tokenizer: PreTrainedTokenizerBase, check_messages: MessageCheck) -> dict:
    """Add both sides as the text that is tokenised, under "texts"."""
    sides = [row["chosen"], row["rejected"]]
    if not isinstance(sides[0], str):
        for name, side in zip(("chosen", "rejected"), sides):
            check_messages(name, side)
        sides = [render(tokenizer, side, name) for name, side in zip(("chosen", "rejected"), sides)]
    if sides[0] == sides[1]:
        raise BadRow("rejected", "chosen and rejected are equal once rendered by the chat template", row["rejected"])
    return {**row, "texts": sides}


def shared_prefix(chosen: np.ndarray, rejected: np.ndarray) -> int:
    """Return how many tokens both sides start with, at least one token less than the shorter of them has."""
    most = min(len(chosen), len(rejected)) - 1
    different = np.flatnonzero(chosen[:most] != rejected[:most])
    return int(different[0]) if len(different) else most


def encode_pairs(
    rows: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncation: str,
    on_bad_row: str = "error",
    embeddings: int = sys.maxsize,
    faults: Faults | None = None,
) -> tuple[list[Pair], Counter]:
    """Render, tokenise and cut all pairs.

    Args:
        rows: from `load_pairs`.
        max_length: tokens allowed in the longer conversation of a pair.
        truncation: what happens to longer ones. "error"; "drop"; "left" cuts the shared prompt from its left, the
            same cut for both sides, and drops a pair whose response alone is too long: a response keeps its end.
        embeddings: how many tokens the model knows; a text with another one is a bad row.
        faults: gathers what would be raised about rows.

    Returns:
        The pairs, and a count of what was dropped or cut.

    Raises:
        DataError: no chat template for conversations, or both kinds in one set; bad rows; a pair too long with
            truncation="error"; no pair left.
    """
    if truncation not in TRUNCATIONS:
        raise DataError(f"data.truncation={truncation!r}: expected one of {', '.join(TRUNCATIONS)}")
    plain = is_plain_text(rows, tokenizer)
    check_messages = MessageCheck(tokenizer)
    rows, counts = check_rows(rows, lambda row: add_texts(row, tokenizer, check_messages), on_bad_row, faults)
    tokenise(rows, tokenizer, plain)
    rows, equal = check_rows(rows, lambda row: {"pair": make_pair(row, tokenizer, embeddings)}, on_bad_row, faults)
    counts += equal
    pairs = [row["pair"] for row in rows if row["pair"].longest <= max_length]
    too_long = [row["pair"] for row in rows if row["pair"].longest > max_length]
    if too_long and truncation == "error":
        report_fault(_report_too_long(len(rows), too_long, max_length), faults)
        return pairs, counts
    for pair in too_long:
        excess = pair.longest - max_length
        # a first token that every text has, some models cannot do without
        bos = int(len(pair.prompt) > 0 and pair.prompt[0] == tokenizer.bos_token_id)
        if truncation == "left" and excess <= len(pair.prompt) - bos:
            counts[f"longer than {max_length} tokens, prompt cut"] += 1
            prompt = np.concatenate([pair.prompt[:bos], pair.prompt[bos + excess :]])
            pairs.append(Pair(prompt, pair.chosen, pair.rejected, pair.margin, pair.source))
        else:
            counts[f"longer than {max_length} tokens, dropped"] += 1
    if not pairs and not faults:
        raise DataError(f"no usable pair: all {len(rows)} are longer than data.max_length={max_length} tokens")
    return pairs, counts


def is_plain_text(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the rows are plain text, to which the tokenizer adds its special tokens.

    A chat template writes them itself.

    Raises:
        DataError: plain text and conversations in one set; conversations, and no chat template.
    """
    plain = [isinstance(row["chosen"], str) for row in rows]
    if any(plain) and not all(plain):
        raise DataError(
            "plain text and conversations in one set: only plain text gets the tokenizer's special tokens, "
            "so make two sets of them"
        )
    if not all(plain) and not tokenizer.chat_template:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, but the rows are conversations. Put a "
            "chat_template.jinja beside the model, or use plain-text columns."
        )
    return all(plain)


def tokenise(rows: list[dict], tokenizer: PreTrainedTokenizerBase, special_tokens: bool) -> None:
    """Add to each rendered row the token ids of both sides, under "ids"."""
    with tqdm(total=len(rows), desc="tokenise", unit="pair", delay=1) as progress:
        for start in range(0, len(rows), TOKENIZE_AT_ONCE):
            chunk = rows[start : start + TOKENIZE_AT_ONCE]
            distinct = list({text: None for row in chunk for text in row["texts"]})  # of a ranking, each comes often
            ids_of = dict(zip(distinct, encode_texts(distinct, tokenizer, special_tokens)))
            for row in chunk:
                row["ids"] = [ids_of[text] for text in row["texts"]]
            progress.update(len(chunk))


def make_pair(row: dict, tokenizer: PreTrainedTokenizerBase, embeddings: int) -> Pair:
    """Cut the two tokenised sides of a row into prompt and branches; raise `BadRow` if they cannot be told apart."""
    chosen, rejected = row["ids"]
    if np.array_equal(chosen, rejected):
        raise BadRow("rejected", "chosen and rejected are equal once tokenised", row["texts"][1])
    for name, ids, text in zip(("chosen", "rejected"), row["ids"], row["texts"]):
        check_tokens(name, ids, text, tokenizer, embeddings)
        check_end(name, ids, text, tokenizer)
    shared = shared_prefix(chosen, rejected)
    return Pair(chosen[:shared], chosen[shared:], rejected[shared:], row["margin"], row["source"])


def _report_too_long(total: int, too_long: list[Pair], max_length: int) -> str:
    longest = sorted(too_long, key=lambda pair: -pair.longest)
    shown = [f"  {pair.source}: {pair.longest} tokens" for pair in longest[:5]]
    head = f"{len(too_long)} of {total} pairs are longer than data.max_length={max_length} tokens. The longest:"
    raised = "Raise data.max_length (--max-length) if the model reads more, or set data.truncation (--truncation):"
    return "\n".join([head, *shown, raised, "drop leaves them out, left cuts the start of the prompt."])


def collate(pairs: list[Pair]) -> dict[str, torch.Tensor]:
    """Make the batch that verl's engine cuts into micro-batches.

    A pair with prompt [1 2], chosen [3 4], rejected [5] becomes the row

        input_ids       1 2 3 4 5
        position_ids    0 1 2 3 2
        branch_lengths  [2 2 1]          prompt, chosen, rejected

    Returns:
        input_ids, position_ids: jagged (pairs, tokens); branch_lengths: (pairs, 3); margin: (pairs,);
        place: (pairs,), each pair's number in the batch, by which it is known after the batch was cut;
        loss_mask: (pairs, 1) of ones, which verl sums to count what a batch holds.
    """
    lengths = [(len(pair.prompt), len(pair.chosen), len(pair.rejected)) for pair in pairs]
    ids = [torch.from_numpy(np.concatenate([pair.prompt, pair.chosen, pair.rejected])).long() for pair in pairs]
    positions = [torch.cat([torch.arange(p + c), torch.arange(p, p + r)]) for p, c, r in lengths]
    return {
        "input_ids": torch.nested.as_nested_tensor(ids, layout=torch.jagged),
        "position_ids": torch.nested.as_nested_tensor(positions, layout=torch.jagged),
        "branch_lengths": torch.tensor(lengths),
        "margin": torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
        "place": torch.arange(len(pairs)),
        "loss_mask": torch.ones(len(pairs), 1),
    }


def digest_pairs(pairs: list[Pair]) -> str:
    """Return a short hash of all tokens and margins, to tell whether two runs train on the same pairs."""
    total = hashlib.sha256()
    for pair in pairs:
        sides = (pair.prompt, pair.chosen, pair.rejected)
        parts = (*sides, np.array([*map(len, sides)], dtype=np.int32), np.float32(pair.margin))
        total.update(b"".join(part.tobytes() for part in parts))
    return total.hexdigest()[:16]


def describe(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> str:
    """Show a pair as the model sees it, its branches marked."""
    parts = {"both start with": pair.prompt, "chosen goes on": pair.chosen, "rejected goes on": pair.rejected}
    return "\n".join(f"[{name}, tokens: {len(ids)}]\n{tokenizer.decode(ids)}" for name, ids in parts.items())


def report_pairs(name: str, pairs: list[Pair], set_aside: Counter) -> None:
    """Print what is trained on, and what was set aside and why."""
    if not pairs:
        print(f"{name}: no pairs")
        return
    tokens, prompts = sum(pair.tokens for pair in pairs), sum(len(pair.prompt) for pair in pairs)
    print(
        f"{name}: {len(pairs)} pairs, {tokens / len(pairs):.0f} tokens a pair, longest {max(p.longest for p in pairs)}"
    )
    print(f"  computing each prompt once saves {prompts / (tokens + prompts):.0%} of the tokens")
    for kind, count in set_aside.items():
        print(f"  set aside or cut: {count} x {kind}")
