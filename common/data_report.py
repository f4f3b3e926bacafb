"""What a careful person looks up before training on preferences or judgements, in one screen of text.

- Rows come as `Item`, which every method can make. A pair is the same pair in both orders: the other order with the
  label turned repeats it, the other order with the label kept contradicts it.
- Two rows are similar if each part is, the prompt and every response. The textbook compares whole rows as one text.
  Then all short answers to one long prompt look alike. What makes two texts similar is in similar_texts.py.
- Nothing is changed or dropped. The report says what is there and names the first case of each kind.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

import numpy as np

from common.conversation import Conversation
from common.similar_texts import read_texts

CHOSEN_FIRST = "chosen first"  # the label of chosen and rejected: their order is the label
CHOSEN_SECOND = "chosen second"  # the same once the order is turned; no row says so
TURNED = {"A": "B", "B": "A", "tie": "tie", CHOSEN_FIRST: CHOSEN_SECOND, CHOSEN_SECOND: CHOSEN_FIRST}

NEAR = {"words": "equal but for case, punctuation or spaces", "similar": "some words changed"}
Found = dict[str, list[tuple[int, int]]]  # by kind: two rows, by number; the earlier one first

SCRIPT_PREFIX = 200  # characters of each response that are looked at
OTHER_NAMES = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "HALFWIDTH": "Kana", "FULLWIDTH": "Latin"}
LABELS_SHOWN = 12
ROWS_FOR_QUARTERS = 100  # a quarter of fewer than 25 rows is chance


@dataclass(frozen=True)
class Item:
    """One row of training data, whatever the method.

    `responses` are two for a pair, one for a scored response or a conversation's last answer, none if the prompt shows
    them. `label` of a pair is "A", "B" or "tie", or `CHOSEN_FIRST`; of anything else a value that can be compared, or
    None. `source` says where the row stands, "train.parquet row 17".
    """

    prompt: str
    responses: tuple[str, ...]
    label: Hashable | None
    source: str

    def __post_init__(self):
        if len(self.responses) > 2:
            raise ValueError(f"{self.source}: {len(self.responses)} responses, expected two at most")
        if len(self.responses) == 2 and self.label not in (None, "A", "B", "tie", CHOSEN_FIRST):
            raise ValueError(f"{self.source}: label of a pair is {self.label!r}, expected A, B, tie or {CHOSEN_FIRST}")


class Parts(NamedTuple):
    """A row's texts as numbers: equal texts have equal numbers."""

    prompt: int
    responses: tuple[int, ...]

    def turned(self) -> "Parts":
        return Parts(self.prompt, self.responses[::-1])


class Row(NamedTuple):
    """A row, read: its texts by what they are, and by their words alone."""

    exact: Parts
    words: Parts
    label: Hashable | None
    source: str


def dialogue_text(dialogue: Conversation | str) -> str:
    """Return a dialogue as the text to compare, turn by turn; plain text as it is."""
    if isinstance(dialogue, str):
        return dialogue
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in dialogue)


# ---- rows


def read_items(items: list[Item]) -> tuple[list[Row], dict[int, set[int]], dict[int, set[int]]]:
    """Return all rows; which prompts are similar, by their numbers in `Row.words`; and which responses are."""
    prompts = read_texts([item.prompt for item in items], "prompt")
    responses = read_texts([response for item in items for response in item.responses], "response")
    rows, start = [], 0
    for place, item in enumerate(items):
        end = start + len(item.responses)
        exact, words = (
            Parts(prompt[place], tuple(response[start:end]))
            for prompt, response in ((prompts.exact, responses.exact), (prompts.words, responses.words))
        )
        rows.append(Row(exact, words, item.label, item.source))
        start = end
    return rows, prompts.similar, responses.similar


def one_order(parts: Parts, label: Hashable | None = None) -> tuple[Parts, Hashable | None]:
    """Return a pair with its smaller response first, the label turned with it; anything else as it is."""
    return (parts, label) if parts <= parts.turned() else (parts.turned(), TURNED.get(label))


