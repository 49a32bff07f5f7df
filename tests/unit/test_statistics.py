"""Statistics of a training set against plain loops, hashes and sketches against known values."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from infnet_dist.config.log_columns import IdTable
from infnet_dist.data.manifest import read_manifest
from infnet_dist.data.statistics import sample_usage
from infnet_dist.features.hashing import hashed_rows, splitmix64
from infnet_dist.features.ids import KeyMap, VocabularyEncoder
from infnet_dist.ingest.convert.keys import keys, nulls
from infnet_dist.ingest.logs.encoding.sketch import (
    colliding_share,
    estimate_distinct,
    smallest_hashes,
)
from infnet_dist.ingest.logs.encoding.vocabulary import MergeCounts
from infnet_dist.ingest.logs.pipeline import ingest_logs
from infnet_dist.ingest.logs.stages.deduplicate import COUNTS
from infnet_dist.ingest.logs.stages.runner import one_by_one
from infnet_dist.ingest.logs.stages.shuffle_files import BucketWriter, read_bucket
from infnet_dist.ingest.report import write_report
from tests.unit.raw_logs import make_rows, read_split, settings, write_logs


def ingest(config, folder):
    return ingest_logs(config, folder, one_by_one, lambda *_: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    tables = {"item": {"encoding": "hash", "num_embeddings": 40}}
    logs = write_logs(folder / "logs", make_rows(3, rows=900, items=30))
    return folder / "set", ingest(settings(logs, tables=tables), folder / "set")


def test_feature_statistics(made):
    folder, manifest = made
    for split in ("train", "valid"):
        rows, found = read_split(folder, split), manifest.statistics.splits[split]
        assert found.rows == len(rows)
        lists = [row["exposed_item_id"] for row in rows]
        lengths = [len(items) for items in lists]
        counts = Counter(item for items in lists for item in items)
        statistics = found.features["exposed.item_id"]
        assert statistics.mean_length == pytest.approx(np.mean(lengths))
        assert statistics.p99_length == pytest.approx(np.percentile(lengths, 99))
        assert statistics.distinct == len(counts)
        assert statistics.top_share == pytest.approx(max(counts.values()) / counts.total())
        ages = [row["duration_s"] for row in rows]
        assert found.features["duration_s"].coverage == pytest.approx(
            np.mean([age is not None for age in ages])
        )


def test_drift_is_the_total_variation(made):
    folder, manifest = made
    shares = []
    for split in ("train", "valid"):
        counts = Counter(row["author"] for row in read_split(folder, split))
        shares.append({author: n / counts.total() for author, n in counts.items()})
    distance = sum(abs(shares[0].get(a, 0) - shares[1].get(a, 0)) for a in range(6)) / 2
    assert manifest.statistics.drift["author"] == pytest.approx(distance)
    assert max(manifest.statistics.drift.values()) <= 1


def test_planning_reads_the_manifest_or_the_rows(made):
    folder, manifest = made
    bare = manifest.model_copy(update={"statistics": None})
    by_manifest = sample_usage(folder, manifest, manifest.schema_)
    assert by_manifest == sample_usage(folder, bare, manifest.schema_)
    lacking = manifest.statistics.model_copy(update={"tables": {}})
    incomplete = manifest.model_copy(update={"statistics": lacking})
    assert by_manifest == sample_usage(folder, incomplete, manifest.schema_)
    some = manifest.schema_.select(features=["item_id", "exposed"])
    assert sample_usage(folder, manifest, some).lookups["item"] <= 40


def test_collisions_are_estimated(made):
    _, manifest = made
    hashed = manifest.ingested.hashed["item"]
    assert hashed.values == 30  # exact where there are few
    rows = hashed_rows(np.arange(30) * 7, 40)
    sharing = np.mean([np.sum(rows == row) > 1 for row in rows])
    assert hashed.sharing == pytest.approx(sharing, abs=0.2)
    assert hashed.indistinct == hashed.sharing


def test_sketches_of_parts_join():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 200_000, 100_000) for _ in range(4)]
    true = len(np.unique(np.concatenate(parts)))
    sketches = np.concatenate([smallest_hashes(splitmix64(part)) for part in parts])
    assert estimate_distinct(sketches) == pytest.approx(true, rel=0.06)
    assert estimate_distinct(smallest_hashes(splitmix64(np.arange(100)))) == 100
    rows = rng.integers(0, 5_000, 3_000)
    counts = Counter(rows.tolist())
    shared = sum(n for n in counts.values() if n > 1) / len(rows)
    assert colliding_share(3_000, 5_000) == pytest.approx(shared, abs=0.03)


A, EMPTY = -4496393130729816112, 1760245841805064774  # pandas.util.hash_array of "a" and ""


def test_hashes_never_change():
    """Sets and checkpoints rely on these values; SplitMix64's published ones from seed 0."""
    assert splitmix64(np.array([0])).tolist() == [0xE220A8397B1DCDAF]
    assert hashed_rows(np.array([1, -1, 2**62]), 1_000, 3).tolist() == [
        1 + int(h) % 999 for h in splitmix64(np.array([1, -1, 2**62]), 3)
    ]
    texts = keys(pa.array(["a", None, "ä", "a", ""], pa.large_string()))
    assert texts.tolist() == [A, -1, 169404545344139998, A, EMPTY]


