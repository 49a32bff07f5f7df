"""Petastorm data sets: the reader gives the batches of plain Parquet, bad sets are named."""

import importlib
import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.contrib.petastorm.bridge import load_petastorm
from infnet_dist.contrib.petastorm.metadata import write_petastorm_metadata
from infnet_dist.contrib.petastorm.npy import unpack, unpack_compressed
from infnet_dist.contrib.petastorm.part_file import read_fields, read_petastorm_tables
from infnet_dist.contrib.petastorm.unischema_pickle import load_unischema
from infnet_dist.data.checks.footers import check_columns, check_split
from infnet_dist.data.manifest import Manifest
from infnet_dist.data.part_files import part_opener
from infnet_dist.errors import DataError
from tests.contrib.petastorm_sets import array, pyspark, scalar, write_metadata, write_set
from tests.unit.test_reader import SCHEMA, make_reader, make_set, make_table, rows_of

ROWS = 97


def fields() -> list[Any]:
    """What a team's job may well store: narrower integers, three codecs."""
    return [
        scalar("row", np.int32),
        scalar("user", np.int64),
        array("click_row", np.int64, "NdarrayCodec"),
        array("click_author", np.int32, "CompressedNdarrayCodec"),
        array("click_gap", np.int64, "NdarrayCodec"),
        scalar("price", np.float32, nullable=True),
        scalar("age", np.float32),
        scalar("label", np.bool_),
        scalar("time_ms", np.int64),
    ]


def stored(table: pa.Table) -> pa.Table:
    """The columns in the types that the fields have."""
    for name, wanted in (("row", pa.int32()), ("label", pa.bool_())):
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].cast(wanted))
    return table


def write_team_set(folder: Path, table: pa.Table, **sizes: int) -> None:
    write_set(folder, stored(table), fields(), **sizes)


def both_sets(tmp_path: Path, rows: int = ROWS) -> tuple[Manifest, Manifest]:
    """The same rows as plain Parquet and as a Petastorm data set, with the same row groups."""
    plain = make_set(tmp_path / "plain", rows, rows_per_part=40, row_group_rows=7)
    write_team_set(tmp_path / "peta" / "train", make_table(rows))
    files = sorted((tmp_path / "peta" / "train").glob("*.parquet"))
    split = plain.split("train")
    parts = tuple(
        part.model_copy(update={"file": f"train/{file.name}", "fingerprint": None})
        for part, file in zip(split.parts, files, strict=True)
    )
    split = split.model_copy(update={"parts": parts})
    return plain, plain.model_copy(update={"splits": {"train": split}})


def peta_batches(
    tmp_path: Path, manifest: Manifest, *, epoch: int = 0, consumed: Any = (), **changes: Any
) -> Iterator[RankingBatch]:
    opener = part_opener("petastorm", changes.get("schema", SCHEMA))
    reader = make_reader(tmp_path / "peta", manifest, open_part=opener, **changes)
    return reader.batches(epoch, consumed)


def assert_same(one: RankingBatch, other: RankingBatch) -> None:
    assert one.rows == other.rows
    assert one.sparse_features.keys() == other.sparse_features.keys()
    assert torch.equal(one.sparse_features.values(), other.sparse_features.values())
    assert torch.equal(one.sparse_features.lengths(), other.sparse_features.lengths())
    for name in ("dense_BN", "time_gap_BL", "labels_BK", "weights_B", "group_B", "truth_BK"):
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("shuffle_rows", [20, None])
def test_batches_are_those_of_plain_parquet(tmp_path: Path, shuffle_rows: int | None) -> None:
    plain, peta = both_sets(tmp_path)
    settings = {"seed": 3, "shuffle_rows": shuffle_rows}
    expected = list(make_reader(tmp_path / "plain", plain, **settings).batches(epoch=2))
    found = list(peta_batches(tmp_path, peta, epoch=2, **settings))
    assert len(found) == len(expected) == 13
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    write_petastorm_metadata(tmp_path / "plain", plain)  # our own set, in petastorm's way
    settings["open_part"] = part_opener("petastorm", SCHEMA)
    ours = make_reader(tmp_path / "plain", plain, **settings).batches(epoch=2)
    for one, other in zip(ours, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_row_exactly_once(tmp_path: Path, world_size: int) -> None:
    _, peta = both_sets(tmp_path)
    shares = [
        [
            row
            for b in peta_batches(tmp_path, peta, rank=r, world_size=world_size)
            for row in rows_of(b)
        ]
        for r in range(world_size)
    ]
    assert sorted(row for share in shares for row in share) == list(range(ROWS))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1)])
