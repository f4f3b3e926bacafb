"""Answers of a transformers model to rendered prompts, in batches: for rollouts, evaluation and graders alike.

- Prompts go in as they were rendered; nothing is tokenised again with special tokens on top.
- Prompts of similar length share a batch, padded on the left, so that a batch costs little more than its longest row.
- Equal prompts in a batch, as GRPO asks them, are read once for all their answers, and kept once
  (`common/prompt_cache.py`). An answer that has ended leaves the batch, and does not wait for the longest one. Models
  with a sliding window keep a copy of the prompt for each answer. Recurrent models do none of this.
- Log-probabilities are those of the distribution that was sampled from, after temperature and cuts.
- A sampled answer depends on its prompt and its seed alone, not on the rows beside it.
- Greedy is greedy: a model's own settings (repetition penalty, beams, …) do not change the choice.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from common.attention import AMPERE, ANSWERING_ATTENTION
from common.base_model import cannot_load
from common.conversation import DataError
from common.prompt_cache import PromptCache

# The tags between which model families think: <think>, <seed:think>, [THINK], ◁think▷; also <|channel>thought of
# Gemma 4, <|channel|>analysis of gpt-oss, <|open|>think of Kimi K3
_NAME = r"[^\s<>\[\]◁▷/]{0,20}(?:think|thought|reason)[^\s<>\[\]◁▷/]{0,20}[>\]▷]"
_CHANNEL = r"<\|?(?:channel|open)\|?>(?:analysis|thought|think)\b"
THINKING = rf"(?i:(?:[<\[◁]{_NAME}|{_CHANNEL})(?:<\|(?:message|sep)\|>)?)"
CLOSING = rf"(?i:[<\[◁]/{_NAME}|<channel\|>|<\|END_THINKING\|>)"
# by model and its own attention: how it attends while it answers, and how it goes on. A grader asks at every batch
TRIED: WeakKeyDictionary[PreTrainedModel, dict[str, tuple[str, "Way"]]] = WeakKeyDictionary()
ROUNDING = 0.05  # of the logits' spread: half precision rounds by less, what is not there makes more
BY_TOKEN = (DynamicLayer, DynamicSlidingWindowLayer)
STAGE = 16  # tokens after which answers that have ended leave the batch
# The attention to shared prompts computes as many rows for each prompt as the prompt with the most rows has. Of all
# these, at most so many may be computed for one row of the batch
PLACES = 8
BEGUN = re.compile(rf"(?:{THINKING}\s*(?:{CLOSING}\s*)?|(?<![^\s<>\[\]]){CLOSING}\s*)?\Z")


class Way(Enum):
    """How a model goes on from what it has read of a batch's prompts."""

    WHOLE = "all rows to the end, each with its own prompt"
    BY_ROW = "a row may leave, and prompts are read once"
    BY_PROMPT = "a row may leave, and prompts are read and kept once"


class Answer(str):
    """A model's answer: its text, and in `clipped` whether its tokens ran out before it came to an end.

    `usage` says how many tokens the prompt and the answer have, if that is known: a server may not say it.

    Of a judge, if they were asked for: `tokens`, each token of a served model's answer with the log-probabilities of
    the likeliest ones at its place; `probabilities`, of each verdict, or `unweighed`, why there are none.
    """

    clipped: bool
    usage: tuple[int, int] | None = None
    tokens: list[tuple[str, dict[str, float]]] | None = None
    probabilities: dict | None = None
    unweighed: str = ""

    def __new__(cls, text: str, clipped: bool) -> "Answer":
        answer = super().__new__(cls, text)
        answer.clipped = clipped
        return answer


