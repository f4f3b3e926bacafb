"""The default run from end to end: it learns to judge, and what it leaves behind loads and judges elsewhere."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import REPO
from peft import AutoPeftModelForCausalLM
from runs import SFT_SCRIPT, finish, log_of, metrics_of, run, start
from safetensors.torch import load_file
from test_page import held_by
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

from common.parquet import read_rows
from generative_pairwise import prompt as pairwise
from generative_pointwise import prompt as pointwise

pytestmark = [pytest.mark.run, pytest.mark.timeout(1800)]  # a busy machine is no bug

SETTINGS = ("MODEL_PATH", "TRAIN_FILES", "VAL_FILES", "TEST_FILES", "SEED", "NNODES", "N_GPUS_PER_NODE", "RAY_ADDRESS")


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """`bash run_sft.sh` as a newcomer starts it, with nothing set but OUTPUT."""
    output = tmp_path_factory.mktemp("default") / "outputs"
    with pytest.MonkeyPatch.context() as environment:
        for name in SETTINGS:
            environment.delenv(name, raising=False)
        run(output, timeout=1700, script=SFT_SCRIPT)
    return output


@pytest.fixture(scope="module")
def last_step(default_run):
    return max(metrics_of(default_run, "train/loss"))


def test_it_learns_to_judge_what_its_baselines_cannot(default_run, last_step):
    """On the whole demo: 6,000 conversations in 375 steps of 16, measured on 600 about other queries."""
    assert last_step == 375 and metrics_of(default_run, "test/conversations") == {375: 600}
    found = json.loads((default_run / "evaluation_test.json").read_text())
    for kind in ("score", "preference"):
        assert found[f"{kind}/rows"] == 300
        assert found[f"{kind}/parse_rate"] >= 0.99
        assert found[f"{kind}/accuracy"] >= 0.95
        assert found[f"{kind}/majority_accuracy"] <= 0.5
        assert f"{kind}/accuracy" in log_of(default_run)
    assert found["score/within_one"] >= 0.95
    assert min(found[f"preference/recall_{preferred}"] for preferred in ("A", "B", "tie")) >= 0.8
    assert "conversations_without_a_verdict" not in found


def test_it_leaves_checkpoint_card_pictures_logs_and_progress(default_run, last_step):
    checkpoint = default_run / "checkpoint"
    names = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}
    assert names | {"README.md", "run.png", "evaluation_test.png"} <= {path.name for path in checkpoint.iterdir()}
    card = (checkpoint / "README.md").read_text()
    found = json.loads((default_run / "evaluation_test.json").read_text())
    assert f"| val/perplexity | {metrics_of(default_run, 'val/perplexity')[last_step]:.4g} |" in card
    assert f"| preference/accuracy | {found['preference/accuracy']:.4g} |" in card
    assert "pipeline_tag: text-generation" in card
    assert (checkpoint / "run.png").stat().st_size > 10_000
    titles = [shown["title"] for shown in held_by(default_run / "report.html")["sets"]]
    assert titles == ["val: 300 conversations", "test: 600 conversations"]
    assert list((default_run / "tensorboard").glob("events.out.tfevents.*"))
    assert len(metrics_of(default_run, "train/loss")) == last_step
    assert "train: 100%" in log_of(default_run)
    assert not [path for path in checkpoint.rglob("*") if path.suffix in (".pt", ".bin", ".pkl")]


def test_evaluate_finds_what_the_trainer_found(default_run, last_step):
    found = json.loads((default_run / "evaluation_test.json").read_text())
    for name in ("trained_tokens", "loss", "perplexity", "token_accuracy"):
        assert found[name] == pytest.approx(metrics_of(default_run, f"test/{name}")[last_step], abs=1e-5), name


def test_the_checkpoint_is_a_language_model_that_stops(default_run):
    checkpoint = default_run / "checkpoint"
    model, report = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer, generation = AutoTokenizer.from_pretrained(checkpoint), GenerationConfig.from_pretrained(checkpoint)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in generation.eos_token_id and generation.pad_token_id == tokenizer.pad_token_id != end
    assert "attn_implementation" not in (checkpoint / "config.json").read_text()
    rows, _ = read_rows(default_run / "data" / "val.parquet", ("messages",))
    prompt = tokenizer.apply_chat_template(
        rows[0]["messages"][:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=200, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert answer[-1] == end and len(answer) < 100


def test_a_pipeline_judges_as_the_card_says(default_run):
    rows, _ = read_rows(default_run / "data" / "test.parquet", ("messages",))
    judge = pipeline("text-generation", model=str(default_run / "checkpoint"), device="cpu")
    for row in rows[:3] + rows[-3:]:
        answer = judge(row["messages"][:-1], max_new_tokens=200, do_sample=False)[0]["generated_text"][-1]["content"]
        prompt = pointwise if "<score>" in row["messages"][-1]["content"] else pairwise
        assert prompt.parse(answer) is not None


@pytest.fixture
def ray_folder_of_a_dead_cluster():
    """Where Ray notes which cluster was started last on this machine; here, one that no longer answers."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a short path, as Ray puts sockets into it
        for place in (Path(folder), Path(folder) / "ray"):
            place.mkdir(exist_ok=True)
            (place / "ray_current_cluster").write_text("127.0.0.1:39999")
        yield folder


def test_a_copied_folder_trains_adapters_and_both_exports_answer_alike(
    tmp_path, small_sft_run, monkeypatch, ray_folder_of_a_dead_cluster
):
    """Outside the repo, with relative paths, without validation, on a machine where a cluster was left behind."""
    monkeypatch.setenv("RAY_TMPDIR", ray_folder_of_a_dead_cluster)
    copy = tmp_path / "my judge"
    shutil.copytree(REPO / "sft", copy, ignore=shutil.ignore_patterns("outputs", "__pycache__"))
    base = os.path.relpath(small_sft_run["MODEL_PATH"], copy)
    settings = ("model.lora_rank=4", "data.train_batch_size=8", "optim.lr=1e-2")
    environment = small_sft_run | {"OUTPUT": "outputs", "MODEL_PATH": base}
    environment |= {"TEST_FILES": small_sft_run["VAL_FILES"], "VAL_FILES": ""}
    checkpointing = "model.enable_gradient_checkpointing=True"
    process = start(tmp_path / "run", *settings, checkpointing, script=copy / "run_sft.sh", **environment)
    assert finish(process) == 0, log_of(tmp_path / "run")[-4000:]
    output = copy / "outputs"
    assert "Measured on val.parquet" in (output / "checkpoint" / "README.md").read_text()
    before, after = (
        load_file(f"{folder}/model.safetensors") for folder in (small_sft_run["MODEL_PATH"], output / "checkpoint")
    )
    assert before.keys() == after.keys()
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    losses = metrics_of(output, "train/loss")
    assert losses[max(losses)] < losses[1] - 0.5
    merged = AutoModelForCausalLM.from_pretrained(output / "checkpoint")
    adapter = AutoPeftModelForCausalLM.from_pretrained(output / "checkpoint_adapter")
    rows, _ = read_rows(small_sft_run["VAL_FILES"], ("messages",))
    tokenizer = AutoTokenizer.from_pretrained(output / "checkpoint")
    batch = tokenizer.apply_chat_template(rows[0]["messages"], return_dict=True, return_tensors="pt")
    torch.testing.assert_close(merged(**batch).logits, adapter(**batch).logits, atol=1e-4, rtol=1e-4)
