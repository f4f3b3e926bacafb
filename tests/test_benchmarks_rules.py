"""What the questions of benchmarks earn: our rules beside the figures of the official code, and worked by hand."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from conftest import REPO

from common.benchmarks import BENCHMARKS, judgebench, llmbar, rewardbench2, rm_bench, rmb
from common.benchmarks.benchmark import best_of, kind_scores, overall, scores_by, units_of, won
from common.benchmarks.questions import Question

GOLDEN = REPO.parent / "shared" / "golden"
NAN = math.nan


def golden_cases(name: str) -> list[dict]:
    """Scores, and what the official code makes of them: its name and commit stand in the file."""
    path = GOLDEN / name
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    return json.loads(path.read_text())["cases"]


def ask(identifier: str, subset: str, answers: int, right: int = 1) -> Question:
    return Question(identifier, subset, [{"role": "user", "content": "?"}], ["."] * answers, right)


def measure(name: str, questions: list[Question], credits: list[dict]) -> dict[str, float]:
    """The sections' scores and the mean of those that are there."""
    benchmark = BENCHMARKS[name]
    sections = scores_by(benchmark, units_of(benchmark, questions, credits))
    return {section: float(score[0]) for section, score in sections.items()} | {
        "overall": float(overall(benchmark, sections)[0])
    }


def ties(*rows: tuple[str, int, list[float]], **options) -> float:
    questions = [ask(f"Ties/{name}", "Ties", len(scores), right) for name, right, scores in rows]
    credits = rewardbench2.credits(questions, [scores for _, _, scores in rows], **options)
    return measure("rewardbench2", questions, credits)["Ties"]


def test_best_of_four_is_the_official_one():
    for case in golden_cases("rewardbench2_best_of_4.json"):
        questions = [ask(f"Math/{number}", "Math", 4) for number in range(len(case["scores"]))]
        credits = rewardbench2.credits(questions, case["scores"])
        assert [earned["right"] for earned in credits] == pytest.approx(case["results"], abs=1e-9), case["kind"]
        assert measure("rewardbench2", questions, credits)["Math"] == pytest.approx(case["subset_score"], abs=1e-9)


def test_the_score_of_ties_is_the_official_one():
    for case in golden_cases("rewardbench2_ties.json"):
        rows = [(row["id"], row["num_correct"], row["scores"]) for row in case["rows"]]
        assert ties(*rows) == pytest.approx(case["score"], abs=1e-9), case["kind"]


def test_rm_bench_is_the_official_one():
    for case in golden_cases("rm_bench.json"):
        questions = [ask(f"{number}", row["domain"], 6, 3) for number, row in enumerate(case["rows"])]
        credits = rm_bench.credits(questions, [row["score_chosen"] + row["score_rejected"] for row in case["rows"]])
        found, official = measure("rm_bench", questions, credits), case["official"]
        for domain in rm_bench.SECTIONS:
            assert found[domain] == pytest.approx(official[domain], abs=1e-9), (case["kind"], domain)
        assert found["overall"] == pytest.approx(official["total_avg_acc"], abs=1e-9)
        kinds = kind_scores(BENCHMARKS["rm_bench"], units_of(BENCHMARKS["rm_bench"], questions, credits))["mean"]
        assert kinds == pytest.approx({kind: official[f"{kind}_acc"] for kind in kinds}, abs=1e-9), case["kind"]
        assert list(kinds) == ["hard", "normal", "easy"]


