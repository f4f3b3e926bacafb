"""What people see of a run: its metrics over all starts, and the pictures."""

import json

import pytest

from common.report import (
    Curves,
    Histogram,
    Table,
    draw,
    format_value,
    read_history,
    training_curves,
)


@pytest.mark.parametrize(("value", "shown"), [(1 / 3, "0.3333"), (2.0, "2"), (12345, "12345"), (None, "None")])
def test_floats_are_shown_with_four_digits_and_the_rest_as_it_is(value, shown):
    assert format_value(value) == shown


def log(folder, start: int, *steps: tuple[int, dict], rest: str = "") -> None:
    lines = [json.dumps({"step": step, "data": data}) + "\n" for step, data in steps]
    (folder / "metrics").mkdir(exist_ok=True)
    (folder / "metrics" / f"from_step_{start:06d}.jsonl").write_text("".join(lines) + rest)


def test_a_history_joins_all_starts_and_a_repeated_step_counts_as_it_was_repeated(tmp_path):
    """Killed after step 4 while writing, resumed after step 2, and this time another metric is late."""
    first = [(0, {"val": 9.0}), *((step, {"loss": 1.0 * step}) for step in (1, 2, 3)), (3, {"val": 8.0})]
    log(tmp_path, 0, *first, rest='{"step": 4, "data": {"lo')
    log(tmp_path, 2, (3, {"loss": 30.0}), (4, {"loss": 40.0}), (4, {"val": 7.0}))
    assert read_history(tmp_path) == {
        "val": [(0, 9.0), (4, 7.0)],
        "loss": [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)],
    }


def test_training_curves_have_the_metrics_that_a_run_has():
    history = {"train/loss": [(1, 2.0)], "train/lr": [(1, 0.1)]}
    panels = {"loss": ("train/loss", "val/loss"), "rate": ("train/lr",)}
    assert training_curves(history, panels) == [
        Curves("loss", {"train/loss": [(1, 2.0)]}),
        Curves("rate", {"train/lr": [(1, 0.1)]}),
    ]


# ---- pictures


@pytest.fixture
def axes_of(tmp_path, monkeypatch):
    """Draw panels and return their axes as matplotlib holds them; the file is a PNG, and the only one."""
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)

    def axes(*panels) -> list:
        draw(tmp_path / "run.png", list(panels))
        assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
        assert [path.name for path in tmp_path.iterdir()] == ["run.png"]
        return drawn[-1].axes

    yield axes
    monkeypatch.undo()
    pyplot.close("all")


def test_panels_stand_side_by_side_in_their_order(axes_of):
    panels = [Curves("loss", {"train": [(1, 2.0)]}), Histogram("margins", {"val": [1.0]}, "pairs")]
    axes = axes_of(*panels, Table("counts", ["A"], ["A"], [[0]]))
    assert [axis.get_title() for axis in axes] == ["loss", "margins", "counts"]
    lefts = [axis.get_position().x0 for axis in axes]
    assert lefts == sorted(lefts) and len({axis.get_position().y0 for axis in axes}) == 1


def test_curves_are_drawn_by_step_and_a_loss_on_a_logarithmic_scale(axes_of):
    series = {"train": [(1, 2.0), (5, 1.0)], "val": [(5, 1.5)]}
    loss, accuracy = axes_of(Curves("loss, nats", series), Curves("accuracy", series))
    for axis in (loss, accuracy):
        assert {line.get_label(): line.get_xydata().tolist() for line in axis.lines} == {
            "train": [[1.0, 2.0], [5.0, 1.0]],
            "val": [[5.0, 1.5]],
        }
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["train", "val"]
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")


def test_a_histogram_counts_every_value_in_the_unit_it_names(axes_of):
    (axis,) = axes_of(Histogram("scores", {"right": [1.0] * 7, "wrong": [0.0, 1.0, 2.0]}, "rows"))
    assert axis.get_ylabel() == "rows"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["right", "wrong"]
    assert [sum(bar.get_height() for bar in bars) for bars in axis.containers] == [7, 3]


def test_a_table_shows_its_counts_in_their_cells(axes_of):
    (axis,) = axes_of(Table("counts", ["A", "B"], ["A", "B", "no verdict"], [[5, 1, 0], [2, 3, 4]]))
    assert [label.get_text() for label in axis.get_xticklabels()] == ["A", "B", "no verdict"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["A", "B"]
    written = {text.get_position(): text.get_text() for text in axis.texts}
    assert written == {(0, 0): "5", (1, 0): "1", (2, 0): "0", (0, 1): "2", (1, 1): "3", (2, 1): "4"}
    colors = {text.get_text(): text.get_color() for text in axis.texts}
    assert (colors["5"], colors["3"], colors["2"], colors["0"]) == ("white", "white", "black", "black")
