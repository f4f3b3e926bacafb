"""What a page holds: figures beside their baselines, the rows that matter most, and no way for a text to run."""

import base64
import hashlib
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from hostile_texts import HOSTILE
from pages import pair_like, small_page

from bradley_terry.dataset import Pair, check_pair
from bradley_terry.evaluate import pair_metrics
from bradley_terry.page import pair_examples, pair_pictures
from common.demo.world import preference_pairs
from common.judging.votes import vote_metrics
from common.page import page as pages
from common.page.page import Band, Example, Examples, Page, Text, View, by_interest, explained, figure_rows, pack
from common.page.pictures import Boxes, Calibration, Scatter, calibration_bins, data_uri
from common.report import Curves
from generative_pairwise.evaluate import preference_metrics
from generative_pairwise.evaluate import soft_metrics as weighed_order
from generative_pairwise.reward import compute_score
from generative_pointwise.evaluate import evidence_metrics, score_metrics
from generative_pointwise.evaluate import soft_metrics as weighed_scores
from sft.evaluate import token_metrics, verdict_metrics


def held_by(path) -> dict:
    """The data in a page."""
    html = path.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(data)


def one_set(rows: list[Example], *views: View) -> Examples:
    return Examples("test", rows, list(views) or [View("all", "margin")])


def test_a_baseline_stands_below_its_figure_in_each_split():
    figures = {
        "val": {"score/accuracy": 0.8, "loss": 1.0, "score/majority": 0.3},
        "test": {"score/accuracy": 0.7, "score/majority": 0.2, "mean": 5.0},
    }
    assert figure_rows(figures, {"majority": "accuracy", "mean": "mae"}) == [
        ("score/accuracy", False, [0.8, 0.7]),
        ("score/majority", True, [0.3, 0.2]),
        ("loss", False, [1.0, None]),
        ("mean", False, [None, 5.0]),  # its figure is not there
    ]


def test_a_text_that_rows_share_is_there_once():
    rows = [pair_like(number, 1.0, "the same answer", f"answer {number}") for number in range(3)]
    packed = pack([one_set(rows)], "")
    assert packed["texts"].count("the same answer") == 1
    answers = [row[2][1][1] for row in packed["sets"][0]["rows"]]
    texts = [[packed["texts"][text[1]] for column in columns for text in column] for columns in answers]
    assert texts == [["the same answer", f"answer {number}"] for number in range(3)]


def test_rows_come_in_turn_from_the_head_of_each_view():
    rows = [
        pair_like(number, margin, "a", "b")
        for number, margin in enumerate([5.0, -1.0, 3.0, -2.0, None])
        if margin is not None
    ] + [Example("k", {"source": "s", "margin": None, "right": "no"}, [])]
    views = View("wrong", "margin", only={"right": "no"}), View("highest", "margin", falling=True)
    assert by_interest(one_set(rows, *views)) == [3, 0, 1, 2, 4]  # lowest, highest, second lowest, second highest, …


def test_more_rows_than_there_is_room_for_are_cut_from_the_least_interesting(monkeypatch):
    monkeypatch.setattr(pages, "MOST_ROWS", 3)
    rows = [pair_like(number, float(number), "a", "b") for number in range(10)]
    (packed,) = pack([one_set(rows, View("all", "margin"), View("highest", "margin", True))], "")["sets"]
    assert packed["total"] == 10 and [row[1][0] for row in packed["rows"]] == [
        "test.parquet row 0",
        "test.parquet row 1",
        "test.parquet row 9",
    ]


def test_the_sets_share_the_room_and_each_has_a_row(monkeypatch):
    monkeypatch.setattr(pages, "MOST_BYTES", 30_000)
    sets = [one_set([pair_like(number, 1.0, f"{name}{number}" * 900, "b") for number in range(9)]) for name in "xy"]
    packed = pack([*sets, one_set([pair_like(0, 1.0, "z" * 40_000, "b")])], "")
    counts = [len(each["rows"]) for each in packed["sets"]]
    assert counts[2] == 1 and all(1 <= count < 9 for count in counts[:2])


