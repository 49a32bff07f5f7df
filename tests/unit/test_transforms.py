"""Raw rows encoded by the stored transforms, in a process with numpy alone, against the reader."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet_dist.config.ingest import SyntheticIngest, TabularIngest
from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.decode import decode, weights_key
from infnet_dist.data.manifest import read_manifest, write_manifest
from infnet_dist.data.transforms import model_inputs, open_transforms
from infnet_dist.errors import DataError
from infnet_dist.features.storage import save_transforms
from infnet_dist.ingest.logs.pipeline import ingest_logs
from infnet_dist.ingest.logs.stages.runner import one_by_one
from infnet_dist.ingest.synthetic import make_training_set as make_synthetic
from infnet_dist.ingest.tabular.source import make_training_set as make_tabular
from infnet_dist.schema import CrossFeature, Table, sequence_key
from tests.unit.raw_logs import DAY_MS, START_MS

SERVER = """
import json, sys
import numpy as np

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} isn't installed here")

BLOCKED = {"pyarrow", "pandas", "pydantic", "torch", "torchrec", "fbgemm_gpu", "ray", "yaml",
           "scipy", "fsspec"}
sys.meta_path.insert(0, Absent())
from infnet_dist.features.storage import load_transforms

folder, request, out = sys.argv[1:]
columns, prepared = json.load(open(request))
found = load_transforms(folder).encode(columns, prepared)
arrays = {}
for key, values in found.items():
    parts = values._asdict() if isinstance(values, tuple) else {"": values}
    arrays |= {f"{key}|{part}": array for part, array in parts.items()}
