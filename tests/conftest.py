"""What several test files share: a tiny model, small runs' data, and real data if it is at hand."""

import gc
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

# Several test processes: with more threads than cores they would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched, and a name that is no folder is not looked for on the hub
# The same cases on every run, no time limit per case (a busy machine is no bug), no folder of past cases.
settings.register_profile("tests", derandomize=True, deadline=None, database=None)
settings.load_profile("tests")

REPO = Path(__file__).parents[1]
# These take minutes each. They start first, or one process would be at work on the last of them alone.
LONGEST = (
    "pointwise_run",
    "pairwise_run",
    "copies",
    "bt_runs_alike",
    "sft_run",
    "two_machines",
    "bt_run",
    "real_pairs",
    "sft_runs_alike",
    "bt_bad_runs",
    "bt_score",
    "pointwise_bad_runs",
    "openjudge_serving",
    "gpu_check",
    "rl_run",
    "install",
)
REAL_DATA = REPO.parent / "shared" / "data"
# the shape of a model of recurrent and attention layers (Qwen3-Next), which cannot be packed
HYBRID = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
# the shape of a classifier for numerical checks
SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_labels": 1,
    "pad_token_id": 0,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_collectstart() -> None:
    """Do not look for garbage while test files, and with them torch and verl, are imported; nor later in what was."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with the tiny demo model of seed 0, its tokenizer and its chat template."""
    from common.demo.tiny_model import save_tiny_model

    path = tmp_path_factory.mktemp("tiny_model")
    save_tiny_model(path, seed=0)
    return path


@pytest.fixture(scope="session")
def reward_checkpoint(tiny_model, tmp_path_factory) -> Path:
    """A folder with the tiny model as a reward model with a random head, as training would export it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = tmp_path_factory.mktemp("reward_model")
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(path)
    return path


@pytest.fixture
def tiny_tokenizer(tiny_model):
    """The tiny model's tokenizer, loaded anew for each test, so that a test may change it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def process_group():
    """A group of one process, so that an engine can shard its model here."""
    import torch

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def note_gradients(built, gradients: dict) -> None:
    """Keep the gradients that the optimizer's next step of a verl engine sees."""
    weights = [(name, weight) for name, weight in built.module.named_parameters() if weight.requires_grad]
    built.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: weight.grad.full_tensor().clone() for name, weight in weights})
    )


@pytest.fixture
def shared_prompts(monkeypatch) -> list:
    """Grows by one with each call of the attention that sees prompts which several answers share."""
    from common import attention

    calls, attend = [], attention.attend_behind_prompts
    monkeypatch.setattr(attention, "attend_behind_prompts", lambda *args: calls.append(1) or attend(*args))
    return calls


@pytest.fixture
def shared_data() -> Path:
    """The folder of real labelled data beside the repository; without it the test is skipped."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs the real labelled data, which is not part of the repository: ../shared/data is missing")
    return REAL_DATA


def sft_inputs(tiny_model: Path, folder: Path) -> dict[str, str]:
    """The environment of an SFT run on the tiny model and 96 of the demo's judgements, 19 for validation."""
    from common.demo.transcripts import scoring
    from common.demo.world import pointwise_rows
    from common.parquet import write_rows

    train, val = (
        [{"messages": scoring(row)} for row in pointwise_rows(split, rows, seed=0)]
        for split, rows in (("train", 96), ("val", 19))
    )
    return {
        "TRAIN_FILES": str(write_rows(folder / "train.parquet", train)),
        "VAL_FILES": str(write_rows(folder / "val.parquet", val)),
        "MODEL_PATH": str(tiny_model),
    }


@pytest.fixture(scope="session")
def small_sft_run(tiny_model, tmp_path_factory) -> dict[str, str]:
    return sft_inputs(tiny_model, tmp_path_factory.mktemp("small_sft_run"))


def pair_inputs(tiny_model: Path, folder: Path) -> dict[str, str]:
    """The environment of a training run on the tiny model and 96 demo pairs, 19 of them for validation."""
    from common.demo.world import preference_pairs
    from common.parquet import write_rows

    train, val = (preference_pairs(split, rows, seed=0) for split, rows in (("train", 96), ("val", 19)))
    return {
        "TRAIN_FILES": str(write_rows(folder / "train.parquet", train)),
        "VAL_FILES": str(write_rows(folder / "val.parquet", val)),
        "MODEL_PATH": str(tiny_model),
    }


