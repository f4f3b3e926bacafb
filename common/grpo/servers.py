"""What is added to verl if vLLM's servers write the answers: `ROLLOUT=vllm`.

- Every answer has a seed of its own, the one that it would have if the policy answered by itself. verl gives none, so
  that no run could be repeated.
- An answer's text is the one that is read everywhere else: special tokens stay in it. verl drops them, and would reward
  an answer that no evaluation reads.
- A server that dies ends the run with one message. verl waits for the dead in several places.

Nothing here needs vLLM; see `common.grpo.weight_sync` for what does.
"""

import signal
import threading
import time
from concurrent.futures import Future

import ray
import zmq
from omegaconf import DictConfig
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.utils import tensordict_utils as tu
from verl.utils.dataset import rl_dataset
from verl.workers.rollout import base, llm_server

import common.grpo.policy  # noqa: F401  (registers the policy: a process of verl's imports one module of ours, this one)
from common.cluster import TrainingError, mute
from common.failures import GO_ON, TRIES, what_is_dead
from common.generation import decode
from common.grpo.rollout import end_tokens, first_seed, seed_of

mute(llm_server, rl_dataset)

SEEDED = "seeded"  # name of the agent loop below, in the methods' config.yaml
SECONDS_OF_SILENCE = 30  # without a word from vLLM while it takes weights; a bucket takes less than one
SECONDS_BETWEEN_LOOKS = 5
SAID_ABOVE = (
    "What it printed above says why. If memory is short, lower actor_rollout_ref.rollout.gpu_memory_utilization, or on "
    "a CPU actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes."
)
ENGINE_DIED = f"vLLM's engine died. {SAID_ABOVE} Then {GO_ON}."
STARTING = "vLLMHttpServer.launch_server()"  # in the text of an error while a server starts
base._ROLLOUT_REGISTRY["vllm", "async"] = "common.grpo.weight_sync.WatchedAdapter"


# ---- answers


class SeededAgentLoops(AgentLoopManagerTQ):
    """verl's agent loops; each prompt knows the seed of its first answer."""

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Have a batch of prompts answered and rewarded, by and by; the answers go into verl's queue."""
        rollout, step = self.config.actor_rollout_ref.rollout, int(tu.get(prompts, "global_steps"))
        validate = bool(tu.get(prompts, "validate", False))
        answers = (rollout.val_kwargs if validate else rollout).n
        first = first_seed(rollout.seed, step, validate)
        tu.assign_non_tensor_stack(prompts, "first_seed", [first + row * answers for row in range(len(prompts))])
        self.place_of = {uid: place for place, uid in enumerate(prompts["uid"])}
        super().generate_sequences(prompts)

    def as_asked(self, keys: list[str]) -> list[int]:
        """Return the order in which the last batch's answers were asked for; in the queue they stand as they came.

        An update then takes the same prompts in every run.
        """
        names = [key.split("_") for key in keys]  # prompt, number of the answer, number of its part
        return sorted(range(len(keys)), key=lambda index: (self.place_of[names[index][0]], int(names[index][1])))


@register(SEEDED)
class SeededLoop(SingleTurnAgentLoop):
    """One answer to one prompt, with its seed."""

    async def run(self, sampling_params: dict, first_seed: int, session_id: int, **row) -> AgentLoopOutput:
        """Ask a server; `session_id` is the number of the answer among those to the prompt."""
        seed = seed_of(int(first_seed), session_id)
        return await super().run(sampling_params | {"seed": seed}, **row)


class RewardManager(NaiveRewardManager):
    """verl's, over the text that `common.generation.decode` gives."""

    def __init__(self, config: DictConfig, tokenizer, compute_score, **settings):
        super().__init__(config, tokenizer, compute_score, **settings)
        self.tokenizer = WholeText(tokenizer, end_tokens(config.actor_rollout_ref.model, tokenizer))


class WholeText:
    """A tokenizer of which verl's reward manager calls one method."""

    def __init__(self, tokenizer, ends: list[int]):
        self.tokenizer, self.ends = tokenizer, ends

    def decode(self, ids, skip_special_tokens: bool) -> str:
        return decode(self.tokenizer, ids.tolist(), self.ends)


# ---- the end of a server