def batches_of(lengths: list[int], max_tokens: int, equal: bool = False) -> Iterator[list[int]]:
    """Yield lists of indices, of similar length together, each padding to at most `max_tokens`.

    Args:
        equal: of equal length alone, for models that look at padding.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        longest = lengths[order[0]]
        size = max(1, max_tokens // max(1, longest))
        if equal:
            size = min(size, sum(lengths[index] == longest for index in order))
        yield order[:size]
        order = order[size:]


def batches_to_answer(
    prompts: list[list[int]], max_new_tokens: int, max_tokens: int, way: Way, equal: bool = False
) -> Iterator[list[int]]:
    """Yield the indices of tokenised prompts in batches.

    Args:
        max_tokens: so many tokens, padding included, may have keys and values in memory at a time. For
            `Way.BY_PROMPT` equal prompts stand side by side and count once.
        equal: see `batches_of`; for the other ways alone.
    """
    if way != Way.BY_PROMPT or min(map(len, prompts), default=0) < 2:  # of one token nothing is read before the answers
        yield from batches_of([len(ids) + max_new_tokens for ids in prompts], max_tokens, equal)
        return
    batch, distinct, same, most, longest = [], 0, 0, 0, 0  # same: rows of the latest prompt; most: of any
    for index in sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), prompts[index])):
        new = not batch or prompts[index] != prompts[batch[-1]]
        same = 1 if new else same + 1
        kept = (distinct + new) * longest + (len(batch) + 1) * max_new_tokens
        places = (distinct + new) * max(most, same)
        if batch and (kept > max_tokens or places > PLACES * (len(batch) + 1)):
            yield batch
            batch, distinct, same, most, new = [], 0, 1, 0, True
        longest = longest if batch else len(prompts[index])
        batch.append(index)
        distinct, most = distinct + new, max(most, same)
    if batch:
        yield batch


def begun_answer(prompt: str, frame: str = "") -> str:
    """Return what the chat template wrote of the answer at the end of a rendered prompt: `<think>`, a think block, "".

    It belongs in front of what the model writes before that is parsed. Else the answer to a prompt that ends with a
    closed think block could never hold a verdict.

    Args:
        frame: the prompt without its slots. Thinking tags of other families, as `[THINK]`, count only if they are in
            it; else they are not what the prompt asks for.
    """
    begun, tag = _begun(prompt)
    return begun if tag in ("<think>", "</think>") or tag in frame else ""


def check_begun(prompt: str, frame: str) -> None:
    """Raise `DataError` if the template begins the answer within thinking tags that the prompt does not ask for.

    If it also closes them, this family's own thinking is switched off, and the answer begins behind them.
    """
    begun, tag = _begun(prompt)
    if tag not in ("<think>", "</think>") and tag not in frame and not re.search(CLOSING, begun):
        raise DataError(
            f"the chat template begins the answer with {begun.strip()!r}, and the prompt does not ask for reasoning "
            "between such tags: no answer could be read. Write these tags in place of <think> and </think> in "
            "prompt.py (PROMPT, write, parse), or give the model another chat template."
        )


def _begun(prompt: str) -> tuple[str, str]:
    """Return what a template wrote of the answer, of whatever family, and the tag that it starts with."""
    begun = BEGUN.search(prompt[-200:])[0]
    return begun, re.match(f"{THINKING}|{CLOSING}|", begun)[0]


def load_answering(path: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return a language model, ready to answer: in bf16 on a GPU that has it, else in fp32.

    Raises:
        DataError: it cannot be loaded, lacks weights and would answer at random, or is a reward model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" and torch.cuda.get_device_capability() >= AMPERE else torch.float32
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_load(path, error, "Is it a language model's folder?") from error
    if missing := sorted(loading["missing_keys"]):
        raise DataError(f"{path}: {', '.join(missing[:5])} is missing. Is it a language model?")
    if "score.weight" in loading["unexpected_keys"]:
        raise DataError(f"{path}: it has a reward head, score.weight. Is it a reward model, and not a judge?")
    return model.to(device).eval()


def make_plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a model forget its own settings of generation, except at which tokens it stops."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Return the tokens at which the model stops."""
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def spread(read: DynamicCache, row_of: torch.Tensor, way: Way) -> DynamicCache:
    """Return what was read of some rows for others, `row_of` those.

    Raises:
        ValueError: a layer keeps something else than keys and values of each token.
    """
    if type(read) is not DynamicCache or any(type(layer) not in BY_TOKEN for layer in read.layers):
        raise ValueError(f"{type(read).__name__} keeps more than keys and values of each token")
    if way == Way.BY_PROMPT:
        return PromptCache(read, row_of)
    read.batch_select_indices(row_of)
    return read


@contextmanager
def answering(model: PreTrainedModel) -> Iterator[Way]:
    """Let a model attend in the fastest way that leaves its answers as they are; yield how it goes on.

    Attention and way are tried once, on short prompts. A config does not tell: some families keep more than their cache
    shows, and some attend by code of their own.
    """
    config = model.config.get_text_config(decoder=True)
    own, tried = config._attn_implementation, TRIED.setdefault(model, {})
    try:
        if own not in tried:
            tried[own] = _try_ways(model, config)
        config._attn_implementation, way = tried[own]
        yield way
    finally:
        config._attn_implementation = own


