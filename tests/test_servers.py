"""What is added to verl's servers: a seed for every answer, whole texts for rewards, and an end if a server fails."""

import asyncio
import shutil
import signal
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zmq
from omegaconf import OmegaConf
from ray.exceptions import RayTaskError
from tensordict import TensorDict
from test_rollout import make_rollout, step_of
from transformers import AutoTokenizer
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.protocol import DataProto
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.utils import tensordict_utils as tu
from verl.workers.rollout.base import get_rollout_class

from common.cluster import TrainingError
from common.generation import decode
from common.grpo import servers

# ---- seeds


@pytest.fixture
def loops(monkeypatch):
    """The manager of the agent loops with the settings of `make_rollout`, and what it sends to them."""
    sent = []
    monkeypatch.setattr(AgentLoopManagerTQ, "generate_sequences", lambda self, prompts: sent.append(prompts))
    manager = object.__new__(servers.SeededAgentLoops)
    manager.config = make_rollout().trainer.config
    return SimpleNamespace(manager=manager, sent=sent)


def seeds_sent(loops) -> list[int]:
    """The seeds that the loops give to a server for the last batch, in the order of the prompts."""
    batch, given = loops.sent[-1], []

    async def note(self, sampling_params: dict, **row) -> None:
        assert set(row) == {"raw_prompt"}
        given.append(sampling_params["seed"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SingleTurnAgentLoop, "run", note)
        loop, shared = object.__new__(servers.SeededLoop), {"temperature": 1.0}
        rollout = loops.manager.config.actor_rollout_ref.rollout
        answers = (rollout.val_kwargs if tu.get(batch, "validate", False) else rollout).n
        for first in tu.get(batch, "first_seed"):
            for number in range(answers):
                asyncio.run(loop.run(shared, first_seed=first, session_id=number, raw_prompt=[]))
        assert shared == {"temperature": 1.0}  # all answers to a prompt have the same dict
    return given


@pytest.mark.parametrize("validate", [False, True])
def test_every_answer_has_the_seed_that_it_has_without_servers(loops, validate):
    settings = {"validate": True} if validate else {}
    loops.manager.generate_sequences(step_of(3, **settings))
    seeds = seeds_sent(loops)
    rollout = make_rollout()
    rollout._generate([[1]] * len(seeds), {}, 4, validate)
    ((shares, given, _),) = rollout.trainer.actor_rollout_wg.calls
    assert seeds == sum(given, []) and len(set(seeds)) == len(seeds) == (3 if validate else 6)


def test_answers_are_put_in_the_order_in_which_they_were_asked_for(loops):
    loops.manager.generate_sequences(step_of(3))
    keys = ["u2_0_0", "u0_1_0", "u2_1_0", "u1_1_0", "u0_0_0", "u1_0_0"]
    order = loops.manager.as_asked(keys)
    assert [keys[index] for index in order] == ["u0_0_0", "u0_1_0", "u1_0_0", "u1_1_0", "u2_0_0", "u2_1_0"]


def test_the_config_names_the_loop_and_verl_the_adapter():
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.workers.rollout import base

    assert _agent_loop_registry["seeded"]["_target_"] == "common.grpo.servers.SeededLoop"
    assert base._ROLLOUT_REGISTRY["vllm", "async"] == "common.grpo.weight_sync.WatchedAdapter"
    pytest.importorskip("vllm")
    assert get_rollout_class("vllm").__name__ == "WatchedAdapter"


# ---- texts


@pytest.fixture
def with_special_tags(tiny_model, tmp_path):
    """The tiny model in a folder of its own, whose vocabulary calls <think> special."""
    shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<think>", "</think>"]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "answer", ["<think>because</think>\n<score>3</score><|im_end|>", "<think>a<|im_start|>b</think>\n<score>3</score>"]
)
def test_a_reward_reads_the_same_text_with_servers_and_without(with_special_tags, answer):
    """verl's own manager would drop the tags, and whatever else is special."""
    tokenizer = AutoTokenizer.from_pretrained(with_special_tags)
    tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
    read = []

    def reward(data_source, solution_str, ground_truth, extra_info) -> dict:
        read.append(solution_str)
        return {"score": 1.0}

    model = {"_target_": "verl.workers.config.HFModelConfig", "path": str(with_special_tags)}
    model |= {"override_config": {"attn_implementation": "sdpa"}}
    config = OmegaConf.create({"actor_rollout_ref": {"model": model}})
    for manager in (servers.RewardManager, NaiveRewardManager):
        padded = torch.tensor([tokens + [0, 0]])
        mask = torch.tensor([[1] + [1] * len(tokens) + [0, 0]])
        tensors = TensorDict({"prompts": padded[:, :1], "responses": padded, "attention_mask": mask}, batch_size=1)
        row = {"data_source": ["d"], "reward_model": [{"ground_truth": 3}], "extra_info": [{}]}
        data = DataProto.from_single_dict(
            dict(tensors) | {name: np.array(value, dtype=object) for name, value in row.items()}
        )
        made = manager(config, tokenizer, reward)
        made.loop.run_until_complete(made.run_single(data))
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert read[0] == decode(tokenizer, tokens, ends) == answer.removesuffix("<|im_end|>")
    assert read[1] != read[0] and "<think>" not in read[1]


