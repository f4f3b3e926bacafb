"""Pictures of a page: matplotlib's panels as SVG, each in an <img> of its own, where nothing of it can run.

The panels of `common.report` can be used as well. Names of sources are untrusted text: matplotlib would read `$…$` in
them as mathematics, and stop at a formula that is wrong.
"""

import base64
import io
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np

NAME_LENGTH = 28  # characters of a name beside a box
MOST_BOXES = 12
NAMES = {"fontsize": 9, "parse_math": False}


class Panel(Protocol):
    title: str

    def draw_on(self, axis) -> None: ...


@dataclass(frozen=True)
class Picture:
    """A panel, and what it shows in words: for everyone below the picture, for a screen reader in place of it."""

    panel: Panel
    caption: str


@dataclass
class Scatter:
    """A panel of points: for each label its x and its y. Drawn as pixels, so that ten thousand points stay small."""

    title: str
    series: dict[str, tuple[list[float], list[float]]]
    xlabel: str
    ylabel: str

    def draw_on(self, axis) -> None:
        for label, (x, y) in self.series.items():
            size = 6 if len(x) > 500 else 20
            axis.scatter(x, y, s=size, alpha=0.5, label=label, rasterized=True, linewidths=0)
        axis.set(title=self.title, xlabel=self.xlabel, ylabel=self.ylabel)
        for handle in axis.legend().legend_handles:  # pale small points, but a label that can be seen
            handle.set(alpha=1, sizes=[25], rasterized=False)
        axis.grid(alpha=0.3)


@dataclass
class Calibration:
    """A panel of how often a confidence is right: (confidence, share right, rows) of each bin, beside the diagonal."""

    title: str
    bins: list[tuple[float, float, int]]

    def draw_on(self, axis) -> None:
        least = min([confidence for confidence, _, _ in self.bins], default=0.5)
        axis.plot([least, 1], [least, 1], color="gray", linestyle="--", label="confidence = share right")
        axis.plot([part[0] for part in self.bins], [part[1] for part in self.bins], marker="o", label="measured")
        for confidence, right, rows in self.bins:
            axis.annotate(str(rows), (confidence, right), textcoords="offset points", xytext=(4, -10), fontsize=7)
        axis.set(title=self.title, xlabel="confidence (beside a point: rows)", ylabel="share right")
        axis.legend()
        axis.grid(alpha=0.3)


@dataclass
class Boxes:
    """A panel of a box for each name: median, quartiles and the 5 and 95 in a hundred of its values."""

    title: str
    series: dict[str, list[float]]
    xlabel: str

    def draw_on(self, axis) -> None:
        largest = sorted(self.series, key=lambda name: -len(self.series[name]))[:MOST_BOXES][::-1]
        axis.boxplot([self.series[name] for name in largest], orientation="horizontal", whis=(5, 95), showfliers=False)
        axis.set_yticks(
            range(1, len(largest) + 1), [f"{plain(name)} ({len(self.series[name])})" for name in largest], **NAMES
        )
        axis.set(title=self.title, xlabel=self.xlabel)
        axis.grid(alpha=0.3)


@dataclass
class Bars:
    """A panel of a bar for each name: how many of its rows are right."""

    title: str
    counts: dict[str, tuple[int, int]]  # right, all

    def draw_on(self, axis) -> None:
        largest = sorted(self.counts, key=lambda name: -self.counts[name][1])[:MOST_BOXES][::-1]
        axis.barh(range(len(largest)), [self.counts[name][0] / self.counts[name][1] for name in largest])
        axis.set_yticks(range(len(largest)), [f"{plain(name)} ({self.counts[name][1]})" for name in largest], **NAMES)
        axis.set(title=self.title, xlabel="share right", xlim=(0, 1))
        axis.grid(alpha=0.3)


def plain(name: str) -> str:
    """Return a name that a picture can show: one line, printable characters, not too long."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return shown if len(shown) <= NAME_LENGTH else shown[: NAME_LENGTH - 1] + "…"


def calibration_bins(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> list[tuple[float, float, int]]:
    """Return, for equal bins of a confidence in [0.5, 1]: its mean, the share right, and the number of rows.

    Args:
        confidence: (rows,). right: (rows,) of booleans.
    """
    numbers = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    chosen = [numbers == number for number in np.unique(numbers)]
    return [(float(confidence[rows].mean()), float(right[rows].mean()), int(rows.sum())) for rows in chosen]


def data_uri(panel: Panel) -> str:
    """Draw a panel as SVG, and return it as the address of an image."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    from matplotlib import pyplot

    settings = {"svg.fonttype": "none", "svg.hashsalt": "page"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the letter
        figure, axis = pyplot.subplots(figsize=(5, 3.6), layout="constrained")
        panel.draw_on(axis)
        legend = axis.get_legend()
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label, *(legend.get_texts() if legend else ())):
            text.set_parse_math(False)  # what stands in them may be a file's name
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", dpi=150, transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"