@pytest.mark.parametrize("name", ["judgebench_seeded.json", "judgebench_recorded.json"])
def test_judgebench_is_the_official_one(name):
    for case in golden_cases(name):
        rows = case.get("rows") or case["pairs"]
        groups = [next(group for group in judgebench.GROUPS if row["source"].startswith(group)) for row in rows]
        questions = [ask(str(number), f"gpt/{group}", 2) for number, group in enumerate(groups)]
        votes = [{(0, 1): votes_of(row)} for row in rows]
        ways = [judgebench.vote_credits(questions, votes, official_missing=True)]
        if "scores" in rows[0]:  # a reward model: its scores alone say the same as its two verdicts
            in_order = [row["scores"][0] if row["label"] == "A>B" else row["scores"][0][::-1] for row in rows]
            ways.append(judgebench.credits(questions, in_order))
        for credits in ways:
            assert 100 * measure("judgebench", questions, credits)["overall"] == pytest.approx(
                case["official"]["overall"], abs=1e-9
            )
            for group in judgebench.GROUPS:
                earned = [credit["right"] for credit, of in zip(credits, groups) if of == group]
                assert 100 * np.mean(earned) == pytest.approx(case["official"][group], abs=1e-9), (case["kind"], group)


def votes_of(row: dict) -> tuple[int | None, int | None]:
    """What two decisions, the second on the swapped pair, say of the right answer."""
    swapped = {"A>B": "B>A", "B>A": "A>B"}
    first, second = row["decisions"][0], swapped.get(row["decisions"][1], row["decisions"][1])
    values = {row["label"]: 1, swapped[row["label"]]: -1, None: None}
    return values.get(first, 0), values.get(second, 0)


def test_best_of_n_shares_among_equal_best_answers():
    assert best_of([2, 1, 0, 1]) == 1
    assert best_of([2, 2, 0, 1]) == 1 / 2
    assert best_of([2, 2, 2, 2]) == 1 / 4
    assert best_of([1, 2, 0, 0]) == 0
    assert best_of([2, 1, NAN, 0]) == best_of([NAN, 1, 2, 0]) == 0


def test_ties_worked_by_hand():
    # gaps 1 and 2, spread 0.5: all is preferred; margin tanh(1 / 0.5 - 1)
    whole = ties(("ref:1", 1, [3, 2, 1]), ("tied:1", 2, [4.0, 3.5, 1.5]))
    assert whole == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(1))
    # the spread, 3, is larger than the gap, 1: accurate, and no more
    assert ties(("ref:1", 1, [3, 2]), ("tied:1", 2, [6, 3, 2])) == pytest.approx(0.6 + 0.01 * math.tanh(1 / 3 - 1))
    # an equal score is no win, a spread of 0 with a gap of 0 has the margin 0
    assert ties(("ref:1", 1, [2, 2]), ("tied:1", 2, [2, 2, 2])) == 0
    # a spread of 0 with a gap: the margin is 1; below it, -1
    assert ties(("ref:1", 1, [3, 2]), ("tied:1", 2, [3, 3, 2])) == pytest.approx(1.01)
    assert ties(("ref:1", 1, [1, 2]), ("tied:1", 2, [1, 1, 2])) == pytest.approx(-0.01)


def test_a_ref_without_its_tied_row_counts_among_the_refs_alone():
    both = [("ref:1", 1, [3, 2]), ("tied:1", 2, [3, 3, 2])]
    assert ties(*both, ("ref:2", 1, [1, 2])) == pytest.approx(0.3 + 0.3 / 2 + 0.2 + 0.2 + 0.01)
    assert ties(*both, ("tied:2", 2, [1, 1, 2])) == pytest.approx(0.3 / 2 + 0.3 + 0.2 + 0.2 + 0.01)


def test_equal_differences_of_win_rates_are_equal():
    """The gap, 10/12 - 8/12, is no larger than the spread, 12/12 - 10/12. In floats it is."""
    rates = [Fraction(12, 12), Fraction(10, 12), Fraction(8, 12)]
    assert float(rates[1]) - float(rates[2]) > float(rates[0]) - float(rates[1])
    # tied_accuracy and ref_accuracy alone; the margin is tanh(0)
    assert ties(("ref:1", 1, [Fraction(1), Fraction(0)]), ("tied:1", 2, rates)) == pytest.approx(0.6)


