"""A teacher is asked once, only what it gets right is taught, and the report says what was left out and why."""

import json
import sys
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest
from conftest import AtOnce
from teachers import noisy_comparer, noisy_scorer
from test_endpoint import completion, serve

from common.conversation import DataError
from common.demo.world import PREFERENCE_RUBRIC, SCORE_RUBRIC, pairwise_rows, pointwise_rows
from common.grading.endpoint import EndpointError
from common.judging.votes import agreement, agreement_bounds, majority
from common.parquet import write_rows
from generative_pairwise import distil as pairwise
from generative_pairwise import prompt as pairs
from generative_pointwise import distil as pointwise
from generative_pointwise import prompt as scores
from generative_pointwise.dataset import load_rows
from generative_pointwise.reward import compute_score

SCORED, COMPARED = pointwise_rows("train", 60, seed=0), pairwise_rows("train", 30, seed=0)
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Distil rows; return the figures, the conversations, the rows for GRPO and what was printed."""

    def distil(method, url, rows, *options):
        data = write_rows(tmp_path / "data" / "mine.parquet", rows)
        (tmp_path / "rubric.txt").write_text(SCORE_RUBRIC if method is pointwise else PREFERENCE_RUBRIC)
        output = tmp_path / "out"
        named = {"--teacher": url, "--teacher-model": "big", "--data": data, "--output": output}
        named |= {"--rubric": tmp_path / "rubric.txt"}
        arguments = [str(part) for pair in named.items() for part in pair]
        monkeypatch.setattr(sys, "argv", ["distil.py", *arguments, *map(str, options)])
        method.main()
        figures = json.loads((output / "teacher_mine.json").read_text())
        lessons = [row["messages"] for row in pq.read_table(output / "transcripts" / "mine.parquet").to_pylist()]
        return figures, lessons, pq.read_table(output / "mine.parquet").to_pylist(), capsys.readouterr().out

    return distil


def teaching(answers: dict[str, str], usage: dict | None = USAGE):
    """A server that answers each prompt so."""

    def reply(request, _):
        return 200, completion(answers[request["messages"][-1]["content"]]) | ({"usage": usage} if usage else {})

    return serve(reply)


def without_label(rows: list[dict]) -> list[dict]:
    return [{name: row[name] for name in ("input", "output")} for row in rows]


def test_lessons_are_the_right_answers_of_a_teacher_that_errs(run):
    answers = noisy_scorer(SCORED)
    right = [scores.parse(answer) == row["label"] for answer, row in zip(answers.values(), SCORED)]
    assert 0.6 < sum(right) / 60 < 0.95
    with teaching(answers) as (url, requests):
        figures, lessons, rows, printed = run(pointwise, url, SCORED)
    assert len(requests) == 60 and all(request["model"] == "big" for request in requests)
    assert figures["agreement"] == figures["kept"] == sum(right) / 60 and figures["parse_rate"] == 1
    assert figures["not_kept"] == {"its verdict is not the label": 60 - sum(right)}
    assert (figures["tokens_asked"], figures["tokens_answered"]) == (100_000, 20_000)
    kept = [row for row, is_right in zip(SCORED, right) if is_right]
    assert lessons == [scores.transcripts(scores.read_row(row), SCORE_RUBRIC)[0] for row in kept]
    assert [row["label"] for row in rows] == [row["label"] for row in SCORED]  # GRPO keeps those that it got wrong
    assert f"{sum(right)} conversations for sft" in printed and "60 labelled rows for GRPO" in printed


def test_a_pair_is_asked_in_both_orders_and_each_order_has_its_own_lesson(run):
    answers = noisy_comparer(COMPARED)
    with teaching(answers, usage=None) as (url, requests):
        figures, lessons, rows, printed = run(pairwise, url, COMPARED)
    assert len(requests) == 60 and figures["prompts"] == 60
    asked = {lesson[0]["content"]: lesson[1]["content"] for lesson in lessons}
    right = {}
    for judged in map(pairs.read_row, COMPARED):
        for shown in (judged, judged.swap()):
            (turn,) = pairs.ask(shown.dialogue, shown.response_a, shown.response_b, PREFERENCE_RUBRIC)
            right[turn["content"]] = shown.label
    assert asked == {prompt: text for prompt, text in answers.items() if pairs.parse(text) == right[prompt]}
    assert 40 < len(asked) < 56
    assert [row["label"] for row in rows] == [row["metadata"]["preferred"] for row in COMPARED]
    assert rows[0]["prompt_swapped"] != rows[0]["prompt"]
    assert "the server does not say how many tokens it counted" in printed


def test_what_distil_writes_can_be_trained_on(run, tmp_path):
    with teaching(noisy_scorer(SCORED)) as (url, _):
        run(pointwise, url, SCORED)
    rows, bad = load_rows(str(tmp_path / "out" / "mine.parquet"))
    assert len(rows) == 60 and not bad and {row["rubric"] for row in rows} == {SCORE_RUBRIC}
    assert compute_score("judge", scores.write(rows[0]["label"]), rows[0]["label"])["score"] == 1


# ---- rows without a label


def test_without_a_label_more_than_half_of_the_votes_decide(run):
    """The votes on row n, by hand; only rows 0 and 1 have a majority."""
    rows, by_votes = SCORED[:4], [[3, 3, 1], [2, None, 2], [0, 1, 2], [4, None, None]]
    prompts = list(noisy_scorer(rows))

    def reply(request, _):
        vote = by_votes[prompts.index(request["messages"][0]["content"])][request["seed"]]
        return "Hm." if vote is None else scores.write(vote, f"vote {request['seed']}")

    with serve(reply) as (url, _):
        figures, lessons, labelled, printed = run(pointwise, url, without_label(rows), "--votes", 3)
    assert [row["label"] for row in labelled] == [3, 2]
    assert [lesson[1]["content"] for lesson in lessons] == [scores.write(3, "vote 0"), scores.write(2, "vote 0")]
    assert figures["kept"] == 0.5 and figures["parse_rate"] == 9 / 12 and "agreement" not in figures
    assert figures["not_kept"] == {"no label, and no verdict has more than half of the votes": 2}
    assert "one vote on each" not in printed


def test_without_a_label_and_with_one_vote_both_orders_must_agree(run):
    rows = [row for row in COMPARED if row["metadata"]["preferred"] == "A"][:3]
    answers = noisy_comparer(rows, share=0)
    in_doubt = list(answers)[1]  # the first pair in the other order: "A" in both orders is no preference
    answers[in_doubt] = pairs.write("A", "the first one")
    with teaching(answers) as (url, _):
        figures, lessons, labelled, _ = run(pairwise, url, without_label(rows))
    assert [row["label"] for row in labelled] == ["A", "A"] and len(lessons) == 4
    assert figures["not_kept"] == {"no label, and no verdict has more than half of the votes": 2}


def test_labels_may_be_missing_in_some_rows_and_one_vote_is_said_to_be_little(run):
    rows = [*SCORED[:5], *[row | {"label": None} for row in SCORED[5:8]]]
    with teaching(noisy_scorer(SCORED[:8], share=0)) as (url, _):
        figures, _, labelled, printed = run(pointwise, url, rows)
    assert [row["label"] for row in labelled] == [row["label"] for row in SCORED[:8]]
    assert figures["agreement"] == 1 and "have one vote on each prompt" in printed


@pytest.mark.parametrize(
    "votes, verdict",
    [([3], 3), ([3, 1], None), ([3, 3, None], 3), ([3, None], None), ([None], None), ([3, 3, 1, 1], None)],
)
def test_a_majority_is_more_than_half_of_all_votes(votes, verdict):
    assert majority(votes) == verdict


# ---- faults


def test_a_teacher_that_dies_is_one_message_and_nothing_is_asked_twice(run):
    answers = noisy_scorer(SCORED)
    asked = Counter()

    def reply(request, number):
        if number > 25:
            return 401, {"error": {"message": "the key has expired"}}
        asked[request["messages"][-1]["content"]] += 1
        return answers[request["messages"][-1]["content"]]

    dies = pytest.raises(EndpointError, match="the key has expired(.|\n)*25 of 60 answers are kept in .*goes on")
    with serve(reply) as (url, _), dies:
        run(pointwise, url, SCORED, "--concurrency", 1)
    with teaching(answers) as (url, requests):  # at another address
        figures, _, _, _ = run(pointwise, url, SCORED)
    asked.update(request["messages"][-1]["content"] for request in requests)
    assert figures["answers"] == 60 and set(asked.values()) == {1} and len(asked) == 60
    with serve(lambda *_: pytest.fail("asked again")) as (url, requests):
        again, _, _, _ = run(pointwise, url, SCORED)
    assert again["agreement"] == figures["agreement"] and requests == []


def test_a_teacher_that_is_slow_busy_or_sends_garbage_is_asked_again_until_it_answers(run):
    answers, at_once = noisy_scorer(SCORED), AtOnce()
    seen = Counter()

    def reply(request, _):
        prompt = request["messages"][-1]["content"]
        seen[prompt] += 1
        at_once.take(0.02)
        if seen[prompt] == 1 and len(answers[prompt]) % 3 == 0:
            return 429, {"error": {"message": "too many requests"}}
        if seen[prompt] == 1 and len(answers[prompt]) % 3 == 1:
            return 200, "<html>the gateway is tired</html>"
        return answers[prompt]

    with serve(reply) as (url, _):
        figures, _, _, _ = run(pointwise, url, SCORED)
    assert figures["answers"] == 60 and figures["parse_rate"] == 1 and set(seen.values()) == {1, 2}
    assert 1 < at_once.most <= 16


def test_a_teacher_slower_than_the_timeout_is_an_error_that_names_it(run, monkeypatch):
    monkeypatch.setattr("common.grading.endpoint._pause", lambda tried: 0)
    late = pytest.raises(EndpointError, match="model big.: timed out: no whole reply in 0.05 s(.|\n)*0 of 3 answers")
    with serve(lambda *_: time.sleep(0.2) or "late") as (url, _), late:
        run(pointwise, url, SCORED[:3], "--timeout", 0.05)


def test_answers_without_a_verdict_teach_nothing_and_are_counted_by_their_fault(run):
    answers = noisy_scorer(SCORED, share=0)
    first, second, *_ = answers
    answers[first] = "I would give it a 3."
    answers[second] = "<think>\nGood.\n</think>\n\nThe score is 3."
    with teaching(answers) as (url, _):
        figures, lessons, _, printed = run(pointwise, url, SCORED)
    assert figures["agreement"] == 58 / 60 and len(lessons) == 58
    assert sorted(figures["not_kept"].values()) == [1, 1] and all(
        "no verdict: " in kind for kind in figures["not_kept"]
    )
    assert "not kept: 1 x no verdict: other text than one verdict stands behind the reasoning" in printed


def test_a_teacher_that_is_never_right_teaches_nothing_and_that_is_an_error(run):
    answers = {prompt: "No." for prompt in noisy_scorer(SCORED)}
    with teaching(answers) as (url, _), pytest.raises(DataError, match="no answer is right.*teacher_mine.parquet"):
        run(pointwise, url, SCORED)


def test_other_rows_are_not_mixed_with_the_answers_to_earlier_ones(run):
    with teaching(noisy_scorer(SCORED)) as (url, _):
        run(pointwise, url, SCORED[:20])
        with pytest.raises(DataError, match="holds another run, different in prompts"):
            run(pointwise, url, SCORED)


def test_bad_rows_are_all_named_before_the_teacher_is_asked(run):
    rows = [SCORED[0], SCORED[1] | {"label": 9}, SCORED[2] | {"output": []}]
    with serve(lambda *_: pytest.fail("asked")) as (url, _), pytest.raises(DataError) as found:
        run(pointwise, url, rows)
    assert "row 1" in str(found.value) and "row 2" in str(found.value)
    with serve(lambda *_: pytest.fail("asked")) as (url, _), pytest.raises(DataError, match="expected an object"):
        run(pairwise, url, [row | {"metadata": '"A"'} for row in COMPARED[:2]])
    with serve(lambda *_: pytest.fail("asked")) as (url, _), pytest.raises(DataError, match="no key 'preferred'"):
        run(pairwise, url, [row | {"metadata": {"prefered": "A"}} for row in COMPARED[:2]])


def test_the_output_may_not_replace_the_input(run, tmp_path):
    data, other = tmp_path / "data", write_rows(tmp_path / "other" / "b.parquet", SCORED)
    named = {data: f"{data / 'mine.parquet'},{other}", other.parent: f"{data},{other}"}
    for output, files in [*named.items(), (data, data)]:
        with pytest.raises(DataError, match="holds a file of --data, which would be replaced"):
            run(pointwise, "http://127.0.0.1:1/v1", SCORED, "--output", output, "--data", files)


def test_a_teacher_that_hides_its_reasoning_is_refused(run):
    with serve(lambda *_: pytest.fail("asked")) as (url, _), pytest.raises(DataError, match="keeps it to itself"):
        run(pointwise, url, SCORED, "--hidden-reasoning")


# ---- agreement of two judges


def test_agreement_and_kappa_by_hand():
    """4 of 6 agree and chance says 1/2, so kappa is (2/3 - 1/2) / (1 - 1/2). A missing verdict agrees with none."""
    first, second = list("AAABBB"), list("AABBBA")
    assert agreement(first, second, "AB", None) == pytest.approx({"agreement": 4 / 6, "kappa": 1 / 3})
    assert agreement([*first, None], [*second, None], "AB", None)["agreement"] == 4 / 7
    assert agreement(["A"], ["A"], "AB", None) == {"agreement": 1}


def test_the_interval_holds_the_value_and_groups_are_drawn_together():
    first, second = list("AABB") * 25, list("AABA") * 25
    alone = agreement_bounds(first, second, "AB", None, range(100))["agreement"]
    assert alone[0] < 0.75 < alone[1] and 0.1 < alone[1] - alone[0] < 0.25
    together = agreement_bounds(first, second, "AB", None, [place // 4 for place in range(100)])
    assert together["agreement"] == pytest.approx((0.75, 0.75))  # every group agrees in three of four
