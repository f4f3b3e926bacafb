"""One conversation, rendered and tokenised once, with a mask over the tokens that the assistant has to write.

    <|im_start|>user\\nWhy?<|im_end|>\\n<|im_start|>assistant\\nBecause.<|im_end|>\\n
                                                              -----------------  trained on

The end-of-turn token is trained on, or the model would never stop; how the turns are found is in turns.py. Nothing is
padded: conversations lie behind one another in one row, and `common/attention.py` keeps them apart. A textbook packer
cuts conversations in two to fill rows of equal length; here each stays whole, and a row is as long as it gets.
"""

import hashlib
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from common.conversation import BadRow, Conversation, DataError, check_last_turn, is_blank, read_messages, unwrap
from common.data_report import Item, dialogue_text
from common.generation import CLOSING, THINKING
from common.pairs import add_system, check_columns, prompt_columns
from common.parquet import Faults, check_rows, list_counts, read_rows, report_fault
from common.tokenizer import MessageCheck, check_tokens, render, special_tokens

from .turns import find_seam, find_turns, mask_turns

TRUNCATIONS = ("error", "drop", "left")
TURNS = ("all", "last")
NOT_GENERATED = "an earlier turn that the generation prompt would begin otherwise, not trained on"
NOT_SHOWN = "an earlier turn whose thinking the chat template leaves out"
WEIGHTS = ("weight", "train", "loss")  # of a message: 0 or false leaves an assistant's turn out of the training
TOKENIZE_AT_ONCE = 512  # rows per call of the tokenizer, which spreads a call over all cores


@dataclass(frozen=True)
class Example:
    """One conversation as token ids, and which of them are trained on."""

    ids: np.ndarray  # (n,) int32
    mask: np.ndarray  # (n,) bool: the assistant's tokens, end-of-turn included
    source: str

    @property
    def tokens(self) -> int:
        """What `max_length` bounds and the token budget of a micro-batch counts."""
        return len(self.ids)

    @property
    def padded_tokens(self) -> int:
        """Tokens of its padded row, for a model that cannot be packed."""
        return len(self.ids)

    @property
    def end_of_turn(self) -> int:
        """The token that ends the assistant's last turn."""
        return int(self.ids[np.flatnonzero(self.mask)[-1]])


def check_conversation(row: dict) -> dict:
    """Read one row's `messages`; raise `BadRow` if there is nothing to learn from.

    Returns:
        The messages; and under "trained", for each assistant turn, whether it is trained on.
    """
    given = unwrap("messages", row["messages"])
    messages = read_messages("messages", given)
    if isinstance(messages, str):
        raise BadRow("messages", "expected a list of messages or JSON text of one, found plain text", messages)
    trained = read_weights(given)
    answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    if not answers:
        raise BadRow("messages", "no assistant turn", messages)
    check_last_turn("messages", messages)
    if any(is_blank(answer) for answer in answers):
        raise BadRow("messages", "an empty assistant turn")
    if not any(trained):
        raise BadRow("messages", f"no assistant turn is trained on: all have {', '.join(WEIGHTS)} of 0 or false")
    if row.get("system"):
        messages = add_system(row["system"], "messages", messages)
    check_columns(row, ("messages", "system"), messages)
    return {"messages": messages, "trained": trained}


def read_weights(messages: list[dict]) -> list[bool]:
    """Return for each assistant turn whether it is trained on: not if its `weight`, `train` or `loss` is 0 or false.

    Raises:
        BadRow: another weight than 0 and 1; two that contradict each other; a turn of someone else to train on.
    """
    trained = []
    for message in messages:
        found = {name: message[name] for name in WEIGHTS if message.get(name) is not None}
        if any(not isinstance(weight, bool | int | float) or weight not in (0, 1) for weight in found.values()):
            raise BadRow("messages", "a turn's weight is 0 or 1, or false or true", found)
        if len(set(map(bool, found.values()))) > 1:
            raise BadRow("messages", "weights of a turn that contradict each other", found)
        wanted = all(found.values())
        if message["role"] == "assistant":
            trained.append(wanted)
        elif found and wanted:
            raise BadRow("messages", f"a turn of the {message['role']} to train on; only the assistant's are", found)
    return trained


def load_conversations(files, on_bad_row: str = "error", faults: Faults | None = None) -> tuple[list[dict], Counter]:
    """Read and check conversations; see `common.parquet.read_rows` for arguments and errors."""
    return read_rows(files, ("messages",), prompt_columns, check_conversation, on_bad_row, faults, WEIGHTS)


def prompt_of(row: dict) -> str:
    """Return what a checked row's last turn answers, as text: rows of the same text stay together in a split."""
    return json.dumps(row["messages"][:-1], sort_keys=True)


