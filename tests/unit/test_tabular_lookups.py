"""Tabular sets -> bags, weights, vectors and weights of rows, against plain loops."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from infnet_dist.config.ingest import TabularIngest
from infnet_dist.data.checks.footers import check_split
from infnet_dist.data.manifest import read_manifest
from infnet_dist.data.reader import Reader
from infnet_dist.errors import DataError
from infnet_dist.ingest.tabular import columns
from infnet_dist.ingest.tabular.source import make_training_set

DIM = 3
TYPES = pa.schema(
    {
        "job": pa.string(),
        "skills": pa.list_(pa.string()),
        "years": pa.list_(pa.float32()),
        "codes": pa.large_list(pa.int32()),
        "photo": pa.list_(pa.float64(), DIM),
        "weight": pa.float32(),
        "rich": pa.int8(),
    }
)


def make_rows(seed, names, number=60):
    rng = np.random.default_rng(seed)
    found = []
    for i in range(number):
        skills = [str(s) for s in rng.choice(names, rng.integers(0, 5))]
        found.append(
            {
                "job": str(rng.choice(["baker", "smith"])),
                "skills": skills or None,
                "years": [float(np.float32(y)) for y in rng.random(len(skills))] or None,
                "codes": [int(c) for c in rng.integers(-3, 4, i % 3)],
                "photo": None if i % 4 == 0 else [float(x) for x in rng.normal(size=DIM)],
                "weight": float(rng.choice([0.0, 0.5, 2.0])),
                "rich": int(rng.integers(2)),
            }
        )
    return found


@pytest.fixture
def tables():
    """Rows by split; "late" occurs in valid alone."""
    return {"train": make_rows(0, ["a", "b", "c"]), "valid": make_rows(1, ["a", "late"])}


def write(folder, tables, types=TYPES):
    folder.mkdir(exist_ok=True)
    for split, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows, types), folder / f"{split}.parquet")
    return folder


def settings(raw, **changes):
    given = {
        "source": "tabular",
        "path": raw,
        "tasks": {"income": "rich"},
        "bags": {
            "skills": {"weights": "years", "pooling": "sum", "max_length": 3},
            "codes": {},
        },
        "vectors": {"photo": {"dim": DIM}},
        "sample_weight": "weight",
        "row_group_rows": 16,
    }
    return TabularIngest(**(given | changes))


@pytest.mark.parametrize("wide", [False, True])
def test_equals_loops(wide, tmp_path, tables, monkeypatch):
    if wide:  # many chunks
        monkeypatch.setattr(columns, "_FLOATS_PER_CHUNK", 1)
        tables["train"] = tables["train"] * 3
    make_training_set(settings(write(tmp_path / "raw", tables)), tmp_path / "set")
    manifest = read_manifest(tmp_path / "set")
    skills = {"a": 1, "b": 2, "c": 3}
    codes = {code: 1 + i for i, code in enumerate(range(-3, 4))}
    for split, rows in tables.items():
        made = pq.read_table(tmp_path / "set" / split).to_pylist()
        for row, source in zip(made, rows, strict=True):
            assert row["skills"] == [skills.get(s, 0) for s in (source["skills"] or [])[:3]]
            assert row["skills_weights"] == (source["years"] or [])[:3]
            assert row["codes"] == [codes[code] for code in source["codes"]]
            photo = source["photo"] and [float(np.float32(x)) for x in source["photo"]]
            assert row["photo"] == photo
            assert row["sample_weight"] == source["weight"]
            assert row["label_income"] == source["rich"]
        check_split(tmp_path / "set", manifest, manifest.schema_, split=split, rank=0, world_size=1)
    schema = manifest.schema_
    assert [(b.name, b.pooling, b.max_length, b.weight_column) for b in schema.bags] == [
        ("skills", "sum", 3, "skills_weights"),
        ("codes", "mean", 20, None),
    ]
    assert {t.name: t.num_embeddings for t in schema.tables} == {"job": 3, "skills": 4, "codes": 8}
    assert [f.name for f in schema.categorical] == ["job"] and not schema.dense
    assert schema.vectors[0].dim == DIM and schema.weight_column == "sample_weight"


def test_the_reader_reads_it(tmp_path, tables):
    manifest = make_training_set(settings(write(tmp_path / "raw", tables)), tmp_path / "set")
    one = {"rank": 0, "world_size": 1, "batch_size": 64}
    reader = Reader(tmp_path / "set", manifest, manifest.schema_, split="valid", **one)
    (batch,) = reader.batches()
    assert batch.weighted_features.keys() == ["skills"]
    assert sorted(batch.weights_B[: batch.num_rows].tolist()) == sorted(
        row["weight"] for row in tables["valid"]
    )
    nulls = sum(row["photo"] is None for row in tables["valid"])
    assert int(batch.vectors_BV[: batch.num_rows, 0].isnan().sum()) == nulls


def test_lists_and_vectors_as_text(tmp_path, tables):
    """Separated texts give the same rows as lists."""

    def texts(row):
        return row | {
            "skills": row["skills"] and "|".join(row["skills"]),
            "years": row["years"] and "|".join(map(str, row["years"])),
            "photo": row["photo"] and " ".join(map(str, row["photo"])),
        }

    make_training_set(settings(write(tmp_path / "raw", tables)), tmp_path / "set")
    kinds = {"skills": pa.string(), "years": pa.large_string(), "photo": pa.string_view()}
    types = pa.schema({f.name: kinds.get(f.name, f.type) for f in TYPES})
    text = {split: [texts(row) for row in rows] for split, rows in tables.items()}
    make_training_set(settings(write(tmp_path / "text", text, types)), tmp_path / "other")
    for split in tables:
        one, other = (pq.read_table(tmp_path / name / split) for name in ("set", "other"))
        assert one.equals(other)


BAD = [
    ({"skills": ["a"], "years": [0.5, 0.5]}, ["'years'", "2 weights", "row 7"]),
    ({"skills": ["a", "b"], "years": None}, ["'years'", "0 weights", "row 7"]),
    ({"skills": ["a"], "years": [math.nan]}, ["years", "row 7"]),
    ({"skills": ["a"], "years": [-0.5]}, ["years", "-0.5", "row 7"]),
    ({"skills": ["a", None], "years": [1.0, 1.0]}, ["skills", "row 7"]),
    ({"photo": [1.0, math.inf, 2.0]}, ["photo", "inf", "row 7"]),
    ({"photo": [1.0, 2.0, 1e39]}, ["photo", "row 7"]),
    ({"weight": -1.0}, ["weight", "-1", "row 7"]),
    ({"weight": None}, ["weight", "row 7"]),
    ({"weight": math.nan}, ["weight", "row 7"]),
]


@pytest.mark.parametrize(("change", "parts"), BAD)
def test_bad_values_are_named(change, parts, tmp_path, tables):
    tables["valid"][7] |= change
    with pytest.raises(DataError) as caught:
        make_training_set(settings(write(tmp_path / "raw", tables)), tmp_path / "set")
    for part in ["valid.parquet", *parts]:
        assert part in str(caught.value)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("size", [2, 4])
def test_vectors_of_another_size_are_named(size, tmp_path, tables):
    tables["train"][5]["photo"] = [1.0] * size
    types = TYPES.set(TYPES.get_field_index("photo"), pa.field("photo", pa.list_(pa.float64())))
    with pytest.raises(DataError) as caught:
        make_training_set(settings(write(tmp_path / "raw", tables, types)), tmp_path / "set")
    for part in ("train.parquet", "photo", "row 5", "ingest.vectors.photo.dim"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"bags": {"job": {}}, "exclude": ["skills", "years", "codes"]}, None),
        (
            {
                "bags": {"weight": {}},
                "sample_weight": None,
                "exclude": ["skills", "years", "codes"],
            },
            ["weight", "float"],
        ),
        (
            {"bags": {}, "exclude": ["years", "codes"]},
            ["skills", "list", "ingest.bags", "ingest.vectors"],
        ),
        ({"bags": {"skills": {"weights": "job"}, "codes": {}}, "exclude": ["years"]}, ["job"]),
        ({"vectors": {"job": {"dim": 3}}, "exclude": ["photo"]}, ["job"]),
        ({"vectors": {"photos": {"dim": 3}}}, ["photos"]),
        ({"sample_weight": "weights"}, ["weights"]),
        ({"sample_weight": "codes", "bags": {}, "exclude": ["skills", "years"]}, ["codes"]),
    ],
)
def test_unsuitable_columns_are_named(changes, parts, tmp_path, tables):
    config = settings(write(tmp_path / "raw", tables), **changes)
    if parts is None:  # texts are lists of one item
        make_training_set(config, tmp_path / "set")
        return
    with pytest.raises(DataError) as caught:
        make_training_set(config, tmp_path / "set")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sample_weight": "rich"}, "rich"),
        ({"categorical": ["codes"]}, "codes"),
        ({"vectors": {"years": {"dim": 2}}}, "years"),
        ({"exclude": ["photo"]}, "photo"),
        ({"bags": {"skills": {"pooling": "max"}}}, "pooling"),
    ],
)
def test_settings_that_contradict_each_other(changes, name, tmp_path):
    with pytest.raises(ValidationError, match=name):
        settings(tmp_path, **changes)
