"""Predictions: against an unsharded model and evaluation, by any number of workers, and resumed."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from infnet_dist.config.run import Config
from infnet_dist.data.manifest import read_manifest
from infnet_dist.data.reader import Reader
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError, UserError
from infnet_dist.io.filesystem import Folder
from infnet_dist.lookups import table_of
from infnet_dist.model.build import build_train_model
from infnet_dist.prediction import part_writer
from infnet_dist.prediction.job import PredictionJob, PredictionRequest, begin_job
from infnet_dist.prediction.output import finish
from infnet_dist.prediction.predict import predict
from infnet_dist.training.evaluation import evaluate_checkpoint
from infnet_dist.training.setup import open_training_set
from infnet_dist.training.trainer import train
from ray_jobs._worker_errors import WorkerLostError
from tests.ranks import run_ranks
from tests.run_files import tensors
from tests.runs import make_config, make_tiny_set

KINDS = {"num_tags": 12, "num_interests": 9, "content_dim": 4}
FLAT = ["user", "item", "duration"]  # features that CSV can hold
TASKS = ("click", "like", "long_view")


class Trained:
    """A training set and the checkpoint of a short run on it."""

    def __init__(self, folder: Path, data: Path, /, **changes: Any) -> None:
        self.data, self.run = data, folder / "test" / "run"
        training = {"max_steps": 20}
        saving = {"every_steps": 10, "keep_last": 2}
        self.config = make_config(data, folder, training=training, checkpoint=saving, **changes)
        run_ranks(train, 2, config=self.config, run_folder=self.run)
        self.path = Folder(self.run / "checkpoints" / "step-00000020")

    def begin(
        self,
        output: Path,
        config: Config | None = None,
        path: Folder | None = None,
        **asked: Any,
    ) -> PredictionJob:
        config = config or self.config
        manifest, schema = open_training_set(config)
        asked = {"rows_per_part": 1} | asked
        if "place" not in asked:
            asked = {"split": "valid"} | asked
        request = PredictionRequest(output=Folder(output), **asked)
        return begin_job(config, path or self.path, request, schema, manifest)

    def predict(self, output: Path, workers: int = 2, **asked: Any) -> dict[str, Any]:
        job = self.begin(output, **asked)
        return self.finish(job, workers)

    def finish(self, job: PredictionJob, workers: int = 2) -> dict[str, Any]:
        if job.left:
            run_ranks(predict, workers, config=self.config, path=self.path, job=job)
        tables = {feature.key: feature.table for feature in job.schema.table_features}
        return finish(job.output, job.identity, job.parts, tables)

    def valid(self) -> pa.Table:
        """The rows of valid, in order."""
        parts = read_manifest(self.data).split("valid").parts
        return pa.concat_tables([pq.read_table(self.data / part.file) for part in parts])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with every kind of feature; valid has 11 row groups in 2 files, of 40 rows at most."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    make_tiny_set(folder, **KINDS, num_rows=4_000, row_group_rows=40, rows_per_part=300)
    assert len(read_manifest(folder).split("valid").parts) == 2
    return folder


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    cross = {"user_item": {"features": ["user", "item"], "num_embeddings": 50}}
    reading = {"batch_size": 32, "shuffle_rows": 1_000, "crosses": cross}
    return Trained(tmp_path_factory.mktemp("runs"), data, data=reading)


@pytest.fixture(scope="module")
def flat(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model that reads no lists."""
    reading = {"batch_size": 32, "shuffle_rows": 1_000, "features": FLAT}
    return Trained(tmp_path_factory.mktemp("flat"), data, data=reading)


