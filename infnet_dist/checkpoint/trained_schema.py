"""The schema of a checkpoint's model, and its comparison with a run's schema."""

from collections.abc import Container
from pathlib import Path

from pydantic import ValidationError

from infnet_dist.checkpoint.inspection import read_plain, tables_of
from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.data.schema_changes import (
    feature_names,
    incompatibilities,
    schema_differences,
    summary_of,
)
from infnet_dist.errors import CheckpointError, UserError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.parsing import first_error, parse_json
from infnet_dist.schema import Schema

SCHEMA = "schema.json"


def read_schema(folder: Folder, manifest: CheckpointManifest) -> Schema | None:
    """The schema that was saved with it; None in old checkpoints, which have none.

    Raises:
        DamagedError: its checksum is wrong.
        CheckpointError: it isn't a schema.
        OSError: it can't be read.
    """
    content = read_plain(folder, manifest, SCHEMA)
    if content is None:
        return None
    try:
        return Schema.model_validate(parse_json(content))
    except (ValueError, UserError) as error:
        fault = first_error(error) if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(f"{SCHEMA} in {folder} isn't a schema: {fault}") from None


def check_same(
    folder: Folder, manifest: CheckpointManifest, trained: Schema | None, here: Schema
) -> None:
    """Check that a run has the features, tables and tasks of a checkpoint, in the same order.

    The content of the training set is checked elsewhere (`data_changes`).

    Raises:
        CheckpointError: names the differences and the fix.
    """
    if trained is None:
        lines, names = table_changes(manifest, here), "data.features"
    else:
        lines, names = schema_differences(trained, here, statistics=False), feature_names(trained)
    if lines:
        raise CheckpointError(
            f"{folder} is of a model with another schema: {summary_of(lines)}; resume with the "
            f"training set and the features of its training ({names}), or start a new run from it "
            "with checkpoint.init_from"
        )


def check_readable(
    folder: Folder,
    manifest: CheckpointManifest,
    trained: Schema | None,
    here: Schema,
    training_set: Path,
    grown: Container[str] = frozenset(),
) -> None:
    """Check that a checkpoint's model can read a training set with the schema `here`.

    `grown` are tables that may have gained rows since (`grown_tables`).

    Raises:
        CheckpointError: names the features, tables and tasks that are missing or differ.
    """
    if trained is None:
        lines = table_changes(manifest, here)
    else:
        lines = incompatibilities(trained, here, grown)
    if lines:
        raise CheckpointError(
            f"{folder} can't read {training_set}: {summary_of(lines)}; evaluate on a set with "
            "the features and tables of its training, or on that set after logs were added, or "
            "train a new run"
        )


def table_changes(manifest: CheckpointManifest, here: Schema) -> list[str]:
    """Differences of tables, one line each, judged by the tensors alone."""
    saved = {
        name: manifest.tensors[tensor].shape[0] for name, tensor in tables_of(manifest).items()
    }
    rows = {table.name: table.num_embeddings for table in here.tables}
    lines = [f"table {name!r} is gone" for name in saved if name not in rows]
    lines += [f"table {name!r} is new" for name in rows if name not in saved]
    lines += [
        f"table {name!r}: rows {saved[name]:,}, now {rows[name]:,}"
        for name in saved
        if name in rows and rows[name] != saved[name]
    ]
    return lines
