"""Petastorm data sets become training sets without a copy; ours open in petastorm."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from infnet_dist.config.run import Config, parse_config
from infnet_dist.contrib.petastorm.bridge import load_petastorm
from infnet_dist.contrib.petastorm.metadata import write_petastorm_metadata
from infnet_dist.contrib.petastorm.part import PetastormPart
from infnet_dist.contrib.petastorm.part_file import PetastormFile
from infnet_dist.contrib.petastorm.source import make_training_set
from infnet_dist.data.checks.footers import check_split
from infnet_dist.data.manifest import MANIFEST, read_manifest
from infnet_dist.data.part_files import part_opener
from infnet_dist.data.reader import Reader
from infnet_dist.errors import ConfigError, DataError
from infnet_dist.features.hashing import hashed_rows
from infnet_dist.ingest.logs.pipeline import ingest_logs
from infnet_dist.ingest.logs.stages.runner import one_by_one
from infnet_dist.ingest.writing.existing import training_set_is_current
from infnet_dist.schema import CategoricalFeature, Schema, Table, Task
from infnet_dist.training.setup import open_training_set
from ray_jobs import ingest as ingest_job
from tests.contrib.petastorm_sets import array, scalar, write_set
from tests.unit.raw_logs import TYPES, canonical, make_rows, read_split, write_logs
from tests.unit.raw_logs import settings as log_settings
from tests.unit.test_reader import make_set, make_table

NO_LABEL = [None if i % 9 == 4 else i % 2 for i in range(60)]


def team_rows(rows: int = 60) -> pa.Table:
    """The table of the reader's tests, with what a team's set may have besides."""
    table = make_table(rows)
    first = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    times = [first + datetime.timedelta(seconds=i) for i in range(rows)]
    price = np.where(np.arange(rows) % 5 == 4, np.nan, np.arange(rows) % 5)
    return (
        table.drop_columns(["time_ms", "label", "price"])
        .append_column("price", pa.array(price, pa.float64()))
        .append_column("label", pa.array(NO_LABEL[:rows], pa.int32()))
        .append_column("watch_ms", pa.array(np.arange(rows) * 100, pa.int64()))
        .append_column("time", pa.array(times, pa.timestamp("us", "UTC")))
    )


def write_sets(folder: Path, changes: dict[str, list[Any]] | None = None) -> Path:
    """A train set of 60 rows and a valid set of 20; `changes` replace columns of train."""
    fields = [
        scalar("row", np.int64),
        scalar("user", np.int64),
        array("click_row", np.int64, "NdarrayCodec", nullable=True),
        array("click_author", np.int32, "CompressedNdarrayCodec", nullable=True),
        array("click_gap", np.int64, "NdarrayCodec", nullable=True),
        scalar("price", np.float64, nullable=True),
        scalar("age", np.float32),
        scalar("label", np.int32, nullable=True),
        scalar("watch_ms", np.int64),
    ]
    for split, rows in (("train", 60), ("valid", 20)):
        table = team_rows(rows)
        for name, values in (changes or {}).items() if split == "train" else ():
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(values, table[name].type))
        times = table["time"]
        write_set(folder / split, table, [*fields, _Stored("time")], rows_per_part=25)
        assert pq.read_table(folder / split)["time"].to_pylist() == times.to_pylist()
    return folder


class _Stored:
    """A column that no field describes: petastorm leaves it out, and we may still need it."""

    shape = ()

    def __init__(self, name: str) -> None:
        self.name = name


def settings(raw: Path, **changes: Any) -> dict[str, Any]:
    return {
        "source": "petastorm",
        "path": str(raw),
        "tables": {"row": 1000},
        "categorical": {"row": "row"},
        "sequences": {
            "click": {
                "attributes": {"click_row": "row", "click_author": "author"},
                "max_length": 3,
                "time_gap_column": "click_gap",
            }
        },
        "dense": ["price", "age"],
        "num_buckets": 4,
        "tasks": {"click": "label"},
        "watch_times": {"watch": "watch_ms"},
        "group_column": "user",
        "time_column": "time",
        **changes,
    }


def make_config(raw: Path, folder: Path, **changes: Any) -> Config:
    data = {"path": str(folder), "reader": "petastorm", "batch_size": 8}
    return parse_config({"ingest": settings(raw, **changes), "data": data})


def describe(raw: Path, folder: Path, **changes: Any) -> Any:
    config = make_config(raw, folder, **changes)
    make_training_set(config.ingest, folder)  # type: ignore[arg-type]
    return open_training_set(config)


@pytest.mark.parametrize("place", ["raw", "set"])
def test_the_manifest_says_what_the_rows_say(tmp_path: Path, place: str) -> None:
    raw = write_sets(tmp_path / "raw")
    before = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    manifest, schema = describe(raw, tmp_path / place)
    after = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    after.pop(raw / MANIFEST, None)
    assert before == after
    train = manifest.split("train")
    assert train.rows == 60
    assert [part.row_groups for part in train.parts] == [(7, 7, 7, 4)] * 2 + [(7, 3)]
    assert all(Path(part.file).is_absolute() == (place == "set") for part in train.parts)
    start = int(datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC).timestamp() * 1000)
    assert train.time_range_ms == (start, start + 59_000)
    known = [label for label in NO_LABEL if label is not None]
    assert train.base_rates["click"] == pytest.approx(sum(known) / len(known))
    assert train.base_rates["watch"] == pytest.approx(2950)
    authors = max(max(items, default=0) for items in team_rows()["click_author"].to_pylist())
    assert schema.table("row").num_embeddings == 1000
    assert schema.table("author").num_embeddings == authors + 1
    click, watch = schema.tasks
    assert click.nullable and not watch.nullable and watch.mean_ms == pytest.approx(2950)
    assert schema.dense[0].boundaries == (1.5, 2.5)


def test_rows_come_through_the_reader(tmp_path: Path) -> None:
    manifest, schema = describe(write_sets(tmp_path / "raw"), tmp_path / "set")
    reader = Reader(
        tmp_path / "set",
        manifest,
        schema,
        split="train",
        batch_size=16,
        rank=0,
        world_size=1,
        open_part=part_opener("petastorm", schema),
    )
    table, first = team_rows().to_pylist(), 0
    for batch in reader.batches():
        rows = table[first : first + batch.num_rows]
        ids = batch.sparse_features
        assert ids["row"].values().tolist() == [row["row"] for row in rows]
        items = [item for row in rows for item in row["click_row"][:3]]
        assert ids["click.click_row"].values().tolist() == items
        prices = [row["price"] for row in rows]
        buckets = [0 if np.isnan(p) else 1 + (p > 1.5) + (p > 2.5) for p in prices]
        assert ids["price"].values().tolist() == buckets
        for label, row in zip(batch.labels_BK.tolist(), rows, strict=False):
            assert label[0] == row["label"] or (row["label"] is None and np.isnan(label[0]))
            assert label[1] == pytest.approx(row["watch_ms"] / 2950)
        first += batch.num_rows
    assert first == 60


def test_partition_folders_are_columns(tmp_path: Path) -> None:
    """Spark's partitionBy("tab"): only the name of the folder has the value."""
    raw = write_sets(tmp_path / "raw")
    for split in ("train", "valid"):
        for number, file in enumerate(sorted((raw / split).glob("*.parquet"))):
            folder = raw / split / f"tab={number}"
            folder.mkdir()
            file.rename(folder / file.name)
    manifest, schema = describe(raw, raw, categorical={"row": "row", "tab": "tab"})
    assert schema.table("tab").num_embeddings == 3
    check = {"split": "train", "rank": 0, "world_size": 1}
    opener = part_opener("petastorm", schema)
    check_split(raw, manifest, schema, open_part=opener, **check)
    reader = Reader(raw, manifest, schema, **check, batch_size=100, open_part=opener)
    (batch,) = reader.batches()
    assert batch.sparse_features["tab"].values().tolist() == [0] * 25 + [1] * 25 + [2] * 10


