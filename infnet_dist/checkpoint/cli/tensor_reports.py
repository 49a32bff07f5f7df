"""The commands `inspect`, `diff` and `export`."""

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field, StrictInt, ValidationError
from rich.markup import escape
from rich.table import Table

from infnet_dist.checkpoint import inspection
from infnet_dist.checkpoint.cli.printing import add_right, bar_of, print_json, table_of
from infnet_dist.checkpoint.differences import Difference, differences
from infnet_dist.checkpoint.discovery import open_checkpoint
from infnet_dist.checkpoint.export import TableExport
from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.errors import CheckpointError
from infnet_dist.io.console import wide_console
from infnet_dist.io.filesystem import Folder, size_text
from infnet_dist.io.parsing import Name, first_error, parse_json, printable
from infnet_dist.io.urls import without_secrets

_MOST_TENSORS = 30
_PARTS = ("table", "dense", "optimizer")


def inspect_command(arguments: argparse.Namespace) -> int:
    """Print statistics of a checkpoint's tables, dense part, progress and plan."""
    folder, manifest = open_checkpoint(arguments.checkpoint)
    reader = TensorReader(folder, manifest)
    names = inspection.tables_of(manifest)
    plan = _plan(folder, manifest)
    with bar_of(_bytes_of_tensors(manifest), "inspect") as bar:
        dense = inspection.dense_facts(reader, manifest, bar.update)
        tables = [inspection.table_facts(reader, manifest, name, bar.update) for name in names]
    tables.sort(key=lambda table: (-table.num_bytes, table.name))
    if arguments.json:
        found = manifest.model_dump(mode="json", include={"progress", "order", "world_size"})
        found |= {"checkpoint": str(folder), "bytes": manifest.num_bytes}
        found |= {"metrics": manifest.metrics, "plan": plan}
        found |= {"tables": [asdict(table) for table in tables], "dense": asdict(dense)}
        print_json(found)
        return 0
    wide_console().print(_render_tables(tables))
    for line in _lines(manifest, dense, plan):
        print(line)
    return 0


def _render_tables(tables: Sequence[inspection.TableFacts]) -> Table:
    table = table_of("Tables", "table", "shape", "type")
    add_right(table, "rows", "optimizer", "chunks", "norm", "mean row", "max row", "untrained")
    for one in tables:
        count = "" if one.untrained is None else f"{one.untrained:,}"
        bad = f" [red]{one.not_finite:,} not finite[/]" if one.not_finite else ""
        table.add_row(
            escape(one.name) + bad,
            f"{one.num_embeddings:,} x {one.embedding_dim}",
            one.data_type,
            size_text(one.num_bytes),
            size_text(one.optimizer_bytes),
            f"{one.chunks:,}",
            *(f"{norm:.5g}" for norm in (one.norm, one.mean_row_norm, one.max_row_norm)),
            count,
        )
    return table


def _lines(
    manifest: CheckpointManifest, dense: inspection.DenseFacts, plan: dict[str, Any] | None
) -> list[str]:
    progress, order = manifest.progress, manifest.order
    where = f"{sum(stop - start for start, stop in progress.consumed):,} rows consumed"
    lines = [
        f"dense part: {dense.values:,} values in {dense.tensors:,} tensors, norm {dense.norm:.5g}, "
        f"{size_text(dense.num_bytes)}, and {size_text(dense.optimizer_bytes)} of its optimizer",
        f"progress: step {progress.step:,}, {progress.examples:,} examples, epoch "
        f"{progress.epoch} ({where}), {progress.skipped:,} steps skipped",
        f"data order: seed {order.seed}, shuffle_rows {order.shuffle_rows:,}, of the training set "
        f"{order.content_hash[:12]} (order version {order.version})",
        f"saved by {manifest.world_size} workers, {size_text(manifest.num_bytes)} in "
        f"{len(manifest.tensor_files)} files of tensors",
    ]
    if plan is not None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in plan["sharding_types"].items())
        lines.append(f"plan: {kinds}, for {plan['world_size']} workers of {plan['topology']}")
    if manifest.metrics:
        lines.append("metrics: " + ", ".join(f"{k} {_number(v)}" for k, v in _first(manifest)))
    return lines


def _first(manifest: CheckpointManifest) -> list[tuple[str, float | None]]:
    return sorted(manifest.metrics.items(), key=lambda item: "/auc/" not in item[0])[:6]


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.5f}"


