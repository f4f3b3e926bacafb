"""vLLM's servers beside the trainer, on a machine without a GPU: what they answer, and what happens if they die.

Each run takes one to two minutes to start on two cores, so each proves much. The first is killed twice, at a server and
at an engine, and resumed.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from conftest import pair_judge_inputs
from runs import PAIRWISE_SCRIPT, POINTWISE_SCRIPT, finish, log_of, metrics_of, run, start, wait_for
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.demo.world import SCORE_RUBRIC, pointwise_rows
from common.grpo.answering import has_gpu, why_not_vllm
from common.parquet import write_rows
from generative_pointwise.dataset import write_prompt
from generative_pointwise.prompt import read_row

WHY_NOT = "this machine has a GPU" if has_gpu() else why_not_vllm(gpu=False)
pytestmark = [pytest.mark.run, pytest.mark.timeout(2400), pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

POLICY = "actor_rollout_ref"
SETTINGS = (
    "data.train_batch_size=16",
    "data.max_response_length=48",
    f"{POLICY}.actor.ppo_mini_batch_size=16",
    f"{POLICY}.actor.optim.lr=3e-4",
    f"{POLICY}.actor.optim.lr_warmup_steps=1",
    f"{POLICY}.rollout.n=4",
    f"{POLICY}.model.enable_gradient_checkpointing=False",
    "trainer.total_epochs=2",
    "trainer.test_freq=5",
    "trainer.save_freq=3",
)
STEPS = 10
SECONDS_TO_END = 60
GO_ON = "the same command goes on from the last checkpoint, if there is one"


def processes_of(run, title: str) -> list[psutil.Process]:
    """Processes of a run that call themselves so."""
    found = []
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            found += [process] if " ".join(process.cmdline()).startswith(title) else []
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for_step(process, output: Path, step: int) -> None:
    def there() -> bool:
        assert process.poll() is None, log_of(output)[-4000:]
        return max(metrics_of(output, "train/reward"), default=0) >= step

    wait_for(there, timeout=600, every=0.2)


def last_words(output: Path, process, since: float) -> tuple[str, float]:
    """Wait for a run that must fail, and return its last line and how long that took."""
    status = finish(process, SECONDS_TO_END)
    took = time.monotonic() - since
    text = log_of(output)
    assert status == 1, text[-4000:]
    message = text[text.rindex("\ntrain.py: ") :].strip().split("\n\n")[0]
    print(f"\nended after {took:.0f} s: {message}")
    return message, took


def is_local(address: str) -> bool:
    return address in ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def cut_vocabulary(model: str, folder: Path) -> None:
    """Write a model without the rows of its vocabulary that are beyond the tokenizer's.

    verl forbids vLLM these tokens, and the trainer gives them a share of the probability: a difference that says
    nothing about weights.
    """
    tokenizer, cut = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    cut.resize_token_embeddings(len(tokenizer))
    for part in (cut, tokenizer):
        part.save_pretrained(folder)


@pytest.fixture(scope="module")
def inputs(small_judge_run, tmp_path_factory) -> dict[str, str]:
    """The small judge's run, with 200 rows to judge before training; transformers judges them too."""
    folder = tmp_path_factory.mktemp("inputs")
    cut_vocabulary(small_judge_run["MODEL_PATH"], folder / "judge")
    rows = [write_prompt(read_row(row), SCORE_RUBRIC) for row in pointwise_rows("val", 200, seed=0)]
    rows = [{name: row[name] for name in ("prompt", "label", "rubric")} for row in rows]
    val = str(write_rows(folder / "val.parquet", rows))
    changed = {"MODEL_PATH": str(folder / "judge"), "VAL_FILES": val, "TEST_FILES": val, "ROLLOUT": "vllm"}
    return small_judge_run | changed


