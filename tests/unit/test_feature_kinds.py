"""Bags, weights, vectors, crosses and row weights: from rows on disk to batches, and bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.batch import RankingBatch
from infnet_dist.data.checks.footers import check_columns, check_split
from infnet_dist.data.decode import decode
from infnet_dist.data.manifest import Manifest
from infnet_dist.data.part_files import part_opener
from infnet_dist.data.reader import Reader
from infnet_dist.data.statistics import sample_usage
from infnet_dist.data.unknown_ids import UnknownIds
from infnet_dist.errors import ConfigError, DataError
from infnet_dist.features.hashing import cross_ids, hashed_rows, splitmix64
from infnet_dist.ingest.report import write_report
from infnet_dist.ingest.writing.writer import TrainingSetWriter
from infnet_dist.schema import (
    BagFeature,
    CategoricalFeature,
    CrossFeature,
    DenseFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
    VectorFeature,
)
from infnet_dist.training.selected_schema import selected_schema
from infnet_dist.training.setup import unknown_id_rates
from tests.hostile_parquet import without_fingerprints
from tests.runs import make_config

ROWS, BATCH = 61, 8
PART = "train/part-00000.parquet"
SCHEMA = Schema(
    tables=(
        Table(name="row", num_embeddings=1_000),
        Table(name="item", num_embeddings=7_000, raw=True),
        Table(name="tag", num_embeddings=5_000),
        Table(name="color", num_embeddings=5_000),
        Table(name="price", num_embeddings=4),
        Table(name="row_x_item", num_embeddings=900),
        Table(name="three", num_embeddings=2),
    ),
    categorical=(
        CategoricalFeature(name="row", table="row", column="row"),
        CategoricalFeature(name="main_tag", table="tag", column="main_tag"),
        CategoricalFeature(name="item", table="item", column="item"),
    ),
    crosses=(
        CrossFeature(name="row_x_item", features=("row", "item"), table="row_x_item"),
        CrossFeature(name="three", features=("item", "price", "main_tag"), table="three"),
    ),
    bags=(
        BagFeature(name="colors", table="color", column="colors", max_length=3),
        BagFeature(name="tags", table="tag", column="tags", max_length=4, weight_column="tag_w"),
        BagFeature(name="more", table="tag", column="colors", pooling="sum", max_length=9),
        BagFeature(
            name="liked", table="item", column="liked", max_length=5, weight_column="like_w"
        ),
    ),
    vectors=(
        VectorFeature(name="small", column="small", dim=2),
        VectorFeature(name="image", column="image", dim=5),
    ),
    sequences=(
        SequenceFeature(
            name="click",
            attributes=(SequenceAttribute(name="item", table="item", column="click"),),
            max_length=3,
        ),
    ),
    dense=(DenseFeature(name="price", column="price", boundaries=(1.0, 3.0)),),
    tasks=(Task(name="click", column="label"),),
    group_column="row",
    time_column="row",
    weight_column="weight",
)


def lists_of(row: int, column: str) -> list[int] | None:
    """Ids of a row: some lists are empty, some null; an id determines row and place."""
    length = {"colors": row % 5, "tags": (row * 3) % 7, "liked": (row * 5) % 8, "click": row % 4}
    if row % 9 == 4 and column != "click":
        return None
    return [10 * row + place for place in range(length[column])]


def weight_of(value: int) -> float:
    """A float32 that belongs to one id alone; 0 for some."""
    return 0.0 if value % 10 == 2 else value / 8 + 0.125


def vector_of(row: int, dim: int) -> list[float] | None:
    return None if row % (dim + 2) == 1 else [row + place / 8 for place in range(dim)]


def make_row(row: int) -> dict[str, Any]:
    tags, liked = lists_of(row, "tags"), lists_of(row, "liked")
    return {
        "row": row,
        "main_tag": row % 5,
        "item": 0 if row % 11 == 3 else (-1) ** row * row * 10**12,
        "colors": lists_of(row, "colors"),
        "tags": tags,
        "tag_w": tags and [weight_of(i) for i in tags],
        "liked": liked,
        "like_w": liked and [weight_of(i) for i in liked],
        "small": vector_of(row, 2),
        "image": vector_of(row, 5),
        "click": lists_of(row, "click"),
        "price": None if row % 6 == 5 else float(row % 4),
        "label": row % 2,
        "weight": row / 4,
    }


TYPES = {
    **dict.fromkeys(("row", "main_tag", "item"), pa.int64()),
    **dict.fromkeys(("colors", "tags", "liked", "click"), pa.list_(pa.int64())),
    **dict.fromkeys(("tag_w", "like_w"), pa.list_(pa.float32())),
    "small": pa.list_(pa.float32(), 2),
    "image": pa.list_(pa.float32(), 5),
    "price": pa.float32(),
    "label": pa.int8(),
    "weight": pa.float32(),
}
RAW = [make_row(row) for row in range(ROWS)]


def make_table(rows: list[dict[str, Any]] = RAW) -> pa.Table:
    return pa.table({n: pa.array([row[n] for row in rows], kind) for n, kind in TYPES.items()})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("kinds") / "set"
    return folder, make_set(folder)


def make_set(folder: Path, table: pa.Table | None = None, **settings: Any) -> Manifest:
    sizes = {"rows_per_part": 23, "row_group_rows": 6, "source": {}} | settings
    with TrainingSetWriter(folder, **sizes) as writer:
        writer.write("train", make_table() if table is None else table)
        return writer.publish(SCHEMA)


def read(folder: Path, manifest: Manifest, **changes: Any) -> list[RankingBatch]:
    schema = changes.pop("schema", SCHEMA)
    settings = {"batch_size": BATCH, "rank": 0, "world_size": 1, "shuffle_rows": 20} | changes
    return [*Reader(folder, manifest, schema, "train", **settings).batches()]


def by_row(jagged: KeyedJaggedTensor, values: torch.Tensor) -> dict[str, list[list[Any]]]:
    """The values of each row by key."""
    parts = iter(values.split(jagged.lengths().tolist()))
    return {key: [next(parts).tolist() for _ in range(BATCH)] for key in jagged.keys()}


def hashed(value: int) -> int:
    return int(hashed_rows(np.array([value]), 7_000)[0]) if value else 0


def cross(row: dict[str, Any], features: tuple[str, ...], num_embeddings: int) -> int:
    """The same in Python's integers."""
    ids = {
        **row,
        "price": 0 if row["price"] is None else 1 + sum(row["price"] >= x for x in (1, 3)),
    }
    state = 0
    for name in features:
        if ids[name] == 0:
            return 0
        state = int(splitmix64(np.array([state ^ ids[name] % 2**64], np.uint64).view(np.int64))[0])
    return 1 + state % (num_embeddings - 1)


