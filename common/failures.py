"""What an error of Ray means: which machine or worker is gone, and how the run goes on.

If a machine dies, gloo or NCCL on another one often notices first, and its traceback about a closed connection does not
say which. Ray itself takes up to a minute to declare a machine dead. So the machines of the run are asked here whether
they still answer.
"""

import re
import socket
import time

import ray
import torch
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError

OF_WORKERS = (RayActorError, RayTaskError, ObjectLostError, NodeDiedError, WorkerCrashedError)
GO_ON = "the same command goes on from the last checkpoint, if there is one"
OF_CONNECTIONS = re.compile("gloo|nccl|connect|socket|broken pipe", re.IGNORECASE)  # what torch says of a lost peer
PROCESSES = {  # what they are called, by the names of their actors; the first train
    re.compile(r"_\d+:\d+$"): "a worker",
    re.compile(r"^vllm_server_"): "a vLLM server",
    re.compile(r"^agent_loop_worker_"): "a process that asks vLLM",
    re.compile(r"^reward_loop_worker_"): "a process that computes rewards",
}
TRIES, SECONDS_TO_ANSWER = 3, 5


def explain(error: Exception) -> str:
    """Return what the user should read about an error of `OF_WORKERS`."""
    return what_is_gone(error) or f"a worker failed; {GO_ON}. {error}"


def what_is_gone(error: Exception) -> str:
    """Return which machine or worker is gone and what to do, or nothing if the error has another cause."""
    death = _is_death(error)
    if not death and not _is_of_connections(error):
        return ""
    for seconds in range(TRIES):
        time.sleep(seconds)
        actors = _actors_of_the_run()
        if machines := _machines_gone({actor["Address"]["NodeID"] for actor in actors}):
            return _describe_machines(machines, actors)
    if found := _describe_first_dead(actors, error):
        return found
    return f"a worker died; {GO_ON}. {error}" if death else ""


def what_is_dead() -> str:
    """Return which process of the run is known to be dead and what to do, or nothing. Machines are not asked."""
    return _describe_first_dead(_actors_of_the_run(), "")


def _is_death(error: Exception) -> bool:
    if isinstance(error, RayActorError):
        return not error.actor_init_failed  # else it lives, and its error is in the text
    return isinstance(error, (NodeDiedError, WorkerCrashedError, ObjectLostError))


def _is_of_connections(error: Exception) -> bool:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, torch.distributed.DistError | ConnectionError):
        return True
    return isinstance(cause, RuntimeError | RayActorError) and bool(OF_CONNECTIONS.search(str(cause)))


def _actors_of_the_run() -> list[dict]:
    job = ray.get_runtime_context().get_job_id()
    return [actor for actor in ray._private.state.actors().values() if actor["JobID"] == job]


def _workers(actors: list[dict]) -> list[dict]:
    return [actor for actor in actors if next(iter(PROCESSES)).search(actor["Name"])]


def _describe_first_dead(actors: list[dict], error: Exception | str) -> str:
    """Say which one is dead, and why if Ray knows; else what the error says."""
    for name, kind in PROCESSES.items():
        for actor in actors:
            if actor["State"] == "DEAD" and name.search(actor["Name"]):
                where = f"process {actor['Pid']} on {actor['Address']['IPAddress']}"
                why = actor["DeathCause"].actor_died_error_context.error_message
                return f"{kind} died, {where}; {GO_ON}. {why or error}"
    return ""


def _machines_gone(used: set[str]) -> list[dict]:
    """Return the Ray nodes of those ids that do not answer."""
    return [node for node in ray.nodes() if node["NodeID"] in used and not (node["Alive"] and answers(node))]


def answers(node: dict) -> bool:
    """Return whether Ray still runs on one of `ray.nodes()`. A machine that is only busy does: its kernel answers."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True


def _describe_machines(machines: list[dict], actors: list[dict]) -> str:
    gone, workers = {node["NodeID"] for node in machines}, _workers(actors)
    lost = sum(actor["Address"]["NodeID"] in gone for actor in workers)
    names = ", ".join(sorted(node["NodeManagerAddress"] for node in machines))
    return (
        f"{names} does not answer any more; {lost} of the run's {len(workers)} workers were there. Start Ray there "
        f"again, or on another machine in its place. Then {GO_ON}."
    )