def weights_refused(error: BaseException | None) -> TrainingError:
    """Return what the user should read if vLLM fails while it takes weights; in one line, without Ray's traceback."""
    cause = getattr(error, "cause", None) or error
    said = str(cause).strip().splitlines()[-1:] or [type(cause).__name__]
    return TrainingError(f"vLLM did not take the new weights: {said[0]}. What it printed above says why; then {GO_ON}.")


class WatchedSocket:
    """verl's socket to a server that takes weights; it does not wait for one that has failed.

    Args:
        loading: the server's side of the transfer: done once all weights are loaded, or with an error.
    """

    def __init__(self, socket: zmq.Socket, loading: Future | None):
        self.socket, self.loading = socket, loading

    def send_pyobj(self, message) -> None:
        self._wait(zmq.POLLOUT)
        self.socket.send_pyobj(message)

    def recv(self) -> bytes:
        self._wait(zmq.POLLIN)
        return self.socket.recv()

    def close(self) -> None:
        self.socket.close(linger=0)

    def _wait(self, event: int) -> None:
        """Return as soon as the socket is ready.

        Raises:
            TrainingError: it will not be.
        """
        end = time.monotonic() + SECONDS_OF_SILENCE
        while not self.socket.poll(1000, event):
            if self.loading and self.loading.done():
                raise weights_refused(self.loading.exception())
            if time.monotonic() > end:
                raise TrainingError(f"vLLM did not take the new weights within {SECONDS_OF_SILENCE} s; {GO_ON}")


class ServerWatch:
    """Ends the run with one message if a server has died, in whatever call verl waits for it.

        with ServerWatch(trainer): ...

    Most deaths are an error in some process at once. Then this only says what died. If verl still waits a while later,
    it is interrupted.

    Args:
        trainer: has `llm_server_manager` as soon as there are servers.

    Raises:
        TrainingError: on leaving the block because of an error, if something of verl's is dead or has said why it
            failed.
    """

    def __init__(self, trainer):
        self.trainer, self.found, self.left = trainer, "", threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "ServerWatch":
        # what a script starts in the background ignores Ctrl-C, by which we interrupt
        self.handler = signal.getsignal(signal.SIGINT)
        if self.handler is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.thread.start()
        return self

    def __exit__(self, kind: type, error: BaseException, trace) -> None:
        self.left.set()
        self.thread.join()
        signal.signal(signal.SIGINT, self.handler)
        if error is None or (isinstance(error, KeyboardInterrupt) and not self.found):
            return
        if isinstance(error, RayTaskError) and STARTING in str(error):
            raise TrainingError(f"vLLM could not start ({error.cause}). {SAID_ABOVE}") from error
        if text := self.found or self._what_is_down(tries=TRIES):
            raise TrainingError(text) from error
        if isinstance(error, RayTaskError) and isinstance(error.cause, TrainingError):
            raise TrainingError(str(error.cause)) from error

    def _servers(self) -> list[ActorHandle]:
        manager = getattr(self.trainer, "llm_server_manager", None)
        return [server for replica in manager.get_replicas() for server in replica.servers] if manager else []

    def _look(self) -> None:
        while not self.left.wait(SECONDS_BETWEEN_LOOKS):
            if (text := self._what_is_down()) and not self.left.wait(SECONDS_BETWEEN_LOOKS):
                self.found = text
                for _ in range(2):  # within asyncio.run, the first one cancels a task that does not get to run
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                    if self.left.wait(1):
                        return
                return

    def _what_is_down(self, tries: int = 1) -> str:
        """Return what is dead and what to do, or nothing. A death is known to all processes after some seconds."""
        for seconds in range(tries):
            time.sleep(seconds)
            if gone := what_is_dead():
                return gone
            if any(map(engine_is_dead, self._servers())):
                return ENGINE_DIED
        return ""


def engine_is_dead(server: ActorHandle) -> bool:
    """Return whether a server has lost its engine, which is a process of its own; a busy server has not."""
    try:
        return ray.get(server.__ray_call__.remote(lambda self: self.engine.errored), timeout=SECONDS_BETWEEN_LOOKS)
    except (GetTimeoutError, RayTaskError, RayActorError):
        return False