def test_a_text_that_is_too_long_is_cut_and_says_by_how_much(monkeypatch):
    monkeypatch.setattr(pages, "LONGEST_TEXT", 10)
    packed = pack([one_set([pair_like(0, 1.0, "0123456789abc", "b")])], "")
    title, number, folded, cut = packed["sets"][0]["rows"][0][2][1][1][0][0]
    assert (title, packed["texts"][number], folded, cut) == ("chosen", "0123456789", 0, 3)


def test_a_view_says_up_to_where_no_row_is_missing(monkeypatch):
    monkeypatch.setattr(pages, "MOST_ROWS", 5)
    rows = [pair_like(number, float(number), "a", "b") for number in range(10)]
    views = View("all", "margin"), View("highest", "margin", True), View("none", "margin", only={"right": "?"})
    (packed,) = pack([one_set(rows, *views)], "")["sets"]
    assert packed["numbers"] == [0, 1, 2, 8, 9]  # in turn: 0, 9, 1, 8, 2
    assert [view[4] for view in packed["views"]] == [3, 2, 0]
    handed_over = Examples("test", rows[:4], list(views[:2]), total=10)
    (packed,) = pack([handed_over], "")["sets"]
    assert [view[4] for view in packed["views"]] == [2, 2]  # what was not handed over may stand behind these


@pytest.mark.parametrize("text", ["<" * 3000, "é" * 3000, "語" * 3000, "\ud800" * 3000, "&'>" * 3000])
def test_the_limit_is_of_what_is_written(monkeypatch, tmp_path, text):
    monkeypatch.setattr(pages, "MOST_BYTES", 100_000)
    rows = [pair_like(number, 1.0, f"{number}{text}", "b") for number in range(100)]
    path = small_page(tmp_path / "report.html", rows)
    html = path.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    held = held_by(path)
    assert len(data.encode()) < 110_000 and 1 < len(held["sets"][0]["rows"]) < 100 and f"0{text}" in held["texts"]