@pytest.mark.parametrize("kind", ["compact", "sparse", "negative", "text"])
def test_encoders_against_a_dictionary(kind, tmp_path):
    rng = np.random.default_rng(1)
    values = {
        "compact": rng.integers(0, 300, 2_000),
        "sparse": rng.integers(0, 2**60, 300)[rng.integers(0, 300, 2_000)],
        "negative": rng.integers(-5, 40, 2_000),
        "text": rng.integers(0, 300, 2_000),
    }[kind].tolist()
    values = [f"v{v}" for v in values] if kind == "text" else values
    column = "text" if kind == "text" else "value"
    counted = Counter(values)
    table = pa.Table.from_pylist(
        [{column: v, "count": n, "pending": 0} for v, n in counted.items()], COUNTS
    )
    with BucketWriter(tmp_path / "counts", COUNTS, 1) as writer:
        writer.write(table, np.zeros(len(table), np.int64))
    merge = MergeCounts(
        table=IdTable(min_count=3, num_embeddings=100),
        number=0,
        num_tables=1,
        text=kind == "text",
        inferred=(),
        counts=(tmp_path / "counts",),
        previous=None,
        pending_is_train=False,
        out=tmp_path / "v.parquet",
        transforms=tmp_path,
    )
    merge.run()
    often = sorted(((-n, v) for v, n in counted.items() if n >= 3))[:99]
    ids = {v: i + 1 for i, (_, v) in enumerate(often)}
    asked = [*values, *(["new", None] if kind == "text" else [7**30 % 2**62, -9, None])]
    kind_of = pa.large_string() if kind == "text" else pa.int64()
    column = pa.array(asked, kind_of)
    for direct in (True, False):
        encode = VocabularyEncoder(KeyMap.load(tmp_path / "table-000", direct=direct))
        assert encode(keys(column), nulls(column)).tolist() == [ids.get(v, 0) for v in asked]


def test_buckets_come_back_in_order(tmp_path):
    rng = np.random.default_rng(0)
    chunks = [rng.integers(0, 5, size) for size in (0, 10, 1, 300)]
    schema = pa.schema({"x": pa.list_(pa.int64()), "y": pa.string()})
    number = 0
    written = []
    with BucketWriter(tmp_path / "f", schema, 5) as writer:
        for buckets in chunks:
            rows = [
                {"x": [number + i] * (i % 3), "y": f"{number + i}"} for i in range(len(buckets))
            ]
            number += len(rows)
            written += list(zip(buckets.tolist(), rows, strict=True))
            writer.write(pa.Table.from_pylist(rows, schema), buckets)
    for bucket in range(5):
        found = read_bucket([tmp_path / "f"] * 2, bucket, 5).to_pylist()
        assert found == [row for place, row in written if place == bucket] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_the_report_shows_the_statistics_of_the_manifest(made):
    folder, manifest = made
    page = write_report(folder, manifest).read_text()
    for text in (
        "Label",
        "exposed.item_id",
        "Hashed tables",
        manifest.content_hash,
        "base64,iVBOR",
    ):
        assert text in page, text
    assert f"{manifest.split('train').rows:,}" in page
    assert "<script" not in page


def test_the_report_of_a_set_with_odd_features(tmp_path):
    rows = [row | {"author": None, "is_like": None} for row in make_rows(1)]
    config = settings(
        write_logs(tmp_path / "<logs>", rows),
        checks={"is_like": {"nulls": "keep"}},
        counters={},
        behaviours={},
    )
    manifest = ingest(config, tmp_path / "set")
    assert manifest.statistics.splits["train"].features["author"].coverage == 0
    assert write_report(tmp_path / "set", read_manifest(tmp_path / "set")).stat().st_size > 10_000