# ---- a server that fails


@pytest.fixture
def sockets(tmp_path, monkeypatch):
    """The two ends of a transfer, in the roles that verl gives them."""
    monkeypatch.setattr(servers, "SECONDS_OF_SILENCE", 3)
    with zmq.Context() as context:
        sender, receiver = context.socket(zmq.REQ), context.socket(zmq.REP)
        sender.bind(f"ipc://{tmp_path}/socket")
        yield SimpleNamespace(
            sender=sender, receiver=receiver, connect=lambda: receiver.connect(f"ipc://{tmp_path}/socket")
        )
        sender.close(linger=0)
        receiver.close(linger=0)


def test_weights_that_are_taken_are_sent_on(sockets):
    sockets.connect()
    watched = servers.WatchedSocket(sockets.sender, Future())
    for message in ({"bucket": 1}, {"bucket": 2}):
        watched.send_pyobj(message)
        assert sockets.receiver.recv_pyobj() == message
        sockets.receiver.send(b"")
        assert watched.recv() == b""


@pytest.mark.parametrize("taken", [0, 1])
def test_a_server_that_fails_to_load_weights_is_not_waited_for(sockets, taken):
    """Before it is there at all, and after it took a bucket. verl's own socket would wait for ever."""
    loading = Future()
    watched = servers.WatchedSocket(sockets.sender, loading)
    if taken:
        sockets.connect()
        watched.send_pyobj({})
        sockets.receiver.recv()
        sockets.receiver.close()
    threading.Timer(0.3, loading.set_exception, [ValueError("these weights do not fit")]).start()
    started = time.monotonic()
    with pytest.raises(TrainingError, match="vLLM did not take the new weights: these weights do not fit"):
        watched.recv() if taken else watched.send_pyobj({})
    assert time.monotonic() - started < 2.5


def test_a_server_that_says_nothing_is_not_waited_for(sockets):
    with pytest.raises(TrainingError, match="vLLM did not take the new weights within 3 s"):
        servers.WatchedSocket(sockets.sender, None).send_pyobj({})


@pytest.fixture
def watched(monkeypatch):
    """A watch that looks often, over one server, and what it finds."""
    found = SimpleNamespace(dead="", engine=False)
    monkeypatch.setattr(servers, "SECONDS_BETWEEN_LOOKS", 0.1)
    monkeypatch.setattr(servers, "TRIES", 1)
    monkeypatch.setattr(servers, "what_is_dead", lambda: found.dead)
    monkeypatch.setattr(servers, "engine_is_dead", lambda server: found.engine)
    replica = SimpleNamespace(servers=["server"])
    found.trainer = SimpleNamespace(llm_server_manager=SimpleNamespace(get_replicas=lambda: [replica]))
    return found


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_a_wait_for_a_dead_server_is_ended(watched, handler):
    """Also if Ctrl-C is ignored, as in what a script starts in the background."""
    before, started = signal.signal(signal.SIGINT, handler), time.monotonic()
    threading.Timer(0.3, setattr, [watched, "dead", "a vLLM server died"]).start()
    with pytest.raises(TrainingError, match="^a vLLM server died$"), servers.ServerWatch(watched.trainer):
        time.sleep(60)
    assert time.monotonic() - started < 5
    assert signal.signal(signal.SIGINT, before) is handler


def test_a_wait_within_asyncio_is_ended_too(watched):
    """As verl waits for a weight sync: in a coroutine that never gives the loop a turn."""

    async def wait() -> None:
        time.sleep(60)

    started = time.monotonic()
    watched.engine = True
    with pytest.raises(TrainingError, match="vLLM's engine died"), servers.ServerWatch(watched.trainer):
        asyncio.run(wait())
    assert time.monotonic() - started < 5


def test_an_error_that_a_dead_engine_causes_says_so(watched):
    watched.engine = True
    match = "vLLM's engine died. What it printed above"
    with pytest.raises(TrainingError, match=match), servers.ServerWatch(watched.trainer):
        raise TrainingError("3 prompts could not be answered")


def test_other_errors_stay_as_they_are(watched):
    for error in (TrainingError("step 3: not finite"), KeyboardInterrupt(), ValueError("of somebody's loss")):
        with pytest.raises(type(error)) as caught, servers.ServerWatch(watched.trainer):
            raise error
        assert caught.value is error
    cause = TrainingError("vLLM did not take the new weights")
    with pytest.raises(TrainingError) as caught, servers.ServerWatch(watched.trainer):
        raise RayTaskError("update_weights", "Traceback …", cause, "proc", 1, "10.0.0.1").as_instanceof_cause()
    assert str(caught.value) == "vLLM did not take the new weights"


def test_a_server_that_could_not_start_says_so(watched):
    text = "ray::vLLMHttpServer.launch_server() (pid=1)\n  File …\nRuntimeError: no memory"
    error = RayTaskError("launch_server", text, RuntimeError("no memory"), "proc", 1, "10.0.0.1").as_instanceof_cause()
    match = r"^vLLM could not start \(no memory\). What it printed above says why"
    with pytest.raises(TrainingError, match=match), servers.ServerWatch(watched.trainer):
        raise error


def test_nothing_dead_is_nothing_said(watched):
    with servers.ServerWatch(watched.trainer):
        time.sleep(0.3)
