"""The reader against the rows on disk: each exactly once, evenly, deterministic, well collated."""

import threading
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.data.checks.footers import check_split
from infnet_dist.data.decode import Columns, decode
from infnet_dist.data.manifest import Manifest
from infnet_dist.data.prefetch import prefetch
from infnet_dist.data.reader import Reader
from infnet_dist.data.row_views import RowShuffler
from infnet_dist.errors import DataError
from infnet_dist.features.numbers import time_gap_buckets
from infnet_dist.ingest.writing.writer import TrainingSetWriter
from infnet_dist.schema import (
    CategoricalFeature,
    DenseFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
)
from tests.hostile_parquet import without_fingerprints

SCHEMA = Schema(
    tables=(
        Table(name="row", num_embeddings=1_000_000),
        Table(name="author", num_embeddings=50),
        Table(name="price", num_embeddings=5),
    ),
    categorical=(CategoricalFeature(name="row", table="row", column="row"),),
    sequences=(
        SequenceFeature(
            name="click",
            attributes=(
                SequenceAttribute(name="row", table="row", column="click_row"),
                SequenceAttribute(name="author", table="author", column="click_author"),
            ),
            max_length=3,
            time_gap_column="click_gap",
        ),
    ),
    dense=(
        DenseFeature(name="price", column="price", boundaries=(1.0, 2.0, 3.0)),
        DenseFeature(name="age", column="age", mean=10.0, std=2.0),
    ),
    tasks=(Task(name="click", column="label"),),
    group_column="user",
    time_column="time_ms",
)


def make_table(rows: int) -> pa.Table:
    """Row i has i % 6 history items (i * 10, i * 10 + 1, ...), newest first."""
    lengths = np.arange(rows) % 6
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    items = np.concatenate([i * 10 + np.arange(n) for i, n in enumerate(lengths)] or [[]])
    items = items.astype(np.int64)

    def lists(values: np.ndarray) -> pa.ListArray:
        return pa.ListArray.from_arrays(offsets, pa.array(values, pa.int64()))

    row = np.arange(rows)
    return pa.table(
        {
            "row": pa.array(row, pa.int64()),
            "user": pa.array(row % 7 - 3, pa.int64()),
            "click_row": lists(items),
            "click_author": lists(items % 50),
            "click_gap": lists(items + 1),
            "price": pa.array([None if i % 5 == 4 else i % 5 for i in row], pa.float32()),
            "age": pa.array(row % 20, pa.float32()),
            "label": pa.array(row % 2, pa.int8()),
            "time_ms": pa.array(row, pa.int64()),
        }
    )


def make_set(folder: Path, rows: int, *, rows_per_part: int, row_group_rows: int) -> Manifest:
    with TrainingSetWriter(
        folder, rows_per_part=rows_per_part, row_group_rows=row_group_rows, source={}
    ) as writer:
        writer.write("train", make_table(rows))
        return writer.publish(SCHEMA)


def make_reader(folder: Path, manifest: Manifest, **changes: object) -> Reader:
    settings = {
        "folder": folder,
        "manifest": manifest,
        "schema": SCHEMA,
        "split": "train",
        "batch_size": 8,
        "rank": 0,
        "world_size": 1,
        "shuffle_rows": 20,
    }
    return Reader(**(settings | changes))


def rows_of(batch: RankingBatch) -> list[int]:
    return batch.sparse_features["row"].values().tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("rows", "rows_per_part", "row_group_rows"),
    [(97, 40, 7), (64, 64, 64), (101, 13, 1), (5, 2, 1), (40, 1000, 1000)],
)
def test_each_row_exactly_once(
    tmp_path: Path, world_size: int, rows: int, rows_per_part: int, row_group_rows: int
) -> None:
    manifest = make_set(
        tmp_path / "s", rows, rows_per_part=rows_per_part, row_group_rows=row_group_rows
    )
    seen: list[int] = []
    steps = set()
    for rank in range(world_size):
        reader = make_reader(tmp_path / "s", manifest, rank=rank, world_size=world_size)
        batches = list(reader.batches())
        steps.add(len(batches))
        assert len(batches) == reader.num_steps()
        for batch in batches:
            assert batch.weights_B.shape == (8,)
            assert batch.num_rows == int(batch.weights_B.sum()) == len(rows_of(batch))
            seen += rows_of(batch)
    assert len(steps) == 1, "every rank must make the same number of steps"
    assert sorted(seen) == list(range(rows))


