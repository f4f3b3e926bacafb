"""Soft verdicts: how probable each verdict was at the place where the judge wrote its own.

A judge that says 3 may have been torn between 3 and 4. The expected score over the probabilities of all verdicts shows
it, makes fewer ties, and agreed better with people than the verdict itself in 92 of 120 comparisons (Wang et al.,
arXiv:2503.03064). The reasoning stands as the judge wrote it; only its last words are weighed.

A verdict's probability is that of the tokens that tell it from all other verdicts, behind the answer's own text up to
there. The probabilities of all verdicts are scaled so that their sum is 1. How verdicts are written is known from the
method's `write`: what differs between its answers, and what all of them end with.
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import exp
from os.path import commonprefix

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.conversation import DataError
from common.generation import Answer, batches_of, end_tokens
from common.grading.endpoint import EndpointError

Probabilities = dict[Hashable, float]  # of each verdict; the sum is 1


@dataclass(frozen=True)
class Verdicts:
    """How a judge's verdicts are written, and read."""

    texts: dict[Hashable, str]  # of each verdict what differs between them
    tail: str  # what follows in each answer
    parse: Callable[[str], Hashable | None]

    @classmethod
    def of(cls, verdicts: Sequence[Hashable], write: Callable[[Hashable], str], parse: Callable) -> "Verdicts":
        """Take the verdicts' texts from the answers that `write` writes."""
        written = [write(verdict) for verdict in verdicts]
        head = len(commonprefix(written))
        tail = commonprefix([answer[head:][::-1] for answer in written])[::-1]
        texts = {verdict: answer[head : len(answer) - len(tail)] for verdict, answer in zip(verdicts, written)}
        return cls(texts, tail, parse)

    def before(self, answer: str) -> str | None:
        """Return an answer up to its verdict; None if it has none.

        Raises:
            DataError: `parse` reads a verdict that `write` would write otherwise.
        """
        verdict = self.parse(answer)
        if verdict is None:
            return None
        end = self.texts[verdict] + self.tail
        if not answer.rstrip().endswith(end):
            raise DataError(
                f"soft verdicts need answers that end as `write` in prompt.py ends them, here with {end!r}. `parse` "
                f"also reads {answer[-80:]!r}. Let it read that form alone, or do without soft verdicts."
            )
        return answer.rstrip().removesuffix(end)


def mean_of(weighed: Sequence[Probabilities | None]) -> Probabilities | None:
    """Return the mean over the votes that have a verdict; None if none has."""
    known = [found for found in weighed if found is not None]
    return {verdict: sum(found[verdict] for found in known) / len(known) for verdict in known[0]} if known else None


# ---- a model in this process


def weigh(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    verdicts: Verdicts,
    texts: list[str],
    max_tokens: int,
) -> list[Probabilities]:
    """Return how probable each verdict is behind each text: a rendered prompt, and an answer up to its verdict.

    Args:
        max_tokens: padded tokens in a batch.
    """
    end = end_tokens(model)[0]  # a verdict that begins like another one, and is the answer's last word, ends with it
    steps_of: list[list[list[tuple]]] = []  # of each text, of each verdict: tokens to read, and the token behind them
    asked: dict[tuple[int, ...], set[int]] = {}
    for text in texts:
        ends = [text + verdict + verdicts.tail for verdict in verdicts.texts.values()]
        written = [tuple(ids) + (end,) for ids in tokenizer(ends, add_special_tokens=False)["input_ids"]]
        steps_of.append([steps_to(ids, written) for ids in written])
        for steps in steps_of[-1]:
            for read, token in steps:
                asked.setdefault(read, set()).add(token)
    log_probs = next_log_probs(model, tokenizer.pad_token_id, asked, max_tokens)
    weighed = []
    for steps in steps_of:
        joint = torch.tensor([sum(log_probs[step] for step in of_verdict) for of_verdict in steps], dtype=torch.float64)
        weighed.append(dict(zip(verdicts.texts, joint.softmax(dim=0).tolist())))
    return weighed


