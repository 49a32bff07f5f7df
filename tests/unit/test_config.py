from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.config.model import InfnetConfig, InfnetPaperConfig
from infnet_dist.config.optimizers import AdamWConfig, SgdConfig
from infnet_dist.config.run import (
    Config,
    config_of_text,
    dump_config,
    load_config,
    parse_config,
)
from infnet_dist.errors import ConfigError, UserError
from infnet_dist.io.paths import ROOT_VARIABLE

LEAST = {"data": {"path": "data/x"}}


@pytest.fixture(autouse=True)
def without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def complaint(**sections: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config({**LEAST, **sections}, source="run.yaml")
    message = str(caught.value)
    assert message.startswith("run.yaml: ")
    assert "\n" not in message
    return message.removeprefix("run.yaml: ")


def test_dense_optimizers_and_what_older_files_say() -> None:
    """A section without a name is AdamW, as before there was a choice."""
    older = parse_config(LEAST | {"dense_optimizer": {"learning_rate": 0.5, "weight_decay": 0.1}})
    assert older.dense_optimizer == AdamWConfig(learning_rate=0.5, weight_decay=0.1)
    other = parse_config(LEAST | {"dense_optimizer": {"name": "sgd", "momentum": 0.9}})
    assert other.dense_optimizer == SgdConfig(name="sgd", momentum=0.9)
    assert parse_config(other.model_dump(mode="json")).dense_optimizer == other.dense_optimizer


def test_the_least_file_gets_all_defaults(tmp_path: Path):
    config = load_config(written(tmp_path, "data: {path: data/x}"))
    assert config.data.path == Path.cwd() / "data/x"
    assert config.ingest is None
    assert isinstance(config.model, InfnetConfig)
    assert config.scaling.resources_per_worker == {"CPU": 1.0}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"traning": {}}, "unknown key 'traning'; did you mean 'training'?"),
        (
            {"dense_optimizer": {"learing_rate": 1}},
            "unknown key 'dense_optimizer.learing_rate'; did you mean 'learning_rate'?",
        ),
        (
            {"dense_optimizer": {"name": "adam"}},
            "unknown kind of dense_optimizer 'adam'; did you mean 'adamw'? "
            "(known: adagrad, adamw, sgd)",
        ),
        (
            {"dense_optimizer": {"name": "sgd", "first_order": {"alphaa": 1}}},
            "unknown key 'dense_optimizer.first_order.alphaa'; did you mean 'alpha'?",
        ),
        (
            {"schedule": {"dense": {"warmup": 8}}},
            "unknown key 'schedule.dense.warmup'; did you mean 'warmup_steps'?",
        ),
        ({"model": {"tokn_dim": 8}}, "unknown key 'model.tokn_dim'; did you mean 'token_dim'?"),
        (
            # num_hubs is a key of the other model: the nearest one of *this* model is named.
            {"model": {"name": "infnet_paper", "num_proxys": 8}},
            "unknown key 'model.num_proxys'; did you mean 'num_proxies'?",
        ),
        (
            {"ingest": {"source": "kuairand", "path": "x", "valid_form": "2022-05-04"}},
            "unknown key 'ingest.valid_form'; did you mean 'valid_from'?",
        ),
        (
            {"tables": {"overrides": {"item": {"sharding_type": 8}}}},
            "unknown key 'tables.overrides.item.sharding_type'; did you mean 'sharding_types'?",
        ),
    ],
)
def test_unknown_key_names_the_nearest(sections: dict, expected: str):
    assert complaint(**sections) == expected


def test_unknown_key_far_from_all_lists_the_valid_ones():
    assert (
        complaint(sharding={"zzz": 1})
        == "unknown key 'sharding.zzz'; valid keys: plan, sequence_qcomms, bag_qcomms, topology"
    )
    # A key of another member of the union is no valid key here.
    message = complaint(ingest={"source": "synthetic", "min_base_rate": 0.5})
    assert message.startswith("unknown key 'ingest.min_base_rate'; valid keys: source, num_rows,")


