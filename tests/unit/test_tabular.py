"""Tabular ingest: ids and labels equal plain loops, bad input is named, drift is reported."""

import logging
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet_dist.config.ingest import TabularIngest
from infnet_dist.config.run import load_config
from infnet_dist.data.checks.footers import check_split
from infnet_dist.data.manifest import read_manifest
from infnet_dist.data.reader import Reader
from infnet_dist.errors import ConfigError, DataError
from infnet_dist.ingest.tabular.source import make_training_set


def make_tables(seed=0, num_rows=500):
    """A table per split: text, flags, codes, numbers with nulls; "late" occurs in valid alone."""
    rng = np.random.default_rng(seed)

    def one(names, first):
        return pd.DataFrame(
            {
                "number": np.arange(first, first + num_rows),
                "job": rng.choice(names, num_rows),
                "member": rng.random(num_rows) < 0.5,
                "code": rng.integers(0, 5, num_rows),
                "age": np.where(rng.random(num_rows) < 0.1, np.nan, rng.integers(0, 90, num_rows)),
                "user": rng.integers(0, 40, num_rows),
                "rich": rng.integers(0, 2, num_rows),
                "single": rng.integers(0, 2, num_rows).astype(np.int8),
            }
        )

    return {
        "train": one(["baker", "smith", None], 0),
        "valid": one(["baker", "smith", "late"], num_rows),
    }


def write(folder, tables):
    folder.mkdir(exist_ok=True)
    for split, table in tables.items():
        table.to_parquet(folder / f"{split}.parquet", index=False)
    return folder


def ingest(raw, **changes):
    settings = {
        "source": "tabular",
        "path": raw,
        "tasks": {"income": "rich", "alone": "single"},
        "categorical": ["code"],
        "exclude": ["number"],
        "group_column": "user",
        "row_group_rows": 64,
    }
    return TabularIngest(**(settings | changes))


@pytest.fixture
def tables():
    return make_tables()


def test_rows_ids_and_labels_are_those_of_the_tables(tmp_path, tables):
    make_training_set(ingest(write(tmp_path / "raw", tables)), tmp_path / "set")
    manifest = read_manifest(tmp_path / "set")
    jobs = {name: 1 + i for i, name in enumerate(sorted(["baker", "smith"]))}
    for split, table in tables.items():
        made = pd.read_parquet(tmp_path / "set" / split)
        assert made["job"].tolist() == [jobs.get(job, 0) for job in table["job"]]
        assert made["code"].tolist() == (table["code"] + 1).tolist()
        assert made["member"].tolist() == (table["member"] + 1).tolist()
        np.testing.assert_array_equal(made["age"], table["age"].astype(np.float32))
        assert made["label_income"].tolist() == table["rich"].tolist()
        assert made["label_alone"].tolist() == table["single"].tolist()
        assert made["user"].tolist() == table["user"].tolist()
        assert manifest.split(split).base_rates["income"] == pytest.approx(table["rich"].mean())
    assert {t.name: t.num_embeddings for t in manifest.schema_.tables} == {
        "job": 3,
        "member": 3,
        "code": 6,
        "age": len(manifest.schema_.dense[0].boundaries) + 2,
    }


def test_the_reader_reads_it(tmp_path, tables):
    make_training_set(ingest(write(tmp_path / "raw", tables)), tmp_path / "set")
    manifest = read_manifest(tmp_path / "set")
    schema, one = manifest.schema_, {"rank": 0, "world_size": 1}
    check_split(tmp_path / "set", manifest, schema, split="valid", **one)
    reader = Reader(tmp_path / "set", manifest, schema, split="valid", batch_size=100, **one)
    labels = [batch.labels_BK[batch.weights_B > 0].numpy() for batch in reader.batches()]
    np.testing.assert_array_equal(np.concatenate(labels), tables["valid"][["rich", "single"]])


def test_without_group_each_row_is_one_of_its_own(tmp_path, tables):
    config = ingest(write(tmp_path / "raw", tables), group_column=None, exclude=["number", "user"])
    make_training_set(config, tmp_path / "set")
    rows = [pd.read_parquet(tmp_path / "set" / split)["row"] for split in ("train", "valid")]
    assert np.concatenate(rows).tolist() == list(range(1000))


def test_a_folder_of_files_is_a_split(tmp_path, tables):
    raw = write(tmp_path / "raw", tables)
    (raw / "train.parquet").unlink()
    (raw / "early").mkdir()
    tables["train"][:200].to_parquet(raw / "early" / "a.parquet", index=False)
    tables["train"][200:].to_parquet(raw / "early" / "b.parquet", index=False)
    config = ingest(raw, splits={"train": "early", "valid": "valid.parquet"})
    make_training_set(config, tmp_path / "set")
    made = pd.read_parquet(tmp_path / "set" / "train")
    assert made["label_income"].tolist() == tables["train"]["rich"].tolist()


