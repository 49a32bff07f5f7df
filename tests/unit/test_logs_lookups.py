"""Logs -> bags, weights, vectors and weights of rows, against plain loops."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.checks.footers import check_split
from infnet_dist.data.manifest import read_manifest
from infnet_dist.data.reader import Reader
from infnet_dist.errors import ConfigError, DataError
from infnet_dist.features.hashing import hashed_rows
from infnet_dist.ingest.logs.pipeline import ingest_logs
from infnet_dist.ingest.logs.reading.files import fragments, list_files
from infnet_dist.ingest.logs.reading.fragments import read_chunks
from infnet_dist.ingest.logs.stages.runner import one_by_one
from infnet_dist.ingest.logs.task_sizes import TaskSizes, rows_at_once
from infnet_dist.ingest.report import write_report

START_MS = 1_767_225_600_000  # 2026-01-01
DIM, DATE = 3, pa.date32()
TYPES = pa.schema(
    {
        "user": pa.int64(),
        "item": pa.int64(),
        "time": pa.int64(),
        "click": pa.int8(),
        "tags": pa.list_(pa.string()),
        "topics": pa.list_(pa.int64()),
        "topic_weights": pa.list_(pa.float64()),
        "image": pa.list_(pa.float32()),
        "importance": pa.float64(),
    }
)


def ingest(config, folder):
    return ingest_logs(config, folder, one_by_one, lambda *_: None)


def settings(path, **changes):
    given = {
        "source": "logs",
        "path": str(path),
        "user": "user",
        "time": {"column": "time"},
        "ids": {"user": "user", "item": "item"},
        "lists": {
            "tags": {"table": "tag", "max_length": 2, "pooling": "mean"},
            "topics": {
                "table": "topic",
                "max_length": 3,
                "pooling": "sum",
                "weights": "topic_weights",
            },
        },
        "tables": {"tag": {"encoding": "hash", "num_embeddings": 40, "num_hashes": 2}},
        "vectors": {"image": {"dim": DIM}},
        "sample_weight": "importance",
        "tasks": {"click": "click"},
        "valid_from": "2026-01-02",
        "test_from": "2026-01-03",
        "row_group_rows": 16,
        "max_bad_share": 0.5,
    }
    return LogsIngest.model_validate(given | changes)


def make_rows(number=90, seed=0):
    """Over three days."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(number):
        topics = [int(t) for t in rng.integers(0, 9, rng.integers(0, 6))]
        found.append(
            {
                "user": i % 7,
                "item": i % 11,
                "time": START_MS + i * 2_800_000,
                "click": i % 2,
                "tags": None if i % 9 == 4 else [f"t{t}" for t in rng.integers(0, 20, i % 4)],
                "topics": topics or None,
                "topic_weights": [float(w) for w in rng.random(len(topics))] or None,
                "image": None if i % 5 == 0 else [float(x) for x in rng.normal(size=DIM)],
                "importance": float(rng.choice([0.0, 0.25, 3.0])),
            }
        )
    return found


def write(folder, rows, types=TYPES, files=2):
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // files)
    for i in range(files):
        part = pa.Table.from_pylist(rows[i * size : (i + 1) * size], types)
        pq.write_table(part, folder / f"log-{i}.parquet", row_group_size=20)
    return folder


def as_text(value, separator):
    return None if value is None else separator.join(map(str, value))


def write_csv(folder, rows):
    """The same rows as text, with the default separators."""
    texts = [
        row
        | {name: as_text(row[name], "|") for name in ("tags", "topics", "topic_weights")}
        | {"image": as_text(row["image"], " "), "importance": str(row["importance"])}
        for row in rows
    ]
    folder.mkdir(parents=True)
    pa.csv.write_csv(pa.Table.from_pylist(texts), folder / "log.csv")
    return folder


def read_split(folder, split):
    parts = read_manifest(folder).split(split).parts
    return pa.concat_tables([pq.read_table(folder / part.file) for part in parts]).to_pylist()


def expected(row, folder, version=1):
    """The columns of the training set, by loops."""
    known = pq.read_table(folder / "vocabulary" / "topic" / f"g{version:04d}.parquet").to_pylist()
    ids = {entry["value"]: entry["id"] for entry in known}
    topics, weights = (row["topics"] or [])[:3], (row["topic_weights"] or [])[:3]
    return {
        "topics": [ids[topic] for topic in topics],
        "topics_weights": [float(np.float32(w)) for w in weights],
        "image": row["image"] and [float(np.float32(x)) for x in row["image"]],
        "sample_weight": float(np.float32(row["importance"])),
        "label_click": row["click"],
        "group": row["user"],
        "time_ms": row["time"],
        "tags": [t for t in (row["tags"] or [])[:2]],
    }


