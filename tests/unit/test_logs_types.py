"""Types of logs' columns: decided by all files together, exact or refused by file and column."""

import itertools
import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import read_manifest
from infnet_dist.errors import ConfigError, DataError
from infnet_dist.ingest.logs.pipeline import ingest_logs
from infnet_dist.ingest.logs.stages.runner import one_by_one

START_MS = 1_767_225_600_000  # 2026-01-01


def ingest(config, folder):
    return ingest_logs(config, folder, one_by_one, lambda *_: None)


def settings(path, **changes):
    given = {
        "source": "logs",
        "path": str(path),
        "user": "user",
        "time": {"column": "time"},
        "ids": {"user": "user", "item": "item"},
        "tasks": {"click": "click"},
        "valid_from": "2026-01-02",
        "max_bad_share": 0.2,
    }
    return LogsIngest.model_validate(given | changes)


def rows(number=40, first=0, **columns):
    """Over two days, so that train and valid have rows; columns replace the default ones."""
    place = np.arange(first, first + number)
    found = {
        "user": pa.array(place % 5),
        "item": pa.array(place % 8),
        "time": pa.array(START_MS + (place % 40) * 4_000_000),
        "click": pa.array(place % 2),
    }
    return pa.table(found | {name: pa.array(values) for name, values in columns.items()})


