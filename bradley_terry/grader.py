"""The reward model as OpenJudge's grader: `await grader.aevaluate(query=..., response=...)` gives the reward.

    from bradley_terry.grader import BradleyTerryGrader
    grader = BradleyTerryGrader("outputs/checkpoint")                                  # in this process
    grader = BradleyTerryGrader("outputs/checkpoint", "http://localhost:8000")         # served by vLLM or SGLang

A reward is not a mark out of ten. It has no scale of its own, and only the difference between responses to one query
means anything, P(A better than B) = σ(reward A - reward B). Served or not, the tokens are those of training: the text
is rendered and tokenised here, never by the server.
"""

import gc
import math
from typing import Any

import numpy as np
import torch

from common.conversation import BadRow, Conversation, DataError, is_blank, read_dialogue, read_response
from common.grading.contract import (
    Batcher,
    Endpoint,
    Grader,
    GraderMode,
    GraderRank,
    GraderScore,
    NoVerdict,
    all_or_none,
    rank_by,
    read_several,
)
from common.grading.endpoint import classify

from .reward_model import encode, load_reading, load_reward_model, score


class BradleyTerryGrader(Grader):
    """Gives a response its reward, or ranks several with `mode=GraderMode.LISTWISE`."""

    def __init__(
        self,
        model_path: str,
        endpoint: str | None = None,
        *,
        served_name: str | None = None,
        max_tokens: int | None = None,
        dtype: torch.dtype = torch.float32,
        concurrency: int = 64,
        timeout: float = 600.0,
        retries: int = 6,
        trust_remote_code: bool = False,
        name: str = "",
        mode: GraderMode = GraderMode.POINTWISE,
        description: str = "reward of a response, by a Bradley-Terry model",
        strategy: Any = None,
    ):
        """
        Args:
            model_path: checkpoint folder or hub id; with an endpoint its tokenizer and config alone are read.
            endpoint: `http://host:8000` of a server that knows `/classify`; the key is OPENAI_API_KEY's.
            served_name: what the server calls the model, if not `model_path`.
            max_tokens: of a batch, for a model in this process; see `score` in reward_model.py.
            dtype: of a model in this process; in bf16 close rewards round to a tie.
            concurrency, timeout, retries: requests at once, seconds for one, and how often it is repeated.

        Raises:
            DataError: it cannot be loaded, is not a reward model, or has no chat template to ask through.
        """
        super().__init__(
            name or type(self).__name__, mode, description, strategy, model_path=model_path, endpoint=endpoint
        )
        self.reading = load_reading(model_path, trust_remote_code)
        if not self.reading.tokenizer.chat_template:
            raise DataError(
                f"{model_path}: the tokenizer has no chat template, so how query and response make a text is unknown. "
                "Whole texts are scored by score.py, in the columns chosen and rejected."
            )
        self.max_tokens = max_tokens
        if endpoint:
            self.served_name = served_name or model_path
            self.endpoint = Endpoint(
                endpoint.rstrip("/").removesuffix("/v1"), concurrency, timeout=timeout, retries=retries
            )
            self.reward_of = self._ask_endpoint
        else:
            self.batcher = Batcher(self._score_batch)
            # The thread that will score also loads. Each thread that computes has OpenMP threads of its own. If these
            # are more than the cores, all of them sleep while they wait, and single calls run at half the speed.
            loading = self.batcher.thread.submit(load_reward_model, model_path, True, dtype, trust_remote_code)
            self.model, _ = loading.result()
            gc.collect()  # takes half a second with all of torch in memory: now, not in the middle of the first calls
            self.reward_of = self.batcher.submit

    async def _ask_endpoint(self, ids: np.ndarray) -> float:
        return await self.endpoint.call(lambda client: classify(client, self.served_name, ids.tolist()))

    def _score_batch(self, texts: list[np.ndarray]) -> list[float]:
        return score(self.model, texts, self.max_tokens).tolist()

    async def grade(
        self,
        query: str | Conversation,
        response: str | None = None,
        responses: list[str] | None = None,
        **_: Any,
    ) -> GraderScore | GraderRank:
        """Give a response to a query its reward, or rank responses by their rewards.

        Args:
            query: text, or the whole dialogue: messages or JSON text of them.
            response: one text, for a score.
            responses: two texts or more, for a rank (`mode=GraderMode.LISTWISE`).

        Raises:
            BadRow, EndpointError: which `aevaluate` returns as `GraderError`.
        """
        dialogue = read_dialogue(query, "query")
        if self.mode == GraderMode.LISTWISE:
            texts = read_several(responses)
            encoded = {text: self._encode(dialogue, text, "responses") for text in texts}
            known = dict(zip(encoded, await all_or_none(map(self._reward, encoded.values()))))
            rewards = [known[text] for text in texts]  # equal texts, one reward: noise would put them in an order
            rank, reason = rank_by(rewards, "reward")
            return GraderRank(name=self.name, rank=rank, reason=reason, metadata={"rewards": rewards})
        reward = await self._reward(self._encode(dialogue, read_response(response), "response"))
        reason = "to be compared with the rewards of other responses to the same query"
        return GraderScore(name=self.name, score=reward, reason=reason, metadata={"scale": "unbounded, no zero point"})

    async def _reward(self, ids: np.ndarray) -> float:
        reward = await self.reward_of(ids)
        if not math.isfinite(reward):
            raise NoVerdict(f"the model's reward is {reward}, not a finite number")
        return reward

    def check_dialogue(self, dialogue: Conversation) -> None:
        """Raise `BadRow` if no response to this dialogue has a reward, however short it is."""
        self._encode(dialogue, "-", "query")

    def _encode(self, dialogue: Conversation, response: str, column: str) -> np.ndarray:
        if is_blank(response):
            raise BadRow(column, "empty response", response)
        return encode([*dialogue, {"role": "assistant", "content": response}], self.reading, column)

    @staticmethod
    def get_metadata() -> dict[str, Any]:
        return {
            "score": "the reward: any real number, more is better. Comparable between responses to one query alone, "
            "where P(A better than B) = sigmoid(reward A - reward B); no zero point, no scale across queries",
            "rank": "1 is the best, by reward; equal rewards stand in the given order",
            "error": "not text, empty, too long for the model (nothing is cut), refused by the chat template, or the "
            "endpoint gives no answer",
            "aevaluate": BradleyTerryGrader.grade.__doc__,
        }
