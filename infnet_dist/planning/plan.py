"""The plan file: which tables it is for, on which workers, and where every shard lives.

A plan is a reviewed artefact. It holds its whole input (tables, topology), so that it can be
checked, extended and made again; the same input gives the same bytes.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torchrec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infnet_dist.errors import PlanError
from infnet_dist.io.parsing import MalformedError, Name, checked, first_fault, parse_json
from infnet_dist.planning.costs import block_rows, home_tier, row_bytes
from infnet_dist.planning.options import ShardingOption
from infnet_dist.planning.tables import KernelName, PlanTable, ShardingTypeName, TableSet
from infnet_dist.planning.topology import TIERS, Topology

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
BY_NODE = ("table_row_wise", "grid_shard")
BY_ALL = ("row_wise", "data_parallel")
MAX_PLAN_BYTES = 2**28
_MOST_LINES = 5  # of a plan's differences in an error
UNPOOLED = ("table_wise", "row_wise", "column_wise")  # what sequence tables can be

Count = Annotated[int, Field(ge=0, lt=2**63)]
Milliseconds = Annotated[float, Field(ge=0, le=1e15)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MadeFor(_Entry):
    """What a plan was made for, and by which cost model."""

    topology: Topology
    tables: TableSet
    torchrec_version: Name = torchrec.__version__


class Shard(NamedTuple):
    """A rectangle of a table on one rank; it may be empty."""

    rank: int
    row_offset: int
    column_offset: int
    rows: int
    columns: int


class TablePlan(_Entry):
    """How one table is sharded.

    Attributes:
        sharding_type: TorchRec's name.
        compute_kernel: TorchRec's name.
        columns: floats of a shard.
        cache_share: share of the rows cached in HBM; fused_uvm_caching only.
        places: the rank of each column shard (table_wise: one), or the node of each
            (table_row_wise, grid_shard); empty for row_wise and data_parallel: all ranks.
        lookup_ms: of one shard: forward, backward and prefetch, as TorchRec estimates.
        comms_ms: of one shard: forward and backward, likewise.
        memory_bytes: of all shards, by tier: rows, optimizer state, a cache of them, buffers.
    """

    sharding_type: ShardingTypeName
    compute_kernel: KernelName
    columns: int = Field(ge=1, le=2**20)
    cache_share: float | None = Field(None, ge=0, le=1)
    places: tuple[Count, ...] = ()
    lookup_ms: Milliseconds
    comms_ms: Milliseconds
    memory_bytes: dict[Literal["hbm", "ddr", "ssd"], Count]

    @property
    def sharding_option(self) -> ShardingOption:
        """The sharding without its place."""
        return ShardingOption(
            self.sharding_type, self.compute_kernel, self.columns, self.cache_share
        )

    @property
    def time_ms(self) -> float:
        """Milliseconds that a shard costs its rank."""
        return self.lookup_ms + self.comms_ms


class RankEstimates(_Entry):
    """Estimates for every rank, in the order of ranks.

    The bytes of a tier hold rows, optimizer state, a cache of them, and buffers (inputs, outputs);
    `stored_bytes` are the rows and their optimizer state alone, on whatever tier, and so also the
    bytes of the copy from which a checkpoint is written in the background (`Plan.memory`).
    """

    lookup_ms: tuple[Milliseconds, ...]
    comms_ms: tuple[Milliseconds, ...]
    hbm_bytes: tuple[Count, ...]
    ddr_bytes: tuple[Count, ...]
    ssd_bytes: tuple[Count, ...]
    stored_bytes: tuple[Count, ...]

    @property
    def time_ms(self) -> np.ndarray:
        """Lookup and comms, float64 [R]."""
        return np.array(self.lookup_ms) + np.array(self.comms_ms)

    @property
    def memory(self) -> np.ndarray:
        """Bytes of the tables by rank and tier, without copies for saves; float64 [R, 3]."""
        return np.array([getattr(self, f"{tier}_bytes") for tier in TIERS], np.float64).T


class TableBytes(NamedTuple):
    """What a table takes.

    Attributes:
        stored: rows and optimizer state of all shards.
        tier: where they are: hbm, ddr or ssd.
        outside_hbm: whether workers have HBM and they aren't in it.
        cached: of them, and of its own state, a cache in HBM takes so much; all shards.
        buffers_per_rank: inputs and outputs (data-parallel: gradients as well) on each rank that
            has a shard; the mean.
    """

    stored: int
    tier: str
    outside_hbm: bool
    cached: int
    buffers_per_rank: int


class Plan(_Entry):
    """A plan file.

    Attributes:
        made_for: its input.
        lower_bound_ms: no plan for this input has a busiest rank below; with pinned tables: no
            plan that leaves them where they are.
        excluded: what wasn't considered, and why.
        tables: by name.
        ranks: the estimates.
    """

    format_version: int = FORMAT_VERSION
    made_for: MadeFor
    lower_bound_ms: Milliseconds
    excluded: tuple[str, ...] = ()
    tables: dict[str, TablePlan]
    ranks: RankEstimates

    @property
    def bottleneck_ms(self) -> float:
        """Estimated milliseconds of the busiest rank."""
        return float(self.ranks.time_ms.max())

    @property
    def memory(self) -> np.ndarray:
        """Bytes by rank and tier with the copy that the plan was made for; float64 [R, 3]."""
        return self.memory_for(background_save=self.made_for.tables.background_save)

    def memory_for(self, *, background_save: bool) -> np.ndarray:
        """Bytes by rank and tier, with or without a copy of rows and state; float64 [R, 3]."""
        memory = self.ranks.memory
        if background_save:
            memory[:, TIERS.index("ddr")] += np.array(self.ranks.stored_bytes, np.float64)
        return memory

    @property
    def fullest(self) -> float:
        """The largest share of a rank's budget that is taken, over ranks and tiers."""
        return float((self.memory / np.maximum(self.made_for.topology.capacity, 1.0)).max())

    def bytes_of(self, name: str) -> TableBytes:
        """What a table takes, rows apart from buffers."""
        table, entry = self.made_for.tables.table(name), self.tables[name]
        topology, optimizer = self.made_for.topology, self.made_for.tables.optimizer
        ranks, copies = topology.world_size, 1
        if entry.sharding_type == "data_parallel":
            copies = topology.world_size
        elif entry.sharding_type in BY_NODE:
            ranks = len(entry.places) * topology.workers_per_node
        elif entry.sharding_type not in BY_ALL:
            ranks = len(entry.places)
        rows = table.num_embeddings * (table.embedding_dim // entry.columns)  # of all its shards
        stored = int(rows * row_bytes(table, optimizer, entry.columns) * copies)
        tier = TIERS[home_tier(entry.compute_kernel, topology.device)]
        cached, share = 0, entry.cache_share
        if share is not None:  # fbgemm's cache has 4 bytes a row, and 16 for each that it holds
            cached = int(stored * share + rows * (4 + 16 * share))
        buffers = max(sum(entry.memory_bytes.values()) - stored - cached, 0)
        outside_hbm = topology.device == "cuda" and tier != "hbm"
        return TableBytes(stored, tier, outside_hbm, cached, buffers // max(ranks, 1))

    @property
    def tables_hash(self) -> str:
        """Of what the plan's tables are; 16 hexadecimal digits."""
        text = self.made_for.tables.model_dump_json()
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def shards(self, name: str) -> list[Shard]:
        """Every shard of a table, in TorchRec's order; empty ones too."""
        table = self.made_for.tables.table(name)
        return list(shards_of(table, self.tables[name], self.made_for.topology))


def shards_of(table: PlanTable, plan: TablePlan, topology: Topology) -> Iterator[Shard]:
    """The shards of a table under a plan."""
    if plan.sharding_type == "data_parallel":
        for rank in range(topology.world_size):
            yield Shard(rank, 0, 0, table.num_embeddings, table.embedding_dim)
        return
    block = block_rows(table, plan.sharding_type, topology)
    places = plan.places or (0,)
    for number, place in enumerate(places):
        if plan.sharding_type == "row_wise":
            ranks = range(topology.world_size)
        elif plan.sharding_type in BY_NODE:
            size = topology.workers_per_node
            ranks = range(place * size, (place + 1) * size)
        else:
            ranks = range(place, place + 1)
        for i, rank in enumerate(ranks):
            start = min(i * block, table.num_embeddings)
            rows = min(block, table.num_embeddings - start)
            yield Shard(rank, start, number * plan.columns, rows, plan.columns)


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write the plan file, about one line a table, so that reviews and diffs read well.

    Raises:
        PlanError: it can't be written.
    """
    try:
        Path(path).write_text(dump_plan(plan))
    except OSError as error:
        raise PlanError(
            f"can't write plan {path}: {error.strerror}; choose another place"
        ) from None


def dump_plan(plan: Plan) -> str:
    """The text of a plan file."""
    return _layout(plan.model_dump(mode="json", exclude_none=True)) + "\n"


def _layout(value: object, indent: str = "") -> str:
    """JSON: short values and lists of numbers on one line, longer ones over several."""
    line = json.dumps(value)
    nested = isinstance(value, dict | list) and any(
        isinstance(inner, dict | list)
        for inner in (value.values() if isinstance(value, dict) else value)
    )
    if len(line) <= 300 or not (nested or isinstance(value, dict)):
        return line
    inside = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(k)}: {_layout(v, inside)}" for k, v in value.items()]
        return "{\n" + ",\n".join(inside + part for part in parts) + f"\n{indent}}}"
    assert isinstance(value, list)
    parts = [inside + _layout(item, inside) for item in value]
    return "[\n" + ",\n".join(parts) + f"\n{indent}]"


def load_plan(path: str | Path) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: missing, malformed, made by another version, or shards off the topology.
    """
    path = Path(path)
    if not path.is_file():
        raise PlanError(f"no plan file {path}; set sharding.plan=auto or give an existing file")
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise PlanError(f"plan {path} has more than {MAX_PLAN_BYTES} bytes")
        raw = parse_json(path.read_bytes())
        version = raw.get("format_version", 1) if isinstance(raw, dict) else None
        if version is not None and version != FORMAT_VERSION:
            raise PlanError(
                f"plan {path} was made by another version (format {version}, this code reads "
                f"{FORMAT_VERSION}); make it again"
            )
        plan = checked(Plan, raw)
    except (OSError, MalformedError) as error:
        raise PlanError(f"plan {path} is not JSON ({error})") from None
    except ValidationError as error:
        fault = first_fault(error).replace(": Value error, ", ": ")
        raise PlanError(f"plan {path}: {fault}") from None
    wrong = wrong_places(plan)
    if wrong:
        raise PlanError(f"plan {path}: {first_few(wrong)}")
    if plan.made_for.torchrec_version != torchrec.__version__:
        log.warning(
            "plan %s was made with torchrec %s, here is %s: its estimates may differ",
            *(path, plan.made_for.torchrec_version, torchrec.__version__),
        )
    return plan


def wrong_places(plan: Plan) -> list[str]:
    """Tables whose shards don't tile them on ranks that exist; one line each."""
    topology, lines = plan.made_for.topology, []
    planned = {table.name for table in plan.made_for.tables.tables}
    for field in RankEstimates.model_fields:
        count = len(getattr(plan.ranks, field))
        if count != topology.world_size:
            lines.append(f"ranks.{field} has {count} entries for {topology.world_size} ranks")
    lines += [f"table {name!r} has no plan" for name in sorted(planned - set(plan.tables))]
    lines += [f"table {name!r} isn't described" for name in sorted(set(plan.tables) - planned)]
    for name in sorted(planned & set(plan.tables)):
        table, entry = plan.made_for.tables.table(name), plan.tables[name]
        places = 0 if entry.sharding_type in BY_ALL else len(entry.places)
        limit = topology.num_nodes if entry.sharding_type in BY_NODE else topology.world_size
        whole = entry.sharding_type in ("table_wise", "table_row_wise", *BY_ALL)
        units = 1 if whole else table.embedding_dim // entry.columns
        if (
            entry.columns * units != table.embedding_dim
            or (entry.sharding_type in BY_ALL and entry.places)
            or (entry.sharding_type not in BY_ALL and places != units)
            or len(set(entry.places)) != len(entry.places)
            or not all(0 <= place < limit for place in entry.places)
        ):
            lines.append(
                f"the shards of table {name!r} don't cover it {entry.sharding_type} on "
                f"{'nodes' if entry.sharding_type in BY_NODE else 'ranks'} 0 to {limit - 1}"
            )
    return lines


def differences(
    plan: Plan,
    tables: Mapping[str, PlanTable],
    *,
    world_size: int,
    workers_per_node: int | None = None,
    device: str | None = None,
) -> list[str]:
    """What keeps the plan from being loaded for these tables and workers; one line each.

    Without `workers_per_node` any division into nodes will do, without `device` any device.
    """
    lines, topology = [], plan.made_for.topology
    if topology.world_size != world_size:
        lines.append(f"world_size is {topology.world_size} in the plan, {world_size} here")
    if workers_per_node not in (None, topology.workers_per_node):
        lines.append(
            f"workers_per_node is {topology.workers_per_node} in the plan, {workers_per_node} here"
        )
    planned = {table.name: table for table in plan.made_for.tables.tables}
    for name in sorted({*planned, *tables}):
        if name not in tables:
            lines.append(f"table {name!r} of the plan isn't here")
        elif name not in planned:
            lines.append(f"table {name!r} isn't in the plan")
        elif shape(planned[name]) != shape(tables[name]):
            lines.append(
                f"table {name!r} is {shape(planned[name])} in the plan, {shape(tables[name])} here"
            )
        elif (planned[name].pooling == "none") != (tables[name].pooling == "none"):
            lines.append(
                f"table {name!r} has pooling {planned[name].pooling} in the plan, "
                f"{tables[name].pooling} here"
            )
        elif tables[name].pooling == "none" and plan.tables[name].sharding_type not in UNPOOLED:
            lines.append(
                f"table {name!r} is {plan.tables[name].sharding_type} in the plan, which sequence "
                "tables can't be"
            )
        elif device == "cpu" and plan.tables[name].compute_kernel not in ("fused", "dense"):
            lines.append(
                f"table {name!r} has kernel {plan.tables[name].compute_kernel} in the plan, which "
                "needs GPUs (python -m ray_jobs.plan to-cpu converts a plan)"
            )
    return lines


def first_few(lines: Sequence[str], where: str = "") -> str:
    """The first lines in one, how many there are, and where all of them are listed."""
    more = len(lines) - _MOST_LINES
    if more <= 0:
        return "; ".join(lines)
    listed = f", {where}" if where else ""
    return f"{'; '.join(lines[:_MOST_LINES])}; and {more} more ({len(lines)} in all{listed})"


def shape(table: PlanTable) -> str:
    """Rows x width type, e.g. `1000 x 16 fp32`."""
    return f"{table.num_embeddings} x {table.embedding_dim} {table.data_type}"
