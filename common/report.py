"""What a finished run leaves for people: its metrics, a picture, a model card.

verl's `Tracking` writes the metrics (TensorBoard and a JSON-lines file by default). Its file logger empties the file it
opens, so every start of a run gets a file of its own, named by the step it starts from, and `read_history` joins them.
"""

import json
import os
from pathlib import Path

from huggingface_hub import ModelCardData

from common.checkpoint import write_text


def start_tracking(folder: Path, project: str, loggers: list[str], config: dict, from_step: int):
    """Return verl's `Tracking`, its files under `folder`: tensorboard/ and metrics/from_step_N.jsonl."""
    from verl.utils.tracking import Tracking

    os.environ.setdefault("TENSORBOARD_DIR", str(folder / "tensorboard"))
    os.environ["VERL_FILE_LOGGER_PATH"] = str(folder / "metrics" / f"from_step_{from_step:06d}.jsonl")
    (folder / "metrics").mkdir(parents=True, exist_ok=True)
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


def draw(path: Path, curves: dict[str, dict[str, list]], histograms: dict[str, dict[str, list[float]]]) -> None:
    """Draw one panel per title: curves of (step, value) by label, histograms of values by label."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed to write a file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves) + len(histograms), figsize=(5 * (len(curves) + len(histograms)), 4))
    for axis, (title, series) in zip(axes, curves.items()):
        for label, points in series.items():
            axis.plot(*zip(*points), label=label, marker="o" if len(points) < 20 else None)
        axis.set(title=title, xlabel="step")
    for axis, (title, series) in zip(axes[len(curves) :], histograms.items()):
        for label, values in series.items():
            axis.hist(values, bins=40, alpha=0.6, label=label)
        axis.set(title=title, ylabel="pairs")
    for axis in axes:
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=100)
    pyplot.close(figure)
    os.replace(partial, path)


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
            "![Training curves and held-out margins](run.png)",
            f"## How it was made\n\n{_table(settings)}",
        ]
    )
    write_text(folder / "README.md", f"---\n{front}\n---\n\n{body}\n")


def _table(values: dict[str, object]) -> str:
    rows = [f"| {name} | {format_value(value)} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def format_value(value: object) -> str:
    """Show floats with four significant digits and anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