def expected_ids(row: dict[str, Any]) -> dict[str, list[int]]:
    colors, tags, liked = ((row[name] or []) for name in ("colors", "tags", "liked"))
    bucket = 0 if row["price"] is None else 1 + sum(row["price"] >= x for x in (1, 3))
    return {
        "row": [row["row"]],
        "main_tag": [row["main_tag"]],
        "item": [hashed(row["item"])],
        "price": [bucket],
        "row_x_item": [cross(row, ("row", "item"), 900)],
        "three": [cross(row, ("item", "price", "main_tag"), 2)],
        "colors": colors[:3],
        "tags": tags[:4],
        "more": colors[:9],
        "liked": [hashed(i) for i in liked[:5]],
        "click.item": [hashed(i) for i in row["click"][:3]],
    }


def expected_weights(row: dict[str, Any]) -> dict[str, list[float]]:
    return {
        "main_tag": [1.0],
        "tags": (row["tag_w"] or [])[:4],
        "more": [1.0] * len(row["colors"] or []),
        "liked": (row["like_w"] or [])[:5],
    }


def assert_is_loop(batch: RankingBatch) -> list[int]:
    """A batch against a loop over its rows; returns the rows."""
    ids = by_row(batch.sparse_features, batch.sparse_features.values())
    weighted = batch.weighted_features
    assert tuple(ids) == SCHEMA.unweighted_keys and weighted is not None
    weighted_ids = by_row(weighted, weighted.values())
    weights = by_row(weighted, weighted.weights())
    assert tuple(weights) == SCHEMA.weighted_keys == ("main_tag", "tags", "more", "liked")
    assert weighted.weights().dtype == batch.vectors_BV.dtype == torch.float32
    rows = [found[0] for found in ids["row"][: batch.num_rows]]
    for place, number in enumerate(rows):
        row = RAW[number]
        every = expected_ids(row)
        assert {key: found[place] for key, found in (ids | weighted_ids).items()} == every
        assert weighted_ids["liked"][place] == ids["liked"][place]
        assert {key: found[place] for key, found in weights.items()} == expected_weights(row)
        assert batch.weights_B[place] == row["weight"]
        vector = batch.vectors_BV[place]
        for name, part in (("small", vector[:2]), ("image", vector[2:])):
            if row[name] is None:
                assert part.isnan().all()
            else:
                assert part.tolist() == row[name]
    padding = slice(batch.num_rows, BATCH)
    assert not any(any(found[padding]) for found in (ids | weighted_ids).values())
    assert batch.vectors_BV[padding].eq(0).all() and batch.weights_B[padding].eq(0).all()
    assert batch.vectors_BV.shape == (BATCH, 7)
    return rows


