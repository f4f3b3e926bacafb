"""Machines for tests: network namespaces joined by a bridge, each with its own address, Ray session and home folder.

Several Ray nodes on one machine share its addresses, so they cannot show what goes wrong between machines: names that
resolve to loopback, tokens in one home folder, a machine that dies with all that runs on it. Namespaces can. The bridge
stands in a namespace of its own, so the host's network stays as it is. What all share is the file system, as by NFS.

All interfaces have different names. Nothing is known but the machines' addresses: there is no route to elsewhere, and
the host's name is of loopback.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
ADDRESS = "10.0.0.1:6379"


class Machine:
    """One of them: `machine.on` stands before a command that is to run there."""

    def __init__(self, name: str, address: str, folder: Path):
        self.name, self.address = name, address
        self.ray, self.home = folder / "ray", folder / "home"
        self.ray.mkdir(parents=True)
        self.home.mkdir()
        Path("/tmp/ray").mkdir(exist_ok=True)
        # `ip netns exec` gives each command mounts of its own, which end with it
        script = 'mount --bind "$0" /tmp/ray && exec "$@"'
        environment = [f"HOME={self.home}", f"PATH={BIN}{os.pathsep}{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED=0"]
        # common/__init__.py set this one for a local Ray, in the process of the tests
        environment = ["-u", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", *environment]
        self.on = ["ip", "netns", "exec", name, "env", *environment, "sh", "-c", script, str(self.ray)]

    def run(self, command: str, timeout: float = 120) -> subprocess.CompletedProcess:
        """Run a line of shell there; what it starts in the background goes on."""
        with open(self.home / "output", "w+") as output:  # a pipe would be kept open by what goes on
            done = subprocess.run(
                [*self.on, "bash", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout,
            )
        done.stdout = (self.home / "output").read_text(errors="replace")
        return done

    def crash(self) -> None:
        """Kill all that runs there, at once, and forget its Ray session."""
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True).stdout
        for pid in pids.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for session in self.ray.iterdir():
            if session.is_dir() and not session.is_symlink():
                shutil.rmtree(session)
            else:
                session.unlink()

    def unplug(self) -> None:
        """Pull the network cable: nothing arrives any more, and nobody is told."""
        _ip(f"-n {self.name} link set {_interface(self.name)} down")


class Machines:
    """Two machines or more, from 10.0.0.1 on. `with Machines(folder) as (first, second):` …"""

    def __init__(self, folder: Path, count: int = 2):
        self.names = [f"rr{os.getpid()}n{number}" for number in range(count + 1)]
        self.folder = folder

    def __enter__(self) -> list[Machine]:
        switch, *names = self.names
        try:
            _ip(f"netns add {switch}")
            _ip(f"-n {switch} link add bridge type bridge")
            _ip(f"-n {switch} link set bridge up")
            for number, name in enumerate(names, 1):
                _ip(f"netns add {name}")
                _ip(f"link add {_interface(name)} netns {name} type veth peer name port{number} netns {switch}")
                _ip(f"-n {switch} link set port{number} master bridge up")
                _ip(f"-n {name} addr add 10.0.0.{number}/24 dev {_interface(name)}")
                _ip(f"-n {name} link set {_interface(name)} up")
                _ip(f"-n {name} link set lo up")
        except subprocess.CalledProcessError:
            self._remove()
            raise
        self.machines = [
            Machine(name, f"10.0.0.{number}", self.folder / f"machine_{number}") for number, name in enumerate(names, 1)
        ]
        return self.machines

    def __exit__(self, *_) -> None:
        for machine in self.machines:
            machine.crash()
        self._remove()

    def _remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def readme_commands(shared: Path) -> list[str]:
    """Return the commands of the README's section: of the first machine, of the others, and of a run."""
    section = (REPO / "README.md").read_text().split("## Several machines")[1].split("\n## ")[0]
    return [block.replace("/shared", str(shared)) for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL)]


def start_ray(machine: Machine, command: str) -> None:
    """Start Ray on a machine by a command of the README, with as many processes as a judge needs on two machines."""
    done = machine.run(command.replace("ray start", "ray start --num-cpus=3"))
    assert done.returncode == 0, done.stdout


def _interface(name: str) -> str:
    return f"lan{name.rpartition('n')[2]}"


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True)


def why_not() -> str:
    """Return why namespaces cannot be made here, or nothing if they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux only"
    if not (shutil.which("ip") and shutil.which("mount")):
        return "needs the commands `ip` (package iproute2) and `mount`"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    name = f"rr{os.getpid()}try"
    try:
        _ip(f"netns add {name}")
        _ip(f"-n {name} link add bridge type bridge")
        _ip(f"-n {name} link add one type veth peer name other")
        _ip(f"netns exec {name} mount --bind /tmp /tmp")
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return ""