def find_repeats(
    rows: list[Row], similar_prompts: dict[int, set[int]], similar_responses: dict[int, set[int]]
) -> Found:
    """Find the rows that repeat an earlier one. Each is counted once, for the closest sameness.

    Equal texts with another label are no repetition, but a contradiction.

    Returns:
        By kind: "equal"; "turned", a pair in the other order with the label turned; "words", equal up to case,
        punctuation and spaces, in any order; "similar", in any order and with any label.
    """
    found: Found = {"equal": [], "turned": [], "words": [], "similar": []}
    said: dict[tuple, int] = {}  # texts and label -> the first row of them
    said_in_words: dict[tuple, int] = {}
    places: dict[Parts, int] = {}  # words -> the first row of them
    with_prompt: dict[int, list[Parts]] = defaultdict(list)
    with_response: dict[int, list[Parts]] = defaultdict(list)
    for number, row in enumerate(rows):
        earlier = said.setdefault(one_order(row.exact, row.label), number)
        if earlier != number:
            found["equal" if rows[earlier].exact == row.exact else "turned"].append((earlier, number))
            continue
        earlier = said_in_words.setdefault(one_order(row.words, row.label), number)
        if earlier != number:
            found["words"].append((earlier, number))
            continue
        words, _ = one_order(row.words)
        if places.setdefault(words, number) != number:
            continue
        # a similar row has a similar prompt and similar responses: look where the fewest rows are
        ways = [[with_prompt[near] for near in (words.prompt, *similar_prompts.get(words.prompt, ()))]]
        for response in words.responses:
            ways.append([with_response[near] for near in (response, *similar_responses.get(response, ()))])
        fewest = min(ways, key=lambda way: sum(map(len, way)))
        alike = [
            places[other]
            for group in fewest
            for other in group
            if are_similar(words, other, similar_prompts, similar_responses)
        ]
        if alike:
            found["similar"].append((min(alike), number))
        with_prompt[words.prompt].append(words)
        for response in set(words.responses):
            with_response[response].append(words)
    return found


def are_similar(
    one: Parts, other: Parts, similar_prompts: dict[int, set[int]], similar_responses: dict[int, set[int]]
) -> bool:
    """Return whether two rows have equal or similar prompts and, in one of the orders, equal or similar responses."""

    def alike(first: int, second: int, similar: dict[int, set[int]]) -> bool:
        return first == second or second in similar.get(first, ())

    if len(one.responses) != len(other.responses) or not alike(one.prompt, other.prompt, similar_prompts):
        return False
    return any(
        all(alike(first, second, similar_responses) for first, second in zip(one.responses, order.responses))
        for order in (other, other.turned())
    )


def find_contradictions(rows: list[Row]) -> Found:
    """Find texts that have more than one label; each is counted once, with two of its rows.

    Returns:
        By kind: "label", a response with different labels; "preference", a pair with both preferences; "order", a pair
        whose label stays when its order is turned; "tie", a pair that is a tie and is not; "words", any of these only
        up to case, punctuation and spaces.
    """
    found: Found = {"label": [], "preference": [], "order": [], "tie": [], "words": []}
    contradicted = set()  # words
    for _, kind, two in contradictions([(row.exact, row.label) for row in rows]):
        found[kind].append(two)
        contradicted.add(one_order(rows[two[0]].words)[0])
    for parts, _, two in contradictions([(row.words, row.label) for row in rows]):
        if parts not in contradicted:
            found["words"].append(two)
    return found


def contradictions(labelled: list[tuple[Parts, Hashable | None]]) -> Iterator[tuple[Parts, str, tuple[int, int]]]:
    """Yield texts that have more than one label, the kind of it, and two rows that say so."""
    labels: dict[Parts, dict[tuple, int]] = defaultdict(dict)  # texts -> label, whether turned -> the first row
    for number, (parts, label) in enumerate(labelled):
        if label is None or (len(parts.responses) == 2 and parts == parts.turned()):  # which of two equals is meant?
            continue
        ordered, turned_label = one_order(parts, label)
        labels[ordered].setdefault((turned_label, ordered != parts), number)
    for parts, rows_of in labels.items():
        if len({label for label, _ in rows_of}) > 1:
            yield parts, *contradiction(rows_of, len(parts.responses) == 2)


