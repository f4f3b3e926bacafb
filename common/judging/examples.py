"""What the page of a judge shows: each labelled row with what was judged, the judge's whole answers and its verdicts.

Prompts that were made of one labelled row, a comparison in both orders, are one row of the page, their answers beside
each other. The verdict of the other order is shown as it would be in the first: "A" is the same response in both.
"""

import re
from collections.abc import Callable, Sequence
from itertools import zip_longest

from common.conversation import Conversation
from common.generation import CLOSING, Answer
from common.judging.prompts import digest_prompts
from common.judging.votes import fault_of
from common.page.page import Band, Example, Examples, Text, View
from common.page.pictures import Bars, Boxes, Calibration, Picture

NONE = "no verdict"
NOT_ASKED = "not known"  # the other order of a prompt whose row was not found


def judge_examples(
    name: str,
    rows: Sequence[dict],
    answers: Sequence[Sequence[Answer]],
    votes: Sequence[list],
    verdicts: Sequence,
    turn: Callable[[object], object] = lambda verdict: verdict,
    fault: Callable[[Answer], str] = fault_of,
) -> Examples:
    """Return judged rows as rows of a page; the arguments are lists as in `Judgements`.

    Args:
        turn: a verdict on swapped responses as it would be in the given order.
        fault: why an answer has no verdict.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row["source"], []).append(index)
    several = len(votes[0]) > 1 if votes else False
    # all rows have the same columns: an answer in one order alone may stand among pairs
    paired = any(len(indices) > 1 for indices in groups.values())
    scored = not paired and any(isinstance(row["label"], int) for row in rows)
    examples = []
    for source, (first, *others) in groups.items():
        row, both = rows[first], (first, *others)
        said = [verdicts[first], *(None if verdicts[other] is None else turn(verdicts[other]) for other in others)]
        right = all(verdict == row["label"] for verdict in said)
        values = {"source": source, "right": "yes" if right else "no", "label": str(row["label"])}
        values |= dict(zip_longest(verdict_names(paired), map(shown, said), fillvalue=NOT_ASKED))
        if paired:
            same = None not in said and len(set(said)) == 1
            values["same in both orders"] = ("yes" if same else "no") if others else NOT_ASKED
        elif scored:
            known = isinstance(row["label"], int) and said[0] is not None
            values["error"] = abs(said[0] - row["label"]) if known else None
        if several:
            values["votes for it"] = min(votes[index].count(verdicts[index]) for index in both)
        values["label strength"] = row.get("strength")
        faults = [fault(text) for each in both for text, vote in zip(answers[each], votes[each]) if vote is None]
        values |= {"why no verdict": faults[0] if faults else None, "data source": row.get("data_source")}
        values["characters of answers"] = sum(len(text) for index in both for text in answers[index])
        values["characters judged"] = sum(map(len, responses_of(row)))
        bands = [*asked_bands(row), answer_band(row, both, rows, answers, votes, fault)]
        examples.append(Example(digest_prompts([rows[index] for index in both]), values, bands))
    names = verdict_names(paired)
    choices = ["right", "label", *names, *(["same in both orders"] if len(names) > 1 else [])]
    choices += [name for name in ("why no verdict", "data source") if len({row.values[name] for row in examples}) > 1]
    tables = tuple(("label", each) for each in names)
    note = "Right means right in both orders. The verdict of the swapped order is turned back: A is the same response."
    return Examples(
        f"{name}: {len(examples):,} rows", examples, views_of(examples), tuple(choices), tables, note * (len(names) > 1)
    )


def verdict_names(paired: bool) -> list[str]:
    return ["verdict as given", "verdict swapped"] if paired else ["verdict"]


def shown(verdict: object) -> str:
    return NONE if verdict is None else str(verdict)


def views_of(examples: list[Example]) -> list[View]:
    """Return the ways to look at these rows that their columns allow."""
    columns = examples[0].values if examples else {}
    wrong = {"right": "no"}
    views = [
        View("wrong, largest error first", "error", falling=True, only=wrong),
        View("wrong, most votes for it first", "votes for it", falling=True, only=wrong),
        View("wrong, clearest label first", "label strength", falling=True, only=wrong),
        View("votes closest to a tie", "votes for it"),
        View("other verdict in the other order", "label strength", True, {"same in both orders": "no"}),
        View("longest answers", "characters of answers", falling=True),
        View("longest judged texts", "characters judged", falling=True),
        View("all", "source"),
    ]
    return [view for view in views if {view.column, *view.only} <= set(columns)]


def responses_of(row: dict) -> list[str]:
    """Return what was judged, as far as it is known apart from the prompt."""
    return [text for text in row.get("responses") or [row.get("response")] if text is not None]


def asked_bands(row: dict) -> list[Band]:
    """Return the dialogue, the rubric and what was judged; the whole prompt if these are not known."""
    responses = responses_of(row)
    turns = turns_of(row["input"] if responses else row.get("written", row["prompt"]))
    if row.get("rubric") and responses:
        turns.insert(0, Text("rubric", row["rubric"], folded=True))
    bands = [Band([turns])]
    if len(responses) == 2:
        bands.append(Band([[Text("response A", responses[0])], [Text("response B", responses[1])]], marked=True))
    elif responses:
        bands.append(Band([[Text("response", responses[0])]]))
    return bands


def turns_of(messages: Conversation) -> list[Text]:
    return [Text(message["role"], message["content"]) for message in messages]


def answer_band(
    row: dict,
    both: Sequence[int],
    rows: Sequence[dict],
    answers: Sequence,
    votes: Sequence,
    fault: Callable[[Answer], str],
) -> Band:
    """Return the judge's answers, those in the other order beside them."""
    columns = []
    for index in both:
        order = f", {rows[index]['order']}" if len(both) > 1 else ""
        column = []
        for number, (text, vote) in enumerate(zip(answers[index], votes[index]), start=1):
            which = f"{order}, vote {number}" if len(answers[index]) > 1 else order
            column += answer_texts(text, vote, which, fault)
        columns.append(column)
    return Band(columns)


