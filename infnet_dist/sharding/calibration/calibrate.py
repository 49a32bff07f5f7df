"""Measures the costs of a step's parts on the workers at hand, for the planner.

collectives      all-to-all and all-reduce of few and of many bytes
lookup, update   of sequences and bags: few and many ids, small and large tables, two widths
exchange         of each sharding type: few and many tables, ids and bytes
"""

import datetime
import os
import platform
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torchrec
from scipy.optimize import nnls

from infnet_dist.config.tables import ShardingTypeName, SparseOptimizerName
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.io.console import show_progress
from infnet_dist.model.sparse import DATA_TYPES
from infnet_dist.planning.costs.measured import ExchangeCosts, Kind, Measured, RowCosts
from infnet_dist.planning.costs.work import collectives_of
from infnet_dist.planning.topology import Topology
from infnet_dist.sharding.calibration.cases import Case, ShardedCase
from infnet_dist.sharding.calibration.timing import Phases, measure_links, measure_phases

FloatArray = npt.NDArray[np.float64]

KINDS: tuple[Kind, ...] = ("sequence", "bag")
_Shape = tuple[int, int, int, int, int]
EXCHANGES: tuple[tuple[Kind, ShardingTypeName], ...] = (
    *(("sequence", "table_wise"), ("sequence", "row_wise")),
    *(("bag", "table_wise"), ("bag", "row_wise"), ("bag", "data_parallel")),
)
# Tables (per rank, if table_wise), rows, width, batch size, length.
_LOOKUPS = (
    *((1, 1_000, 16, 64, 1), (8, 1_000, 16, 64, 1)),
    *((4, 1_000, 16, 512, 10), (4, 1_000, 64, 512, 10)),
    *((4, 100_000, 16, 512, 10), (4, 100_000, 64, 512, 10), (4, 100_000, 64, 512, 1)),
)
_VARIED = 5  # index of the case that is measured with other types and optimizers as well
_SHARDED = (
    *((1, 1_000, 16, 64, 1), (8, 1_000, 16, 64, 1), (8, 1_000, 64, 512, 1)),
    *((8, 1_000, 16, 512, 10), (8, 1_000, 64, 512, 10), (2, 1_000, 64, 512, 10)),
)
_DATA_PARALLEL = (
    *((1, 1_000, 16, 64, 1), (8, 1_000, 16, 64, 1), (8, 1_000, 16, 512, 10)),
    *((4, 20_000, 16, 64, 1), (4, 20_000, 64, 64, 1)),
)
_ROUNDS = 2  # apart in time: other work on the machine spoils one of them
_LEAST_SHARE = 0.1  # of an exchange's time that its links can't explain
_OPTIMIZERS: dict[str, tuple[SparseOptimizerName, ...]] = {
    "cpu": ("rowwise_adagrad", "adagrad", "sgd"),
    "cuda": ("rowwise_adagrad", "adagrad", "sgd", "adam", "partial_rowwise_adam", "lamb"),
}


