"""Times of sharding options from measured costs, where a topology has them."""

from collections.abc import Sequence

import numpy as np
from torchrec.distributed.planner.types import Perf

from infnet_dist.planning.costs.exchanges import exchange_costs, kind_of
from infnet_dist.planning.costs.options import ShardingOption
from infnet_dist.planning.costs.torchrec_estimates import Candidate, TorchRecEstimates
from infnet_dist.planning.costs.work import work_of
from infnet_dist.planning.measured import Measured
from infnet_dist.planning.tables import TableSet
from infnet_dist.planning.topology import Topology

_MEASURED_KERNELS = ("fused", "dense")


def measured_times(
    candidates: Sequence[Candidate],
    table_set: TableSet,
    topology: Topology,
    measured: Measured,
    torchrec: TorchRecEstimates,
) -> np.ndarray:
    """Milliseconds of a unit on each of its ranks: lookup and update, communication; [O, 2].

    Kernels that keep rows outside of HBM take as many times the measured time of the fused one as
    in TorchRec's estimate.
    """
    slowdown = measured.slowdown(topology.workers_per_node)
    times = np.array([_times(*one, table_set, topology, measured) for one in candidates])
    slower = [i for i, (_, o) in enumerate(candidates) if o.compute_kernel not in _MEASURED_KERNELS]
    if slower:
        fused = [
            (number, ShardingOption(option.sharding_type, "fused", option.columns))
            for number, option in (candidates[i] for i in slower)
        ]
        kernels = _compute_ms(torchrec.perf([candidates[i] for i in slower]))
        times[slower, 0] *= kernels / _compute_ms(torchrec.perf(fused))
    return times * slowdown


def _times(
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
    costs = exchange_costs(table.home, option.sharding_type, measured)
    exchange = float(costs.coefficients @ work.exchange_quantities)
    return rows, exchange + work.link_ms(option.sharding_type, topology)


def _compute_ms(perfs: Sequence[Perf]) -> np.ndarray:
    return np.array([p.fwd_compute + p.bwd_compute + p.prefetch_compute for p in perfs])