@pytest.mark.parametrize(
    ("sections", "key", "got", "expected"),
    [
        ({"training": {"epochs": "two"}}, "training.epochs", "'two'", "integer"),
        ({"training": {"epochs": 0}}, "training.epochs", "0", "1"),
        ({"scaling": {"timeout_s": "long"}}, "scaling.timeout_s", "'long'", "number"),
        ({"data": {"path": "x", "tasks": "click"}}, "data.tasks", "'click'", "list"),
        ({"tables": {"data_type": "bf16"}}, "tables.data_type", "'bf16'", "'fp32' or 'fp16'"),
        ({"tables": {"embedding_dim": 0}}, "tables.embedding_dim", "0", "1"),
        ({"sharding": {"plan": 3}}, "sharding.plan", "3", "path, or 'auto'"),
        ({"training": None}, "training", "None", "section"),
        ({"model": "infnet"}, "model", "'infnet'", "section"),
    ],
)
def test_ill_typed_value_names_type_and_unit(sections: dict, key: str, got: str, expected: str):
    message = complaint(**sections)
    assert message.startswith(key)
    _, _, rest = message.partition(f"got {got}")
    assert expected in rest
    section, _, name = key.partition(".")
    if name:  # the description, which says the unit
        described = Config.model_fields[section].annotation.model_fields[name].description
        assert described in message


def test_key_that_is_not_text_is_reported():
    with pytest.raises(ConfigError, match=r"key 1\b.* text"):
        parse_config({**LEAST, 1: 2})  # type: ignore[dict-item]


def test_wrong_kind_names_the_nearest():
    expected = "unknown kind of model 'infnett'; did you mean 'infnet'?"
    assert expected in complaint(model={"name": "infnett"})
    expected = "unknown kind of ingest 'kuairan'; did you mean 'kuairand'?"
    assert expected in complaint(ingest={"source": "kuairan", "path": "x"})


def test_missing_keys_are_named():
    with pytest.raises(ConfigError, match=r"missing section 'data' \(keys: path, features,"):
        parse_config({})
    message = complaint(ingest={"source": "kuairand"})
    assert "missing key 'ingest.path'" in message
    message = complaint(ingest={"path": "x"})
    expected = "missing key 'ingest.source'; expected one of: synthetic, kuairand, tabular, "
    assert message.startswith(expected)


def test_all_problems_are_reported_at_once():
    message = complaint(training={"epochs": 0}, modle={})
    assert "training.epochs" in message
    assert "did you mean 'model'" in message


def test_members_of_unions_are_chosen_by_name():
    config = parse_config(
        {**LEAST, "model": {"name": "infnet_paper"}, "ingest": {"source": "synthetic"}}
    )
    assert isinstance(config.model, InfnetPaperConfig)
    assert isinstance(config.ingest, SyntheticIngest)
    assert isinstance(parse_config({**LEAST, "model": {"token_dim": 8}}).model, InfnetConfig)


def test_set_overrides_the_file_and_reads_yaml(tmp_path: Path):
    path = written(tmp_path, "data: {path: x}\ntraining: {epochs: 3, log_every_steps: 7}\n")
    config = load_config(
        path,
        [
            "training.epochs=5",
            "data.features=[user_id, item_id]",
            "tables.overrides.item.sharding_types=[row_wise]",
            "training.max_steps=null",
            "data.path=a=b",
        ],
    )
    assert config.training.epochs == 5
    assert config.training.log_every_steps == 7
    assert config.data.features == ("user_id", "item_id")
    assert config.tables.overrides["item"].sharding_types == ("row_wise",)
    assert config.training.max_steps is None
    assert config.data.path == Path.cwd() / "a=b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("data.path.x=3", "'path'"),
        ("training.epochs=[1", "training.epochs.*YAML"),
        ("training.epoch=1", "did you mean 'epochs'"),
    ],
)
def test_wrong_set_is_reported(tmp_path: Path, override: str, expected: str):
    with pytest.raises(ConfigError, match=expected):
        load_config(written(tmp_path, "data: {path: x}"), [override])


