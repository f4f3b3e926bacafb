"""What the page of a judge shows: whole answers, verdicts of both orders, why there is none, and votes."""

from common.generation import Answer
from common.judging.examples import NONE, answer_texts, judge_examples, judge_pictures
from common.page.page import Text
from generative_pairwise.prompt import SWAPPED


def answer(text: str) -> Answer:
    return Answer(text, clipped=False)


THOUGHT = "<think>\nfive is too many\n</think>\n\n<score>1</score>"


def scored(number: int, label: int, **more) -> dict:
    prompt = [{"role": "user", "content": f"prompt {number}"}]
    known = {"response": "an answer", "rubric": "be right", "data_source": "judge"}
    return {"source": f"a.parquet row {number}", "label": label, "input": prompt, "prompt": prompt} | known | more


def compared(number: int, label: str) -> list[dict]:
    """A pair as two rows, as given and swapped."""
    row = {"source": f"a.parquet row {number}", "input": [{"role": "user", "content": "2+2?"}], "rubric": None}
    row |= {"strength": 2.0, "data_source": "judge"}
    orders = {"as given": (["4", "five"], label), "swapped": (["five", "4"], SWAPPED[label])}
    return [
        row | {"order": order, "responses": responses, "label": right, "prompt": [{"role": "user", "content": order}]}
        for order, (responses, right) in orders.items()
    ]


def texts_of(example) -> list[list[list[tuple[str, str]]]]:
    return [[[(text.title, text.text) for text in column] for column in band.columns] for band in example.bands]


def test_an_answer_is_cut_behind_its_reasoning_and_nothing_is_lost():
    texts = answer_texts(answer(THOUGHT), 1, "")
    assert texts == [
        Text("reasoning", "<think>\nfive is too many\n</think>\n\n", folded=True),
        Text("verdict: 1", "<score>1</score>"),
    ]
    assert "".join(text.text for text in texts) == THOUGHT


def test_an_answer_without_a_verdict_says_why_and_is_whole():
    clipped = answer_texts(Answer("<think>\nHm", clipped=True), None, ", as given")
    assert clipped == [
        Text(
            "no verdict, as given: its tokens ran out: raise max_new_tokens (data.max_response_length)",
            "<think>\nHm",
        )
    ]


def test_a_scored_row_by_hand():
    shown = judge_examples(
        "test", [scored(0, 3), scored(1, 0)], [[answer(THOUGHT)], [answer("Hm")]], [[1], [None]], [1, None]
    )
    first, second = shown.rows
    assert {name: first.values[name] for name in ("right", "label", "verdict", "error", "why no verdict")} == {
        "right": "no",
        "label": "3",
        "verdict": "1",
        "error": 2,
        "why no verdict": None,
    }
    assert (second.values["verdict"], second.values["error"]) == (NONE, None)
    assert second.values["why no verdict"].startswith("no reasoning came")
    assert texts_of(first)[:2] == [[[("rubric", "be right"), ("user", "prompt 0")]], [[("response", "an answer")]]]
    assert shown.tables == (("label", "verdict"),) and "why no verdict" in shown.choices
    assert [view.title for view in shown.views][0] == "wrong, largest error first"


def test_a_prompt_whose_response_is_not_known_is_shown_whole():
    shown = judge_examples("test", [scored(0, 3, response=None)], [[answer(THOUGHT)]], [[1]], [1])
    assert texts_of(shown.rows[0])[0] == [[("user", "prompt 0")]] and len(shown.rows[0].bands) == 2


def test_both_orders_stand_beside_each_other_and_the_swapped_verdict_is_turned_back():
    rows = [*compared(0, "A"), *compared(1, "B")]
    verdicts = ["A", "A", "B", "A"]  # the first pair is judged by the place, the second is right
    answers = [[answer(f"<think>\n{number}\n</think>\nx")] for number in range(4)]
    shown = judge_examples("test", rows, answers, [[verdict] for verdict in verdicts], verdicts, SWAPPED.get)
    first, second = shown.rows
    names = ("right", "verdict as given", "verdict swapped", "same in both orders", "label strength")
    assert [first.values[name] for name in names] == ["no", "A", "B", "no", 2.0]
    assert [second.values[name] for name in names] == ["yes", "B", "B", "yes", 2.0]
    assert texts_of(first)[1:] == [
        [[("response A", "4")], [("response B", "five")]],
        [
            [("reasoning, as given", "<think>\n0\n</think>\n"), ("verdict, as given: A", "x")],
            [("reasoning, swapped", "<think>\n1\n</think>\n"), ("verdict, swapped: A", "x")],
        ],
    ]
    assert first.bands[1].marked and shown.tables == (("label", "verdict as given"), ("label", "verdict swapped"))
    assert len({first.key, second.key}) == 2


def test_votes_are_shown_each_with_its_verdict_and_counted():
    votes = [[1, 1, None]]
    shown = judge_examples("test", [scored(0, 1)], [[answer(THOUGHT), answer(THOUGHT), answer("Hm")]], votes, [1])
    (row,) = shown.rows
    assert (row.values["right"], row.values["votes for it"]) == ("yes", 2)
    titles = [title for title, _ in texts_of(row)[-1][0]]
    assert titles[:4] == ["reasoning, vote 1", "verdict, vote 1: 1", "reasoning, vote 2", "verdict, vote 2: 1"]
    assert titles[4].startswith("no verdict, vote 3: ")


def test_pictures_of_lengths_votes_and_sources():
    rows = [scored(0, 1), scored(1, 2, data_source="other")]
    shown = judge_examples("test", rows, [[answer(THOUGHT)]] * 2, [[1], [1]], [1, 1])
    pictures = judge_pictures("test", shown, [{"agreeing": 2, "rows": 4, "right": 3}], 3)
    assert [picture.panel.title for picture in pictures] == [
        "test: length and verdict",
        "test: agreement of votes",
        "test: by data source",
    ]
    assert pictures[0].panel.series == {"1": [9, 9]}
    assert pictures[1].panel.bins == [(2 / 3, 0.75, 4)]
    assert pictures[2].panel.counts == {"judge": (1, 1), "other": (0, 1)}


def test_no_rows_make_no_pictures():
    assert judge_pictures("val", judge_examples("val", [], [], [], []), [], 1) == []
