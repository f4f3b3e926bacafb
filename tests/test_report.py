"""What people see of a run: its metrics over all starts, the card and its sections, the pictures."""

import json

import pytest

from common.report import (
    Curves,
    Histogram,
    Table,
    draw,
    extend_model_card,
    format_value,
    read_history,
    training_curves,
    write_model_card,
)

CARD = "---\ntags: [x]\n---\n\n# Model\n\n## Measured\n\nvalidation\n"


def section(title: str, accuracy: str) -> str:
    return f"## {title}\n\n| | |\n|---|---|\n| accuracy | {accuracy} |\n"


def test_a_section_is_added_behind_the_card_and_the_second_time_replaced(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(CARD, encoding="utf-8")
    extend_model_card(tmp_path, "Measured on a.parquet", {"accuracy": 0.5}, "a.png")
    assert card.read_text(encoding="utf-8") == f"{CARD}\n{section('Measured on a.parquet', '0.5')}"
    extend_model_card(tmp_path, "Measured on a.parquet", {"accuracy": 0.75}, "a.png")
    assert card.read_text(encoding="utf-8") == f"{CARD}\n{section('Measured on a.parquet', '0.75')}"


def test_a_replaced_section_leaves_those_behind_it(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(CARD, encoding="utf-8")
    for title, accuracy in (("On a", 0.5), ("On b", 0.25), ("On a", 0.75)):
        extend_model_card(tmp_path, title, {"accuracy": accuracy}, "a.png")
    assert card.read_text(encoding="utf-8") == f"{CARD}\n{section('On a', '0.75')}\n{section('On b', '0.25')}"


def test_the_picture_is_shown_where_there_is_one_and_a_missing_card_is_begun(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    extend_model_card(tmp_path, "On a", {"accuracy": 1 / 3, "rows": 7}, "a.png")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.strip() == "## On a\n\n| | |\n|---|---|\n| accuracy | 0.3333 |\n| rows | 7 |\n\n![On a](a.png)"


@pytest.mark.parametrize(("value", "shown"), [(1 / 3, "0.3333"), (2.0, "2"), (12345, "12345"), (None, "None")])
def test_floats_are_shown_with_four_digits_and_the_rest_as_it_is(value, shown):
    assert format_value(value) == shown


@pytest.mark.parametrize("cap", [None, 50.0])
def test_a_card_says_how_a_model_whose_attention_is_capped_is_loaded(tmp_path, cap):
    (tmp_path / "config.json").write_text(json.dumps({"attn_logit_softcapping": cap}))
    write_model_card(tmp_path, "A judge", "It judges.", "judge(x)", figures={}, settings={})
    assert ('`attn_implementation="eager"`' in (tmp_path / "README.md").read_text()) == (cap is not None)


def test_a_card_holds_front_matter_figures_usage_and_settings(tmp_path):
    write_model_card(
        tmp_path,
        title="A judge",
        summary="It judges.",
        usage="\njudge(x)\n",
        figures={"val/accuracy": 2 / 3},
        settings={"steps": 7},
        pipeline_tag="text-generation",
        tags=["sft"],
    )
    front, body = (tmp_path / "README.md").read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n", 1)
    assert front.splitlines() == ["library_name: transformers", "pipeline_tag: text-generation", "tags:", "- sft"]
    assert body.strip().split("\n\n") == [
        "# A judge",
        "It judges.",
        "## Use",
        "```python\njudge(x)\n```",
        "## Measured",
        "| | |\n|---|---|\n| val/accuracy | 0.6667 |",
        "![Training curves and held-out results](run.png)",
        "## How it was made",
        "| | |\n|---|---|\n| steps | 7 |",
    ]


# ---- metrics


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