@pytest.mark.parametrize("shuffle_rows", [None, 13])
def test_batches_are_those_of_a_loop(made: tuple[Path, Manifest], shuffle_rows: int | None) -> None:
    seen = []
    for rank in range(2):
        batches = read(*made, shuffle_rows=shuffle_rows, rank=rank, world_size=2)
        seen += [row for batch in batches for row in assert_is_loop(batch)]
        assert batches[-1].num_rows < BATCH
    assert sorted(seen) == list(range(ROWS))


def test_a_rank_without_rows_has_batches_of_padding(made: tuple[Path, Manifest]) -> None:
    batches = [read(*made, batch_size=1, rank=rank, world_size=2)[-1] for rank in (0, 1)]
    assert sorted(batch.num_rows for batch in batches) == [0, 1]
    empty = min(batches, key=lambda batch: batch.num_rows)
    assert empty.weighted_features is not None and len(empty.weighted_features.weights()) == 0
    assert empty.vectors_BV.tolist() == [[0.0] * 7]


def test_sets_without_the_new_kinds_have_none(made: tuple[Path, Manifest]) -> None:
    schema = SCHEMA.select(["row", "click", "colors"])
    schema = schema.model_copy(update={"weight_column": None})
    batch = read(*made, schema=schema)[0]
    assert batch.weighted_features is None and batch.vectors_BV.shape == (BATCH, 0)
    assert batch.sparse_features.keys() == ["row", "colors", "click.item"]
    assert batch.weights_B.tolist() == [1.0] * BATCH


def test_skipped_row_groups_have_no_information(tmp_path: Path) -> None:
    manifest = make_set(tmp_path / "s")
    damaged = bytearray((tmp_path / "s" / PART).read_bytes())
    start = pq.ParquetFile(tmp_path / "s" / PART).metadata.row_group(1).column(0).data_page_offset
    damaged[start : start + 20] = b"\xff" * 20
    (tmp_path / "s" / PART).write_bytes(damaged)
    batches = read(tmp_path / "s", manifest, shuffle_rows=None, max_bad_row_groups=1)
    found = torch.cat([batch.weights_B for batch in batches])
    assert found[:ROWS].tolist() == [0.0 if 6 <= r < 12 else r / 4 for r in range(ROWS)]
    weighted = batches[0].weighted_features
    assert weighted is not None and weighted["tags"].lengths()[6:].tolist() == [0, 0]
    assert batches[0].vectors_BV[6:].isnan().all()


# ----------------------------------------------------------------------------------------- crosses


def test_crosses_never_change() -> None:
    ids = np.array([0, 1, 2, -7, 2**63 - 1])
    others = np.array([5, 5, 0, 9, 1])
    assert cross_ids([ids, others], 1_000).tolist() == [0, 410, 0, 932, 282]
    assert cross_ids([others, ids], 1_000).tolist() == [0, 716, 0, 384, 872], "order matters"
    three = cross_ids([ids, others, np.array([1, 1, 1, 2, 3])], 2**40)
    assert three.tolist() == [0, 1013985965051, 0, 787577034707, 683620469129]
    assert cross_ids([ids, others], 2).tolist() == [0, 1, 0, 1, 1]
    assert cross_ids([np.empty(0, np.int64)] * 2, 9).tolist() == []


