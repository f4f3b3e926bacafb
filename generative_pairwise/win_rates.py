"""From the verdicts on every two of several responses to an order of the responses. Pure."""

from itertools import permutations
from statistics import mean

from .prompt import Preference

POINTS: dict[Preference, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}  # for the response shown first


def expected_points(probabilities: dict[Preference, float]) -> float:
    """Return how probably the response shown first is the better one, a tie being one half."""
    return sum(POINTS[verdict] * share for verdict, share in probabilities.items())


def win_rates(
    count: int,
    verdicts: list[Preference | None],
    points: list[float | None] | None = None,
    all_count: bool = False,
) -> list[float | None]:
    """Return each response's win rate, 0 to 1; None if no comparison with it had a verdict.

    Args:
        verdicts: on the responses in pairs, in the order of `itertools.permutations(range(count), 2)`, so in both
        orders. If one of the two is missing the comparison is left out in both: it is no draw, and one order alone
        would favour what stands first.
        points: of each comparison, for the response shown first; by default those of its verdict.
        all_count: the rate is the share of all comparisons, so one that is left out is no gain for either response.
    """
    orders = list(permutations(range(count), 2))
    said = dict(zip(orders, verdicts, strict=True))
    won: list[list[float]] = [[] for _ in range(count)]
    for place, (first, second) in enumerate(orders):
        if said[first, second] is not None and said[second, first] is not None:
            gained = POINTS[verdicts[place]] if points is None else points[place]
            won[first].append(gained)
            won[second].append(1 - gained)
    asked = 2 * (count - 1)  # comparisons of a response, in both orders
    return [sum(gained) / (asked if all_count else len(gained)) if gained else None for gained in won]


def left_out(count: int, verdicts: list[Preference | None]) -> list[float]:
    """Return for each response the share of its comparisons that `win_rates` leaves out, 0 to 1."""
    said = dict(zip(permutations(range(count), 2), verdicts, strict=True))
    return [
        mean(None in (said[one, other], said[other, one]) for other in range(count) if other != one)
        for one in range(count)
    ]


def ranks(rates: list[float | None]) -> list[int | None]:
    """Return each response's place, 1 the best. Equal rates share the better place; None has none."""
    return [None if rate is None else 1 + sum(other > rate for other in rates if other is not None) for rate in rates]