def test_the_rest_of_an_epoch_can_be_dealt_again(tmp_path: Path, before: int, after: int) -> None:
    _, peta = both_sets(tmp_path)
    seen: list[int] = []
    consumed: list[tuple[int, int]] = []
    for rank in range(before):
        batches = peta_batches(tmp_path, peta, rank=rank, world_size=before)
        for _, batch in zip(range(3), batches, strict=False):
            seen += rows_of(batch)
            consumed += batch.rows.intervals
    assert 0 < len(seen) < ROWS
    for rank in range(after):
        for batch in peta_batches(tmp_path, peta, consumed=consumed, rank=rank, world_size=after):
            seen += rows_of(batch)
    assert sorted(seen) == list(range(ROWS))


def test_a_sound_set_passes_the_checks(tmp_path: Path) -> None:
    _, peta = both_sets(tmp_path)
    opener = part_opener("petastorm", SCHEMA)
    check_columns(tmp_path / "peta", peta, SCHEMA, opener)
    one = {"split": "train", "rank": 0, "world_size": 1}
    check_split(tmp_path / "peta", peta, SCHEMA, open_part=opener, **one)
    with pytest.raises(DataError, match=r"'row'.*int32.*int64"):
        check_columns(tmp_path / "peta", peta, SCHEMA)


def test_ids_out_of_range_are_found_in_footers_and_in_arrays(tmp_path: Path) -> None:
    _, peta = both_sets(tmp_path)
    small = SCHEMA.tables[0].model_copy(update={"num_embeddings": 90})
    schema = SCHEMA.model_copy(update={"tables": (small, *SCHEMA.tables[1:])})
    one = {"split": "train", "rank": 0, "world_size": 1}
    with pytest.raises(DataError, match=r"00002-1f.*row group 1, column 'row': got 93, "):
        check_split(
            tmp_path / "peta", peta, schema, open_part=part_opener("petastorm", schema), **one
        )
    with pytest.raises(DataError, match=r"row group 1, column 'click_row': got 130, .*'row' .* 89"):
        list(peta_batches(tmp_path, peta, schema=schema, shuffle_rows=None))


def test_columns_equal_what_petastorm_itself_reads(tmp_path: Path) -> None:
    write_team_set(tmp_path / "set", make_table(50))
    reader = load_petastorm().make_reader(
        f"file://{tmp_path / 'set'}", workers_count=2, shuffle_row_groups=False
    )
    with reader:
        theirs = {int(row.row): row for row in reader}
    names = ["row", "price", "label", "click_author", "click_row"]
    ours = pa.concat_tables(read_petastorm_tables(tmp_path / "set", names)).to_pylist()
    assert [row["row"] for row in ours] == sorted(theirs) == list(range(50))
    for row in ours:
        other = theirs[row["row"]]
        assert row["label"] == other.label
        assert row["price"] == other.price or (row["price"] is None and np.isnan(other.price))
        assert row["click_author"] == other.click_author.tolist()
        assert row["click_row"] == other.click_row.tolist()


