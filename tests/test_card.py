"""The model card: for people, and for the Hugging Face hub, whose own library must accept it."""

import json

import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from omegaconf import OmegaConf

from common.card import extend_model_card, origin_of, write_model_card
from common.conversation import DataError
from common.parquet import datasets_of, write_rows
from common.sources import load_source, sets_of

CARD = "---\ntags: [x]\n---\n\n# Model\n\n## Measured\n\nvalidation\n"


def section(title: str, accuracy: str) -> str:
    return f"## {title}\n\n| | |\n|---|---|\n| accuracy | {accuracy} |\n"


def test_a_section_is_added_behind_the_card_and_the_second_time_replaced(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(CARD, encoding="utf-8")
    extend_model_card(tmp_path, "Measured on a.parquet", {"accuracy": 0.5}, "a.png")
    assert card.read_text(encoding="utf-8") == f"{CARD}\n{section('Measured on a.parquet', '0.5')}"
    extend_model_card(tmp_path, "Measured on a.parquet", {"accuracy": 0.75}, "a.png")
    assert card.read_text(encoding="utf-8") == f"{CARD}\n{section('Measured on a.parquet', '0.75')}"


def test_a_replaced_section_leaves_those_behind_it(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(CARD, encoding="utf-8")
    for title, accuracy in (("On a", 0.5), ("On b", 0.25), ("On a", 0.75)):
        extend_model_card(tmp_path, title, {"accuracy": accuracy}, "a.png")
    assert card.read_text(encoding="utf-8") == f"{CARD}\n{section('On a', '0.75')}\n{section('On b', '0.25')}"


def test_the_picture_is_shown_where_there_is_one_and_a_missing_card_is_begun(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    extend_model_card(tmp_path, "On a", {"accuracy": 1 / 3, "rows": 7}, "a.png")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.strip() == "## On a\n\n| | |\n|---|---|\n| accuracy | 0.3333 |\n| rows | 7 |\n\n![On a](a.png)"


GIVEN = {"summary": "It judges.", "usage": "\njudge(x)\n", "task": "text-generation", "tags": ["sft"]}


@pytest.fixture
def data(tmp_path):
    rows = write_rows(tmp_path / "data" / "train.parquet", [{"text": "a"}], {"nvidia/HelpSteer3"})
    write_rows(tmp_path / "data" / "test.parquet", [{"text": "b"}])
    return {"train": str(rows), "test": str(rows.with_name("test.parquet"))}


def write(folder, data, base="Qwen/Qwen3-0.6B", figures=None, settings=None, **more) -> None:
    folder.mkdir(exist_ok=True)
    datasets, given = datasets_of(data["train"]), GIVEN | {"figures": figures or {}, "settings": settings or {}}
    write_model_card(folder, "A judge", base=base, datasets=datasets, tested=data["test"], **given, **more)


@pytest.mark.parametrize("cap", [None, 50.0])
def test_a_card_says_how_a_model_whose_attention_is_capped_is_loaded(tmp_path, data, cap):
    (tmp_path / "config.json").write_text(json.dumps({"attn_logit_softcapping": cap}))
    write(tmp_path, data)
    assert ('`attn_implementation="eager"`' in (tmp_path / "README.md").read_text()) == (cap is not None)


def test_a_card_holds_front_matter_figures_usage_and_settings(tmp_path, data):
    write(tmp_path, data, figures={"val/accuracy": 2 / 3}, settings={"steps": 7, "data.train_files": data["train"]})
    front, body = (tmp_path / "README.md").read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n", 1)
    lines = ["base_model: Qwen/Qwen3-0.6B", "datasets:", "- nvidia/HelpSteer3", "library_name: transformers"]
    lines += ["pipeline_tag: text-generation", "tags:", "- reward-recipes", "- sft"]
    assert front.splitlines() == lines
    assert body.strip().split("\n\n") == [
        "# A judge",
        "It judges.",
        "## Use",
        "```python\njudge(x)\n```",
        "## Measured",
        "| | |\n|---|---|\n| val/accuracy | 0.6667 |",
        "![Training curves and held-out results](run.png)",
        "## How it was made",
        "| | |\n|---|---|\n| steps | 7 |\n| data.train_files | train.parquet |",
    ]


def results_of(folder) -> list[tuple]:
    found = ModelCard.load(folder / "README.md").data.eval_results  # which refuses an index that is not as it should be
    return [(result.dataset_name, result.metric_type, result.metric_value, result.task_type) for result in found]


def test_the_hub_gets_figures_of_held_out_rows_alone_and_the_newest(tmp_path, data):
    figures = {"val/accuracy": 0.9, "test/accuracy": 0.75}
    write(tmp_path, data, figures=figures, results={"accuracy": "test/accuracy", "loss": "test/loss"})
    assert results_of(tmp_path) == [("test.parquet", "accuracy", 0.75, "text-generation")]
    for file, accuracy in (("test.parquet", 0.5), ("other.parquet", 0.25), ("other.parquet", 0.125)):
        more = {"accuracy": accuracy, "rows": 8}
        extend_model_card(tmp_path, f"Measured on {file}", more, "a.png", ("accuracy", "kappa"), f"somewhere/{file}")
    expected = [("test.parquet", "accuracy", 0.5), ("other.parquet", "accuracy", 0.125)]
    assert [result[:3] for result in results_of(tmp_path)] == expected
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "Qwen/Qwen3-0.6B" and card.data.model_name == "A judge"
    assert card.text.count("## Measured on other.parquet") == 1 and "| accuracy | 0.125 |" in card.text


def test_a_card_names_no_folder_of_the_machine(tmp_path, data):
    base = tmp_path / "base"
    base.mkdir()
    several = f"{data['train']},{data['test']}"
    settings = {
        "model.path": str(base),
        "data.train_files": several,
        "data.val_files": OmegaConf.create([data["test"]]),
        "a/b": "c/d",
    }
    write(
        tmp_path,
        data | {"train": several},
        str(base),
        {"test/accuracy": 1.0},
        settings,
        results={"accuracy": "test/accuracy"},
    )
    text = (tmp_path / "README.md").read_text()
    assert str(tmp_path) not in text
    for line in (
        "model.path | base",
        "data.train_files | train.parquet, test.parquet",
        "data.val_files | test.parquet",
        "a/b | c/d",
    ):
        assert f"| {line} |" in text


def test_what_is_known_of_a_base(tmp_path, data):
    assert origin_of("Qwen/Qwen3-0.6B") == {"base_model": "Qwen/Qwen3-0.6B"}
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    assert origin_of(str(theirs)) == {}
    (theirs / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: a/pretrained\ntags: [x]\n---\n# It\n")
    assert origin_of(str(theirs)) == {"license": "apache-2.0"}  # its own base is not ours
    cached = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "1a2b"
    cached.mkdir(parents=True)
    assert origin_of(str(cached)) == {"base_model": "Qwen/Qwen3-0.6B"}

    ours = tmp_path / "ours"
    write(ours, data, str(cached))
    (cached / "README.md").write_text("---\nlicense: other\nlicense_name: x\n---\n")
    write(ours, data, str(cached))
    licence = {"license": "other", "license_name": "x"}
    assert origin_of(str(ours)) == {"base_model": "Qwen/Qwen3-0.6B", "datasets": ["nvidia/HelpSteer3"], **licence}
    write(
        tmp_path / "next", {"train": data["test"], "test": ""}, str(ours)
    )  # a judge from our SFT: what it was made of counts on
    assert ModelCard.load(tmp_path / "next" / "README.md").data.datasets == ["nvidia/HelpSteer3"]


@pytest.mark.parametrize(
    "front", ["base_model: a: b", "- a\n- b", "tags: not-reward-recipes", "tags: 5", "license: [apache-2.0\n  x"]
)
def test_an_odd_card_of_a_base_ends_no_run(tmp_path, front):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# It\n")
    assert origin_of(str(tmp_path)) == {}
    before = (tmp_path / "README.md").read_text()
    extend_model_card(tmp_path, "On a", {"accuracy": 0.5}, "a.png", ("accuracy",), "a.parquet")
    assert (tmp_path / "README.md").read_text().startswith(before)


def test_a_card_that_was_completed_by_hand_is_read(tmp_path):
    (tmp_path / "README.md").write_text("---\ntags: [reward-recipes]\ndatasets: me/mine\nlanguage: no\n---\n# It\n")
    assert origin_of(str(tmp_path)) == {"datasets": ["me/mine"]}


def test_the_lines_of_a_foreign_card_stay_as_they_are(tmp_path):
    front = "---\nlanguage: no  # Norwegian\nmodel-index:\n- name: a\n  results: []\n---\n"
    (tmp_path / "README.md").write_text(f"{front}# It\n")
    extend_model_card(tmp_path, "On a", {"accuracy": 0.5}, "a.png", ("accuracy",), "a.parquet")
    assert (tmp_path / "README.md").read_text().startswith(front)


def test_parquet_notes_which_sets_of_the_hub_it_is_made_of(tmp_path, data):
    assert datasets_of(f"{data['train']},{data['test']}") == {"nvidia/HelpSteer3"} == sets_of(data["train"])
    assert pq.read_table(data["train"]).to_pylist() == list(load_source(data["train"], "train")) == [{"text": "a"}]
    assert sets_of("nvidia/HelpSteer2") == {"nvidia/HelpSteer2"}
    (tmp_path / "mine.csv").write_text("a\n1\n")
    assert sets_of(str(tmp_path / "mine.csv")) == set()
    with pytest.raises(DataError, match="no such file"):
        sets_of("./nothing.csv")
