"""Milliseconds of sharding options: TorchRec's estimates, or from a topology's measured costs.

Both get the fixed costs of exchanges, one for each collection and sharding type in use: TorchRec
exchanges their ids, rows and gradients separately, whatever the number of their tables.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from infnet_dist.lookups import Home
from infnet_dist.planning.costs.measured import Measured, kind_of
from infnet_dist.planning.costs.options import ShardingOption
from infnet_dist.planning.costs.torchrec_estimates import Candidate, TorchRecEstimates
from infnet_dist.planning.costs.work import collectives_of, work_of
from infnet_dist.planning.search.exchanges import Exchanges
from infnet_dist.planning.tables import PlanTable, TableSet
from infnet_dist.planning.topology import Topology

_MEASURED_KERNELS = ("fused", "dense")


def option_times(
    candidates: Sequence[Candidate],
    table_set: TableSet,
    topology: Topology,
    torchrec: TorchRecEstimates,
) -> np.ndarray:
    """Milliseconds of a unit on each of its ranks: lookup and update, communication; [O, 2]."""
    measured = topology.measured
    if measured is None:
        lookup = _torchrec_lookup_ms(candidates, torchrec)
        total = np.array([perf.total for perf in torchrec.perf(candidates)])
        return np.stack([lookup, total - lookup], axis=1)
    times = np.array([_measured_ms(*one, table_set, topology, measured) for one in candidates])
    slower = [i for i, (_, o) in enumerate(candidates) if o.compute_kernel not in _MEASURED_KERNELS]
    if slower:
        # Kernels that keep rows outside of HBM take as many times the measured time of the fused
        # one as in TorchRec's estimates.
        given = [candidates[i] for i in slower]
        fused = [
            (number, ShardingOption(option.sharding_type, "fused", option.columns))
            for number, option in given
        ]
        times[slower, 0] *= _torchrec_lookup_ms(given, torchrec)
        times[slower, 0] /= _torchrec_lookup_ms(fused, torchrec)
    return times * measured.slowdown(topology.workers_per_node)


def _torchrec_lookup_ms(candidates: Sequence[Candidate], torchrec: TorchRecEstimates) -> np.ndarray:
    perfs = torchrec.perf(candidates)
    return np.array([p.fwd_compute + p.bwd_compute + p.prefetch_compute for p in perfs])


def _measured_ms(
    number: int,
    option: ShardingOption,
    table_set: TableSet,
    topology: Topology,
    measured: Measured,
) -> tuple[float, float]:
    table = table_set.tables[number]
    work = work_of(table, option, topology, table_set.batch_size)
    kind = kind_of(table.home)
    rows = float(measured.lookup[kind].coefficients @ work.row_quantities)
    if option.sharding_type != "data_parallel":  # whose update counts as communication
        name = f"{table.data_type} {table_set.optimizer_of(table)}"
        update = float(measured.update[kind].coefficients @ work.row_quantities)
        rows += update * measured.update_factors.get(name, 1.0)
    costs = measured.exchange_of(table.home, option.sharding_type)
    exchange = float(costs.coefficients @ work.exchange_quantities)
    return rows, exchange + work.link_ms(option.sharding_type, topology)


class Exchange(NamedTuple):
    """One exchange of a step.

    Attributes:
        home: kind of the collection.
        width: of the rows of a collection of sequences; 0: any, for bags.
        sharding_type: of its tables.
    """

    home: Home
    width: int
    sharding_type: str

    def fixed_ms(self, topology: Topology) -> float:
        """Milliseconds of the exchange without tables."""
        waiting = collectives_of(self.sharding_type) * topology.latency_ms
        measured = topology.measured
        if measured is None:
            return waiting
        own = measured.exchange_of(self.home, self.sharding_type).fixed_ms
        return (own + waiting) * measured.slowdown(topology.workers_per_node)


def exchanges_of(
    pairs: Sequence[tuple[PlanTable, ShardingOption]], topology: Topology
) -> Exchanges:
    """The exchanges that tables take part in under their options, and the fixed costs."""
    found = [
        Exchange(
            table.home,
            table.embedding_dim if table.home == "sequence" else 0,
            option.sharding_type,
        )
        for table, option in pairs
    ]
    known = list(dict.fromkeys(found))
    index = {one: number for number, one in enumerate(known)}
    collections = list(dict.fromkeys((one.home, one.width) for one in known))
    return Exchanges(
        of_option=np.array([index[one] for one in found], np.int64),
        fixed_ms=np.array([one.fixed_ms(topology) for one in known]),
        collection=np.array([collections.index((one.home, one.width)) for one in known], np.int64),
    )
