"""A trained judge as a grader: a checkpoint in this process or any OpenAI-compatible endpoint, asked alike.

- The prompt and the parser are those of the method's prompt.py, so a verdict here is the verdict of its evaluate.py.
- The rubric is part of the prompt, and a judge knows the one that it was trained by. A run leaves it in its checkpoint,
  and it is read from there.
- A verdict is never guessed at: an answer without one is a `GraderError` that shows the answer.
"""

import re
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from transformers import PreTrainedModel

from common.base_model import cannot_load, readable_tokens
from common.conversation import BadRow, Conversation, DataError
from common.generation import (
    CLOSING,
    THINKING,
    Answer,
    answer_prompts,
    begun_answer,
    check_begun,
    load_answering,
)
from common.grading.contract import (
    BaseEvaluationStrategy,
    Batcher,
    Endpoint,
    Grader,
    GraderMode,
    NoVerdict,
    all_or_none,
)
from common.grading.endpoint import one
from common.judging.rubric import read_stored_rubric
from common.judging.soft import Probabilities, Verdicts, mean_of, weigh_answers, weigh_served
from common.judging.tokens import TokenBreaker
from common.judging.votes import fault_of
from common.tokenizer import ensure_pad_token, load_tokenizer, render


class JudgeGrader(Grader):
    """Asks a trained judge, a checkpoint in this process or any OpenAI-compatible endpoint."""

    default_rubric: str
    frame: str  # the prompt without its slots: the tags in it stay
    verdicts: Verdicts  # how they are written
    decide: Callable[[list], Hashable | None]  # the verdict of several votes

    def __init__(
        self,
        model: str,
        endpoint: str | None = None,
        *,
        rubric: str | None = None,
        tokenizer: str | None = None,
        hidden_reasoning: bool = False,
        soft: bool = False,
        votes: int = 1,
        temperature: float | None = None,
        max_new_tokens: int = 1024,
        max_tokens: int = 16384,
        concurrency: int = 16,
        timeout: float = 600.0,
        retries: int = 6,
        trust_remote_code: bool = False,
        name: str = "",
        mode: GraderMode = GraderMode.POINTWISE,
        description: str = "",
        strategy: BaseEvaluationStrategy | None = None,
    ):
        """
        Args:
            model: checkpoint folder or hub id; with an endpoint the served model's name.
            endpoint: `http://host:8000/v1`; the key is OPENAI_API_KEY's.
            rubric: by what to judge. By default what the checkpoint's run left in it, else that of prompt.py.
            tokenizer: with an endpoint, the checkpoint that is served: says what the chat template writes of the
                answer into the prompt, and holds the rubric.
            hidden_reasoning: the endpoint returns only what follows the reasoning, as `transformers serve` does.
            soft: weigh the verdicts by their probabilities; an endpoint has to give log-probabilities.
            votes: how often each prompt is judged; `decide` gives the verdict of all.
            temperature: 0 is greedy; by default 0, or 1 for several votes.
            max_new_tokens: of an answer, its reasoning included.
            max_tokens: in memory at a time, prompts and answers together, for a model in this process.
            concurrency, timeout, retries: requests at once, seconds for one, and how often it is repeated.

        Raises:
            DataError: model or tokenizer cannot be loaded or used, the chat template begins answers with thinking tags
                that the prompt does not ask for, or a setting leaves nothing to do.
        """
        asked = {"model": model, "endpoint": endpoint, "max_new_tokens": max_new_tokens}
        super().__init__(name or type(self).__name__, mode, description, strategy, **asked)
        place, trust = tokenizer or (None if endpoint else model), {"trust_remote_code": trust_remote_code}
        stored = read_stored_rubric(place)
        known = self.default_rubric if stored is None else stored
        self.rubric = known if rubric is None else rubric
        self.model, self.max_new_tokens, self.hidden_reasoning = model, max_new_tokens, hidden_reasoning
        self.soft, self.votes = soft, votes
        self.temperature = (1.0 if votes > 1 else 0.0) if temperature is None else temperature
        if votes < 1 or (votes > 1 and self.temperature == 0):
            raise DataError(f"votes={votes}, temperature={temperature}: expected at least 1 vote, several not greedy")
        self.endpoint = Endpoint(endpoint, concurrency, timeout=timeout, retries=retries) if endpoint else None
        try:
            self.tokenizer = load_tokenizer(place, **trust) if place else None
        except (OSError, ValueError) as error:
            raise cannot_load(place, error, "Correct model or tokenizer.") from error
        if self.tokenizer and not self.tokenizer.chat_template:
            raise DataError(f"{place}: the tokenizer has no chat template, and a judge is asked through it")
        if self.tokenizer:
            self.break_tokens = TokenBreaker(self.tokenizer, self.frame)
            try:
                check_begun(self._render([{"role": "user", "content": "Why?"}]), self.frame)
            except BadRow as fault:
                raise DataError(f"{place}: {fault.kind}") from fault
        if not endpoint:
            loaded = load_answering(model, **trust)
            ensure_pad_token(self.tokenizer, loaded.config.get_text_config().vocab_size)
            readable = readable_tokens(loaded.config) or sys.maxsize
            self.longest = readable - max_new_tokens
            if self.longest < 1:
                raise DataError(
                    f"max_new_tokens={max_new_tokens} leaves no room for a prompt: {model} reads {readable}"
                )
            self.batcher = Batcher(lambda texts: self._answer_batch(loaded, texts, max_tokens))

    def _render(self, prompt: Conversation) -> str:
        return render(self.tokenizer, prompt, "query and response", add_generation_prompt=True)

    def _answer_batch(self, loaded: PreTrainedModel, texts: list[str], max_tokens: int) -> list[list[Answer]]:
        draws = {"temperature": self.temperature, "votes": self.votes, "progress": False}
        given = answer_prompts(loaded, self.tokenizer, texts, self.max_new_tokens, max_tokens, **draws)
        begun = [begun_answer(text, self.frame) for text in texts]
        whole = [[Answer(start + one, one.clipped) for one in of_one] for start, of_one in zip(begun, given)]
        if self.soft:
            asked = [(text, start, one) for text, start, of_one in zip(texts, begun, whole) for one in of_one]
            weigh_answers(loaded, self.tokenizer, self.verdicts, asked, max_tokens, progress=False)
        return whole

    async def judge(self, prompt: Conversation) -> "Judgement":
        """Return the judge's verdict on a prompt.

        Raises:
            NoVerdict: its answer has none, or its votes decide nothing.
            BadRow, EndpointError: see `answer`.
        """
        given = await self.answer(prompt)
        votes = [self.verdicts.parse(one) for one in given]
        verdict = type(self).decide(votes)
        if verdict is None:
            raise no_verdict(given, votes)
        weighed = mean_of([one.probabilities for one in given])
        if self.soft and weighed is None:
            reason = next(one.unweighed for one in given if one.unweighed)
            raise NoVerdict(f"the verdict {verdict} cannot be weighed: {reason}")
        return Judgement(verdict, reasoning_of(given[votes.index(verdict)]), given, votes, weighed)

    async def answer(self, prompt: Conversation) -> list[Answer]:
        """Return the judge's answers to a prompt, one for each vote, whole: with what the chat template began.

        Raises:
            BadRow: the prompt is longer than the model can take, or its chat template refuses it.
            EndpointError: no answer came.
        """
        prompt, text = self.check_prompt(prompt)
        if not self.endpoint:
            return await self.batcher.submit(text)
        begun = "" if text is None else begun_answer(text, self.frame)
        return await all_or_none(self._ask_endpoint(prompt, begun, vote) for vote in range(self.votes))

    def check_prompt(self, prompt: Conversation) -> tuple[Conversation, str | None]:
        """Return a prompt as the judge gets it, and as the chat template writes it; None if no tokenizer is known.

        Raises:
            BadRow: see `answer`; how long a prompt a server can take is not known.
        """
        if not self.tokenizer:
            return prompt, None
        prompt = self.break_tokens(prompt)
        text = self._render(prompt)
        if not self.endpoint:
            tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if tokens > self.longest:
                raise BadRow("query and response", f"the judge's prompt is longer than {self.longest} tokens", tokens)
        return prompt, text

    async def _ask_endpoint(self, prompt: Conversation, begun: str, vote: int) -> Answer:
        asked = {"temperature": self.temperature, "seed": vote, "begun": begun, "with_tokens": self.soft}
        asked["hidden_reasoning"] = self.hidden_reasoning
        given = await self.endpoint.call(lambda client: one(client, self.model, prompt, self.max_new_tokens, **asked))
        if self.soft:
            weigh_served(self.verdicts, [given])
        return given