@pytest.fixture(scope="module")
def scored(model: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The predictions of valid, by two workers without a fault."""
    folder = tmp_path_factory.mktemp("scored") / "valid"
    model.predict(folder, logits=True, keys={"time": "time_ms", "user_key": "user_id"})
    return folder


def read(folder: Path) -> pa.Table:
    """All parts in the order of their names."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def unsharded_logits(trained: Trained) -> np.ndarray:
    """Logits of valid by one process with whole tables, in the order on disk."""
    manifest, schema = open_training_set(trained.config)
    module = build_train_model(trained.config, schema)
    saved, found = tensors(trained.run), {}
    for name in module.state_dict():
        table = table_of(name)
        found[name] = saved[f"model.tables.{table}.weight" if table else f"model.{name}"]
    module.load_state_dict(found)
    module.eval()
    reader = Reader(
        folder=trained.data,
        manifest=manifest,
        schema=schema,
        split="valid",
        batch_size=100,
        rank=0,
        world_size=1,
    )
    with torch.no_grad():
        logits = [module(batch)[1].logits_BK[: batch.num_rows] for batch in reader.batches()]
    return torch.cat(logits).numpy()


def test_scores_are_those_of_an_unsharded_model(model: Trained, scored: Path) -> None:
    table, rows = read(scored), model.valid()
    logits_NK = unsharded_logits(model)
    assert len(table) == len(rows) == len(logits_NK)
    assert table.column_names[:4] == ["time", "user_key", "source_file", "source_row"]
    for k, task in enumerate(TASKS):
        np.testing.assert_allclose(table[f"{task}_logit"], logits_NK[:, k], rtol=0, atol=1e-5)
        expected = 1 / (1 + np.exp(-logits_NK[:, k].astype(np.float64)))
        np.testing.assert_allclose(table[task], expected, rtol=0, atol=1e-6)
    assert table["time"].equals(rows["time_ms"])
    assert table["user_key"].equals(rows["user_id"])


def test_every_row_names_its_place(model: Trained, scored: Path) -> None:
    table = read(scored)
    parts = read_manifest(model.data).split("valid").parts
    expected = [(part.file, row) for part in parts for row in range(part.rows)]
    found = zip(table["source_file"].to_pylist(), table["source_row"].to_pylist(), strict=True)
    assert list(found) == expected


def test_rows_within_times_name_their_place(model: Trained, tmp_path: Path) -> None:
    """With data.valid_from, which divides row groups, valid has some rows of train's files."""
    times = pq.read_table(model.data / "train" / "part-00000.parquet")["time_ms"].to_pylist()
    first = sorted(times)[-17]
    reading = model.config.data.model_copy(update={"valid_from": first})
    config = model.config.model_copy(update={"data": reading})
    job = model.begin(tmp_path / "scores", config, keys={"time": "time_ms"}, rows_per_part=500)
    run_ranks(predict, 2, config=config, path=model.path, job=job)
    table, stored = read(tmp_path / "scores"), dict[str, list[int]]()
    assert len(set(table["source_file"].to_pylist())) > 2
    columns = (table[name].to_pylist() for name in ("source_file", "source_row", "time"))
    for file, row, time in zip(*columns, strict=True):
        if file not in stored:
            stored[file] = pq.read_table(model.data / file)["time_ms"].to_pylist()
        assert stored[file][row] == time >= first


def test_metrics_of_the_scores_are_those_of_an_evaluation(model: Trained, scored: Path) -> None:
    metrics = run_ranks(
        evaluate_checkpoint, 2, config=model.config, path=model.path, split="valid"
    )[0]["metrics"]
    table, rows = read(scored), model.valid()
    labels = {task.name: task.column for task in read_manifest(model.data).schema_.tasks}
    for task in TASKS:
        auc = roc_auc_score(rows[labels[task]].to_numpy(), table[f"{task}_logit"].to_numpy())
        assert auc == pytest.approx(metrics[f"valid/auc/{task}"], abs=1e-9)
        mean = float(np.mean(table[task].to_numpy(), dtype=np.float64))
        base = float(np.mean(rows[labels[task]].to_numpy()))
        assert mean / base == pytest.approx(metrics[f"valid/calibration/{task}"], rel=1e-5)


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_writes_the_same_rows(
    model: Trained, scored: Path, tmp_path: Path, workers: int
) -> None:
    """In the same parts; sums over other shards differ by rounding."""
    keys = {"time": "time_ms", "user_key": "user_id"}
    model.predict(tmp_path / "scores", workers, logits=True, keys=keys)
    other, table = read(tmp_path / "scores"), read(scored)
    assert {p.name for p in (tmp_path / "scores").glob("*")} == {p.name for p in scored.glob("*")}
    for name in ("time", "user_key", "source_file", "source_row"):
        assert other[name].equals(table[name]), name
    for name in table.column_names[4:]:
        np.testing.assert_allclose(other[name], table[name], rtol=0, atol=1e-6)


def killed_after(
    context: WorkerContext, *, config: Config, path: Folder, job: PredictionJob, parts: int
) -> Any:
    """Predict, but the last rank is killed as it publishes one more part than `parts`."""
    publish, left = part_writer.PartWriter.publish, [parts]

    def counted(writer: part_writer.PartWriter, output: Folder) -> None:
        left[0] -= 1
        if left[0] < 0 and context.rank == context.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        publish(writer, output)

    part_writer.PartWriter.publish = counted  # type: ignore[method-assign]
    return predict(context, config=config, path=path, job=job)


def test_a_killed_worker_and_the_same_command_again(
    model: Trained, scored: Path, tmp_path: Path
) -> None:
    """Byte for byte what two workers write without a fault, each row once."""
    output = tmp_path / "scores"
    asked = {"logits": True, "keys": {"time": "time_ms", "user_key": "user_id"}}
    job = model.begin(output, **asked)
    assert len(job.left) == len(job.parts) > 8
    with pytest.raises(WorkerLostError):
        run_ranks(killed_after, 2, config=model.config, path=model.path, job=job, parts=2)
    assert not (output / "_prediction.json").exists()
    (output / ".part-000001.parquet.partial").write_bytes(b"what a killed worker leaves")
    before = contents(output)
    assert 2 <= len(before) < len(job.parts)
    again = model.begin(output, **asked)
    assert len(again.left) == len(job.parts) - len(before)
    result = model.finish(again)
    assert contents(output) == contents(scored)
    assert result["rows"] == len(model.valid())
    expected = float(np.mean(read(output)["click"].to_numpy(), dtype=np.float64))
    assert result["mean_score"]["click"] == pytest.approx(expected, abs=1e-9)
    finished = model.begin(output, **asked)
    assert not finished.left
    assert model.finish(finished) == result


def test_a_damaged_part_is_written_again(model: Trained, scored: Path, tmp_path: Path) -> None:
    shutil.copytree(scored, tmp_path / "scores")
    part = tmp_path / "scores" / "part-000003.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    job = model.begin(
        tmp_path / "scores", logits=True, keys={"time": "time_ms", "user_key": "user_id"}
    )
    assert [part.number for part in job.left] == [3]
    assert not (tmp_path / "scores" / "_prediction.json").exists()
    model.finish(job)
    assert contents(tmp_path / "scores") == contents(scored)