def as_item(row: dict) -> Item:
    """Return a checked row as what the report on the data reads."""
    return Item(dialogue_text(row["messages"][:-1]), (row["messages"][-1]["content"],), None, row["source"])


def encode_conversations(
    rows: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncation: str,
    on_bad_row: str = "error",
    turns: str = "all",
    embeddings: int = sys.maxsize,
    faults: Faults | None = None,
) -> tuple[list[Example], Counter]:
    """Render, tokenise, mask and cut all conversations.

    Args:
        rows: from `load_conversations`.
        max_length: tokens allowed in a conversation.
        truncation: what happens to longer ones. "error"; "drop"; "left" cuts the start, trains on the assistant turns
            that are still whole, and drops a conversation that has none left.
        turns: "all" assistant turns are trained on, or the "last" one of each conversation.
        embeddings: how many tokens the model knows; a conversation with another one is a bad row.
        faults: gathers what would be raised about rows.

    Returns:
        The examples, and a count of what was dropped or cut.

    Raises:
        DataError: no chat template, or a tokenizer that does not say where tokens stand; bad rows; a conversation too
            long with truncation="error"; no conversation left.
    """
    if truncation not in TRUNCATIONS:
        raise DataError(f"data.truncation={truncation!r}: expected one of {', '.join(TRUNCATIONS)}")
    if turns not in TURNS:
        raise DataError(f"data.turns={turns!r}: expected one of {', '.join(TURNS)}")
    if not tokenizer.chat_template:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template. Put a chat_template.jinja beside the model."
        )
    if not tokenizer.is_fast:
        raise DataError(
            f"{tokenizer.name_or_path}: {type(tokenizer).__name__} does not say where in the text a token stands, so "
            "the assistant's turns cannot be found. Choose a model with a fast tokenizer (tokenizer.json)."
        )
    rows, counts = find_all_turns(rows, tokenizer, turns, on_bad_row, faults)
    tokenise(rows, tokenizer)
    end_ids = np.array(list(special_tokens(tokenizer).values()))

    def add_mask(row: dict) -> dict:
        check_tokens("messages", row["ids"], row["text"], tokenizer, embeddings)
        return {**row, "mask": mask_turns(row, end_ids)}

    rows, endless = check_rows(rows, add_mask, on_bad_row, faults)
    examples = [Example(row["ids"], row["mask"], row["source"]) for row in rows]
    examples, shortened = shorten(examples, max_length, truncation, tokenizer.bos_token_id, faults)
    counts += endless + shortened
    if not examples and not faults:
        raise DataError(f"no usable conversation: {list_counts(counts)}")
    return examples, counts


def find_all_turns(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, turns: str, on_bad_row: str, faults: Faults | None = None
) -> tuple[list[dict], Counter]:
    """Add to each row its rendered "text" and the "spans" in it that are trained on; count what is left out."""
    check_messages, unused = MessageCheck(tokenizer), Counter()

    def rendered(messages: Conversation, **options) -> str:
        return render(tokenizer, messages, "messages", **options)

    seam = find_seam(rendered)

    def find(row: dict) -> dict:
        check_messages("messages", row["messages"])
        text, spans = find_turns(row["messages"], rendered, *seam)
        answers = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
        wanted = row.get("trained") or [True] * len(answers)
        if turns == "last":
            wanted = [False] * (len(answers) - 1) + wanted[-1:]
        for answer, is_wanted in zip(answers, wanted):
            last = re.split(CLOSING, answer)[-1].lstrip()  # behind what was thought, if it was thought to the end
            if is_wanted and (opened := re.match(THINKING, last)):
                raise BadRow("messages", f"an answer that opens {opened[0]} and does not close it: cut off?", last)
        thoughts = [answer.rpartition("</think>")[0].removeprefix("<think>").strip() for answer in answers]
        if wanted[-1] and thoughts[-1] not in text[spans[-1][0] :]:
            kind = "the model's chat template leaves out the thinking of the last turn, so it cannot be learned"
            remedy = "Put a template that keeps it into a copy of the model, or take the thinking out of the data"
            raise BadRow("messages", f"{kind}. {remedy}", answers[-1])
        spans = [span for span, is_wanted in zip(spans, wanted) if is_wanted]
        thoughts = [thought for thought, is_wanted in zip(thoughts, wanted) if is_wanted]
        unused[NOT_GENERATED] += sum(span is None for span in spans)
        unused[NOT_SHOWN] += sum(thought not in text for thought in thoughts)
        spans = [span for span in spans if span]
        if not spans:
            raise BadRow("messages", "nothing to train on: its last turn is not trained on, and no other can be")
        return {"text": text, "spans": spans}

    found, bad = check_rows(rows, find, on_bad_row, faults)
    return found, bad + unused