def test_raw_ids_are_hashed_by_the_reader(tmp_path: Path) -> None:
    values = [(-1) ** i * i * 10**12 for i in range(60)]
    raw = write_sets(tmp_path / "raw", {"row": values})
    manifest, schema = describe(raw, tmp_path / "set", tables={"row": 7}, raw_tables=["row"])
    one = {"split": "train", "rank": 0, "world_size": 1}
    opener = part_opener("petastorm", schema)
    (batch,) = Reader(
        tmp_path / "set", manifest, schema, **one, batch_size=60, open_part=opener
    ).batches()
    expected = hashed_rows(np.array(values), 7)
    expected[0] = 0  # the id of the unknown
    assert batch.sparse_features["row"].values().tolist() == expected.tolist()


def test_logs_kept_as_petastorm_give_what_parquet_gives(tmp_path: Path) -> None:
    rows = make_rows(1)
    fields = [
        *(scalar(name, np.int64) for name in ("user_id", "is_like", "play_ms", "time_ms")),
        scalar("item_id", np.int32),
        scalar("author", np.str_, nullable=True),
        array("tags", np.int64, "NdarrayCodec"),
        scalar("duration_s", np.float64, nullable=True),
        scalar("age", np.float32),
        scalar("is_click", np.int8),
    ]
    table = pa.Table.from_pylist(rows, TYPES)
    write_set(tmp_path / "peta", table, fields, rows_per_part=150, row_group_rows=40)
    write_logs(tmp_path / "logs", rows)
    for name, settings_ in (
        ("a", log_settings(tmp_path / "logs")),
        ("b", log_settings(tmp_path / "peta", format="petastorm")),
    ):
        ingest_logs(settings_, tmp_path / name, one_by_one, lambda *_: None)
    for split in ("train", "valid"):
        one, other = (read_split(tmp_path / name, split) for name in "ab")
        assert canonical(one, list(one[0])) == canonical(other, list(one[0]))


