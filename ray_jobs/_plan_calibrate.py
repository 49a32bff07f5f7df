"""The subcommand `calibrate` of `ray_jobs.plan`: measures the workers at hand."""

import argparse
import os
import time

import torch
from rich.table import Table

from infnet_dist.config.run import ScalingConfig, load_config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import PlanError
from infnet_dist.io.console import wide_console
from infnet_dist.planning.topology import Topology, load_topology, save_topology
from infnet_dist.sharding.build import topology_of
from infnet_dist.sharding.calibration.calibrate import calibrate
from ray_jobs._cli import log
from ray_jobs._launch import launch
from ray_jobs._local import run_local


def calibrate_workers(arguments: argparse.Namespace) -> None:
    """Measure, write the topology file, and print its costs.

    Raises:
        PlanError: the output isn't a .json file, or Ray is asked for without a run file.
    """
    if arguments.output.suffix != ".json":
        raise PlanError(f"--output: got {arguments.output}, expected a .json file")
    if arguments.like is not None:
        load_topology(arguments.like)
    start = time.perf_counter()
    topology = _run(arguments)
    save_topology(topology, arguments.output)
    if arguments.json:
        print(topology.model_dump_json(indent=1, exclude_none=True))
    else:
        _print(topology)
    seconds = time.perf_counter() - start
    log.info(
        "wrote %s in %.0f s; plan with --topology %s",
        *(arguments.output, seconds, arguments.output),
    )


def _run(arguments: argparse.Namespace) -> Topology:
    config = load_config(arguments.config, arguments.overrides) if arguments.config else None
    if config is None and arguments.launcher == "ray":
        raise PlanError("--launcher ray needs --config: its scaling says what a worker takes")
    scaling = config.scaling if config else _this_machine()
    num_workers = arguments.world_size or scaling.num_workers
    given = {"like": arguments.like, "name": arguments.output.stem}
    if config is not None and arguments.launcher == "ray":
        found: Topology = launch(measure, given, config, "ray", num_workers=num_workers)
        return found
    return run_local(measure, given, num_workers=num_workers, use_gpu=scaling.use_gpu)[0]


def _this_machine() -> ScalingConfig:
    gpus = torch.cuda.device_count()
    return ScalingConfig(num_workers=gpus or os.cpu_count() or 1, use_gpu=gpus > 0)


def measure(context: WorkerContext, *, like: str | None, name: str) -> Topology:
    """The measured topology of these workers; every rank calls it."""
    topology = topology_of(context, like)
    return calibrate(context, topology=topology.model_copy(update={"name": name}))


def _print(topology: Topology) -> None:
    measured = topology.measured
    assert measured is not None
    console = wide_console()
    table = Table("exchange", title="Costs beside links, ms", title_justify="left")
    for column in ("fixed", "per feature", "per 1,000 ids", "per MiB of outputs"):
        table.add_column(column, justify="right")
    for name, costs in measured.exchange.items():
        cells = (costs.fixed_ms, costs.feature_ms, 1e3 * costs.id_ms, 2**20 * costs.byte_ms)
        table.add_row(name, *(f"{cell:.3g}" for cell in cells))
    console.print(table)
    table = Table("rows", title="Lookups and updates, ms", title_justify="left")
    for column in ("per feature", "per 1,000 ids", "per MiB", "per 1,000 rows", "per MiB of rows"):
        table.add_column(column, justify="right")
    for part in ("lookup", "update"):
        for kind, rows in getattr(measured, part).items():
            units = zip(rows.coefficients, (1, 1e3, 2**20, 1e3, 2**20), strict=True)
            table.add_row(f"{kind} {part}", *(f"{cost * unit:.3g}" for cost, unit in units))
    console.print(table)
    factors = ", ".join(f"{name} {factor:.2f}" for name, factor in measured.update_factors.items())
    console.print(f"time of an update by row type and optimizer: {factors}", markup=False)
    console.print(
        f"a collective: {topology.latency_ms:.3g} ms; GB/s within a node "
        f"{topology.intra_node_gb_s:.3g}, between nodes {topology.inter_node_gb_s:.3g}, all-reduce "
        f"{topology.all_reduce_gb_s or topology.intra_node_gb_s:.3g}",
        markup=False,
    )
