"""The model card: what a checkpoint is, for people, and for the Hugging Face hub, which reads the lines at its top.

They name the base model, the data sets and the licence as far as they are known: a base by its hub id, a data set if
prepare_data took it from the hub, the licence of a base whose own card is beside it. They hold the figures on held-out
rows as the hub's `model-index`. The card names no folder of the machine that made it.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCardData, metadata_load
from huggingface_hub.repocard import metadata_save
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from omegaconf import OmegaConf

from common.files import write_text
from common.parquet import named_paths
from common.report import format_value

OURS = "reward-recipes"  # the tag of our own checkpoints
CAPPED = (
    'Load it with `attn_implementation="eager"`. Its attention scores are capped, and transformers\' default '
    "attention leaves the cap out."
)


def write_model_card(
    folder: Path,
    title: str,
    summary: str,
    usage: str,
    figures: dict[str, object],
    settings: dict[str, object],
    base: str,
    datasets: Iterable[str],
    task: str,
    tags: list[str],
    results: dict[str, str] | None = None,
    tested: str | list[str] = "",
) -> None:
    """Write the checkpoint's README.md.

    Args:
        figures: what was measured, shown as a table.
        settings: how it was made, shown as a table; of paths only the last name is shown.
        base: `model.path`, a folder or a hub id.
        datasets: sets of the hub that the training data is made of, as far as they are known.
        task: the hub's name of what the model does.
        results: which figures were measured on the test rows, by the hub's name of the metric.
        tested: the test rows, as data.test_files names them.
    """
    config = folder / "config.json"
    if config.exists() and json.loads(config.read_text()).get("attn_logit_softcapping"):  # Gemma 2
        summary += f"\n\n{CAPPED}"
    about = origin_of(base)
    about["datasets"] = sorted({*about.get("datasets", []), *datasets}) or None
    measured = {metric: figures[name] for metric, name in (results or {}).items() if name in figures}
    evaluated = eval_results(task, names_of(tested), measured) if measured else None
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=[OURS, *tags],
        model_name=title if evaluated else None,
        eval_results=evaluated,
        **about,
    ).to_yaml()
    body = "\n\n".join(
        [
            f"# {title}",
            summary,
            f"## Use\n\n```python\n{usage.strip()}\n```",
            f"## Measured\n\n{_table(figures)}",
            "![Training curves and held-out results](run.png)",
            f"## How it was made\n\n{_table({name: without_folders(value) for name, value in settings.items()})}",
        ]
    )
    write_text(folder / "README.md", f"---\n{front}\n---\n\n{body}\n")


def origin_of(base: str) -> dict[str, object]:
    """Return what is known of a base model, in the hub's words: `base_model`, `license`, and of our own its `datasets`.

    A folder tells its hub id if it lies in the hub's cache, or if it is a checkpoint of ours, whose card names its own
    base.
    """
    folder = Path(base)
    if not folder.is_dir():
        return {"base_model": base}
    card = read_front(folder / "README.md")
    origin = {name: card[name] for name in ("license", "license_name", "license_link") if card.get(name)}
    if is_ours(card):
        origin |= {name: card[name] for name in ("base_model", "datasets") if card.get(name)}
    if isinstance(origin.get("datasets"), str):
        origin["datasets"] = [origin["datasets"]]
    cached = [part for part in folder.resolve().parts if part.startswith("models--")]
    return origin | ({"base_model": cached[-1].removeprefix("models--").replace("--", "/", 1)} if cached else {})


def read_front(card: Path) -> dict[str, object]:
    """Return the lines for the hub at the top of a card; nothing if there are none, or none that can be read."""
    try:
        return (metadata_load(card) if card.is_file() else None) or {}
    except (yaml.YAMLError, ValueError) as error:  # the hub shows such a card, too, and says that its top is no YAML
        print(f"{card}: the lines at its top cannot be read, so nothing is taken from them: {error}", flush=True)
        return {}


def is_ours(front: dict[str, object]) -> bool:
    tags = front.get("tags")
    return isinstance(tags, list) and OURS in tags


def extend_model_card(
    folder: Path,
    title: str,
    figures: dict[str, object],
    picture: str,
    results: Iterable[str] = (),
    data: str = "",
) -> None:
    """Add a section of figures to a checkpoint's card, or replace the section of that title; its picture if there.

    Args:
        results: which figures become results for the hub, in a card of ours; the lines of other cards stay as they are.
        data: files of the rows that were measured.
    """
    card = folder / "README.md"
    front = read_front(card)
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    before, _, replaced = text.partition(f"\n## {title}\n")
    _, heading, after = replaced.partition("\n## ")
    shown = f"\n\n![{title}]({picture})" if (folder / picture).exists() else ""
    write_text(card, f"{before.rstrip()}\n\n## {title}\n\n{_table(figures)}{shown}\n{heading}{after}")
    measured = {name: figures[name] for name in results if name in figures}
    if is_ours(front) and measured:
        index = front.get("model-index")
        name, earlier = model_index_to_eval_results(index) if index else (folder.name, [])
        new = eval_results(front.get("pipeline_tag", "text-generation"), names_of(data), measured)
        kept = [result for result in earlier if not any(result.is_equal_except_value(other) for other in new)]
        metadata_save(card, front | {"model-index": eval_results_to_model_index(name, [*kept, *new])})


def eval_results(task: str, rows: str, measured: dict[str, float]) -> list[EvalResult]:
    """Return figures on rows that the training did not see, as the hub's results, which it tells apart by type."""
    about = {"task_type": task, "dataset_type": rows, "dataset_name": rows}
    return [EvalResult(metric_type=name, metric_value=value, **about) for name, value in measured.items()]


def names_of(files: str | list[str]) -> str:
    """Return the last names of files, one or several, named as data.train_files and so on name them."""
    return ", ".join(path.name for path in named_paths(files))


def without_folders(value: object) -> object:
    """Return a setting as a card may show it: of paths that exist, the last names."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    is_text = isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))
    if value and is_text and all(os.path.exists(path) for path in named_paths(value)):
        return names_of(value)
    return value


def _table(values: dict[str, object]) -> str:
    rows = [f"| {name} | {format_value(value)} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])
