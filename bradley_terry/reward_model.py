"""A trained reward model as others use it: loaded with transformers alone, and asked for rewards in batches.

- What is scored is tokenised as in training: a conversation through the chat template, once; plain text as it is.
- Nothing is computed twice. A text that comes again, as each response does where a ranking was cut into pairs, is
  scored once; texts that start alike, the responses to one prompt, are packed behind that prompt
  (`common/attention.py`). All others share a batch with texts of their length, so hardly anything is padding. In fp32
  the other texts of a batch, and their order, move a reward by 1e-5 at most.
- Too long is an error, never a cut: a response without its end is another response.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jinja2
import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from common.attention import Segments, self_test
from common.conversation import BadRow, Conversation, DataError
from common.tokenizer import cannot_load, ensure_pad_token


def load_reward_tokenizer(path: str, trust_remote_code: bool = False) -> tuple[PreTrainedTokenizerBase, int]:
    """Return a reward model's tokenizer and how many tokens it can read.

    Raises:
        DataError: it cannot be loaded, or its config is not a reward model's.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise cannot_load(path, error, "Is it a checkpoint's folder?") from error
    if config.num_labels != 1:
        raise DataError(f"{path}: {config.num_labels} labels, expected 1. Is it a reward model?")
    ensure_pad_token(tokenizer)
    return tokenizer, config.get_text_config().max_position_embeddings


