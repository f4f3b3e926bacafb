"""A trained reward model as others use it: loaded with transformers alone, and asked for rewards in batches.

- What is scored is tokenised as in training: a conversation through the chat template, once; plain text as it is.
- Nothing is computed twice. A text that comes again, as each response does where a ranking was cut into pairs, is
  scored once; texts that start alike, the responses to one prompt, are packed behind that prompt
  (`common/attention.py`). All others share a batch with texts of their length, so hardly anything is padding. In fp32
  the other texts of a batch, and their order, move a reward by 1e-5 at most.
- Too long is an error, never a cut: a response without its end is another response.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from common.attention import OF_RANDOM_WEIGHTS, SEGMENT_ATTENTION, Segments, self_test
from common.base_model import cannot_load, readable_tokens
from common.conversation import BadRow, Conversation, DataError
from common.packing import is_packed, own_attention, pad, small_copy
from common.tokenizer import (
    MARKER,
    MessageCheck,
    check_end,
    check_tokens,
    encode_texts,
    ensure_pad_token,
    load_tokenizer,
    render,
)

NO_LIMIT = 2**20  # tokens that a model reads whose config sets no limit


@dataclass(frozen=True)
class Reading:
    """How a reward model reads: its tokenizer, how many tokens of a text, and how many it knows."""

    tokenizer: PreTrainedTokenizerBase
    longest: int
    embeddings: int

    @cached_property
    def check_messages(self) -> MessageCheck:
        return MessageCheck(self.tokenizer)

    @cached_property
    def end(self) -> str:
        """What the chat template writes behind an answer, such as `<|im_end|>`."""
        answered = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARKER}]
        return render(self.tokenizer, answered, "messages").rpartition(MARKER)[2].strip()


def load_reading(path: str, trust_remote_code: bool = False) -> Reading:
    """Return how a reward model reads.

    Raises:
        DataError: it cannot be loaded, or its config is not a reward model's.
    """
    return _load_config(path, trust_remote_code)[1]


def _load_config(path: str, trust_remote_code: bool) -> tuple[PreTrainedConfig, Reading]:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(path, trust_remote_code)
    except (OSError, ValueError) as error:
        raise cannot_load(path, error, "Is it a checkpoint's folder?") from error
    if config.num_labels != 1:
        raise DataError(f"{path}: {config.num_labels} labels, expected 1. Is it a reward model?")
    embeddings = config.get_text_config().vocab_size
    ensure_pad_token(tokenizer, embeddings)
    return config, Reading(tokenizer, readable_tokens(config) or NO_LIMIT, embeddings)


def load_reward_model(
    path: str, packed: bool, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, Reading]:
    """Return a reward model, ready to score, and how it reads.

    Args:
        path: checkpoint folder or hub id.
        packed: for `score`, with packed texts if the model can be packed; else it stays transformers' own, with
            padding and attention as usual.
        dtype: of the backbone. In bf16 close rewards round to a tie.

    Raises:
        DataError: it cannot be loaded, has more labels than one, or lacks weights (a new head would score at random).
    """
    config, reading = _load_config(path, trust_remote_code)
    attention = own_attention(config, AutoModelForSequenceClassification)
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: the weights cannot be loaded: {error}") from error
    if loading["missing_keys"]:
        raise DataError(f"{path}: {', '.join(sorted(loading['missing_keys']))} is missing. Is it a reward model?")
    if packed:
        try:
            # of real weights, rounding alone can look like a small leak
            self_test(small_copy(config, AutoModelForSequenceClassification) or model, tolerance=OF_RANDOM_WEIGHTS)
            model.set_attn_implementation(SEGMENT_ATTENTION)
        except (ValueError, ArithmeticError) as error:
            print(f"{path}: {error}\nIts texts are not packed: one padded text per row, exact and slower.")
            model.set_attn_implementation(attention)
    for weight in model.base_model.parameters():  # not the buffers: rounded rotary frequencies lose long texts' places
        weight.data = weight.data.to(dtype)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), reading


def encode(conversation: Conversation | str, reading: Reading, column: str, max_length: int | None = None):
    """Return what the model reads of a whole conversation, the response last, or of plain text: (tokens,) int32.

    Args:
        max_length: tokens, if fewer than the model reads.

    Raises:
        BadRow: about `column`: no chat template, or it refuses; plain text for a model of conversations; a special
            token in a message; too long; a token that the model does not know; the text ends in the pad token.
    """
    plain, tokenizer = isinstance(conversation, str), reading.tokenizer
    if not plain and not tokenizer.chat_template:
        raise BadRow(column, "a conversation, but the tokenizer has no chat template; give plain text")
    if plain and tokenizer.chat_template and not conversation.rstrip().endswith(reading.end):
        kind = "plain text, but the model's tokenizer has a chat template, so it scores conversations. Give messages"
        raise BadRow(column, f"{kind}, or the text as the template writes it, up to {reading.end!r}", conversation)
    if not plain:
        reading.check_messages(column, conversation)
    text = conversation if plain else render(tokenizer, conversation, column)
    (ids,) = encode_texts([text], tokenizer, special_tokens=plain)
    longest = min(reading.longest, max_length or reading.longest)
    if len(ids) > longest:
        raise BadRow(column, f"longer than {longest} tokens", len(ids))
    check_tokens(column, ids, text, tokenizer, reading.embeddings)
    check_end(column, ids, text, tokenizer)
    return ids


def score_ends(model: PreTrainedModel, input_ids: torch.Tensor, ends: tuple, **layout) -> torch.Tensor:
    """Return the rewards at some places of a batch: the backbone over all of it, the fp32 head there alone.

    The class's own forward would score every token and find the end by comparing ids with the pad token.

    Args:
        input_ids: (rows, length), one row if it is packed.
        ends: where to score, as an index into (rows, length).
        layout: of a packed row, position_ids and segments, its cuts; of padded rows, attention_mask.

    Returns:
        (texts,) fp32.
    """
    layout = {"attention_mask": None} | layout
    hidden = model.base_model(input_ids=input_ids, use_cache=False, **layout).last_hidden_state
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


def pad_with_mask(sequences: list[np.ndarray], device: torch.device) -> dict:
    """Lay texts out one in a row, as `score_ends` takes them for a model with an attention of its own."""
    ends = torch.tensor([len(ids) - 1 for ids in sequences], device=device)
    texts = pad([torch.from_numpy(ids).long().to(device) for ids in sequences])
    return texts | {"ends": (range(len(ends)), ends)}


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
    packed = is_packed(model)
    lay_out = pad_texts if packed else pad_with_mask
    groups = share_starts(texts, 4 * max_tokens) if packed else [Group([n], 0, 0, 0) for n in range(len(texts))]
    for row in fill_rows([group for group in groups if len(group) > 1], max_tokens):
        found = score_ends(model, **pack_groups(texts, row, model.device))
        rewards[[index for group in row for index in group.members]] = found.cpu().numpy()
    alone = [group.members[0] for group in groups if len(group) == 1]
    for batch in batches_of([len(texts[index]) for index in alone], max_tokens):
        members = [alone[place] for place in batch]
        found = score_ends(model, **lay_out([texts[index] for index in members], model.device))
        rewards[members] = found.cpu().numpy()
    reward_of = dict(zip(distinct, rewards))
    return np.array([reward_of[ids.tobytes()] for ids in sequences], dtype=np.float32)


def check_pessimism(pessimism: float | None, ensemble: Sequence[str]) -> float:
    """Return the pessimism of several models, 1 if none is given.

    Raises:
        DataError: it is given and there is one model alone; it is less than 0, which would pay for disagreement, or not
            finite.
    """
    if pessimism is not None and not ensemble:
        raise DataError("pessimism is about several models; give the others as ensemble")
    if pessimism is not None and not 0 <= pessimism < math.inf:
        raise DataError(f"pessimism {pessimism}: expected a number of at least 0")
    return 1.0 if pessimism is None else pessimism


def pessimistic(rewards: np.ndarray, pessimism: float) -> np.ndarray:
    """Return one reward for each text from those of several models: their mean less `pessimism` standard deviations.

    A policy that has found one model's mistake is paid less for it, since the others disagree. This is after the
    uncertainty-weighted optimisation of Coste et al. (arXiv 2310.02743), with the standard deviation in place of the
    variance: it has the rewards' own unit. A reward has no zero point, so the models should be trained alike: a
    constant by which two of them differ counts as disagreement.

    Args:
        rewards: (models, texts). One model's are returned as they are.

    Returns:
        (texts,) of the same type.
    """
    if len(rewards) == 1:
        return rewards[0]
    return rewards.mean(axis=0) - pessimism * rewards.std(axis=0)
