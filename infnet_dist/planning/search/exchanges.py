"""Searches with the fixed costs of exchanges: a plan with fewer of them may be the faster one."""

from dataclasses import dataclass

import numpy as np

from infnet_dist.planning.search.lower_bound import lower_bound
from infnet_dist.planning.search.placement import (
    Cluster,
    FloatArray,
    IntArray,
    OptionArrays,
    Placement,
)
from infnet_dist.planning.search.search import search

_GAIN = 1 - 1e-9


@dataclass(frozen=True)
class Exchanges:
    """The exchanges that options take part in, E.

    Attributes:
        of_option: int64 [O], index of the exchange.
        fixed_ms: float64 [E], what an exchange adds to every rank's time if a table uses it.
        collection: int64 [E], index of its collection.
    """

    of_option: IntArray
    fixed_ms: FloatArray
    collection: IntArray

    def total_ms(self, options: IntArray) -> float:
        """Milliseconds of the exchanges that these options use."""
        return float(self.fixed_ms[np.unique(self.of_option[options])].sum())

    @property
    def least_ms(self) -> float:
        """Milliseconds of exchanges that no plan avoids: the cheapest one of each collection."""
        used = np.unique(self.of_option)
        return sum(
            float(self.fixed_ms[used[self.collection[used] == one]].min())
            for one in np.unique(self.collection[used])
        )

    def subset(self, options: IntArray) -> "Exchanges":
        """Of these options only."""
        return Exchanges(self.of_option[options], self.fixed_ms, self.collection)


def search_exchanges(
    options: OptionArrays, exchanges: Exchanges, cluster: Cluster
) -> tuple[Placement | None, float]:
    """As `search`; the step's time is that of the busiest rank, plus the exchanges in use.

    The search knows nothing of fixed costs. It is repeated without the options of one exchange
    after the other, the costliest first, as long as that makes a step shorter.

    Returns:
        The placement, None if none fits; and a lower bound on a step's time, ms.
    """
    best, bound = search(options, cluster)
    if best is None:
        return None, bound
    allowed = np.arange(len(options.table))
    least = _step_ms(best, exchanges)
    tried = True
    while tried:
        tried = False
        used = np.unique(exchanges.of_option[best.option])
        used = used[exchanges.fixed_ms[used] > 0]
        for exchange in used[np.argsort(-exchanges.fixed_ms[used], kind="stable")]:
            rest = allowed[exchanges.of_option[allowed] != exchange]
            found = _without(options, exchanges, cluster, rest, least)
            if found is not None:
                best, allowed, least, tried = found, rest, _step_ms(found, exchanges), True
                break
    return best, bound + exchanges.least_ms


def _without(
    options: OptionArrays, exchanges: Exchanges, cluster: Cluster, rest: IntArray, least: float
) -> Placement | None:
    """A placement with the options `rest` alone, if one is found that takes less than `least`."""
    if len(np.unique(options.table[rest])) < len(options.first):
        return None
    subset, fixed = options.subset(rest), exchanges.subset(rest)
    if lower_bound(subset, cluster)[0] + fixed.least_ms >= least * _GAIN:
        return None
    found, _ = search(subset, cluster)
    if found is None:
        return None
    placement = Placement(rest[found.option], found.units, found.time, found.memory)
    return placement if _step_ms(placement, exchanges) < least * _GAIN else None


def _step_ms(placement: Placement, exchanges: Exchanges) -> float:
    return placement.bottleneck + exchanges.total_ms(placement.option)
