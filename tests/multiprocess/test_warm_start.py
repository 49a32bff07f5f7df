"""A new run starts from another run's checkpoint: each value is an old one, or a fresh one."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from infnet_dist.checkpoint.shards import ModelState
from infnet_dist.config.run import Config
from infnet_dist.config.warm_start import InitFromConfig
from infnet_dist.data.manifest import Ingested, read_manifest, write_manifest
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError, ConfigError
from infnet_dist.io.filesystem import Folder
from infnet_dist.training.initial_state import dry_run
from infnet_dist.training.run_folder import init_settings
from infnet_dist.training.setup import TrainingSetup
from infnet_dist.training.trainer import train
from infnet_dist.warm_start.start import warm_start
from tests.ranks import run_ranks
from tests.run_files import assert_same, tensors
from tests.runs import make_config, make_tiny_set, stop_one_rank_at_step

# Every kind of state: row-wise by column shards, data-parallel, AdamW, FTRL, an average.
SETTINGS: dict[str, dict] = {
    "tables": {
        "embedding_dim": 8,
        "overrides": {
            "user": {"sharding_types": ["column_wise"]},
            "item": {"sharding_types": ["row_wise"]},
            "author": {"sharding_types": ["table_wise"], "optimizer": "adagrad"},
            "tab": {"sharding_types": ["data_parallel"]},
            "duration": {"embedding_dim": 6, "sharding_types": ["row_wise"]},
        },
    },
    "model": {"first_order": True},
    "dense_optimizer": {"ema_decay": 0.8, "first_order": {"name": "ftrl", "l1": 0.001}},
    "training": {"max_steps": 4, "log_every_steps": 2},
}
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_set(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def old(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 2 ranks with one checkpoint, of step 4."""
    folder = tmp_path_factory.mktemp("runs")
    config = make_config(tiny_set, folder, **SETTINGS)
    run_ranks(train, 2, config=config, run_folder=folder / "test" / "old")
    return folder / "test" / "old"


@pytest.fixture(scope="module")
def saved(old: Path) -> State:
    """All tensors of its checkpoint."""
    return tensors(old)


def started(
    context: WorkerContext, *, config: Config, folder: str, options: dict[str, Any]
) -> tuple[State, State, dict[str, Any]]:
    """All tensors of a new model before and after its start, by name, and the report by tensor."""
    setup = TrainingSetup.open(config, context, splits=[])
    before = whole_state(context, setup)
    found = warm_start(
        Folder(folder),
        setup.sharded,
        setup.manifest,
        context,
        options=InitFromConfig(source="x", **options),
    )
    report = {match.name: (match.status, match.detail) for match in found.matches}
    return before, whole_state(context, setup), report


def whole_state(context: WorkerContext, setup: TrainingSetup) -> State:
    shards = [
        (shard.name, shard.shape, shard.offsets, shard.tensor.clone())
        for shard in ModelState(setup.sharded).shards()
    ]
    whole: State = {}
    for of_rank in context.gather(shards):
        for name, shape, offsets, part in of_rank:
            missing = torch.nan if part.is_floating_point() else -1
            tensor = whole.setdefault(name, torch.full(shape, missing, dtype=part.dtype))
            place = tuple(slice(o, o + n) for o, n in zip(offsets, part.shape, strict=True))
            tensor[place] = part
    return whole