def write(folder, *tables, ending="parquet", order=None):
    """One file per table; `order`: of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in zip(order or range(len(tables)), tables, strict=True):
        path = folder / f"{name}.{ending}"
        if ending == "parquet":
            pq.write_table(table, path)
        else:
            delimiter = "\t" if ending == "tsv" else ","
            pa.csv.write_csv(table, path, pa.csv.WriteOptions(delimiter=delimiter))
    return folder


def vocabulary(folder, table="item"):
    found = pq.read_table(folder / "vocabulary" / table / "g0001.parquet")
    return dict(zip(found["value"].to_pylist(), found["id"].to_pylist(), strict=True))


def read_all(folder):
    parts = [p for split in read_manifest(folder).splits.values() for p in split.parts]
    found = pa.concat_tables([pq.read_table(folder / p.file) for p in parts])
    return sorted(found.to_pylist(), key=str)


# ---- ids: integers or texts


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("number", ["float", "int", "decimal"])
def test_texts_in_one_file_and_numbers_in_another_are_one_id(order, number, tmp_path):
    ids = 100_000_000_000 + np.arange(40) % 8
    kinds = {"float": pa.float64(), "int": pa.int64(), "decimal": pa.decimal128(20, 0)}
    texts, numbers = rows(item=[str(i) for i in ids]), rows(item=ids)
    place = numbers.column_names.index("item")
    numbers = numbers.set_column(place, "item", numbers["item"].cast(kinds[number]))
    ingest(settings(write(tmp_path / "logs", texts, numbers, order=order)), tmp_path / "set")
    assert vocabulary(tmp_path / "set").keys() == {str(i) for i in set(ids.tolist())}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[::2])
@pytest.mark.parametrize("nothing", [pa.null(), pa.float64(), pa.int64(), pa.string()])
def test_a_file_of_nulls_decides_nothing(order, nothing, tmp_path):
    texts = [f"item {i % 8}" for i in range(40)]
    empty = rows().set_column(1, "item", pa.nulls(40, nothing))
    logs = write(tmp_path / "logs", empty, rows(item=texts), rows(item=texts), order=order)
    manifest = ingest(settings(logs), tmp_path / "set")
    assert vocabulary(tmp_path / "set").keys() == set(texts)
    assert not manifest.ingested.quarantined
    assert sum(row["item"] == 0 for row in read_all(tmp_path / "set")) == 40


def test_lists_of_nulls_decide_nothing(tmp_path):
    texts = [["a", "b"], []] * 20
    lists = {"tags": {"table": "tags"}}
    tables = [
        rows(tags=pa.nulls(40)),
        rows(tags=texts),
        rows(tags=pa.nulls(40, pa.list_(pa.null()))),
    ]
    logs = write(tmp_path / "logs", *tables)
    manifest = ingest(settings(logs, lists=lists), tmp_path / "set")
    assert vocabulary(tmp_path / "set", "tags").keys() == {"a", "b"}
    assert not manifest.ingested.quarantined
    required = settings(
        logs, lists=lists, checks={"tags": {"nulls": "quarantine"}}, max_bad_share=1
    )
    assert ingest(required, tmp_path / "other").ingested.quarantined == {"tags: null": 80}


@pytest.mark.parametrize(
    ("kind", "limit"), [(pa.float64(), 2**53), (pa.float32(), 2**24), (pa.float16(), 2**11)]
)
@pytest.mark.parametrize("column", ["item", "user"])
def test_float_ids_that_are_not_exact_are_refused(kind, limit, column, tmp_path, monkeypatch):
    monkeypatch.setattr("infnet_dist.ingest.logs.reading.fragments._ROWS_PER_CHUNK", 10)
    values = np.arange(40.0)
    exact = rows(**{column: pa.array(values, pa.float64()).cast(kind)})
    ingest(settings(write(tmp_path / "good", exact)), tmp_path / "set")
    values[33] = limit
    logs = write(tmp_path / "logs", rows(), rows(**{column: pa.array(values).cast(kind)}))
    with pytest.raises(DataError) as caught:
        ingest(settings(logs), tmp_path / "other")
    for part in ("1.parquet", repr(column), repr(float(limit)), "row 33"):
        assert part in str(caught.value)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("other", ["3.0", "1e5", "+4", " 4"])
def test_texts_that_may_be_one_integer_in_two_ways_are_refused(ending, order, other, tmp_path):
    codes = [f"c{i % 8}" for i in range(38)]
    one, two = rows(item=[*codes, "3", "4"]), rows(item=[*codes, other, other])
    logs = write(tmp_path / "logs", one, two, ending=ending, order=order)
    csv = {"format": ending}
    with pytest.raises(DataError) as caught:
        ingest(settings(logs, **csv), tmp_path / "set")
    for part in (f"{order[1]}.{ending}", repr(other), "'item'", "ingest.checks.item.type"):
        assert part in str(caught.value)
    apart = settings(logs, **csv, checks={"item": {"type": "text"}})
    ingest(apart, tmp_path / "apart")
    assert {"3", other} <= vocabulary(tmp_path / "apart").keys()


# ---- CSV: the values say what ids are


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_text_ids_of_csv_need_no_setting(order, tmp_path):
    users = [f"u{i % 5}" for i in range(40)]
    csv = {"format": "csv"}
    tables = (rows(user=users, item=pa.nulls(40, pa.string())), rows(user=users))
    ingest(
        settings(write(tmp_path / "logs", *tables, ending="csv", order=order), **csv),
        tmp_path / "set",
    )
    assert vocabulary(tmp_path / "set", "user").keys() == set(users)
    assert vocabulary(tmp_path / "set").keys() == set(range(8))


def test_csv_and_parquet_of_the_same_ids(tmp_path):
    """Also beyond int64, which hashes fill; and codes with a leading zero stay what they are."""
    place = np.arange(40)
    large = pa.array(np.uint64(2**63) + (place % 8).astype(np.uint64))
    codes = [f"{i % 5:03d}" for i in place]
    table = rows(item=large, user=codes)
    for ending in ("csv", "parquet"):
        logs = write(tmp_path / f"{ending} logs", table, ending=ending)
        ingest(settings(logs, format=ending), tmp_path / ending)
    assert read_all(tmp_path / "csv") == read_all(tmp_path / "parquet")
    assert vocabulary(tmp_path / "csv") == vocabulary(tmp_path / "parquet")
    assert vocabulary(tmp_path / "csv", "user").keys() == set(codes)


def test_a_few_values_do_not_make_a_column_text(tmp_path):
    items = [str(i % 8) for i in range(40)]
    items[7] = "x7"
    logs = write(tmp_path / "logs", rows(item=items), ending="csv")
    manifest = ingest(settings(logs, format="csv"), tmp_path / "set")
    ((reason, number),) = manifest.ingested.quarantined.items()
    assert number == 1 and "item: not an integer" in reason
    assert "ingest.checks.item.type: text" in reason
    ingest(settings(logs, format="csv", max_bad_share=0.01), tmp_path / "text")
    assert "x7" in vocabulary(tmp_path / "text")


def test_floats_in_csv_are_the_same_ids(tmp_path):
    """As pandas writes integers beside a null."""
    logs = write(tmp_path / "logs", rows(), ending="csv")
    (logs / "b.csv").write_text(
        "user,item,time,click\n"
        + "".join(f"1,{i % 8}.0,{START_MS},1\n" for i in range(8))
        + "1,,5,1\n"
    )
    ingest(settings(logs, format="csv"), tmp_path / "set")
    assert vocabulary(tmp_path / "set").keys() == set(range(8))


def test_added_logs_keep_the_type(tmp_path):
    texts = [f"i{i % 8}" for i in range(40)]
    logs = write(tmp_path / "logs", rows(item=texts))
    ingest(settings(logs), tmp_path / "set")
    later = pa.array(START_MS + 10 * 86_400_000 + np.arange(40))
    write(logs / "later", rows(item=[1.0] * 40, time=later))
    ingest(settings(logs), tmp_path / "set")
    found = pq.read_table(tmp_path / "set" / "vocabulary" / "item" / "g0002.parquet")
    assert set(found["value"].to_pylist()) == {*texts, "1"}


# ---- times


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_timestamps_that_hold_another_unit_do_not_wrap(unit, statistics, tmp_path):
    per_ms = {"s": 1, "ms": 1000, "us": 1_000_000}[unit]  # Parquet keeps seconds as ms
    table = rows()
    wrong = pa.array(table["time"].to_numpy() * per_ms, pa.timestamp(unit))
    logs = tmp_path / "logs"
    write(logs, table)
    pq.write_table(
        table.set_column(2, "time", wrong), logs / "1.parquet", write_statistics=statistics
    )
    manifest = ingest(settings(logs, max_bad_share=0.9), tmp_path / "set")
    ((reason, number),) = manifest.ingested.quarantined.items()
    assert number == 40
    assert "not between 1990 and 2100" in reason
    assert {"s": "as us", "ms": "as us", "us": "as ns"}[unit] in reason
    with pytest.raises(DataError, match=r"1\.parquet: .*time="):
        ingest(settings(logs), tmp_path / "other")


def test_numbers_of_another_unit_name_the_one_that_fits(tmp_path):
    logs = write(tmp_path / "logs", rows())
    with pytest.raises(DataError, match=r"as ms: change ingest\.time\.unit"):
        ingest(settings(logs, time={"column": "time", "unit": "s"}), tmp_path / "set")


def test_int96_outside_of_nanoseconds(tmp_path):
    """Spark's old timestamps; as nanoseconds the year 2610 is 2025."""
    table = rows()
    far = [datetime(2610, 1, 1), datetime(2025, 1, 1)]
    logs = tmp_path / "logs"
    write(logs, table)
    stamps = pa.array([far[i % 2] for i in range(40)], pa.timestamp("us"))
    pq.write_table(
        table.set_column(2, "time", stamps),
        logs / "1.parquet",
        use_deprecated_int96_timestamps=True,
    )
    manifest = ingest(settings(logs, max_bad_share=0.9), tmp_path / "set")
    assert list(manifest.ingested.quarantined.values()) == [20]


