"""Models that cannot be trained are refused by their config and files, with a remedy, before Ray starts."""

import json
import shutil

import pytest
from omegaconf import OmegaConf
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CohereConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
    T5Config,
)

from common.base_model import limit_length, load_base, readable_tokens
from common.conversation import DataError
from common.demo.tiny_model import save_tiny_model

REWARD, LANGUAGE = AutoModelForSequenceClassification, AutoModelForCausalLM


def load(path, task=REWARD, **data):
    model = OmegaConf.create({"path": str(path), "trust_remote_code": False})
    options = data.pop("template_options", None)
    data = OmegaConf.create({"pad_token": None, "chat_template": None} | data)
    base = load_base(model, data, task, options, "data.template_options")
    return base, model


@pytest.fixture
def changed(tiny_model, tmp_path):
    """Make a copy of the tiny model with other values in its config."""

    def change(**values):
        shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
        config = json.loads((tmp_path / "config.json").read_text()) | values
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return change


def refusal(path, task=REWARD, **data) -> str:
    with pytest.raises(DataError) as caught:
        load(path, task, **data)
    return str(caught.value)


def test_a_models_name_says_its_architecture_and_size(tiny_model):
    base, _ = load(tiny_model)
    assert base.name.startswith("Qwen3ForCausalLM, 2 layers x 128, weights ")
    assert (base.tokenizer.pad_token, base.tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert base.embeddings == 704 and not base.has_reward_head


@pytest.mark.parametrize("path", ["./no/such/folder", "/no/such/folder", "folder", "one/two/three"])
def test_a_path_that_is_neither_a_folder_nor_a_hub_id_is_refused_without_asking_the_hub(path):
    assert refusal(path) == f"model.path={path}: no such folder. Set MODEL_PATH to a folder or a hub id, OWNER/NAME."


def test_a_folder_without_a_model_is_refused_by_its_path(tmp_path):
    assert refusal(tmp_path).startswith(f"model.path={tmp_path}: cannot be loaded")


def test_a_folder_without_weights_is_refused(changed):
    folder = changed()
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert refusal(folder).startswith(f"model.path={folder}: the folder holds no weights (model.safetensors or ")


def test_a_folder_that_lacks_a_part_of_its_weights_is_refused_by_the_parts_name(changed):
    folder = changed()
    parts = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    (folder / "model.safetensors").rename(folder / parts[0])
    weights = {"weight_map": {f"layer {number}": part for number, part in enumerate(parts)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))
    expected = "2 of the 3 files that model.safetensors.index.json names are missing, the first is " + parts[1]
    assert expected in refusal(folder)
    for part in parts[1:]:
        (folder / part).touch()
    load(folder)


def test_models_of_one_shape_have_names_of_their_own_wherever_they_lie(tiny_model, tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "other", seed=1)
    shutil.copytree(tiny_model, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    (original, _), (moved, settings), (other, _) = (load(path) for path in (tiny_model, "moved", "other"))
    assert original.name == moved.name != other.name
    assert settings.path == str(tmp_path / "moved")  # workers run in another folder


@pytest.mark.parametrize(
    ("values", "task", "words"),
    [
        (
            {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}},
            REWARD,
            "a classifier with 2 labels; a reward has one",
        ),
        ({"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1}, LANGUAGE, "has no language head"),
        ({"architectures": ["Qwen3ForTokenClassification"]}, REWARD, "is made for another task"),
        ({"architectures": ["Qwen3ForQuestionAnswering"]}, LANGUAGE, "is made for another task"),
        ({"architectures": None}, REWARD, "config.json must name one architecture"),
        ({"quantization_config": {"quant_method": "awq"}}, REWARD, r"weights are quantised (awq)"),
    ],
)
def test_a_model_of_another_kind_is_refused_in_our_words(changed, values, task, words):
    message = refusal(changed(**values), task)
    assert message.startswith("model.path=") and words in message


@pytest.mark.parametrize(
    ("config", "task", "words"),
    [
        (Gemma3Config(architectures=["Gemma3ForConditionalGeneration"]), REWARD, "is not a plain text model"),
        (CohereConfig(architectures=["CohereForCausalLM"]), REWARD, "no cohere with a reward head"),
        (MambaConfig(architectures=["MambaForCausalLM"]), REWARD, "no mamba with a reward head"),
        (T5Config(architectures=["T5ForConditionalGeneration"]), LANGUAGE, "is an encoder and a decoder"),
    ],
)
def test_a_family_without_the_head_is_refused_by_name(changed, config, task, words):
    folder = changed()
    config.save_pretrained(folder)
    assert words in refusal(folder, task)


def test_a_reward_model_is_a_place_to_start_from(changed):
    folder = changed(architectures=["Qwen3ForSequenceClassification"], id2label={"0": "reward"})
    base, _ = load(folder)
    assert base.has_reward_head


def test_an_adapter_is_refused_with_the_way_to_merge_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "merge_and_unload().save_pretrained(FOLDER)" in refusal(tmp_path)


def test_the_pad_token_and_the_template_can_be_chosen(tiny_model):
    base, _ = load(tiny_model, pad_token="<think>", template_options={"enable_thinking": False})
    assert base.tokenizer.pad_token == "<think>"
    assert base.tokenizer.chat_template.startswith("{%- set enable_thinking = false %}\n")
    assert "no named chat templates" in refusal(tiny_model, chat_template="chat")


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "rope_theta": 1e4}
READS = [
    (GPT2Config(n_positions=128), 128),
    (LlamaConfig(max_position_embeddings=512), 512),
    (Phi3Config(rope_parameters=LONG, max_position_embeddings=131072, original_max_position_embeddings=4096), 4096),
    (
        LlamaConfig(
            rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, max_position_embeddings=2048
        ),
        2048,
    ),
    (
        LlamaConfig(
            rope_parameters={
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 2048,
            },
            max_position_embeddings=8192,
        ),
        8192,
    ),
    (Gemma3TextConfig(max_position_embeddings=4096), 4096),
    (MambaConfig(), None),
]


@pytest.mark.parametrize(("config", "tokens"), READS, ids=range(len(READS)))
def test_a_model_reads_as_far_as_no_text_changes_another(config, tokens):
    """Traps 12 and 32: long rotary factors set in for a whole batch as soon as one text of it is long."""
    assert readable_tokens(config) == tokens


def test_one_limit_holds_for_training_and_scoring(changed, capsys):
    base, _ = load(changed(max_position_embeddings=128))
    assert limit_length(100, base, "data.max_length") == 100
    assert capsys.readouterr().out == ""
    assert limit_length(2048, base, "data.max_length") == 128
    assert capsys.readouterr().out == "data.max_length=2048 is lowered to 128: the model reads no more\n"
