"""Plan the sharding of embedding tables, also of tables that don't exist yet; no GPU, no Ray.

    P="infnet plan"
    $P make --tables TABLES.yaml --topology h100x8 --world-size 128 --output PLAN
    $P make --config CONFIG --output PLAN
    $P show PLAN --html PAGE.html
    $P check PLAN --config CONFIG
    $P diff OLD NEW
    $P extend PLAN --tables TABLES.yaml --max-move 50GB --output NEW
    $P whatif --tables TABLES.yaml --topology h100x8,h200x8 --world-size 8,16,32
    $P to-cpu PLAN --ranks 2 --row-scale 0.001 --output NEW

Train under a plan with --set sharding.plan=PLAN.
"""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from infnet_dist.checkpoint import differences_from
from infnet_dist.config.run import Config, load_config
from infnet_dist.data.part_files import part_opener
from infnet_dist.data.statistics import sample_usage
from infnet_dist.errors import PlanError
from infnet_dist.io.console import wide_console
from infnet_dist.io.filesystem import Folder, size_text
from infnet_dist.io.paths import make_writable
from infnet_dist.planning.budget import overfull
from infnet_dist.planning.compare import diff_plans
from infnet_dist.planning.convert import to_cpu
from infnet_dist.planning.plan import Plan, differences, first_few, load_plan, save_plan
from infnet_dist.planning.planner import extend_plan, make_plan
from infnet_dist.planning.review import byte_facts, facts, render, write_html, write_png
from infnet_dist.planning.sharding import tables_of_run
from infnet_dist.planning.tables import TableSet, load_table_set
from infnet_dist.planning.topology import Topology, load_topology, this_topology
from infnet_dist.training.setup import open_training_set
from ray_jobs._cli import log, read_config, run_main
from ray_jobs._options import parse
from ray_jobs._whatif import print_rows, try_topologies


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand."""
    arguments = parse("plan", argv)
    for option in ("output", "html", "png"):
        if (path := getattr(arguments, option, None)) is not None:
            make_writable(path.parent, f"--{option}")
    _COMMANDS[arguments.command](arguments)


# ---- the commands


def _make(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    table_set = _table_set(arguments)
    plan = make_plan(table_set, _topology(arguments))
    save_plan(plan, arguments.output)
    _report(plan, arguments, f"wrote {arguments.output} in {time.perf_counter() - start:.1f} s")


def _show(arguments: argparse.Namespace) -> None:
    plan = load_plan(arguments.plan)
    if arguments.html:
        write_html(plan, arguments.html)
        log.info("wrote %s", arguments.html)
    if arguments.png:
        write_png(plan, arguments.png)
        log.info("wrote %s", arguments.png)
    _report(plan, arguments, most_tables=arguments.tables)


def _check(arguments: argparse.Namespace) -> None:
    plan = load_plan(arguments.plan)
    if not (arguments.config or arguments.topology or arguments.checkpoint):
        raise PlanError("nothing to check against: give --config, --topology or --checkpoint")
    own, world_size = plan.made_for.tables, plan.made_for.topology.world_size
    found = []
    if arguments.config:
        tables, config = _tables_of_config(arguments)
        device = "cuda" if config.scaling.use_gpu else "cpu"
        found += _differences(plan, tables, world_size=config.scaling.num_workers, device=device)
        background = config.checkpoint.background
        found += overfull(plan, plan.made_for.topology, background_save=background)
    if arguments.topology:
        topology = load_topology(arguments.topology)
        per_node = min(topology.workers_per_node, world_size)
        found += _differences(
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


def _differences(plan: Plan, tables: TableSet, **workers: Any) -> list[str]:
    return differences(plan, {table.name: table for table in tables.tables}, **workers)


def _diff(arguments: argparse.Namespace) -> None:
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
    console = wide_console(120)
    console.print(table)
    for kind, names in (("added", found.added), ("removed", found.removed)):
        if names:
            console.print(f"{kind}: {', '.join(names)}", markup=False)
    console.print(
        f"moved: {size_text(found.intra_node_bytes)} within nodes, "
        f"{size_text(found.inter_node_bytes)} between nodes; busiest rank "
        f"{found.bottleneck_ms[0]:.4g} -> {found.bottleneck_ms[1]:.4g} ms"
    )


def _extend(arguments: argparse.Namespace) -> None:
    before = load_plan(arguments.plan)
    plan = extend_plan(before, _table_set(arguments), max_move_bytes=arguments.max_move)
    save_plan(plan, arguments.output)
    moved = diff_plans(before, plan)
    total = size_text(moved.intra_node_bytes + moved.inter_node_bytes)
    _report(plan, arguments, f"wrote {arguments.output}; {total} of existing tables move")


def _whatif(arguments: argparse.Namespace) -> None:
    sizes = [_whole_number(size) for size in arguments.world_size.split(",")]
    names = [name.strip() for name in arguments.topology.split(",")]
    rows = try_topologies(_table_set(arguments), [load_topology(name) for name in names], sizes)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print_rows(rows, wide_console(120))


def _to_cpu(arguments: argparse.Namespace) -> None:
    topology = this_topology("cpu", arguments.ranks, arguments.ranks)
    plan, lines = to_cpu(
        load_plan(arguments.plan),
        topology,
        row_scale=arguments.row_scale,
        table_set=_tables_of_config(arguments)[0] if arguments.config else None,
    )
    save_plan(plan, arguments.output)
    if arguments.json:
        print(json.dumps({"plan": facts(plan), "substitutions": lines}, indent=1))
        return
    for line in lines:
        print(line)
    log.info("%d substitutions; wrote %s", len(lines), arguments.output)


# ---- what they share


def _table_set(arguments: argparse.Namespace) -> TableSet:
    if arguments.tables is not None:
        if arguments.overrides:
            raise PlanError("--set changes a run file; --tables has none: edit the tables file")
        return load_table_set(arguments.tables)
    return _tables_of_config(arguments)[0]


def _tables_of_config(arguments: argparse.Namespace) -> tuple[TableSet, Config]:
    config = read_config(arguments)
    manifest, schema = open_training_set(config)
    open_part = part_opener(config.data.reader, schema)
    usage = sample_usage(config.data.path, manifest, schema, open_part)
    return tables_of_run(config, schema, usage), config


def _topology(arguments: argparse.Namespace) -> Topology:
    scaling = (
        load_config(arguments.config, arguments.overrides).scaling if arguments.config else None
    )
    size = arguments.world_size or (scaling.num_workers if scaling else None)
    use_gpu = bool(scaling and scaling.use_gpu)
    if arguments.topology is None and not use_gpu:
        return this_topology("cpu", size or 2, size or 2)
    topology = load_topology(arguments.topology or "h100x8")
    return topology.with_world_size(size) if size else topology


def _report(
    plan: Plan, arguments: argparse.Namespace, message: str = "", *, most_tables: int = 40
) -> None:
    known = facts(plan)
    if arguments.json:
        print(json.dumps(known, indent=1))
    else:
        wide_console(120).print(render(plan, most_tables=most_tables))
    if known["outside_hbm_bytes"]:
        log.warning(
            "%s of the rows and optimizer state (%.0f %%) are outside of HBM, which is far slower; "
            "`whatif` shows how many workers keep all of them in HBM",
            *(size_text(known["outside_hbm_bytes"]), 100 * known["outside_hbm_share"]),
        )
    if message:
        log.info("%s", message)


def _whole_number(text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20) or int(digits) < 1:
        shown = text if len(text) < 40 else f"{text[:40]}..."
        raise PlanError(f"--world-size: {shown!r} is no number of workers; e.g. 8,16,32")
    return int(digits)


_COMMANDS = {
    "make": _make,
    "show": _show,
    "check": _check,
    "diff": _diff,
    "extend": _extend,
    "whatif": _whatif,
    "to-cpu": _to_cpu,
}

if __name__ == "__main__":
    run_main(main)