def test_text_nulls_and_partition_folders(tmp_path: Path) -> None:
    table = pa.table(
        {
            "row": pa.array([1, 2, 3], pa.int64()),
            "count": pa.array([None, 2, None], pa.int32()),
            "name": pa.array(["a", None, "c"]),
            "tags": pa.array([["x", "yy"], [], None], pa.list_(pa.string())),
        }
    )
    declared = [
        scalar("row", np.int64),
        scalar("count", np.int32, nullable=True),
        scalar("name", np.str_, nullable=True),
        array("tags", np.str_, "NdarrayCodec", nullable=True),
    ]
    write_set(tmp_path / "set", table, declared)
    for day in ("2026-01-02", "2026-01-01"):
        folder = tmp_path / "set" / f"day={day}" / "hour=7"
        folder.mkdir(parents=True)
        (folder / "part-0.parquet").write_bytes(
            (tmp_path / "set" / "part-00000-1f.c000.snappy.parquet").read_bytes()
        )
    (tmp_path / "set" / "part-00000-1f.c000.snappy.parquet").unlink()
    names = [*table.column_names, "hour", "day"]
    first, second = read_petastorm_tables(f"file://{tmp_path / 'set'}", names)
    assert first.select(table.column_names).to_pylist() == table.to_pylist()
    assert first["hour"].to_pylist() == [7, 7, 7]
    assert [t["day"][0].as_py() for t in (first, second)] == ["2026-01-01", "2026-01-02"]
    assert first.column_names == names


def test_a_set_without_unischema_is_read_by_its_parquet_types(tmp_path: Path) -> None:
    table = make_table(12)
    pq.write_table(table, tmp_path / "part-0.parquet", row_group_size=5)
    tables = list(read_petastorm_tables(tmp_path, table.column_names))
    assert [len(t) for t in tables] == [5, 5, 2]
    assert pa.concat_tables(tables).to_pylist() == table.to_pylist()


def test_packed_arrays_without_unischema_are_named(tmp_path: Path) -> None:
    _, peta = both_sets(tmp_path)
    (tmp_path / "peta" / "train" / "_common_metadata").unlink()
    with pytest.raises(DataError, match=r"'click_row' is binary, expected list<item: int64>"):
        check_columns(tmp_path / "peta", peta, SCHEMA, part_opener("petastorm", SCHEMA))
    with pytest.raises(DataError, match=r"'click_row' is binary, .* no Unischema"):
        list(peta_batches(tmp_path, peta))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    _, peta = both_sets(tmp_path)
    part = sorted((tmp_path / "peta" / "train").glob("*.parquet"))[1]
    table = pq.read_table(part)
    cells = table["click_row"].to_pylist()
    cells[9] = cells[9][:40]
    broken = table.set_column(table.column_names.index("click_row"), "click_row", pa.array(cells))
    pq.write_table(broken, part, row_group_size=7)
    where = r"00001-1f.*row group 1, column 'click_row', row 2 can't be decoded"
    with pytest.raises(DataError, match=where):
        list(peta_batches(tmp_path, peta, shuffle_rows=None))
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"row group 0 of .*00001-1f"):
        list(peta_batches(tmp_path, peta, shuffle_rows=None))
    with pytest.raises(DataError, match=r"can't read .*00001-1f"):
        list(read_petastorm_tables(tmp_path / "peta" / "train", ["row"]))


def test_arrays_that_are_not_what_the_unischema_says(tmp_path: Path) -> None:
    for values, message in (
        ([1.5, 2.5], "Float value 1.50* was truncated .*; the Unischema says 1-D arrays of int64"),
        ([[1, 2]], "got arrays of 2 dimensions; the Unischema says 1-D"),
    ):
        packed = io.BytesIO()
        np.save(packed, np.array(values))
        declared = [array("ids", np.int64, "NdarrayCodec")]
        write_set(tmp_path, pa.table({"ids": pa.array([[1]], pa.list_(pa.int64()))}), declared)
        (part,) = tmp_path.glob("*.parquet")
        pq.write_table(pa.table({"ids": pa.array([packed.getvalue()])}), part)
        with pytest.raises(DataError, match=f"row group 0, column 'ids': {message}"):
            next(read_petastorm_tables(tmp_path, ["ids"]))


