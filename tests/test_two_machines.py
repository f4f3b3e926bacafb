"""Two machines, each with its own address, joined as the README says: they train as one does, and go on after a crash.

All four methods, compared step by step: tests/benchmarks/two_machines.py.
"""

import pyarrow.parquet as pq
import pytest
from machines import ADDRESS, BIN, Machine, Machines, readme_commands, start_ray, why_not
from runs import REPO, finish, kill_group, log_of, metrics_of, start, wait_for

pytestmark = pytest.mark.run

STEPS = 9
SETTINGS = (
    "data.train_batch_size=8",
    f"trainer.total_training_steps={STEPS}",
    "optim.lr=1e-3",
    "trainer.save_freq=3",
)
GONE = (
    "train.py: 10.0.0.2 does not answer any more; 1 of the run's 2 workers were there. Start Ray there again, or on "
    "another machine in its place. Then the same command goes on from the last checkpoint, if there is one."
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder that both machines see."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    with Machines(tmp_path_factory.mktemp("machines")) as both:
        yield both


@pytest.fixture
def alone(machines, tmp_path, small_run):
    """The same run on one machine, in the background: much of what the two do is waiting."""
    process = start(tmp_path / "one", *SETTINGS, **small_run, N_GPUS_PER_NODE="2")
    yield process
    kill_group(process)


def connect(machine: Machine, environment: str) -> str:
    """Have a process on a machine join the cluster with GPUs or cores for two; return what it says."""
    code = "import bradley_terry; from common import cluster; print(cluster.connect('bradley_terry', 2, 1))"
    return machine.run(f'cd {REPO} && export RAY_ADDRESS={ADDRESS} {environment}; {BIN}/python -c "{code}"').stdout


def test_two_machines_train_as_one_and_go_on_after_a_crash(machines, shared, tmp_path, small_run, alone):
    (first, second), (of_the_first, of_others, of_a_run) = machines, readme_commands(shared)
    start_ray(first, of_the_first)

    assert f"the Ray cluster at {ADDRESS} asks for a token, and this machine has none." in connect(first, "")
    # found where Ray looks for it; and a machine is missing
    found = connect(first, f"RAY_AUTH_TOKEN_PATH={shared}/ray_token")
    assert "This run asks for 2 node(s) with 1 free CPU each; the cluster has free: 10.0.0.1 (" in found
    assert "If a machine is missing: its `ray start` says why. If that is the token, give `export RAY_AUTH" in found
    start_ray(second, of_others)

    output = shared / "my_run"
    settings = small_run | {"RAY_ADDRESS": ADDRESS, "NNODES": "2"}
    process = start(output, *SETTINGS, on=[*first.on, "env", f"RAY_AUTH_TOKEN_PATH={shared}/ray_token"], **settings)
    wait_for(lambda: process.poll() is not None or max(metrics_of(output, "train/loss"), default=0) >= 5)
    second.crash()
    assert finish(process, 120) == 1
    assert f"\n{GONE}\n" in log_of(output) and "Traceback" not in log_of(output)

    start_ray(second, of_others)
    inputs = " ".join(f"{name}={value}" for name, value in small_run.items())
    token = of_the_first.splitlines()[1]  # the README's shell is the one in which Ray was started
    done = first.run(f"{token}\ncd {REPO} && export {inputs}\n{of_a_run.rstrip()} {' '.join(SETTINGS)}", timeout=300)
    assert done.returncode == 0 and f"resuming after step 3 of {STEPS}" in done.stdout, done.stdout

    assert finish(alone) == 0, log_of(tmp_path / "one")[-4000:]
    for name in ("train/loss", "train/grad_norm", "val/log_loss"):
        values, expected = metrics_of(output, name), metrics_of(tmp_path / "one", name)
        assert len(expected) > 1 and values == pytest.approx(expected, abs=1e-3), name
    rewards, expected = (
        pq.read_table(folder / "val_rewards.parquet").to_pylist() for folder in (output, tmp_path / "one")
    )
    for row, expected_row in zip(rewards, expected, strict=True):
        assert row == pytest.approx(expected_row, abs=1e-3)