def lists(name: str, row: int, items: Any) -> dict[str, list[Any]]:
    values = team_rows()[name].to_pylist()
    values[row] = items
    return {name: values}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (lists("click_row", 31, None), "'click_row'.*'click_author'"),
        (lists("click_author", 33, [1, 2]), "row group 1.*'click_row'.*'click_author'"),
        (lists("click_row", 10, [1, 2, 3, 1000]), r"1000.*'row' .*99"),
        (lists("click_author", 10, [1, 2, -3, 4]), "'click_author'.*-3"),
        (lists("click_gap", 10, [1, 2, -3, 4]), "'click_gap'.*-3"),
        (lists("row", 59, 4000), "00002-1f.*row group 1.*'row'.*4000"),
        (lists("row", 3, None), "row group 0.*'row'.* 1 null"),
        (lists("user", 3, None), "row group 0.*'user'.* 1 null"),
        (lists("label", 26, 2), "00001-1f.*'label'.* 2, .*'click'"),
        (lists("price", 26, float("inf")), "'price'.*inf"),
    ],
)
def test_rows_that_do_not_fit_are_named(
    tmp_path: Path, columns: dict[str, list[Any]], message: str
) -> None:
    raw = write_sets(tmp_path / "raw", columns)
    with pytest.raises(DataError, match=message):
        describe(raw, tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categorical": {"rwo": "row"}}, "'rwo'.*'row'"),
        (
            {"sequences": {"x": {"attributes": {"time": "x"}}}},
            "'time'.*timestamp.*list",
        ),
        (
            {"categorical": {"row": "row", "time": "t"}},
            "'time'.*timestamp.*int",
        ),
        ({"time_column": "age"}, r"ingest\.time_column.*'age'.*float.*integers"),
        ({"splits": {"train": "train", "valid": "late"}}, r"late.*ingest\.splits"),
    ],
)
def test_columns_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    raw = write_sets(tmp_path / "raw")
    with pytest.raises(DataError, match=message):
        describe(raw, tmp_path / "set", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": {"rows": 5}}, "tables.*'rows'.*'row'"),
        ({"raw_tables": ["author"]}, "raw_tables.*'author'.*tables"),
        ({"dense": ["row"]}, "'row'"),
        ({"splits": {"train": "train"}}, "splits.*valid"),
        ({"group_column": "click_row"}, "group_column.*'click_row'"),
        ({"categorical": {}}, "categorical.*{}"),
    ],
)
def test_sections_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(Path("raw"), Path("set"), **changes)