def test_renamed_keys_are_named_and_converted_in_saved_configs():
    logs = {
        "source": "logs",
        "path": "/logs",
        "ids": {"user_id": "user"},
        "tasks": {"click": "is_click"},
        "valid_from": "2026-01-04",
    }
    before = {"numbers": {"age": {"buckets": "log"}}, "tables": {"user": {"encoding": "dense"}}}
    now = {"dense": {"age": {"buckets": "log"}}, "tables": {"user": {"encoding": "vocabulary"}}}
    message = complaint(ingest=logs | before)
    assert "'ingest.numbers'" in message and "'dense'" in message
    assert "ingest.tables.user.encoding" in message and "'vocabulary'" in message
    tables = {"unknown_id_rate": 0.0}
    saved = yaml.safe_dump({**LEAST, "tables": tables, "ingest": logs | before})
    wanted = parse_config({**LEAST, "tables": tables, "ingest": logs | now})
    assert config_of_text(saved, "saved") == wanted


def test_round_trip(tmp_path: Path):
    config = parse_config(
        {
            **LEAST,
            "run": {"name": "r", "seed": 3},
            "ingest": {"source": "kuairand", "path": "raw"},
            "tables": {"overrides": {"item": {"sharding_types": ["row_wise"]}}},
            "model": {"name": "infnet_paper", "num_proxies": 2},
            "training": {"task_weights": {"click": 2.0}},
            "sharding": {"plan": "plans/a.json"},
        }
    )
    text = dump_config(config)
    assert load_config(written(tmp_path, text)) == config
    # Complete: the dump contains every section.
    assert set(yaml.safe_load(text)) == set(Config.model_fields)


@pytest.mark.parametrize("exclude", [[], ["user", "item"]])
def test_a_named_checkpoint_may_be_text_or_a_section(exclude: list[str]):
    section = {"source": "./old", "exclude": exclude}
    config = parse_config(
        {**LEAST, "checkpoint": {"init_from": section}, "training": {"teacher": "./old"}}
    )
    assert config.checkpoint.init_from is not None and config.training.teacher is not None
    assert config.checkpoint.init_from.exclude == tuple(exclude)
    assert Path(config.training.teacher.source).name == "old"
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    assert "expected a list" in complaint(
        checkpoint={"init_from": {"source": "./old", "exclude": "user"}}
    )


def test_plans_and_topologies_are_absolute_and_names_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Workers of Ray have another current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ROOT_VARIABLE, "/elsewhere")
    files = {"plan": "plans/a.json", "topology": "cluster.json"}
    sharding = parse_config({**LEAST, "sharding": files}).sharding
    assert sharding.plan == tmp_path / "plans/a.json"
    assert sharding.topology == tmp_path / "cluster.json"
    named = parse_config({**LEAST, "sharding": {"topology": "h100x8"}}).sharding
    assert named.topology == Path("h100x8") and named.plan == "auto"


def test_config_is_frozen():
    config = parse_config(LEAST)
    with pytest.raises(ValidationError):
        config.training.epochs = 2  # type: ignore[misc]


def test_unreadable_files_are_reported(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"\.yaml.*YAML"):
        load_config(written(tmp_path, "data: {path: [}"))
    with pytest.raises(ConfigError, match=r"list.*data:"):
        load_config(written(tmp_path, "- a\n- b\n"))
    with pytest.raises(ConfigError, match="missing section 'data'"):
        load_config(written(tmp_path, ""))


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(set(CONFIGS.glob("*.yaml")) - {*CONFIGS.glob("compare_*")}))
def test_ready_configs_load(path: Path):
    assert load_config(path).data.path