def test_crosses_are_spread_evenly() -> None:
    pairs = np.stack(np.meshgrid(np.arange(1, 301), np.arange(1, 201))).reshape(2, -1)
    found = cross_ids([*pairs], 10_001)
    assert found.min() >= 1 and found.max() <= 10_000
    counts = np.bincount(found, minlength=10_001)[1:]
    assert counts.var() == pytest.approx(6.0, rel=0.1), "Poisson, as of random rows"


# ------------------------------------------------------------------------------------- unknown ids


def test_dropped_ids_keep_their_weights_and_agree(made: tuple[Path, Manifest]) -> None:
    rates = {"tag": 0.4, "item": 0.4, "row_x_item": 0.4, "color": 0.4}
    dropped = [read(*made, unknown_ids=UnknownIds(rates, seed=1), batch_size=b) for b in (8, 5)]
    plain = read(*made)
    changed: dict[str, list[bool]] = {}
    for batch, whole in zip(dropped[0], plain, strict=True):
        one, other = batch.weighted_features, whole.weighted_features
        assert one is not None and other is not None
        assert torch.equal(one.weights(), other.weights())
        assert torch.equal(one["liked"].values(), batch.sparse_features["liked"].values())
        pairs = ((batch.sparse_features, whole.sparse_features), (one, other))
        for here, before in pairs:
            for key in here.keys():
                ids, known = here[key].values(), before[key].values()
                assert torch.all((ids == known) | (ids == 0))
                changed.setdefault(key, []).extend((ids != known).tolist())
    shares = {key: np.mean(found) for key, found in changed.items()}
    assert shares["row"] == shares["price"] == shares["three"] == 0.0
    assert all(0.2 < shares[key] < 0.6 for key in ("tags", "more", "liked", "colors", "row_x_item"))
    by_place = [
        {
            place: ids
            for batch in batches
            for place, ids in zip(places_of(batch), tags_of(batch), strict=False)
        }
        for batches in dropped
    ]
    assert by_place[0] == by_place[1], "whatever the batch size"


def places_of(batch: RankingBatch) -> list[int]:
    return [place for interval in batch.rows.intervals for place in range(*interval)]


def tags_of(batch: RankingBatch) -> list[list[int]]:
    assert batch.weighted_features is not None
    tags = batch.weighted_features["tags"]
    return [ids.tolist() for ids in tags.values().split(tags.lengths().tolist())]