def check_rows(folder, rows, version=1, after_ms=0):
    """Check all splits against `expected`; tags by equality of their ids under two hashes."""
    made = [row for split in read_manifest(folder).splits for row in read_split(folder, split)]
    made = sorted((r for r in made if r["time_ms"] > after_ms), key=lambda row: row["time_ms"])
    wanted = sorted(rows, key=lambda row: row["time"])
    assert len(made) == len(wanted)
    tag_ids: dict[str, tuple[int, int]] = {}
    for row, source in zip(made, wanted, strict=True):
        want = expected(source, folder, version)
        tags = want.pop("tags")
        assert {name: row[name] for name in want} == want
        assert len(row["tags_1"]) == len(row["tags_2"]) == len(tags)
        for tag, *ids in zip(tags, row["tags_1"], row["tags_2"], strict=True):
            assert tag_ids.setdefault(tag, tuple(ids)) == tuple(ids)
            assert all(1 <= i < 40 for i in ids)
    assert len(set(tag_ids.values())) == len(tag_ids) > 5


@pytest.fixture
def small_tasks(monkeypatch):
    """Many partitions, chunks and parts, however few the rows."""
    sizes = TaskSizes(partition=30, chunk=7, part=20, count=40)
    monkeypatch.setattr("infnet_dist.ingest.logs.task_sizes.TaskSizes.of", lambda config: sizes)
    monkeypatch.setattr("infnet_dist.ingest.logs.stages.partition.rows_at_once", lambda config: 9)


@pytest.mark.parametrize("text", [False, True])
def test_equals_loops(text, tmp_path, small_tasks):
    rows = make_rows()
    logs = write_csv(tmp_path / "logs", rows) if text else write(tmp_path / "logs", rows)
    config = settings(logs, format="csv" if text else "parquet")
    manifest = ingest(config, tmp_path / "set")
    assert not manifest.ingested.quarantined
    assert list(manifest.splits) == ["train", "valid", "test"]
    check_rows(tmp_path / "set", rows)
    schema = manifest.schema_
    assert [(b.name, b.table, b.column, b.pooling, b.max_length) for b in schema.bags] == [
        ("tags_1", "tag", "tags_1", "mean", 2),
        ("tags_2", "tag", "tags_2", "mean", 2),
        ("topics", "topic", "topics", "sum", 3),
    ]
    assert [bag.weight_column for bag in schema.bags] == [None, None, "topics_weights"]
    assert [(v.name, v.column, v.dim) for v in schema.vectors] == [("image", "image", DIM)]
    assert schema.weight_column == "sample_weight" and not schema.sequences
    for split in manifest.splits:
        check_split(tmp_path / "set", manifest, schema, split=split, rank=0, world_size=1)
    assert write_report(tmp_path / "set", manifest).is_file()


def test_the_reader_reads_it(tmp_path):
    rows = make_rows()
    manifest = ingest(settings(write(tmp_path / "logs", rows)), tmp_path / "set")
    one = {"rank": 0, "world_size": 1, "batch_size": 64}
    reader = Reader(tmp_path / "set", manifest, manifest.schema_, split="train", **one)
    (batch,) = reader.batches()
    topics = batch.weighted_features["topics"]
    vectors = [None if math.isnan(v[0]) else v for v in batch.vectors_BV.tolist()]
    columns = [
        [ids.tolist() for ids in topics.to_dense()],
        [weights.tolist() for weights in topics.to_dense_weights()],
        vectors,
        batch.weights_B.tolist(),
    ]
    found = list(zip(*columns, strict=True))[: batch.num_rows]
    made = read_split(tmp_path / "set", "train")
    names = ["topics", "topics_weights", "image", "sample_weight"]
    assert sorted(map(str, found)) == sorted(str(tuple(row[n] for n in names)) for row in made)