@pytest.fixture(scope="session")
def small_run(tiny_model, tmp_path_factory) -> dict[str, str]:
    return pair_inputs(tiny_model, tmp_path_factory.mktemp("small_run"))


def warm_start(tiny_model: Path, conversations: list, folder: Path, batch_size: int = 8) -> str:
    """Write the tiny model after half a minute of SFT, by transformers alone; return its folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    steps = len(conversations) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        batch = conversations[batch_size * step : batch_size * (step + 1)]
        texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in batch]
        answers = [text.rindex("<|im_start|>assistant") for text in texts]
        rows = tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)
        starts = rows.pop("offset_mapping")[:, :, 0]
        trained = (starts > torch.tensor(answers)[:, None]) & rows["attention_mask"].bool()
        loss = model(**rows, labels=rows["input_ids"].masked_fill(~trained, -100)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def score_judge_inputs(tiny_model: Path, folder: Path) -> dict[str, str]:
    """The environment of a judge's run: 96 scored responses, 24 for validation, a judge that is right now and then."""
    from common.demo.world import SCORE_RUBRIC, pointwise_rows
    from common.parquet import write_rows
    from generative_pointwise.dataset import write_prompt
    from generative_pointwise.prompt import read_row, transcripts

    lenient = [read_row(row) for row in pointwise_rows("train", 1600, 1, leniency=0.65)]
    files = {}
    for split, size in (("train", 96), ("val", 24)):
        rows = [write_prompt(read_row(row), SCORE_RUBRIC) for row in pointwise_rows(split, size, seed=0)]
        rows = [{name: row[name] for name in ("prompt", "label", "rubric")} for row in rows]
        files[split] = str(write_rows(folder / f"{split}.parquet", rows))
    judge = warm_start(tiny_model, [transcripts(row, SCORE_RUBRIC)[0] for row in lenient], folder / "judge")
    return {"TRAIN_FILES": files["train"], "VAL_FILES": files["val"], "MODEL_PATH": judge}


@pytest.fixture(scope="session")
def small_judge_run(tiny_model, tmp_path_factory, testrun_uid) -> dict[str, str]:
    """Made once for all processes of the tests: it takes a minute."""
    shared = tmp_path_factory.getbasetemp().parent / f"small_judge_run_{testrun_uid}"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            made = score_judge_inputs(tiny_model, tmp_path_factory.mktemp("small_judge_run"))
            shared.write_text(json.dumps(made))
    return json.loads(shared.read_text())


def pair_judge_inputs(tiny_model: Path, folder: Path) -> dict[str, str]:
    """The environment of a pairwise judge's run: 48 pairs, 12 for validation, a judge that is right now and then."""
    from common.demo.world import PREFERENCE_RUBRIC, pairwise_rows
    from common.parquet import write_rows
    from generative_pairwise.dataset import write_prompts
    from generative_pairwise.prompt import read_row, transcripts

    biased = [read_row(row) for row in pairwise_rows("train", 1600, 1, position_bias=0.65)]
    files = {}
    for split, size in (("train", 48), ("val", 12)):
        rows = [write_prompts(read_row(row), PREFERENCE_RUBRIC) for row in pairwise_rows(split, size, seed=0)]
        rows = [{name: row[name] for name in ("prompt", "prompt_swapped", "label", "rubric")} for row in rows]
        files[split] = str(write_rows(folder / f"{split}.parquet", rows))
    judge = warm_start(tiny_model, [transcripts(row, PREFERENCE_RUBRIC)[0] for row in biased], folder / "judge")
    return {"TRAIN_FILES": files["train"], "VAL_FILES": files["val"], "MODEL_PATH": judge}


class AtOnce:
    """Counts, in a server's threads, how many requests are being answered at the same time, at most."""

    def __init__(self):
        self.running, self.most, self.lock = 0, 0, threading.Lock()

    def take(self, seconds: float) -> None:
        """Be busy with a request."""
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(seconds)
        with self.lock:
            self.running -= 1
