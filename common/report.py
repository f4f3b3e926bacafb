"""What a finished run leaves for people: its metrics and a picture.

verl's `Tracking` writes the metrics (TensorBoard and a JSON-lines file by default). Its file logger empties the file it
opens, so every start of a run gets a file of its own, named by the step it starts from, and `read_history` joins them.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from common.files import written_whole


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


def read_steps(folder: Path, files: str) -> dict[int, dict]:
    """Return what each step of a whole run wrote; where a restart repeated steps, the repetition counts.

    Args:
        files: in metrics/, up to the step from which a start of the run wrote them.
    """
    steps: dict[int, dict] = {}
    for file in sorted((folder / "metrics").glob(f"{files}_*.jsonl")):
        start = int(file.stem.rpartition("_")[2])
        steps = {step: values for step, values in steps.items() if step <= start}
        for line in file.read_text().splitlines():
            if line.endswith("}"):  # a killed run may leave half a line
                entry = json.loads(line)
                steps.setdefault(entry["step"], {}).update(entry["data"])
    return steps


def read_history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return each metric's (step, value) over the whole run."""
    steps = read_steps(folder, "from_step")
    history: dict[str, list[tuple[int, float]]] = {}
    for step in sorted(steps):
        for name, value in steps[step].items():
            history.setdefault(name, []).append((step, value))
    return history


@dataclass
class Curves:
    """A panel of values by step; `series` has the (step, value) points of each label."""

    title: str
    series: dict[str, list[tuple[int, float]]]

    def draw_on(self, axis) -> None:
        for label, points in self.series.items():
            axis.plot(*zip(*points), label=label, marker="o" if len(points) < 20 else None)
        axis.set(title=self.title, xlabel="step")
        if self.title.startswith("loss"):  # or all that comes after the first steps looks flat
            axis.set_yscale("log")
        axis.legend()
        axis.grid(alpha=0.3)


@dataclass
class Histogram:
    """A panel of how often values occur; `series` has the values of each label, `unit` says what is counted."""

    title: str
    series: dict[str, list[float]]
    unit: str

    def draw_on(self, axis) -> None:
        for label, values in self.series.items():
            axis.hist(values, bins=40, alpha=0.6, label=label)
        axis.set(title=self.title, ylabel=self.unit)
        axis.legend()
        axis.grid(alpha=0.3)


@dataclass
class Table:
    """A panel of counts: one list for each row, one number for each column."""

    title: str
    rows: list[str]
    columns: list[str]
    counts: list[list[int]]

    def draw_on(self, axis) -> None:
        axis.imshow(self.counts, cmap="Blues")
        axis.set(title=self.title, xticks=range(len(self.columns)), yticks=range(len(self.rows)))
        axis.set_xticklabels(self.columns)
        axis.set_yticklabels(self.rows)
        largest = max(map(max, self.counts))
        for row, line in enumerate(self.counts):
            for column, count in enumerate(line):
                color = "white" if count > largest / 2 else "black"
                axis.text(column, row, count, ha="center", va="center", color=color)


def draw(path: Path, panels: list[Curves | Histogram | Table]) -> None:
    """Draw panels side by side into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed to write a file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False)
    for axis, panel in zip(axes[0], panels):
        panel.draw_on(axis)
    figure.tight_layout()
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=100)
    pyplot.close(figure)


def training_curves(history: dict[str, list[tuple[int, float]]], panels: dict[str, tuple[str, ...]]) -> list[Curves]:
    """Return a panel for each title, with those of the named metrics that the run has."""
    return [
        Curves(title, {name: history[name] for name in names if name in history}) for title, names in panels.items()
    ]


def format_value(value: object) -> str:
    """Show floats with four significant digits and anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