LAYOUTS = [
    {"topic_weights": pa.large_list(pa.float64()), "image": pa.list_(pa.float64(), DIM)},
    {"topic_weights": pa.list_(pa.decimal128(9, 3)), "image": pa.large_list(pa.float32())},
    {"topic_weights": pa.list_(pa.int32()), "image": pa.list_(pa.float32(), DIM)},
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_lists(layout, tmp_path):
    """Values that all of these types can hold give the same rows."""
    rows = make_rows(30)
    for i, row in enumerate(rows):
        row["topic_weights"] = [i % 3 for _ in row["topics"] or []] or None
        row["image"] = row["image"] and [float(np.float16(x)) for x in row["image"]]
    types = pa.schema({f.name: layout.get(f.name, f.type) for f in TYPES})
    plain = pa.Table.from_pylist(rows, TYPES).to_pylist()
    logs = write(tmp_path / "logs", rows, types)
    config = settings(logs, valid_from="2026-01-01T12:00", test_from=None)
    assert not ingest(config, tmp_path / "set").ingested.quarantined
    check_rows(tmp_path / "set", plain)


def test_vectors_and_weights_of_side_tables(tmp_path):
    """The first 8 of 11 items have a row in the side table, two of them without a vector."""
    rng = np.random.default_rng(1)
    rows = make_rows()
    images = [None if i < 2 else [float(x) for x in rng.normal(size=DIM)] for i in range(8)]
    topics = [[i, i + 1] for i in range(8)]
    weights = [[0.5, i / 8] for i in range(8)]
    side = pa.table(
        {
            "item": pa.array(range(8)),
            "image": pa.array(images, pa.list_(pa.float32(), DIM)),
            "topics": topics,
            "topic_weights": weights,
        }
    )
    pq.write_table(side, tmp_path / "items.parquet")
    joins = {
        "items": {
            "path": str(tmp_path / "items.parquet"),
            "key": "item",
            "columns": ["image", "topics", "topic_weights"],
        }
    }
    types = pa.schema([f for f in TYPES if f.name not in joins["items"]["columns"]])
    logs = write(tmp_path / "logs", [{f.name: r[f.name] for f in types} for r in rows], types)
    assert not ingest(settings(logs, joins=joins), tmp_path / "set").ingested.quarantined
    for row in rows:
        known = row["item"] < 8
        row["image"] = images[row["item"]] if known else None
        row["topics"] = topics[row["item"]] if known else None
        row["topic_weights"] = weights[row["item"]] if known else None
    check_rows(tmp_path / "set", rows)


NAN, INF = math.nan, math.inf
BAD_ROWS = [
    ({"topics": [1], "topic_weights": [0.5, 0.5]}, "topic_weights: not as many as topics"),
    ({"topics": [1, 2], "topic_weights": [0.5]}, "topic_weights: not as many as topics"),
    ({"topics": [1, 2], "topic_weights": None}, "topic_weights: not as many as topics"),
    ({"topics": None, "topic_weights": [0.5]}, "topic_weights: not as many as topics"),
    ({"topics": [1, 2], "topic_weights": [0.5, NAN]}, "topic_weights: not a list of finite"),
    ({"topics": [1, 2], "topic_weights": [0.5, None]}, "topic_weights: not a list of finite"),
    ({"topics": [1, 2], "topic_weights": [0.5, INF]}, "topic_weights: not a list of finite"),
    ({"topics": [1, 2], "topic_weights": [-0.5, 1.0]}, "topic_weights: below 0"),
    ({"image": [1.0, 2.0]}, "image: not of ingest.vectors.image.dim"),
    ({"image": [1.0, 2.0, 3.0, 4.0]}, "image: not of ingest.vectors.image.dim"),
    ({"image": []}, "image: not of ingest.vectors.image.dim"),
    ({"image": [1.0, NAN, 2.0]}, "image: not a list of finite"),
    ({"image": [1.0, 2.0, INF]}, "image: not a list of finite"),
    ({"image": [1.0, None, 2.0]}, "image: not a list of finite"),
    ({"importance": -1.0}, "importance: below 0"),
    ({"importance": None}, "importance: null"),
    ({"importance": NAN}, "importance: null"),
    ({"importance": INF}, "importance: not a finite number"),
    ({"importance": 1e39}, "importance: not a finite number"),
]


def test_bad_rows_are_quarantined_by_their_reasons(tmp_path):
    rows = make_rows()
    changes = {4 * i + 1: change for i, (change, _) in enumerate(BAD_ROWS)}
    logs = write(tmp_path / "logs", [r | changes.get(i, {}) for i, r in enumerate(rows)], files=1)
    manifest = ingest(settings(logs), tmp_path / "set")
    assert manifest.ingested.bad_rows == len(BAD_ROWS)
    (file,) = (tmp_path / "set" / "quarantine").rglob("*.parquet")
    reasons = {row["_row"]: row["_reason"] for row in pq.read_table(file).to_pylist()}
    for place, (_, why) in zip(changes, BAD_ROWS, strict=True):
        assert why in reasons[place] and ";" not in reasons[place]
    check_rows(tmp_path / "set", [row for i, row in enumerate(rows) if i not in changes])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"topics": [1, 2], "topic_weights": ["0.5", "x"]}, "ingest.lists.topics.separator"),
        ({"topics": [1, 2], "topic_weights": ["0.5", ""]}, "ingest.lists.topics.separator"),
        ({"image": ["0.5", "1", "z"]}, "ingest.vectors.image.separator"),
        ({"image": ["[0.5", "1", "2]"]}, "ingest.vectors.image.separator"),
        ({"image": ["0.5|1|2"]}, "ingest.vectors.image.separator"),
        ({"image": ["0.5", "1e39", "2"]}, "ingest.vectors.image.separator"),
        ({"image": ["0.5", "1"]}, "ingest.vectors.image.dim"),
        ({"importance": "x"}, "importance: not a finite number"),
    ],
)
def test_bad_texts(change, reason, tmp_path):
    rows = make_rows()
    rows[50] |= change
    config = settings(write_csv(tmp_path / "logs", rows), format="csv")
    (why,) = ingest(config, tmp_path / "set").ingested.quarantined
    assert reason in why


