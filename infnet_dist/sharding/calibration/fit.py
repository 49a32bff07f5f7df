"""Fits measured times to quantities of work: non-negative least squares of relative errors."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from infnet_dist.planning.costs.work import collectives_of
from infnet_dist.planning.measured import ExchangeCosts, RowCosts
from infnet_dist.planning.topology import Topology
from infnet_dist.sharding.calibration.cases import Case

FloatArray = npt.NDArray[np.float64]

_LEAST_SHARE = 0.1  # of an exchange's time that its links can't explain


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
