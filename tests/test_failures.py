"""What the user reads when a worker or a machine is gone, and when neither is."""

import os
import socket
from types import SimpleNamespace

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from common import failures


@pytest.fixture
def cluster(monkeypatch):
    """Two machines with a worker each, and a third that another job uses; none of them is real."""
    listening = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(failures.time, "sleep", lambda seconds: None)
    nodes, actors = {}, {}
    for number, job in enumerate(("01", "01", "02")):
        nodes[number] = {"NodeID": f"node{number}", "Alive": True, "NodeManagerAddress": "127.0.0.1"}
        nodes[number]["NodeManagerPort"] = listening.getsockname()[1]
        cause = SimpleNamespace(actor_died_error_context=SimpleNamespace(error_message=""))
        actors[number] = {"JobID": job, "Name": f"AbCdEfPackedWorker_{number}:0", "State": "ALIVE", "Pid": 40 + number}
        actors[number] |= {"DeathCause": cause, "Address": {"NodeID": f"node{number}", "IPAddress": f"10.0.0.{number}"}}
    monkeypatch.setattr(ray, "nodes", lambda: list(nodes.values()))
    monkeypatch.setattr(ray._private.state, "actors", lambda: actors)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01"))
    yield SimpleNamespace(nodes=nodes, actors=actors)
    listening.close()


def of_task(cause: Exception) -> Exception:
    return raw(cause).as_instanceof_cause()


def raw(cause: Exception) -> RayTaskError:
    return RayTaskError("train_batch", f"Traceback …\n{cause}", cause, "proc", 1, "10.0.0.1")


RESET = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:31337")
UNAVAILABLE = ActorUnavailableError("RpcError: failed to connect to all addresses", None)
ALL = [of_task(RESET), of_task(torch.distributed.DistBackendError("NCCL error")), UNAVAILABLE, ActorDiedError()]


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("known", [True, False], ids=["ray knows", "ray does not know yet"])
def test_a_machine_that_is_gone_is_named_and_what_to_do(cluster, error, known):
    if known:
        cluster.nodes[1]["Alive"] = False
    else:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            cluster.nodes[1]["NodeManagerPort"] = closed.getsockname()[1]
    assert failures.explain(error) == (
        "127.0.0.1 does not answer any more; 1 of the run's 2 workers were there. Start Ray there again, or on another "
        "machine in its place. Then the same command goes on from the last checkpoint, if there is one."
    )


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_a_machine_of_another_job_is_not_blamed(cluster, error):
    cluster.nodes[2]["Alive"] = False
    assert "does not answer" not in failures.explain(error)


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_a_worker_that_is_gone_is_named_with_the_cause(cluster, error):
    cluster.actors[1] |= {"State": "DEAD"}
    cluster.actors[1]["DeathCause"].actor_died_error_context.error_message = "killed by the kernel: out of memory"
    message = failures.explain(error)
    assert message.startswith(
        "a worker died, process 41 on 10.0.0.1; the same command goes on from the last checkpoint"
    )
    assert message.endswith("killed by the kernel: out of memory")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vllm_server_1_0", "a vLLM server"),
        ("agent_loop_worker_0_ab12cd34", "a process that asks vLLM"),
        ("reward_loop_worker_0_ab12cd34", "a process that computes rewards"),
    ],
)
def test_other_processes_of_the_run_are_named_too(cluster, name, kind):
    """A worker that asked a server that died fails itself, and lives."""
    assert failures.what_is_dead() == ""
    cluster.actors[1] |= {"State": "DEAD", "Name": name}
    cluster.actors[2] |= {"State": "DEAD"}  # of another job
    assert failures.what_is_dead().startswith(f"{kind} died, process 41 on 10.0.0.1; the same command goes on")
    assert failures.explain(UNAVAILABLE).startswith(f"{kind} died, process 41 on 10.0.0.1")


def test_an_error_of_the_workers_code_keeps_its_traceback(cluster):
    message = failures.explain(of_task(ValueError("line 1 of somebody's loss\nnot a loss")))
    assert message.startswith("a worker failed; the same command goes on")
    assert message.endswith("line 1 of somebody's loss\nnot a loss")
    assert failures.what_is_gone(OSError(28, os.strerror(28))) == ""


def test_a_worker_that_could_not_start_did_not_die(cluster):
    error = ActorDiedError.from_task_error(raw(ImportError("no module named engine")))
    message = failures.explain(error)
    assert message.startswith("a worker failed;") and "no module named engine" in message