np.savez(out, **arrays)
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
"""
TYPES = pa.schema(
    {
        "user": pa.string(),
        "item": pa.uint64(),
        "shop": pa.int64(),
        "tags": pa.list_(pa.string()),
        "topics": pa.list_(pa.int64()),
        "topic_weights": pa.list_(pa.float64()),
        "cover": pa.list_(pa.float64()),
        "price": pa.float64(),
        "age": pa.float32(),
        "click": pa.int8(),
        "like": pa.bool_(),
        "time": pa.int64(),
    }
)
DIM = 3


def log_rows(seed, number=240):
    """Over four days, at times that are all different."""
    rng = np.random.default_rng(seed)
    times_s = START_MS // 1000 + rng.choice(4 * DAY_MS // 1000, number, replace=False)
    found = []
    for time_s in times_s:
        topics = [int(t) for t in rng.integers(-2, 9, rng.integers(0, 6))]
        item = int(rng.integers(14))
        found.append(
            {
                "user": f"user {rng.integers(5)} ä",
                "item": 2**64 - 1 - item if item % 3 else item * 1000,
                "shop": None if item == 4 else item % 4,
                "tags": None if rng.random() < 0.1 else [f"t{t}" for t in rng.integers(0, 20, 3)],
                "topics": topics or None,
                "topic_weights": [float(w) for w in rng.random(len(topics))] or None,
                "cover": None if rng.random() < 0.3 else [float(x) for x in rng.normal(size=DIM)],
                "price": None if rng.random() < 0.2 else float(rng.gamma(2, 20)),
                "age": None if rng.random() < 0.2 else float(np.float32(rng.normal(40, 9))),
                "click": int(rng.random() < 0.5),
                "like": bool(rng.random() < 0.3),
                "time": int(time_s),
            }
        )
    return found


def log_settings(path, **changes):
    given = {
        "source": "logs",
        "path": str(path),
        "user": "user",
        "time": {"column": "time", "unit": "s"},
        "tables": {
            "tag": {"encoding": "hash", "num_embeddings": 40, "num_hashes": 2},
            "shop": {"encoding": "raw", "num_embeddings": 9},
            "item": {"min_count": 3},
        },
        "ids": {"user": "user", "item": "item", "shop": "shop"},
        "lists": {
            "tags": {"table": "tag", "max_length": 2},
            "topics": {
                "table": "topic",
                "max_length": 3,
                "pooling": "sum",
                "weights": "topic_weights",
            },
        },
        "vectors": {"cover": {"dim": DIM}},
        "dense": {"price": {"num_buckets": 6}, "age": {"buckets": None}},
        "behaviours": {
            "shown": {"ids": ["item", "shop"], "actions": ["click", "like"], "length": 7},
            "liked": {"where": "like", "ids": ["user", "item"], "length": 4},
        },
        "counters": {"item_clicks": {"by": ["item"], "where": "click"}},
        "tasks": {"click": "click"},
        "valid_from": "2026-01-03",
        "row_group_rows": 50,
    }
    return LogsIngest.model_validate(given | changes)


def write_log(folder, rows, name="log.parquet"):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, TYPES), folder / name)
    return folder


def ingest(config, folder):
    return ingest_logs(config, folder, one_by_one, lambda *_: None)


def with_cross(schema, names):
    """The schema with a cross, as a run defines it."""
    return schema.model_copy(
        update={
            "crosses": (CrossFeature(name="pair", features=names, table="pair"),),
            "tables": (*schema.tables, Table(name="pair", num_embeddings=31)),
        }
    )


def read_set(folder, manifest):
    """All rows of the set, valid after train, as stored."""
    parts = [part for split in manifest.splits.values() for part in split.parts]
    return pa.concat_tables([pq.read_table(folder / part.file) for part in parts])


def as_read(table, schema):
    """What the reader makes of rows, by key: arrays, or (values, lengths)."""
    columns = decode(table.combine_chunks(), schema, "the set")
    found = {f.key: ids for f, ids in zip(schema.fields, columns.scalars["ids"], strict=True)}
    found |= {
        f.name: values
        for f, values in zip(schema.standardised, columns.scalars["dense"], strict=True)
    }
    for key, lists in columns.lists.items():
        ends = zip(lists.starts, lists.lengths, strict=True)
        rows = [lists.values[start : start + length] for start, length in ends]
        found[key] = (np.concatenate([lists.values[:0], *rows]), lists.lengths)
    keys = [f.key for f in schema.table_features] + [f.name for f in schema.standardised]
    keys += [weights_key(bag) for bag in schema.weighted_bags]
    keys += [s.name for s in schema.sequences if s.time_gap_column] + [
        v.name for v in schema.vectors
    ]
    assert sorted(found) == sorted(keys)
    return found


def as_served(folder, columns, prepared, tmp_path):
    """What a process with numpy alone encodes."""
    request, out = tmp_path / "request.json", tmp_path / "arrays.npz"
    request.write_text(json.dumps([columns, prepared]))
    command = [sys.executable, "-c", SERVER, str(folder), str(request), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(out) as arrays:
        for name in arrays.files:
            key, _, part = name.rpartition("|")
            found.setdefault(key, {})[part] = arrays[name]
    return {
        key: parts[""] if "" in parts else (parts["values"], parts["lengths"])
        for key, parts in found.items()
    }


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, wanted in expected.items():
        if isinstance(wanted, tuple):
            assert np.array_equal(found[key][1], wanted[1]), key
            assert found[key][0].dtype == wanted[0].dtype, key
            assert np.array_equal(found[key][0], wanted[0]), key
        else:
            assert found[key].dtype == wanted.dtype, key
            assert np.array_equal(found[key], wanted), key


def copied(folder, manifest, schema, tmp_path):
    """The transforms for the inputs of a schema, in a folder of their own."""
    stored = (folder / manifest.transforms.file).parent
    copy = Path(shutil.copytree(stored, tmp_path / "bundle"))
    definition = open_transforms(folder, manifest).definition
    save_transforms(copy, replace(definition, inputs=model_inputs(schema)))
    return copy


def columns_of(rows, names):
    return {name: [row[name] for row in rows] for name in names}


@pytest.mark.parametrize("refresh", ["live", "daily"])
@pytest.mark.parametrize("histories", ["events", "prepared"])
def test_logs(refresh, histories, tmp_path):
    rows = log_rows(1)
    config = log_settings(
        write_log(tmp_path / "logs", rows), refresh=refresh, utc_offset_h=8, extendable=False
    )
    manifest = ingest(config, tmp_path / "set")
    schema = with_cross(manifest.schema_, ("shop", "price", "user"))
    table = read_set(tmp_path / "set", manifest)
    by_time = {row["time"] * 1000: row for row in rows}
    raw = [by_time[time_ms] for time_ms in table["time_ms"].to_pylist()]
    assert len(raw) == len(rows)

    names = ["user", "item", "shop", "tags", "topics", "topic_weights", "cover", "price", "age"]
    columns = columns_of(raw, [*names, "time"])
    columns["item_clicks"] = table["item_clicks"].to_pylist()
    prepared = {}
    if histories == "prepared":
        lists = [a.column for s in schema.sequences for a in s.attributes]
        lists += [s.time_gap_column for s in schema.sequences if s.time_gap_column]
        prepared = {name: table[name].to_pylist() for name in lists if name not in columns}
        prepared = {name: values for name, values in prepared.items() if "tags" not in name}
        assert set(prepared) >= {"shown_item", "shown_actions", "shown_gap_s", "liked_user"}
    else:
        newest_first = sorted(rows, key=lambda row: -row["time"])
        of_user = [[e for e in newest_first if e["user"] == row["user"]] for row in raw]
        for name, used in {
            "shown": ["item", "shop", "click", "like", "time"],
            "liked": ["item", "user", "like", "time"],
        }.items():
            # All events of the user, later ones and those of other kinds included.
            columns[name] = {n: [[e[n] for e in some] for some in of_user] for n in used}
    expected = as_read(table, schema)
    assert all(len(expected[f"shown.{name}"][0]) > 300 for name in ("item", "shop", "actions"))
    assert (expected["pair"] > 0).sum() > 20 and (expected["pair"] == 0).sum() > 20
    folder = copied(tmp_path / "set", manifest, schema, tmp_path)
    shutil.rmtree(tmp_path / "set")
    check_equal(as_served(folder, columns, prepared, tmp_path), expected)


def test_tabular(tmp_path):
    rng = np.random.default_rng(2)
    rows = [
        {
            "job": [None, "baker", "smith", ""][rng.integers(4)],
            "smoker": bool(rng.integers(2)),
            "code": int(rng.integers(-(2**60), 2**60)) if i % 3 else i % 7,
            "skills": None if i % 5 == 0 else [f"s{s}" for s in rng.integers(0, 9, i % 6)],
            "income": {0: None, 1: 1e39, 2: float("inf")}.get(i % 9, float(rng.normal(9, 4))),
            "photo": None if i % 4 == 0 else [float(x) for x in rng.normal(size=DIM)],
            "rich": int(rng.integers(2)),
        }
        for i in range(90)
    ]
    rows = [r | {"years": [float(y) for y in rng.random(len(r["skills"] or ()))]} for r in rows]
    (tmp_path / "raw").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:60]), tmp_path / "raw" / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[60:]), tmp_path / "raw" / "valid.parquet")
    config = TabularIngest(
        source="tabular",
        path=tmp_path / "raw",
        tasks={"rich": "rich"},
        categorical=("code",),
        bags={"skills": {"weights": "years", "max_length": 3}},
        vectors={"photo": {"dim": DIM}},
        num_buckets=7,
    )
    manifest = make_tabular(config, tmp_path / "set")
    schema = with_cross(manifest.schema_, ("job", "income"))
    expected = as_read(read_set(tmp_path / "set", manifest), schema)
    assert (expected["code"][60:] == 0).any() and (expected["income"] == 0).any()
    columns = columns_of(rows, ["job", "smoker", "code", "skills", "years", "income", "photo"])
    folder = copied(tmp_path / "set", manifest, schema, tmp_path)
    check_equal(as_served(folder, columns, {}, tmp_path), expected)


def test_synthetic_rows_are_ids_already(tmp_path):
    config = SyntheticIngest(
        source="synthetic",
        num_rows=300,
        num_users=20,
        num_items=40,
        num_authors=9,
        num_tags=9,
        num_interests=8,
        content_dim=3,
        num_cities=4,
        num_devices=3,
        extra_fields=(5,),
    )
    manifest = make_synthetic(config, tmp_path / "set")
    schema = with_cross(manifest.schema_, ("city", "device"))
    table = read_set(tmp_path / "set", manifest)
    definition = open_transforms(tmp_path / "set", manifest).definition
    columns = {name: table[name].to_pylist() for name in definition.raw}
    folder = copied(tmp_path / "set", manifest, schema, tmp_path)
    check_equal(as_served(folder, columns, {}, tmp_path), as_read(table, schema))
    columns["item_id"][3] = 41
    with pytest.raises(DataError, match=r"'item_id', row 3.*41.*0 .*to 40"):
        open_transforms(tmp_path / "set", manifest).encode(columns)


def test_added_logs_add_ids(tmp_path):
    """A new generation knows more values; ids of the earlier ones stay, as do their files."""
    rows = sorted(log_rows(3), key=lambda row: row["time"])
    rows[150:] = [row | {"user": f"{row['user']}!"} for row in rows[150:]]
    logs, folder = write_log(tmp_path / "logs", rows[:150]), tmp_path / "set"
    config = log_settings(logs, valid_from=None)
    first = open_transforms(folder, ingest(config, folder))
    users = sorted({row["user"] for row in rows})

    def ids(transforms):
        return transforms.select(["user"]).encode({"user": users})["user"].tolist()

    before = ids(first)
    assert [user for user, i in zip(users, before, strict=True) if i] == users[::2]
    write_log(logs, rows[150:200], "2.parquet")
    second = ingest(config, folder)
    assert second.transforms.file == "transforms/g0002/transforms.json"
    after = ids(open_transforms(folder, second))
    assert [b for a, b in zip(before, after, strict=True) if a] == [i for i in before if i]
    assert len(set(after)) == 10 and 0 not in after
    assert ids(first) == before
    model = first.definition.inputs  # of a model that was trained on the first generation
    known = replace(open_transforms(folder, second).definition, inputs=model)
    bundle = Path(shutil.copytree(folder / "transforms" / "g0002", tmp_path / "bundle"))
    save_transforms(bundle, known)
    assert as_served(bundle, *requested(rows[:1], users), tmp_path)["user"].tolist() == before

    write_log(logs, rows[200:], "3.parquet")
    ingest(config, folder)
    assert sorted(path.name for path in (folder / "transforms").iterdir()) == ["g0002", "g0003"]


def requested(rows, users):
    """A request for one row of each user, without histories."""
    names = ["item", "shop", "tags", "topics", "topic_weights", "cover", "price", "age", "time"]
    columns = {name: values * len(users) for name, values in columns_of(rows, names).items()}
    columns |= {"user": users, "item_clicks": [0] * len(users)}
    nothing = [[] for _ in users]
    shown = dict.fromkeys(("item", "shop", "click", "like", "time"), nothing)
    return columns | {"shown": shown, "liked": dict.fromkeys(("user", "item", "time"), nothing)}, {}


def test_an_interrupted_addition_leaves_no_transforms(tmp_path, monkeypatch):
    rows = sorted(log_rows(4), key=lambda row: row["time"])
    logs, folder = write_log(tmp_path / "logs", rows[:150]), tmp_path / "set"
    config = log_settings(logs, valid_from=None)
    manifest = ingest(config, folder)
    write_log(logs, rows[150:], "2.parquet")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("infnet_dist.ingest.logs.publish._with_statistics", killed)
    with pytest.raises(KeyboardInterrupt):
        ingest(config, folder)
    assert read_manifest(folder) == manifest  # the files of the second are there already
    open_transforms(folder, manifest)
    monkeypatch.undo()
    changed = config.model_copy(update={"seed": 5})  # another plan: starts over
    assert open_transforms(folder, ingest(changed, folder)).definition.generation == 2


def test_damage_is_named(tmp_path):
    config = log_settings(write_log(tmp_path / "logs", log_rows(5)))
    manifest = ingest(config, tmp_path / "set")
    (keys,) = (tmp_path / "set").glob("transforms/*/table-000.keys.npy")
    content = bytearray(keys.read_bytes())
    content[-1] ^= 1
    keys.write_bytes(content)
    with pytest.raises(DataError, match=r"table-000\.keys\.npy"):
        open_transforms(tmp_path / "set", manifest)
    text = keys.with_name("transforms.json")
    text.write_text(text.read_text().replace('"unit": "s"', '"unit": "ms"'))
    with pytest.raises(DataError, match=r"transforms\.json"):
        open_transforms(tmp_path / "set", manifest)
    text.unlink()
    with pytest.raises(DataError, match=r"transforms\.json"):
        open_transforms(tmp_path / "set", manifest)


def test_sets_of_earlier_versions(tmp_path):
    """They have no transforms: they are read as before, and an addition writes them."""
    rows = sorted(log_rows(6), key=lambda row: row["time"])
    logs, folder = write_log(tmp_path / "logs", rows[:150]), tmp_path / "set"
    config = log_settings(logs, valid_from=None)
    manifest = ingest(config, folder)
    shutil.rmtree(folder / "transforms")
    old = manifest.model_copy(update={"transforms": None})
    write_manifest(folder, old)
    assert read_manifest(folder).content_hash == manifest.content_hash
    with pytest.raises(DataError, match="ingest again"):
        open_transforms(folder, read_manifest(folder))
    write_log(logs, rows[150:], "2.parquet")
    assert open_transforms(folder, ingest(config, folder)).definition.generation == 2


def test_inputs_are_the_keys_of_the_schema(tmp_path):
    config = log_settings(write_log(tmp_path / "logs", log_rows(7)))
    schema = ingest(config, tmp_path / "set").schema_
    keys = [one.key for one in model_inputs(schema)]
    assert len(set(keys)) == len(keys)
    assert {sequence_key(s, a) for s in schema.sequences for a in s.attributes} < set(keys)