def test_monotone_holds_across_all_row_groups_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("infnet_dist.ingest.logs.reading.files._ROWS_PER_TASK", 10)
    times = START_MS + np.arange(40) * 4_000_000
    times[20] = times[3]  # the first row of the third task
    logs = tmp_path / "logs"
    logs.mkdir()
    pq.write_table(rows(time=times), logs / "0.parquet", row_group_size=5, write_statistics=False)
    config = settings(logs, time={"column": "time", "monotone": True})
    manifest = ingest(config, tmp_path / "set")
    assert manifest.ingested.quarantined == {"time: earlier than a row before it": 1}


# ---- CSV: times, truth words, lists, delimiters


def test_csv_as_people_write_it(tmp_path):
    table = rows()
    moments = [datetime.fromtimestamp(t / 1000, UTC) for t in table["time"].to_pylist()]
    plain = table.append_column("tags", pa.array([[i % 3, 9] for i in range(40)]))
    lists = {"tags": {"table": "tags"}}
    ingest(settings(write(tmp_path / "logs", plain), lists=lists), tmp_path / "parquet")
    words = [["False", "True"], ["no", "YES"], ["f", "t"], ["0", "1.0"]]
    formats = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.000+00:00"]
    for ending, separator in (("csv", "|"), ("tsv", ";")):
        written = table.set_column(
            2, "time", pa.array([m.strftime(formats[i % 3]) for i, m in enumerate(moments)])
        )
        clicks = pa.array([words[i % 4][c] for i, c in enumerate(table["click"].to_pylist())])
        written = written.set_column(3, "click", clicks)
        tags = [separator.join(map(str, row)) for row in plain["tags"].to_pylist()]
        written = written.append_column("tags", pa.array(tags))
        logs = write(tmp_path / f"{ending} logs", written, ending=ending)
        config = settings(
            logs, format="csv", lists={"tags": {"table": "tags", "separator": separator}}
        )
        manifest = ingest(config, tmp_path / ending)
        assert not manifest.ingested.quarantined
        assert read_all(tmp_path / ending) == read_all(tmp_path / "parquet")