def contradiction(rows_of: dict[tuple[Hashable, bool], int], is_pair: bool) -> tuple[str, tuple[int, int]]:
    """Return the kind of a contradiction, and two rows that make it.

    Args:
        rows_of: label and whether the order is turned -> the first such row; two different labels at least.
    """
    different = [
        (one, other) for one, other in combinations(sorted(rows_of, key=rows_of.__getitem__), 2) if one[0] != other[0]
    ]
    if not is_pair:
        kind, (one, other) = "label", different[0]
    elif opposed := [two for two in different if "tie" not in (two[0][0], two[1][0])]:
        # if the order is the label, there is no other way to say that the second response is better
        plain = [two for two in opposed if two[0][1] == two[1][1] or two[0][0] in (CHOSEN_FIRST, CHOSEN_SECOND)]
        kind, (one, other) = ("preference", plain[0]) if plain else ("order", opposed[0])
    else:
        kind, (one, other) = "tie", different[0]
    return kind, (rows_of[one], rows_of[other])


def find_leaks(train: list[Row], held_out: list[Row], similar_prompts: dict[int, set[int]]) -> Found:
    """Find held-out rows whose prompt is also in train: (train row, held-out row) by "equal", "words" and "similar"."""
    exact: dict[int, int] = {}
    words: dict[int, int] = {}
    for number, row in enumerate(train):
        exact.setdefault(row.exact.prompt, number)
        words.setdefault(row.words.prompt, number)
    found: Found = {"equal": [], "words": [], "similar": []}
    for number, row in enumerate(held_out):
        if row.exact.prompt in exact:
            found["equal"].append((exact[row.exact.prompt], number))
        elif row.words.prompt in words:
            found["words"].append((words[row.words.prompt], number))
        elif near := [words[prompt] for prompt in similar_prompts.get(row.words.prompt, ()) if prompt in words]:
            found["similar"].append((min(near), number))
    return found


def find_shared_responses(rows: list[Row]) -> dict[int, int]:
    """Return the responses that answer more than one prompt, by number in `Row.words`, and how many they answer."""
    prompts: dict[int, set[int]] = defaultdict(set)
    for row in rows:
        for response in row.words.responses:
            prompts[response].add(row.words.prompt)
    return {response: len(answered) for response, answered in prompts.items() if len(answered) > 1}


# ---- figures


def longer_is_better(items: list[Item]) -> list[tuple[int, bool]]:
    """Return of each pair that has a preference and two lengths: the difference in characters, and who is better."""
    found = []
    for item in items:
        if len(item.responses) == 2 and item.label not in (None, "tie"):
            first, second = map(len, item.responses)
            if first != second:
                found.append((abs(first - second), (first > second) == (item.label in ("A", CHOSEN_FIRST))))
    return found