def test_order_is_seeded_and_differs_by_epoch(tmp_path: Path) -> None:
    manifest = make_set(tmp_path / "s", 200, rows_per_part=100, row_group_rows=25)

    def order(**changes: object) -> list[int]:
        epoch = changes.pop("epoch", 0)
        reader = make_reader(tmp_path / "s", manifest, **changes)
        return [row for batch in reader.batches(epoch) for row in rows_of(batch)]

    assert order() == order()
    assert order() != order(epoch=1)
    assert order() != order(seed=1)
    assert order() != list(range(200))
    assert order(shuffle_rows=None) == list(range(200))


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 3), (3, 1)])
def test_the_rest_of_an_epoch_can_be_dealt_again(tmp_path: Path, before: int, after: int) -> None:
    manifest = make_set(tmp_path / "s", 150, rows_per_part=60, row_group_rows=11)
    seen: list[int] = []
    consumed: list[tuple[int, int]] = []
    for rank in range(before):
        reader = make_reader(tmp_path / "s", manifest, rank=rank, world_size=before)
        for _, batch in zip(range(4), reader.batches(), strict=False):
            seen += rows_of(batch)
            consumed += batch.rows.intervals
    for rank in range(after):
        reader = make_reader(tmp_path / "s", manifest, rank=rank, world_size=after)
        for batch in reader.batches(consumed=consumed):
            seen += rows_of(batch)
    assert sorted(seen) == list(range(150))


def test_collated_values(tmp_path: Path) -> None:
    manifest = make_set(tmp_path / "s", 11, rows_per_part=100, row_group_rows=4)
    reader = make_reader(tmp_path / "s", manifest, shuffle_rows=None)
    first, last = list(reader.batches())
    assert last.num_rows == 3
    keys = first.sparse_features
    assert keys.keys() == ["row", "price", "click.row", "click.author"]
    assert keys["row"].values().tolist() == list(range(8))
    assert keys["price"].values().tolist() == [1, 2, 3, 4, 0, 1, 2, 3]  # null is 0
    assert keys["click.row"].lengths().tolist() == [0, 1, 2, 3, 3, 3, 0, 1]  # cut to 3
    items = [10, 20, 21, 30, 31, 32, 40, 41, 42, 50, 51, 52, 70]
    assert keys["click.row"].values().tolist() == items
    assert keys["click.author"].values().tolist() == [i % 50 for i in keys["click.row"].values()]
    gaps = time_gap_buckets(np.array([11, 21, 22]))
    assert first.time_gap_BL[1].tolist() == [gaps[0], 0, 0]
    assert first.time_gap_BL[2].tolist() == [gaps[1], gaps[2], 0]
    torch.testing.assert_close(first.dense_BN[:, 0], (torch.arange(8) - 10.0) / 2.0)
    assert first.labels_BK[:, 0].tolist() == [0, 1] * 4
    assert first.group_B.tolist() == [-3, -2, -1, 0, 1, 2, 3, -3]
    assert last.sparse_features["click.row"].lengths().tolist() == [2, 3, 3, 0, 0, 0, 0, 0]
    assert last.sparse_features["row"].lengths().tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert last.weights_B.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert last.dense_BN[3:].abs().sum() == 0


