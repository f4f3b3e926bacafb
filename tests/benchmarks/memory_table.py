"""Which run fits on which GPU, with the run scripts' own settings: the table of the READMEs.

    python tests/benchmarks/memory_table.py                         # all models and methods: minutes on one core
    python tests/benchmarks/memory_table.py --models 8B --methods sft --parts

Every cell is computed by `common/plan.py`, as `plan=true` does for one run; no weights are needed, and no GPU. Models
have the shapes of Qwen 3. Rows are synthetic, and fill the micro-batch: pairs of 1,000 tokens, conversations of 1,000
of which all are trained (chat; a judge's conversations need less), prompts of 500 to the longest tokens.
"""

import argparse
import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from transformers import Qwen3Config

REPO = Path(__file__).resolve().parents[2]
# hidden, intermediate, layers, heads, tied embeddings
MODELS = {
    "tiny": (64, 128, 5, 4, True),
    "0.6B": (1024, 3072, 28, 16, True),
    "1.7B": (2048, 6144, 28, 16, True),
    "4B": (2560, 9728, 36, 32, True),
    "8B": (4096, 12288, 36, 32, False),
}
SCRIPTS = {
    "bradley_terry": "run_bt.sh",
    "sft": "run_sft.sh",
    "generative_pointwise": "run_pointwise.sh",
    "generative_pairwise": "run_pairwise.sh",
}
VERL_CONFIG = "verl/trainer/config"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[1:])
    parser.add_argument("--methods", nargs="+", choices=SCRIPTS, default=list(SCRIPTS)[:3], help="the judges are alike")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rollout", choices=("vllm", "hf"), default="vllm", help="who answers, for the judges")
    parser.add_argument("--parts", action="store_true", help="the whole plan of each, not one line")
    parser.add_argument("settings", nargs="*", help="key=value, as after the run script")
    options = parser.parse_args()
    from common.plan import CARDS, Plan, count_here, table

    columns = [f"{count} x {card}" for count in options.gpus for card in CARDS]
    print("| | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for model in options.models:
        for method in options.methods:
            cells = []
            for gpus in options.gpus:
                config = settings(method, save_shape(model), options.rollout, gpus, options.settings)
                plan = Plan(*what_is_planned(method, config), gpus, count_here)
                if options.parts:
                    print("\n".join(table(plan, CARDS)))
                cells += [cell(plan, card) for card in CARDS.values()]
            print(f"| {model} {method} | " + " | ".join(cells) + " |", flush=True)


def cell(plan, card: int) -> str:
    """Say with which changes a run fits, and how many GiB its largest phase then takes."""
    from common.plan import GIB, GPUS, as_settings

    changes = plan.remedy(card)
    if changes is None:
        return "no"
    chosen = plan.choose(card, changes) | changes
    most = max(phase.sum(card) for phase in plan.phases(card, chosen))
    named = {key.rpartition(".")[2]: value for key, value in changes.items()}
    said = [f"{value} GPUs" if key == GPUS else as_settings({key: value}) for key, value in named.items()]
    keys = {plan.method.keys.checkpointing: "checkpointing", plan.method.keys.offload: "host memory"}
    said += [word for key, word in keys.items() if chosen.get(key) is True]
    return f"{most / GIB:.0f}" + "".join(f", {word}" for word in said)


def save_shape(name: str) -> Path:
    """Write a folder with the config of a model of that size, and the demo's tokenizer."""
    from common.demo.tiny_model import save_tiny_model

    folder = Path(tempfile.gettempdir()) / f"shape_{name}"
    if folder.exists():
        return folder
    hidden, wide, layers, heads, tied = MODELS[name]
    partial = Path(tempfile.mkdtemp())
    save_tiny_model(partial, seed=0)
    (partial / "model.safetensors").unlink()
    Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=151936 if name != "tiny" else 2048,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=min(8, heads),
        head_dim=128,
        tie_word_embeddings=tied,
        max_position_embeddings=40960,
    ).save_pretrained(partial)
    with contextlib.suppress(OSError):  # another process was first
        partial.rename(folder)
    return folder


def settings(method: str, model: Path, rollout: str, gpus: int, own: list[str]) -> DictConfig:
    """Return what the run script sets for a pretrained model."""
    with tempfile.TemporaryDirectory() as folder:
        note, python = Path(folder) / "overrides", Path(folder) / "python"
        python.write_text('#!/bin/sh\n[ "$2" != train ] || { shift 2; printf "%s\\n" "$@" > "$NOTE"; }\n')
        python.chmod(0o755)
        environment = {"PATH": f"{folder}:{os.environ['PATH']}", "NOTE": str(note), "MODEL_PATH": str(model)}
        environment |= {"TRAIN_FILES": "t", "ROLLOUT": rollout, "N_GPUS_PER_NODE": str(gpus)}
        command = ["bash", REPO / method / SCRIPTS[method], "plan=true"]  # so that it does not look for vLLM
        subprocess.run(command, env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        overrides = note.read_text().splitlines()
    with initialize_config_dir(str(REPO / method), version_base=None):
        return compose("config", overrides + own)


def what_is_planned(method: str, config: DictConfig) -> tuple:
    """Return the method as a plan knows it, and its settings, for synthetic rows that fill a micro-batch."""
    from common import plan
    from common.attention import SEGMENT_ATTENTION
    from common.grpo.plan import of_policy
    from common.grpo.preflight import set_precision

    if method.startswith("generative"):
        config.actor_rollout_ref.model.override_config.attn_implementation = SEGMENT_ATTENTION
        set_precision(config, plan.PRECISION)
        shape = Qwen3Config.from_pretrained(config.actor_rollout_ref.model.path)
        return of_policy(config, shape, [500, config.data.max_prompt_length], packed=True), config
    config.model.override_config = {"attn_implementation": SEGMENT_ATTENTION}
    config.engine.mixed_precision = {"param_dtype": "bf16"}
    ids = np.ones(1000, dtype=np.int32)
    if method == "sft":
        from sft.dataset import Example

        rows = [Example(ids, np.arange(1000) > 0, "")] * 64
    else:
        from bradley_terry.dataset import Pair

        rows = [Pair(ids[:400], ids[:300], ids[:300], 0.0, "")] * 64
    return plan.of_loop(f"{method}.engine", rows, config.data.train_batch_size, packed=True), config


if __name__ == "__main__":
    import importlib.util

    os.environ["VERL_CONFIG"] = f"{importlib.util.find_spec('verl').submodule_search_locations[0]}/trainer/config"
    main()
