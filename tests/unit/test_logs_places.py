"""Logs on object stores, and side tables."""

import zipfile

import boto3
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from infnet_dist.errors import DataError
from infnet_dist.ingest.logs.pipeline import ingest_logs
from infnet_dist.ingest.logs.stages.runner import one_by_one, processes
from tests.unit.raw_logs import (
    Truth,
    canonical,
    make_rows,
    read_split,
    settings,
    write_logs,
)


def silent(stage, unit, done, total):
    pass


def ingest(config, folder, execute=one_by_one):
    return ingest_logs(config, folder, execute, silent)


def check(rows, config, folder):
    found = [row for split in ("train", "valid") for row in read_split(folder, split)]
    expected = [Truth(rows, config, folder).expected(row) for row in rows]
    assert canonical(found, list(expected[0])) == canonical(expected, list(expected[0]))


@pytest.fixture
def s3(monkeypatch):
    """A bucket of a real S3 API on loopback: its endpoint, and a client."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="logs")
    yield f"{host}:{port}", client
    server.stop()


def upload(client, folder, prefix):
    for path in folder.rglob("*.parquet"):
        client.upload_file(str(path), "logs", f"{prefix}/{path.relative_to(folder)}")


def test_logs_in_s3(s3, tmp_path):
    endpoint, client = s3
    rows = sorted(make_rows(1), key=lambda row: row["time_ms"])
    upload(client, write_logs(tmp_path / "a", rows[:250]), "days/one day")
    url = f"s3://logs/days?endpoint_override={endpoint}&scheme=http"
    config = settings(url, valid_from="2026-01-02")
    first = ingest(config, tmp_path / "set")
    assert first.ingested.files[0].path == "logs/days/one day/log-0.parquet"
    assert ingest(config, tmp_path / "set") is None
    upload(client, write_logs(tmp_path / "b", rows[250:]), "days/two")
    with processes(2) as execute:
        second = ingest(settings(url, valid_from="2026-01-04"), tmp_path / "set", execute)
    assert sum(split.rows for split in second.splits.values()) == len(rows)
    whole = settings(url, valid_from="2026-01-04")
    ingest(whole, tmp_path / "whole")
    check(rows, whole, tmp_path / "whole")


def test_a_bucket_that_is_not_there(s3, tmp_path):
    endpoint, _ = s3
    url = f"s3://nosuch/days?endpoint_override={endpoint}&scheme=http"
    with pytest.raises(DataError, match=r"ingest\.path.*s3://nosuch/days"):
        ingest(settings(url), tmp_path / "set")


def test_logs_by_fsspec(tmp_path):
    """Any URL that fsspec knows: here a zip file's folder."""
    rows = make_rows(2)
    logs = write_logs(tmp_path / "logs", rows)
    with zipfile.ZipFile(tmp_path / "logs.zip", "w") as packed:
        for path in logs.iterdir():
            packed.write(path, f"days/{path.name}")
    config = settings(f"zip://days::file://{tmp_path}/logs.zip")
    ingest(config, tmp_path / "set")
    check(rows, config, tmp_path / "set")


def test_a_pattern_picks_files(tmp_path):
    rows = make_rows(2)
    logs = write_logs(tmp_path / "logs", rows)
    (logs / "other.parquet").write_bytes(b"no parquet")
    config = settings(logs / "log-*.parquet")
    ingest(config, tmp_path / "set")
    check(rows, config, tmp_path / "set")


def joined(logs, side, **changes):
    """Authors come from a side table instead of the logs."""
    join = {"path": str(side), "key": "item_id", "columns": ["author"]}
    return settings(logs, joins={"items": join | changes})


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_side_tables_are_joined(suffix, tmp_path):
    rows = make_rows(1)
    logs = tmp_path / "logs"
    logs.mkdir()
    table = pq.read_table(write_logs(tmp_path / "with", rows)).drop_columns(["author"])
    pq.write_table(table, logs / "x.parquet")
    authors = {row["item_id"]: row["author"] for row in rows}
    del authors[7]  # whom nobody knows
    side = pa.table({"item_id": pa.array(authors, pa.int64()), "author": list(authors.values())})
    if suffix == "csv":
        pa.csv.write_csv(side, tmp_path / "items.csv")
    else:
        pq.write_table(side, tmp_path / "items.parquet")
    config = joined(logs, tmp_path / f"items.{suffix}")
    ingest(config, tmp_path / "set")
    known = [row if row["item_id"] != 7 else row | {"author": None} for row in rows]
    found = [row for split in ("train", "valid") for row in read_split(tmp_path / "set", split)]
    expected = [Truth(known, config, tmp_path / "set").expected(row) for row in known]
    names = [name for name in expected[0] if name != "user_author_clicked"]
    assert canonical(found, names) == canonical(expected, names)


def test_wrong_side_tables_are_named(tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1))
    side = tmp_path / "items.parquet"
    with pytest.raises(DataError, match=r"items\.parquet.*ingest\.joins"):
        ingest(joined(logs, side), tmp_path / "set")
    pq.write_table(pa.table({"item_id": [1, 1], "author": ["a", "b"]}), side)
    with pytest.raises(DataError, match=r"'item_id'.*twice"):
        ingest(joined(logs, side), tmp_path / "set")
    with pytest.raises(DataError, match=r"'authr'.*'author'"):
        join = {"path": str(side), "key": "item_id", "columns": ["author", "authr"]}
        ids = {"user_id": "user", "item_id": "item", "author": "author", "authr": "author"}
        ingest(settings(logs, ids=ids, joins={"items": join}), tmp_path / "set")
    pq.write_table(pa.table({"item_id": [1.5], "author": ["a"]}), side)
    with pytest.raises(DataError, match=r"items\.parquet.*'item_id'.*1\.5.*row 0"):
        ingest(joined(logs, side), tmp_path / "set")
