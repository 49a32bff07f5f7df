"""Ids dropped to 0 in training: which, how many, and that nothing but their place decides it."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.data.manifest import (
    FeatureStatistics,
    HashedTable,
    Ingested,
    Manifest,
    SplitStatistics,
    Statistics,
    read_manifest,
)
from infnet_dist.data.reader import Reader
from infnet_dist.data.unknown_ids import UnknownIds, default_rates, unlearned_ids
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.training.setup import TrainingSetup, unknown_id_rates
from tests.runs import make_config, make_tiny_set


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "tiny"
    return make_tiny_set(folder, num_rows=1_500, num_users=40)


def read(
    folder: Path,
    unknown_ids: UnknownIds | None,
    *,
    world_size: int = 1,
    batch_size: int = 64,
    epoch: int = 0,
    consumed: tuple[tuple[int, int], ...] = (),
) -> dict[int, dict[str, list[int]]]:
    """The ids of each row, by its place in the epoch's order and key."""
    manifest, found = read_manifest(folder), {}
    for rank in range(world_size):
        reader = Reader(
            folder,
            manifest,
            manifest.schema_,
            "train",
            batch_size,
            rank,
            world_size,
            seed=3,
            shuffle_rows=400,
            **({"unknown_ids": unknown_ids} if unknown_ids else {}),
        )
        for batch in reader.batches(epoch, consumed):
            found |= ids_by_place(batch)
    return found


def ids_by_place(batch: RankingBatch) -> dict[int, dict[str, list[int]]]:
    places = [place for interval in batch.rows.intervals for place in range(*interval)]
    jagged = batch.sparse_features.to_dict()
    lists = {
        key: torch.split(values.values(), values.lengths().tolist())
        for key, values in jagged.items()
    }
    return {place: {key: lists[key][i].tolist() for key in lists} for i, place in enumerate(places)}


ROWS = 1_200
RATES = {"user": 0.3, "item": 0.2, "author": 0.1, "duration": 0.2}
DROPS = UnknownIds(RATES, seed=3)


def test_the_same_ids_for_any_workers_and_wherever_a_run_was_resumed(tiny_set: Path) -> None:
    alone = read(tiny_set, DROPS)
    assert len(alone) == ROWS
    assert read(tiny_set, DROPS, world_size=3, batch_size=37) == alone
    consumed = ((0, 300), (500, 555))
    resumed = read(tiny_set, DROPS, world_size=2, consumed=consumed)
    left = set(range(300, 500)) | set(range(555, ROWS))
    assert resumed == {place: alone[place] for place in left}
    assert read(tiny_set, UnknownIds(RATES, seed=4)) != alone


def test_the_share_that_is_asked_for_of_each_table_and_nothing_else(tiny_set: Path) -> None:
    whole, dropped = read(tiny_set, None), read(tiny_set, DROPS)
    schema = read_manifest(tiny_set).schema_
    masks: dict[str, np.ndarray] = {}
    for feature in schema.table_features:
        before, after = (
            np.concatenate([ids[place][feature.key] for place in range(ROWS)])
            for ids in (whole, dropped)
        )
        assert len(before) == len(after)
        masks[feature.key] = changed = before != after
        assert np.all(after[changed] == 0)
        rate = RATES.get(feature.table, 0.0)
        five_sigma = 5 * np.sqrt(rate * (1 - rate) / len(before))
        assert changed.mean() == pytest.approx(rate * np.mean(before != 0), abs=five_sigma + 1e-9)
    assert masks["author"].sum() > 0 and masks["click.author"].sum() > 0
    assert np.all(masks["item"][masks["author"]]), "with its item: one number for all of a row"
    assert np.all(masks["click.item"][masks["click.author"]]), "and of an item of a history"
    later = read(tiny_set, DROPS, epoch=1)
    users = [np.array([ids[p]["user"][0] for p in range(ROWS)]) == 0 for ids in (dropped, later)]
    assert (users[0] & users[1]).mean() == pytest.approx(0.09, abs=0.04), "each epoch anew"