def test_ties_without_a_score_earn_nothing():
    right = [("ref:1", 1, [3, 2]), ("tied:1", 2, [3, 3, 2])]
    lost = [("ref:2", 1, [NAN, NAN]), ("tied:2", 2, [NAN, NAN, NAN])]
    assert ties(*right, *lost) == pytest.approx(ties(*right) / 2)
    assert ties(right[0], ("tied:1", 2, [3, NAN, 2])) == pytest.approx(0.3)


def test_a_judges_missing_ratings_officially_and_ours():
    question, silent = ask("Math/1", "Math", 4), [NAN] * 4

    def both(scores: list[float]) -> list[float]:
        return [rewardbench2.credits([question], [scores], official)[0]["right"] for official in (True, False)]

    assert both(silent) == [0.25, 0]
    assert both([3, NAN, 2, 2]) == [1, 0]
    assert both([NAN, 1, 0, 0]) == [0, 0]
    assert both([3, 3, 2, 2]) == [0.5, 0.5]
    # in Ties an answer without a rating is officially rated -1
    assert ties(("ref:1", 1, [1, NAN]), ("tied:1", 2, [1, 1, NAN]), official_missing=True) == pytest.approx(1.01)


def test_the_nine_comparisons_of_rm_bench():
    question = ask("chat/1", "chat", 6, 3)
    # right answers 1, 2, 3 against wrong ones 2, 2, 2: the concise one loses, the detailed one ties, the last one wins
    assert rm_bench.credits([question], [[1, 2, 3, 2, 2, 2]]) == [
        {"hard": 0.0, "normal": pytest.approx(1 / 3), "easy": pytest.approx(2 / 3)}
    ]
    shared = rm_bench.credits([question], [[1, 2, 3, 2, 2, 2]], share_ties=True)
    assert shared == [{"hard": pytest.approx(0.5 / 3), "normal": pytest.approx(0.5), "easy": pytest.approx(2.5 / 3)}]
    assert rm_bench.credits([question], [[9, 9, 9, 0, 0, NAN]]) == [{"hard": 0, "normal": 0, "easy": 0}]


def test_both_files_of_safety_are_one_set():
    """Three refusals right and one answer wrong are 3/4, not the mean of 1 and 0."""
    questions = [ask(f"{number}", "safety-refuse", 6, 3) for number in range(3)] + [ask("3", "safety-response", 6, 3)]
    credits = rm_bench.credits(questions, [[1, 1, 1, 0, 0, 0]] * 3 + [[0, 0, 0, 1, 1, 1]])
    assert measure("rm_bench", questions, credits)["safety"] == pytest.approx(0.75)


def test_two_orders_of_a_pair():
    cases = {(1, 1): 1, (1, 0): 1, (0, 0): 0, (1, -1): 0, (-1, 0): 0, (-1, -1): 0}
    for orders, credit in cases.items():
        assert won(orders, official_missing=False) == won(orders, official_missing=True) == credit, orders
    assert won((1, None), official_missing=True) == 1
    assert won((1, None), official_missing=False) == won((None, None), official_missing=True) == 0


def test_equal_scores_are_wrong_in_judgebench_and_one_half_in_llmbar():
    pair = [ask("1", "gpt/mmlu-pro", 2)]
    assert [judgebench.credits(pair, [scores])[0]["right"] for scores in ([2, 1], [1, 1], [1, 2], [NAN, 1])] == [
        1,
        0,
        0,
        0,
    ]
    assert judgebench.credits(pair, [[1, 1]], share_ties=True) == [{"right": 0.5}]
    pair = [ask("1", "Natural", 2)]
    assert [llmbar.credits(pair, [scores])[0]["right"] for scores in ([2, 1], [1, 1], [1, 2], [NAN, 1])] == [
        1,
        0.5,
        0,
        0,
    ]
    assert llmbar.credits(pair, [[NAN, 1]], official_missing=True) == [{"right": 0.5}]
    votes = [{(0, 1): orders} for orders in ((1, 1), (1, -1), (1, 0), (1, None), (-1, -1), (None, None))]
    assert [earned["right"] for earned in llmbar.vote_credits(pair * 6, votes)] == [1, 0.5, 0.5, 0, 0, 0]
    official = llmbar.vote_credits(pair * 6, votes, official_missing=True)
    assert [earned["right"] for earned in official] == [1, 0.5, 0.5, 0.5, 0, 0]


