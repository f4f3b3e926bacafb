"""From the verdicts on every two of several responses to an order of the responses. Pure."""

from itertools import permutations

from .prompt import SWAPPED, Preference

POINTS: dict[Preference, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}  # for the response shown first


def win_rates(count: int, verdicts: list[Preference | None]) -> list[float | None]:
    """Return each response's win rate, 0 to 1; None if no comparison with it had a verdict.

    Args:
        verdicts: on the responses in pairs, in the order of `itertools.permutations(range(count), 2)`, so in both
        orders. If one of the two is missing the comparison is left out in both: it is no draw, and one order alone
        would favour what stands first.
    """
    said = dict(zip(permutations(range(count), 2), verdicts, strict=True))
    points = [[] for _ in range(count)]
    for (first, second), verdict in said.items():
        if verdict is not None and said[second, first] is not None:
            points[first].append(POINTS[verdict])
            points[second].append(POINTS[SWAPPED[verdict]])
    return [sum(won) / len(won) if won else None for won in points]


def ranks(rates: list[float | None]) -> list[int | None]:
    """Return each response's place, 1 the best. Equal rates share the better place; None has none."""
    return [None if rate is None else 1 + sum(other > rate for other in rates if other is not None) for rate in rates]
