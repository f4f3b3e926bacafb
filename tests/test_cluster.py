"""Joining a cluster: its token, its room, its GPUs. The real thing: test_bt_distributed.py, test_two_machines.py."""

import os
import subprocess
import sys

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
    sizes, said = cluster._ask_torch()
    assert sizes == [] and said.startswith(f"torch {torch.__version__} says '")


@pytest.mark.run
def test_a_local_run_leaves_no_token_for_a_later_ray_start(tmp_path):
    code = "import ray, bradley_terry; from common import cluster; print(cluster.connect('bradley_terry', 1, 1))"
    code += "; print(ray._private.authentication.authentication_utils.is_token_auth_enabled())"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert "Devices(kind='cpu', per_node=1, card=None)\nTrue\n" in shown.stdout and not (tmp_path / ".ray").exists()