def test_every_loser_of_rmb_must_lose():
    question = [ask("1", "BoN_set/Harmlessness/S1", 4)]
    scores = ([3, 2, 1, 0], [3, 3, 1, 0], [3, 4, 1, 0], [3, NAN, 1, 0])
    assert [rmb.credits(question, [given])[0]["right"] for given in scores] == [1, 0, 0, 0]
    assert rmb.credits(question, [[3, 3, 1, 3]], share_ties=True) == [{"right": pytest.approx(1 / 3)}]
    votes = {(0, 1): (1, 1), (0, 2): (1, 0), (0, 3): (1, None)}
    assert rmb.vote_credits(question, [votes]) == [{"right": 0}]
    assert rmb.vote_credits(question, [votes | {(0, 3): (1, 0)}]) == [{"right": 1}]


def test_rmb_is_the_mean_of_its_four_sections():
    subsets = ["Pairwise_set/Helpfulness/Chat/Discussion"] * 3 + [
        "Pairwise_set/Harmlessness/S1", "BoN_set/Helpfulness/Chat/Discussion", "BoN_set/Harmlessness/S1"
    ]  # fmt: skip
    questions = [ask(str(number), subset, 2) for number, subset in enumerate(subsets)]
    found = measure("rmb", questions, rmb.credits(questions, [[1, 0], [0, 1], [0, 1], [1, 0], [1, 0], [0, 1]]))
    assert found["overall"] == pytest.approx((1 / 3 + 1 + 1 + 0) / 4)


def test_claudes_pairs_stand_beside_judgebenchs_figure():
    questions = [ask("1", "gpt/mmlu-pro", 2), ask("2", "claude/mmlu-pro", 2)]
    assert measure("judgebench", questions, judgebench.credits(questions, [[1, 0], [0, 1]])) == {
        "gpt": 1, "claude": 0, "overall": 1
    }  # fmt: skip


def test_what_is_missing_is_named():
    bench = BENCHMARKS["rm_bench"]
    questions = [ask(str(number), "chat", 6, 3) for number in range(129)] + [ask("x", "code", 6, 3)]
    assert bench.missing(questions) == ["math", "code (1 of 228 questions)", "safety-refuse", "safety-response"]
    assert BENCHMARKS["judgebench"].missing([ask("1", "gpt/livebench-math", 2)] * 56) == [
        "gpt/mmlu-pro", "gpt/livebench-reasoning", "gpt/livecodebench"
    ]  # fmt: skip
    few = [ask(subset, subset, 4) for subset in rewardbench2.SUBSETS]
    assert BENCHMARKS["rewardbench2"].missing(few) == ["6 of 1865 questions"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_one_question_of_each_subset_is_no_whole_benchmark(name):
    bench = BENCHMARKS[name]
    assert bench.missing([ask(subset, subset, 6, 1) for subset in bench.subsets])


def test_the_sizes_add_up_to_what_the_authors_publish():
    sizes = BENCHMARKS["rmb"].sizes
    totals = {
        section: sum(size for subset, size in sizes.items() if subset.startswith(f"{section}/"))
        for section in rmb.SECTIONS
    }
    assert totals == {
        "Pairwise_set/Helpfulness": 10067,
        "Pairwise_set/Harmlessness": 7064,
        "BoN_set/Helpfulness": 2109,
        "BoN_set/Harmlessness": 1677,
    }
    assert len(sizes) == 2 * 49 and sum(BENCHMARKS["rm_bench"].sizes.values()) == 1327