def test_the_option_is_named(tmp_path):
    table = rows(tags=["1,2"] * 40)
    lists = {"lists": {"tags": {"table": "tags"}}, "checks": {"tags": {"type": "int"}}}
    logs = write(tmp_path / "logs", table, ending="csv")
    with pytest.raises(DataError, match=r"ingest\.lists\.tags\.separator"):
        ingest(settings(logs, format="csv", **lists), tmp_path / "set")
    (logs / "0.csv").write_bytes((logs / "0.csv").read_bytes().replace(b",", b";"))
    with pytest.raises(DataError, match=r"0\.csv.*ingest\.csv\.delimiter"):
        ingest(settings(logs, format="csv"), tmp_path / "set")
    config = settings(logs, format="csv", csv={"delimiter": ";"})
    assert sum(split.rows for split in ingest(config, tmp_path / "set").splits.values()) == 40


def test_which_fields_of_csv_are_null(tmp_path):
    items = ["None", "NA", "null", "", "a", "b"] * 6 + ["a"] * 4
    logs = write(tmp_path / "logs", rows(item=items), ending="csv")
    ingest(settings(logs, format="csv"), tmp_path / "set")
    assert vocabulary(tmp_path / "set").keys() == {"NA", "a", "b"}
    ingest(settings(logs, format="csv", csv={"nulls": ["NA"]}), tmp_path / "other")
    assert vocabulary(tmp_path / "other").keys() == {"None", "null", "", "a", "b"}


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    logs = write(tmp_path / "logs", rows(), ending="csv")
    (logs / "0.csv").write_bytes(b"\xef\xbb\xbf" + (logs / "0.csv").read_bytes())
    manifest = ingest(settings(logs, format="csv"), tmp_path / "set")
    assert sum(split.rows for split in manifest.splits.values()) == 40


@pytest.mark.parametrize(
    ("column", "kind"), [("item", "text"), ("click", "0 or 1"), ("time", "a time")]
)
def test_a_value_of_csv_that_is_no_utf8_is_a_bad_row(column, kind, tmp_path):
    table = rows(item=[f"item {i % 8}" for i in range(40)])
    columns = {name: table[name].to_pylist() for name in table.column_names}
    columns[column][5] = "K\xf6ln"
    lines = [
        ",".join(columns),
        *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True)),
    ]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "0.csv").write_bytes("\n".join(lines).encode("latin-1"))
    manifest = ingest(settings(tmp_path / "logs", format="csv"), tmp_path / "set")
    (reason,) = manifest.ingested.quarantined
    assert reason.startswith(f"{column}: not {kind}")
    (bad,) = (tmp_path / "set" / "quarantine").rglob("*.parquet")
    (row,) = pq.read_table(bad).to_pylist()
    assert (row["_row"], row[column]) == (5, "K\\xf6ln")


