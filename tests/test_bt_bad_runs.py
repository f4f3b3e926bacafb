"""Runs that cannot work say why in one message and exit with an error; most of them before Ray or a model starts."""

import json
import re
import time
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from conftest import HYBRID, REPO
from hydra import compose, initialize_config_dir
from runs import finish, log_of, start
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CohereConfig,
    Qwen3NextConfig,
)

from bradley_terry import train
from bradley_terry.dataset import load_pairs
from common.checkpoint import CheckpointError
from common.cluster import Machines
from common.conversation import DataError
from common.demo.world import preference_pairs
from common.parquet import write_rows
from common.training import refuse_added

NUMBERS = """
data.max_length=2048 data.max_tokens_per_gpu=16384 data.train_batch_size=8
model.enable_gradient_checkpointing=False
optim.lr=1e-3 optim.lr_warmup_steps_ratio=0 optim.min_lr_ratio=0 optim.weight_decay=0 optim.betas=[0.9,0.98]
optim.clip_grad=1 loss.margin_scale=0 loss.centering=0
trainer.total_epochs=1 trainer.nnodes=1 trainer.seed=0
trainer.test_freq=0 trainer.save_freq=0 trainer.max_ckpt_to_keep=1
"""


@pytest.fixture
def attempt(tmp_path, small_run, monkeypatch):
    """Call train() in this process; reaching for the cluster is a failure."""

    def call(*overrides: str) -> None:
        files = [f"data.train_files='{small_run['TRAIN_FILES']}'", f"data.val_files='{small_run['VAL_FILES']}'"]
        places = [f"model.path='{small_run['MODEL_PATH']}'", f"trainer.output='{tmp_path / 'outputs'}'"]
        with initialize_config_dir(str(REPO / "bradley_terry"), version_base=None):
            config = compose("config", [*NUMBERS.split(), *files, *places, *overrides])
        train.train(config)

    monkeypatch.setattr(train.cluster, "connect", lambda *_: pytest.fail("the cluster was started"))
    return call


# ---- refused before Ray starts


def test_a_missing_file(attempt):
    with pytest.raises(DataError, match="nowhere.parquet: no such file"):
        attempt("data.train_files=nowhere.parquet")


def test_a_missing_test_file_is_missed_before_training(attempt):
    with pytest.raises(DataError, match="later.parquet: no such file"):
        attempt("data.test_files=later.parquet")


def test_a_model_path_that_does_not_exist(attempt):
    with pytest.raises(DataError, match="model.path=./no/model: no such folder. Set MODEL_PATH"):
        attempt("model.path=./no/model")


def test_a_model_folder_without_a_model(attempt, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: cannot be loaded"):
        attempt(f"model.path='{tmp_path / 'empty'}'")


def test_a_classifier_with_two_labels(attempt, tmp_path, tiny_model):
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2).save_pretrained(tmp_path / "two")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "two")
    with pytest.raises(DataError, match="a classifier with 2 labels; a reward has one"):
        attempt(f"model.path='{tmp_path / 'two'}'")


def test_a_batch_larger_than_the_data(attempt):
    with pytest.raises(DataError, match="data.train_batch_size=97 is larger than the 96 pairs"):
        attempt("data.train_batch_size=97")


def test_a_pair_longer_than_max_length(attempt):
    with pytest.raises(
        DataError,
        match=r"96 of 96 pairs are longer than data.max_length=10 tokens(.|\n)*drop leaves them out",
    ):
        attempt("data.max_length=10")


def test_all_pairs_dropped(attempt):
    with pytest.raises(DataError, match="no usable pair: all 96 are longer than data.max_length=10"):
        attempt("data.max_length=10", "data.truncation=drop")


def test_a_token_budget_below_one_pair(attempt):
    with pytest.raises(DataError, match="data.max_tokens_per_gpu=70 does not hold the largest pair"):
        attempt("data.max_tokens_per_gpu=70")


def test_a_margin_scale_without_margins(attempt, tmp_path):
    rows = [{side: row[side] for side in ("chosen", "rejected")} for row in preference_pairs("train", 16, seed=0)]
    path = write_rows(tmp_path / "no_margin.parquet", rows)
    with pytest.raises(DataError, match="loss.margin_scale=1, but the data has no `margin` above 0"):
        attempt(f"data.train_files='{path}'", "loss.margin_scale=1")