def calibrate(context: WorkerContext, *, topology: Topology) -> Topology:
    """The topology with measured costs and bandwidths; every rank calls it.

    Args:
        context: this worker.
        topology: the workers at hand; its bandwidth between nodes is kept if there is one node.
    """
    device = context.device
    lookups = {kind: _cases(kind, "table_wise", _LOOKUPS, device) for kind in KINDS}
    exchanges = {
        f"{kind} {sharding_type}": _cases(
            kind,
            sharding_type,
            _DATA_PARALLEL if sharding_type == "data_parallel" else _SHARDED,
            device,
        )
        for kind, sharding_type in EXCHANGES
    }
    varied = lookups["bag"][_VARIED]
    variants = {
        f"{data_type} {optimizer}": varied._replace(data_type=data_type, optimizer=optimizer)
        for data_type in DATA_TYPES
        for optimizer in _OPTIMIZERS[device.type]
    }
    topology = measure_links(topology.model_copy(update={"measured": None}), context)
    groups = [*lookups.values(), *exchanges.values(), list(variants.values())]
    times = _measure([case for cases in groups for case in cases], topology, context)

    def rows(part: str) -> dict[Kind, RowCosts]:
        return {
            kind: fit_rows(cases, [getattr(times[one], part) for one in cases], topology)
            for kind, cases in lookups.items()
        }

    measured = Measured(
        num_nodes=topology.num_nodes,
        workers_per_node=topology.workers_per_node,
        cores=(os.cpu_count() or 0) if device.type == "cpu" else 0,
        lookup=rows("lookup"),
        update=rows("update"),
        update_factors={n: times[one].update / times[varied].update for n, one in variants.items()},
        exchange={
            name: fit_exchange(cases, [_exchange_ms(one, times[one]) for one in cases], topology)
            for name, cases in exchanges.items()
        },
        made_with=_made_with(context),
    )
    return topology.model_copy(update={"measured": measured})


def _cases(
    kind: Kind, sharding_type: ShardingTypeName, shapes: Sequence[_Shape], device: torch.device
) -> list[Case]:
    return [Case(kind, sharding_type, *shape).scaled(device) for shape in shapes]


def _exchange_ms(case: Case, phases: Phases) -> float:
    if case.sharding_type == "data_parallel":  # the all-reduce is part of backward
        return phases.exchange + phases.update
    return phases.exchange


def _measure(
    cases: Sequence[Case], topology: Topology, context: WorkerContext
) -> dict[Case, Phases]:
    """The phases of each distinct case, the shortest of several rounds."""
    found: dict[Case, Phases] = {}
    rounds = _ROUNDS * list(dict.fromkeys(cases))
    for number, case in enumerate(rounds):
        phases = measure_phases(ShardedCase(case, topology, context), context)
        found[case] = Phases(*map(min, phases, found.get(case, phases)))
        if context.is_first:
            show_progress("calibrate", "case", number + 1, len(rounds))
    return found


def _made_with(context: WorkerContext) -> dict[str, str]:
    gpu = context.device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(context.device) if gpu else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchrec": torchrec.__version__,
    }


# ---- fitting: non-negative least squares of relative errors


def fit_costs(quantities: FloatArray, times_ms: FloatArray) -> FloatArray:
    """Costs c >= 0, float64 [C], with the least squares of (quantities [N, C] @ c / times - 1)."""
    scale = np.maximum(np.abs(quantities).max(axis=0), 1e-12)
    weighted = quantities / scale / times_ms[:, None]
    return np.asarray(nnls(weighted, np.ones(len(times_ms)))[0] / scale)


def fit_rows(cases: Sequence[Case], times_ms: Sequence[float], topology: Topology) -> RowCosts:
    """Costs of a lookup or an update."""
    quantities = np.array([case.work(topology).row_quantities for case in cases])
    costs = fit_costs(quantities, np.array(times_ms))
    return RowCosts(**dict(zip(RowCosts.model_fields, costs.tolist(), strict=True)))


def fit_exchange(
    cases: Sequence[Case], times_ms: Sequence[float], topology: Topology
) -> ExchangeCosts:
    """Costs of a sharding type, beside its bytes on links and the latency of its collectives.

    Args:
        cases: of the same sharding type.
        times_ms: measured.
        topology: with the measured latency and bandwidths.
    """
    times, quantities = [], []
    for case, time in zip(cases, times_ms, strict=True):
        work = case.work(topology)
        waiting = collectives_of(case.sharding_type) * topology.latency_ms
        waiting += work.link_ms(case.sharding_type, topology)
        times.append(max(time - waiting, _LEAST_SHARE * time))
        quantities.append([1.0, *work.exchange_quantities])
    costs = fit_costs(np.array(quantities), np.array(times))
    return ExchangeCosts(**dict(zip(ExchangeCosts.model_fields, costs.tolist(), strict=True)))