def test_a_first_line_of_csv_that_is_no_utf8_is_refused(tmp_path):
    logs = write(tmp_path / "logs", rows(Farbe=[1] * 40), ending="csv")
    text = (logs / "0.csv").read_text().replace("Farbe", "K\xf6rper")
    (logs / "0.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"0\.csv.*UTF-8"):
        ingest(settings(logs, format="csv"), tmp_path / "set")


# ---- numbers, reasons


@pytest.mark.parametrize("buckets", ["quantile", "log", None])
@pytest.mark.parametrize("bad", [1e39, -1e300, float("inf")])
def test_numbers_beyond_float32_are_bad_rows(buckets, bad, tmp_path):
    prices = np.arange(1.0, 41.0)
    prices[[7, 30]] = bad
    logs = write(tmp_path / "logs", rows(price=prices))
    config = settings(logs, dense={"price": {"buckets": buckets}})
    manifest = ingest(config, tmp_path / "set")
    assert list(manifest.ingested.quarantined.values()) == [2]
    assert all(np.isfinite(row["price"]) for row in read_all(tmp_path / "set"))


def test_all_reasons_of_a_bad_row(tmp_path):
    times, clicks = START_MS + np.arange(40) * 4_000_000, np.arange(40) % 2
    times[[5, 6]] = 7
    clicks[[5, 8]] = 3
    logs = write(tmp_path / "logs", rows(time=times, click=clicks))
    checks = {"item": {"max": 4}}
    manifest = ingest(settings(logs, checks=checks, max_bad_share=0.9), tmp_path / "set")
    by_column = {}
    for reason, number in manifest.ingested.quarantined.items():
        by_column[reason.split(":")[0]] = number
    assert by_column == {"time": 2, "click": 2, "item": 15}
    bad = pq.read_table(next((tmp_path / "set" / "quarantine").rglob("*.parquet"))).to_pylist()
    named = {row["_row"]: [w.split(":")[0] for w in row["_reason"].split("; ")] for row in bad}
    assert {"time", "click", "item"} <= set(named[5])
    assert manifest.ingested.num_bad == len(bad) == 16
    assert sum(split.rows for split in manifest.splits.values()) == 24
    with pytest.raises(DataError) as caught:
        ingest(settings(logs, checks=checks), tmp_path / "other")
    assert "16 of 40 rows" in str(caught.value)
    assert all(part in str(caught.value) for part in ("2 x time", "2 x click", "15 x item"))


# ---- side tables


def joined(logs, side, columns=("country",), **changes):
    ids = {"user": "user", "item": "item"} | {name: name for name in columns}
    join = {"path": str(side), "key": "item", "columns": list(columns)}
    return settings(logs, ids=ids, joins={"side": join}, **changes)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_side_tables_are_read_as_the_logs_are(ending, tmp_path):
    """Namibia is no null, 01 isn't 1."""
    place = np.arange(40)
    codes = pa.array([f"{i % 8:02d}" for i in place])
    table = rows(item=codes)
    keys = [f"{i:02d}" for i in range(8)] + ["1", "2"]
    side = pa.table({"item": keys, "country": ["NA", "DE"] * 4 + ["wrong", "wrong"]})
    write(tmp_path / "side", side, ending=ending)
    logs = write(tmp_path / "logs", table)
    ingest(joined(logs, tmp_path / "side" / f"0.{ending}"), tmp_path / "set")
    found = vocabulary(tmp_path / "set", "country")
    assert found.keys() == {"NA", "DE"}
    of_item = {
        vocabulary(tmp_path / "set")[f"{i:02d}"]: found["NA" if i % 2 == 0 else "DE"]
        for i in range(8)
    }
    assert all(row["country"] == of_item[row["item"]] for row in read_all(tmp_path / "set"))


def test_a_side_table_of_csv_without_rows_matches_nothing(tmp_path, caplog):
    logs = write(tmp_path / "logs", rows())
    (tmp_path / "side.csv").write_text("item,country\n")
    ingest(joined(logs, tmp_path / "side.csv"), tmp_path / "set")
    assert "joins.side: no match for 40 of 40 rows" in caplog.text
    assert {row["country"] for row in read_all(tmp_path / "set")} == {0}


SIDES = {
    "int": pa.array(range(8)),
    "float": pa.array(np.arange(8.0)),
    "text": pa.array([str(i) for i in range(8)]),
    "dictionary": pa.array([str(i) for i in range(8)]).dictionary_encode(),
    "decimal": pa.array(range(8)).cast(pa.decimal128(20, 0)),
}


@pytest.mark.parametrize("kind", SIDES)
@pytest.mark.parametrize("logs_kind", ["int", "text", "csv"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_keys_match_whatever_their_types(kind, logs_kind, ending, tmp_path):
    if ending == "csv" and kind == "decimal":
        pytest.skip("as integers")
    table = rows() if logs_kind != "text" else rows(item=[str(i % 8) for i in range(40)])
    side = pa.table({"item": SIDES[kind], "country": [f"c{i}" for i in range(8)]})
    if ending == "csv":
        side = side.set_column(0, "item", side["item"].cast(pa.string()))
    write(tmp_path / "side", side, ending=ending)
    format = "csv" if logs_kind == "csv" else "parquet"
    logs = write(tmp_path / "logs", table, ending=format)
    config = joined(logs, tmp_path / "side" / f"0.{ending}", format=format)
    ingest(config, tmp_path / "set")
    items, countries = (vocabulary(tmp_path / "set", name) for name in ("item", "country"))
    of_item = {i: countries[f"c{value}"] for value, i in items.items()}
    assert all(row["country"] == of_item[row["item"]] for row in read_all(tmp_path / "set"))


def test_side_columns_decide_their_types_as_logs_do(tmp_path):
    logs = write(tmp_path / "logs", rows())
    ages = [str(20 + i) for i in range(8)]
    cities = ["01", "1"] * 4
    side = pa.table({"item": range(8), "age": ages, "city": cities})
    write(tmp_path / "side", side, ending="csv")
    config = joined(logs, tmp_path / "side" / "0.csv", ("age", "city"))
    ingest(config, tmp_path / "set")
    assert vocabulary(tmp_path / "set", "age").keys() == set(range(20, 28))
    assert vocabulary(tmp_path / "set", "city").keys() == {"01", "1"}


def test_keys_that_are_not_exact_are_refused(tmp_path):
    logs = write(tmp_path / "logs", rows())
    side = pa.table({"item": [1.0, 2.0**60], "country": ["a", "b"]})
    write(tmp_path / "side", side)
    with pytest.raises(DataError, match=r"0\.parquet: column 'item' .*row 1,"):
        ingest(joined(logs, tmp_path / "side" / "0.parquet"), tmp_path / "set")


@pytest.mark.parametrize(("declared", "refused"), [(None, True), ("text", False)])
def test_added_logs_that_write_ids_otherwise_are_refused(declared, refused, tmp_path):
    checks = {"item": {"type": declared}} if declared else {}
    texts = [f"{i % 8}" for i in range(40)]
    logs = write(tmp_path / "logs", rows(item=texts))
    ingest(settings(logs, checks=checks), tmp_path / "set")
    later = pa.array(START_MS + 10 * 86_400_000 + np.arange(40))
    write(logs / "later", rows(item=["3.0"] * 40, time=later))
    if not refused:
        assert ingest(settings(logs, checks=checks), tmp_path / "set") is not None
        return
    before = (tmp_path / "set" / "manifest.json").read_bytes()
    with pytest.raises(DataError, match=r"'item'.*'3\.0'.*'3'"):
        ingest(settings(logs, checks=checks), tmp_path / "set")
    assert (tmp_path / "set" / "manifest.json").read_bytes() == before


def test_a_set_of_nulls_takes_the_type_of_what_comes(tmp_path):
    logs = write(tmp_path / "logs", rows(item=pa.nulls(40)))
    ingest(settings(logs), tmp_path / "set")
    later = pa.array(START_MS + 10 * 86_400_000 + np.arange(40))
    write(logs / "later", rows(item=["a", "b"] * 20, time=later))
    manifest = ingest(settings(logs, valid_from="2026-01-05"), tmp_path / "set")
    assert not manifest.ingested.quarantined
    found = pq.read_table(tmp_path / "set" / "vocabulary" / "item" / "g0002.parquet")
    assert found["value"].to_pylist() == ["a", "b"]


def test_a_set_made_before_these_keys_is_added_to(tmp_path):
    """Its manifest has neither `csv` nor `separator`, nor how many rows are bad."""
    lists = {"tags": {"table": "tags"}}
    logs = write(tmp_path / "logs", rows(tags=[[1]] * 40))
    ingest(settings(logs, lists=lists), tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    found = json.loads(path.read_text())
    del found["source"]["csv"], found["source"]["lists"]["tags"]["separator"]
    del found["ingested"]["bad_rows"]
    found["ingested"]["quarantined"] = {"click: null": 3}
    path.write_text(json.dumps(found))
    later = pa.array(START_MS + 10 * 86_400_000 + np.arange(40))
    write(logs / "later", rows(tags=[[2]] * 40, time=later))
    manifest = ingest(settings(logs, lists=lists), tmp_path / "set")
    assert sum(split.rows for split in manifest.splits.values()) == 80
    assert manifest.ingested.num_bad == 3


@pytest.mark.parametrize("value", [2**63, 2**64 - 1, -(2**63)])
def test_allowed_ids_of_all_64_bits(value, tmp_path):
    kind = pa.uint64() if value > 0 else pa.int64()
    logs = write(tmp_path / "logs", rows(item=pa.array([value] * 40, kind)))
    manifest = ingest(settings(logs, checks={"item": {"allowed": [value]}}), tmp_path / "set")
    assert not manifest.ingested.quarantined


@pytest.mark.parametrize(
    ("column", "value"), [("item", 2**64), ("item", -(2**63) - 1), ("item", 1e20), ("price", 1e39)]
)
def test_allowed_values_that_no_column_holds(column, value, tmp_path):
    logs = write(tmp_path / "logs", rows(price=np.arange(40.0)))
    with pytest.raises((ConfigError, ValidationError), match=rf"checks\.{column}(\.|\n.*)allowed"):
        config = settings(logs, dense={"price": {}}, checks={column: {"allowed": [value]}})
        ingest(config, tmp_path / "set")


@pytest.mark.parametrize(("declared", "bad"), [(None, 1), ("int", 0)])
def test_a_leading_zero_is_dropped_only_where_asked(declared, bad, tmp_path):
    items = [str(i % 8) for i in range(40)]
    items[7] = "007"
    logs = write(tmp_path / "logs", rows(item=items), ending="csv")
    checks = {"item": {"type": declared}} if declared else {}
    manifest = ingest(settings(logs, format="csv", checks=checks), tmp_path / "set")
    assert sum(manifest.ingested.quarantined.values()) == bad
    assert vocabulary(tmp_path / "set").keys() == set(range(8))
    # The type may be declared later, as it is.
    later = START_MS + 10 * 86_400_000
    text = "user,item,time,click\n" + "".join(f"1,003,{later + i},1\n" for i in range(4))
    (logs / "later.csv").write_text(text)
    with pytest.raises(DataError, match=r"'item'.*ingest\.checks\.item\.type"):
        other = {"item": {"type": "text"}}
        ingest(settings(logs, format="csv", checks=other), tmp_path / "set")
    manifest = ingest(
        settings(logs, format="csv", checks={"item": {"type": "int"}}), tmp_path / "set"
    )
    assert sum(split.rows for split in manifest.splits.values()) == 44 - bad