def test_a_cross_is_dropped_with_its_features(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = made

    def rates(**tables: Any) -> dict[str, float]:
        config = make_config(folder, tmp_path, tables=tables)
        return unknown_id_rates(config, manifest, SCHEMA)

    found = rates(unknown_id_rate=None, overrides={})
    assert found["row_x_item"] == found["three"] == 0.0
    found = rates(unknown_id_rate=0.1, overrides={})
    assert (found["item"], found["row_x_item"]) == (0.0, 0.1), "raw ids have rows of their own"
    found = rates(overrides={"t*": {"unknown_id_rate": 0.3}, "tag": {"unknown_id_rate": 0.2}})
    assert (found["tag"], found["three"], found["row_x_item"]) == (0.2, 0.3, 0.0)


# --------------------------------------------------------------------------------------- bad input

NAN, INF = float("nan"), float("inf")
BAD = [
    ("colors", 34, [1, 5_000], "5000"),
    ("colors", 34, [1, -1], "-1"),
    ("colors", 34, [1, None], "1 null"),
    ("liked", 34, [1, None, 3], "1 null"),
    ("tag_w", 34, [0.5, NAN, 1.0, 0.5], "nan"),
    ("tag_w", 34, [0.5, 1.0, 0.5, -0.25], "-0.25"),
    ("like_w", 34, [1.0, INF], "inf"),
    ("like_w", 34, [1.0, None], "1 null"),
    ("weight", 34, NAN, "nan"),
    ("weight", 34, -2.5, "-2.5"),
    ("weight", 34, INF, "inf"),
    ("weight", 34, None, "1 null"),
    ("image", 34, [0.0, 1.0, NAN, 3.0, 4.0], "nan"),
    ("image", 34, [0.0, 1.0, 2.0, 3.0, -INF], "-inf"),
    ("image", 34, [0.0, None, 2.0, 3.0, 4.0], "1 null"),
]


def with_value(column: str, row: int, value: Any) -> pa.Table:
    return make_table([*RAW[:row], RAW[row] | {column: value}, *RAW[row + 1 :]])


@pytest.mark.parametrize(("column", "row", "value", "found"), BAD)
def test_bad_values_are_named(column: str, row: int, value: Any, found: str) -> None:
    with pytest.raises(DataError, match=rf"^here, column '{column}': .*{found}"):
        decode(with_value(column, row, value), SCHEMA, "here")


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        ("tag_w", [1.0] * 3, "4 and 3 items in row 34"),
        ("tag_w", None, "4 and 0 items in row 34"),
        ("tags", [7], "1 and 4 items in row 34"),
        ("like_w", [0.5] * 9, "2 and 9 items in row 34"),
    ],
)
def test_weights_are_as_many_as_ids(column: str, value: Any, found: str) -> None:
    names = {"tag_w": "'tags' and 'tag_w'", "tags": "'tags'", "like_w": "'liked' and 'like_w'"}
    with pytest.raises(DataError, match=rf"^here: columns {names[column]}.*{found}"):
        decode(with_value(column, 34, value), SCHEMA, "here")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("image", pa.list_(pa.float32(), 4)),
        ("image", pa.list_(pa.float32())),
        ("image", pa.list_(pa.float64(), 5)),
        ("tag_w", pa.list_(pa.float64())),
        ("tags", pa.list_(pa.int32())),
        ("colors", pa.int64()),
        ("weight", pa.float64()),
    ],
)
def test_other_types_are_refused(column: str, kind: pa.DataType) -> None:
    table = make_table()
    place = table.column_names.index(column)
    table = table.set_column(place, column, pa.nulls(len(table), kind))
    with pytest.raises(DataError, match=rf"^here: column '{column}' is .*expected "):
        decode(table, SCHEMA, "here")


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [(column, value, found) for column, _, value, found in BAD if column != "image"],
)
def test_most_bad_values_are_found_before_training(
    tmp_path: Path, made: tuple[Path, Manifest], column: str, value: Any, found: str
) -> None:
    _, manifest = made
    (tmp_path / "train").mkdir()
    table = with_value(column, 34, value)
    for part, rows in (("0", table[:23]), ("1", table[23:46]), ("2", table[46:])):
        path = tmp_path / f"train/part-0000{part}.parquet"
        pq.write_table(rows, path, row_group_size=6, write_statistics=False)
    check_columns(tmp_path, without_fingerprints(manifest), SCHEMA)
    place = rf"part-00001\.parquet, row group 1, column '{column}': .*{found}"
    with pytest.raises(DataError, match=place):
        check_split(
            tmp_path, without_fingerprints(manifest), SCHEMA, split="train", rank=0, world_size=1
        )


def test_the_reader_names_file_and_row_group(tmp_path: Path, made: tuple[Path, Manifest]) -> None:
    _, manifest = made
    (tmp_path / "train").mkdir()
    table = with_value("image", 34, [0.0, 1.0, INF, 3.0, 4.0])
    for part, rows in (("0", table[:23]), ("1", table[23:46]), ("2", table[46:])):
        pq.write_table(rows, tmp_path / f"train/part-0000{part}.parquet", row_group_size=6)
    with pytest.raises(DataError) as caught:
        read(tmp_path, without_fingerprints(manifest))
    for value in ("part-00001.parquet", "row group 1", "'image'", "inf"):
        assert value in str(caught.value)


# ------------------------------------------------------------------------------- the run's crosses

BARE = SCHEMA.model_copy(
    update={
        "crosses": (),
        "tables": tuple(t for t in SCHEMA.tables if t.name not in ("row_x_item", "three")),
    }
)


