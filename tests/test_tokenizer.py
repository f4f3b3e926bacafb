"""The pad token a tokenizer gets, and models that are refused before anything starts."""

import json
import shutil

import pytest
from omegaconf import OmegaConf
from transformers import Gemma3Config

from common.conversation import DataError
from common.demo.tiny_model import save_tiny_model
from common.tokenizer import ensure_pad_token, load_tokenizer


@pytest.mark.parametrize("pad_token", [None, "<|im_end|>"])
def test_a_tokenizer_without_a_pad_token_of_its_own_gets_one_that_is_not_its_end(tiny_tokenizer, pad_token):
    """Trap 1: where pad is the end token, a served reward is read before the end."""
    tiny_tokenizer.pad_token = pad_token
    ensure_pad_token(tiny_tokenizer)
    assert (tiny_tokenizer.pad_token, tiny_tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_a_pad_token_of_its_own_is_left_alone(tiny_tokenizer):
    tiny_tokenizer.pad_token = "<think>"
    ensure_pad_token(tiny_tokenizer)
    assert tiny_tokenizer.pad_token == "<think>"


def test_without_a_candidate_the_tokenizers_pad_and_end_are_named_with_the_remedy(tiny_tokenizer):
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token = "<|endoftext|>"
    with pytest.raises(DataError, match=r"no pad token of its own \(pad '<\|endoftext\|>', end '<\|endoftext\|>'\)"):
        ensure_pad_token(tiny_tokenizer)
    assert tiny_tokenizer.pad_token == "<|endoftext|>"


def model_section(path) -> OmegaConf:
    return OmegaConf.create({"path": str(path), "trust_remote_code": False})


def test_a_models_name_says_its_architecture_and_size(tiny_model):
    name, tokenizer = load_tokenizer(model_section(tiny_model))
    assert name.startswith("Qwen3ForCausalLM, 2 layers x 128, weights ")
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


@pytest.mark.parametrize("path", ["./no/such/folder", "/no/such/folder", "folder", "one/two/three"])
def test_a_path_that_is_neither_a_folder_nor_a_hub_id_is_refused_without_asking_the_hub(path):
    with pytest.raises(DataError, match=f"model.path={path}: no such folder. Set MODEL_PATH to a model's folder"):
        load_tokenizer(model_section(path))


def test_a_folder_without_a_model_is_refused_by_its_path(tmp_path):
    with pytest.raises(DataError, match=f"model.path={tmp_path}: cannot be loaded"):
        load_tokenizer(model_section(tmp_path))


def test_a_classifier_of_two_labels_is_not_a_reward_model(tiny_model, tmp_path):
    """Trap 3."""
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="a classifier with 2 labels; a reward has one"):
        load_tokenizer(model_section(tmp_path))


def test_models_of_one_shape_have_names_of_their_own_wherever_they_lie(tiny_model, tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "other", seed=1)
    shutil.copytree(tiny_model, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    settings = [
        OmegaConf.create({"path": path, "trust_remote_code": False}) for path in (str(tiny_model), "moved", "other")
    ]
    original, moved, other = (load_tokenizer(model)[0] for model in settings)
    assert original == moved != other
    assert settings[1].path == str(tmp_path / "moved")  # workers run in another folder


def test_a_model_of_text_and_images_is_refused_by_name(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    Gemma3Config(architectures=["Gemma3ForConditionalGeneration"]).save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match="Gemma3ForConditionalGeneration is not a plain text model"):
        load_tokenizer(model_section(tmp_path / "model"))