def test_the_command_describes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raw = write_sets(tmp_path / "raw")
    run = {"ingest": settings(Path("raw")), "data": {"path": "raw", "reader": "petastorm"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    monkeypatch.setenv("INFNET_ROOT", str(tmp_path))
    command = ["--config", str(tmp_path / "run.yaml")]
    ingest_job.main(command)
    made = (raw / MANIFEST).stat().st_mtime_ns
    ingest_job.main(command)
    assert (raw / MANIFEST).stat().st_mtime_ns == made
    with pytest.raises(DataError, match=r"ingest\.num_buckets: .*4.*5.*manifest"):
        ingest_job.main([*command, "--set", "ingest.num_buckets=5"])
    with pytest.raises(ConfigError, match="petastorm_metadata"):
        ingest_job.main([*command, "--set", "data.petastorm_metadata=true"])


def test_data_that_changed_since_they_were_described(tmp_path: Path) -> None:
    """Nothing is trained on them, and ingest says what to remove: never the data."""
    raw = write_sets(tmp_path / "raw")
    config = make_config(raw, raw)
    source = config.ingest.model_dump(mode="json")
    make_training_set(config.ingest, raw)
    assert training_set_is_current(raw, source)
    files = sorted((raw / "train").glob("*.parquet"))
    files[1].write_bytes(files[0].read_bytes())
    for use in (lambda: training_set_is_current(raw, source), lambda: read_all(raw)):
        with pytest.raises(DataError, match=files[1].name):
            use()
    with pytest.raises(DataError, match=rf"{raw}/manifest\.json"):
        training_set_is_current(raw, source)
    (raw / "manifest.json").unlink()
    assert not training_set_is_current(raw, source)


def read_all(folder: Path) -> None:
    manifest = read_manifest(folder)
    opener = part_opener("petastorm", manifest.schema_)
    one = {"split": "train", "rank": 0, "world_size": 1, "batch_size": 16}
    list(Reader(folder, manifest, manifest.schema_, **one, open_part=opener).batches())


def test_the_wrong_reader_is_named(tmp_path: Path) -> None:
    raw = write_sets(tmp_path / "raw")
    describe(raw, tmp_path / "set")
    config = make_config(raw, tmp_path / "set")
    config = config.model_copy(update={"data": config.data.model_copy(update={"reader": "arrow"})})
    with pytest.raises(DataError, match=r"data\.reader=petastorm"):
        open_training_set(config)


def test_petastorm_opens_our_sets(tmp_path: Path) -> None:
    manifest = make_set(tmp_path / "s", 50, rows_per_part=20, row_group_rows=6)
    url = f"file://{tmp_path / 's' / 'train'}"
    petastorm = load_petastorm()
    names = ["row", "user", "label", "price"]
    with petastorm.make_batch_reader(url, schema_fields=names, workers_count=2) as reader:
        batches = [batch._asdict() for batch in reader]
    plain = make_table(50).to_pandas()
    rows = np.concatenate([batch["row"] for batch in batches])
    assert sorted(rows) == list(range(50))
    for name in names:
        found = np.concatenate([batch[name] for batch in batches])
        np.testing.assert_array_equal(found, plain[name].to_numpy()[rows])
    for _ in range(2):  # writing it again changes nothing
        write_petastorm_metadata(tmp_path / "s", manifest)
    with petastorm.make_reader(url, workers_count=2) as reader:
        found_rows = {int(row.row): row._asdict() for row in reader}
    assert sorted(found_rows) == list(range(50))
    for expected in make_table(50).to_pylist():
        found = found_rows[expected["row"]]
        for name, value in expected.items():
            got = found[name].tolist()
            assert got == value or (value is None and np.isnan(got)), name
    assert read_manifest(tmp_path / "s") == manifest


def test_files_are_described_once_and_columns_must_be_there_once(tmp_path: Path) -> None:
    raw = write_sets(tmp_path / "raw")
    (raw / "train" / "loop").symlink_to(".")
    parts = sorted((raw / "train").glob("*.parquet"))
    part = parts[0]
    (raw / "train" / f"z-{part.name}").hardlink_to(part)
    describe(raw, tmp_path / "set")
    manifest = read_manifest(tmp_path / "set")
    assert len(manifest.splits["train"].parts) == len(parts)
    assert {str(raw / "train" / "loop"), str(raw / "train" / f"z-{part.name}")} < set(
        manifest.files_left_out
    )
    table = pq.read_table(part)
    (raw / "train" / f"z-{part.name}").unlink()
    pq.write_table(table.append_column("row", table["row"]), part)
    with pytest.raises(DataError, match=rf"{part.name}.*'row'"):
        describe(raw, tmp_path / "other")


@pytest.mark.parametrize(("kind", "limit"), [(pa.float64(), 2**53), (pa.float32(), 2**24)])
def test_float_ids_that_are_not_exact_are_refused(
    kind: pa.DataType, limit: int, tmp_path: Path
) -> None:
    schema = Schema(
        tables=(Table(name="item", num_embeddings=100, raw=True),),
        categorical=(CategoricalFeature(name="item", table="item", column="item"),),
        tasks=(Task(name="click", column="click"),),
        group_column="item",
        time_column="time",
    )
    for name, largest in (("good", limit - 1), ("bad", limit)):
        items = pa.array([1.0, float(largest)]).cast(kind)
        pq.write_table(pa.table({"item": items}), tmp_path / f"{name}.parquet")
    with PetastormPart(tmp_path / "good.parquet", schema=schema) as part:
        assert part.read_row_group(0, ["item"])["item"].to_pylist() == [1, limit - 1]
    with PetastormPart(tmp_path / "bad.parquet", schema=schema) as part:
        with pytest.raises(DataError, match=r"bad\.parquet.*'item'"):
            part.read_row_group(0, ["item"])


def test_int96_does_not_wrap(tmp_path: Path) -> None:
    """In nanoseconds the year 2610 is 2025."""
    moments = [datetime.datetime(2610, 1, 1), datetime.datetime(2026, 1, 1)]
    table = pa.table({"time": pa.array(moments, pa.timestamp("us"))})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    with PetastormFile(path, {}) as file:
        assert file.read_row_group(0, ["time"])["time"].to_pylist() == moments
        assert file.schema_arrow.field("time").type == pa.timestamp("us")
