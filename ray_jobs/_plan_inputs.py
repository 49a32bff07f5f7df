"""Tables, topology and sizes that the arguments of `ray_jobs.plan` name."""

import argparse

from infnet_dist.config.run import Config, load_config
from infnet_dist.data.part_files import part_opener
from infnet_dist.data.statistics import sample_usage
from infnet_dist.errors import PlanError
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.planning.tables import TableSet, load_table_set
from infnet_dist.planning.topology import Topology, load_topology, this_topology
from infnet_dist.training.setup import open_training_set
from ray_jobs._cli import read_config


def read_tables(arguments: argparse.Namespace) -> TableSet:
    """The tables of --tables, or of the run file's training set."""
    if arguments.tables is not None:
        if arguments.overrides:
            raise PlanError("--set changes a run file; --tables has none: edit the tables file")
        return load_table_set(arguments.tables)
    return tables_of_config(arguments)[0]


def tables_of_config(arguments: argparse.Namespace) -> tuple[TableSet, Config]:
    """The tables of the run file's training set, and the run."""
    config = read_config(arguments)
    manifest, schema = open_training_set(config)
    open_part = part_opener(config.data.reader, schema)
    usage = sample_usage(config.data.path, manifest, schema, open_part)
    return tables_of_run(config, schema, usage), config


def read_topology(arguments: argparse.Namespace) -> Topology:
    """The topology of --topology and --world-size; by default the run file's workers."""
    config = load_config(arguments.config, arguments.overrides) if arguments.config else None
    scaling, like = (config.scaling, config.sharding.topology) if config else (None, None)
    size = arguments.world_size or (scaling.num_workers if scaling else None)
    use_gpu = bool(scaling and scaling.use_gpu)
    if arguments.topology is None and not use_gpu:
        return this_topology("cpu", size or 2, size or 2, like=like)
    topology = load_topology(arguments.topology or like or "h100x8")
    return topology.with_world_size(size) if size else topology


def worker_count(text: str) -> int:
    """One of the numbers of --world-size."""
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20) or int(digits) < 1:
        shown = text if len(text) < 40 else f"{text[:40]}..."
        raise PlanError(f"--world-size: got {shown!r}, expected integers >= 1, e.g. 8,16,32")
    return int(digits)
