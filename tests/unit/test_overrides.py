"""`--set`, and the paths and numbers of run files, wherever they are loaded."""

import logging
from pathlib import Path

import pytest

from infnet_dist.config.ingest import KuaiRandIngest
from infnet_dist.config.logs import LogsIngest
from infnet_dist.config.run import Config, config_of_text, dump_config, load_config, parse_config
from infnet_dist.data.manifest import read_manifest
from infnet_dist.errors import ConfigError, PlanError
from infnet_dist.io.paths import ROOT_VARIABLE
from infnet_dist.planning.plan_file import load_plan
from infnet_dist.planning.tables import load_table_set
from tests.conftest import REPOSITORY
from tests.runs import make_tiny_set

FILE = "data: {path: x}\ntraining: {epochs: 3, log_every_steps: 7}\n"
LOGS = """\
ingest:
  {source: logs, path: raw, ids: {item: item}, tasks: {click: c}, valid_from: 2026-05-04}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.epochs=4", "training.epochs=5"],
        ["training.epochs=4", "training.epochs=4"],
        ["training={epochs: 4}", "training.log_every_steps=5"],
        ["training.log_every_steps=5", "training={epochs: 4}"],
    ],
)
def test_a_key_is_set_once(path: Path, overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"training\.(epochs|log_every_steps)|--set training"):
        load_config(path, overrides)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        *((f"training.max_steps={empty}", "training.max_steps") for empty in ("", "  ", "# 5")),
        ("data.path=", "data.path"),
        ("data.path=/data/x #1", "data.path"),
        ("training.task_weights={click: 1, click: 2}", "click"),
        *((f"training.epochs={text}", "training.epochs") for text in ("yes", "true", "1:30")),
        *((f"training.epochs={text}", "training.epochs") for text in ("1_0", "2.0", "1e3", "'2'")),
        ("dense_optimizer.learning_rate='0.1'", "dense_optimizer.learning_rate"),
        *(
            (f"dense_optimizer.learning_rate={x}", "learning_rate")
            for x in (".inf", ".nan", "1e999")
        ),
        ("training.task_weights={click: .inf}", "training.task_weights.click"),
        ("checkpoint.background=1", "checkpoint.background"),
        ("checkpoint.background=yes", "checkpoint.background"),
        ("run.name=2026", "run.name"),
        ("data.features=[1]", "data.features.0"),
        ("data.path=~/data", "~/data"),
    ],
)
def test_values_that_say_another_thing_are_refused(path: Path, override: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert named in str(caught.value)


def test_numbers_are_those_of_yaml_1_2(path: Path) -> None:
    config = load_config(path, ["training.epochs=010", "dense_optimizer.learning_rate=1e-3"])
    assert (config.training.epochs, config.dense_optimizer.learning_rate) == (10, 0.001)
    null = load_config(path, ["training.max_steps=null", "checkpoint.every_steps=~"])
    assert null.training.max_steps is null.checkpoint.every_steps is None


def test_a_key_twice_in_the_file_names_both_lines(path: Path) -> None:
    path.write_text(FILE + "run: {name: x}\ntraining: {epochs: 4}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert all(part in str(caught.value) for part in ("training", "line 2", "line 4", str(path)))


def test_a_section_that_is_replaced_as_a_whole_says_what_no_longer_applies(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="infnet_dist")
    config = load_config(path, ["training={epochs: 2}"])
    assert (config.training.epochs, config.training.log_every_steps) == (2, 50)
    assert "log_every_steps" in caplog.text


def test_days_need_no_quotes(path: Path) -> None:
    kuairand = load_config(
        path, ["ingest={source: kuairand, path: raw, valid_from: 2022-05-06}"]
    ).ingest
    assert isinstance(kuairand, KuaiRandIngest) and kuairand.valid_from == "2022-05-06"
    path.write_text(FILE + LOGS)
    times = ["ingest.test_from=2026-05-06 06:00:00", "ingest.train_from='2026-05-01T00:00'"]
    logs = load_config(path, times).ingest
    assert isinstance(logs, LogsIngest)
    assert (logs.valid_from, logs.test_from) == ("2026-05-04", "2026-05-06T06:00:00")
    assert logs.train_from == "2026-05-01T00:00:00", "one spelling for one time"


def test_relative_paths_are_resolved_against_the_root_wherever_a_config_is_loaded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, "/somewhere")
    path.write_text(FILE + LOGS)
    config = load_config(str(path), ["checkpoint.folder=saved", "sharding.plan=plan.json"])
    for found in (config, config_of_text(dump_config(config), "saved"), _parsed(config)):
        assert (found.data.path, found.run.folder) == (
            Path("/somewhere/x"),
            Path("/somewhere/runs"),
        )
        assert found.checkpoint.folder == "/somewhere/saved"
        assert isinstance(found.ingest, LogsIngest) and found.ingest.path == "/somewhere/raw"
        assert found.sharding.plan == Path.cwd() / "plan.json", "beside the code"
    assert parse_config({"data": {"path": "x"}}).data.path == Path("/somewhere/x")
    url = load_config(path, ["checkpoint.folder=s3://bucket/x"])
    assert url.checkpoint.folder == "s3://bucket/x"


def _parsed(config: Config) -> Config:
    return parse_config(config.model_dump(mode="json"))


@pytest.mark.parametrize("name", ["1e3", "1e-3", "08", "1.5e3"])
def test_a_config_that_earlier_versions_saved_loads_the_same(name: str) -> None:
    """They wrote such a name without quotes, which YAML 1.2 reads as a number."""
    config = parse_config({"data": {"path": "/x"}, "run": {"name": name}})
    new = dump_config(config)
    old = new.replace(f"'{name}'", name)
    assert old != new
    assert config_of_text(old, "old") == config_of_text(new, "new") == config


def test_saved_configs_with_keys_of_earlier_versions_load_and_run_files_get_the_new_name() -> None:
    raw = {"data": {"path": "/x"}, "model": {"conditional_on": {"like": "click"}}}
    config = parse_config(raw)
    old = dump_config(config).replace("conditional_on:", "given:")
    assert config_of_text(old, "saved") == config
    with pytest.raises(ConfigError, match=r"'model\.given'.*'conditional_on'"):
        parse_config({"data": {"path": "/x"}, "model": {"given": {"like": "click"}}})


def test_loaders_take_paths_as_text(tmp_path: Path) -> None:
    plan = str(REPOSITORY / "sharding_plans" / "industrial-128xh100.json")
    assert load_plan(plan) == load_plan(Path(plan))
    tables = str(REPOSITORY / "sharding_plans" / "tables" / "industrial.yaml")
    assert load_table_set(tables).tables[0].num_embeddings == 2_000_000_000
    folder = make_tiny_set(tmp_path / "set", num_rows=500)
    assert read_manifest(str(folder)) == read_manifest(folder)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (
            '"format_version": 2,',
            '"format_version": 2, "excluded": [], "excluded": [],',
            "excluded",
        ),
        ('"num_nodes": 16', '"num_nodes": "16"', "num_nodes"),
        ('"num_nodes": 16', '"num_nodes": 16.0', "num_nodes"),
        ('"workers_per_node": 8', '"workers_per_node": true', "workers_per_node"),
    ],
)
def test_plans_are_read_as_strictly(tmp_path: Path, old: str, new: str, named: str) -> None:
    text = (REPOSITORY / "sharding_plans" / "industrial-128xh100.json").read_text()
    assert old in text
    (tmp_path / "plan.json").write_text(text.replace(old, new, 1))
    with pytest.raises(PlanError, match=named):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("num_embeddings: 1_0", "num_embeddings"),
        ("num_embeddings: 010, num_embeddings: 2_000_000", "num_embeddings"),
        ("num_embeddings: 1000, zipf: true", "zipf"),
        ("num_embeddings: 1000, priority: '2'", "priority"),
        ("num_embeddings: 1000, priority: .inf", "priority"),
        ("num_embeddings: 1:30", "num_embeddings"),
    ],
)
def test_tables_files_are_read_as_strictly(tmp_path: Path, change: str, named: str) -> None:
    path = tmp_path / "tables.yaml"
    entry = "{name: a, embedding_dim: 8, features: [{name: a}], CHANGE}"
    path.write_text(f"batch_size: 1\ntables: [{entry.replace('CHANGE', change)}]\n")
    with pytest.raises(PlanError, match=named):
        load_table_set(path)