def tokenise(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> None:
    """Add to each rendered row its token "ids", and each token's place in the text, "offsets"."""
    with tqdm(total=len(rows), desc="tokenise", unit="row", delay=1) as progress:
        for start in range(0, len(rows), TOKENIZE_AT_ONCE):
            chunk = rows[start : start + TOKENIZE_AT_ONCE]
            texts = [row["text"] for row in chunk]
            encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
            for row, ids, offsets in zip(chunk, encoded["input_ids"], encoded["offset_mapping"]):
                row["ids"], row["offsets"] = np.asarray(ids, np.int32), np.asarray(offsets, np.int32).reshape(-1, 2)
            progress.update(len(chunk))


def shorten(
    examples: list[Example], max_length: int, truncation: str, bos: int | None, faults: Faults | None = None
) -> tuple[list[Example], Counter]:
    """Cut or drop the examples of more than `max_length` tokens, or raise `DataError`: see `encode_conversations`."""
    too_long = [example for example in examples if example.tokens > max_length]
    kept, counts = [example for example in examples if example.tokens <= max_length], Counter()
    if too_long and truncation == "error":
        report_fault(_report_too_long(len(examples), too_long, max_length), faults)
        return kept, counts
    for example in too_long:
        cut = cut_start(example, example.tokens - max_length, bos) if truncation == "left" else None
        if cut:
            kept.append(cut)
            counts[f"longer than {max_length} tokens, start cut"] += 1
        elif truncation == "left":
            counts[f"longer than {max_length} tokens, dropped, as no assistant turn would be left whole"] += 1
        else:
            counts[f"longer than {max_length} tokens, dropped"] += 1
    return kept, counts


def cut_start(example: Example, excess: int, bos: int | None) -> Example | None:
    """Cut tokens from the start, behind a bos token, which some models cannot do without.

    A turn without its start or any header is not trained on.

    Returns:
        The rest, or None if no turn is left.
    """
    kept = int(example.ids[0] == bos)
    mask = example.mask[kept + excess :].copy()
    mask[: np.argmin(np.append(mask, False))] = False
    ids = np.append(example.ids[:kept], example.ids[kept + excess :])
    return Example(ids, np.append(np.zeros(kept, dtype=bool), mask), example.source) if mask.any() else None


def _report_too_long(total: int, too_long: list[Example], max_length: int) -> str:
    longest = sorted(too_long, key=lambda example: -example.tokens)
    shown = [f"  {example.source}: {example.tokens} tokens" for example in longest[:5]]
    head = f"{len(too_long)} of {total} conversations are longer than data.max_length={max_length} tokens. The longest:"
    raised = "Raise data.max_length (--max-length) if the model reads more, or set data.truncation (--truncation):"
    return "\n".join([head, *shown, raised, "drop leaves them out, left cuts their start."])


def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
    """Make the batch that verl's engine cuts into micro-batches.

    The examples [1 2 3] and [4 5], trained on 3 and 5, become

        input_ids       1 2 3 | 4 5
        position_ids    0 1 2 | 0 1
        loss_mask       0 0 1 | 0 1

    Returns:
        input_ids, position_ids, loss_mask: jagged (examples, tokens).
    """

    def jagged(tensors) -> torch.Tensor:
        return torch.nested.as_nested_tensor(list(tensors), layout=torch.jagged)

    return {
        "input_ids": jagged(torch.from_numpy(example.ids).long() for example in examples),
        "position_ids": jagged(torch.arange(example.tokens) for example in examples),
        "loss_mask": jagged(torch.from_numpy(example.mask).long() for example in examples),
    }


def digest_examples(examples: list[Example]) -> str:
    """Return a short hash of all tokens and masks, to tell whether two runs train on the same conversations."""
    total = hashlib.sha256()
    for example in examples:
        total.update(example.ids.tobytes() + example.mask.tobytes())
    return total.hexdigest()[:16]


def describe(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """Show a conversation as the model sees it, what is trained on marked."""
    cuts = [0, *(np.flatnonzero(np.diff(example.mask)) + 1), example.tokens]
    return "\n".join(
        f"[{'trained on' if example.mask[start] else 'given'}, tokens: {end - start}]\n"
        + tokenizer.decode(example.ids[start:end])
        for start, end in zip(cuts, cuts[1:])
    )


def report_examples(name: str, examples: list[Example], set_aside: Counter) -> None:
    """Print what is trained on, and what was set aside and why."""
    if not examples:
        print(f"{name}: no conversations")
        return
    tokens, trained = (sum(values) for values in zip(*((e.tokens, e.mask.sum()) for e in examples)))
    print(f"{name}: {len(examples)} conversations, {tokens / len(examples):.0f} tokens on average,", end=" ")
    print(f"the longest {max(example.tokens for example in examples)}; {trained / tokens:.0%} of them trained on")
    for kind, count in set_aside.items():
        print(f"  set aside or cut: {count} x {kind}")
