"""Soft verdicts: how probable each verdict was at the place where the judge wrote its own.

A judge that says 3 may have been torn between 3 and 4. The expected score over the probabilities of all verdicts shows
it, makes fewer ties, and agreed better with people than the verdict itself in 92 of 120 comparisons (Wang et al.,
arXiv:2503.03064). The reasoning stands as the judge wrote it; only its last words are weighed.

A verdict's probability is that of the tokens that tell it from all other verdicts, behind the answer's own text up to
there. The probabilities of all verdicts are scaled so that their sum is 1. How verdicts are written is known from the
method's `write`: what differs between its answers, and what all of them end with.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import exp
from os.path import commonprefix

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.generation import Answer, batches_of, end_tokens

Probabilities = dict[Hashable, float]  # of each verdict; the sum is 1
AT_ONCE = 256  # texts


class CannotWeigh(ValueError):
    """Why an answer's verdict has no probability."""


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

    def before(self, answer: str) -> str:
        """Return an answer that has a verdict, up to it.

        Raises:
            CannotWeigh: `parse` reads a verdict that `write` would write otherwise.
        """
        end = self.texts[self.parse(answer)] + self.tail
        if not answer.rstrip().endswith(end):
            raise CannotWeigh(
                "the verdict is not written as `write` in prompt.py writes it; let `parse` read that alone"
            )
        return answer.rstrip().removesuffix(end)


def mean_of(weighed: Sequence[Probabilities | None]) -> Probabilities | None:
    """Return the mean over the votes that have probabilities; None if none has."""
    known = [found for found in weighed if found is not None]
    return {verdict: sum(found[verdict] for found in known) / len(known) for verdict in known[0]} if known else None


def weigh_served(verdicts: Verdicts, answers: Sequence[Answer]) -> None:
    """Set `probabilities` of a served model's answers that have a verdict, or `unweighed`, the reason why not."""
    for answer in answers:
        if verdicts.parse(answer) is not None:
            try:
                answer.probabilities = from_tokens(verdicts, answer)
            except CannotWeigh as reason:
                answer.unweighed = str(reason)


def weigh_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    verdicts: Verdicts,
    asked: Sequence[tuple[str, str, Answer]],
    max_tokens: int,
    progress: bool = True,
) -> None:
    """Do the same with the answers of a model in this process, by reading each of them once more.

    Args:
        asked: of each answer its rendered prompt, what of the answer the prompt ends with, and the answer, whole.
        max_tokens: padded tokens in a batch.
        progress: show a bar.
    """
    texts: list[tuple[str, Answer]] = []
    for prompt, begun, answer in asked:
        if verdicts.parse(answer) is not None:
            try:
                texts.append((prompt + verdicts.before(answer)[len(begun) :], answer))
            except CannotWeigh as reason:
                answer.unweighed = str(reason)
    with tqdm(total=len(texts), desc="weigh", unit="answer", delay=1, disable=not progress) as bar:
        for first in range(0, len(texts), AT_ONCE):
            some = texts[first : first + AT_ONCE]
            weighed = weigh(model, tokenizer, verdicts, [text for text, _ in some], max_tokens)
            for (_, answer), found in zip(some, weighed):
                answer.probabilities = found
            bar.update(len(some))


# ---- a model in this process


def weigh(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    verdicts: Verdicts,
    texts: list[str],
    max_tokens: int,
) -> list[Probabilities]:
    """Return how probable each verdict is behind each text: a rendered prompt, and an answer up to its verdict."""
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


# ---- an endpoint


def from_tokens(verdicts: Verdicts, answer: Answer) -> Probabilities:
    """Return how probable each verdict was, from the likeliest tokens at its place, as a server reports them.

    A token may hold the end of what stands before the verdict: Qwen's tokenizer has one token for `>A`, and two for
    `>tie`. So tokens are read from there on. One that begins several verdicts leads on to the next place if the judge
    took it. If not, it belongs to the one verdict that has no token of its own. What begins no verdict does not count.

    Raises:
        CannotWeigh: the tokens do not tell the verdicts apart; see `Verdicts.before`.
    """
    end = answer.rstrip().removeprefix(verdicts.before(answer))
    said = "".join(token for token, _ in answer.tokens)
    start = said.rfind(end)
    if start < 0:
        raise CannotWeigh("the tokens that the endpoint reports do not hold the verdict")
    place = passed = 0
    while passed + len(answer.tokens[place][0]) < start:  # up to the token of the last character before the verdict
        passed += len(answer.tokens[place][0])
        place += 1
    ends = {verdict: said[passed:start] + text + verdicts.tail for verdict, text in verdicts.texts.items()}

    def begun_by(text: str) -> list[Hashable]:
        return [verdict for verdict, end in ends.items() if end.startswith(text) or text.startswith(end)]

    found, read, reached = dict.fromkeys(ends, 0.0), "", 1.0
    for token, alternatives in answer.tokens[place:]:
        begun = {text: begun_by(read + text) for text in alternatives if text}
        with_own = {verdict for verdict, *others in filter(None, begun.values()) if not others}
        for text, known in begun.items():
            if len(known) > 1 and text == token:
                continue  # told apart by the next tokens
            if len(known) > 1:
                known = [verdict for verdict in known if verdict not in with_own]
            if len(known) > 1:
                names = ", ".join(map(str, known))
                raise CannotWeigh(f"{text!r} begins the verdicts {names}, and an endpoint does not say how it goes on")
            for verdict in known:
                found[verdict] += reached * exp(alternatives[text])
        if len(begun.get(token, ())) < 2:
            break
        reached *= exp(alternatives[token])
        read += token
    if not (whole := sum(found.values())):
        raise CannotWeigh("none of the tokens that the endpoint names at the verdict's place is one")
    return {known: share / whole for known, share in found.items()}
