"""What is predicted from what, and where to: decided once, before any worker starts."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from infnet_dist import checkpoint
from infnet_dist.config.run import Config
from infnet_dist.data.manifest import Manifest
from infnet_dist.errors import ConfigError, DataError, unknown_name
from infnet_dist.io.filesystem import Folder
from infnet_dist.prediction.identity import Identity, input_identity
from infnet_dist.prediction.layout import OutputPart, cut_parts, default_part_rows
from infnet_dist.prediction.output import begin, read_identity, unfinished
from infnet_dist.prediction.part_writer import output_schema
from infnet_dist.prediction.sources.files import open_files
from infnet_dist.prediction.sources.prepared import without_labels
from infnet_dist.prediction.sources.source import Source
from infnet_dist.prediction.sources.split import open_split
from infnet_dist.schema import Schema


@dataclass(frozen=True)
class PredictionRequest:
    """What a user asks for.

    Attributes:
        output: folder of the prediction.
        split: of the training set; None: the rows of `place`.
        place: path or URL of prepared rows.
        keys: columns of the input to copy, by name in the output.
        tasks: names of the tasks to score; None: all.
        logits: whether the output has logits too.
        rows_per_part: least number of rows of a part but the last; None: as before, or by default.
        overwrite: whether to replace another prediction in the folder.
    """

    output: Folder
    split: str | None = None
    place: str | None = None
    keys: Mapping[str, str] | None = None
    tasks: Sequence[str] | None = None
    logits: bool = False
    rows_per_part: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class PredictionJob:
    """A prediction that is begun; picklable.

    Attributes:
        source: the input.
        schema: of the model, with the input's columns.
        output: folder of the prediction.
        identity: of the prediction.
        parts: all parts of the output.
        left: those that aren't finished.
    """

    source: Source
    schema: Schema
    output: Folder
    identity: Identity
    parts: tuple[OutputPart, ...]
    left: tuple[OutputPart, ...]

    @property
    def columns(self) -> pa.Schema:
        """The columns of the output."""
        asked = self.identity
        types = self.source.key_types
        return output_schema(asked.keys, types, asked.tasks, logits=asked.logits)

    @property
    def rows(self) -> int:
        """Number of rows of all parts."""
        return sum(part.rows for part in self.parts)


def begin_job(
    config: Config,
    path: Folder,
    request: PredictionRequest,
    schema: Schema,
    manifest: Manifest | None,
) -> PredictionJob:
    """Check the input and the folder of a prediction, and begin or resume it.

    Args:
        config: the run, with the settings of the checkpoint's model.
        path: the checkpoint.
        request: what is asked for.
        schema: of its model, with the columns of the training set, if there is one.
        manifest: of the training set; None only for an input of files.

    Raises:
        DataError: the input or the folder is unsuitable; names file and column.
        ConfigError: unknown tasks, or two columns of the output with one name.
    """
    tasks = _chosen_tasks(schema, request.tasks)
    keys = dict(request.keys or {})
    source = _open_source(config, request, schema, manifest, [*dict.fromkeys(keys.values())])
    _check_names(output_schema(keys, source.key_types, tasks, logits=request.logits).names)
    rows = sum(file.rows for file in source.files)
    if not rows:
        raise DataError(f"{source.place} has no rows; name another input")
    before = read_identity(request.output)
    kept = before.rows_per_part if before is not None and not request.overwrite else None
    default = default_part_rows(rows, config.data.batch_size)
    identity = Identity(
        checkpoint=str(path),
        step=checkpoint.read_manifest(path).progress.step,
        checkpoint_sha256=hashlib.sha256(path.read(checkpoint.MANIFEST)).hexdigest(),
        input=source.place,
        files=input_identity(source),
        schema_sha256=hashlib.sha256(schema.model_dump_json().encode()).hexdigest(),
        keys=keys,
        tasks=tasks,
        logits=request.logits,
        rows_per_part=request.rows_per_part or kept or default,
        config=config.model_dump(mode="json"),
    )
    parts = cut_parts(source.files, identity.rows_per_part)
    begin(request.output, identity, before, overwrite=request.overwrite)
    left = unfinished(request.output, parts, identity)
    return PredictionJob(source, schema, request.output, identity, parts, left)


def _open_source(
    config: Config,
    request: PredictionRequest,
    schema: Schema,
    manifest: Manifest | None,
    keys: Sequence[str],
) -> Source:
    columns = without_labels(schema)
    if request.place is not None:
        return open_files(request.place, columns, keys)
    assert request.split is not None and manifest is not None
    folder, reader = config.data.path, config.data.reader
    return open_split(folder, manifest, request.split, columns, reader=reader, keys=keys)


def _chosen_tasks(schema: Schema, names: Sequence[str] | None) -> tuple[str, ...]:
    known = [task.name for task in schema.tasks]
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--tasks: {unknown_name('task', name, known)}")
    return tuple(name for name in known if names is None or name in names)


def _check_names(names: Sequence[str]) -> None:
    """Check that the output has no two columns of one name."""
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            raise ConfigError(
                f"--keys: {name!r} would be the name of {names.count(name)} columns of the "
                f"output; rename the key: --keys my_{name}={name}"
            )