def _try_ways(model: PreTrainedModel, config: PreTrainedConfig) -> tuple[str, Way]:
    """Return the first attention and way that give the logits of the model as it is. Changes the config's attention."""
    own, expected = config._attn_implementation, _logits(model)

    def is_right(attention: str, way: Way) -> bool:
        config._attn_implementation = attention
        try:
            found = _logits(model, way)
        except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return False  # whatever a model's own code makes of another attention, or of other rows
        return bool((found - expected).abs().max() < ROUNDING * expected.std())

    faster = own == "sdpa" and is_right(ANSWERING_ATTENTION, Way.BY_ROW)
    if faster and is_right(ANSWERING_ATTENTION, Way.BY_PROMPT):
        return ANSWERING_ATTENTION, Way.BY_PROMPT
    if faster or is_right(own, Way.BY_ROW):
        return ANSWERING_ATTENTION if faster else own, Way.BY_ROW
    faster = own == "sdpa" and is_right(ANSWERING_ATTENTION, Way.WHOLE)
    return ANSWERING_ATTENTION if faster else own, Way.WHOLE


@torch.no_grad()
def _logits(model: PreTrainedModel, way: Way | None = None) -> torch.Tensor:
    """Return the logits behind four short rows, (4, vocabulary): read at once, or the last token in a way.

    The rows go on from three prompts. One is padded and goes on three times, and one does not go on.
    """
    prompts = torch.tensor([[1, 2, 3, 2], [0, 3, 1, 2], [2, 3, 1, 1]], device=model.device)
    seen = torch.ones_like(prompts)
    seen[1, 0] = 0
    rows = torch.tensor([1, 2, 1, 1], device=model.device)

    def answer(ids: torch.Tensor, mask: torch.Tensor, **known):
        room = {"max_new_tokens": 1, "pad_token_id": 0, "return_dict_in_generate": True, "output_logits": True}
        return model.generate(input_ids=ids, attention_mask=mask, **room, **known)

    known = {}
    if way == Way.WHOLE:
        known = {"past_key_values": answer(prompts[rows, :-1], seen[rows, :-1]).past_key_values}
    elif way:
        read = answer(prompts[:, :-1], seen[:, :-1]).past_key_values
        known = {"past_key_values": spread(read, rows, way)}
    return answer(prompts[rows], seen[rows], **known).logits[0]


