"""What is made of a model's answers on a benchmark: its figures beside baselines, and whether two models differ."""

import json
import math
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from scipy import stats

from common.benchmarks import BENCHMARKS, compare, results
from common.benchmarks.benchmark import Unit, units_of
from common.benchmarks.questions import Question
from common.benchmarks.results import answer_by_ratings, answer_by_scores, answer_by_votes, measure
from common.card import OURS
from common.conversation import DataError

JUDGEBENCH, NAN = BENCHMARKS["judgebench"], math.nan
PROMPT = [{"role": "user", "content": "?"}]
# the right answer is longer, shorter, of equal length, longer; and one of Claude's pairs
PAIRS = [
    Question("gpt/mmlu-pro/1", "gpt/mmlu-pro", PROMPT, ["long one", "short"]),
    Question("gpt/mmlu-pro/2", "gpt/mmlu-pro", PROMPT, ["short", "long one"]),
    Question("gpt/livecodebench/3", "gpt/livecodebench", PROMPT, ["same", "size"]),
    Question("gpt/livecodebench/4", "gpt/livecodebench", PROMPT, ["long one", "short"]),
    Question("claude/mmlu-pro/5", "claude/mmlu-pro", PROMPT, ["short", "long one"]),
]
SCORES = [[2.0, 1.0], [1.0, 1.0], [NAN, NAN], [3.0, 0.5], [0.0, 1.0]]


def parts_of(figures: dict) -> dict[str, dict]:
    return {line["part"]: line for line in figures["parts"]}


def test_figures_worked_by_hand():
    figures = measure(answer_by_scores(JUDGEBENCH, PAIRS, SCORES))
    parts = parts_of(figures)
    whole = parts["mean of 1 of 1 sections, not whole"]
    assert figures["score"] is None and figures["missing"][0] == "gpt/mmlu-pro (2 of 154 questions)"
    # four pairs of GPT-4o: one right, one tie, one without a score, one right; of the baselines two longer ones
    expected = {"questions": 4, "ties": 1, "unscored": 1, "score": 0.5, "longer": 0.5, "constant": 0}
    assert {name: whole[name] for name in expected} == expected
    assert 0.3 < whole["random"] < 0.7
    assert (parts["gpt/mmlu-pro"]["score"], parts["gpt/livecodebench"]["score"]) == (0.5, 0.5)
    assert (parts["claude"]["questions"], parts["claude"]["score"], parts["claude"]["longer"]) == (1, 0, 0)


def test_the_score_of_a_whole_benchmark_has_its_name():
    sizes = JUDGEBENCH.sizes.items()
    questions = [Question(f"{subset}/{n}", subset, PROMPT, ["a", "b"]) for subset, size in sizes for n in range(size)]
    figures = measure(answer_by_scores(JUDGEBENCH, questions, [[1.0, 0.0]] * 210 + [[0.0, 1.0]] * 140))
    assert figures["missing"] == [] and figures["score"] == parts_of(figures)["score"]["score"] == 0.6


def test_random_scores_reach_what_chance_does():
    """Best of 4: a quarter; each of the nine comparisons: a half."""
    four = [Question(f"Math/{n}", "Math", PROMPT, ["."] * 4) for n in range(400)]
    line = measure(answer_by_scores(BENCHMARKS["rewardbench2"], four, [[0.0] * 4] * 400))["parts"][0]
    assert line["random"] == pytest.approx(0.25, abs=0.02) and line["constant"] == line["score"] == 0.25
    nine = [Question(f"chat/{n}", "chat", PROMPT, ["."] * 6, 3) for n in range(400)]
    line = measure(answer_by_scores(BENCHMARKS["rm_bench"], nine, [[0.0] * 6] * 400))["parts"][0]
    assert line["random"] == pytest.approx(0.5, abs=0.02) and line["constant"] == line["score"] == 0


def test_the_same_draws_every_time():
    first, second = (measure(answer_by_scores(JUDGEBENCH, PAIRS, SCORES)) for _ in range(2))
    assert first == second


def test_a_judges_ratings_give_three_figures():
    four = [Question(f"Math/{n}", "Math", PROMPT, ["."] * 4) for n in range(4)]
    ratings = [[4, 1, 2, 3], [4, 4, 2, 3], [NAN] * 4, [3, NAN, 1, 1]]
    line = measure(answer_by_ratings(BENCHMARKS["rewardbench2"], four, ratings))["parts"][0]
    assert line["score"] == (1 + 0.5) / 4
    assert line["official"] == (1 + 0.5 + 0.25 + 1) / 4
    assert (line["ties"], line["unscored"]) == (1, 2)
    line = measure(answer_by_ratings(JUDGEBENCH, PAIRS[:4], [[4, 1], [2, 2], [NAN, 1], [1, 4]]))["parts"][0]
    assert (line["score"], line["ties shared"]) == (1 / 4, 1.5 / 4)