def start(old: Path, config: Config, ranks: int = 2, **options: Any) -> tuple[State, State, dict]:
    checkpoint = str(old / "checkpoints" / "step-00000004")
    return run_ranks(started, ranks, config=config, folder=checkpoint, options=options)[0]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def grown_set(data: Path, folder: Path, content_hash: str, **rows: int) -> Path:
    """The training set as if logs had been added that gave its tables these numbers of rows."""
    shutil.copytree(data, folder)
    manifest = read_manifest(folder)
    tables = tuple(
        table.model_copy(update={"num_embeddings": rows.get(table.name, table.num_embeddings)})
        for table in manifest.schema_.tables
    )
    ingested = Ingested(
        **{"generation": 2, "last_time_ms": 0, "boundary_ms": 0, "files": (), "unreadable": {}},
        **{"quarantined": {}, "left_out": {}, "grew_from": (manifest.content_hash,)},
    )
    changes = {
        "schema_": manifest.schema_.model_copy(update={"tables": tables}),
        "ingested": ingested,
        "content_hash": content_hash,
    }
    write_manifest(folder, manifest.model_copy(update=changes))
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_same_model_is_taken_bit_for_bit(
    tiny_set: Path, tmp_path: Path, old: Path, saved: State, ranks: int
) -> None:
    """Also by another number of ranks, and under another plan.

    A row-wise state of two column shards is their mean in one.
    """
    settings = json.loads(json.dumps(SETTINGS))
    overrides = settings["tables"]["overrides"]
    overrides["item"] = {"sharding_types": ["table_wise"]}
    overrides["tab"] = {"sharding_types": ["row_wise"]}
    if ranks == 1:
        overrides["user"] = {"sharding_types": ["row_wise"]}
    settings["run"] = {"name": "test", "folder": str(tmp_path), "seed": 9}
    before, after, report = start(old, make_config(tiny_set, tmp_path, **settings), ranks)
    assert after.keys() == saved.keys() == report.keys()
    converted = {"optimizer.tables.user.momentum1"} if ranks == 1 else set()
    for name in saved.keys() - converted:
        assert same(after[name], saved[name]), name
        assert report[name] == ("taken", "")
    for name in converted:
        assert torch.allclose(after[name], saved[name].view(2, -1).mean(0), rtol=1e-6, atol=0)
        assert report[name][0] == "converted"
    assert not same(before["model.tables.item.weight"], saved["model.tables.item.weight"])


def test_a_vocabulary_that_grew(tiny_set: Path, tmp_path: Path, old: Path, saved: State) -> None:
    """Old rows and their state are taken by row index; new rows are those of a fresh model."""
    grown = grown_set(tiny_set, tmp_path / "grown", "grown", item=90, user=64, author=15, tab=7)
    before, after, report = start(old, make_config(grown, tmp_path, **SETTINGS), 2)
    sizes = {"item": (81, 90), "user": (61, 64), "author": (13, 15), "tab": (5, 7)}
    for table, (rows, now) in sizes.items():
        weight = f"model.tables.{table}.weight"
        assert report[weight] == ("grown", f"rows {rows} to {now - 1} are new")
        assert same(after[weight][:rows], saved[weight])
        assert same(after[weight][rows:], before[weight][rows:])
        state = f"optimizer.tables.{table}.momentum1"
        blocks = 2 if table == "user" else 1  # column shards, one after the other
        old_blocks, new_blocks = saved[state].chunk(blocks), after[state].chunk(blocks)
        for one, other in zip(old_blocks, new_blocks, strict=True):
            assert one.count_nonzero() and same(other[:rows], one)
            assert other[rows:].count_nonzero() == 0 and len(other) == now
    others = [n for n in saved if not any(f".{table}." in n for table in sizes)]
    assert all(same(after[name], saved[name]) for name in others)


def only(features: list[str], **changes: Any) -> dict[str, dict]:
    return {**SETTINGS, "data": {"features": features, "batch_size": 32}, **changes}


FEWER = ["user", "tab", "duration", "item", "click", "item_age"]


def test_features_removed(tiny_set: Path, tmp_path: Path, old: Path, saved: State) -> None:
    """Projections follow their fields; what reads all fields at once starts fresh."""
    before, after, report = start(old, make_config(tiny_set, tmp_path, **only(FEWER)))
    tokens = "model.model.dense.tokens"
    # Fields were user, item, author, topic, age_group, tab (width 8) and duration (6).
    weight = f"{tokens}.fields.by_width.0.weight_MED"
    assert same(after[weight], saved[weight][[0, 1, 5]])
    assert same(after[f"{tokens}.items.0.weight"], saved[f"{tokens}.items.0.weight"])
    assert report[weight] == ("taken", "fields gone: author, topic, age_group")
    state = f"optimizer.dense.{weight.removeprefix('model.')}.exp_avg"
    assert saved[state].count_nonzero() and same(after[state], saved[state][[0, 1, 5]])
    for name in ("categorical.0.weight", "behaviours.0.0.weight"):
        tensor = f"model.model.dense.tower.hubs.{name}"
        fresh = name.startswith("categorical")
        assert report[tensor][0] == ("new" if fresh else "taken")
        assert same(after[tensor], (before if fresh else saved)[tensor])
    assert report["model.tables.author.weight"] == ("taken", "")  # the history of clicks reads it
    assert report["model.tables.age_group.weight"] == ("dropped", "")
    assert report[f"{tokens}.items.1.weight"] == ("dropped", "")
    assert "model.tables.age_group.weight" not in after