def test_items_of_a_list_are_dropped_one_by_one(tiny_set: Path) -> None:
    whole, dropped = read(tiny_set, None), read(tiny_set, UnknownIds({"item": 0.5}))
    pairs = [
        (row["click.item"], dropped[place]["click.item"])
        for place, row in whole.items()
        if len(row["click.item"]) == 6
    ]
    counts = np.array([sum(x != y for x, y in zip(*pair, strict=True)) for pair in pairs])
    assert counts.var() == pytest.approx(1.5, rel=0.35), "binomial, not all or none"
    first = np.array([a[0] != b[0] for a, b in pairs])
    second = np.array([a[1] != b[1] for a, b in pairs])
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_evaluation_drops_none_and_training_as_asked(tiny_set: Path, tmp_path: Path) -> None:
    setup = setup_of(tiny_set, tmp_path, unknown_id_rate=0.1)
    batches = list(setup.reader("valid", shuffle=False).batches())
    ids = torch.cat([b.sparse_features["item"].values() for b in batches])
    assert ids.count_nonzero() == len(ids) == 150
    batches = list(setup.reader("train", shuffle=True).batches())
    ids = torch.cat([b.sparse_features["item"].values() for b in batches])
    assert 0.05 * len(ids) < (ids == 0).sum() < 0.15 * len(ids)


def setup_of(data: Path, folder: Path, **tables: object) -> TrainingSetup:
    config = make_config(data, folder, tables=tables)
    manifest = read_manifest(data)
    context = WorkerContext(0, 1, 1, torch.device("cpu"))
    return TrainingSetup(config, context, manifest, manifest.schema_, sharded=None)  # type: ignore


def test_which_tables(tiny_set: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_set)
    tables = {t.name: t for t in manifest.schema_.tables}
    tables["author"] = tables["author"].model_copy(update={"raw": True})
    hashed = {"user": HashedTable(values=9, sharing=0.0, indistinct=0.0)}
    manifest = manifest.model_copy(
        update={
            "schema_": manifest.schema_.model_copy(update={"tables": tuple(tables.values())}),
            "ingested": Ingested.model_construct(hashed=hashed),
        }
    )
    overrides = {"item": {"unknown_id_rate": 0.0}, "author": {"unknown_id_rate": 0.2}}
    config = make_config(
        tiny_set, tmp_path, tables={"unknown_id_rate": 0.01, "overrides": overrides}
    )
    rates = unknown_id_rates(config, manifest, manifest.schema_)
    assert rates.pop("user") == 0.0, "hashed: a new value has a row of its own"
    assert rates.pop("item") == 0.0, "as the run file says"
    assert rates.pop("author") == 0.2, "as the run file says, hashed or not"
    assert set(rates.values()) == {0.01}
    in_place = manifest.model_copy(update={"source": {"source": "petastorm"}})
    found = unknown_id_rates(config, in_place, in_place.schema_)
    assert set((found | {"author": 0.0}).values()) == {0.0}


def with_coverage(manifest: Manifest, **coverage: tuple[float, float]) -> Manifest:
    """The manifest with these shares of known ids in train and valid, by key."""

    def split(i: int) -> SplitStatistics:
        features = {
            key: FeatureStatistics(
                mean_length=1, p99_length=1, coverage=both[i], distinct=9, top_share=0.1
            )
            for key, both in coverage.items()
        }
        return SplitStatistics(rows=100, features=features)

    splits = {"train": split(0), "valid": split(1)}
    return manifest.model_copy(
        update={"statistics": Statistics(splits=splits, tables={}, drift={})}
    )