@pytest.fixture(scope="module")
def served(inputs, tmp_path_factory) -> SimpleNamespace:
    """A run of ten updates on two workers with a server each; two processes of its servers are killed on the way."""
    output = tmp_path_factory.mktemp("served") / "outputs"
    settings = (*SETTINGS, f"trainer.total_training_steps={STEPS}", f"trainer.rollout_data_dir={output}/answers")
    settings += (f"trainer.validation_data_dir={output}/validation",)
    seen = SimpleNamespace(output=output, killed={}, listening=set())
    for step, victim in ((4, "ray::vLLMHttpServer"), (7, "VLLM::Worker")):
        process = start(output, *settings, script=POINTWISE_SCRIPT, **inputs, N_GPUS_PER_NODE="2")
        wait_for_step(process, output, step)
        for part in processes_of(process, ""):
            listening = [found for found in part.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
            seen.listening |= {(part.name(), found.laddr.ip) for found in listening}
        servers = processes_of(process, victim)
        assert len(servers) == 2
        shutil.copytree(output / "answers", output.parent / f"answers_before_{step}")
        servers[0].send_signal(signal.SIGKILL)
        seen.killed[victim] = last_words(output, process, time.monotonic()) + (servers[0].pid,)
    run(output, *settings, script=POINTWISE_SCRIPT, timeout=900, **inputs, N_GPUS_PER_NODE="2")
    return seen


def test_after_every_update_the_servers_probabilities_are_the_trainers(served, inputs):
    """Up to rounding, while the weights have moved by much more than that."""
    differences = metrics_of(served.output, "training/rollout_probs_diff_mean")
    print("\ndifferences:", {step: f"{value:.1e}" for step, value in differences.items()})
    assert list(differences) == list(range(1, STEPS + 1)) and max(differences.values()) < 1e-6
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder)
        for folder in (inputs["MODEL_PATH"], served.output / "checkpoint_last")
    )
    answered = json.loads((served.output / "answers" / f"{STEPS}.jsonl").read_text().splitlines()[0])
    tokenizer = AutoTokenizer.from_pretrained(served.output / "tokenizer")
    ids = tokenizer(answered["input"] + answered["output"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        moved = (before(ids).logits.softmax(-1) - after(ids).logits.softmax(-1)).gather(2, ids[..., None]).abs().mean()
    print(f"moved by {moved:.1e}")
    assert moved > 1e-4


def test_greedy_answers_are_those_of_transformers(served):
    """Validation before training, by vLLM, against the same model's evaluation by transformers, both in fp32."""
    lines = map(json.loads, (served.output / "validation" / "0.jsonl").read_text().splitlines())
    by_vllm = {entry["input"]: entry["output"] for entry in lines}
    rows = pq.read_table(served.output / "before" / "evaluation_val.parquet").to_pylist()
    by_transformers = {f"user\n{row['prompt'][0]['content']}\nassistant\n": row["answers"][0] for row in rows}
    assert by_vllm.keys() == by_transformers.keys() and len(by_vllm) > 190
    same = sum(by_vllm[asked] == by_transformers[asked] for asked in by_vllm)
    print(f"\nequal greedy answers: {same} of {len(by_vllm)}")
    assert same >= 0.99 * len(by_vllm)


def answers(folder: Path, step: int) -> list[tuple[str, str]]:
    lines = (folder / f"{step}.jsonl").read_text().splitlines()
    return sorted((entry["input"], entry["output"]) for entry in map(json.loads, lines))


def test_the_same_seed_gives_the_same_answers_and_every_answer_its_own(served):
    """Two steps were made twice, before a kill and again after it, from the same checkpoint."""
    for step, first, second in (
        (4, "answers_before_4", "answers_before_7"),
        (7, "answers_before_7", "outputs/answers"),
    ):
        once, twice = (answers(served.output.parent / folder, step) for folder in (first, second))
        assert len(once) == len(twice) == 64
        same = sum(a == b for a, b in zip(once, twice))
        print(f"\nequal sampled answers of step {step}: {same} of 64")
        assert same >= 62
    different = [len({answer for asked, answer in once if asked == prompt}) for prompt in {asked for asked, _ in once}]
    assert max(different) == 4 and sum(different) > 16  # most prompts have several answers


@pytest.mark.parametrize("victim", ["ray::vLLMHttpServer", "VLLM::Worker"])
def test_a_server_that_is_killed_ends_the_run_with_one_message(served, victim):
    message, took, pid = served.killed[victim]
    assert took < SECONDS_TO_END
    if victim == "VLLM::Worker":
        assert message.startswith("train.py: vLLM's engine died. What it printed above says why. If memory is short,")
    else:
        assert message.startswith(f"train.py: a vLLM server died, process {pid} on 127.0.0.1; {GO_ON}.")
    assert "\n" not in message


def test_killed_and_resumed_it_leaves_the_judge_that_was_validated(served):
    """Validation by vLLM after the last update that was best, against the exported checkpoint by transformers."""
    best = json.loads((served.output / "best.json").read_text())
    found = json.loads((served.output / "evaluation_val.json").read_text())
    accuracy = metrics_of(served.output, "val/acc")
    assert sorted(accuracy) == [0, 5, STEPS] and best["val/acc"] == accuracy[best["step"]]
    assert found["accuracy"] == pytest.approx(best["val/acc"], abs=0.01)


def test_servers_listen_on_this_machine_alone(served):
    found = {name: address for name, address in served.listening if "vllm" in name.lower()}
    assert "ray::vLLMHttpServer" in found and all(map(is_local, found.values())), found


def test_a_pairwise_judge_with_adapters(tiny_model, tmp_path):
    """The base model's weights go to the server once, the adapter after every update."""
    inputs = pair_judge_inputs(tiny_model, tmp_path)
    cut_vocabulary(inputs["MODEL_PATH"], tmp_path / "cut")
    adapters = (f"{POLICY}.model.lora_rank=8", f"{POLICY}.actor.optim.lr=2e-3", "trainer.total_training_steps=4")
    environment = inputs | {"MODEL_PATH": str(tmp_path / "cut"), "ROLLOUT": "vllm", "TEST_FILES": ""}
    text = run(tmp_path / "outputs", *SETTINGS, *adapters, script=PAIRWISE_SCRIPT, timeout=900, **environment)
    differences = metrics_of(tmp_path / "outputs", "training/rollout_probs_diff_mean")
    print("\ndifferences:", {step: f"{value:.1e}" for step, value in differences.items()})
    assert list(differences) == [1, 2, 3, 4] and max(differences.values()) < 1e-6
    assert "Traceback" not in text and (tmp_path / "outputs" / "checkpoint_last_adapter").is_dir()


BROKEN = '''
from common.cpu.servers import KeepsWeights

class TakesThemOnce(KeepsWeights):
    """vLLM's worker, which takes weights once."""

    def _update_weights(self, *weights, **settings):
        if hasattr(self, "took"):
            raise ValueError("these weights do not fit")
        self.took = True
        super()._update_weights(*weights, **settings)
'''


def test_a_weight_sync_that_fails_ends_the_run_with_one_message(inputs, tmp_path):
    (tmp_path / "broken_worker.py").write_text(BROKEN)
    environment = inputs | {"TEST_FILES": "", "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"}
    extension = f"+{POLICY}.rollout.engine_kwargs.vllm.worker_extension_cls=broken_worker.TakesThemOnce"
    output = tmp_path / "outputs"
    process = start(output, *SETTINGS, extension, script=POINTWISE_SCRIPT, **environment)
    said = "ValueError: these weights do not fit"
    wait_for(lambda: said in log_of(output) or process.poll() is not None, timeout=600)
    message, _ = last_words(output, process, time.monotonic())
    assert message.startswith("train.py: vLLM did not take the new weights: ") and said in log_of(output)
    assert message.endswith(f"What it printed above says why; then {GO_ON}.") and "\n" not in message


def test_a_cache_that_does_not_fit_ends_the_run_with_one_message(inputs, tmp_path):
    output = tmp_path / "outputs"
    cache = f"+{POLICY}.rollout.engine_kwargs.vllm.kv_cache_memory_bytes={10**14}"
    process = start(output, *SETTINGS, cache, script=POINTWISE_SCRIPT, **inputs | {"TEST_FILES": ""})
    wait_for(lambda: "less than requested memory" in log_of(output) or process.poll() is not None, timeout=600)
    message, _ = last_words(output, process, time.monotonic())
    assert message.startswith("train.py: vLLM could not start") and "\n" not in message
