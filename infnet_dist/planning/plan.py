"""Tables + topology -> plan file; check, save, load, and turn into TorchRec's ShardingPlan.

A plan is a reviewed artefact: a JSON file that says for which tables and workers it was made, and
where every shard lives. `sharding.plan: auto` makes one with TorchRec's planner.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import psutil
import torch
import torchrec
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, ShardingOption
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
    ShardingType,
)
from torchrec.modules.embedding_modules import EmbeddingCollection

from infnet_dist.errors import PlanError

DEFAULT_SHARDING_TYPES = ("table_wise", "row_wise")
_RESERVED_SHARE = 0.15  # of a device's memory, for the tower, activations and batches


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TableShape(_Entry):
    """Rows, width and row type of a table."""

    num_embeddings: int
    embedding_dim: int
    data_type: str


class Workers(_Entry):
    """The workers that a plan is for.

    Attributes:
        world_size: how many.
        local_world_size: how many on one machine.
        device: "cpu" or "cuda".
        memory_bytes: what the tables of one worker may fill, before a reserve: the GPU's memory,
            or the worker's share of its machine's.
    """

    world_size: int
    local_world_size: int
    device: str
    memory_bytes: int


class MadeFor(Workers):
    """What a plan was made for."""

    tables: dict[str, TableShape]
    torchrec_version: str


class Shard(_Entry):
    """One shard: its rank, its place in the table, and the planner's estimates."""

    rank: int
    row_offset: int
    column_offset: int
    rows: int
    columns: int
    storage_bytes: int
    time_ms: float


class TablePlan(_Entry):
    """How one table is sharded."""

    sharding_type: Literal["table_wise", "row_wise", "column_wise"]
    compute_kernel: Literal["fused", "fused_uvm", "fused_uvm_caching"]
    shards: tuple[Shard, ...] = Field(min_length=1)


class Plan(_Entry):
    """A plan file."""

    made_for: MadeFor
    tables: dict[str, TablePlan]


class CollectionSharder(EmbeddingCollectionSharder):
    """Offers what trains correctly under an optimizer fused in backward, on CPU and CUDA.

    Left out: data-parallel and the dense kernel (wrong or memory-unsafe for sequences on the CPU).
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Table-, column- and row-wise."""
        return [t.value for t in (ShardingType.TABLE_WISE, ShardingType.COLUMN_WISE)] + [
            ShardingType.ROW_WISE.value
        ]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """The fused kernels."""
        kernels = super().compute_kernels(sharding_type, compute_device_type)
        return [k for k in kernels if k != EmbeddingComputeKernel.DENSE.value]