def load_reward_model(
    path: str, packed: bool, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a reward model, ready to score, and its tokenizer.

    Args:
        path: checkpoint folder or hub id.
        packed: for `score`; else it stays transformers' own, with padding and attention as usual.
        dtype: of the backbone. In bf16 close rewards round to a tie.

    Raises:
        DataError: it cannot be loaded, has more labels than one, lacks weights (a new head would score at random), or
            mixes packed texts up.
    """
    tokenizer, _ = load_reward_tokenizer(path, trust_remote_code)
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, trust_remote_code=trust_remote_code
        )
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: the weights cannot be loaded: {error}") from error
    if loading["missing_keys"]:
        raise DataError(f"{path}: {', '.join(sorted(loading['missing_keys']))} is missing. Is it a reward model?")
    if packed:
        try:
            self_test(model)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
    for weight in model.base_model.parameters():  # not the buffers: rounded rotary frequencies lose long texts' places
        weight.data = weight.data.to(dtype)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def encode(conversation: Conversation | str, tokenizer: PreTrainedTokenizerBase, max_length: int, column: str):
    """Return what the model reads of a whole conversation, the response last, or of plain text: (tokens,) int32.

    Raises:
        BadRow: about `column`: no chat template, or it refuses; too long; the text ends in the pad token.
    """
    text = conversation
    if not isinstance(conversation, str):
        if not tokenizer.chat_template:
            raise BadRow(column, "a conversation, but the tokenizer has no chat template; give plain text")
        try:
            text = tokenizer.apply_chat_template(conversation, tokenize=False)
        except jinja2.TemplateError as error:
            raise BadRow(column, f"the model's chat template refuses the conversation: {error}") from error
    ids = np.asarray(tokenizer(text, add_special_tokens=text is conversation)["input_ids"], dtype=np.int32)
    if len(ids) > max_length:
        raise BadRow(column, f"longer than {max_length} tokens", len(ids))
    if not len(ids) or ids[-1] == tokenizer.pad_token_id:
        raise BadRow(column, f"the text ends in the pad token {tokenizer.pad_token!r}, where no reward is read", text)
    return ids


def score_ends(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    segments: Segments | None,
    ends: torch.Tensor | tuple,
) -> torch.Tensor:
    """Return the rewards at some places of a batch: the backbone over all of it, the fp32 head there alone.

    The class's own forward would score every token and find the end by comparing ids with the pad token.

    Args:
        input_ids, position_ids: (rows, length), one row if it is packed.
        segments: the cuts of the packed row.
        ends: where to score, as an index into (rows, length).

    Returns:
        (texts,) fp32.
    """
    hidden = model.base_model(
        input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False, segments=segments
    ).last_hidden_state
    with torch.autocast(input_ids.device.type, enabled=False):
        return model.score(hidden[ends].float())[:, 0]


def batches_of(lengths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield lists of indices, of similar length together, each padding to at most `max_tokens`."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        size = max(1, max_tokens // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


@dataclass
class Group:
    """Texts that start alike: what they share is computed once, with the first of them. Or one text alone."""

    members: list[int]
    shared: int  # tokens at the start of every member; of a text alone, all of it
    longest: int  # tokens of the longest member
    tokens: int  # of the packed group

    def __len__(self) -> int:
        return len(self.members)


def share_starts(sequences: list[np.ndarray], max_tokens: int) -> list[Group]:
    """Put texts that start alike together, above all responses to one prompt, wherever they stand in the list.

    Every member shares at least half of its tokens, or it stands alone: a short start is not worth the effort.

    Args:
        max_tokens: of a group of several.
    """

    def in_order_of_tokens(index: int) -> bytes:  # big-endian bytes sort like the numbers: equal starts lie together
        return sequences[index].astype(">i4").tobytes()

    groups: list[Group] = []
    for index in sorted(range(len(sequences)), key=in_order_of_tokens):
        length = len(sequences[index])
        if groups and (joined := _join(groups[-1], index, sequences, max_tokens)):
            groups[-1] = joined
        else:
            groups.append(Group([index], shared=length, longest=length, tokens=length))
    return groups


def _join(group: Group, index: int, sequences: list[np.ndarray], max_tokens: int) -> Group | None:
    """Return the group with one text more, or None if they share too little or would become too large."""
    first, ids = sequences[group.members[0]], sequences[index]
    most = min(group.shared, len(ids) - 1)  # at least one token of a text is its own
    different = np.flatnonzero(first[:most] != ids[:most])
    shared = int(different[0]) if len(different) else most
    longest = max(group.longest, len(ids))
    # what the members no longer share, each but the first computes for itself
    tokens = group.tokens + (group.shared - shared) * (len(group) - 1) + len(ids) - shared
    if 2 * shared < longest or tokens > max_tokens:
        return None
    return Group([*group.members, index], shared, longest, tokens)


def fill_rows(groups: list[Group], max_tokens: int) -> Iterator[list[Group]]:
    """Yield groups that make a row of `max_tokens` at most; a larger one is a row by itself."""
    row: list[Group] = []
    for group in groups:
        if row and sum(other.tokens for other in row) + group.tokens > max_tokens:
            yield row
            row = []
        row.append(group)
    if row:
        yield row


def pack_groups(sequences: list[np.ndarray], row: list[Group], device: torch.device) -> dict:
    """Lay groups out in a row of tokens, as `score_ends` takes it."""
    ids, positions, spans, ends, place = [], [], [], [], 0
    for group in row:
        start = place
        for index in group.members:
            known = group.shared if place > start else 0  # the first member holds what is shared
            own = sequences[index][known:]
            ids.append(own)
            positions.append(np.arange(known, known + len(own)))
            spans.append((place, place + len(own), start, start + known))
            place += len(own)
            ends.append(place - 1)
    row_of = {"input_ids": np.concatenate(ids).astype(np.int64), "position_ids": np.concatenate(positions)}
    tensors = {name: torch.from_numpy(values)[None].to(device) for name, values in row_of.items()}
    return tensors | {"segments": Segments(spans, device), "ends": (0, torch.tensor(ends, device=device))}


def pad_texts(sequences: list[np.ndarray], device: torch.device) -> dict:
    """Lay texts out one in a row, as `score_ends` takes them; attention never sees the padding behind them."""
    ends = torch.tensor([len(ids) - 1 for ids in sequences], device=device)
    rows = [torch.from_numpy(ids).long() for ids in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    positions = torch.arange(ids.shape[1], device=device).expand_as(ids)
    return {"input_ids": ids, "position_ids": positions, "segments": None, "ends": (range(len(ends)), ends)}


@torch.inference_mode()
def score(model: PreTrainedModel, sequences: list[np.ndarray], max_tokens: int | None = None) -> np.ndarray:
    """Return the reward of each sequence of token ids: (sequences,) float32, in their order.

    Args:
        model: loaded with `packed=True`.
        max_tokens: of a batch; a longer text is a batch by itself; so are several that share a long start. By default
            what keeps the device busy: a CPU's caches want small batches.
    """
    max_tokens = max_tokens or (2048 if model.device.type == "cpu" else 32768)
    distinct = {ids.tobytes(): ids for ids in sequences}
    texts = list(distinct.values())
    rewards = np.empty(len(texts), dtype=np.float32)
    groups = share_starts(texts, 4 * max_tokens)
    for row in fill_rows([group for group in groups if len(group) > 1], max_tokens):
        found = score_ends(model, **pack_groups(texts, row, model.device))
        rewards[[index for group in row for index in group.members]] = found.cpu().numpy()
    alone = [group.members[0] for group in groups if len(group) == 1]
    for batch in batches_of([len(texts[index]) for index in alone], max_tokens):
        members = [alone[place] for place in batch]
        found = score_ends(model, **pad_texts([texts[index] for index in members], model.device))
        rewards[members] = found.cpu().numpy()
    reward_of = dict(zip(distinct, rewards))
    return np.array([reward_of[ids.tobytes()] for ids in sequences], dtype=np.float32)