def test_unknown_labels_are_nan_where_a_task_allows_them(tmp_path: Path) -> None:
    table = make_table(20)
    labels = [None if i % 3 == 1 else i % 2 for i in range(20)]
    table = table.set_column(
        table.column_names.index("label"), "label", pa.array(labels, pa.int8())
    )
    task = SCHEMA.tasks[0].model_copy(update={"nullable": True})
    schema = SCHEMA.model_copy(update={"tasks": (task,)})
    settings = {"rows_per_part": 100, "row_group_rows": 6, "source": {}}
    with TrainingSetWriter(tmp_path / "s", **settings) as writer:
        writer.write("train", table)
        manifest = writer.publish(schema)
    known = [label for label in labels if label is not None]
    assert manifest.split("train").base_rates["click"] == sum(known) / len(known)
    check_split(tmp_path / "s", manifest, schema, split="train", rank=0, world_size=1)
    with pytest.raises(DataError, match=r"row group 0, column 'label'.* 2 null.*'click'"):
        check_split(tmp_path / "s", manifest, SCHEMA, split="train", rank=0, world_size=1)
    reader = make_reader(tmp_path / "s", manifest, schema=schema, shuffle_rows=None)
    found = torch.cat([batch.labels_BK[: batch.num_rows, 0] for batch in reader.batches()])
    assert torch.equal(found.isnan(), torch.tensor([label is None for label in labels]))
    assert found[~found.isnan()].tolist() == known


def test_batches_keep_their_items_while_others_are_read(tmp_path: Path) -> None:
    manifest = make_set(tmp_path / "s", 200, rows_per_part=60, row_group_rows=11)
    reader = make_reader(tmp_path / "s", manifest)

    def check(batch: RankingBatch) -> None:
        expected = [row * 10 + i for row in rows_of(batch) for i in range(min(row % 6, 3))]
        assert batch.sparse_features["click.row"].values().tolist() == expected

    pairs = [*zip(reader.batches(0), reader.batches(1), strict=True)]
    later = [*reader.batches(0)]
    for batch in (*chain.from_iterable(pairs), *later):
        check(batch)
    assert [rows_of(first) for first, _ in pairs] == [rows_of(batch) for batch in later]


def test_joined_rows_are_picked_before_their_memory_is_used_again(tmp_path: Path) -> None:
    where = "here"
    first, second = (decode(make_table(40).slice(i, 12), SCHEMA, where) for i in (3, 17))
    join = RowShuffler()
    order = np.random.default_rng(0).permutation(24)
    picked = join(iter([first, second]), order)[3:9].own()
    join([second, first], order[::-1])
    raw = make_table(40).to_pylist()
    rows = [raw[17 + i - 12] if i >= 12 else raw[3 + i] for i in order[3:9]]
    assert picked.scalars["ids"][0].tolist() == [row["row"] for row in rows]
    assert picked.scalars["group"][0].tolist() == [row["user"] for row in rows]
    expected = [row["click_row"][:3] for row in rows]
    assert picked.lengths("click.row").tolist() == [len(items) for items in expected]
    items = picked.items(["click.row"])
    assert items.tolist() == [item for items in expected for item in items]


def test_each_row_group_is_decoded_once_however_many_pieces_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_set(tmp_path / "s", 90, rows_per_part=30, row_group_rows=10)
    decoded: list[str] = []

    def counting(table: pa.Table, schema: Schema, where: str) -> Columns:
        decoded.append(where)
        return decode(table, schema, where)

    monkeypatch.setattr("infnet_dist.data.reader.decode", counting)
    consumed = [(start, start + 1) for start in range(0, 90, 3)]
    batches = list(make_reader(tmp_path / "s", manifest).batches(consumed=consumed))
    assert sum(batch.num_rows for batch in batches) == 60
    assert len(decoded) == len(set(decoded)) == 9


def test_time_gap_buckets() -> None:
    gaps = np.array([1, 2, 3, 4, 7, 8, 2**29, 2**30, 2**40])
    assert time_gap_buckets(gaps).tolist() == [1, 2, 2, 3, 3, 4, 30, 31, 31]


