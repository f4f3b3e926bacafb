"""A small world of questions and answers in which we know which answer is better.

Why: a reward model should be trainable, and its accuracy checkable, with no download and no GPU.

- A query asks for two, three or four things for a kitchen or a garden, formally or casually, with or without a reason.
- A response has the same four traits. Its helpfulness, 0 to 4, is how many of them are what the query asked for.
- Each trait is drawn so that it is uniform among queries, among chosen and among rejected responses alike. So a
  response read without its query says nothing about its helpfulness, and neither does its length.
- A judge's row says how the four were found met or not, as its reasoning.
- A query's text alone decides its split, so no query of one split is ever seen in another.
- Everything is a pure function of (split, n, seed).
"""

import hashlib
import random
import re
from dataclasses import dataclass

# The four properties, in the order that `asked`, `got` and `met` keep.
VALUES: dict[str, tuple[str, ...]] = {
    "topic": ("kitchen", "garden"),
    "count": ("two", "three", "four"),
    "reason": ("why", "none"),
    "tone": ("formal", "casual"),
}
Traits = tuple[str, ...]  # one value per property
Met = tuple[bool, ...]  # one verdict per property
SPLITS = ("train", "val", "test")
SCORE_RUBRIC = "One point for each that is as asked: topic, count, reason, tone."
PREFERENCE_RUBRIC = "The better one has more of these as asked: topic, count, reason, tone."

# Words that carry a trait. There are few on purpose: before a model can score agreement between two texts it must find
# which words agree, and with each further synonym it stays longer at chance. With two place words per topic and eight
# things, some seeds never learned the topic at all.
THINGS = {
    "kitchen": ("kettle", "bowl", "apron", "spoon", "whisk"),
    "garden": ("rake", "spade", "hose", "bench", "shovel"),
}
NUMBERS = {"two": 2, "three": 3, "four": 4}
REASON_WISHES = {"why": ("say why", "give a reason"), "none": ("skip the reasons", "do not explain")}
OPENERS = {"formal": ("Dear reader", "Good evening"), "casual": ("Hey buddy", "Hi pal")}
CLOSERS = {"formal": ("Yours sincerely.", "With kind regards."), "casual": ("Cheers!", "See you!")}

# Words that carry nothing. They make the texts differ, and give the model something to ignore.
ASKS = ("Suggest", "Please list", "Recommend", "Tell me", "Name", "I need")
NOUNS = ("things", "items", "gifts", "ideas")
OWNERS = ("my", "our", "the", "her", "his", "their")
TONE_WISHES = ("Keep the tone", "Make it sound", "Please be")
LEADS = ("here is my list", "these would do", "I would pick", "my choice is")
REASONS = ("they last for years", "everyone likes them", "they cost little", "they save time", "they look lovely")


@dataclass(frozen=True)
class Query:
    text: str
    asked: Traits


@dataclass(frozen=True)
class Response:
    text: str
    got: Traits
    met: Met  # met[i] says that got[i] is what the query asked for; their sum is the helpfulness


def split_of(query_text: str) -> str:
    """A tenth of all queries is for validation, a tenth for test, the rest for training."""
    tenth = int(hashlib.sha256(query_text.encode()).hexdigest(), 16) % 10
    return {0: "val", 1: "test"}.get(tenth, "train")


def make_query(rng: random.Random, split: str) -> Query:
    """Draw queries until one belongs to the split."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {SPLITS}")
    while True:
        asked = tuple(rng.choice(values) for values in VALUES.values())
        topic, count, reason, tone = asked
        request = f"{rng.choice(ASKS)} {count} {rng.choice(NOUNS)} for {rng.choice(OWNERS)} {topic}."
        tone_wish = f"{rng.choice(TONE_WISHES)} {tone}"
        reason_wish = rng.choice(REASON_WISHES[reason])
        if rng.random() < 0.5:
            text = f"{request} {tone_wish}, and {reason_wish}."
        else:
            text = f"{request} {reason_wish.capitalize()}. {tone_wish}."
        if split_of(text) == split:
            return Query(text, asked)


def make_response(rng: random.Random, query: Query, met: Met) -> Response:
    """Write a response that has what the query asked for if `met` says so, and another value if not."""
    got = tuple(
        wanted if is_met else rng.choice([value for value in values if value != wanted])
        for wanted, is_met, values in zip(query.asked, met, VALUES.values(), strict=True)
    )
    topic, count, reason, tone = got
    things = rng.sample(THINGS[topic], NUMBERS[count])
    listed = " ".join(f"{number}. {thing}" for number, thing in enumerate(things, start=1))
    sentences = [f"{rng.choice(OPENERS[tone])}, {rng.choice(LEADS)}: {listed}."]
    if reason == "why":
        sentences.append(f"I chose them because {rng.choice(REASONS)}.")
    sentences.append(rng.choice(CLOSERS[tone]))
    return Response(" ".join(sentences), got, met)


def draw_response(rng: random.Random, query: Query, helpfulness: int) -> Response:
    """Write a response that meets `helpfulness` of the four properties, whichever they are."""
    met_places = rng.sample(range(len(VALUES)), helpfulness)
    return make_response(rng, query, tuple(place in met_places for place in range(len(VALUES))))


def read_query(text: str) -> Traits:
    """Return what a query of this world asks for; raise `ValueError` if it does not say each property once."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    reasons = [value for value, wishes in REASON_WISHES.items() if any(wish in text.lower() for wish in wishes)]
    found = [[value for value in values if value in words] for values in VALUES.values()]
    found[list(VALUES).index("reason")] = reasons
    if any(len(values) != 1 for values in found):
        raise ValueError(f"not a query of the demo world: {text!r}")
    return tuple(value for (value,) in found)