def test_separators_are_settings(tmp_path):
    rows = make_rows()
    write_csv(tmp_path / "logs", rows)
    file = tmp_path / "logs" / "log.csv"
    file.write_text(file.read_text().replace(" ", ";").replace("|", "/"))
    lists = {
        "tags": {"table": "tag", "max_length": 2, "pooling": "mean", "separator": "/"},
        "topics": {
            "table": "topic",
            "max_length": 3,
            "pooling": "sum",
            "weights": "topic_weights",
            "separator": "/",
        },
    }
    vectors = {"image": {"dim": DIM, "separator": ";"}}
    config = settings(tmp_path / "logs", format="csv", lists=lists, vectors=vectors)
    assert not ingest(config, tmp_path / "set").ingested.quarantined
    check_rows(tmp_path / "set", rows)


def test_checks_apply_to_weights_and_vectors(tmp_path):
    checks = {
        "topic_weights": {"max": 0.9},
        "image": {"nulls": "quarantine", "min": -1},
        "importance": {"allowed": [0.25, 3]},
    }
    rows = make_rows()
    config = settings(write(tmp_path / "logs", rows), checks=checks, max_bad_share=1)
    found = ingest(config, tmp_path / "set").ingested.quarantined
    assert found == {
        "topic_weights: above 0.9": sum(max(r["topic_weights"] or [0]) > 0.9 for r in rows),
        "image: null": sum(r["image"] is None for r in rows),
        "image: below -1": sum(min(r["image"] or [0]) < -1 for r in rows),
        "importance: not allowed": sum(r["importance"] == 0 for r in rows),
    }


