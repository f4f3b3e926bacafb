"""Runs that cannot work say why in one message and exit with an error; most of them before Ray or a model starts."""

import json
import time

import pytest
import torch
from conftest import REPO
from hydra import compose, initialize_config_dir
from runs import finish, log_of, start
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Gemma2Config

from bradley_terry import train
from common.conversation import DataError
from common.demo.world import preference_pairs
from common.parquet import write_rows

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
    monkeypatch.setattr(train.cluster, "connect", lambda *_: ("cpu", 3))
    with pytest.raises(DataError, match="data.train_batch_size=8 cannot be shared equally by 3 workers"):
        attempt()


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
def test_a_model_whose_attention_cannot_be_packed(tmp_path, small_run, tiny_model):
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=1024, num_key_value_heads=1, head_dim=16, pad_token_id=0, num_labels=1, **shape)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "gemma2")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "gemma2")
    settings = small_run | {"MODEL_PATH": str(tmp_path / "gemma2")}
    assert finish(start(tmp_path / "outputs", "data.train_batch_size=8", **settings)) != 0
    message = log_of(tmp_path / "outputs").split("train.py: ")[-1]
    assert message.startswith("the model could not be built on the workers: segment attention does not compute softcap")