def answer_texts(given: Answer, verdict: object, which: str, fault: Callable[[Answer], str] = fault_of) -> list[Text]:
    """Return a whole answer, cut behind its reasoning, which is folded."""
    *_, end = [0, *(closing.end() for closing in re.finditer(rf"{CLOSING}\s*", given))]
    found = f"verdict{which}: {verdict}" if verdict is not None else f"no verdict{which}: {fault(given)}"
    reasoning = [Text(f"reasoning{which}", str(given[:end]), folded=True)] if end else []
    return [*reasoning, Text(found, str(given[end:]))]


def judge_pictures(name: str, examples: Examples, bins: list[dict[str, int]], votes: int) -> list[Picture]:
    """Return the pictures of judged rows.

    Args:
        bins: of `vote_metrics`, none if a row was judged once. votes: how often.
    """
    pictures, lengths, hits = [], {}, {}
    first = "verdict" if examples.rows and "verdict" in examples.rows[0].values else "verdict as given"
    for row in examples.rows:
        lengths.setdefault(row.values[first], []).append(row.values["characters judged"])
        hits.setdefault(row.values["data source"] or "", []).append(row.values["right"] == "yes")
    if any(map(any, lengths.values())):
        panel = Boxes(f"{name}: length and verdict", lengths, "characters of what was judged")
        pictures.append(Picture(panel, "Length of what was judged, by verdict; beside it the number of rows."))
    if bins:
        points = [(part["agreeing"] / votes, part["right"] / part["rows"], part["rows"]) for part in bins]
        panel = Calibration(f"{name}: agreement of votes", points)
        pictures.append(Picture(panel, "How often a verdict is right, by the share of votes that it has."))
    if len(hits) > 1:
        panel = Bars(f"{name}: by data source", {key: (sum(value), len(value)) for key, value in hits.items()})
        pictures.append(Picture(panel, "Share of rows that are right, by data source; beside it the number of rows."))
    return pictures