def _plan(folder: Folder, manifest: CheckpointManifest) -> dict[str, Any] | None:
    """A summary of its plan, from the JSON: the reader in planning imports TorchRec."""
    content = inspection.read_plain(folder, manifest, "plan.json")
    if content is None:
        return None
    try:
        plan = _Plan.model_validate(parse_json(content))
    except ValueError as error:
        fault = first_error(error) if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(f"plan.json in {folder} isn't a plan: {fault}") from None
    topology = plan.made_for.topology
    return {
        "topology": topology.name,
        "world_size": topology.num_nodes * topology.workers_per_node,
        "sharding_types": dict(Counter(table.sharding_type for table in plan.tables.values())),
    }


class _Topology(BaseModel):
    name: Name
    num_nodes: StrictInt = Field(ge=1, lt=2**31)
    workers_per_node: StrictInt = Field(ge=1, lt=2**31)


class _MadeFor(BaseModel):
    topology: _Topology


class _Table(BaseModel):
    sharding_type: Name


class _Plan(BaseModel):
    """The part of a plan that is printed; the rest is ignored."""

    made_for: _MadeFor
    tables: dict[str, _Table]


def diff_command(arguments: argparse.Namespace) -> int:
    """Print the differences of two checkpoints."""
    first, second = open_checkpoint(arguments.first), open_checkpoint(arguments.second)
    total = sum(_bytes_of_tensors(manifest) for _, manifest in (first, second))
    with bar_of(total, "diff") as bar:
        found = differences(first, second, bar.update)
    if arguments.json:
        print_json({"equal": found.equal} | asdict(found))
        return 0 if found.equal else 1
    for names, place in ((found.only_first, "A"), (found.only_second, "B")):
        if names:
            some = ", ".join(names[:_MOST_TENSORS]) + (
                ", ..." if len(names) > _MOST_TENSORS else ""
            )
            print(f"only in {place}, {len(names):,}: {some}")
    for name, (one, other) in list(found.kinds.items())[:_MOST_TENSORS]:
        print(f"{name}: {one} in A, {other} in B")
    if len(found.kinds) > _MOST_TENSORS:
        print(f"... and {len(found.kinds) - _MOST_TENSORS:,} more of other shape or type")
    if found.changed:
        wide_console().print(_render_changed(found.changed))
    for key, (mine, other) in found.config.items():
        print(f"config {printable(key)}: {mine!r} in A, {other!r} in B")
    print(
        f"equal bit for bit: {found.num_equal:,} tensors"
        + ("" if found.equal else f"; changed: {len(found.changed):,}")
    )
    return 0 if found.equal else 1


def _render_changed(changed: Sequence[Difference]) -> Table:
    table = table_of("Tensors that changed", "tensor")
    add_right(table, "rows changed", "of", "max |A - B|", "mean |A - B|")
    in_order = sorted(changed, key=lambda one: (_PARTS.index(_part(one.name)), -one.max_abs))
    for one in in_order[:_MOST_TENSORS]:
        table.add_row(
            escape(one.name),
            f"{one.rows_changed:,}",
            f"{one.rows:,}",
            f"{one.max_abs:.3g}",
            f"{one.mean_abs:.3g}",
        )
    if len(in_order) > _MOST_TENSORS:
        table.caption = f"and {len(in_order) - _MOST_TENSORS:,} more; --json lists them all"
        table.caption_justify = "left"
    return table


def _part(name: str) -> str:
    """The part of the model that a tensor belongs to."""
    if not name.startswith("model."):
        return "optimizer"
    return "table" if inspection.is_table(name) else "dense"


def export_command(arguments: argparse.Namespace) -> int:
    """Export a table as Parquet."""
    folder, manifest = open_checkpoint(arguments.checkpoint)
    wanted = TableExport(
        folder,
        manifest,
        arguments.table,
        rows=arguments.rows,
        with_optimizer=arguments.with_optimizer,
    )
    with bar_of(wanted.num_bytes, "export") as bar:
        wanted.write(arguments.output, bar.update, replace=arguments.force)
    output = without_secrets(arguments.output)
    print(f"wrote {wanted.num_rows:,} rows of table {arguments.table} to {output}")
    return 0


def _bytes_of_tensors(manifest: CheckpointManifest) -> int:
    tensors = manifest.tensors.values()
    return sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors)
