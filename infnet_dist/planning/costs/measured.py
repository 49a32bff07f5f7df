"""Measured costs of a step's parts: what `infnet plan calibrate` adds to a topology.

All are linear: milliseconds = the sum of coefficients times quantities of work on one rank.
"""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infnet_dist.io.parsing import Name
from infnet_dist.lookups import Home
from infnet_dist.planning.tables import Integer, Number

Kind = Literal["sequence", "bag"]  # weighted bags count as bags

# Types that aren't measured cost as much as one that is, but for their number of collectives.
_MEASURED_AS = {
    "column_wise": "table_wise",
    "table_column_wise": "table_wise",
    "table_row_wise": "row_wise",
    "grid_shard": "row_wise",
}


def kind_of(home: Home) -> Kind:
    """The kind under which a collection is measured."""
    return "sequence" if home == "sequence" else "bag"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RowCosts(_Entry):
    """Milliseconds of a lookup, or of an update, per unit of its work on a rank."""

    feature_ms: Number = Field(0.0, ge=0, description="per feature that looks rows up")
    id_ms: Number = Field(0.0, ge=0, description="per id")
    id_byte_ms: Number = Field(0.0, ge=0, description="per id and byte of its row")
    row_ms: Number = Field(0.0, ge=0, description="per distinct row")
    row_byte_ms: Number = Field(0.0, ge=0, description="per byte of distinct rows")

    @property
    def coefficients(self) -> np.ndarray:
        """Float64 [5], in the order of the fields."""
        return np.array(list(self.model_dump().values()))


class ExchangeCosts(_Entry):
    """Milliseconds that a sharding type takes beside lookup, update and the links between workers.

    They are those of one collection: regrouping ids and rows, and the software of its collectives.
    """

    fixed_ms: Number = Field(0.0, ge=0, description="per collection")
    feature_ms: Number = Field(0.0, ge=0, description="per feature on a rank")
    id_ms: Number = Field(0.0, ge=0, description="per id on a rank")
    byte_ms: Number = Field(
        0.0, ge=0, description="per float32 byte that a rank gives to the exchange of outputs"
    )

    @property
    def coefficients(self) -> np.ndarray:
        """Float64 [3], all but `fixed_ms`."""
        return np.array([self.feature_ms, self.id_ms, self.byte_ms])


class Measured(_Entry):
    """What was measured, on how many workers.

    Attributes:
        num_nodes: nodes of the measurement.
        workers_per_node: workers on each.
        cores: CPU cores of a node; more workers than cores are slower. 0: not known, or GPUs.
        lookup: forward, by kind.
        update: backward into the rows, float32 and row-wise Adagrad, by kind.
        update_factors: time of an update by "data_type optimizer", e.g. "fp16 rowwise_adagrad",
            over that of fp32 rowwise_adagrad; 1 if it isn't there.
        exchange: by "kind sharding_type", e.g. "bag row_wise".
        made_with: date, versions, devices.
    """

    num_nodes: Integer = Field(ge=1)
    workers_per_node: Integer = Field(ge=1)
    cores: Integer = Field(0, ge=0)
    lookup: dict[Kind, RowCosts]
    update: dict[Kind, RowCosts]
    update_factors: dict[Name, Number] = Field(default_factory=dict)
    exchange: dict[Name, ExchangeCosts]
    made_with: dict[str, str] = Field(default_factory=dict)

    def exchange_of(self, home: Home, sharding_type: str) -> ExchangeCosts:
        """The costs of a sharding type in a collection."""
        name = f"{kind_of(home)} {_MEASURED_AS.get(sharding_type, sharding_type)}"
        return self.exchange.get(name, ExchangeCosts())

    def sharing(self, workers_per_node: int) -> float:
        """Workers that share a core, at least 1."""
        return max(workers_per_node / self.cores, 1.0) if self.cores else 1.0

    def slowdown(self, workers_per_node: int) -> float:
        """Factor on all times where more workers share a core than did in the measurement."""
        return self.sharing(workers_per_node) / self.sharing(self.workers_per_node)
