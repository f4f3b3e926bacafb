"""What people see of a run: the card's sections, added once and replaced in place, and the picture of counts."""

import pytest

from common.report import draw, extend_model_card, format_value

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


def test_a_table_of_counts_is_drawn_alone_and_beside_curves(tmp_path, monkeypatch):
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    table = (["A", "B"], ["A", "B", "no verdict"], [[5, 1, 0], [2, 3, 4]])
    draw(tmp_path / "table.png", {}, {}, {"counts": table})
    draw(
        tmp_path / "all.png", {"loss": {"train": [(1, 2.0), (2, 1.0)]}}, {"margins": {"val": [1.0]}}, {"counts": table}
    )
    draw(tmp_path / "zero.png", {}, {}, {"counts": (["A"], ["A"], [[0]])})
    for name in ("table.png", "all.png", "zero.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert [[axis.get_title() for axis in figure.axes] for figure in drawn[:2]] == [
        ["counts"],
        ["loss", "margins", "counts"],
    ]
    for figure in drawn[:2]:
        axis = figure.axes[-1]
        assert [label.get_text() for label in axis.get_xticklabels()] == ["A", "B", "no verdict"]
        assert [label.get_text() for label in axis.get_yticklabels()] == ["A", "B"]
        written = {text.get_position(): text.get_text() for text in axis.texts}
        assert written == {(0, 0): "5", (1, 0): "1", (2, 0): "0", (0, 1): "2", (1, 1): "3", (2, 1): "4"}
    monkeypatch.undo()
    pyplot.close("all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.png", "table.png", "zero.png"]