@pytest.mark.parametrize(
    ("name", "by_ratings", "by_votes"),
    [("rm_bench", False, False), ("rmb", False, False), ("judgebench", False, True), ("llmbar", True, True)],
)
def test_official_stands_only_where_the_official_code_has_a_rule(name, by_ratings, by_votes):
    bench = BENCHMARKS[name]
    places = [(right, 3 + wrong) for right in range(3) for wrong in range(3)] if name == "rm_bench" else [(0, 1)]
    answers, right = (6, 3) if name == "rm_bench" else (2, 1)
    question = Question("1", bench.subsets[0], PROMPT, ["."] * answers, right)
    rated = answer_by_ratings(bench, [question], [[1.0] * answers])
    voted = answer_by_votes(bench, [question], [dict.fromkeys(places, (1, None))])
    assert ("official" in rated.columns, "official" in voted.columns) == (by_ratings, by_votes)


def test_a_judges_two_orders_give_two_figures():
    votes = [{(0, 1): orders} for orders in ((1, 1), (1, None), (None, None), (1, -1))]
    line = measure(answer_by_votes(JUDGEBENCH, PAIRS[:4], votes))["parts"][0]
    assert (line["score"], line["official"], line["unanswered"]) == (1 / 4, 2 / 4, 2)


@pytest.fixture
def written(tmp_path):
    def write(name: str, scores: list, questions=PAIRS, card: bool = False):
        (tmp_path / name).mkdir(exist_ok=True)
        results.report(answer_by_scores(JUDGEBENCH, questions, scores), tmp_path / name, str(tmp_path / name), card)
        return tmp_path / name / "judgebench.parquet"

    return write


