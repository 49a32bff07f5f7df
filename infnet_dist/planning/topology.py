"""Topologies: nodes, workers, memory and bandwidths, as YAML in sharding_plans/topologies/.

`infnet plan calibrate` writes one with measured costs, as JSON.
"""

import logging
import math
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torchrec.distributed.planner import Topology as TorchRecTopology

from infnet_dist.errors import PlanError
from infnet_dist.io.parsing import Name
from infnet_dist.planning.costs.measured import Measured
from infnet_dist.planning.host_memory import host_memory_bytes
from infnet_dist.planning.tables import Integer, Number, find_file, read_yaml

FOLDER = Path(__file__).parents[2] / "sharding_plans" / "topologies"
TIERS = ("hbm", "ddr", "ssd")
MAX_WORKERS = 65_536
_GB = 1e9
_GIB = 2**30


class Topology(BaseModel):
    """Identical nodes and the workers on them: one per GPU, or per share of a CPU.

    Capacities are per node, bandwidths per worker and in one direction; 1 GB/s is 1e9 bytes/s.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Name
    device: Literal["cuda", "cpu"]
    num_nodes: Integer = Field(1, ge=1, le=MAX_WORKERS, description="nodes")
    workers_per_node: Integer = Field(ge=1, le=1_000, description="workers (GPUs) on a node")
    hbm_gib: Number = Field(
        0.0, ge=0, le=1e5, description="GiB of HBM on a node, all GPUs together"
    )
    ddr_gib: Number = Field(gt=0, le=1e5, description="GiB of RAM on a node")
    ssd_gib: Number = Field(0.0, ge=0, le=1e6, description="GiB of SSD on a node")
    hbm_gb_s: Number = Field(0.0, ge=0, le=1e6, description="GB/s, a GPU's own memory")
    ddr_gb_s: Number = Field(ge=1e-3, le=1e6, description="GB/s of RAM that one worker gets")
    ssd_gb_s: Number = Field(0.1, ge=1e-3, le=1e6, description="GB/s of SSD that one worker gets")
    hbm_to_ddr_gb_s: Number = Field(
        32.0, ge=1e-3, le=1e6, description="GB/s between a GPU and the RAM"
    )
    intra_node_gb_s: Number = Field(
        ge=1e-3, le=1e6, description="GB/s between two workers of a node"
    )
    inter_node_gb_s: Number = Field(
        ge=1e-3, le=1e6, description="GB/s between workers of two nodes"
    )
    reserve: Number = Field(
        0.15,
        ge=0,
        lt=1,
        description="share of HBM (CPU: of RAM) reserved for the tower, its gradients and "
        "optimizer, batches and activations",
    )
    ddr_reserve: Number = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of a GPU node's RAM that UVM tables and save copies may not use",
    )
    worker_gib: Number = Field(
        0.5,
        ge=0,
        le=1e4,
        description="GiB of RAM that a worker's process needs beside tables; reserved if the "
        "share above is less",
    )
    backward_factor: Number = Field(
        2.0, ge=1e-3, le=1e3, description="time of a backward pass per forward"
    )
    collective_ms: Number = Field(
        0.0,
        ge=0,
        le=1e6,
        description="milliseconds of a collective, however few its bytes, times log2(workers); a "
        "step has about 5 for each collection and sharding type in use",
    )
    all_reduce_gb_s: Number | None = Field(
        None,
        ge=1e-3,
        le=1e6,
        description="GB/s that a worker sends in a large all-reduce; null: as between two workers",
    )
    sources: dict[str, str] = Field(default_factory=dict, description="source of each figure")
    measured: Measured | None = Field(
        None, description="costs that infnet plan calibrate measured; times come from them"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.device == "cuda" and not (self.hbm_gib > 0 and self.hbm_gb_s > 0):
            raise ValueError("a cuda topology needs hbm_gib and hbm_gb_s")
        check_world_size(self.world_size)
        return self

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return self.num_nodes * self.workers_per_node

    def with_world_size(self, world_size: int) -> "Topology":
        """The same kind of nodes for `world_size` workers: whole nodes, or a part of one.

        A part of a node has its share of the node's memory.

        Raises:
            PlanError: the workers fill neither whole nodes nor a part of one, or are more than
                MAX_WORKERS.
        """
        try:
            check_world_size(world_size)
        except ValueError as error:
            raise PlanError(str(error)) from None
        whole, rest = divmod(world_size, self.workers_per_node)
        if world_size >= 1 and rest == 0:
            return self.model_copy(update={"num_nodes": whole})
        if 1 <= world_size < self.workers_per_node:
            share = world_size / self.workers_per_node
            memory = {name: getattr(self, name) * share for name in ("hbm_gib", "ddr_gib")}
            memory["ssd_gib"] = self.ssd_gib * share
            return self.model_copy(update={"num_nodes": 1, "workers_per_node": world_size} | memory)
        whole = max(whole, 1)
        raise PlanError(
            f"{world_size} workers don't fill nodes of {self.workers_per_node} ({self.name}); use "
            f"{whole * self.workers_per_node} or {(whole + 1) * self.workers_per_node}"
        )

    def without(self, used: npt.NDArray[np.float64]) -> "Topology":
        """The workers with less memory for tables, by these bytes per worker and tier [3]."""
        shares = (self.reserve, self.reserve if self.device == "cpu" else self.ddr_reserve, 0.0)
        gib = used * self.workers_per_node / _GIB / (1 - np.array(shares))
        names = [f"{tier}_gib" for tier in TIERS]
        left = {n: max(getattr(self, n) - g, 0.0) for n, g in zip(names, gib.tolist(), strict=True)}
        return self.model_copy(update=left)

    @property
    def latency_ms(self) -> float:
        """Milliseconds of a collective of all workers, however few its bytes."""
        return self.collective_ms * math.log2(self.world_size)

    def all_reduce_ms(self, size: float) -> float:
        """Milliseconds of an all-reduce of `size` bytes, without its latency."""
        gb_s = self.all_reduce_gb_s or self.intra_node_gb_s
        if self.num_nodes > 1 and (self.measured is None or self.measured.num_nodes == 1):
            gb_s *= min(1.0, self.inter_node_gb_s / self.intra_node_gb_s)
        return 2 * (self.world_size - 1) / self.world_size * size / (gb_s * _GB) * 1000

    @property
    def capacity(self) -> npt.NDArray[np.float64]:
        """Bytes per worker for tables, by tier, after the reserve; float64 [3].

        Tables take rows, optimizer state, buffers, and the copies for a background save.
        """
        on_cpu = self.device == "cpu"
        share = self.reserve if on_cpu else self.ddr_reserve
        hbm = 0.0 if on_cpu else self.hbm_gib * (1 - self.reserve)
        reserved = max(self.ddr_gib * share, self.worker_gib * self.workers_per_node)
        per_node = np.array([hbm, max(self.ddr_gib - reserved, 0.0), self.ssd_gib])
        return np.floor(per_node * _GIB / self.workers_per_node)

    def to_torchrec(self) -> TorchRecTopology:
        """TorchRec's topology for its estimators; capacities before the reserve."""
        logging.getLogger("torchrec.distributed.planner.types").setLevel(logging.ERROR)
        per_worker = _GIB / self.workers_per_node
        return TorchRecTopology(
            world_size=self.world_size,
            local_world_size=self.workers_per_node,
            compute_device=self.device,
            hbm_cap=math.floor(self.hbm_gib * per_worker),
            ddr_cap=math.floor(self.ddr_gib * per_worker),
            ssd_cap=math.floor(self.ssd_gib * per_worker),
            hbm_mem_bw=_per_ms(self.hbm_gb_s),
            ddr_mem_bw=_per_ms(self.ddr_gb_s),
            ssd_mem_bw=_per_ms(self.ssd_gb_s),
            hbm_to_ddr_mem_bw=_per_ms(self.hbm_to_ddr_gb_s),
            intra_host_bw=_per_ms(self.intra_node_gb_s),
            inter_host_bw=_per_ms(self.inter_node_gb_s),
            bwd_compute_multiplier=self.backward_factor,
        )


