"""gloo and NCCL use the interface that has Ray's address of the machine, unless someone chose another one."""

import os
from types import SimpleNamespace

import psutil
import pytest

from common.network import INTERFACES, interface_of, settings_of_the_run, use_interface_of

ADDRESSES = {"lo": ["127.0.0.1", "::1"], "docker0": ["172.17.0.1"], "eno1": ["10.0.0.2", "fe80::1%eno1", "fd00::2"]}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with three interfaces, and no settings."""
    found = {name: [SimpleNamespace(address=address) for address in all_of] for name, all_of in ADDRESSES.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    for name in INTERFACES:
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.setenv(f"RUN_{name}", "")
        monkeypatch.delenv(name)
        monkeypatch.delenv(f"RUN_{name}")
    return monkeypatch


def chosen() -> list[str | None]:
    return [os.environ.get(name) for name in INTERFACES]


def test_the_interface_with_the_address():
    assert interface_of("10.0.0.2") == "eno1" and interface_of("127.0.0.1") == "lo"
    assert interface_of("fd00::2") == interface_of("fe80::1") == "eno1"
    assert interface_of("10.0.0.3") is None and interface_of("10.0.0") is None


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2", "[fd00::2]"])
def test_gloo_and_nccl_use_it(address):
    use_interface_of(address)
    assert chosen() == ["eno1", "=eno1"]  # for NCCL, eno1 alone would be eno1, eno10, …


def test_on_one_machine_nccl_is_left_alone():
    use_interface_of("127.0.0.1")
    assert chosen() == ["lo", None]


def test_an_address_of_no_interface_changes_nothing():
    use_interface_of("203.0.113.5")
    assert chosen() == [None, None]


def test_a_machines_own_setting_comes_first_then_that_of_the_run(machine):
    machine.setenv("NCCL_SOCKET_IFNAME", "ib0")
    assert settings_of_the_run() == {"RUN_NCCL_SOCKET_IFNAME": "ib0"}
    machine.setenv("RUN_NCCL_SOCKET_IFNAME", "ib1")
    machine.setenv("RUN_GLOO_SOCKET_IFNAME", "bond0")
    use_interface_of("10.0.0.2")
    assert chosen() == ["bond0", "ib0"]