def test_a_batch_that_the_workers_cannot_share(attempt, monkeypatch):
    monkeypatch.setattr(train.cluster, "connect", lambda *_: Machines("cpu", 3, "fp32", card=None))
    with pytest.raises(DataError, match="data.train_batch_size=8 cannot be shared equally by 3 workers"):
        attempt()


def test_another_run_in_the_output_folder_is_not_resumed(attempt, tmp_path, tiny_model, monkeypatch):
    class Started(Exception):
        """All checks are done; what a checkpoint leaves is made by hand."""

    def stop(*_):
        raise Started

    monkeypatch.setattr(train.cluster, "connect", lambda *_: Machines("cpu", 1, "fp32", card=None))
    monkeypatch.setattr(train.training, "start_workers", stop)
    # a run that stops ends its process, and with it its claim; this process goes on
    monkeypatch.setattr(train, "claim_folder", lambda folder: folder.mkdir(exist_ok=True))
    output = tmp_path / "outputs"
    with pytest.raises(Started):
        attempt()
    (output / "global_step_4").mkdir()
    (output / "latest_checkpointed_iteration.txt").write_text("4")
    with pytest.raises(Started):
        attempt()  # the same run goes on
    config = AutoConfig.from_pretrained(tiny_model, num_hidden_layers=1, layer_types=["full_attention"])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError) as caught:
        attempt(f"model.path='{tmp_path / 'other'}'", "trainer.seed=5")
    message = str(caught.value)
    assert f"{output} holds a checkpoint of another run" in message
    assert re.search(r"model: 'Qwen3ForCausalLM, 2 layers x 128, weights \w+' there, '\S+ 1 layers x 128", message)
    assert "trainer.seed: 0 there, 5 here" in message
    assert "Choose another OUTPUT" in message


# ---- by the script


@pytest.mark.run
def test_bad_rows_are_listed_by_the_script_within_seconds(tmp_path, small_run):
    rows = preference_pairs("train", 20, seed=0)
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[7]["chosen"][-1]["content"] = "  "
    rows = [{side: json.dumps(row[side]) for side in ("chosen", "rejected")} for row in rows]
    rows[11]["rejected"] = rows[11]["rejected"][:-1]
    path = write_rows(tmp_path / "bad.parquet", rows)
    started = time.monotonic()
    assert finish(start(tmp_path / "outputs", **small_run | {"TRAIN_FILES": str(path)})) != 0
    assert time.monotonic() - started < 60  # it imports torch, on a machine that may be busy
    message = log_of(tmp_path / "outputs")
    assert "train.py: 3 of 20 rows cannot be used:" in message
    assert "bad.parquet row 3, column 'rejected': chosen and rejected are equal" in message
    assert "bad.parquet row 7, column 'chosen': empty response (found '  ')" in message
    assert "bad.parquet row 11, column 'rejected': JSON that cannot be parsed" in message
    assert "data.on_bad_row=drop" in message
    assert "Traceback" not in message and not (tmp_path / "outputs").exists()


@pytest.mark.run
def test_more_workers_than_the_machine_has(tmp_path, small_run):
    assert finish(start(tmp_path / "outputs", **small_run, N_GPUS_PER_NODE="64")) != 0
    assert "This run asks for 1 node(s) with 64 free" in log_of(tmp_path / "outputs")
    assert "Lower NNODES or N_GPUS_PER_NODE" in log_of(tmp_path / "outputs")


@pytest.mark.run
def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_rows(tmp_path, small_run, tiny_model):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    torch.nn.init.constant_(model.score.weight, float("nan"))
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "nan")
    settings = small_run | {"MODEL_PATH": str(tmp_path / "nan"), "VAL_FILES": ""}
    assert finish(start(tmp_path / "outputs", "data.train_batch_size=8", **settings)) != 0
    message = log_of(tmp_path / "outputs").split("train.py: ")[-1]
    assert message.startswith("step 1: loss nan, gradient norm nan. The weights of this step were not kept.")
    assert message.count("train.parquet row ") == 8
    assert not (tmp_path / "outputs" / "checkpoint").exists()


