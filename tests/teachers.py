"""A teacher with a known fault, as a server: it judges the demo world rightly, but errs on a share of the rows.

Which rows, and how, is a function of the prompt and the seed, so it says the same again. Of a single response it takes
one property that is met for one that is not, or the other way round, and its score fits that. Of two responses it draws
another verdict, whatever it has found.
"""

import random

from common.demo.world import PREFERENCE_RUBRIC, SCORE_RUBRIC
from generative_pairwise import prompt as pairwise
from generative_pointwise import prompt as pointwise

SHARE = 0.2


def noisy_scorer(rows: list[dict], share: float = SHARE, seed: int = 0) -> dict[str, str]:
    """Return by each prompt of the demo's scored rows what the teacher answers."""
    answers = {}
    for judged in map(pointwise.read_row, rows):
        (turn,) = pointwise.ask(judged.dialogue, judged.response, SCORE_RUBRIC)
        chance, facts = random.Random(f"{seed} {turn['content']}"), judged.reasoning.split(", ")
        if chance.random() < share:
            place = chance.randrange(len(facts))
            fact, _, met = facts[place].rpartition(" ")
            facts[place] = f"{fact} {'no' if met == 'yes' else 'yes'}"
        score = sum(fact.endswith("yes") for fact in facts)
        answers[turn["content"]] = pointwise.write(score, ", ".join(facts))
    return answers


def noisy_comparer(rows: list[dict], share: float = SHARE, seed: int = 0) -> dict[str, str]:
    """Return by each prompt of the demo's compared rows, in both orders, what the teacher answers."""
    answers = {}
    for judged in map(pairwise.read_row, rows):
        for shown in (judged, judged.swap()):
            (turn,) = pairwise.ask(shown.dialogue, shown.response_a, shown.response_b, PREFERENCE_RUBRIC)
            chance, said = random.Random(f"{seed} {turn['content']}"), shown.label
            if chance.random() < share:
                said = chance.choice([other for other in pairwise.PREFERENCES if other != said])
            reasoning = judged.reasoning if shown is judged else in_other_order(judged.reasoning)
            answers[turn["content"]] = pairwise.write(said, reasoning)
    return answers


def in_other_order(reasoning: str) -> str:
    """Return "A two/two A, …. B two/four no, …." with the responses in the other order."""
    first, second = reasoning.removesuffix(".").split(". ")
    letters = str.maketrans("AB", "BA")
    return f"{second.translate(letters)}. {first.translate(letters)}."
