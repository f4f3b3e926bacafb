"""The model that training starts from, looked at before Ray starts: its config, its files, its tokenizer.

Whatever cannot work is refused here, in seconds and with a remedy: an adapter, a classifier of other labels, quantised
weights, an architecture without the wanted head. A worker would find out half a minute later, in another library's
words. Nothing here loads weights.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from common.conversation import DataError
from common.files import tails_digest
from common.tokenizer import choose_template, ensure_pad_token, load_tokenizer, set_template_options

# a text's rotary angles follow the longest text of the batch beyond the first length; up to it they are fixed
DEPENDS_ON_LONGEST = ("longrope", "dynamic")
# where transformers looks for weights, in this order; an index names the files that they are divided over
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class BaseModel:
    """What is known of a model without its weights."""

    name: str  # that no other model shares
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase

    @property
    def embeddings(self) -> int:
        return self.config.get_text_config().vocab_size

    @property
    def has_reward_head(self) -> bool:
        return _architecture(self.config).endswith("ForSequenceClassification")

    @property
    def longest(self) -> int | None:
        return readable_tokens(self.config)


def load_base(
    model: DictConfig,
    data: DictConfig,
    auto_class: type,
    options: DictConfig | None,
    setting: str,
    with_weights: bool = True,
) -> BaseModel:
    """Return the model that `model.path` names, its tokenizer made fit for training.

    A folder in `model.path` becomes absolute: workers run elsewhere and would take "outputs/model" for a hub id.

    Args:
        data: gives `pad_token` and `chat_template`.
        auto_class: transformers' class for the task.
        options, setting: the chat template's own switches, and what they are called in the method's config.
        with_weights: whether they must be there; a plan needs none.

    Raises:
        DataError: the model cannot be loaded or trained for the task, or its tokenizer cannot be used.
    """
    rank = model.get("lora_rank", 0)
    if type(rank) is not int or rank < 0:
        raise DataError(f"lora_rank={rank}: expected a whole number, 0 for no adapters")
    path = os.path.expanduser(model.path)
    if os.path.isdir(path):
        model.path = path = os.path.abspath(path)
    elif path.startswith((".", "/")) or path.count("/") != 1:
        raise DataError(f"model.path={model.path}: no such folder. Set MODEL_PATH to a folder or a hub id, OWNER/NAME.")
    check_files(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
        tokenizer = load_tokenizer(path, model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        where = "" if os.path.isdir(path) else f" (there is no folder {os.path.abspath(path)}, so a hub id was assumed)"
        raise DataError(f"model.path={model.path}: cannot be loaded{where}: {error}") from error
    check_config(path, config, auto_class)
    if with_weights:
        check_weights(path)
    choose_template(tokenizer, data.chat_template)
    set_template_options(tokenizer, OmegaConf.to_container(OmegaConf.create(options or {})), setting)
    ensure_pad_token(tokenizer, config.get_text_config().vocab_size, data.pad_token)
    shape = f"{config.num_hidden_layers} layers x {config.hidden_size}"
    name = f"{_architecture(config)}, {shape}, {_weights_digest(Path(path)) if os.path.isdir(path) else path}"
    return BaseModel(name, config, tokenizer)


def check_files(path: str) -> None:
    """Raise `DataError` if a folder holds an adapter alone."""
    folder = Path(path)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise DataError(
            f"model.path={path}: an adapter, which is no model by itself. Merge it into its base model: "
            "peft.AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(FOLDER), and the "
            "tokenizer beside it. A run with LoRA here leaves the merged model in `checkpoint`."
        )


def check_weights(path: str) -> None:
    """Raise `DataError` if a folder holds no weights, or not all files of them."""
    folder = Path(path)
    if not folder.is_dir():
        return
    stored = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if stored is None:
        names = " or ".join(WEIGHTS)
        raise DataError(f"model.path={path}: the folder holds no weights ({names}). Download the model again.")
    if stored.suffix == ".json":
        try:
            files = set(json.loads(stored.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise DataError(f"model.path={path}: {stored.name} cannot be read. Download the model again.") from error
        if missing := sorted(name for name in files if not (folder / name).is_file()):
            raise DataError(
                f"model.path={path}: {len(missing)} of the {len(files)} files that {stored.name} names are missing, "
                f"the first is {missing[0]}. Download the model again."
            )


def check_config(path: str, config: PreTrainedConfig, auto_class: type) -> None:
    """Raise `DataError` if the model cannot be trained as `auto_class`."""
    architecture, where = _architecture(config), f"model.path={path}"
    if len(config.architectures or []) != 1:
        found = config.architectures or "none"
        raise DataError(f'{where}: config.json must name one architecture, as ["Qwen3ForCausalLM"]; it names {found}')
    if not hasattr(config, "num_hidden_layers"):
        raise DataError(f"{where}: {architecture} is not a plain text model; choose a text-only one")
    if getattr(config, "quantization_config", None):
        method = dict(config.quantization_config).get("quant_method", "unknown")
        raise DataError(f"{where}: its weights are quantised ({method}), and cannot be trained. Choose the full model.")
    if config.is_encoder_decoder:
        raise DataError(f"{where}: {architecture} is an encoder and a decoder. Choose a decoder alone, such as Qwen 3.")
    rewards = "SequenceClassification" in auto_class.__name__
    classifies = architecture.endswith("ForSequenceClassification")
    is_backbone = architecture.endswith("Model") and not architecture.endswith("LMHeadModel")
    if not rewards and (classifies or is_backbone):
        raise DataError(f"{where}: {architecture} has no language head; choose the language model it was made from")
    if classifies and config.num_labels != 1:
        raise DataError(f"{where}: a classifier with {config.num_labels} labels; a reward has one")
    if not classifies and not architecture.endswith(("ForCausalLM", "LMHeadModel")) and "For" in architecture:
        raise DataError(f"{where}: {architecture} is made for another task; choose the language model it was made from")
    if type(config) not in auto_class._model_mapping and auto_class.__name__ not in getattr(config, "auto_map", {}):
        head = "a reward head (…ForSequenceClassification)" if rewards else "a language head (…ForCausalLM)"
        raise DataError(
            f"{where}: transformers has no {config.model_type} with {head}. Choose another model, such as Qwen 3, "
            "Llama, Mistral, Gemma or Phi."
        )


def _architecture(config: PreTrainedConfig) -> str:
    return (config.architectures or ["unknown"])[0]


def readable_tokens(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a model reads, whatever else is in the batch; None if its config sets no limit.

    Phi-3's long rotary factors, and dynamic ones, take effect if *any* text of a batch is longer than the first length:
    all other texts of it would get other rewards. So this first length is the limit.
    """
    text = config.get_text_config()
    limits = [getattr(text, "max_position_embeddings", None)]
    for parameters in rope_sets(text):
        if parameters.get("rope_type", parameters.get("type")) in DEPENDS_ON_LONGEST:
            limits += [parameters.get("original_max_position_embeddings")]
            limits += [getattr(text, "original_max_position_embeddings", None)]
    return min((limit for limit in limits if limit), default=None)


def rope_sets(config: PreTrainedConfig) -> list[dict]:
    """Return the settings of a model's rotary angles, one set for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope, *(part for part in rope.values() if isinstance(part, dict))]


def limit_length(wanted: int, base: BaseModel, setting: str) -> int:
    """Return how many tokens a text may have: what is wanted, or what the model reads if that is less."""
    if base.longest is None or wanted <= base.longest:
        return wanted
    print(f"{setting}={wanted} is lowered to {base.longest}: the model reads no more")
    return base.longest


def cannot_load(name: str, error: Exception, remedy: str) -> DataError:
    """Return the error for a model or tokenizer that cannot be loaded: its cause, and what to do."""
    cause = error if Path(name).is_dir() else "there is no folder of that name, so a hub id was assumed"
    return DataError(f"{name}: cannot be loaded ({cause}). {remedy}")


def _weights_digest(folder: Path) -> str:
    return f"weights {tails_digest([*folder.glob('*.safetensors'), *folder.glob('*.bin')])}"