def test_damaged_part_names_the_file(tmp_path: Path) -> None:
    manifest = make_set(tmp_path / "s", 50, rows_per_part=100, row_group_rows=10)
    part = tmp_path / "s" / "train" / "part-00000.parquet"
    data = bytearray(part.read_bytes())
    start = pq.ParquetFile(part).metadata.row_group(2).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    part.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"row group 2 of .*part-00000\.parquet"):
        list(make_reader(tmp_path / "s", manifest, shuffle_rows=None).batches())


def test_a_part_that_went_away_is_named(tmp_path: Path) -> None:
    manifest = make_set(tmp_path / "s", 50, rows_per_part=100, row_group_rows=10)
    part = tmp_path / "s" / "train" / "part-00000.parquet"
    part.unlink()
    with pytest.raises(DataError, match=r"row group 0 of .*part-00000\.parquet"):
        list(make_reader(tmp_path / "s", manifest, shuffle_rows=None).batches())


def test_lists_of_different_lengths(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "infnet_dist.ingest.writing.writer.sample_statistics", lambda *_: None
    )  # reads too
    table = make_table(20)
    other = table.column("click_author").take(pa.array([*range(1, 20), 0]))
    table = table.set_column(table.column_names.index("click_author"), "click_author", other)
    with TrainingSetWriter(
        tmp_path / "s", rows_per_part=50, row_group_rows=50, source={}
    ) as writer:
        writer.write("train", table)
        manifest = writer.publish(SCHEMA)
    with pytest.raises(
        DataError,
        match=r"row group 0.*'click_row'.*'click_author'",
    ):
        list(make_reader(tmp_path / "s", manifest).batches())


def test_parts_whose_columns_and_items_may_be_null(tmp_path: Path) -> None:
    manifest = make_set(tmp_path, 20, rows_per_part=10, row_group_rows=5)
    before = list(make_reader(tmp_path, manifest).batches())
    first, second = (tmp_path / part.file for part in manifest.split("train").parts)
    pq.write_table(make_table(20)[:10], first, row_group_size=5)  # as other writers have it
    manifest = without_fingerprints(manifest)
    assert pq.read_schema(first).field("click_row").type == pa.list_(pa.int64())
    assert not pq.read_schema(second).field("click_row").type.value_field.nullable
    check_split(tmp_path, manifest, SCHEMA, split="train", rank=0, world_size=1)
    after = make_reader(tmp_path, manifest).batches()
    for one, other in zip(before, after, strict=True):
        for name, found in one.sparse_features.to_dict().items():
            assert torch.equal(found.values(), other.sparse_features[name].values())
            assert torch.equal(found.lengths(), other.sparse_features[name].lengths())
        assert torch.equal(one.dense_BN, other.dense_BN)
        assert torch.equal(one.group_B, other.group_B)


def test_null_items(tmp_path: Path) -> None:
    manifest = make_set(tmp_path / "s", 20, rows_per_part=50, row_group_rows=5)
    table = make_table(20)
    lists = table.column("click_gap").to_pylist()
    lists[14][1] = None
    place = table.column_names.index("click_gap")
    table = table.set_column(place, "click_gap", pa.array(lists, pa.list_(pa.int64())))
    pq.write_table(table, tmp_path / "s" / "train" / "part-00000.parquet", row_group_size=5)
    manifest = without_fingerprints(manifest)
    with pytest.raises(DataError, match=r"row group 2, column 'click_gap'.* 1 null"):
        list(make_reader(tmp_path / "s", manifest).batches())


def test_prefetch_passes_errors_on_and_stops_when_closed() -> None:
    def broken() -> object:
        yield 1
        raise OSError("disk gone")

    items = prefetch(broken(), depth=2)
    assert next(items) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(items)

    before = threading.active_count()
    endless = prefetch(iter(int, 1), depth=2)
    assert next(endless) == 0
    assert threading.active_count() == before + 1
    endless.close()
    assert threading.active_count() == before
