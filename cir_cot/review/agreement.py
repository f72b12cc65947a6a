"""Agreement of raters on nominal values: Cohen's kappa for two, Krippendorff's alpha for any number with gaps."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import permutations


def cohen_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Return Cohen's kappa (1960): (agreement - agreement by chance) / (1 - agreement by chance).

    Args:
        pairs: what both raters said about each unit.

    Returns:
        1 for full agreement, 0 for that of chance; None where nothing can be said: no unit, or one value alone.
    """
    if not pairs:
        return None
    count = len(pairs)
    observed = sum(first == second for first, second in pairs) / count
    firsts = Counter(first for first, _ in pairs)
    seconds = Counter(second for _, second in pairs)
    chance = sum(firsts[value] * seconds[value] for value in firsts) / count**2
    return None if chance == 1 else (observed - chance) / (1 - chance)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Return Krippendorff's alpha for nominal values (2011): 1 - disagreement / disagreement by chance.

    Args:
        units: for each unit the values that its raters gave; units with fewer than two do not count.

    Returns:
        As `cohen_kappa`.
    """
    # The coincidences of values within units, each pair of raters in both orders.
    coincidences: Counter[tuple[Hashable, Hashable]] = Counter()
    for values in units:
        if len(values) < 2:
            continue
        for first, second in permutations(values, 2):
            coincidences[first, second] += 1 / (len(values) - 1)  # type: ignore[assignment]  # shares
    totals: Counter[Hashable] = Counter()
    for (first, _), share in coincidences.items():
        totals[first] += share
    count = sum(totals.values())
    differing = sum(share for (first, second), share in coincidences.items() if first != second)
    chance = count**2 - sum(total**2 for total in totals.values())
    if count < 2 or chance < 1e-9:
        return None
    return 1 - (count - 1) * differing / chance