def test_big_endian_numbers(tmp_path: Path) -> None:
    with_ids = pa.table({"ids": pa.array([[1, 2], [], [3]], pa.list_(pa.int64()))})
    packed = io.BytesIO()
    np.save(packed, np.array([1, 2], ">i4"))
    declared = [array("ids", np.int32, "NdarrayCodec")]
    write_set(tmp_path, with_ids, declared)
    (part,) = tmp_path.glob("*.parquet")
    pq.write_table(pa.table({"ids": pa.array([packed.getvalue()])}), part)
    (table,) = read_petastorm_tables(tmp_path, ["ids"])
    assert table["ids"].to_pylist() == [[1, 2]]


def test_wrong_names_and_shapes_are_named(tmp_path: Path) -> None:
    from petastorm.codecs import NdarrayCodec
    from petastorm.unischema import UnischemaField

    write_team_set(tmp_path / "set", make_table(5))
    with pytest.raises(DataError, match=r"'click_rwo'.*'click_row'"):
        next(read_petastorm_tables(tmp_path / "set", ["click_rwo"]))
    with pytest.raises(DataError, match="no Parquet files in"):
        next(read_petastorm_tables(tmp_path / "nowhere", ["row"]))
    images = UnischemaField("image", np.uint8, (2, 2), NdarrayCodec(), False)
    write_set(tmp_path / "images", pa.table({"image": pa.array([[[1, 2], [3, 4]]])}), [images])
    with pytest.raises(DataError, match=r"uint8 arrays of shape \(2, 2\), expected a scalar or"):
        next(read_petastorm_tables(tmp_path / "images", ["image"]))