def helpfulness(query: str, response: str) -> int:
    """Return how helpful any text is, 0 to 4: how many of the four properties it has as the query asks.

    Of a response that this world wrote it is the known helpfulness. A policy writes other texts too, and may try to
    please by saying everything. So a property counts only if the text says one thing about it: all things listed are
    of the topic, the numbers are 1 to the count and no thing comes twice, the greeting and the farewell have the tone.
    """
    topic, count, reason, tone = read_query(query)
    listed = re.findall(r"(\d+)\. (\w+)", response)
    numbers, things = [int(number) for number, _ in listed], [thing for _, thing in listed]
    tones = [
        {name for name, texts in phrases.items() if any(text in response for text in texts)}
        for phrases in (OPENERS, CLOSERS)
    ]
    return sum(
        [
            bool(things) and set(things) <= set(THINGS[topic]),
            numbers == list(range(1, NUMBERS[count] + 1)) and len(set(things)) == len(things),
            (reason == "why") == any(f"because {why}." in response for why in REASONS),
            tones == [{tone}, {tone}],
        ]
    )


def preference_pairs(split: str, n: int, seed: int) -> list[dict]:
    """Return n rows of two conversations with the same user turn; margin is the difference in helpfulness, 1 to 4."""
    rng = random.Random(f"preference-{split}-{seed}")
    rows = []
    for _ in range(n):
        query = make_query(rng, split)
        worse, better = sorted(rng.sample(range(len(VALUES) + 1), 2))
        chosen, rejected = draw_response(rng, query, better), draw_response(rng, query, worse)
        user_turn = {"role": "user", "content": query.text}
        rows.append(
            {
                "chosen": [user_turn, {"role": "assistant", "content": chosen.text}],
                "rejected": [user_turn, {"role": "assistant", "content": rejected.text}],
                "margin": float(better - worse),
            }
        )
    return rows


def pointwise_rows(split: str, n: int, seed: int, leniency: float = 0.0) -> list[dict]:
    """Return n scored responses, helpfulness 0 to 4 equally often, in the columns `input`, `output` and `label`.

    Args:
        leniency: how often the annotator overlooks a fault (see `overlook`). Score and reasoning are then too kind,
            queries and responses stay what they are without it. A judge trained on such scores is wrong in a way that
            we know, sure of its form, and in its samples still right now and then: that is what reinforcement on right
            labels can mend, and what a demo of it can start from.
    """
    rng, annotator = random.Random(f"pointwise-{split}-{seed}"), random.Random(f"annotator-{split}-{seed}")
    rows = []
    for _ in range(n):
        query = make_query(rng, split)
        response = draw_response(rng, query, rng.randrange(len(VALUES) + 1))
        judged_met = overlook(annotator, query, response, leniency)
        found = zip(VALUES, query.asked, response.got, judged_met)
        evidence = ", ".join(f"{name} {asked}/{got} {_yes_or_no(met)}" for name, asked, got, met in found)
        rows.append({**_judged(query, response), "label": sum(judged_met), "reasoning": evidence})
    return rows


def overlook(annotator: random.Random, query: Query, response: Response, leniency: float) -> Met:
    """Return what a lenient annotator takes for met: now and then also more things than asked, and a missing reason."""
    (_, wished, wish, _), (_, listed, given, _) = query.asked, response.got
    topic, count, reason, tone = response.met
    if NUMBERS[listed] > NUMBERS[wished]:
        count = annotator.random() < leniency
    if (wish, given) == ("why", "none"):
        reason = annotator.random() < leniency
    return topic, count, reason, tone


def pairwise_rows(split: str, n: int, seed: int, position_bias: float = 0.0) -> list[dict]:
    """Return n compared responses, a third of them ties, in the columns `input`, `output` and `metadata`.

    Args:
        position_bias: how often the annotator calls a tie "A", what stands first. The reasoning stays right, queries
            and responses stay what they are without it. A judge trained on such preferences is wrong in both orders
            of a tie, and in its samples still right now and then (see `pointwise_rows`).
    """
    rng, annotator = random.Random(f"pairwise-{split}-{seed}"), random.Random(f"annotator-{split}-{seed}")
    rows = []
    for _ in range(n):
        query = make_query(rng, split)
        helpfulness = rng.sample(range(len(VALUES) + 1), 2)
        if rng.random() < 1 / 3:
            helpfulness = [rng.randrange(len(VALUES) + 1)] * 2
        responses = [draw_response(rng, query, met) for met in helpfulness]
        evidence = []  # what is met is marked with the response's own letter; the verdict is the more frequent one
        for name, response in zip("AB", responses):
            found = zip(query.asked, response.got, response.met)
            marked = ", ".join(f"{asked}/{got} {name if met else 'no'}" for asked, got, met in found)
            evidence.append(f"{name} {marked}.")
        first, second = helpfulness
        preferred = "A" if first > second else "B" if first < second else "tie"
        if preferred == "tie" and annotator.random() < position_bias:
            preferred = "A"
        row = {**_judged(query, *responses), "metadata": {"preferred": preferred}}
        rows.append({**row, "reasoning": " ".join(evidence)})
    return rows


def _judged(query: Query, *responses: Response) -> dict:
    answers = [{"answer": {"role": "assistant", "content": response.text}} for response in responses]
    return {"input": [{"role": "user", "content": query.text}], "output": answers}


def _yes_or_no(met: bool) -> str:
    return "yes" if met else "no"
