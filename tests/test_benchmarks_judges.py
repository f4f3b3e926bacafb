"""Both judges on benchmarks: what they are asked, what their verdicts are worth, and that nothing is asked twice."""

import itertools
import json
import math
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_benchmarks_files import BEST, JUDGEBENCH, LLMBAR, REWARDBENCH2, RM_BENCH, save
from test_endpoint import serve

from common.benchmarks import BENCHMARKS, results
from common.benchmarks.choosing import add_choice
from common.benchmarks.questions import Question
from common.conversation import DataError
from common.generation import Answer
from common.grading.endpoint import EndpointError
from common.judging import asking
from common.judging.kept import FILE, KeptAnswers, kept_answers
from generative_pairwise import benchmark as pairwise
from generative_pairwise.prompt import write as prefer
from generative_pointwise import benchmark as pointwise
from generative_pointwise.prompt import parse as read
from generative_pointwise.prompt import write as rate

SILENT = "<think>\nHm"
CASES = {
    "rewardbench2": ("rows.jsonl", REWARDBENCH2),
    "rm_bench": ("chat_filtered.json", [RM_BENCH]),
    "judgebench": ("rows.jsonl", [JUDGEBENCH | {"pair_id": f"p{number}"} for number in range(3)]),
    "rmb": ("BoN_set/Helpfulness/rows.json", [BEST]),
    "llmbar": ("Natural/dataset.json", [LLMBAR]),
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Measure a served judge on hand-made files; return its figures, its rows and what was printed."""
    monkeypatch.setattr(results, "draw", lambda *_: None)  # which takes most of the time

    def measure_on(method, url: str, name: str, *options: str) -> tuple[dict, list[dict], str]:
        place, rows = CASES[name]
        path = save(tmp_path / name / place, rows)
        arguments = ["--endpoint", url, "--model", "judge", "--on", name, "--path", f"{name}={path}", *options]
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--output", str(tmp_path / "figures")])
        method.main()
        written = tmp_path / "figures" / name
        figures = json.loads(written.with_suffix(".json").read_text())
        return figures, pq.read_table(written.with_suffix(".parquet")).to_pylist(), capsys.readouterr().out

    return measure_on


def shown(request: dict) -> str:
    return request["messages"][0]["content"]


def part(text: str, name: str) -> str:
    """What a prompt shows between two tags."""
    return text.partition(f"<{name}>\n")[2].partition(f"\n</{name}>")[0]


def prefers(better):
    """A judge whose verdict is `better(first, second)`, of the two texts that it is shown."""
    return lambda request, number: better(part(shown(request), "response_a"), part(shown(request), "response_b"))


def test_ratings_by_the_rule_of_rewardbench_2(run):
    """The right answer gets 4, others 2; in Ties all get 3."""

    def reply(request, number):
        answer = part(shown(request), "response")
        return rate(4 if answer == "4" else 2 if answer.isdigit() else 3)

    with serve(reply) as (url, requests):
        figures, rows, printed = run(pointwise, url, "rewardbench2")
    parts = {line["part"]: line for line in figures["parts"]}
    assert len(requests) == 5 * 4 + 3 + 5
    assert parts["Math"]["score"] == 1 and parts["Ties"]["score"] == 0 and parts["Ties"]["ties"] == 2
    assert rows[0]["scores"] == [4, 2, 2, 2]
    assert figures["answers"] == {"answers": 28, "without a verdict": 0}
    assert "RewardBench 2" in printed


def test_an_answer_without_a_verdict_officially_and_ours(run):
    with serve(lambda request, number: SILENT) as (url, _):
        figures, rows, _ = run(pointwise, url, "rewardbench2")
    math = next(line for line in figures["parts"] if line["part"] == "Math")
    assert (math["score"], math["official"], math["unscored"]) == (0, 0.25, 1)
    assert figures["answers"]["without a verdict"] == 28 and rows[0]["scores"] is None


def test_ratings_that_are_equal_share_what_they_earn_in_a_column_of_its_own(run):
    with serve(lambda request, number: rate(3)) as (url, _):
        figures, _, _ = run(pointwise, url, "judgebench")
    line = figures["parts"][0]
    assert (line["score"], line["ties shared"], line["ties"]) == (0, 0.5, 3)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("rm_bench", 18), ("judgebench", 6), ("rmb", 4), ("llmbar", 2)],  # nine, three, two and one pair, in both orders
)
def test_a_judge_that_always_prefers_the_first_answer_wins_no_pair(run, name, asked):
    with serve(prefers(lambda first, second: prefer("A"))) as (url, requests):
        figures, _, printed = run(pairwise, url, name)
    line = figures["parts"][0]
    assert len(requests) == asked
    assert line["score"] == (0.5 if name == "llmbar" else 0)  # which takes the mean of the two orders
    assert figures["answers"]["consistency of both orders"] == 0 and figures["answers"]["first_rate"] == 1
    assert "consistency of both orders: 0" in printed


def test_every_pair_of_rm_bench_counts_in_its_kind(run):
    """A judge that prefers the longer answer: right ones have 1, 2 and 3 characters, and so have wrong ones."""

    def longer(first: str, second: str) -> str:
        return prefer("A" if len(first) > len(second) else "B" if len(second) > len(first) else "tie")

    with serve(prefers(longer)) as (url, _):
        figures, rows, _ = run(pairwise, url, "rm_bench")
    assert figures["kinds"]["chat"] == {"hard": 0, "normal": 0, "easy": 1}
    assert figures["parts"][0]["score"] == pytest.approx(1 / 3)
    assert figures["answers"]["consistency of both orders"] == 1
    assert len(rows[0]["votes"]) == 9 and rows[0]["votes"][0] == {"right": 0, "wrong": 3, "as_given": 0, "swapped": 0}


def test_a_pair_that_lacks_a_verdict_officially_and_ours(run):
    """In JudgeBench one verdict for the right answer is enough, officially."""

    def reply(first: str, second: str) -> str:
        return prefer("A") if first == "the second" else SILENT  # B>A: the second is right

    with serve(prefers(reply)) as (url, _):
        figures, _, _ = run(pairwise, url, "judgebench")
    line = figures["parts"][0]
    assert (line["score"], line["official"], line["unanswered"]) == (0, 1, 3)


def test_four_answers_are_ranked_by_how_often_they_win(run):
    """A judge for which 4 and 5 are equal, and better than 6 and 7: the right answer shares the first place."""

    def reply(first: str, second: str) -> str:
        good = [text in ("4", "5", "red", "blue", "green") for text in (first, second)]
        return prefer("tie" if good[0] == good[1] else "A" if good[0] else "B")

    with serve(prefers(reply)) as (url, requests):
        figures, rows, _ = run(pairwise, url, "rewardbench2")
    parts = {line["part"]: line for line in figures["parts"]}
    assert len(requests) == 5 * 12 + 6 + 20
    assert rows[0]["scores"] == pytest.approx([5 / 6, 5 / 6, 1 / 6, 1 / 6])
    assert parts["Math"]["score"] == 0.5 and parts["Ties"]["score"] == pytest.approx(1.01)


def test_a_missing_comparison_makes_no_answer_the_best():
    """Only "the first one beats the second one" and a tie of the last two are known."""
    question = Question("1", "Math", [{"role": "user", "content": "?"}], ["."] * 4)
    known = {(0, 1): "A", (1, 0): "B", (2, 3): "tie", (3, 2): "tie"}
    assert all(map(math.isnan, pairwise.rates_of(question, known)))
    whole = dict.fromkeys(itertools.permutations(range(4), 2), "tie") | known
    assert pairwise.rates_of(question, whole) == [Fraction(4, 6), Fraction(2, 6), Fraction(1, 2), Fraction(1, 2)]
    rates = pairwise.rates_of(question, whole | {(3, 1): None})
    assert [math.isnan(rate) for rate in rates] == [False, True, False, True]
    (earned,) = BENCHMARKS["rewardbench2"].credits([question], [rates])
    assert earned == {"right": 0}


@pytest.mark.parametrize(("method", "right"), [(pointwise, rate(3)), (pairwise, prefer("A"))])
def test_a_command_that_was_stopped_asks_for_what_is_left(run, method, right):
    """The server refuses after four answers; started again, each prompt has been answered once."""
    answered, full = [], itertools.count()

    def reply(request, number):
        if next(full) >= 4 and not answered[4:]:
            return 400, {"error": "stopped"}
        answered.append(shown(request))
        return right

    with serve(reply) as (url, requests):
        with pytest.raises(EndpointError):
            run(method, url, "judgebench", "--concurrency", "1")
        assert len(answered) == 4
        answered.append("started again")
        figures, _, printed = run(method, url, "judgebench")
        assert figures["answers"]["answers"] == 6 and len(answered) == 1 + 6
        assert "4 of 6 answers are from an earlier run" in printed
        asked = len(requests)
        again, _, printed = run(method, url, "judgebench")
    assert again == figures and len(requests) == asked
    assert "6 of 6 answers are from an earlier run, kept in" in printed and FILE in printed


def test_answers_are_kept_whole_or_not_at_all(tmp_path):
    first = KeptAnswers(tmp_path, {"model": "judge"})
    first.keep(1, Answer("two\nlines", True))
    first.keep(0, Answer("üñ", False))
    with open(tmp_path / FILE, "a") as file:
        file.write('[2, "hal')  # killed here
    again = KeptAnswers(tmp_path, {"model": "judge"})
    assert again.known == {1: "two\nlines", 0: "üñ"} and again.known[1].clipped and not again.known[0].clipped
    again.keep(2, Answer("half", False))
    assert KeptAnswers(tmp_path, {"model": "judge"}).known[2] == "half"
    with pytest.raises(DataError, match="holds another run, different in model: judge there, other here"):
        KeptAnswers(tmp_path, {"model": "other"})


def test_a_folder_without_answers_takes_another_run(tmp_path):
    """A command that stops before its first answer, since another folder is wrong, claims no folder for good."""
    KeptAnswers(tmp_path, {"model": "judge"})
    KeptAnswers(tmp_path, {"model": "other"}).keep(0, Answer("yes", False))
    assert KeptAnswers(tmp_path, {"model": "other"}).known == {0: "yes"}


def options_of(*arguments: str):
    """The options of a benchmark command of judges."""
    parser = asking.make_parser("", None)
    add_choice(parser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["benchmark.py", "--on", "llmbar", *arguments])
        return asking.read_options(parser)


def test_answers_of_another_judge_are_not_taken_for_this_ones(tmp_path, tiny_model):
    """Another endpoint, another checkpoint or template behind it, another tokenizer of the same checkpoint."""
    for name in ("first", "second", "moved"):
        shutil.copytree(tiny_model, tmp_path / name)
    (tmp_path / "second" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    first, second, moved = (str(tmp_path / name) for name in ("first", "second", "moved"))
    rows = [{"prompt": [{"role": "user", "content": "4?"}], "label": None, "source": "1"}]

    def run_of(*arguments: str) -> dict:
        return asking.identity(options_of(*arguments), rows)

    served = ("--model", "judge", "--endpoint")
    assert run_of(*served, "http://a", "--tokenizer", first) == run_of(*served, "http://a", "--tokenizer", moved)
    assert run_of(*served, "http://a") != run_of(*served, "http://b")
    moved_teachers = [
        asking.identity(options_of(*served, url), rows, anywhere=True) for url in ("http://a", "http://b")
    ]
    assert moved_teachers[0] == moved_teachers[1] != run_of("--model", "judge")
    assert run_of(*served, "http://a", "--tokenizer", first) != run_of(*served, "http://a", "--tokenizer", second)
    assert run_of("--model", first) == run_of("--model", moved) != run_of("--model", second)
    assert run_of("--model", first) != run_of("--model", first, "--tokenizer", second)


@pytest.mark.parametrize("method", [pointwise, pairwise])
def test_what_is_wrong_with_any_benchmark_is_told_before_one_is_judged(tmp_path, tiny_model, monkeypatch, method):
    """The second one has a prompt that is too long, the folder of the third one another run's answers."""
    places = {
        "judgebench": save(tmp_path / "judgebench.jsonl", [JUDGEBENCH]),
        "llmbar": save(tmp_path / "Natural" / "dataset.json", [LLMBAR | {"input": "Do it. " * 3000}]),
        "rewardbench2": save(tmp_path / "rewardbench2.jsonl", REWARDBENCH2),
    }
    KeptAnswers(make(tmp_path / "figures" / "rewardbench2"), {"model": "other"}).keep(0, Answer("yes", False))
    paths = [f"{name}={place}" for name, place in places.items()]
    arguments = ["--model", str(tiny_model), "--on", *places, "--path", *paths, "--max-prompt-length", "2000"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--output", str(tmp_path / "figures")])
    monkeypatch.setattr(asking, "load_answering", lambda *_: pytest.fail("loaded"))
    with pytest.raises(DataError) as error:
        method.main()
    told = str(error.value)
    assert "llmbar: " in told and "prompts are longer than data.max_prompt_length=2000 tokens" in told
    assert "rewardbench2: " in told and "holds another run" in told and "judgebench: " not in told


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_several_benchmarks_are_judged_by_one_model_and_kept_apart(tmp_path, tiny_model, monkeypatch):
    places = {
        "judgebench": save(tmp_path / "judgebench.jsonl", [JUDGEBENCH]),
        "llmbar": save(tmp_path / "Natural" / "dataset.json", [LLMBAR]),
    }
    paths = [f"{name}={place}" for name, place in places.items()]
    loaded, load = [], asking.load_answering
    monkeypatch.setattr(asking, "load_answering", lambda *given: loaded.append(given) or load(*given))

    def measure(*names: str) -> dict[str, str]:
        arguments = ["--model", str(tiny_model), "--on", *names, "--path", *paths, "--max-new-tokens", "8"]
        if len(names) == 1:
            arguments = [word for word in arguments if not word.startswith("llmbar=")]
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--output", str(tmp_path / "figures")])
        pointwise.main()
        return {name: (tmp_path / "figures" / name / FILE).read_text() for name in names}

    alone = measure("judgebench")
    both = measure("judgebench", "llmbar")
    assert len(loaded) == 2 and both["judgebench"] == alone["judgebench"]
    assert [len(text.splitlines()) for text in both.values()] == [1 + 2, 1 + 2]
    (tmp_path / "figures" / "judgebench" / FILE).unlink()
    again = measure("judgebench", "llmbar")
    assert again["llmbar"] == both["llmbar"] and sorted(again["judgebench"]) == sorted(both["judgebench"])
    assert len(loaded) == 3


def test_two_commands_do_not_write_into_one_folder(tmp_path):
    refused = pytest.raises(DataError, match="another command is writing to")
    with kept_answers(tmp_path, {}), refused, kept_answers(tmp_path, {}):
        pass
    with kept_answers(tmp_path, {}) as again:
        assert again.known == {}


def test_kept_answers_of_a_checkpoint_begin_as_its_template_does(tmp_path, tiny_model, monkeypatch):
    """Read again, without loading the model, they give the same verdicts."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "judge"))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}<think>\n{% endif %}")
    options = options_of("--model", str(folder))
    sets = {tmp_path / "kept": [{"prompt": [{"role": "user", "content": "4?"}], "label": None, "source": "1"}]}

    def answer(*_, keep, **__):
        keep(0, Answer("Yes.\n</think>\n\n<score>4</score>", False))
        return [[Answer("Yes.\n</think>\n\n<score>4</score>", False)]]

    monkeypatch.setattr(asking, "answer_prompts", answer)
    (first,) = asking.ask_and_keep(options, sets, read, lambda votes: votes[0], "<think>").values()
    monkeypatch.setattr(asking, "load_answering", lambda *_: pytest.fail("loaded"))
    (again,) = asking.ask_and_keep(options, sets, read, lambda votes: votes[0], "<think>").values()
    assert first.verdicts == again.verdicts == [4] and first.answers == again.answers
    assert again.answers[0][0].startswith("<think>\nYes.")
