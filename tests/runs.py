"""Start real training runs as a user does, and read what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
RUN_SCRIPT = REPO / "bradley_terry" / "run_bt.sh"
SFT_SCRIPT = REPO / "sft" / "run_sft.sh"
POINTWISE_SCRIPT = REPO / "generative_pointwise" / "run_pointwise.sh"
PAIRWISE_SCRIPT = REPO / "generative_pairwise" / "run_pairwise.sh"


def start(
    output: Path, *overrides: str, script: Path = RUN_SCRIPT, on: Sequence[str] = (), **environment: str
) -> subprocess.Popen:
    """Start a run script in a process group of its own, its output in `output.log`.

    `on` stands before the command, to run it elsewhere.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with open(f"{output}.log", "ab") as log:
        return subprocess.Popen(
            [*on, "bash", str(script), *overrides],
            env={**os.environ, "PATH": path, "OUTPUT": str(output), **environment},
            cwd=script.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: subprocess.Popen, timeout: float = 300) -> int:
    """Wait for a run; kill the whole group if it takes too long."""
    try:
        return process.wait(timeout)
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(30)


def run(output: Path, *overrides: str, timeout: float = 300, **environment: str) -> str:
    """Run to the end, expect success, and return what was printed."""
    status = finish(start(output, *overrides, **environment), timeout)
    text = log_of(output)
    assert status == 0, text[-4000:]
    return text


def log_of(output: Path) -> str:
    return Path(f"{output}.log").read_text(errors="replace")


def wait_for(condition, timeout: float = 180, every: float = 0.02) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(every)


def metrics_of(output: Path, name: str) -> dict[int, float]:
    """Return a metric by step, of all starts of a run, later ones winning."""
    values = {}
    for file in sorted((output / "metrics").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            entry = json.loads(line) if line.endswith("}") else {"data": {}}
            if name in entry["data"]:
                values[entry["step"]] = entry["data"][name]
    return values
