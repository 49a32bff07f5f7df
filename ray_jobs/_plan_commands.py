"""The subcommands of `ray_jobs.plan`: each takes the parsed arguments, does its work and prints."""

import argparse
import json
import time

from rich.markup import escape
from rich.table import Table

from infnet_dist.checkpoint import differences_from
from infnet_dist.errors import PlanError
from infnet_dist.io.console import wide_console
from infnet_dist.io.filesystem import Folder, size_text
from infnet_dist.planning.checks import differences, first_few, overfull
from infnet_dist.planning.diff import diff_plans
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.plan_file import load_plan, save_plan
from infnet_dist.planning.planner import extend_plan, make_plan
from infnet_dist.planning.review.facts import byte_facts, facts
from infnet_dist.planning.review.page import write_html, write_png
from infnet_dist.planning.review.render import render
from infnet_dist.planning.review.throughput import DensePart
from infnet_dist.planning.to_cpu import to_cpu
from infnet_dist.planning.topology import load_topology, this_topology
from ray_jobs._cli import log
from ray_jobs._plan_inputs import read_tables, read_topology, tables_of_config, worker_count
from ray_jobs._whatif import print_rows, try_topologies


def make(arguments: argparse.Namespace) -> None:
    """Plan tables and write the plan file."""
    start = time.perf_counter()
    table_set = read_tables(arguments)
    plan = make_plan(table_set, read_topology(arguments))
    save_plan(plan, arguments.output)
    _report(plan, arguments, f"wrote {arguments.output} in {time.perf_counter() - start:.1f} s")


def show(arguments: argparse.Namespace) -> None:
    """Print a plan, and write its HTML page and picture."""
    plan = load_plan(arguments.plan)
    if arguments.html:
        write_html(plan, arguments.html)
        log.info("wrote %s", arguments.html)
    if arguments.png:
        write_png(plan, arguments.png)
        log.info("wrote %s", arguments.png)
    _report(plan, arguments, most_tables=arguments.tables)


def check(arguments: argparse.Namespace) -> None:
    """List what keeps a plan from being loaded by a run, on a topology or from a checkpoint."""
    plan = load_plan(arguments.plan)
    if not (arguments.config or arguments.topology or arguments.checkpoint):
        raise PlanError("nothing to check against: give --config, --topology or --checkpoint")
    own, world_size = plan.made_for.tables, plan.made_for.topology.world_size
    found = []
    if arguments.config:
        tables, config = tables_of_config(arguments)
        device = "cuda" if config.scaling.use_gpu else "cpu"
        found += differences(plan, tables, world_size=config.scaling.num_workers, device=device)
        background = config.checkpoint.background
        found += overfull(plan, plan.made_for.topology, background_save=background)
    if arguments.topology:
        topology = load_topology(arguments.topology)
        per_node = min(topology.workers_per_node, world_size)
        found += differences(
            plan, own, world_size=world_size, workers_per_node=per_node, device=topology.device
        )
        found += overfull(plan, topology, background_save=own.background_save)
    if arguments.checkpoint:  # which loads under any number of workers
        found += differences_from(Folder(arguments.checkpoint), plan)
    found = list(dict.fromkeys(found))
    if arguments.json:
        known = facts(plan)
        names = ("stored_bytes", "buffer_bytes", "save_copy_bytes", "outside_hbm_bytes", "memory")
        sizes = {name: known[name] for name in names}
        print(json.dumps({"fits": not found, "differences": found, "bytes": sizes}))
    else:
        print("\n".join([*found, *(f"{what}: {text}" for what, text in byte_facts(facts(plan)))]))
        if not found:
            print("the plan fits")
    if found:
        raise PlanError(f"the plan doesn't fit: {first_few(found, 'listed above')}")


def diff(arguments: argparse.Namespace) -> None:
    """Print what changes and moves from one plan to another."""
    found = diff_plans(load_plan(arguments.before), load_plan(arguments.after))
    if arguments.json:
        print(json.dumps(found.to_json(), indent=1))
        return
    table = Table("table", "change", title="Tables that change", title_justify="left")
    for column in ("rows + optimizer", "buffers / rank", "moved within nodes", "between nodes"):
        table.add_column(column, justify="right")
    for name, text in found.changed.items():
        moved = found.moved.get(name)
        sizes = (moved.intra_node, moved.inter_node) if moved else (0.0, 0.0)
        held = (found.bytes_after[name].stored, found.bytes_after[name].buffers_per_rank)
        table.add_row(escape(name), escape(text), *map(size_text, (*held, *sizes)))
    console = wide_console()
    console.print(table)
    for kind, names in (("added", found.added), ("removed", found.removed)):
        if names:
            console.print(f"{kind}: {', '.join(names)}", markup=False)
    console.print(
        f"moved: {size_text(found.intra_node_bytes)} within nodes, "
        f"{size_text(found.inter_node_bytes)} between nodes; busiest rank "
        f"{found.bottleneck_ms[0]:.4g} -> {found.bottleneck_ms[1]:.4g} ms"
    )


def extend(arguments: argparse.Namespace) -> None:
    """Plan new tables beside those of a plan and write the new plan file."""
    before = load_plan(arguments.plan)
    plan = extend_plan(before, read_tables(arguments), max_move_bytes=arguments.max_move)
    save_plan(plan, arguments.output)
    moved = diff_plans(before, plan)
    total = size_text(moved.intra_node_bytes + moved.inter_node_bytes)
    _report(plan, arguments, f"wrote {arguments.output}; {total} of existing tables move")


def whatif(arguments: argparse.Namespace) -> None:
    """Print one row for each topology and world size."""
    sizes = [worker_count(size) for size in arguments.world_size.split(",")]
    names = [name.strip() for name in arguments.topology.split(",")]
    dense = None
    if arguments.dense_ms is not None:
        dense = DensePart(arguments.dense_ms, arguments.dense_parameters)
    elif arguments.dense_parameters:
        raise PlanError("--dense-parameters needs --dense-ms, the milliseconds of their step")
    topologies = [load_topology(name) for name in names]
    rows = try_topologies(read_tables(arguments), topologies, sizes, dense)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print_rows(rows, wide_console())


def to_cpu_plan(arguments: argparse.Namespace) -> None:
    """Convert a plan to CPU ranks, write it, and list the substitutions."""
    topology = this_topology("cpu", arguments.ranks, arguments.ranks)
    plan, lines = to_cpu(
        load_plan(arguments.plan),
        topology,
        row_scale=arguments.row_scale,
        table_set=tables_of_config(arguments)[0] if arguments.config else None,
    )
    save_plan(plan, arguments.output)
    if arguments.json:
        print(json.dumps({"plan": facts(plan), "substitutions": lines}, indent=1))
        return
    for line in lines:
        print(line)
    log.info("%d substitutions; wrote %s", len(lines), arguments.output)


def _report(
    plan: Plan, arguments: argparse.Namespace, message: str = "", *, most_tables: int = 40
) -> None:
    known = facts(plan)
    if arguments.json:
        print(json.dumps(known, indent=1))
    else:
        wide_console().print(render(plan, most_tables=most_tables))
    if known["outside_hbm_bytes"]:
        log.warning(
            "%s of the rows and optimizer state (%.0f %%) are outside of HBM, which is far slower; "
            "`whatif` shows how many workers keep all of them in HBM",
            *(size_text(known["outside_hbm_bytes"]), 100 * known["outside_hbm_share"]),
        )
    if message:
        log.info("%s", message)