def quarters(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return of four groups of equal size, the smallest lengths first, the largest length and the mean value."""
    by_length = sorted(points, key=lambda point: point[0])  # equal lengths in the rows' order, not by their values
    groups = np.array_split(np.array(by_length, dtype=float), 4)
    return [(int(group[-1, 0]), float(group[:, 1].mean())) for group in groups]


def are_numbers(values: Iterable) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def main_script(text: str) -> str:
    """Return the script that most letters of a text are of, by their Unicode names: "Latin"; "none" of no letter."""
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else "none"
    letters = Counter(script_of(letter) for letter in text if letter.isalpha())
    return letters.most_common(1)[0][0] if letters else "none"


@cache
def script_of(letter: str) -> str:
    name = unicodedata.name(letter, "OTHER").partition(" ")[0]
    return OTHER_NAMES.get(name, name.capitalize())


# ---- lines


def data_report(
    items_of: dict[str, list[Item]], tokens_of: dict[str, list[int]] | None = None, token_limit: int | None = None
) -> list[str]:
    """Return the lines to print about the rows of all splits. With train, val and test they are 25 at most.

    Args:
        items_of: the rows of each split; a split without rows is left out. Prompts are compared with those of "train".
        tokens_of: of each split the tokens of each row's longest response, in the rows' order.
        token_limit: how many of them fit.

    Raises:
        ValueError: tokens of another number of rows.
    """
    items_of = {split: items for split, items in items_of.items() if items}
    rows, similar_prompts, similar_responses = read_items([item for items in items_of.values() for item in items])
    lines, finds, start = [], Counter(), 0
    rows_of: dict[str, list[Row]] = {}
    for split, items in items_of.items():
        rows_of[split] = rows[start : start + len(items)]
        start += len(items)
    held_out = [split for split in items_of if split != "train"] if "train" in items_of else []
    for split, items in items_of.items():
        repeated = find_repeats(rows_of[split], similar_prompts, similar_responses)
        contradicting = find_contradictions(rows_of[split])
        finds["duplicates"] += sum(map(len, repeated.values()))
        finds["contradictions"] += sum(map(len, contradicting.values()))
        prompts = len({row.exact.prompt for row in rows_of[split]})
        lines.append(f"{split}: {len(items)} rows, {prompts} different prompts")
        parts = []
        if split in held_out:
            leaks = find_leaks(rows_of["train"], rows_of[split], similar_prompts)
            finds["held-out prompts in train"] += sum(map(len, leaks.values()))
            parts += describe_leaks(leaks, rows_of["train"], rows_of[split])
        parts += describe_repeats(repeated, rows_of[split])
        parts += describe_contradictions(contradicting, rows_of[split])
        parts += describe_labels([item.label for item in items if item.label is not None])
        parts += describe_lengths(items)
        if tokens_of and token_limit and split in tokens_of:
            parts += describe_too_long(items, tokens_of[split], token_limit)
        if split not in held_out:
            parts += describe_scripts(items) + describe_shared(items, rows_of[split])
        lines += [f"  {part}" for part in parts]
    absent = [f"no {kind}" for kind, number in finds.items() if not number]
    return lines + ([f"{', '.join(absent)} found"] if absent else [])


def name_two(one: Row, other: Row) -> str:
    """Return where two rows stand, the file once if it is the same: " (train.parquet row 17 and row 230)"."""
    file, _, place = other.source.rpartition(" row ")
    is_same_file = file and file == one.source.rpartition(" row ")[0]
    return f" ({one.source} and {'row ' + place if is_same_file else other.source})"


def list_found(found: Found, texts: dict[str, str], rows: list[Row], others: list[Row] | None = None) -> str:
    """Return the number of each kind that was found, what it is, and its first case; "" if there is none.

    Args:
        rows, others: what the first and the second number of each two mean; `others` are the same rows if not given.
    """
    others = rows if others is None else others
    return "; ".join(
        f"{len(found[kind])} x {text}{name_two(rows[found[kind][0][0]], others[found[kind][0][1]])}"
        for kind, text in texts.items()
        if found[kind]
    )


def describe_repeats(found: Found, rows: list[Row]) -> list[str]:
    equal = {"equal": "equal to an earlier row", "turned": "the same pair in the other order, label turned too"}
    lines = {"duplicates": list_found(found, equal, rows), "near duplicates": list_found(found, NEAR, rows)}
    return [f"{title}: {text}" for title, text in lines.items() if text]


def describe_contradictions(found: Found, rows: list[Row]) -> list[str]:
    texts = {
        "label": "a response with different labels",
        "preference": "a pair with both preferences",
        "order": "a pair whose label stays when the order is turned",
        "tie": "a pair that is a tie and is not",
        "words": "one of these but for case, punctuation or spaces",
    }
    text = list_found(found, texts, rows)
    return [f"contradictions: {text}"] if text else []


def describe_leaks(found: Found, train: list[Row], held_out: list[Row]) -> list[str]:
    text = list_found(found, {"equal": "equal", **NEAR}, train, held_out)
    return [f"prompts also in train: {text}"] if text else []


def describe_labels(labels: list[Hashable]) -> list[str]:
    """Say how often each label occurs, and what always saying the most frequent one gets; nothing of one label."""
    counts = Counter(labels)
    if len(counts) < 2:
        return []
    most_frequent, frequency = counts.most_common(1)[0]
    if are_numbers(counts) and len(counts) > LABELS_SHOWN:
        low, middle, high = np.quantile(labels, (0, 0.5, 1))
        return [f"labels: {len(counts)} different, from {low:.4g} to {high:.4g}, half of them up to {middle:.4g}"]
    in_order = sorted(counts, key=None if are_numbers(counts) else str)
    shown = ", ".join(f"{label}: {counts[label]}" for label in in_order[:LABELS_SHOWN])
    more = f", and {len(counts) - LABELS_SHOWN} more" if len(counts) > LABELS_SHOWN else ""
    return [f"labels: {shown}{more}; always saying {most_frequent} is right in {frequency / len(labels):.1%}"]


def describe_lengths(items: list[Item]) -> list[str]:
    """Say how far the length alone tells the label: of pairs, or of responses with a number as label."""
    if pairs := longer_is_better(items):
        share = fmean(is_better for _, is_better in pairs)
        line = f"length: the longer response is better in {share:.1%} of {len(pairs)} pairs whose lengths differ"
        if len(pairs) >= ROWS_FOR_QUARTERS:
            shares = [f"{value:.0%} (up to {length})" for length, value in quarters(pairs)]
            line += f"; by quarter of the difference in characters: {', '.join(shares)}"
        return [line]
    single = [item for item in items if len(item.responses) == 1 and item.label is not None]
    if len(single) < ROWS_FOR_QUARTERS or not are_numbers(item.label for item in single):
        return []
    points = [(len(item.responses[0]), item.label) for item in single]
    lengths, labels = zip(*points)
    if len(set(lengths)) < 2 or len(set(labels)) < 2:
        return []
    from scipy.stats import spearmanr  # only here: importing it takes more than a second

    means = [f"{value:.2f} (up to {length})" for length, value in quarters(points)]
    correlation = spearmanr(lengths, labels).statistic
    return [f"length: mean label by quarter of characters: {', '.join(means)}; rank correlation {correlation:.2f}"]


def describe_too_long(items: list[Item], tokens: list[int], limit: int) -> list[str]:
    if len(tokens) != len(items):
        raise ValueError(f"{len(tokens)} numbers of tokens for {len(items)} rows")
    too_long = [number for number, count in enumerate(tokens) if count > limit]
    if not too_long:
        return []
    longest = max(too_long, key=tokens.__getitem__)
    return [
        f"too long: {len(too_long)} x a response of more than {limit} tokens, "
        f"the longest {tokens[longest]} ({items[longest].source})"
    ]


def describe_scripts(items: list[Item]) -> list[str]:
    """Say in which scripts the responses are, or the prompts if the rows have none; nothing if all are in one."""
    counts = Counter(
        main_script(" ".join(text[:SCRIPT_PREFIX] for text in item.responses or (item.prompt,))) for item in items
    )
    del counts["none"]
    shown = ", ".join(f"{script} {number}" for script, number in counts.most_common(6))
    return [f"rows by script: {shown}"] if len(counts) > 1 else []


def describe_shared(items: list[Item], rows: list[Row]) -> list[str]:
    """Name the response that answers the most prompts, if they are three or more: two may be a coincidence."""
    shared = find_shared_responses(rows)
    if max(shared.values(), default=0) < 3:
        return []
    most = max(shared, key=shared.__getitem__)
    text = next(
        response
        for item, row in zip(items, rows)
        for response, number in zip(item.responses, row.words.responses)
        if number == most
    )
    shown = repr(text if len(text) <= 40 else text[:40] + "…")
    return [f"one response to several prompts: {len(shared)} x; {shown} answers {shared[most]} prompts"]