def test_all_is_written(written, tmp_path, capsys):
    rows = pq.read_table(written("model", SCORES)).to_pylist()
    assert [row["scores"] for row in rows] == [None if math.isnan(given[0]) else given for given in SCORES]
    assert [row["score"] for row in rows] == [[{"kind": "right", "credit": credit}] for credit in (1, 0, 0, 1, 0)]
    assert [row["id"] for row in rows] == [question.id for question in PAIRS]
    kept = json.loads((tmp_path / "model" / "judgebench.json").read_text())
    assert kept["parts"][0]["score"] == 0.5 and kept["score"] is None
    assert (tmp_path / "model" / "judgebench.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    low, high = kept["interval"]
    assert f"mean of 1 of 1 sections, not whole: 95% interval {low:.4g} to {high:.4g}, the score on" in printed
    assert "mean of 1 of 1 sections, not whole" in printed and "missing, so there is no official score" in printed


def test_a_cards_results_for_the_hub_hold_whole_benchmarks_only(written, tmp_path):
    card = tmp_path / "model" / "README.md"
    card.parent.mkdir()
    card.write_text(f"---\ntags: [{OURS}]\npipeline_tag: text-classification\n---\n\n# Mine\n")
    written("model", SCORES, card=True)
    text = card.read_text()
    assert "## Benchmark: JudgeBench" in text and "not whole: longer |" in text and "model-index" not in text
    sizes = JUDGEBENCH.sizes.items()
    questions = [Question(f"{subset}/{n}", subset, PROMPT, ["a", "b"]) for subset, size in sizes for n in range(size)]
    written("model", [[1.0, 0.0]] * 350, questions, card=True)
    (result,) = ModelCard.load(card).data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("score", 1.0, "JudgeBench")
    assert card.read_text().count("## Benchmark: JudgeBench") == 1


# ---- compare


@pytest.fixture
def kept(tmp_path):
    """Write the rows of a result, without its picture."""

    def keep(name: str, scores: list, questions=PAIRS):
        rows = results.rows_of(answer_by_scores(JUDGEBENCH, questions, scores))
        return results.write_rows(tmp_path / f"{name}.parquet", rows)

    return keep


def run_compare(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
    compare.main()


def test_the_difference_of_two_results(kept, monkeypatch, capsys):
    first, second = kept("first", SCORES), kept("second", [[2.0, 1.0], [2.0, 1.0], [1.0, 0.0], [0, 1], [1, 0]])
    run_compare(monkeypatch, first, second)
    printed = capsys.readouterr().out
    assert "JudgeBench: 0.5000 -> 0.7500, over 4 questions" in printed  # Claude's pair is not in the score
    assert "difference +0.2500" in printed and "0 lies in the interval" in printed
    assert "the first one gave no score or no verdict in 1 of these; what is missing earns nothing" in printed
    assert "the second one gave no score" not in printed


def test_a_result_beside_itself_differs_by_nothing(kept, monkeypatch, capsys):
    first = kept("first", SCORES)
    run_compare(monkeypatch, first, first)
    assert "difference +0.0000, 95% interval +0.0000 to +0.0000" in capsys.readouterr().out


def test_a_comparison_without_a_verdict_is_counted(tmp_path, monkeypatch, capsys):
    votes = [{(0, 1): orders} for orders in ((1, 1), (1, None), (None, None), (1, -1))]
    rows = results.rows_of(answer_by_votes(JUDGEBENCH, PAIRS[:4], votes))
    file = results.write_rows(tmp_path / "votes.parquet", rows)
    run_compare(monkeypatch, file, file)
    assert "the second one gave no score or no verdict in 2 of these;" in capsys.readouterr().out


def test_other_questions_are_refused(kept, monkeypatch):
    first = kept("first", SCORES)
    fewer = kept("fewer", SCORES[:4], PAIRS[:4])
    with pytest.raises(DataError, match="not of the same questions: 1 only in the first"):
        run_compare(monkeypatch, first, fewer)
    changed = [*PAIRS[:4], Question(PAIRS[4].id, PAIRS[4].subset, PROMPT, ["another", "answer"])]
    with pytest.raises(DataError, match="1 with other prompts or answers, such as claude/mmlu-pro/5"):
        run_compare(monkeypatch, first, kept("changed", SCORES, changed))


def test_the_interval_is_the_one_of_scipy():
    """One subset: the paired bootstrap of a mean difference, by percentiles."""
    chance = np.random.default_rng(3)
    credits = chance.integers(0, 2, (2, 350)).astype(float)
    first, second = ([Unit("gpt/mmlu-pro", {"right": credit}) for credit in side] for side in credits)
    found = compare.paired_difference(JUDGEBENCH, first, second)
    interval = stats.bootstrap(
        (credits[1] - credits[0],), np.mean, n_resamples=2000, method="percentile", random_state=0
    ).confidence_interval
    assert found["difference"] == pytest.approx(credits[1].mean() - credits[0].mean())
    assert (found["low"], found["high"]) == pytest.approx(tuple(interval), abs=0.01)


def test_a_score_has_the_interval_of_scipy():
    sizes = JUDGEBENCH.sizes.items()
    questions = [Question(f"{subset}/{n}", subset, PROMPT, ["a", "b"]) for subset, size in sizes for n in range(size)]
    right = np.random.default_rng(4).permutation(350) < 210  # 0.6, in each subset as chance has it
    figures = measure(answer_by_scores(JUDGEBENCH, questions, [[float(won), 0.5] for won in right]))
    expected = stats.bootstrap((right,), np.mean, n_resamples=2000, method="percentile", random_state=0)
    assert figures["interval"] == pytest.approx([*expected.confidence_interval], abs=0.004)
    assert figures["interval"][0] < figures["score"] < figures["interval"][1]
    assert measure(answer_by_scores(JUDGEBENCH, questions, [[1.0, 0.5]] * 350))["interval"] is None


def test_questions_are_drawn_within_their_subsets():
    """A model that is better in one subset and worse in another, always: nothing varies, whatever is drawn."""
    sides = [
        [Unit(subset, {"right": credit}) for subset, credit in credits.items() for _ in range(9)]
        for credits in ({"Natural": 0.0, "GPTOut": 1.0}, {"Natural": 1.0, "GPTOut": 0.5})
    ]
    found = compare.paired_difference(BENCHMARKS["llmbar"], *sides)
    assert (found["difference"], found["low"], found["high"], found["better"]) == (0.25, 0.25, 0.25, 1.0)


def test_the_score_of_ties_is_drawn_by_prompt():
    """The two rows of a prompt are one unit: on every draw both of them count, or none does."""
    bench, questions = BENCHMARKS["rewardbench2"], []
    for prompt in range(40):
        questions.append(Question(f"Ties/ref:{prompt}", "Ties", PROMPT, ["."] * 3, 1))
        questions.append(Question(f"Ties/tied:{prompt}", "Ties", PROMPT, ["."] * 4, 2))
    # half of the prompts are all right, half all wrong, each with a gap and no spread or the reverse
    good, bad = ([2.0, 1.0, 1.0], [2.0, 2.0, 1.0, 1.0]), ([1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0])
    sides = []
    for scores in ([bad] * 40, [good] * 20 + [bad] * 20):
        credits = bench.credits(questions, [given for pair in scores for given in pair])
        sides.append(units_of(bench, questions, credits))
    assert [len(units) for units in sides] == [40, 40]
    assert all(unit.credits.keys() == bench.weights["Ties"].keys() for units in sides for unit in units)
    found = compare.paired_difference(bench, *sides)
    assert (found["first"], found["second"]) == pytest.approx((-0.01, 0.5))
    # the share of good prompts among 40 drawn ones: a standard error of sqrt(0.25 / 40), times 1.96, times 1.02
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 1.02 * math.sqrt(0.25 / 40), rel=0.06)
