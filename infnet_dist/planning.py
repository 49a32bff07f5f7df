"""Tables + topology -> plan file; check, save, load, and turn into TorchRec's ShardingPlan.

A plan is a reviewed artefact: a JSON file that says for which tables and workers it was made, and
where every shard lives. `sharding.plan: auto` makes one with TorchRec's planner.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import torchrec
from pydantic import BaseModel, ConfigDict, ValidationError
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


class MadeFor(_Entry):
    """What a plan was made for."""

    world_size: int
    local_world_size: int
    device: str
    tables: dict[str, TableShape]
    tables_hash: str
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

    sharding_type: str
    compute_kernel: str
    shards: tuple[Shard, ...]


class Plan(_Entry):
    """A plan file."""

    made_for: MadeFor
    tables: dict[str, TablePlan]


class Workers(_Entry):
    """The workers that a plan is for: how many, how many on a machine, "cpu" or "cuda"."""

    world_size: int
    local_world_size: int
    device: str


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
        else:
            differences += _uncovered(name, plan.tables[name], got.tables[name], workers)
    if differences:
        raise PlanError(
            "the plan doesn't fit: " + "; ".join(differences) + "; set sharding.plan=auto, or make "
            "a plan with: python -m ray_jobs.plan --config CONFIG --output PLAN"
        )


def save_plan(plan: Plan, path: Path) -> None:
    """Write the plan file."""
    path.write_text(plan.model_dump_json(indent=1) + "\n")


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
    lines += [f"rank {r}: {size / 2**20:.1f} MiB planned" for r, size in bytes_per_rank.items()]
    return "\n".join(lines)


def _placement(rank: int, local_world_size: int, device: torch.device) -> str:
    if device.type == "cpu":
        return f"rank:{rank}/cpu"
    return f"rank:{rank}/{device.type}:{rank % local_world_size}"


def _topology(workers: Workers) -> Topology:
    """The real machine's memory, shared evenly by the workers on it."""
    ddr = psutil.virtual_memory().total // workers.local_world_size
    options: dict[str, Any] = {"ddr_cap": ddr}
    if workers.device == "cuda" and torch.cuda.is_available():
        options["hbm_cap"] = torch.cuda.get_device_properties(0).total_memory
    return Topology(
        world_size=workers.world_size,
        local_world_size=workers.local_world_size,
        compute_device=workers.device,
        **options,
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
    text = json.dumps({name: shape.model_dump() for name, shape in tables.items()})
    return MadeFor(
        **workers.model_dump(),
        tables=tables,
        tables_hash=hashlib.sha256(text.encode()).hexdigest()[:16],
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


def _uncovered(name: str, table: TablePlan, shape: TableShape, workers: Workers) -> list[str]:
    """Problems of a table's shards: ranks that don't exist, cells that no shard holds."""
    cells = sum(shard.rows * shard.columns for shard in table.shards)
    problems = []
    if any(not 0 <= shard.rank < workers.world_size for shard in table.shards):
        problems.append(f"table {name!r} has shards on ranks outside 0 to {workers.world_size - 1}")
    if cells != shape.num_embeddings * shape.embedding_dim:
        problems.append(f"the shards of table {name!r} don't cover it exactly once")
    return problems


def _shape(shape: TableShape) -> str:
    return f"{shape.num_embeddings} x {shape.embedding_dim} {shape.data_type}"