def test_logs_added_later(tmp_path, small_tasks):
    """They give the rows that one ingest of all gives; the state keeps no vectors."""
    rows = make_rows()
    behaviours = {"click": {"where": "click", "ids": ["item"], "length": 4}}
    logs, folder = tmp_path / "logs", tmp_path / "set"
    write(logs / "a", rows[:50])
    config = settings(logs, behaviours=behaviours, test_from=None)
    ingest(config, folder)
    state = pa.concat_tables([pq.read_table(p) for p in (folder / "state").rglob("rows-*")])
    assert len(state) and state["image"].null_count == len(state)
    write(logs / "b", rows[50:])
    manifest = ingest(config, folder)
    assert not manifest.ingested.quarantined
    check_rows(folder, rows[:50] + rows[50:], version=2)
    whole = ingest(config, tmp_path / "whole")
    columns = ["click_item", "click_gap_s", "image", "topics_weights"]
    one, other = (
        sorted(
            (row["time_ms"], [row[c] and len(row[c]) for c in columns])
            for split in made.splits
            for row in read_split(place, split)
        )
        for made, place in ((manifest, folder), (whole, tmp_path / "whole"))
    )
    assert one == other
    for changes in (
        {"vectors": {"image": {"dim": DIM + 1}}},
        {"sample_weight": None},
        {"lists": config.model_dump()["lists"] | {"tags": {"table": "tag", "pooling": "sum"}}},
    ):
        write(logs / "c", make_rows(5), files=1)
        with pytest.raises(DataError, match=f"ingest.{next(iter(changes))}"):
            ingest(settings(logs, behaviours=behaviours, test_from=None, **changes), folder)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"lists": {"tags": {"table": "tag", "weights": "w"}}}, ["pooling"]),
        ({"lists": {"tags": {"table": "tag", "pooling": "max"}}}, ["pooling"]),
        ({"vectors": {"image": {"dim": 0}}}, ["dim"]),
        ({"vectors": {"image": {"dim": 2**16 + 1}}}, ["dim"]),
        ({"vectors": {"item": {"dim": 3}}}, ["'item'"]),
        ({"vectors": {"tags": {"dim": 3}}}, ["'tags'"]),
        ({"vectors": {"click": {"dim": 3}}}, ["vectors", "'click'"]),
        ({"vectors": {"topic_weights": {"dim": 3}}}, ["weights", "'topic_weights'"]),
        ({"sample_weight": "click"}, ["sample_weight", "'click'"]),
        ({"sample_weight": "image"}, ["sample_weight", "'image'"]),
        ({"dense": {"importance": {}}}, ["sample_weight", "'importance'"]),
        ({"unique": ["user", "image"]}, ["vectors", "'image'"]),
        ({"checks": {"importance": {"nulls": "keep"}}}, ["checks.importance.nulls"]),
    ],
)
def test_settings_that_contradict_each_other(changes, parts, tmp_path):
    with pytest.raises(ValidationError) as caught:
        settings(tmp_path, **changes)
    for part in parts:
        assert part in str(caught.value)


def test_names_of_weights_are_taken(tmp_path):
    rows = [row | {"topics_weights": 1.0} for row in make_rows()]
    logs = write(tmp_path / "logs", rows, TYPES.append(pa.field("topics_weights", pa.float64())))
    with pytest.raises(ConfigError, match="topics_weights"):
        ingest(settings(logs, dense={"topics_weights": {}}), tmp_path / "set")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("image", pa.float32()),
        ("topic_weights", pa.list_(pa.date32())),
        ("importance", pa.date32()),
    ],
)
def test_unsuitable_types_are_named(column, kind, tmp_path):
    types = pa.schema({f.name: kind if f.name == column else f.type for f in TYPES})
    rows = [row | {column: None} for row in make_rows()]
    logs = write(tmp_path / "logs", rows, types)
    with pytest.raises(DataError) as caught:
        ingest(settings(logs), tmp_path / "set")
    for part in ("log-0.parquet", repr(column), "date32" if "date32" in str(kind) else "float"):
        assert part in str(caught.value)


def test_wide_vectors_mean_smaller_tasks(tmp_path):
    def sizes(dim):
        config = settings(tmp_path, vectors={"image": {"dim": dim}}, memory_mib=64)
        return [*vars(TaskSizes.of(config)).values(), rows_at_once(config)]

    narrow, wide = sizes(8), sizes(4096)
    assert all(a >= b for a, b in zip(narrow, wide, strict=True)) and narrow[0] > 5 * wide[0]
    assert wide[-1] * 4096 * 4 < 2**23
    assert rows_at_once(settings(tmp_path, vectors={})) is None


@pytest.mark.parametrize("text", [False, True])
def test_chunks_are_cut(text, tmp_path):
    rows = make_rows()
    logs = write_csv(tmp_path / "logs", rows) if text else write(tmp_path / "logs", rows, files=1)
    config = settings(logs, format="csv" if text else "parquet")
    (fragment,), _ = fragments(config, list_files(config).files)
    chunks = list(read_chunks(config, fragment, max_rows=40))
    assert max(map(len, chunks)) <= 40 and sum(map(len, chunks)) == 90


def test_hashes_are_those_of_the_reader(tmp_path):
    """Integers in bags of hashed tables, as single ids."""
    tables = {"topic": {"encoding": "hash", "num_embeddings": 6}}
    lists = {"topics": {"table": "topic", "pooling": "mean", "max_length": 9}}
    rows = make_rows()
    logs = write(tmp_path / "logs", rows)
    ingest(settings(logs, tables=tables, lists=lists), tmp_path / "set")
    made = sorted(read_split(tmp_path / "set", "train"), key=lambda row: row["time_ms"])
    for row, source in zip(made, rows, strict=False):
        values = np.array(source["topics"] or [], np.int64)
        assert row["topics"] == hashed_rows(values, 6).tolist()