def test_a_column_that_valid_lost_is_warned_about(tmp_path, tables, caplog):
    tables["valid"]["age"] = np.nan
    with caplog.at_level(logging.WARNING):
        make_training_set(ingest(write(tmp_path / "raw", tables)), tmp_path / "set")
    assert "valid: " in caplog.text and "age (100%)" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exclude": ["jobs"]}, "'jobs'.*'job'"),
        ({"tasks": {"income": "ric"}}, "'ric'.*'rich'"),
        ({"group_column": "job"}, r"ingest\.group_column.*'job'.*text.*integers"),
        ({"tasks": {"income": "job"}}, r"train\.parquet.*job.*0 or 1"),
        ({"splits": {"train": "train.parquet", "valid": "none.parquet"}}, r"none\.parquet"),
        ({"tasks": {"age": "age"}}, r"train\.parquet.*age.*0 or 1"),
        (
            {"categorical": (), "exclude": ["number", "job", "member", "code", "age", "single"]}
            | {"tasks": {"income": "rich"}},
            r"ingest\.exclude",
        ),
    ],
)
def test_wrong_settings_are_named_and_nothing_is_left(tmp_path, tables, changes, message):
    config = ingest(write(tmp_path / "raw", tables), **changes)
    with pytest.raises(DataError, match=message):
        make_training_set(config, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_column_that_valid_lacks_is_named(tmp_path, tables):
    tables["valid"] = tables["valid"].drop(columns="age")
    with pytest.raises(DataError, match=r"valid\.parquet: .*'age'.*ingest\.exclude"):
        make_training_set(ingest(write(tmp_path / "raw", tables)), tmp_path / "set")


def change(tables, **columns):
    """The same new columns in every split."""
    return {split: table.assign(**columns) for split, table in tables.items()}


def made(tmp_path, tables, **changes):
    make_training_set(ingest(write(tmp_path / "raw", tables), **changes), tmp_path / "set")
    return {split: pd.read_parquet(tmp_path / "set" / split) for split in tables}


def test_flags_as_labels_and_categories_as_text(tmp_path, tables):
    for split, table in tables.items():
        tables[split] = table.assign(rich=table["rich"] == 1, job=table["job"].astype("category"))
    found = made(tmp_path, tables)
    for split, table in tables.items():
        assert found[split]["label_income"].tolist() == table["rich"].astype(int).tolist()
    assert set(found["train"]["job"]) == {0, 1, 2}


def test_numbers_that_no_float_holds_are_missing(tmp_path, tables):
    tables["train"].loc[:4, "age"] = [np.inf, -np.inf, 1e300, np.nan, 5.0]
    found = made(tmp_path, tables)
    assert found["train"]["age"][:5].isna().tolist() == [True, True, True, True, False]


def test_large_integers_and_integers_beside_numbers(tmp_path, tables):
    tables = change(tables, big=np.arange(500) + 2**60)
    tables["train"]["age"] = np.arange(500)  # integers in train, numbers in valid
    found = made(tmp_path, tables, categorical=["code", "big"])
    assert found["train"]["big"].tolist() == list(range(1, 501))
    np.testing.assert_array_equal(found["valid"]["age"], tables["valid"]["age"].astype(np.float32))
    other = write(tmp_path / "other", tables)
    make_training_set(ingest(other), tmp_path / "as_number")


def test_missing_codes_are_unknown(tmp_path, tables):
    tables["train"]["code"] = tables["train"]["code"].where(tables["train"]["code"] != 3)
    found = made(tmp_path, tables)
    assert (found["train"]["code"] == 0).tolist() == tables["train"]["code"].isna().tolist()


@pytest.mark.parametrize("name", ["type", "a.b", "time_ms", "label_income"])
def test_names_that_no_table_can_have_are_reported(tmp_path, tables, name):
    raw = write(tmp_path / "raw", change(tables, **{name: "x"}))
    with pytest.raises(DataError, match=r"ingest\.exclude"):
        make_training_set(ingest(raw), tmp_path / "set")


def test_other_kinds_in_another_split_are_reported(tmp_path, tables):
    tables["valid"]["age"] = "old"
    with pytest.raises(
        DataError, match=r"'age'.*numbers in train .*text in valid .*/valid\.parquet"
    ):
        make_training_set(ingest(write(tmp_path / "raw", tables)), tmp_path / "set")


def test_an_empty_split_is_reported(tmp_path, tables):
    tables["valid"] = tables["valid"][:0]
    with pytest.raises(DataError, match=r"valid\.parquet.*ingest\.path"):
        make_training_set(ingest(write(tmp_path / "raw", tables)), tmp_path / "set")


def test_a_bad_label_is_found_in_its_row(tmp_path, tables, monkeypatch):
    monkeypatch.setattr("infnet_dist.ingest.tabular.columns.ROWS_PER_CHUNK", 100)
    tables["valid"].loc[321, "rich"] = 7
    with pytest.raises(DataError, match=r"valid\.parquet.*rich.*7 in row 321"):
        make_training_set(ingest(write(tmp_path / "raw", tables)), tmp_path / "set")


def test_a_list_column_is_named(tmp_path, tables):
    for table in tables.values():
        table["tags"] = [[1, 2]] * len(table)
    with pytest.raises(DataError, match=r"'tags'.*list"):
        make_training_set(ingest(write(tmp_path / "raw", tables)), tmp_path / "set")


def test_a_broken_file_is_named(tmp_path, tables):
    raw = write(tmp_path / "raw", tables)
    (raw / "valid.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"valid\.parquet"):
        make_training_set(ingest(raw), tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ingest.exclude=[rich]", "'rich'"),
        ("ingest.splits={train: a.parquet}", r"ingest.*splits.*valid"),
        ("ingest.splits={train: a, valid: b, tets: c}", "test"),
    ],
)
def test_wrong_sections_are_named(tmp_path, change, message):
    path = tmp_path / "run.yaml"
    path.write_text(
        "ingest: {source: tabular, path: raw, tasks: {income: rich}}\ndata: {path: set}\n"
    )
    with pytest.raises(ConfigError, match=message):
        load_config(path, [change])


def parts(tmp_path, tables, **files):
    """Train in a folder of several files, valid in one."""
    raw = write(tmp_path / "raw", tables)
    (raw / "train").mkdir()
    for name, table in files.items():
        table.to_parquet(raw / "train" / f"{name}.parquet", index=False)
    return raw, {"splits": {"train": "train", "valid": "valid.parquet"}}


def test_a_folder_is_read_once_and_its_other_files_are_named(tmp_path, tables, caplog):
    train = tables["train"]
    raw, splits = parts(tmp_path, tables, a=train[:200], b=train[200:])
    os.symlink(".", raw / "train" / "loop")
    os.link(raw / "train" / "a.parquet", raw / "train" / "c.parquet")
    (raw / "train" / "d.csv").write_text("x")
    (raw / "train" / "_SUCCESS").write_text("")
    with caplog.at_level(logging.INFO):
        manifest = make_training_set(ingest(raw, **splits), tmp_path / "set")
    made = pd.read_parquet(tmp_path / "set" / "train")
    assert made["label_income"].tolist() == train["rich"].tolist()
    left_out = {path.rpartition("/")[2] for path in manifest.files_left_out}
    assert left_out == {"loop", "c.parquet", "d.csv", "_SUCCESS", "train.parquet"}
    assert all(name in caplog.text for name in left_out)


def test_a_file_beside_the_splits_that_none_names_is_said(tmp_path, tables, caplog):
    raw = write(tmp_path / "raw", tables)
    tables["valid"][:-1].to_parquet(raw / "test.parquet", index=False)
    (raw / "README.md").write_text("x")
    manifest = make_training_set(ingest(raw), tmp_path / "set")
    assert list(manifest.files_left_out) == [str(raw / "test.parquet")]
    assert str(raw / "test.parquet") in caplog.text


def test_a_later_file_that_lacks_a_column_is_named(tmp_path, tables):
    """Arrow would fill it with nulls."""
    train = tables["train"]
    raw, splits = parts(tmp_path, tables, a=train[:200], b=train[200:].drop(columns="age"))
    with pytest.raises(DataError, match=r"b\.parquet.*'age'"):
        make_training_set(ingest(raw, **splits), tmp_path / "set")


def test_columns_that_train_lacks_are_warned_about(tmp_path, tables, caplog):
    tables["valid"] = tables["valid"].assign(new=1)
    with caplog.at_level(logging.WARNING):
        make_training_set(ingest(write(tmp_path / "raw", tables)), tmp_path / "set")
    assert any("valid" in r.message and "new" in r.message for r in caplog.records)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_column_twice_is_refused(split, tmp_path, tables):
    raw = write(tmp_path / "raw", tables)
    path = raw / f"{split}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("age", table["age"]), path)
    with pytest.raises(DataError, match=rf"{split}\.parquet.*'age'"):
        make_training_set(ingest(raw), tmp_path / "set")


def test_a_file_of_two_splits_is_warned_about(tmp_path, tables, caplog):
    raw = write(tmp_path / "raw", tables)
    with caplog.at_level(logging.WARNING):
        splits = {"train": "train.parquet", "valid": "train.parquet"}
        make_training_set(ingest(raw, splits=splits), tmp_path / "set")
    assert any("train and valid" in record.message for record in caplog.records)


def write_parts(folder, *tables):
    """A split of several files, each with its own types."""
    folder.mkdir(parents=True)
    for i, table in enumerate(tables):
        pq.write_table(table, folder / f"{i}.parquet")


def arrow(table, **columns):
    found = pa.Table.from_pandas(table, preserve_index=False)
    for name, values in columns.items():
        found = found.set_column(found.column_names.index(name), name, values)
    return found


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("nothing", [pa.null(), pa.string()])
@pytest.mark.parametrize("column", ["job", "age", "code"])
def test_a_file_of_nulls_decides_nothing(tmp_path, tables, column, nothing, first):
    """Wherever it is among the files."""
    if nothing != pa.null() and column != "job":
        pytest.skip("a column of text")
    train = tables["train"]
    empty = arrow(train[:200], **{column: pa.nulls(200, nothing)})
    parts = [empty, arrow(train[200:])] if first else [arrow(train[200:]), empty]
    write_parts(tmp_path / "raw" / "train", *parts)
    pq.write_table(arrow(tables["valid"]), tmp_path / "raw" / "valid.parquet")
    config = ingest(tmp_path / "raw", splits={"train": "train", "valid": "valid.parquet"})
    make_training_set(config, tmp_path / "set")
    made = pd.read_parquet(tmp_path / "set" / "train")
    found = made[column][:200] if first else made[column][-200:]
    assert (found.isna() if column == "age" else found == 0).all()


def test_a_column_of_nulls_in_all_files_is_named(tmp_path, tables):
    for table in tables.values():
        table["job"] = None
    with pytest.raises(DataError, match=r"column 'job' .*ingest\.exclude"):
        make_training_set(ingest(write(tmp_path / "raw", tables)), tmp_path / "set")


@pytest.mark.parametrize("order", [1, -1])
def test_text_beside_numbers_is_refused_by_file(tmp_path, tables, order):
    train = tables["train"]
    texts = pa.array([str(code) for code in train["code"][:200]])
    parts = [arrow(train[:200], code=texts), arrow(train[200:])][::order]
    write_parts(tmp_path / "raw" / "train", *parts)
    pq.write_table(arrow(tables["valid"]), tmp_path / "raw" / "valid.parquet")
    config = ingest(tmp_path / "raw", splits={"train": "train", "valid": "valid.parquet"})
    with pytest.raises(DataError) as caught:
        make_training_set(config, tmp_path / "set")
    assert all(part in str(caught.value) for part in ("'code'", "0.parquet", "text", "integers"))


@pytest.mark.parametrize(("kind", "limit"), [(pa.float64(), 2.0**53), (pa.float32(), 2.0**24)])
def test_codes_that_are_not_exact_are_refused(tmp_path, tables, kind, limit):
    raw = write(tmp_path / "raw", tables)
    codes = tables["valid"]["code"].astype(float)
    codes[321] = limit
    column = pa.array(codes).cast(kind)
    pq.write_table(arrow(tables["valid"], code=column), raw / "valid.parquet")
    with pytest.raises(DataError) as caught:
        make_training_set(ingest(raw), tmp_path / "set")
    assert all(part in str(caught.value) for part in ("valid.parquet", "'code'", "row 321"))


def test_codes_of_other_types_are_the_same_ids(tmp_path, tables):
    raw = write(tmp_path / "raw", tables)
    make_training_set(ingest(raw), tmp_path / "set")
    codes = pa.array(tables["valid"]["code"])
    for kind in (pa.float32(), pa.decimal128(20, 0), pa.uint8()):
        changed = arrow(tables["valid"], code=codes.cast(kind))
        pq.write_table(changed, raw / "valid.parquet")
        make_training_set(ingest(raw), tmp_path / str(kind))
        one, other = (pd.read_parquet(tmp_path / n / "valid") for n in ("set", str(kind)))
        assert one["code"].tolist() == other["code"].tolist()


def test_labels_of_words(tmp_path, tables):
    tables = {
        split: table.assign(rich=table["rich"].map({0: "No", 1: "YES"}))
        for split, table in tables.items()
    }
    found = made(tmp_path, tables)
    for split, table in tables.items():
        assert (
            found[split]["label_income"].tolist() == (table["rich"] == "YES").astype(int).tolist()
        )


def test_numbers_that_are_taken_as_missing_are_counted(tmp_path, tables, caplog):
    tables["train"].loc[:2, "age"] = [np.inf, 1e300, 5.0]
    with caplog.at_level(logging.WARNING):
        made(tmp_path, tables)
    assert "train.parquet: column 'age': 2 values" in caplog.text


def test_a_number_that_is_null_in_all_of_train_is_warned_about(tmp_path, tables, caplog):
    tables["train"]["age"] = np.nan
    with caplog.at_level(logging.WARNING):
        made(tmp_path, tables)
    (message,) = [record.message for record in caplog.records if "age" in record.message]
    assert message.startswith("train: ")