def steps_to(ids: tuple[int, ...], written: list[tuple[int, ...]]) -> list[tuple[tuple[int, ...], int]]:
    """Return the tokens that tell one of several sequences from all others, each with all that stands before it."""
    first = len(commonprefix(written))
    last = max(len(commonprefix([ids, other])) for other in written if other != ids)
    return [(ids[:place], ids[place]) for place in range(first, last + 1)]


@torch.no_grad()
def next_log_probs(
    model: PreTrainedModel, pad_token_id: int, asked: dict[tuple[int, ...], set[int]], max_tokens: int
) -> dict[tuple[tuple[int, ...], int], float]:
    """Return the log-probability of each asked token behind the tokens that stand before it."""
    contexts, found = list(asked), {}
    for batch in batches_of([len(context) + 1 for context in contexts], max_tokens):
        rows = [contexts[place] for place in batch]
        width = max(map(len, rows))
        ids = torch.tensor([[pad_token_id] * (width - len(row)) + list(row) for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        (logits,) = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=1,
            pad_token_id=pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        ).logits
        for row, log_probs in zip(rows, logits.float().log_softmax(dim=-1)):
            found |= {(row, token): log_probs[token].item() for token in asked[row]}
    return found


def weigh_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    verdicts: Verdicts,
    asked: Sequence[tuple[str, str, Answer]],
    max_tokens: int,
) -> list[Probabilities | None]:
    """Return how probable each verdict was in each answer; None for an answer without a verdict.

    Args:
        asked: of each answer its rendered prompt, what of the answer the prompt ends with, and the answer, whole.
    """
    before = [verdicts.before(answer) for _, _, answer in asked]
    texts = [prompt + text[len(begun) :] for (prompt, begun, _), text in zip(asked, before) if text is not None]
    weighed = iter(weigh(model, tokenizer, verdicts, texts, max_tokens))
    return [None if text is None else next(weighed) for text in before]


# ---- an endpoint


def weigh_served(verdicts: Verdicts, answer: Answer) -> Probabilities | None:
    """Return the same of a served model's answer, from the most probable tokens at the verdict's place.

    A server tells one token's alternatives, so verdicts have to differ in their first token. A verdict that is not
    among them has a probability of 0.

    Raises:
        DataError: they do not, or see `Verdicts.before`.
        EndpointError: the server's tokens do not hold the verdict.
    """
    if verdicts.before(answer) is None:
        return None
    verdict = verdicts.parse(answer)
    said = "".join(token for token, _ in answer.tokens)
    start = said.rfind(verdicts.texts[verdict] + verdicts.tail)
    if start < 0:
        raise EndpointError(f"the endpoint's tokens do not hold the verdict of its answer: {said[-80:]!r}")
    starts = [0, *accumulate(len(token) for token, _ in answer.tokens)]
    place = bisect_right(starts, start) - 1  # the token that the verdict's text begins in
    _, alternatives = answer.tokens[place]
    begun = said[starts[place] : start]
    ends = {known: begun + text + verdicts.tail for known, text in verdicts.texts.items()}
    found = dict.fromkeys(verdicts.texts, 0.0)
    for text, log_prob in alternatives.items():
        fitting = [known for known, end in ends.items() if text and (end.startswith(text) or text.startswith(end))]
        if len(fitting) > 1:
            raise DataError(
                f"an endpoint gives the probabilities of single tokens, and {text!r} begins the verdicts "
                f"{', '.join(map(str, fitting))}. Use the checkpoint itself, or verdicts of one token each."
            )
        for known in fitting:
            found[known] += exp(log_prob)
    if not (whole := sum(found.values())):
        raise EndpointError(f"none of the tokens that the endpoint names at the verdict's place is one: {alternatives}")
    return {known: share / whole for known, share in found.items()}