class Attack:
    """Runs a command when it is unpickled the plain way."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("module_and_name", ["os.system", "builtins.eval", "numpy.load"])
def test_a_malicious_unischema_is_refused(
    tmp_path: Path, module_and_name: str, protocol: int
) -> None:
    module, name = module_and_name.split(".")
    function = getattr(importlib.import_module(module), name)
    pickled = pickle.dumps(Attack(function, f"touch {tmp_path / 'hit'}"), protocol)
    table = pa.table({"row": pa.array([1], pa.int64())})
    pq.write_table(table, tmp_path / "part-0.parquet")
    write_metadata(tmp_path, table.schema, pickled, {"part-0.parquet": 1})
    with pytest.raises(DataError, match=rf"_common_metadata names \w+\.{name}, which no Unischema"):
        next(read_petastorm_tables(tmp_path, ["row"]))
    with pytest.raises(pickle.UnpicklingError, match="no Unischema needs"):
        load_petastorm().make_reader(f"file://{tmp_path}")
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("pickled", [b"", b"\x80\x04\x95", pickle.dumps((1, 2)), b"cposix\nsystem"])
def test_a_damaged_unischema_is_named(tmp_path: Path, pickled: bytes) -> None:
    write_metadata(tmp_path, pa.schema({"row": pa.int64()}), pickled, {})
    with pytest.raises(DataError, match=r"the Unischema in .*_common_metadata "):
        read_fields(tmp_path)


def test_pickles_of_python_2_and_of_older_spark(tmp_path: Path) -> None:
    """Named tuples went through `pyspark.serializers._restore`; modules had other names."""
    from petastorm.unischema import Unischema

    class Restored:
        def __init__(self, field: Any) -> None:
            self.name, self.field = field.name, field

        def __hash__(self) -> int:
            return 1

        def __reduce__(self) -> tuple[Any, ...]:
            restore = sys.modules["pyspark.serializers"]._restore  # type: ignore[attr-defined]
            return restore, ("UnischemaField", self.field._fields, tuple(self.field))

    def restore(name: str, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
        raise AssertionError("the bridge has its own")

    restore.__module__, restore.__qualname__ = "pyspark.serializers", "_restore"
    declared = fields()
    with pyspark():
        sys.modules["pyspark.serializers"]._restore = restore  # type: ignore[attr-defined]
        pickled = pickle.dumps(Unischema("Rows", [Restored(f) for f in declared]), 0)
    assert b"copy_reg\n_reconstructor" in pickled
    assert b"__builtin__\nobject" in pickled
    found = load_unischema(pickled)
    assert list(found.fields.values()) == declared
    assert found.fields["row"].codec.decode(found.fields["row"], 5) == np.int32(5)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(7),
        np.array([], np.int32),
        np.array([1.5, np.nan], ">f4"),
        np.array(["a", "bcd"]),
        np.array([b"a", b""]),
        np.array([True, False]),
        np.arange(20, dtype=np.int8)[::3],
    ],
)
def test_arrays_unpack_as_numpy_packs_them(values: np.ndarray) -> None:
    packed = io.BytesIO()
    np.save(packed, values)
    found = unpack(packed.getvalue())
    assert found is not None and found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)
    archive = io.BytesIO()
    np.savez_compressed(archive, arr=values)
    np.testing.assert_array_equal(unpack_compressed(archive.getvalue()), values)
    if len(values):
        with pytest.raises(ValueError, match="buffer"):
            unpack(packed.getvalue()[:-1])


def test_other_arrays_are_left_to_the_codec() -> None:
    for values in (np.array(3), np.ones((2, 2)), np.array([None])):
        packed = io.BytesIO()
        np.save(packed, values)
        assert unpack(packed.getvalue()) is None
    assert unpack(b"PK") is None


def test_the_thread_pool_waits_for_work_not_yet_handed_out() -> None:
    """Work that is handed out between petastorm's two questions isn't lost."""
    load_petastorm()
    from petastorm.workers_pool import EmptyResultError
    from petastorm.workers_pool.thread_pool import ThreadPool
    from petastorm.workers_pool.worker_base import WorkerBase

    class Echo(WorkerBase):
        def process(self, item: int) -> None:
            self.publish_func(item)

    class LateVentilator:
        """Hands out its only item when it is asked whether it is done."""

        handed_out = False

        def start(self) -> None: ...
        def stop(self) -> None: ...
        def processed_item(self) -> None: ...

        def completed(self) -> bool:
            if not self.handed_out:
                self.handed_out = True
                pool.ventilate(7)
            return True

    pool = ThreadPool(1)
    pool.start(Echo, ventilator=LateVentilator())
    assert pool.get_results() == 7
    with pytest.raises(EmptyResultError):
        pool.get_results()
    pool.stop()
    pool.join()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reader_pool_type": "process"}, "'thread' or 'dummy'"),
        ({"filters": [("row", ">", 5)]}, "select rows after reading"),
    ],
)
def test_what_the_bridge_lacks_is_said(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    write_team_set(tmp_path / "set", make_table(5))
    with pytest.raises(NotImplementedError, match=message):
        load_petastorm().make_reader(f"file://{tmp_path / 'set'}", **settings)


def test_partition_folders_are_left_to_our_own_reader(tmp_path: Path) -> None:
    write_team_set(tmp_path / "set", make_table(5))
    (tmp_path / "set" / "day=1").mkdir()
    (part,) = (tmp_path / "set").glob("*.parquet")
    part.rename(tmp_path / "set" / "day=1" / part.name)
    with pytest.raises(NotImplementedError, match=r"use infnet_dist.*read_petastorm_tables"):
        load_petastorm().make_reader(f"file://{tmp_path / 'set'}")


def test_a_missing_petastorm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "petastorm", None)
    with pytest.raises(DataError, match=r"petastorm can't be imported .*; install it with: pip"):
        load_petastorm.__wrapped__()
    assert "pyarrow.filesystem" not in sys.modules


def test_the_bridge_leaves_numpy_and_pyarrow_alone() -> None:
    code = """
import sys
import numpy, pyarrow, pyarrow.parquet
before = [dict(vars(m)) for m in (numpy, pyarrow, pyarrow.parquet)]
import infnet_dist.data.part_files
assert "petastorm" not in sys.modules
from infnet_dist.contrib.petastorm.bridge import load_petastorm
load_petastorm()
import petastorm.etl.dataset_metadata
assert before[2] == vars(pyarrow.parquet)
for module, names in zip((numpy, pyarrow), before):
    changed = {k for k, v in vars(module).items() if names.get(k) is not v}
    assert not changed & {"unicode_", "string_", "localfs", "parquet", "filesystem"}, changed
assert not {"pyarrow.filesystem", "pyarrow.hdfs"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
