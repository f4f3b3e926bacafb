"""Joining a cluster: its token, its room, its GPUs. The real thing: test_bt_distributed.py, test_two_machines.py."""

import os
import platform
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray
import torch
from conftest import REPO
from ray._private.authentication import authentication_token_setup

from common import cluster

ASKS = "the Ray cluster at 10.0.0.1:6379 asks for a token, and "


@pytest.fixture
def head(monkeypatch):
    """A head that refuses everyone, and a machine with a token of unknown worth."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster, "_asks_for_token", lambda address: True)
    found = "maybe_enable_token_auth_if_token_available"
    monkeypatch.setattr(authentication_token_setup, found, lambda warn_if_disabled: True)
    return monkeypatch


def refusal() -> str:
    with pytest.raises(cluster.ClusterError) as caught:
        cluster._take_token("10.0.0.1:6379")
    assert "`ray get-auth-token` prints it on the machine where `ray start --head` ran" in str(caught.value)
    assert "`export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=…`, in the shell of every `ray start`" in str(caught.value)
    return str(caught.value)


def test_a_token_that_is_missing(head):
    found = "maybe_enable_token_auth_if_token_available"
    head.setattr(authentication_token_setup, found, lambda warn_if_disabled: False)
    assert refusal().startswith(ASKS + "this machine has none.")


def test_a_token_that_is_another_one(head):
    assert refusal().startswith(ASKS + "this machine's, of ~/.ray/auth_token, is another one.")
    head.setenv("RAY_AUTH_TOKEN_PATH", "/shared/ray_token")
    assert refusal().startswith(ASKS + "this machine's, of RAY_AUTH_TOKEN_PATH, is another one.")
    head.setenv("RAY_AUTH_TOKEN", "0" * 64)
    assert refusal().startswith(ASKS + "this machine's, of RAY_AUTH_TOKEN, is another one.")


def test_a_token_that_must_not_be_sent(head):
    head.setenv("RAY_AUTH_MODE", "disabled")
    assert refusal().startswith(ASKS + "RAY_AUTH_MODE=disabled forbids to send one.")


def test_the_right_token(head):
    head.setattr(cluster, "_asks_for_token", lambda address: False)
    cluster._take_token("10.0.0.1:6379")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "not an address"])
def test_no_cluster_at_the_address(address):
    with pytest.raises(cluster.ClusterError, match=f"no Ray cluster answers at RAY_ADDRESS={address}: "):
        cluster._check_reachable(address)


def test_a_machine_that_is_missing(monkeypatch):
    node = {"NodeID": "abcdef012", "NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(ray._private.state, "available_resources_per_node", lambda: {"abcdef012": {"CPU": 2.0}})
    cluster._check_room(1, {"CPU": 1}, 0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(
        cluster.ClusterError, match=r"10.0.0.1 \(abcdef\): 2 CPU.*If a machine is missing: its `ray start`"
    ):
        cluster._check_room(2, {"CPU": 1}, 0)
    with pytest.raises(cluster.ClusterError) as caught:
        cluster._check_room(1, {"CPU": 3}, 0)
    assert "missing" not in str(caught.value)


@pytest.fixture
def machine_started_again(monkeypatch):
    """Two machines, and what Ray knew of the second before it died; Ray counts that one out at the third question."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [server.getsockname()[1] for server in (one, other)]
        nodes = [{"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port, "Alive": True} for port in ports]
        nodes = [node | {"NodeID": name} for node, name in zip([*nodes, nodes[1]], ("abcdef0", "bcdefa1", "fedcba2"))]
        asked = []

        def ask() -> list[dict]:
            asked.append(True)
            return [*nodes[:2], nodes[2] | {"Alive": len(asked) < 3}]

        monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(ray, "nodes", ask)
        yield SimpleNamespace(nodes=nodes, asked=asked)


def close_port_of_the_dead(nodes: list[dict]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nodes[2]["NodeManagerPort"] = closed.getsockname()[1]


@pytest.mark.parametrize("same_port", [False, True])
def test_a_run_waits_until_ray_no_longer_counts_a_machine_that_died(machine_started_again, same_port, capsys):
    found = "127.0.0.1 (bcdefa) is counted twice; 127.0.0.1 (fedcba) is counted twice"
    if not same_port:
        close_port_of_the_dead(machine_started_again.nodes)
        found = "127.0.0.1 (fedcba) does not answer"
    cluster._wait_for_the_dead()
    assert len(machine_started_again.asked) == 3
    said = f"Ray counts machines that seem to be dead: {found}. Waiting until it notices\n"
    assert capsys.readouterr().out == said


def test_a_machine_that_never_answers_is_named(machine_started_again, monkeypatch):
    close_port_of_the_dead(machine_started_again.nodes)
    monkeypatch.setattr(cluster, "SECONDS_TO_BE_COUNTED_OUT", -1)
    with pytest.raises(cluster.ClusterError, match=r"dead: 127.0.0.1 \(fedcba\) does not answer. If one is running, a"):
        cluster._wait_for_the_dead()


def test_whoever_joins_a_cluster_waits_for_its_dead(machine_started_again, monkeypatch):
    close_port_of_the_dead(machine_started_again.nodes)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(cluster, "SECONDS_TO_BE_COUNTED_OUT", -1)
    monkeypatch.setattr(cluster, "_check_reachable", lambda address: None)
    monkeypatch.setattr(cluster, "_start_ray", lambda package, environment: None)
    with pytest.raises(cluster.ClusterError, match="seem to be dead"):
        cluster.connect("bradley_terry", 1, 1)


def test_a_client_of_a_cluster_is_told_which_address_is_wanted():
    with pytest.raises(cluster.ClusterError, match="RAY_ADDRESS=ray://head:10001: expected the address of"):
        cluster._check_reachable("ray://head:10001")


def test_every_group_of_workers_gets_a_node_of_its_own(monkeypatch):
    free = {"a": {"CPU": 3.0, "GPU": 8.0}, "b": {"CPU": 8.0, "GPU": 8.0}, "c": {"CPU": 1.0, "GPU": 8.0}}
    nodes = [{"NodeID": name, "NodeManagerAddress": f"10.0.0.{number}"} for number, name in enumerate("abcd", 1)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)  # d is dead: nothing is free there
    monkeypatch.setattr(ray._private.state, "available_resources_per_node", lambda: free)
    assert cluster.pick_nodes(2, {"CPU": 2}) == ["10.0.0.2", "10.0.0.1"]
    assert sorted(cluster.pick_nodes(3, {"CPU": 1, "GPU": 8})) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    with pytest.raises(cluster.ClusterError, match="3 node.* with {'CPU': 2} free each are needed, and 2 are left"):
        cluster.pick_nodes(3, {"CPU": 2})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU that torch can use")
def test_torch_without_a_gpu():
    found, said = cluster._find_by_torch()
    assert found == [] and said.startswith(f"torch {torch.__version__} says '")


@pytest.fixture
def gpus(monkeypatch):
    """A machine with GPUs of these compute capabilities and sizes, as far as torch says."""
    cards = [((9, 0), 80), ((7, 5), 16)]
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))

    def properties(device):
        (major, minor), size = cards[device]
        return SimpleNamespace(major=major, minor=minor, total_memory=size)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    return cards


def test_gpus_before_ampere_compute_in_fp32_and_it_is_said_in_one_line(gpus, capsys):
    assert cluster._find_by_torch() == (gpus, f"torch {torch.__version__} finds 2")
    assert cluster._precision((7, 5)) == "fp32"
    said = capsys.readouterr().out
    assert said.startswith("GPUs before Ampere have no bf16: computing in fp32") and said.count("\n") == 1
    assert cluster._precision((8, 0)) == cluster._precision((9, 0)) == "bf16"
    assert capsys.readouterr().out == ""


def test_a_local_ray_has_gpus_of_no_hardware_for_vllms_servers_on_the_cpu():
    """verl asks Ray for one GPU for each worker that has a server."""
    assert "num_gpus" not in cluster._local_ray(2, 3, 4)
    settings = cluster._local_ray(2, 3, 4, servers_on_cpu=True)
    assert settings["num_gpus"] == 2 and settings["num_cpus"] >= 2 * 3 + 4
    assert cluster._local_ray(None, 3, 4, servers_on_cpu=True)["num_gpus"] == 1
    assert settings["_node_ip_address"] == "127.0.0.1"  # and verl's servers listen where Ray says that they are


def test_no_client_can_load_adapters_into_a_server():
    """verl loads its own by another way; over HTTP anybody on the machine could."""
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in cluster.ENVIRONMENT


@pytest.mark.run
def test_a_local_run_leaves_no_token_for_a_later_ray_start(tmp_path):
    code = "import ray, bradley_terry; from common import cluster; print(cluster.connect('bradley_terry', 1, 1))"
    code += "; print(ray._private.authentication.authentication_utils.is_token_auth_enabled())"
    code += "; import os; wanted = cluster.KEEP_MEMORY | cluster.WAIT_BRIEFLY"
    code += "; asked = ray.remote(lambda: {name: os.environ.get(name) for name in wanted})"
    code += "; print('a worker has', ray.get(asked.remote()))"
    own = ("RAY_", *cluster.KEEP_MEMORY, *cluster.WAIT_BRIEFLY)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environment["HOME"] = str(tmp_path)
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    said = "Machines(device='cpu', workers_per_node=1, precision='fp32', card=None, host=None, compiles=True)\nTrue\n"
    assert said in shown.stdout and not (tmp_path / ".ray").exists()
    assert f"a worker has {cluster.KEEP_MEMORY | cluster.WAIT_BRIEFLY}" in shown.stdout


def test_verls_notes_are_muted_and_all_else_that_it_prints_is_shown(capsys):
    printing = SimpleNamespace(pprint=print)
    cluster.mute(printing)
    for show in (printing.print, printing.pprint):
        show("Total steps: 6, num_warmup_steps: 5")
        show("WARN: grad_norm is not finite:", 3, sep="|")
        show()
    assert capsys.readouterr().out == "WARN: grad_norm is not finite:|3\n\n" * 2


FILL_AND_FREE = """
import ctypes, resource
libc, pages = ctypes.CDLL(None), []
libc.malloc.restype = ctypes.c_void_p
for _ in range(4):
    memory = ctypes.c_void_p(libc.malloc(2**27))
    libc.memset(memory, 1, 2**27)
    libc.free(memory)
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(pages[-1] - pages[0])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_workers_on_a_cpu_keep_the_memory_of_large_tensors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in cluster.KEEP_MEMORY:
        monkeypatch.delenv(name, raising=False)

    others = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "GLIBC_TUNABLES")}

    def new_pages(settings: dict) -> int:
        command = [sys.executable, "-c", FILL_AND_FREE]
        return int(subprocess.run(command, env=others | settings, capture_output=True, text=True, check=True).stdout)

    given_back, kept = new_pages({}), new_pages(cluster._settings_on_cpu(1))
    assert given_back > 100 and kept < given_back / 10  # new pages, of 4 KB each or of 2 MB


def test_threads_of_workers_on_a_cpu_wait_briefly():
    code, environment = "import torch", os.environ | cluster.WAIT_BRIEFLY | {"OMP_DISPLAY_ENV": "VERBOSE"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    if "GOMP_" not in shown.stderr:
        pytest.skip("this torch has not GNU's OpenMP")
    assert "GOMP_SPINCOUNT = '1000'" in shown.stderr and "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stderr


GROUPS = {"memory": cluster.KEEP_MEMORY, "wait": cluster.WAIT_BRIEFLY, "threads": {"OMP_NUM_THREADS": "3"}}


@pytest.mark.parametrize(
    "by_the_user, left_out",
    [
        ({}, ()),
        ({"OMP_NUM_THREADS": "5"}, ("threads",)),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("wait",)),
        ({"GOMP_SPINCOUNT": "7"}, ("wait",)),
        ({"MALLOC_TRIM_THRESHOLD_": "1000"}, ("memory",)),
        ({"MALLOC_MMAP_MAX_": "8", "OMP_NUM_THREADS": "5"}, ("memory", "threads")),
    ],
)
def test_settings_of_workers_on_a_cpu(by_the_user, left_out, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    for group in GROUPS.values():
        for name in group:
            monkeypatch.delenv(name, raising=False)
    for name, value in by_the_user.items():
        monkeypatch.setenv(name, value)
    expected = {}
    for kept in GROUPS.keys() - set(left_out):
        expected |= GROUPS[kept]
    assert cluster._settings_on_cpu(2) == expected
    if "threads" not in left_out:
        assert cluster._settings_on_cpu(4)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cluster._settings_on_cpu(2) == {}
