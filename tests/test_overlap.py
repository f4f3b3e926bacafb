"""Training prompts that are also prompts of a benchmark: found however they are written, left out only if asked."""

import json
import random
import sys

import pyarrow.parquet as pq
import pytest
from test_benchmarks_files import RM_BENCH, save

import bradley_terry.prepare_data
import generative_pairwise.prepare_data
import generative_pointwise.prepare_data
import sft.prepare_data
from common.benchmarks import overlap
from common.benchmarks.overlap import find_matches, least_share, leave_out, prompt_in, read_held_out, shorten
from common.conversation import BadRow, DataError
from common.parquet import write_rows

FRUIT = "Name the three fruits that ripen first in a cold spring, and say why."
KITE = "Explain how a kite stays up in the wind although nobody pushes it from below."


def user(*texts: str) -> list[dict]:
    """A dialogue in which the assistant answers all turns but the last."""
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "Well."}] for text in texts]
    return sum(turns, [])[:-1]


def kinds(prompt, *questions) -> list[str]:
    [matches] = find_matches([prompt], list(questions))
    return [match.kind for match in matches]


class Writer:
    """Writes texts of invented words, some of which are frequent, as in a language."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.words = ["".join(self.random.choices("abcdefghiklmnoprstuvw", k=2 + n % 7)) for n in range(3000)]
        self.weights = [1 / (10 + rank) for rank in range(len(self.words))]

    def text(self, words: int) -> str:
        return " ".join(self.random.choices(self.words, self.weights, k=words)).capitalize() + "?"

    def change_one_in_ten(self, text: str, count) -> str:
        words = text.split()
        for place in self.random.sample(range(len(words)), count(len(words))):
            words[place] = self.random.choice(self.words) + "x"
        return " ".join(words)

    def space(self, text: str) -> str:
        return "\n" + "".join(self.random.choice([" ", "  ", "\t\n", "\u00a0"]) if c == " " else c for c in text)


def test_rows_of_a_benchmark_are_found_among_others():
    """All that are equal but for case and spaces, 95% of those with one word in ten changed, no other row."""
    write = Writer(seed=0)
    questions = [write.text(write.random.randint(3, 60)) for _ in range(400)]
    long = [number for number, question in enumerate(questions) if len(question.split()) >= 10]
    assert len(long) > 300
    mixed = {
        "as it is": [(question, number) for number, question in enumerate(questions)],
        "upper case": [(question.upper(), number) for number, question in enumerate(questions)],
        "spaces": [(write.space(question), number) for number, question in enumerate(questions)],
        "one in ten": [(write.change_one_in_ten(questions[n], lambda words: round(words / 10)), n) for n in long],
        "rounded up": [(write.change_one_in_ten(questions[n], lambda words: -(-words // 10)), n) for n in long],
        "inside": [(f"{write.text(30)} {questions[n]} {write.text(30)}", n) for n in long],
        "unrelated": [(write.text(write.random.randint(3, 80)), None) for _ in range(3000)],
    }
    rows = [(kind, *row) for kind, of_kind in mixed.items() for row in of_kind]
    write.random.shuffle(rows)
    found = find_matches([user(text) for _, text, _ in rows], [user(question) for question in questions])
    right, wrong = dict.fromkeys(mixed, 0), 0
    for (kind, _, number), matches in zip(rows, found):
        right[kind] += number in [match.question for match in matches]
        wrong += any(match.question != number for match in matches)
    for kind in ("as it is", "upper case", "spaces"):
        assert right[kind] == len(questions)
    for kind in ("one in ten", "rounded up", "inside"):
        assert right[kind] >= 0.95 * len(long), kind
    assert wrong == 0


@pytest.mark.parametrize(
    ("prompt", "question", "expected"),
    [
        (user("What is 3+2?"), "What is 2+2?", []),
        (user("what is 2+2"), "What is 2+2?", ["short"]),
        (user("Hi!"), "Hi", ["short"]),
        (user("???"), "???", ["short"]),
        (user("???"), "!!!", []),
        (user("Ｎame  the ＴＨＲＥＥ fruits"), "Name the three fruits", ["short"]),  # full width
        (user("你好吗,朋友们"), "你好吗，朋友们", ["equal"]),
        # a turn before it makes a short question another one
        (user("Write a long poem.", "Continue"), "Continue", []),
        (user("Tell me about kites.", "How do I build one?"), "How do I build one?", ["last turn"]),
        (user("How do I build one?", "Tell me about kites."), "How do I build one?", []),
        # one other word in nine is another question, and so are words in another order
        (user("Who was the second king of the old country?"), "Who was the first king of the old country?", []),
        (user(" ".join(KITE.split()[::-1])), KITE, []),
        (user(KITE.replace("kite", "plane")), KITE, ["near"]),
        (user(KITE.replace("kite", "plane").replace("wind", "air").replace("pushes", "lifts")), KITE, []),
        (user(f"You are a teacher. {KITE} Use two examples."), KITE, ["inside"]),
        (user("Hello.", KITE, "Shorter, please."), KITE, ["inside"]),
        ([{"role": "system", "content": KITE}, *user("Go on with it.")], KITE, []),
        (f"Human: {KITE}\n\nAssistant:", KITE, ["inside"]),
        # the question is a dialogue: all that its user says counts
        (user("Hello.", KITE), user("Hello.", KITE), ["equal"]),
        (user(FRUIT), user(KITE, FRUIT), ["without context"]),
        (user("Hello.", FRUIT.upper()), user(KITE, FRUIT), ["without context"]),
        (user(FRUIT), user(FRUIT, KITE), []),
        (user("Write it all again."), user(FRUIT, "Write it all again."), []),
    ],
)
def test_what_is_the_same_prompt(prompt, question, expected):
    assert kinds(prompt, question) == expected


def test_of_eleven_words_two_may_differ_and_of_fourteen_fifteen_in_a_hundred():
    assert [round(least_share(words), 3) for words in (10, 11, 13, 14, 100)] == [0.85, 0.818, 0.846, 0.85, 0.85]


def test_a_frame_that_many_prompts_share_makes_no_two_of_them_alike():
    """All have 40 of 46 words in common; only the other six say what a prompt asks."""
    write = Writer(seed=1)
    frame = write.text(40)
    prompts = [user(f"{frame} {' '.join(write.random.sample(write.words, 6))}") for _ in range(30)]
    assert [len(matches) for matches in find_matches(prompts, prompts[:1])] == [1] + [0] * 29
    # of three such prompts nobody can say what is frame and what is question
    assert [len(matches) for matches in find_matches(prompts[:3], prompts[:1])] == [1, 1, 1]


def test_a_question_in_many_versions_is_found_in_all_of_them():
    """Its pairs of words are frequent then, but it has no others."""
    write = Writer(seed=2)
    question = write.text(20)
    versions = [user(write.change_one_in_ten(question, lambda words: 2)) for _ in range(60)]
    assert all(find_matches(versions, [user(question)]))


# ---- what is held out


def write_llmbar(folder, *inputs):
    rows = [{"input": text, "output_1": "yes", "output_2": "no", "label": 1} for text in inputs]
    (folder / "LLMBar" / "Natural").mkdir(parents=True)
    (folder / "LLMBar" / "Natural" / "dataset.json").write_text(json.dumps(rows))
    return f"llmbar={folder / 'LLMBar'}"


def test_benchmarks_and_own_files_are_read(tmp_path):
    llmbar = write_llmbar(tmp_path, FRUIT, KITE, KITE.upper())
    own = tmp_path / "lang=en.csv"
    own.write_text("prompt\nName a nut.\n")
    pairs = str(
        write_rows(
            tmp_path / "test.parquet",
            [{"chosen": user(FRUIT) + [answer("A pear.")], "rejected": user(FRUIT) + [answer("A stone.")]}],
        )
    )
    held_out = read_held_out([llmbar, str(own), pairs])
    assert held_out == {llmbar: [user(FRUIT), user(KITE)], str(own): [user("Name a nut.")], pairs: [user(FRUIT)]}


def answer(text: str) -> dict:
    return {"role": "assistant", "content": text}


def test_all_that_cannot_be_read_is_said_at_once(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Name a nut."}\n{"prompt": " "}\n')
    with pytest.raises(DataError) as error:
        read_held_out(["rewardbench3", f"rm_bench={tmp_path / 'none'}", str(tmp_path / "mine.jsonl")])
    text = str(error.value)
    assert "rewardbench3: expected a benchmark (rewardbench2, rm_bench, judgebench, rmb, llmbar)" in text
    assert "none: no such file or folder" in text
    assert "mine.jsonl row 1, column 'prompt': empty text" in text


def test_the_prompt_is_found_in_rows_of_all_methods():
    asked = user("Name a nut.")
    assert prompt_in({"chosen": asked + [answer("Walnut.")], "rejected": asked + [answer("Stone.")]}) == asked
    assert prompt_in({"prompt": "Name a nut.", "chosen": "Walnut.", "rejected": "Stone."}) == asked
    plain = {"chosen": "Human: A nut?\n\nAssistant: Walnut.", "rejected": "Human: A nut?\n\nAssistant: Stone."}
    assert prompt_in(plain).strip() == "Human: A nut?\n\nAssistant:"
    assert prompt_in({"messages": asked + [answer("Walnut.")]}) == asked
    assert prompt_in({"messages": asked}) == asked
    assert prompt_in({"input": asked, "prompt": user("Judge this.")}) == asked
    with pytest.raises(BadRow, match="expected a column input, messages or prompt, or chosen and rejected"):
        prompt_in({"question": "Name a nut."})


# ---- commands


def rows_of(method, prompts: list) -> tuple[str, list[dict]]:
    """The source of a method's rows, and a row for each prompt."""
    responses = [{"answer": answer(text)} for text in ("A good answer.", "A bad one.")]
    if method is bradley_terry:
        sides = {"chosen": answer("A good answer."), "rejected": answer("A bad one.")}
        return "pairs", [{side: prompt + [last] for side, last in sides.items()} for prompt in prompts]
    if method is sft:
        return "messages", [{"messages": prompt + [answer("A good answer.")]} for prompt in prompts]
    if method is generative_pointwise:
        return "pointwise", [
            {"input": prompt, "output": responses[:1], "label": n % 5} for n, prompt in enumerate(prompts)
        ]
    return "pairwise", [{"input": prompt, "output": responses, "metadata": {"preferred": "A"}} for prompt in prompts]