def test_by_default_tables_with_ids_that_train_never_saw(tiny_set: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_set)
    assert default_rates(manifest, manifest.schema_) == {}
    coverage = {"item": (1.0, 0.24), "author": (1.0, 0.62), "user": (1.0, 0.8), "tab": (0.99, 0.9)}
    needy = with_coverage(manifest, **coverage)
    rates = unknown_id_rates(make_config(tiny_set, tmp_path), needy, needy.schema_)
    assert {table: rate for table, rate in rates.items() if rate} == {
        "item": pytest.approx(0.05),
        "author": pytest.approx(0.025),  # half as many are unknown
    }, "not the user's, and not where train has unknown ids itself"
    of_logs = needy.model_copy(
        update={
            "schema_": needy.schema_.model_copy(update={"group_column": "group"}),
            "source": {"source": "logs", "user": "user_id"},
        }
    )
    assert default_rates(of_logs, of_logs.schema_).keys() == {"item", "author"}
    off = make_config(tiny_set, tmp_path, tables={"unknown_id_rate": 0.0})
    assert set(unknown_id_rates(off, needy, needy.schema_).values()) == {0.0}


def test_unknown_ids_that_were_never_trained_are_named(
    tiny_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = read_manifest(tiny_set)
    manifest = with_coverage(manifest, item=(1.0, 0.24), author=(0.98, 0.5), user=(1.0, 0.99))
    schema = manifest.schema_
    assert unlearned_ids(manifest, schema, {}, "valid") == {"item": ("item", pytest.approx(0.76))}
    assert unlearned_ids(manifest, schema, {"item": 0.01}, "valid") == {}
    assert unlearned_ids(read_manifest(tiny_set), schema, {}, "valid") == {}
    for rate, lines in ((0.01, 0), (0.0, 1)):
        setup = setup_of(tiny_set, tmp_path, unknown_id_rate=rate)
        setup.manifest = manifest
        with caplog.at_level(logging.WARNING, logger="infnet_dist"):
            setup.warn_of_unlearned_ids("valid")
        assert len(caplog.records) == lines
    assert "76 %" in caplog.text and "'item'" in caplog.text and "unknown_id_rate" in caplog.text


def test_a_resumed_run_keeps_its_rates_though_the_set_changed(
    tiny_set: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(tiny_set)
    schema, config = manifest.schema_, make_config(tiny_set, tmp_path)
    before = with_coverage(manifest, item=(1.0, 0.24), author=(1.0, 0.62))
    begun = unknown_id_rates(config, before, schema)
    assert begun["item"] == pytest.approx(0.05) and begun["author"] == pytest.approx(0.025)
    grown = with_coverage(manifest, item=(1.0, 0.96), author=(1.0, 0.24))
    assert unknown_id_rates(config, grown, schema)["author"] == pytest.approx(0.05)
    assert unknown_id_rates(config, grown, schema, begun) == begun
    assert set(unknown_id_rates(config, manifest, schema, dict.fromkeys(begun, 0.0)).values()) == {
        0
    }
    asked = {"overrides": {"author": {"unknown_id_rate": 0.3}}}
    config = make_config(tiny_set, tmp_path, tables=asked)
    assert unknown_id_rates(config, grown, schema, begun) == begun | {"author": 0.3}
    config = make_config(tiny_set, tmp_path, tables={"unknown_id_rate": 0.1})
    assert set(unknown_id_rates(config, grown, schema, begun).values()) == {0.1}


def test_a_change_of_the_rate_is_logged_when_a_run_is_resumed(
    tiny_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = setup_of(tiny_set, tmp_path, unknown_id_rate=0.02)
    with caplog.at_level(logging.WARNING, logger="infnet_dist"):
        for rates in (None, setup.unknown_id_rates):
            setup.resume_unknown_id_rates(rates)
        assert not caplog.records
        setup.resume_unknown_id_rates(dict.fromkeys(setup.unknown_id_rates, 0.0))
    assert "0.0 " in caplog.text and "0.02" in caplog.text
