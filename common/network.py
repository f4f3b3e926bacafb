"""Which network the workers of several machines talk over.

gloo, which carries verl's exchanges between processors, takes the address that the machine's name has. On Debian and
Ubuntu that is 127.0.0.1 or 127.0.1.1: the other machines then look for the worker on themselves. NCCL, between GPUs,
takes the first network that it finds, which may be one that the other machines do not see. Here both are told to use
the interface that has Ray's address of the machine: over it the machines have found each other already. Interfaces may
have another name on each machine, so each worker looks for itself.
"""

import ipaddress
import os

import psutil

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
OF_THE_RUN = "RUN_"  # before the name of a setting of the run, which does not hide a machine's own


def settings_of_the_run() -> dict[str, str]:
    """Return what workers must know of this process' settings."""
    return {f"{OF_THE_RUN}{name}": os.environ[name] for name in INTERFACES if os.environ.get(name)}


def use_interface_of(address: str) -> None:
    """Have gloo and NCCL use the interface with Ray's address of this machine.

    A machine's own setting, in the environment of its `ray start`, comes first, then that of the run. To be called
    before torch.distributed starts.
    """
    address = address.strip("[]")
    interface = interface_of(address)
    found = {name: os.environ.get(f"{OF_THE_RUN}{name}") for name in INTERFACES}
    if interface:
        found["GLOO_SOCKET_IFNAME"] = found["GLOO_SOCKET_IFNAME"] or interface
        if not ipaddress.ip_address(address).is_loopback:  # on one machine NCCL finds its way by itself
            # with "=" the whole name; without, NCCL would take every interface whose name starts so
            found["NCCL_SOCKET_IFNAME"] = found["NCCL_SOCKET_IFNAME"] or f"={interface}"
    for name, value in found.items():
        if value and not os.environ.get(name):
            os.environ[name] = value


def interface_of(address: str) -> str | None:
    """Return the name of the interface with that address, or nothing if it is of no interface, as behind a NAT."""
    for interface, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == address for found in addresses):
            return interface
    return None