@dataclass(frozen=True)
class Judgement:
    """A verdict, and where it comes from."""

    verdict: Hashable
    reason: str  # what the judge wrote before the verdict, in the first vote that gave it
    answers: list[Answer]
    votes: list[Hashable | None]
    probabilities: Probabilities | None  # of all verdicts, if they were asked for

    def said(self) -> dict[str, object]:
        """Return what of it belongs into a result's metadata."""
        several = {"votes": self.votes, "answers": list(map(str, self.answers))} if len(self.votes) > 1 else {}
        weighed = {"verdict": self.verdict, "probabilities": self.probabilities} if self.probabilities else {}
        return {"answer": str(self.answers[0]), **several, **weighed}


def reasoning_of(given: Answer) -> str:
    """Return what a judge wrote before its verdict."""
    given = given.lstrip()
    opening = re.match(
        rf"(?:(?:{THINKING}\s*)?{CLOSING}\s*(?={THINKING}))?(?:{THINKING})?", given
    )  # not an empty block
    *_, end = [0, *(closing.start() for closing in re.finditer(CLOSING, given))]
    return given[opening.end() : end].strip()


def no_verdict(given: list[Answer], votes: list[Hashable | None]) -> NoVerdict:
    """Return the error for an answer that holds no well-formed verdict, or for votes that decide nothing."""
    if len(given) == 1:
        return NoVerdict(f"no well-formed verdict in the answer ({fault_of(given[0])}): {given[0][-500:]!r}")
    said = ", ".join(fault_of(one) if vote is None else str(vote) for one, vote in zip(given, votes))
    return NoVerdict(f"the votes decide nothing ({said}); the first answer: {given[0][-500:]!r}")