def test_unknown_ids_are_counted_by_table(model: Trained, tmp_path: Path) -> None:
    result = model.predict(tmp_path / "scores")
    schema = open_training_set(model.config)[1]
    rows, counts = model.valid(), dict[str, list[int]]()
    for feature in schema.categorical:
        counts.setdefault(feature.table, []).extend(rows[feature.column].to_pylist())
    for bag in schema.bags:
        ids = [i for found in rows[bag.column].to_pylist() for i in found[: bag.max_length]]
        counts.setdefault(bag.table, []).extend(ids)
    for sequence in schema.sequences:
        for a in sequence.attributes:
            lists = rows[a.column].to_pylist()
            ids = [i for found in lists for i in found[: sequence.max_length]]
            counts.setdefault(a.table, []).extend(ids)
    for table, ids in counts.items():
        expected = ids.count(0) / len(ids)
        assert result["unknown_id_share"][table] == pytest.approx(expected, abs=1e-12), table
    assert result["unknown_id_share"].keys() == {table.name for table in schema.tables}


@pytest.fixture(scope="module")
def files(model: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of valid without labels and times, as other software writes them, in two files."""
    folder = tmp_path_factory.mktemp("files") / "rows"
    (folder / "later").mkdir(parents=True)
    schema = read_manifest(model.data).schema_
    dropped = {task.column for task in schema.tasks} | {schema.time_column}
    rows = model.valid().drop_columns(
        [name for name in dropped if name in model.valid().schema.names]
    )
    for place, field in enumerate(rows.schema):
        kind = field.type
        if kind == pa.int64() and field.name != schema.group_column:
            kind = pa.int32()
        elif pa.types.is_list(kind):
            kind = pa.large_list(kind.value_type)
        elif kind == pa.float32():
            kind = pa.float64()
        rows = rows.set_column(place, field.name, rows.column(place).cast(kind))
    pq.write_table(rows.slice(0, 150), folder / "a.parquet", row_group_size=64)
    pq.write_table(rows.slice(150), folder / "later" / "b.parquet", row_group_size=1_000)
    (folder / "_SUCCESS").touch()
    return folder


def test_files_of_rows_without_labels(
    model: Trained, scored: Path, files: Path, tmp_path: Path
) -> None:
    model.predict(tmp_path / "scores", place=str(files), keys={"user_id": "user_id"})
    table, expected = read(tmp_path / "scores"), read(scored)
    for task in TASKS:
        np.testing.assert_allclose(table[task], expected[task], rtol=0, atol=1e-6)
    assert table["user_id"].equals(expected["user_key"])
    names = table["source_file"].to_pylist()
    assert names == ["a.parquet"] * 150 + ["later/b.parquet"] * (len(names) - 150)
    assert table["source_row"].to_pylist() == [*range(150), *range(len(names) - 150)]


@pytest.mark.parametrize("ending", [".csv", ".tsv.gz"])
def test_csv(flat: Trained, tmp_path: Path, ending: str) -> None:
    """Blocks of text in place of row groups, and the same scores as the rows in Parquet."""
    schema = open_training_set(flat.config)[1]
    columns = [f.column for f in (*schema.categorical, *schema.dense)]
    rows = flat.valid()
    notes = [f"row, {i}" for i in range(len(rows))]
    table = rows.select(columns).append_column("note", pa.array(notes))
    path = tmp_path / f"rows{ending}"
    options = pa.csv.WriteOptions(delimiter="\t" if "tsv" in ending else ",")
    with pa.output_stream(path, compression="gzip" if ending.endswith(".gz") else None) as out:
        pa.csv.write_csv(table, out, options)
    flat.predict(tmp_path / "csv", place=str(path), keys={"note": "note"})
    flat.predict(tmp_path / "split")
    found, expected = read(tmp_path / "csv"), read(tmp_path / "split")
    for task in TASKS:
        np.testing.assert_allclose(found[task], expected[task], rtol=0, atol=1e-6)
    assert found["note"].to_pylist() == notes
    assert found["source_row"].to_pylist() == list(range(len(rows)))


def test_csv_in_several_blocks(
    flat: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infnet_dist.ingest.logs.reading.csv_text.BLOCK_BYTES", 2_000)
    schema = open_training_set(flat.config)[1]
    columns = [f.column for f in (*schema.categorical, *schema.dense)]
    pa.csv.write_csv(flat.valid().select(columns), tmp_path / "rows.csv")
    job = flat.begin(tmp_path / "csv", place=str(tmp_path / "rows.csv"))
    assert len(job.parts) > 3
    flat.finish(job, 3)
    flat.predict(tmp_path / "split")
    found, expected = read(tmp_path / "csv"), read(tmp_path / "split")
    np.testing.assert_allclose(found["click"], expected["click"], rtol=0, atol=1e-6)


@pytest.fixture
def one_file(files: Path, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "rows.parquet"
    shutil.copy(files / "a.parquet", path)
    yield path


def changed(path: Path, column: str, value: Any, kind: pa.DataType | None = None) -> None:
    """Rewrite a file with one value of a column changed, at row 70."""
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    values[70] = value
    array = pa.array(values, kind or table.schema.field(place).type)
    pq.write_table(table.set_column(place, column, array), path, row_group_size=64)


def column_of(trained: Trained, feature: str) -> str:
    schema = open_training_set(trained.config)[1]
    return next(f.column for f in (*schema.categorical, *schema.dense) if f.name == feature)


@pytest.mark.parametrize(
    ("feature", "value", "kind", "named"),
    [
        ("item", 5_000, None, ["row group 1", "5000", "'item'", "prepared"]),
        ("item", None, None, ["row group 1", "null"]),
        ("item", "song", pa.string(), ["rows.parquet", "string", "int64", "prepared"]),
        ("item_age", float("inf"), None, ["row group 1", "inf"]),
    ],
)
def test_a_value_that_the_model_cannot_read_is_named(
    model: Trained,
    one_file: Path,
    tmp_path: Path,
    feature: str,
    value: Any,
    kind: pa.DataType | None,
    named: list[str],
) -> None:
    column = column_of(model, feature)
    if kind is not None:
        table = pq.read_table(one_file)
        place = table.schema.get_field_index(column)
        texts = pa.array([str(v) for v in table[column].to_pylist()])
        pq.write_table(table.set_column(place, column, texts), one_file, row_group_size=64)
    else:
        changed(one_file, column, value)
    with pytest.raises(UserError) as caught:
        model.predict(tmp_path / "scores", 1, place=str(one_file))
    for word in [*named, repr(column)]:
        assert word in str(caught.value)
    assert not (tmp_path / "scores" / "_prediction.json").exists()


def test_a_row_group_that_cannot_be_read_is_named(
    model: Trained, one_file: Path, tmp_path: Path
) -> None:
    """The parts before it are kept."""
    chunk = pq.read_metadata(one_file).row_group(2).column(0)
    content = bytearray(one_file.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 16] = b"\xff" * 16
    one_file.write_bytes(content)
    with pytest.raises(UserError, match=r"row group 2 of rows\.parquet"):
        model.predict(tmp_path / "scores", 1, place=str(one_file))
    assert "part-000000.parquet" in contents(tmp_path / "scores")


def test_a_score_that_is_not_finite_is_an_error(
    model: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = "infnet_dist.prediction.scores.Scores.__call__"
    monkeypatch.setattr(
        forward, lambda self, logits: torch.full((len(logits), 2 * len(TASKS)), torch.nan)
    )
    with pytest.raises(CheckpointError, match=r"'click'.*\brow 0 of valid/part-00000"):
        model.predict(tmp_path / "scores", 1)
    assert not contents(tmp_path / "scores")


def test_a_resume_after_a_change_is_refused(model: Trained, one_file: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"place": str(one_file), "keys": {"user_id": "user_id"}}
    output = tmp_path / "scores"
    model.begin(output, **asked)
    for change, named in [
        ({"keys": {}}, ["--keys"]),
        ({"tasks": ["like"]}, ["--tasks", "like"]),
        ({"logits": True}, ["--logits"]),
        ({"rows_per_part": 7}, ["--rows-per-part", "7"]),
    ]:
        with pytest.raises(UserError) as caught:
            model.begin(output, **asked | change)
        for word in [*named, "--overwrite", str(output)]:
            assert word in str(caught.value)
    shutil.copytree(model.path.url, tmp_path / "copy")
    model.begin(output, path=Folder(tmp_path / "copy"), **asked)  # the same checkpoint
    with pytest.raises(UserError, match=r"step-00000010.*--overwrite"):
        model.begin(output, path=model.path.parent / "step-00000010", **asked)
    changed(one_file, "user_id", 3)
    with pytest.raises(UserError, match=r"rows\.parquet.*--overwrite"):
        model.begin(output, **asked)
    job = model.begin(output, **asked, overwrite=True)
    result = model.finish(job, 1)
    assert read(output)["user_id"][70].as_py() == 3
    assert result["rows"] == 150


def test_an_overwritten_prediction_leaves_no_old_part(model: Trained, tmp_path: Path) -> None:
    output = tmp_path / "scores"
    model.predict(output, 1)
    job = model.begin(output, rows_per_part=1_000_000, overwrite=True)
    assert not contents(output) and not (output / "_prediction.json").exists()
    model.finish(job, 1)
    assert list(contents(output)) == ["part-000000.parquet"]


def test_a_folder_of_something_else_is_left_alone(model: Trained, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"notes\.txt"):
            model.begin(tmp_path, overwrite=overwrite)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "_prediction.json").write_text('{"identity": {"files": 7}}')
    with pytest.raises(UserError, match="choose another"):
        model.begin(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"keys": {"tme": "tme"}}, ["--keys", "'tme'", "'time_ms'"]),
        ({"keys": {"click": "click"}}, ["--keys", "'click'", "my_click=click"]),
        ({"tasks": ["clik"]}, ["--tasks", "'clik'", "'click'"]),
        ({"split": "velid"}, ["'velid'", "'valid'"]),
        ({"place": "{none}"}, ["--input", "none", "doesn't exist"]),
        ({"place": "{data}"}, ["--split", "training set"]),
        ({"place": "{empty}"}, ["empty", "no Parquet"]),
        ({"place": "{no_rows}"}, ["no_rows.parquet", "no rows"]),
        ({"place": "{raw}"}, ["raw.parquet", "column", "int64", "prepared"]),
        ({"place": "{csv}"}, ["rows.csv", "lists", "Parquet"]),
        ({"place": "{text}"}, ["text.parquet", "can't be read"]),
    ],
)
def test_what_is_wrong_is_said_before_any_worker_starts(
    model: Trained, files: Path, tmp_path: Path, asked: dict[str, Any], named: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    pq.write_table(pq.read_table(files / "a.parquet").slice(0, 0), tmp_path / "no_rows.parquet")
    pq.write_table(pa.table({"video": ["a"], "viewer": ["b"]}), tmp_path / "raw.parquet")
    (tmp_path / "text.parquet").write_text("not Parquet")
    (tmp_path / "rows.csv").write_text("item\n1\n")
    places = {"none": tmp_path / "none", "data": model.data, "empty": tmp_path / "empty"}
    for name in ("no_rows", "raw", "text"):
        places[name] = tmp_path / f"{name}.parquet"
    places["csv"] = tmp_path / "rows.csv"
    asked = {k: v.format(**places) if isinstance(v, str) else v for k, v in asked.items()}
    with pytest.raises(UserError) as caught:
        model.begin(tmp_path / "scores", **asked)
    for word in named:
        assert word in str(caught.value)
    assert not (tmp_path / "scores").exists()


def test_an_input_that_changes_while_it_is_read_is_refused(
    model: Trained, one_file: Path, tmp_path: Path
) -> None:
    job = model.begin(tmp_path / "scores", place=str(one_file))
    changed(one_file, "user_id", 3)
    with pytest.raises(UserError, match=r"rows\.parquet changed"):
        run_ranks(predict, 1, config=model.config, path=model.path, job=job)


def test_a_larger_batch_than_the_input(model: Trained, scored: Path, tmp_path: Path) -> None:
    reading = model.config.data.model_copy(update={"batch_size": 1_000})
    config = model.config.model_copy(update={"data": reading})
    job = model.begin(tmp_path / "scores", config, rows_per_part=None)
    assert len(job.parts) == 1
    run_ranks(predict, 2, config=config, path=model.path, job=job)
    np.testing.assert_allclose(
        read(tmp_path / "scores")["like"], read(scored)["like"], rtol=0, atol=1e-6
    )
