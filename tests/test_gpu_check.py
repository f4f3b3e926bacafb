"""The command for the day with a GPU works: without one it runs the same code on tiny shapes."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import REPO

pytestmark = [pytest.mark.run, pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")]


def test_every_part_that_needs_no_gpu_runs_and_meets_its_bar(tmp_path):
    command = [sys.executable, REPO / "tests" / "gpu_check.py", "--output", tmp_path, "--parts"]
    done = subprocess.run([*command, "parity", "speed", "answers"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["device"] == "no GPU, tiny shapes"
    compared = {(row["method"], row["precision"]): row for row in figures["parity"]}
    assert len(compared) == 6 and all(row["ok"] for row in compared.values())
    assert all(row["values, off"] < 1e-5 for (_, precision), row in compared.items() if precision == "fp32")
    timed = [row for row in figures["speed"] if "step s" in row]
    assert len(timed) == 3 and all(row["tokens/s"] > 0 and row["predicted GiB"] > 0 for row in timed)
    assert [row["tokens"] for row in figures["answers"]] == [48, 48]


def test_a_part_that_fails_leaves_the_others_and_shows_its_last_words(tmp_path, monkeypatch, capsys):
    import gpu_check

    def start(part, options):
        code = "print('ran', flush=True)" + "; raise SystemExit('no such kernel')" * (part == "parity")
        with (options.output / f"{part}.log").open("w") as log:
            return subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=subprocess.STDOUT)

    monkeypatch.setattr(gpu_check, "start", start)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(tmp_path), "--parts", "parity", "answers"])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "parity failed (1):\nran\nno such kernel" in said
    assert (
        "0 bars missed; failed: parity" in said and json.loads((tmp_path / "figures.json").read_text())["answers"] == []
    )