def load_topology(name_or_path: str | Path) -> Topology:
    """Read a topology by its name in `sharding_plans/topologies` or its path.

    Raises:
        PlanError: the file doesn't exist (names those in the folder) or is malformed.
    """
    return read_yaml(find_file(name_or_path, FOLDER, "topology"), Topology, "topology")


def save_topology(topology: Topology, path: str | Path) -> None:
    """Write a topology as JSON, without its unset figures.

    Raises:
        PlanError: the file can't be written.
    """
    text = topology.model_dump_json(indent=1, exclude_none=True, exclude_defaults=True)
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise PlanError(
            f"can't write topology {path}: {error.strerror}; choose another place"
        ) from None


def this_topology(
    device: str,
    world_size: int,
    local_world_size: int,
    *,
    bytes_per_worker: float | None = None,
    like: str | Path | None = None,
) -> Topology:
    """The topology of a run on machines like this one.

    Args:
        device: cuda or cpu.
        world_size: number of workers.
        local_world_size: workers per node. If it doesn't divide `world_size`, nodes are planned
            with the greatest common divisor of both as workers, and that share of the memory.
        bytes_per_worker: RAM per worker; None: this machine's RAM divided by `local_world_size`.
        like: name or path of a topology with the same device, whose bandwidths, costs and reserves
            are taken. None: that of this machine's GPU (h100x8 if there is none for it), or `cpu`.

    Raises:
        PlanError: more than MAX_WORKERS workers, or `like` is for another device.
    """
    ram = bytes_per_worker or host_memory_bytes() / local_world_size
    local = math.gcd(world_size, local_world_size)
    try:
        check_world_size(world_size)
    except ValueError as error:
        raise PlanError(str(error)) from None
    update: dict[str, object] = {
        "num_nodes": world_size // local,
        "workers_per_node": local,
        "ddr_gib": ram * local / _GIB,
    }
    gpu = torch.cuda.get_device_properties(0) if _has_gpu(device) else None
    name = like or ("cpu" if device != "cuda" else _like_gpu(gpu.name if gpu else ""))
    ready = load_topology(name)
    if ready.device != device:
        raise PlanError(
            f"topology {name} is for {ready.device}, but the workers are on {device}; choose "
            "another one (sharding.topology)"
        )
    if device == "cuda":
        memory = gpu.total_memory / _GIB if gpu else ready.hbm_gib / ready.workers_per_node
        update["hbm_gib"] = memory * local
    return ready.model_copy(update=update)


def _has_gpu(device: str) -> bool:
    return device == "cuda" and torch.cuda.is_available()


def _like_gpu(name: str) -> str:
    """The topology in the folder that is of this GPU, or h100x8."""
    known = [path.stem for path in FOLDER.glob("*x8.yaml")]
    return next((k for k in known if k.removesuffix("x8") in name.lower()), "h100x8")


def check_world_size(world_size: int) -> None:
    """Check that plans support this many workers.

    Raises:
        ValueError: `world_size` exceeds MAX_WORKERS.
    """
    if world_size > MAX_WORKERS:
        raise ValueError(f"got {world_size} workers; plans support at most {MAX_WORKERS}")


def _per_ms(gb_s: float) -> float:
    return gb_s * _GB / 1000
