"""What a finished run leaves for people: its metrics, a picture, a model card.

verl's `Tracking` writes the metrics (TensorBoard and a JSON-lines file by default). Its file logger empties the file it
opens, so every start of a run gets a file of its own, named by the step it starts from, and `read_history` joins them.
"""

import json
import os
from pathlib import Path

from huggingface_hub import ModelCardData

from common.files import write_text, written_whole


def set_log_file(folder: Path, from_step: int) -> None:
    """Have verl's `Tracking` write under `folder`: tensorboard/ and metrics/from_step_N.jsonl."""
    os.environ.setdefault("TENSORBOARD_DIR", str(folder / "tensorboard"))
    os.environ["VERL_FILE_LOGGER_PATH"] = str(folder / "metrics" / f"from_step_{from_step:06d}.jsonl")
    (folder / "metrics").mkdir(parents=True, exist_ok=True)


def start_tracking(folder: Path, project: str, loggers: list[str], config: dict, from_step: int):
    """Return verl's `Tracking`, its files under `folder`."""
    from verl.utils.tracking import Tracking

    set_log_file(folder, from_step)
    return Tracking(project, folder.name, loggers, config)


def read_history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return each metric's (step, value) over the whole run; where a restart repeated steps, the repetition counts."""
    steps: dict[int, dict[str, float]] = {}
    for file in sorted((folder / "metrics").glob("from_step_*.jsonl")):
        start = int(file.stem.rpartition("_")[2])
        steps = {step: values for step, values in steps.items() if step <= start}
        for line in file.read_text().splitlines():
            if line.endswith("}"):  # a killed run may leave half a line
                entry = json.loads(line)
                steps.setdefault(entry["step"], {}).update(entry["data"])
    history: dict[str, list[tuple[int, float]]] = {}
    for step in sorted(steps):
        for name, value in steps[step].items():
            history.setdefault(name, []).append((step, value))
    return history


def draw(
    path: Path,
    curves: dict[str, dict[str, list]],
    histograms: dict[str, dict[str, list[float]]],
    tables: dict[str, tuple[list[str], list[str], list[list[int]]]] | None = None,
) -> None:
    """Draw one panel per title: curves of (step, value) by label, histograms of values by label, tables of counts.

    Args:
        tables: names of the rows, names of the columns, and the counts row by row.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display is needed to write a file
    from matplotlib import pyplot

    tables = tables or {}
    panels = len(curves) + len(histograms) + len(tables)
    figure, axes = pyplot.subplots(1, panels, figsize=(5 * panels, 4), squeeze=False)
    axes = axes[0]
    for axis, (title, series) in zip(axes, curves.items()):
        for label, points in series.items():
            axis.plot(*zip(*points), label=label, marker="o" if len(points) < 20 else None)
        axis.set(title=title, xlabel="step")
        if title.startswith("loss"):  # or all that comes after the first steps looks flat
            axis.set_yscale("log")
    for axis, (title, series) in zip(axes[len(curves) :], histograms.items()):
        for label, values in series.items():
            axis.hist(values, bins=40, alpha=0.6, label=label)
        axis.set(title=title, ylabel="pairs")
    for axis, (title, (rows, columns, counts)) in zip(axes[len(curves) + len(histograms) :], tables.items()):
        axis.imshow(counts, cmap="Blues")
        axis.set(title=title, xticks=range(len(columns)), yticks=range(len(rows)))
        axis.set_xticklabels(columns)
        axis.set_yticklabels(rows)
        largest = max(map(max, counts))
        for row, line in enumerate(counts):
            for column, count in enumerate(line):
                color = "white" if count > largest / 2 else "black"
                axis.text(column, row, count, ha="center", va="center", color=color)
    for axis in axes[: len(curves) + len(histograms)]:
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=100)
    pyplot.close(figure)


def write_model_card(
    folder: Path,
    title: str,
    summary: str,
    usage: str,
    figures: dict[str, object],
    settings: dict[str, object],
    **metadata,
) -> None:
    """Write the checkpoint's README.md.

    Args:
        figures: measured results, shown as a table.
        settings: what produced them, shown as a table.
        metadata: Hugging Face front matter: pipeline_tag, tags, base_model, …
    """
    front = ModelCardData(library_name="transformers", **metadata).to_yaml()
    body = "\n\n".join(
        [
            f"# {title}",
            summary,
            f"## Use\n\n```python\n{usage.strip()}\n```",
            f"## Measured\n\n{_table(figures)}",
            "![Training curves and held-out results](run.png)",
            f"## How it was made\n\n{_table(settings)}",
        ]
    )
    write_text(folder / "README.md", f"---\n{front}\n---\n\n{body}\n")


def extend_model_card(folder: Path, title: str, figures: dict[str, object], picture: str) -> None:
    """Add a section of figures to a checkpoint's card, or replace the section of that title; its picture if there."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    before, _, replaced = text.partition(f"\n## {title}\n")
    _, heading, after = replaced.partition("\n## ")
    shown = f"\n\n![{title}]({picture})" if (folder / picture).exists() else ""
    write_text(card, f"{before.rstrip()}\n\n## {title}\n\n{_table(figures)}{shown}\n{heading}{after}")


def _table(values: dict[str, object]) -> str:
    rows = [f"| {name} | {format_value(value)} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def format_value(value: object) -> str:
    """Show floats with four significant digits and anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