def test_what_is_shown_of_a_run_names_no_folder_and_no_user(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    assert pages.shareable(str(tmp_path / "checkpoint")) == "checkpoint"
    assert pages.shareable(tmp_path / "checkpoint") == "checkpoint"
    assert pages.shareable("https://me:secret@host:8000/v1?key=secret") == "https://host:8000/v1"
    assert [pages.shareable(value) for value in ("org/model", 3, None, [1])] == ["org/model", 3, None, [1]]


def test_a_number_that_is_none_is_named():
    row = Example("key", {"source": "row", "margin": float("nan")}, [Band([[Text("a", "b")]])])
    assert pack([one_set([row])], "")["sets"][0]["rows"][0][1] == ["row", "nan"]


def test_sets_without_rows_are_left_out(tmp_path):
    assert pack([one_set([])], "")["sets"] == []


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_leaves_its_place_in_the_file(tmp_path, text):
    """Read with an HTML parser of the standard library: the tags of the page are its own, and the data are whole."""

    def tags(html: str) -> list[str]:
        found = []
        parser = HTMLParser()
        parser.handle_starttag = lambda tag, attributes: found.append((tag, [name for name, _ in attributes]))
        parser.feed(html)
        return found

    row = Example(text, {"source": text, "margin": -1.0, "right": "no"}, [Band([[Text(text, text)]])])
    changes = {"title": text, "about": {text: text}, "left_out": {text: {text: 1}}, "figures": {text: {text: 1.0}}}
    path = small_page(tmp_path / "a.html", [row], **changes)
    plain = [Example("k", row.values | {"source": "s"}, [Band([[Text("t", "u")]])])]
    reference = small_page(
        tmp_path / "b.html", plain, title="t", about={"a": "b"}, left_out={"t": {"k": 1}}, figures={"t": {"f": 1.0}}
    )
    assert tags(path.read_text(encoding="utf-8")) == tags(reference.read_text(encoding="utf-8"))
    held = held_by(path)
    assert held["texts"] == [text] and held["sets"][0]["rows"][0][:2] == [text, [text, -1.0, "no"]]


def test_the_policy_allows_the_script_and_style_of_the_page_and_nothing_else(tmp_path):
    html = small_page(tmp_path / "report.html", [pair_like(0, 1.0, "a", "b")]).read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts + styles]
    assert policy.replace("&#39;", "'") == (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    assert len(hashes) == 2 and " style=" not in html and not re.search(r"<[^>]* on\w+=", html)
    assert not re.search(r"https?://", html)


def test_pictures_are_images_that_hold_their_names_as_they_are():
    uri = data_uri(Boxes("margins", {"$\\frac{ <b>&\u202e": [1.0, 2.0, 3.0]}, "$x"))
    svg = base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()
    assert "$\\frac{ &lt;b&gt;&amp;\N{REPLACEMENT CHARACTER} (3)" in svg and "$x" in svg


def test_every_panel_is_drawn_and_stays_small():
    values = np.random.default_rng(0).normal(size=10_000).tolist()
    panels = [
        Curves("loss", {"train": [(1, 2.0), (2, 1.0)]}),
        Scatter("length", {"chosen": (values, values)}, "tokens", "reward"),
        Calibration("calibration", [(0.6, 0.5, 10), (0.9, 0.95, 100)]),
        Calibration("calibration", []),
    ]
    assert all(1_000 < len(data_uri(panel)) < 300_000 for panel in panels)


def test_calibration_bins_by_hand():
    """Ten bins from 0.5 to 1: 0.51 and 0.54 in the first, 1.0 in the last."""
    bins = calibration_bins(np.array([0.51, 0.54, 1.0]), np.array([True, False, True]))
    assert bins == [(pytest.approx(0.525), 0.5, 2), (1.0, 1.0, 1)]


def test_five_thousand_pairs_make_a_small_page_in_a_few_seconds(tmp_path):
    """The demo's pairs, as long as they are: 6 MB and 5 seconds of this process at most."""
    pairs, rows = [], {}
    for number, row in enumerate(preference_pairs("test", 5000, seed=0)):
        source, count = f"test.parquet row {number}", np.zeros(20, dtype=np.int32)
        rows[source] = check_pair(row) | {"source": source}
        pairs.append(Pair(count, count, count, row["margin"], source))
    rewards = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
    started = time.process_time()
    shown = pair_examples("test", pairs, rewards, rows)
    page = pages.Page(
        "A run", {}, {"test": {"accuracy": 0.5}}, {}, {}, pair_pictures("test", pairs, rewards, rows), [shown], ""
    )
    path = pages.write_page(tmp_path / "report.html", page)
    assert time.process_time() - started < 5
    assert path.stat().st_size < 6_000_000 and len(held_by(path)["sets"][0]["rows"]) == 5000


def test_a_page_says_what_its_figures_mean_in_the_words_of_the_docstrings(tmp_path):
    (meaning,) = explained(pair_metrics)
    assert meaning.startswith("accuracy: share of pairs with r_chosen > r_rejected; tie_rate: share with equal rewards")
    assert "rewards: (pairs, 2)" not in meaning and meaning.endswith("over ten bins.")
    others = (token_metrics, verdict_metrics, preference_metrics, weighed_scores, weighed_order, vote_metrics)
    assert len(explained(*others)) == len(others)
    scores, evidence, rewards = explained(score_metrics, evidence_metrics, compute_score)
    assert scores.startswith("rows; parse_rate") and evidence.startswith("evidence: of the answers")
    assert rewards.endswith("parsed: 1 if there is a verdict.")  # and no word of what it raises
    assert explained(lambda: None, Page) == []  # a reward of your own, without a docstring or without "Returns:"
    rows = [pair_like(0, 1.0, "yes", "no")]
    text = small_page(tmp_path / "report.html", rows, meaning=["<b>loss</b> in nats", "next"]).read_text()
    assert "What the figures mean" in text
    assert '<p class="note">&lt;b&gt;loss&lt;/b&gt; in nats</p><p class="note">next</p>' in text
    assert "What the figures mean" not in small_page(tmp_path / "other.html", rows).read_text()