def selected(tmp_path: Path, crosses: dict[str, Any], **changes: Any) -> Schema:
    data = {"path": "/x", "crosses": crosses, "features": changes.pop("features", None)}
    tables = {"overrides": changes.pop("overrides", {})}
    config = make_config(Path("/x"), tmp_path, data=data, tables=tables)
    return selected_schema(config, BARE, **changes)


def test_crosses_are_added_to_what_is_selected(tmp_path: Path) -> None:
    crosses = {"row_x_item": {"features": ["row", "item"], "num_embeddings": 900}}
    schema = selected(tmp_path, crosses, features=["item", "row"], overrides={"row_x*": {}})
    assert [cross.name for cross in schema.crosses] == ["row_x_item"]
    assert [f.key for f in schema.fields] == ["row", "item", "row_x_item"]
    assert schema.tables[-1] == Table(name="row_x_item", num_embeddings=900)
    assert Schema.model_validate(schema.model_dump()) == schema


@pytest.mark.parametrize(
    ("name", "features", "message"),
    [
        ("x", ["rwo", "item"], r"data\.crosses\.x\.features: .*'rwo'; did you mean 'row'"),
        ("x", ["row", "tags"], r"data\.crosses\.x\.features: .*'tags'"),
        ("x", ["row", "row"], r"data\.crosses\.x\.features: row, row"),
        ("tags", ["row", "item"], r"data\.crosses\.tags: .*rename"),
        ("color", ["row", "item"], r"data\.crosses\.color: .*rename"),
        ("keys", ["row", "item"], r"data\.crosses\.keys: .*reserved"),
        ("a.b", ["row", "item"], r"data\.crosses\.a\.b: .*dot"),
        ("x", ["row"], r"data\.crosses\.x\.features"),
        ("x", ["row", "item", "price", "main_tag"], r"data\.crosses\.x\.features"),
    ],
)
def test_crosses_that_can_t_be_made(
    tmp_path: Path, name: str, features: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        selected(tmp_path, {name: {"features": features, "num_embeddings": 9}})


def test_crosses_of_features_that_aren_t_selected(tmp_path: Path) -> None:
    crosses = {"x": {"features": ["row", "item"], "num_embeddings": 9}}
    with pytest.raises(ConfigError) as caught:
        selected(tmp_path, crosses, features=["row", "tags"])
    for name in ("data.crosses.x", "'item'", "data.features"):
        assert name in str(caught.value)
    with pytest.raises(ConfigError, match=r"data\.features: 'x' .*data\.crosses"):
        selected(tmp_path, crosses, features=["row", "item", "x"])
    with pytest.raises(ConfigError, match="num_embeddings"):
        selected(tmp_path, {"x": {"features": ["row", "item"], "num_embeddings": 1}})


def test_patterns_that_match_no_table(tmp_path: Path) -> None:
    crosses = {"x": {"features": ["row", "item"], "num_embeddings": 9}}
    selected(tmp_path, crosses, overrides={"x": {}, "c*": {}, "[pt]*": {}})
    for pattern, nearest in (("colr", "color"), ("colour_*", "color"), ("y", "x")):
        with pytest.raises(ConfigError, match=rf"tables\.overrides: .*{nearest}"):
            selected(tmp_path, crosses, overrides={pattern: {}})


# ------------------------------------------------------------------------ statistics and petastorm


def test_statistics_have_all_keys_and_the_report_shows_vectors(
    made: tuple[Path, Manifest],
) -> None:
    folder, manifest = made
    assert manifest.statistics is not None
    train = manifest.statistics.splits["train"]
    assert train.features.keys() == {feature.key for feature in SCHEMA.table_features}
    lengths = [len((row["tags"] or [])[:4]) for row in RAW]
    assert train.features["tags"].mean_length == pytest.approx(np.mean(lengths))
    present = np.mean([row["image"] is not None for row in RAW])
    assert train.vectors["image"] == pytest.approx(present)
    usage = sample_usage(folder, manifest.model_copy(update={"statistics": None}), SCHEMA)
    assert usage == sample_usage(folder, manifest, SCHEMA)
    assert f"{present:.1%}" in write_report(folder, manifest).read_text()


def test_petastorm_reads_lists_and_vectors(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    opener = part_opener("petastorm", SCHEMA)
    for batch in read(folder, manifest, open_part=opener):
        assert_is_loop(batch)