def test_features_and_a_task_added(
    tiny_set: Path, tmp_path: Path, old: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The other way round: from a run of few features and two tasks, in another order, to all."""
    folder = tmp_path_factory.mktemp("few")
    few = only(FEWER)
    few["data"]["tasks"] = ["long_view", "click"]
    config = make_config(tiny_set, folder, **few)
    run_ranks(train, 2, config=config, run_folder=folder / "few")
    saved = tensors(folder / "few")
    before, after, report = start(folder / "few", make_config(tiny_set, tmp_path, **SETTINGS))
    tasks = [name for name in ("click", "like", "long_view") if name != "like"]
    assert tasks == ["click", "long_view"]  # the schema's order, whatever the selection's
    weight = "model.model.dense.tokens.fields.by_width.0.weight_MED"
    expected = before[weight].clone()
    expected[[0, 1, 5]] = saved[weight]
    assert same(after[weight], expected)
    assert report[weight] == ("grown", "fields new: author, topic, age_group")
    task = "model.model.dense.tokens.task_KD"
    assert same(after[task][[0, 2]], saved[task]) and same(after[task][1], before[task][1])
    for head, source in ((0, 0), (2, 1)):
        name = "model.model.dense.tower.heads.heads.{}.2.weight"
        assert same(after[name.format(head)], saved[name.format(source)])
    assert report["model.model.dense.tower.heads.heads.1.2.weight"] == ("new", "tasks: like is new")
    assert report["model.tables.age_group.weight"] == ("new", "the checkpoint has no such table")
    step = "optimizer.dense.model.dense.tower.heads.heads.1.2.weight.step"
    assert after[step] == 4, "parameters share the number of steps"


def test_another_tower_over_the_old_tables(
    tiny_set: Path, tmp_path: Path, old: Path, saved: State
) -> None:
    raw = make_config(tiny_set, tmp_path, **SETTINGS).model_dump(mode="json")
    raw["model"] = {"name": "stack", "token_dim": 8}
    raw["dense_optimizer"] = {"name": "adamw"}
    config = Config.model_validate_json(json.dumps(raw))
    before, after, report = start(old, config)
    for name, value in after.items():
        if ".tables." in name:
            assert same(value, saved[name]), name
        elif ".tower." in name and not name.endswith(".step"):
            assert report[name][0] == "new" and same(value, before[name]), name
    assert report["model.model.dense.tower.head.towers.0.1.weight"][1].endswith("was infnet")
    step = "optimizer.dense.model.dense.tokens.item_norm.weight.step"
    assert report["model.model.dense.tokens.item_norm.weight"][0] == "taken" and after[step] == 4


@pytest.mark.exhaustive
def test_an_average_begins_with_the_taken_weights(
    tiny_set: Path, tmp_path: Path, old: Path, saved: State
) -> None:
    """An average that the checkpoint lacks; and without optimizer state."""
    plain = SETTINGS | {"dense_optimizer": {"name": "adamw"}, "model": {"first_order": False}}
    run_ranks(
        train, 2, config=make_config(tiny_set, tmp_path, **plain), run_folder=tmp_path / "plain"
    )
    weights = tensors(tmp_path / "plain")
    averaged = plain | {"dense_optimizer": {"ema_decay": 0.8}}
    config = make_config(tiny_set, tmp_path, **averaged)
    _, after, _ = start(tmp_path / "plain", config)
    name = "model.model.dense.tokens.item_norm.weight"
    trained = "optimizer.average.model.dense.tokens.item_norm.weight"
    assert same(after[name], weights[name]) and same(after[f"{trained}.trained"], weights[name])
    assert after[f"{trained}.step"] == 0

    config = make_config(tiny_set, tmp_path, **SETTINGS)
    _, after, report = start(old, config, optimizer_state=False)
    assert same(after[name], saved[name])
    assert same(after[f"{trained}.trained"], saved[f"{trained}.trained"])
    states = [n for n in after if n.startswith("optimizer.") and not n.endswith(".trained")]
    assert states and all(after[n].count_nonzero() == 0 for n in states)
    linear = "model.model.dense.first_order.linear.weight"
    assert saved[linear].count_nonzero() and after[linear].count_nonzero() == 0
    assert "FTRL" in report[linear][1], "its weights follow from the state that isn't taken"


def test_what_is_excluded_or_has_another_type_or_optimizer(
    tiny_set: Path, tmp_path: Path, old: Path, saved: State
) -> None:
    settings = json.loads(json.dumps(SETTINGS))
    settings["tables"]["overrides"] |= {
        "item": {"sharding_types": ["row_wise"], "data_type": "fp16"},
        "topic": {"optimizer": "sgd"},
        "tab": {"embedding_dim": 4},
    }
    config = make_config(tiny_set, tmp_path, **settings)
    before, after, report = start(old, config, exclude=["tab", "model.dense.tower.*"])
    item, topic, tab = (f"model.tables.{name}.weight" for name in ("item", "topic", "tab"))
    assert report[item] == ("converted", "float16, was float32")
    assert same(after[item], saved[item].half())
    assert same(after[topic], saved[topic])
    assert report["optimizer.tables.topic.momentum1"][0] == "dropped"
    assert report[tab] == ("new", "excluded") and same(after[tab], before[tab])
    tower = [name for name in after if name.startswith("model.model.dense.tower.")]
    assert tower and all(same(after[name], before[name]) for name in tower)


def refusals(
    context: WorkerContext, *, folder: str, cases: list[tuple[Config, dict[str, Any]]]
) -> list[str]:
    """The error of each start."""
    found = []
    for config, options in cases:
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            started(context, config=config, folder=folder, options=options)
        found.append(str(caught.value))
    return found


def test_what_is_refused(tiny_set: Path, tmp_path: Path, old: Path) -> None:
    """Each error names what is wrong and the next move."""
    overrides = SETTINGS["tables"]["overrides"]
    narrow = SETTINGS["tables"] | {"overrides": overrides | {"item": {"embedding_dim": 4}}}
    shrunk = grown_set(tiny_set, tmp_path / "shrunk", "grown", item=80)
    buckets = grown_set(tiny_set, tmp_path / "buckets", "grown", duration=25)
    unrelated = grown_set(shrunk, tmp_path / "unrelated", "unrelated", item=81)
    fits = make_config(tiny_set, tmp_path, **SETTINGS)
    cases: list[tuple[Config, dict[str, Any], list[str]]] = [
        (make_config(tiny_set, tmp_path, **SETTINGS | {"tables": narrow}), {}, ["item", "was 8"]),
        (make_config(shrunk, tmp_path, **SETTINGS), {}, ["item", "80", "81", "exclude"]),
        (make_config(buckets, tmp_path, **SETTINGS), {}, ["duration", "25", "20", "exclude"]),
        (make_config(unrelated, tmp_path, **SETTINGS), {}, ["unrelated", "allow_other_data"]),
        (fits, {"exclude": ["*"]}, ["in common"]),
        (fits, {"exclude": ["itemm"]}, ["itemm", "'item'"]),
    ]
    checkpoint = str(old / "checkpoints" / "step-00000004")
    found = run_ranks(refusals, 2, folder=checkpoint, cases=[case[:2] for case in cases])
    assert found[0] == found[1], "on all ranks"
    for message, (_, _, names) in zip(found[0], cases, strict=True):
        for name in ["checkpoint.init_from", *names]:
            assert name in message
    _, _, report = start(old, cases[3][0], allow_other_data=True)
    assert {status for status, _ in report.values()} == {"taken"}


def config_from(data: Path, old: Path, source: str | Mapping[str, Any], **changes: dict) -> Config:
    """A run beside the old one, under the same folder of runs, that starts from `source`."""
    settings = {**SETTINGS, "training": {"max_steps": 12, "log_every_steps": 2}, **changes}
    settings["checkpoint"] = {"init_from": source, "every_steps": 5} | changes.get("checkpoint", {})
    return make_config(data, old.parents[1], **settings)


def test_no_step_no_change(tiny_set: Path, tmp_path: Path, old: Path, saved: State) -> None:
    """With its progress the run is at its end at once, and saves what it took."""
    source = {"source": "test/old@4", "progress": True}
    config = config_from(tiny_set, old, source, training={"max_steps": 4})
    summary = run_ranks(train, 2, config=config, run_folder=tmp_path / "run")[0]
    assert summary["steps"] == 4 and summary["examples"] == 256
    found = tensors(tmp_path / "run")
    assert found.keys() == saved.keys() and all(same(found[n], saved[n]) for n in saved)
    recorded = json.loads((tmp_path / "run" / "init.json").read_text())
    assert recorded["step"] == 4 and recorded["requested"] == "test/old@4"
    assert {tensor["status"] for tensor in recorded["tensors"]} == {"taken"}


def test_a_run_that_began_so_resumes_from_itself_bit_identically(
    tiny_set: Path, tmp_path: Path, old: Path
) -> None:
    config = config_from(tiny_set, old, f"{old}@newest")
    whole, run = tmp_path / "whole", tmp_path / "run"
    run_ranks(train, 2, config=config, run_folder=whole)
    run_ranks(stop_one_rank_at_step, 2, config=config, run_folder=run, step=6)
    assert not same(
        tensors(run)["model.tables.item.weight"], tensors(old)["model.tables.item.weight"]
    )
    gone = config_from(tiny_set, old, "gone/1")  # isn't even looked for
    run_ranks(train, 2, config=gone, run_folder=run)
    a, b = tensors(run), tensors(whole)
    assert a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


@pytest.mark.exhaustive
def test_an_attempt_that_saved_nothing_begins_again_from_the_same_checkpoint(
    tiny_set: Path, tmp_path: Path, old: Path
) -> None:
    """Even if the source has saved another one since."""
    source = tmp_path / "runs" / "source"
    shutil.copytree(old, source)
    config = config_from(tiny_set, old, str(source), training={"max_steps": 3})
    whole, run = tmp_path / "whole", tmp_path / "run"
    run_ranks(train, 2, config=config, run_folder=whole)
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints")
    later = config_from(tiny_set, old, f"{old}", training={"max_steps": 7})
    run_ranks(train, 2, config=later, run_folder=tmp_path / "later")
    shutil.copytree(
        tmp_path / "later" / "checkpoints" / "step-00000007",
        source / "checkpoints" / "step-00000007",
    )
    run_ranks(train, 2, config=config, run_folder=run)
    assert_same(run, whole)


def test_a_damaged_checkpoint_leaves_the_run_folder_usable(
    tiny_set: Path, tmp_path: Path, old: Path
) -> None:
    shutil.copytree(old, tmp_path / "old")
    checkpoint = tmp_path / "old" / "checkpoints" / "step-00000004"
    path = max(checkpoint.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    config, run = config_from(tiny_set, old, str(checkpoint)), tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"checkpoint\.init_from.*safetensors"):
        run_ranks(train, 2, config=config, run_folder=run)
    assert not (run / "init.json").exists()
    config = config_from(tiny_set, old, "test", training={"max_steps": 2})
    assert run_ranks(train, 2, config=config, run_folder=run)[0]["steps"] == 2


def test_a_dry_run_says_what_would_happen_and_writes_nothing(
    tiny_set: Path, tmp_path: Path, old: Path
) -> None:
    run = tmp_path / "run"
    config = config_from(tiny_set, old, {"source": "test/old", "exclude": ["tab"]})
    lines = run_ranks(dry_run, 2, config=config, run_folder=run)[0]
    assert any(line.split() == ["taken", "table", "item", "81", "x", "8"] for line in lines)
    assert any(line.split()[:3] == ["new", "table", "tab"] for line in lines)
    assert any("step-00000004" in line for line in lines) and not run.exists()
    lines = run_ranks(dry_run, 1, config=make_config(tiny_set, tmp_path), run_folder=run)[0]
    assert any("random values" in line for line in lines)
    shutil.copytree(old, run)
    lines = run_ranks(dry_run, 2, config=config, run_folder=run)[0]
    assert any("step-00000004" in line and "ignored" in line for line in lines)


def test_wandb_knows_the_source(tmp_path: Path) -> None:
    """Also in later attempts, which have only the run folder."""
    assert init_settings(tmp_path) == {}
    recorded = {"requested": "a@best", "checkpoint": "/a", "step": 4, "tensors": [], "notes": []}
    (tmp_path / "init.json").write_text(json.dumps(recorded))
    assert init_settings(tmp_path) == {
        "init": {"requested": "a@best", "checkpoint": "/a", "step": 4}
    }
    (tmp_path / "init.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"init\.json"):
        init_settings(tmp_path)
