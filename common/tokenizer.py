"""A model's tokenizer, with a pad token of its own, and an early error if the model cannot be used."""

import json
import os
from pathlib import Path

from omegaconf import DictConfig
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from common.conversation import DataError
from common.files import tails_digest

# in order of preference: from the vocabularies of Llama 3, of Qwen, whose base models also end with <|endoftext|>, …
PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<|fim_pad|>", "<pad>", "[PAD]", "<unk>")


def load_tokenizer(model: DictConfig) -> tuple[str, PreTrainedTokenizerBase]:
    """Return a name that no other model shares, and the tokenizer with a pad token of its own.

    A folder in `model.path` becomes absolute: workers run elsewhere and would take "outputs/model" for a hub id.

    Raises:
        DataError: the model cannot be loaded or has not one label.
    """
    path = os.path.expanduser(model.path)
    if os.path.isdir(path):
        model.path = path = os.path.abspath(path)
    elif path.startswith((".", "/")) or path.count("/") != 1:
        raise DataError(f"model.path={model.path}: no such folder. Set MODEL_PATH to a model's folder or hub id.")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        where = "" if os.path.isdir(path) else f" (there is no folder {os.path.abspath(path)}, so a hub id was assumed)"
        raise DataError(f"model.path={model.path}: cannot be loaded{where}: {error}") from error
    architecture = (config.architectures or ["unknown"])[0]
    if not hasattr(config, "num_hidden_layers"):
        raise DataError(f"model.path={model.path}: {architecture} is not a plain text model; choose a text-only one")
    if architecture.endswith("ForSequenceClassification") and config.num_labels != 1:
        raise DataError(f"model.path={model.path}: a classifier with {config.num_labels} labels; a reward has one")
    ensure_pad_token(tokenizer)
    shape = f"{config.num_hidden_layers} layers x {config.hidden_size}"
    return f"{architecture}, {shape}, {_weights_digest(Path(path)) if os.path.isdir(path) else path}", tokenizer


def cannot_load(name: str, error: Exception, remedy: str) -> DataError:
    """Return the error for a model or tokenizer that cannot be loaded: its cause, and what to do."""
    cause = error if Path(name).is_dir() else "there is no folder of that name, so a hub id was assumed"
    return DataError(f"{name}: cannot be loaded ({cause}). {remedy}")


def _weights_digest(folder: Path) -> str:
    return f"weights {tails_digest([*folder.glob('*.safetensors'), *folder.glob('*.bin')])}"


def set_template_options(tokenizer: PreTrainedTokenizerBase, options: dict, setting: str) -> None:
    """Write the chat template's own switches into the template, so that everyone who loads the model uses them too.

    Args:
        setting: what the switches are called in the method's config.
    """
    if "strftime_now" in str(tokenizer.chat_template) and "date_string" not in options:
        print("the chat template writes today's date, so a run that is resumed tomorrow would be another run. If it")
        print(f"has a date_string (Llama 3), set it: '{setting}={{date_string: 26 Jul 2024}}'")
    values = {name: "none" if value is None else json.dumps(value) for name, value in options.items()}
    head = "".join(f"{{%- set {name} = {value} %}}\n" for name, value in values.items())
    if head and isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = {name: head + text for name, text in tokenizer.chat_template.items()}
    elif head and tokenizer.chat_template:
        tokenizer.chat_template = head + tokenizer.chat_template


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token that is not its end token.

    A served reward model reads the last token that is not padding. If pad and end are one token, that is the token
    before the end, and every served reward is wrong.

    Raises:
        DataError: no candidate is in the vocabulary.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    vocabulary = tokenizer.get_vocab()
    fitting = [token for token in PAD_CANDIDATES if token in vocabulary and token != tokenizer.eos_token]
    if not fitting:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no pad token of its own (pad {tokenizer.pad_token!r}, end "
            f"{tokenizer.eos_token!r}). Set pad_token in its tokenizer_config.json to a token that ends no text."
        )
    tokenizer.pad_token = fitting[0]
