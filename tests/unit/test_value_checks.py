"""What is decoded is checked, whatever footers say: file, row group, column and value are named."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet_dist.data.decode import decode
from infnet_dist.data.manifest import Manifest
from infnet_dist.data.reader import Reader
from infnet_dist.errors import DataError
from infnet_dist.schema import DenseFeature, Schema, Table, Task
from tests.hostile_parquet import without_fingerprints
from tests.unit.test_reader import SCHEMA, make_set, make_table

PART = "train/part-00000.parquet"
RICH = SCHEMA.model_copy(
    update={
        "tasks": (
            Task(name="click", column="label", truth_column="truth"),
            Task(name="watch", column="watch", kind="watch_time", mean_ms=9.0),
            Task(name="like", column="like", nullable=True),
        )
    }
)


def make_rich_table(rows: int) -> pa.Table:
    table = make_table(rows)
    truth = pa.array([None, 0.0, float("nan"), 1.0] * (rows // 4), pa.float32())
    watch = pa.array(range(rows), pa.int64())
    like = pa.array([None, 0, 1, 1] * (rows // 4), pa.int8())
    for name, column in (("truth", truth), ("watch", watch), ("like", like)):
        table = table.append_column(name, column)
    return table


def changed(table: pa.Table, column: str, change: Any) -> pa.Table:
    """The table with a column whose list of values went through `change`."""
    values = table[column].to_pylist()
    change(values)
    place = table.column_names.index(column)
    return table.set_column(place, column, pa.array(values, table[column].type))


def put(row: int, value: Any) -> Any:
    return lambda values: values.__setitem__(row, value)


BAD = [
    ("row", 23, 1_000_000, "1000000"),
    ("row", 3, -1, "-1"),
    ("row", 3, 2**63 - 1, str(2**63 - 1)),
    ("row", 3, None, "1 null"),
    ("user", 3, None, "1 null"),
    ("click_author", 35, [1, 2, 50, 3, 4], "50"),
    ("click_author", 35, [1, 2, -(2**63), 3, 4], str(-(2**63))),
    ("click_row", 35, [1, 2, None, 3, 4], "1 null"),
    ("click_gap", 35, [1, 2, -7, 3, 4], "-7"),
    ("label", 11, 7, "7"),
    ("label", 11, -1, "-1"),
    ("label", 11, None, "1 null"),
    ("like", 11, 2, "2"),
    ("watch", 11, -5, "-5"),
    ("watch", 11, None, "1 null"),
    ("truth", 11, 1.5, "1.5"),
    ("truth", 11, float("-inf"), "-inf"),
    ("age", 12, float("nan"), "nan"),
    ("age", 12, None, "1 null"),
    ("price", 12, float("inf"), "inf"),
    ("price", 12, float("nan"), "nan"),
]


def test_allowed_values_pass() -> None:
    assert len(decode(make_rich_table(40), RICH, "here")) == 40
    raw = SCHEMA.tables[0].model_copy(update={"raw": True})
    schema = SCHEMA.model_copy(update={"tables": (raw, *SCHEMA.tables[1:])})
    table = changed(make_table(40), "row", put(3, -(2**63)))
    assert decode(table, schema, "here").scalars["ids"][0].max() < 1_000_000


@pytest.mark.parametrize(("column", "row", "value", "found"), BAD)
def test_bad_values_are_named(column: str, row: int, value: Any, found: str) -> None:
    table = changed(make_rich_table(40), column, put(row, value))
    with pytest.raises(DataError, match=rf"^here, column '{column}': .*{found}"):
        decode(table, RICH, "here")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("label", pa.float64()),
        ("label", pa.int64()),
        ("row", pa.int32()),
        ("row", pa.float64()),
        ("row", pa.uint64()),
        ("age", pa.float64()),
        ("click_row", pa.list_(pa.int32())),
        ("click_row", pa.large_list(pa.int64())),
        ("label", pa.dictionary(pa.int32(), pa.int8())),
    ],
)
def test_other_types_are_refused(column: str, kind: pa.DataType) -> None:
    table = make_rich_table(40)
    place = table.column_names.index(column)
    cast = table[column].dictionary_encode() if pa.types.is_dictionary(kind) else None
    table = table.set_column(place, column, cast or table[column].cast(kind))
    with pytest.raises(DataError, match=rf"^here: column '{column}' is "):
        decode(table, RICH, "here")


def test_columns_are_there_once() -> None:
    table = make_rich_table(40)
    with pytest.raises(DataError, match="'label'"):
        decode(table.drop_columns(["label"]), RICH, "here")
    with pytest.raises(DataError, match=r"'label'.* 2 "):
        decode(table.append_column("label", table["label"]), RICH, "here")


def write_lying(path: Path, good: pa.Table, bad: pa.Table, *, row_group_size: int = 10) -> None:
    """The rows of `bad` under the footer, and so the statistics, of `good`."""
    plain = {"compression": "none", "use_dictionary": False, "row_group_size": row_group_size}
    contents = []
    for table in (good, bad):
        pq.write_table(table, path, **plain)
        contents.append(path.read_bytes())
    length = int.from_bytes(contents[0][-8:-4], "little")
    assert len(contents[0]) == len(contents[1])
    path.write_bytes(contents[1][: -8 - length] + contents[0][-8 - length :])


def reader_of(folder: Path, manifest: Manifest, schema: Schema, **changes: Any) -> Reader:
    return Reader(folder, manifest, schema, "train", 8, 0, 1, shuffle_rows=20, **changes)


@pytest.mark.parametrize(
    ("column", "value"), [("row", 2_000_000), ("row", -3), ("label", 7), ("click_gap", -9)]
)
def test_footers_that_lie(tmp_path: Path, column: str, value: int) -> None:
    manifest = make_set(tmp_path / "s", 40, rows_per_part=100, row_group_rows=10)
    good = make_table(40)
    cell = [value] * 5 if column == "click_gap" else value
    write_lying(tmp_path / "s" / PART, good, changed(good, column, put(35, cell)))
    statistics = pq.read_metadata(tmp_path / "s" / PART).row_group(3).column(0).statistics
    assert statistics.max == 39, "the footer is that of the good rows"
    manifest = without_fingerprints(manifest)
    message = rf"part-00000\.parquet, row group 3, column '{column}.: .*{value}"
    for allowed in (0, 5):  # wrong data aren't unreadable ones, which may be left out
        reader = reader_of(tmp_path / "s", manifest, SCHEMA, max_bad_row_groups=allowed)
        with pytest.raises(DataError, match=message):
            list(reader.batches())
        assert not reader.left_out


@pytest.mark.parametrize(
    "update",
    [
        {"tables": (*SCHEMA.tables[:2], Table(name="price", num_embeddings=4))},
        {"tables": (Table(name="row", num_embeddings=1, raw=True), *SCHEMA.tables[1:])},
        {"dense": (DenseFeature(name="price", column="price", boundaries=(2.0, 1.0)),)},
    ],
)
def test_schemas_whose_ids_can_leave_their_tables_are_refused(update: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"price|row"):
        Schema.model_validate(dict(SCHEMA) | update)
