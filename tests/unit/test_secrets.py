"""Secrets in URLs reach no file, no log and no message."""

from pathlib import Path

import pytest

from infnet_dist.checkpoint.cli.command import main as checkpoint_command
from infnet_dist.config.run import load_config, parse_config
from infnet_dist.errors import ConfigError, UserError
from infnet_dist.io.filesystem import Folder, open_filesystem
from infnet_dist.io.urls import secrets_in, without_secrets
from infnet_dist.planning.tables import load_table_set

SECRET = "hunter2hunter2"
LOGS = {"source": "logs", "ids": {"item": "item"}, "tasks": {"click": "click"}}
LOGS |= {"valid_from": "2026-01-01"}


@pytest.mark.parametrize(
    ("url", "shown", "found"),
    [
        ("/data/a?b@c:d", "/data/a?b@c:d", []),
        ("data/x:y@z", "data/x:y@z", []),
        ("s3://bucket/a@b", "s3://bucket/a@b", []),
        ("s3://bucket/a?region=eu&endpoint_override=h:9000", "s3://bucket/a", []),
        (f"s3://AK:{SECRET}@bucket/a", "s3://bucket/a", ["a password"]),
        (f"s3://AK:1/{SECRET}+/x@bucket/a", "s3://bucket/a", ["a password"]),
        (f"s3://AK:?{SECRET}#@bucket/a", "s3://bucket/a", ["a password"]),
        (f"s3://AK:a@b/{SECRET}@bucket/a", "s3://bucket/a", ["a password"]),
        (f"s3://AK%3A{SECRET}@bucket/a", "s3://bucket/a", ["a password"]),
        (f"s3://AK:{SECRET}", "s3://", ["a password"]),
        (f"s3://{SECRET}@bucket/a", "s3://bucket/a", ["a user"]),
        (f"s3://b/a?secret_key={SECRET}", "s3://b/a", ["the option 'secret_key'"]),
        (f"s3://b/a?x=1;token={SECRET}", "s3://b/a", ["the option 'token'"]),
        (f"https://h/a?X-Amz-Signature={SECRET}", "https://h/a", ["an option"]),
        (f"https://h/a?sv=1&sig={SECRET}", "https://h/a", ["the option 'sig'"]),
        (f"simplecache::s3://AK:{SECRET}@b/a", "simplecache::s3://b/a", ["a password"]),
        (f"zip://x.zip::s3://AK:{SECRET}@b/a", "zip://x.zip::s3://b/a", ["a password"]),
        (f"abfs://box:{SECRET}@account/a", "abfs://account/a", ["a password"]),
        ("abfs://box@account/a", "abfs://account/a", []),
        ("gs://anonymous@bucket/a", "gs://bucket/a", []),
        ("hdfs://me@node:8020/a", "hdfs://node:8020/a", []),
        ("http://[::1]:9000/a", "http://[::1]:9000/a", []),
    ],
)
def test_secrets_are_found_and_left_out(url: str, shown: str, found: list[str]):
    assert without_secrets(url) == shown
    assert secrets_in(url) == found


URL = f"s3://AKIA:{SECRET}@bucket/x"


@pytest.mark.parametrize(
    "override",
    [
        f"checkpoint.folder={URL}",
        f"checkpoint.folder=s3://bucket/x?secret_key={SECRET}",
        f"run.folder={URL}",
        f"data.path={URL}",
        f"data.features=[a, '{URL}']",
        f"ingest={{source: synthetic, num_rows: {URL}}}",
        f"ingest={{source: kuairand, path: {URL}}}",
        f"ingest.path={URL}",
        f"ingest.joins.items={{path: {URL}, key: item, columns: [a]}}",
        f"training.epochs={URL}",
        f"no_such_key.at_all={URL}",
        f"tracking={URL}",
        f"scaling.resources_per_worker={{'{URL}': 1}}",
        f"checkpoint.folder={URL}: [",
        f"checkpoint.folder:{URL}",
        f"checkpoint.folder: {URL}&x=1",
        f"data.path.x={URL}",
        f"checkpoint.folder=!{URL}",
        f'checkpoint.folder="{URL}',
        f"checkpoint.folder=s3://AKIA:{SECRET}",
    ],
)
def test_a_run_file_with_a_secret_is_refused(tmp_path: Path, override: str):
    path = tmp_path / "run.yaml"
    path.write_text("data: {path: x}\n")
    if "ingest" in override and "source" not in override:
        path.write_text(f"data: {{path: x}}\ningest: {{path: logs, {str(LOGS)[1:]}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_message_says_what_to_do_instead(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        parse_config({"data": {"path": "x"}, "checkpoint": {"folder": URL}}, source="run.yaml")
    parts = ("run.yaml", "checkpoint.folder", "s3://bucket/x", "password", "AWS_ACCESS_KEY_ID")
    assert all(part in str(caught.value) for part in parts)
    plain = {"folder": "s3://bucket/x?region=eu-west-1"}
    config = parse_config({"data": {"path": "x"}, "checkpoint": plain})
    assert config.checkpoint.folder == plain["folder"]


@pytest.mark.parametrize(
    "text", [f"data: {{path: {URL}", f'data: {{path: "{URL}}}', f"data: &a *{SECRET}", f"{URL}: ["]
)
def test_what_is_no_yaml_is_not_repeated(tmp_path: Path, text: str):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"is not YAML: .*, line 1") as caught:
        load_config(path)
    assert SECRET not in str(caught.value)
    with pytest.raises(UserError) as caught_too:
        load_table_set(path)
    assert SECRET not in str(caught_too.value)


@pytest.mark.parametrize("scheme", ["nonsense", "s3", "abfs", "ftp"])
def test_errors_of_stores_repeat_no_secret(scheme: str, capfd: pytest.CaptureFixture[str]):
    url = f"{scheme}://AKIA:{SECRET}/+@127.0.0.1:1/x?nonsense={SECRET}"
    with pytest.raises(UserError) as caught:
        open_filesystem(url)
    assert SECRET not in str(caught.value)
    assert SECRET not in f"{Folder(url)} {Folder(url)!r} {Folder(url) / 'a'}"
    for command in ("list", "verify", "inspect"):
        assert checkpoint_command([command, url]) == 1
    captured = capfd.readouterr()
    assert "error: " in captured.err
    assert SECRET not in captured.err + captured.out