def run(monkeypatch, module, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    module.main()


METHODS = (bradley_terry, generative_pairwise, generative_pointwise, sft)


@pytest.mark.parametrize("method", METHODS)
def test_prepare_data_leaves_out_what_is_named_and_nothing_else(monkeypatch, tmp_path, capsys, method):
    others = [user(f"Tell me what the number {n} means to you.") for n in range(20)]
    held_out = [user(FRUIT.upper()), user("Dear all,", KITE.replace("kite", "plane")), user("Hi")]
    source, rows = rows_of(method, [*others[:10], *held_out, *others[10:]])
    path = write_rows(tmp_path / "rows.parquet", rows)
    command = ("--source", source, "--path", path, "--val-share", 0.1, "--output")

    run(monkeypatch, method.prepare_data, *command, tmp_path / "all")
    assert len(prompts_in(tmp_path / "all")) == 23
    capsys.readouterr()

    llmbar = write_llmbar(tmp_path, FRUIT, KITE, "Hi")
    run(monkeypatch, method.prepare_data, *command, tmp_path / "clean", "--without", llmbar)
    assert sorted(map(str, prompts_in(tmp_path / "clean"))) == sorted(map(str, others))
    printed = capsys.readouterr().out
    assert f"{llmbar}: 3 of its 3 prompts found, in 3 of 23 rows: 1 x equal but for case, punctuation" in printed
    assert "1 x the same, of fewer than 5 words; 1 x some words changed\n" in printed
    assert (
        f"  near: {shorten('Dear all,' + chr(10) * 2 + KITE.replace('kite', 'plane'))} has {shorten(KITE)}" in printed
    )
    assert "left out: 3 x prompt that is held out by --without" in printed


def prompts_in(folder) -> list:
    return [prompt_in(row) for split in sorted(folder.glob("*.parquet")) for row in pq.read_table(split).to_pylist()]


def test_if_no_row_is_left_it_is_an_error(tmp_path):
    rows = [{"messages": user(FRUIT) + [answer("A pear.")]}]
    with pytest.raises(DataError, match="--without leaves no row: the prompts of all 1 are held out"):
        leave_out(rows, {"mine": [user(FRUIT)]})
    assert leave_out(rows, {}) == (rows, {})


@pytest.mark.parametrize("method", METHODS)
def test_the_report_reads_what_prepare_data_wrote(monkeypatch, tmp_path, capsys, method):
    prompts = [*(user(f"Tell me what the number {n} means to you.") for n in range(20)), user(f"Dear all, {KITE}")]
    source, rows = rows_of(method, prompts)
    path = write_rows(tmp_path / "rows.parquet", rows)
    run(monkeypatch, method.prepare_data, "--source", source, "--path", path, "--output", tmp_path / "data")
    capsys.readouterr()
    llmbar = write_llmbar(tmp_path, FRUIT, KITE)
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Name a nut."}\n')
    found = tmp_path / "found.jsonl"
    arguments = ("--data", tmp_path / "data", "--against", llmbar, tmp_path / "mine.jsonl", "--output", found)
    run(monkeypatch, overlap, *arguments)
    printed = capsys.readouterr().out
    assert f"{llmbar}: 1 of its 2 prompts found, in 1 of 21 rows: 1 x inside a longer prompt\n  inside: " in printed
    assert f"{tmp_path / 'mine.jsonl'}: none of its 1 prompts found in 21 rows" in printed
    [find] = map(json.loads, found.read_text().splitlines())
    assert find.pop("row").split(".parquet row ")[0] in ("train", "val", "test")
    assert f"all 1 finds: {found}" in printed
    expected = {"held_out": llmbar, "kind": "inside", "share": 1.0, "prompt": f"Dear all, {KITE}", "question": KITE}
    assert find == expected


def test_what_was_found_earlier_is_not_todays_result(monkeypatch, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Name a nut."}\n')
    data = write_rows(tmp_path / "train.parquet", [{"messages": user(FRUIT) + [answer("A pear.")]}])
    found = tmp_path / "found.jsonl"
    found.write_text("earlier\n")
    command = ("--data", data, "--against", tmp_path / "mine.jsonl", "--output")
    run(monkeypatch, overlap, *command, found)
    assert found.read_text() == ""
    monkeypatch.setattr(overlap, "find_overlap", lambda *_: pytest.fail("searched"))
    with pytest.raises(DataError, match=r"found.txt: expected a name that ends with .jsonl"):
        run(monkeypatch, overlap, *command, tmp_path / "found.txt")


def test_rows_of_files_with_one_name_are_told_apart(monkeypatch, tmp_path):
    for place, text in (("a", FRUIT), ("b", KITE)):
        write_rows(tmp_path / place / "train.parquet", [{"messages": user(text) + [answer("Well.")]}])
    mine, found = tmp_path / "mine.jsonl", tmp_path / "found.jsonl"
    mine.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in (FRUIT, KITE)))
    command = ("--data", tmp_path / "a", tmp_path / "b", "--against", mine, "--output", found)
    run(monkeypatch, overlap, *command)
    rows = [json.loads(line)["row"] for line in found.read_text().splitlines()]
    assert rows == [f"{place}/train.parquet row 0" for place in ("a", "b")]


def test_a_benchmark_that_is_not_whole_is_said_to_be_so(tmp_path, capsys):
    """RM-Bench of the chat file alone."""
    file = save(tmp_path / "chat_filtered.json", [RM_BENCH])
    read_held_out([f"rm_bench={file}"])
    said = "not whole, so not all of it is looked for; missing: chat (1 of 129 questions), math, code, safety-refuse"
    assert said in capsys.readouterr().out