class SeededSampling(LogitsProcessor):
    """Samples each row by random numbers of its own, and notes log-probabilities.

    What a row draws then depends on its seed alone, not on the rows beside it: neither the batch size nor the number
    of workers changes an answer. For each token a row has one uniform number in [0, 1): the token is the first at which
    the sum of the probabilities, in the vocabulary's order, is above it. All numbers are drawn once, at the start.
    Without seeds the choice is greedy, and this only notes. The model generates greedily over what it returns.

    Args:
        seeds: one for each row, or None.
        tokens: of the longest answer.
    """

    def __init__(self, seeds: list[int] | None, tokens: int, device: torch.device):
        self.draws = None  # (rows, tokens)
        if seeds:
            own = (torch.Generator().manual_seed(seed) for seed in seeds)
            rows = [torch.rand(tokens, generator=generator, dtype=torch.float64) for generator in own]
            self.draws = torch.stack(rows).to(device)
        self.place = 0  # of the token to be chosen
        self.log_probs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Take and return (rows, vocabulary)."""
        log_probs = scores.float().log_softmax(dim=-1)
        if self.draws is None:
            chosen = log_probs.argmax(dim=-1, keepdim=True)
        else:
            sums = log_probs.exp().double().cumsum_(dim=-1)  # in fp32 an unlikely token would be lost in the sum
            chosen = torch.searchsorted(sums, self.draws[:, self.place, None] * sums[:, -1:], right=True)
            # if a probability is not a number, no place is found; the noted log-probability says so, and stops the run
            chosen.clamp_(max=sums.shape[1] - 1)
        self.place += 1
        self.log_probs.append(log_probs.gather(1, chosen)[:, 0])
        return torch.full_like(log_probs, -torch.inf).scatter_(1, chosen, 0.0)

    def take_log_probs(self) -> list[list[float]]:
        """Return those noted since the last time, by row."""
        noted, self.log_probs = torch.stack(self.log_probs, dim=1).tolist(), []
        return noted

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        if self.draws is not None:
            self.draws = self.draws[rows]


@torch.no_grad()
def generate_batch(
    model: PreTrainedModel,
    prompts: list[list[int]],
    pad_token_id: int,
    max_new_tokens: int,
    seeds: list[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    way: Way = Way.WHOLE,
) -> list[tuple[list[int], list[float]]]:
    """Continue tokenised prompts, all in one batch.

    Args:
        model: its own settings may change the answers; see `make_plain`.
        seeds: one per prompt; equal seeds give equal answers to equal prompts.
        temperature: 0 is greedy.
        top_p, top_k: 1 and 0 (or -1) cut nothing.
        way: see `answering`.

    Returns:
        For each prompt its new tokens, up to and with the end token if it came to one, and their log-probabilities.
    """
    if way == Way.BY_PROMPT and model.config.get_text_config(decoder=True)._attn_implementation != ANSWERING_ATTENTION:
        raise ValueError("another attention would not see the prompts: generate within `answering`")
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ids, mask = ids.to(model.device), mask.to(model.device)
    read = read_distinct(model, ids, mask, pad_token_id, way) if way != Way.WHOLE else None
    sampling = SeededSampling(seeds if temperature > 0 else None, max_new_tokens, model.device)
    processors = LogitsProcessorList()
    if temperature > 0:
        processors.append(TemperatureLogitsWarper(temperature))
        processors += [TopKLogitsWarper(top_k)] if top_k > 0 else []
        processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    ends, stage = end_tokens(model), max_new_tokens if way == Way.WHOLE else STAGE
    answers: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    left = list(range(len(prompts)))  # whose answer each row is
    for done in range(0, max_new_tokens, stage):
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=read,
            max_new_tokens=min(stage, max_new_tokens - done),
            pad_token_id=pad_token_id,
            logits_processor=LogitsProcessorList([*processors, sampling]),
            return_dict_in_generate=True,
        )
        new, unfinished = out.sequences[:, ids.shape[1] :].tolist(), []
        for row, (number, tokens, log_probs) in enumerate(zip(left, new, sampling.take_log_probs())):
            length = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
            for known, more in zip(answers[number], (tokens, log_probs)):
                known += more[:length]
            if tokens[length - 1] not in ends:
                unfinished.append(row)
        if not unfinished or done + stage >= max_new_tokens:
            break
        ids, mask, read = out.sequences, F.pad(mask, (0, len(new[0])), value=1), out.past_key_values
        if len(unfinished) < len(left):
            ids, mask, left = ids[unfinished], mask[unfinished], [left[row] for row in unfinished]
            read.batch_select_indices(torch.tensor(unfinished, device=model.device))
            sampling.keep(unfinished)
    return answers


def read_distinct(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, pad_token_id: int, way: Way
) -> DynamicCache | None:
    """Read the distinct ones of padded prompts up to their last token; return what was read, for each row of `ids`.

    Nothing if no prompt comes twice, or if one is a single token.
    """
    rows, row_of = torch.cat([ids, mask], dim=1).unique(dim=0, return_inverse=True)
    if len(rows) == len(ids) or mask.sum(dim=1).min() < 2:
        return None
    distinct, shown = rows.chunk(2, dim=1)
    read = model.generate(
        input_ids=distinct[:, :-1],
        attention_mask=shown[:, :-1],
        max_new_tokens=1,
        pad_token_id=pad_token_id,
        return_dict_in_generate=True,
    ).past_key_values
    return spread(read, row_of, way)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: list[int]) -> str:
    """Return an answer's text without its end token; tags that a vocabulary calls special, `<think>`, stay."""
    return tokenizer.decode(tokens[:-1] if tokens and tokens[-1] in ends else tokens)


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    max_tokens: int,
    temperature: float = 0.0,
    votes: int = 1,
    seed: int = 0,
    progress: bool = True,
    known: Mapping[int, Answer] | None = None,
    keep: Callable[[int, Answer], None] = lambda number, answer: None,
) -> list[list[Answer]]:
    """Answer rendered prompts, each `votes` times.

    Args:
        max_tokens: see `batches_to_answer`.
        progress: show a bar.
        known: answers that are not asked for again, by number: that of the prompt times `votes`, plus the vote.
        keep: takes each new answer and its number as they come.

    Returns:
        For each prompt its answers.
    """
    make_plain(model, tokenizer)
    encoded = [ids for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"] for _ in range(votes)]
    texts, ends = dict(known or {}), end_tokens(model)
    left = [index for index in range(len(encoded)) if index not in texts]
    bar = tqdm(total=len(encoded), initial=len(texts), desc="judge", unit="answer", delay=1, disable=not progress)
    with bar, answering(model) as way:
        for places in batches_to_answer([encoded[index] for index in left], max_new_tokens, max_tokens, way):
            batch = [left[place] for place in places]
            inputs = [encoded[index] for index in batch]
            seeds = [seed * votes + index % votes for index in batch]
            draws = {"temperature": temperature, "way": way}
            answers = generate_batch(model, inputs, tokenizer.pad_token_id, max_new_tokens, seeds, **draws)
            for index, (tokens, _) in zip(batch, answers):
                texts[index] = Answer(decode(tokenizer, tokens, ends), clipped=tokens[-1] not in ends)
                texts[index].usage = (len(encoded[index]), len(tokens))
                keep(index, texts[index])
            bar.update(len(batch))
    return [[texts[start + vote] for vote in range(votes)] for start in range(0, len(encoded), votes)]