@pytest.mark.run
def test_a_model_that_cannot_be_packed_is_padded_and_scores_like_itself(tmp_path, small_run, tiny_model):
    """A hybrid of recurrent and attention layers: trained, reloaded by transformers alone, the same rewards."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    limits = {"pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 512}
    config = Qwen3NextConfig(vocab_size=704, **HYBRID, **limits)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "hybrid")
    tokenizer.save_pretrained(tmp_path / "hybrid")
    settings = small_run | {"MODEL_PATH": str(tmp_path / "hybrid")}
    output = tmp_path / "outputs"
    few = ("data.train_batch_size=8", "trainer.total_training_steps=3", "optim.lr=1e-3")
    assert finish(start(output, *few, **settings)) == 0, log_of(output)[-4000:]
    said = log_of(output)
    assert "one padded sequence per row, exact and slower" in said
    assert "data.max_length=2048 is lowered to 512: the model reads no more" in said
    model = AutoModelForSequenceClassification.from_pretrained(output / "checkpoint")
    rows, _ = load_pairs(small_run["VAL_FILES"])
    rewards = pq.read_table(output / "val_rewards.parquet").to_pylist()
    trained = AutoTokenizer.from_pretrained(output / "checkpoint")
    for row, reward in zip(rows[:6], rewards):
        for side in ("chosen", "rejected"):
            batch = trained.apply_chat_template([row[side]], return_dict=True, return_tensors="pt")
            assert model(**batch).logits.item() == pytest.approx(reward[side], abs=1e-5)


def test_a_family_without_a_reward_head(attempt, tmp_path, tiny_model):
    CohereConfig(architectures=["CohereForCausalLM"]).save_pretrained(tmp_path / "cohere")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "cohere")
    with pytest.raises(DataError, match="transformers has no cohere with a reward head"):
        attempt(f"model.path='{tmp_path / 'cohere'}'")


def test_faults_of_all_files_are_one_report(attempt, tmp_path):
    good = preference_pairs("train", 20, seed=0)
    long = [{**row, **{side: [*row[side][:1], row[side][1]] for side in ("chosen", "rejected")}} for row in good]
    for row in long[:2]:
        for side in ("chosen", "rejected"):
            row[side][0] = {"role": "user", "content": "x " * 3000}
    bad = write_rows(tmp_path / "bad.parquet", [*long, {**good[0], "rejected": good[0]["chosen"]}])
    with pytest.raises(DataError) as caught:
        attempt(f"data.train_files='{bad}'", f"data.val_files='{bad}'", "data.test_files=nowhere.parquet")
    message = str(caught.value)
    assert message.count("1 of 21 rows cannot be used:") == message.count("2 of 20 pairs are longer than") == 2
    assert "nowhere.parquet: no such file" in message


def test_a_model_of_plain_text_carries_no_chat_template(tiny_tokenizer):
    """Asked with a conversation, it would score a text in a form that it never saw."""
    text, talk = [{"chosen": "Q: 1", "rejected": "Q: 2"}], preference_pairs("train", 1, seed=0)
    base = SimpleNamespace(tokenizer=tiny_tokenizer)
    train.keep_to_one_form({"train": talk, "val": talk, "test": []}, base)
    assert tiny_tokenizer.chat_template
    with pytest.raises(DataError, match="train: plain text, val: conversations"):
        train.keep_to_one_form({"train": text, "val": talk, "test": []}, base)
    train.keep_to_one_form({"train": text, "val": [], "test": text}, base)
    assert tiny_tokenizer.chat_template is None


def test_an_added_setting_that_nothing_reads_is_refused():
    file = REPO / "bradley_terry" / "config.yaml"
    refuse_added(["optim.lr=1", "++loss.centering=1", "++plan=true", "+model.override_config.rope_theta=1"], file)
    with pytest.raises(DataError, match="^trainer.total_stps, centring: there is no such setting"):
        refuse_added(["trainer.seed=1", "+trainer.total_stps=2", "++centring=1"], file)