def find_collection(model: nn.Module) -> tuple[str, EmbeddingCollection]:
    """Path and module of the model's one EmbeddingCollection."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, EmbeddingCollection)]
    assert len(found) == 1, f"expected one EmbeddingCollection, found {len(found)}"
    return found[0]


def make_plan(
    model: nn.Module,
    workers: Workers,
    *,
    batch_size: int,
    sharding_types: Mapping[str, tuple[str, ...] | None],
) -> Plan:
    """Plan with TorchRec's planner.

    Args:
        model: holds the (meta) tables; its sparse optimizer is applied already, so that the
            optimizer's state counts as storage.
        workers: what to plan for.
        batch_size: rows per worker and step.
        sharding_types: allowed types by table; None or not named: table- and row-wise.

    Raises:
        PlanError: nothing fits.
    """
    for name in ("torchrec", "torchrec.distributed.planner"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _, collection = find_collection(model)
    planner = EmbeddingShardingPlanner(
        topology=_topology(workers),
        batch_size=batch_size,
        storage_reservation=FixedPercentageStorageReservation(_RESERVED_SHARE),
        constraints={
            table.name: ParameterConstraints(
                sharding_types=list(sharding_types.get(table.name) or DEFAULT_SHARDING_TYPES)
            )
            for table in collection.embedding_configs()
        },
        debug=False,
    )
    try:
        planner.plan(model, [CollectionSharder()])
    except (PlannerError, RuntimeError) as error:
        raise PlanError(
            f"no plan for {workers.world_size} workers ({workers.device}): "
            f"{str(error).strip().splitlines()[0]}; use more workers, smaller tables, or allow "
            f"more sharding types in tables.overrides"
        ) from error
    options = planner._best_plan
    assert options is not None
    made_for = _made_for(collection, workers)
    tables = {option.name: _table_plan(option) for option in options}
    return Plan(made_for=made_for, tables=dict(sorted(tables.items())))


def check_plan(plan: Plan, model: nn.Module, workers: Workers) -> None:
    """Check that `plan` was made for these tables and workers.

    Raises:
        PlanError: lists every difference and says how to get the right plan.
    """
    _, collection = find_collection(model)
    expected, got = _made_for(collection, workers), plan.made_for
    differences = [
        f"{name} is {getattr(got, name)} in the plan, {getattr(expected, name)} in this run"
        for name in ("world_size", "local_world_size")
        if getattr(got, name) != getattr(expected, name)
    ]
    for name in sorted({*got.tables, *expected.tables, *plan.tables}):
        if name not in expected.tables:
            differences.append(f"table {name!r} isn't in this run")
        elif name not in got.tables or name not in plan.tables:
            differences.append(f"table {name!r} isn't in the plan")
        elif got.tables[name] != expected.tables[name]:
            differences.append(
                f"table {name!r} is {_shape(got.tables[name])} in the plan, "
                f"{_shape(expected.tables[name])} in this run"
            )
        elif not _covers(plan.tables[name], got.tables[name], workers):
            differences.append(
                f"the shards of table {name!r} don't cover it {plan.tables[name].sharding_type} on "
                f"ranks 0 to {workers.world_size - 1}"
            )
    if differences:
        raise PlanError(
            "the plan doesn't fit: " + "; ".join(differences) + "; set sharding.plan=auto, or make "
            "a plan with: python -m ray_jobs.plan --config CONFIG --output PLAN"
        )


def save_plan(plan: Plan, path: Path) -> None:
    """Write the plan file.

    Raises:
        PlanError: it can't be written.
    """
    try:
        path.write_text(plan.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise PlanError(
            f"can't write plan {path}: {error.strerror}; choose another place"
        ) from None


def load_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: missing or malformed.
    """
    if not path.is_file():
        raise PlanError(f"no plan file {path}; set sharding.plan=auto or give an existing file")
    try:
        return Plan.model_validate(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise PlanError(f"plan {path} is not JSON ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PlanError(f"plan {path}: {where}: {first['msg']}") from None


def to_sharding_plan(plan: Plan, model: nn.Module, device: torch.device) -> ShardingPlan:
    """TorchRec's plan for `model` on workers with devices like `device`."""
    path, _ = find_collection(model)
    parameters = EmbeddingModuleShardingPlan()
    for name, table in plan.tables.items():
        shards = [
            ShardMetadata(
                shard_offsets=[shard.row_offset, shard.column_offset],
                shard_sizes=[shard.rows, shard.columns],
                placement=_placement(shard.rank, plan.made_for.local_world_size, device),
            )
            for shard in table.shards
        ]
        parameters[name] = ParameterSharding(
            sharding_type=table.sharding_type,
            compute_kernel=table.compute_kernel,
            ranks=[shard.rank for shard in table.shards],
            sharding_spec=EnumerableShardingSpec(shards),
        )
    return ShardingPlan(plan={path: parameters})


def describe_plan(plan: Plan) -> str:
    """A line per table and one per rank, for the log."""
    lines = []
    bytes_per_rank = dict.fromkeys(range(plan.made_for.world_size), 0)
    for name, table in plan.tables.items():
        shape = plan.made_for.tables[name]
        ranks = ",".join(str(shard.rank) for shard in table.shards)
        lines.append(
            f"{name}: {_shape(shape)} {table.sharding_type} {table.compute_kernel} on ranks {ranks}"
        )
        for shard in table.shards:
            bytes_per_rank[shard.rank] += shard.storage_bytes
    memory = f"of {plan.made_for.memory_bytes / 2**30:.1f} GiB"
    lines += [f"rank {r}: {b / 2**20:.1f} MiB {memory}" for r, b in bytes_per_rank.items()]
    return "\n".join(lines)


def _placement(rank: int, local_world_size: int, device: torch.device) -> str:
    if device.type == "cpu":
        return f"rank:{rank}/cpu"
    return f"rank:{rank}/{device.type}:{rank % local_world_size}"


def worker_memory(device: str, local_world_size: int) -> int:
    """Bytes that one worker on this machine has: its GPU's, or its share of the RAM."""
    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total // local_world_size)


def _topology(workers: Workers) -> Topology:
    memory = {"hbm_cap": workers.memory_bytes} if workers.device == "cuda" else {}
    return Topology(
        world_size=workers.world_size,
        local_world_size=workers.local_world_size,
        compute_device=workers.device,
        ddr_cap=psutil.virtual_memory().total // workers.local_world_size
        if memory
        else workers.memory_bytes,
        **memory,
    )


def _made_for(collection: EmbeddingCollection, workers: Workers) -> MadeFor:
    tables = {
        table.name: TableShape(
            num_embeddings=table.num_embeddings,
            embedding_dim=table.embedding_dim,
            data_type=table.data_type.value,
        )
        for table in sorted(collection.embedding_configs(), key=lambda table: table.name)
    }
    return MadeFor(
        **workers.model_dump(include=set(Workers.model_fields)),
        tables=tables,
        torchrec_version=torchrec.__version__,
    )


def _table_plan(option: ShardingOption) -> TablePlan:
    shards = []
    for shard in option.shards:
        assert shard.rank is not None and shard.storage is not None and shard.perf is not None
        shards.append(
            Shard(
                rank=shard.rank,
                row_offset=shard.offset[0],
                column_offset=shard.offset[1],
                rows=shard.size[0],
                columns=shard.size[1],
                storage_bytes=shard.storage.hbm + shard.storage.ddr,
                time_ms=round(shard.perf.total, 6),
            )
        )
    return TablePlan(
        sharding_type=option.sharding_type,
        compute_kernel=option.compute_kernel,
        shards=tuple(shards),
    )


def _covers(table: TablePlan, shape: TableShape, workers: Workers) -> bool:
    """Whether the shards tile the table as the sharding type demands, on ranks that exist."""
    rows, columns = shape.num_embeddings, shape.embedding_dim
    shards = sorted(table.shards, key=lambda shard: (shard.row_offset, shard.column_offset))
    ranks = [shard.rank for shard in shards]
    if not all(0 <= rank < workers.world_size for rank in ranks):
        return False
    if table.sharding_type == "row_wise":
        whole = all((s.column_offset, s.columns) == (0, columns) for s in shards)
        ends = [0, *(shard.row_offset + shard.rows for shard in shards)]
        starts = [*(shard.row_offset for shard in shards), rows]
        return whole and starts == ends and ranks == list(range(workers.world_size))
    whole = all((s.row_offset, s.rows) == (0, rows) for s in shards)
    ends = [0, *(shard.column_offset + shard.columns for shard in shards)]
    starts = [*(shard.column_offset for shard in shards), columns]
    return whole and starts == ends and (table.sharding_type != "table_wise" or len(shards) == 1)


def _shape(shape: TableShape) -> str:
    return f"{shape.num_embeddings} x {shape.embedding_dim} {shape.data_type}"
