"""Fixed costs of a step's exchanges: one for each collection and sharding type in use.

TorchRec exchanges ids, rows and gradients separately for each sharding type of each collection,
whatever the number of their tables.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from infnet_dist.lookups import Home
from infnet_dist.planning.costs.options import ShardingOption
from infnet_dist.planning.costs.work import collectives_of
from infnet_dist.planning.measured import ExchangeCosts, Kind, Measured
from infnet_dist.planning.search.exchanges import Exchanges
from infnet_dist.planning.tables import PlanTable
from infnet_dist.planning.topology import Topology

# Types that aren't measured cost as much as one that is, but for their number of collectives.
_MEASURED_AS = {
    "column_wise": "table_wise",
    "table_column_wise": "table_wise",
    "table_row_wise": "row_wise",
    "grid_shard": "row_wise",
}


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


def exchange_of(table: PlanTable, option: ShardingOption) -> Exchange:
    """The exchange that a table takes part in."""
    width = table.embedding_dim if table.home == "sequence" else 0
    return Exchange(table.home, width, option.sharding_type)


def exchange_costs(home: Home, sharding_type: str, measured: Measured) -> ExchangeCosts:
    """The measured costs of a sharding type in a collection."""
    name = f"{kind_of(home)} {_MEASURED_AS.get(sharding_type, sharding_type)}"
    return measured.exchange.get(name, ExchangeCosts())


def kind_of(home: Home) -> Kind:
    """The kind under which a collection is measured."""
    return "sequence" if home == "sequence" else "bag"


def fixed_ms(exchange: Exchange, topology: Topology) -> float:
    """Milliseconds of an exchange without tables."""
    waiting = collectives_of(exchange.sharding_type) * topology.latency_ms
    measured = topology.measured
    if measured is None:
        return waiting
    own = exchange_costs(exchange.home, exchange.sharding_type, measured).fixed_ms
    return (own + waiting) * measured.slowdown(topology.workers_per_node)


def exchanges_of(
    pairs: Sequence[tuple[PlanTable, ShardingOption]], topology: Topology
) -> Exchanges:
    """The exchanges of all options, and their fixed costs."""
    found = [exchange_of(*pair) for pair in pairs]
    known = list(dict.fromkeys(found))
    collections = list(dict.fromkeys((one.home, one.width) for one in known))
    return Exchanges(
        of_option=np.array([known.index(one) for one in found], np.int64),
        fixed_ms=np.array([fixed_ms(one, topology) for one in known]),
        collection=np.array([collections.index((one.home, one.width)) for one in known], np.int64),
    )
