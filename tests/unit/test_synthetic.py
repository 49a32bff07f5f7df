"""The planted truth: calibrated labels, causal histories, and an optimum out of linear reach."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.data.manifest import arrow_type, read_manifest, same_type
from infnet_dist.errors import DataError
from infnet_dist.ingest.synthetic import generate, make_training_set
from infnet_dist.ingest.synthetic.population import build_world
from infnet_dist.ingest.synthetic.world import MATCH, TASKS

ROWS = 60_000
ATTRIBUTES = ("item", "author", "topic")


def small(**changes) -> SyntheticIngest:
    settings = {"num_rows": 3_000, "num_users": 50, "num_items": 60, "num_authors": 9}
    return SyntheticIngest(source="synthetic", **(settings | changes))


@pytest.fixture(scope="module")
def config() -> SyntheticIngest:
    return SyntheticIngest(
        source="synthetic",
        num_rows=ROWS,
        num_users=500,
        num_items=500,
        num_authors=60,
        history_length=7,
        rows_per_part=20_000,
        row_group_rows=4_096,
        seed=3,
    )


@pytest.fixture(scope="module")
def folder(config: SyntheticIngest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    make_training_set(config, folder)
    return folder


@pytest.fixture(scope="module")
def splits(folder: Path) -> dict[str, pa.Table]:
    """Each split's rows in the order in which the manifest names its parts."""
    return {
        name: pa.concat_tables(pq.read_table(folder / part.file) for part in split.parts)
        for name, split in read_manifest(folder).splits.items()
    }


@pytest.fixture(scope="module")
def rows(splits: dict[str, pa.Table]) -> pa.Table:
    """The whole log."""
    return pa.concat_tables(splits.values()).combine_chunks()


def column(rows: pa.Table, name: str) -> np.ndarray:
    return rows[name].to_numpy()


def log_odds(rows: pa.Table, task: str) -> np.ndarray:
    truth = column(rows, f"truth_{task}").astype(np.float64)
    return np.log(truth / (1 - truth))


def test_same_seed_same_bytes(tmp_path: Path):
    first = make_training_set(small(seed=5), tmp_path / "a")
    again = make_training_set(small(seed=5), tmp_path / "b")
    other = make_training_set(small(seed=6), tmp_path / "c")
    assert first.content_hash == again.content_hash != other.content_hash
    for split in first.splits.values():
        for part in split.parts:
            name = part.file
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
            assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_manifest_tells_what_was_written(folder, config, splits):
    manifest = read_manifest(folder)
    assert manifest.source == config.model_dump(mode="json")
    assert {name: rows.num_rows for name, rows in splits.items()} == {
        "train": 48_000,
        "valid": 6_000,
        "test": 6_000,
    }
    assert len(manifest.splits["train"].parts) == 3
    for name, rows in splits.items():
        time = column(rows, "time_ms")
        assert manifest.splits[name].time_range_ms == (time.min(), time.max())
        for task in TASKS:
            rate = column(rows, task).mean()
            assert manifest.splits[name].base_rates[task] == pytest.approx(rate)


def test_columns_and_ids_fit_the_schema(folder, splits, config):
    schema = read_manifest(folder).schema_
    assert [sequence.name for sequence in schema.sequences] == list(TASKS)
    read = [(f.column, f.table) for f in schema.categorical]
    read += [(a.column, a.table) for s in schema.sequences for a in s.attributes]
    for rows in splits.values():
        for name in (*schema.columns, schema.time_column):
            assert same_type(rows.schema.field(name).type, arrow_type(schema, name)), name
            assert rows[name].null_count == 0
        for name, table in read:
            ids = rows[name].combine_chunks()
            ids = ids.flatten() if pa.types.is_list(ids.type) else ids
            ids = ids.to_numpy()
            assert ids.min() >= 1, f"{name}: 0 is the unknown id"
            assert ids.max() < schema.table(table).num_embeddings
        for sequence in schema.sequences:
            lengths = [
                np.diff(rows[name].combine_chunks().offsets.to_numpy())
                for name in (*(a.column for a in sequence.attributes), sequence.time_gap_column)
            ]
            assert all(np.array_equal(lengths[0], other) for other in lengths)
            assert lengths[0].max() == sequence.max_length == config.history_length


def test_dense_statistics_come_from_train_alone(folder, splits):
    duration, item_age = read_manifest(folder).schema_.dense
    age = column(splits["train"], "item_age_days").astype(np.float64)
    assert (item_age.mean, item_age.std) == pytest.approx((age.mean(), age.std()), rel=1e-9)
    assert item_age.mean != pytest.approx(column(splits["valid"], "item_age_days").mean(), rel=1e-3)
    seconds = np.sort(column(splits["train"], "duration_s"))
    assert list(duration.boundaries) == sorted(set(duration.boundaries))
    for number, boundary in enumerate(duration.boundaries, start=1):
        share = number / generate.NUM_DURATION_BUCKETS
        assert boundary == seconds[int(np.ceil(share * len(seconds))) - 1]
    table = read_manifest(folder).schema_.table("duration")
    assert table.num_embeddings == len(duration.boundaries) + 2


def test_labels_follow_the_truth(rows):
    for task in TASKS:
        label, truth = column(rows, task), column(rows, f"truth_{task}").astype(np.float64)
        order = np.argsort(truth)
        for part in [order, *np.array_split(order, 10)]:
            error = np.sqrt((truth[part] * (1 - truth[part])).sum()) / len(part)
            assert abs(label[part].mean() - truth[part].mean()) < 4 * error, task


def test_labels_of_a_row_are_drawn_independently(rows):
    noise = [column(rows, t) - column(rows, f"truth_{t}").astype(np.float64) for t in TASKS]
    correlation = np.corrcoef(noise)
    assert np.abs(correlation - np.eye(len(TASKS))).max() < 4 / np.sqrt(ROWS)


def test_base_rates_differ(rows):
    click, like, long_view = (column(rows, task).mean() for task in TASKS)
    assert 0.02 < like < 0.09 < 0.11 < long_view < 0.22 < 0.25 < click < 0.40


def test_tasks_are_correlated_and_in_conflict(rows):
    click, long_view = log_odds(rows, "click"), log_odds(rows, "long_view")
    assert 0.1 < np.corrcoef(click, long_view)[0, 1] < 0.9
    topics, duration = column(rows, "topic_id"), np.log(column(rows, "duration_s"))
    apart = click - long_view
    assert np.corrcoef(apart, duration)[0, 1] > 0.3
    apart = apart - np.polyval(np.polyfit(duration, apart, 1), duration)
    by_topic = [apart[topics == topic].mean() for topic in np.unique(topics)]
    assert np.std(by_topic) > 0.5, "bait topics should part the tasks, beyond their durations"


def test_time_increases_through_parts_and_splits(folder, rows):
    manifest = read_manifest(folder)
    assert np.all(np.diff(column(rows, "time_ms")) > 0)
    ranges = [manifest.splits[name].time_range_ms for name in ("train", "valid", "test")]
    assert ranges[0][1] < ranges[1][0] and ranges[1][1] < ranges[2][0]


@pytest.mark.parametrize("task", TASKS)
def test_histories_are_the_last_earlier_events(rows, task, config):
    users, time = column(rows, "user_id"), column(rows, "time_ms")
    present, counts = np.unique(users, return_counts=True)
    chosen = present[np.argsort(counts)[[0, len(present) // 2, -1]]]
    ids = {name: column(rows, f"{name}_id") for name in ATTRIBUTES}
    checked = 0
    for user in chosen:
        own = np.flatnonzero(users == user)
        written = {name: rows[f"{task}_{name}_ids"].take(own).to_pylist() for name in ATTRIBUTES}
        gaps = rows[f"{task}_gaps_s"].take(own).to_pylist()
        events: list[int] = []
        for place, row in enumerate(own):
            last = events[::-1][: config.history_length]
            for name in ATTRIBUTES:
                assert written[name][place] == ids[name][last].tolist()
            expected = np.maximum((time[row] - time[last]) // 1000, 1)
            assert gaps[place] == expected.tolist()
            checked += len(last)
            if rows[task][row].as_py():
                events.append(int(row))
    assert checked > 100


def test_favourites_drift_and_histories_show_it(config, rows):
    world = build_world(config)
    users, topics = column(rows, "user_id"), column(rows, "topic_id")
    time = column(rows, "time_ms")
    now = world.is_favourite(users, topics, time)[:, 0]
    first_day = world.is_favourite(users, topics, np.full_like(time, time[0]))[:, 0]
    late = np.arange(ROWS) >= ROWS // 2
    assert np.mean(now[late] != first_day[late]) > 0.05
    gone = late & first_day & ~now
    kept = late & first_day & now
    lists = rows["click_topic_ids"].combine_chunks()
    owner = np.repeat(np.arange(ROWS), np.diff(lists.offsets.to_numpy()))
    hits = np.bincount(owner, lists.flatten().to_numpy() == topics[owner], ROWS)
    assert hits[kept].mean() > 2 * hits[gone].mean()
    odds = log_odds(rows, "click")
    assert odds[kept].mean() - odds[gone].mean() > 1.5


def test_favourites_stay_for_a_while(config):
    world = build_world(config)
    users = np.arange(1, config.num_users + 1)
    grid = np.linspace(0, config.num_rows * world.step_ms, 200).astype(np.int64)
    start = int(world.impressions(0, 1).times_ms[0])
    seen = np.stack([world.favourites(users, np.full_like(users, start + at)) for at in grid])
    changes = (np.diff(seen, axis=0) != 0).sum(axis=(0, 2))
    assert 0 < changes.mean() < 10
    assert len(np.unique(seen)) == config.num_topics


def test_own_favourites_count_for_their_task_alone():
    world = build_world(small(own_favourites=True))
    rows = world.impressions(0, 3_000)
    favourites = world.favourites(rows.users, rows.times_ms)
    assert favourites.shape == (3_000, 2 * len(TASKS))
    nobody_s = dataclasses.replace(world, favourites_of=np.zeros_like(world.favourites_of))
    raised = world.logits(rows) - nobody_s.logits(rows)
    topics = world.item_topic[rows.items]
    for k in range(len(TASKS)):
        own = [topic in favourites[i, 2 * k : 2 * k + 2] for i, topic in enumerate(topics)]
        assert 0.1 < np.mean(own) < 0.6
        np.testing.assert_allclose(raised[:, k], np.where(own, MATCH[k], 0), atol=1e-9)


def test_log_comes_in_bounded_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "CHUNK_ROWS", 700)
    config = small()
    chunks = list(generate.log_chunks(build_world(config), config))
    assert [chunk.num_rows for chunk in chunks] == [700, 700, 700, 700, 200]
    calls: list[tuple[int, int]] = []
    make_training_set(config, tmp_path / "set", lambda *now: calls.append(now))
    assert calls == [(done, 3_000) for done in (700, 1_400, 2_100, 2_800, 3_000)]
    parts = [pq.read_table(tmp_path / "set" / name) for name in ("train", "valid", "test")]
    written = pa.concat_tables(parts).combine_chunks()
    assert written == pa.concat_tables(chunks).cast(written.schema).combine_chunks()


def test_chunks_are_at_most_50k_rows_and_lazy():
    assert generate.CHUNK_ROWS <= 50_000
    config = small(num_rows=1_000_000_000)
    chunk = next(generate.log_chunks(build_world(config), config))
    assert chunk.num_rows == generate.CHUNK_ROWS


def test_a_chunk_depends_on_its_own_place_alone():
    config = small()
    world, again = build_world(config), build_world(config)
    world.impressions(0, 500)
    late, alone = world.impressions(1_000, 500), again.impressions(1_000, 500)
    for field in dataclasses.fields(late):
        assert np.array_equal(getattr(late, field.name), getattr(alone, field.name))
    assert not np.array_equal(late.users, world.impressions(0, 500).users)
    assert world.impressions(500, 500).times_ms[-1] < late.times_ms[0]


def test_no_test_split_without_a_share(tmp_path):
    manifest = make_training_set(small(test_share=0.0, valid_share=0.2), tmp_path / "set")
    assert {name: split.rows for name, split in manifest.splits.items()} == {
        "train": 2_400,
        "valid": 600,
    }


@pytest.mark.parametrize("changes", [{"num_rows": 100, "num_users": 2}, {"num_authors": 1}])
@pytest.mark.parametrize("topics", [{"num_topics": 2}, {"num_topics": 40}])
def test_tiny_worlds(tmp_path, changes, topics):
    config = small(**{"num_items": 3, "valid_share": 0.0001, **changes, **topics})
    manifest = make_training_set(config, tmp_path / "set")
    assert manifest.splits["valid"].rows == 1
    assert sum(split.rows for split in manifest.splits.values()) == config.num_rows


def test_an_existing_folder_stays_untouched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"data\.path"):
        make_training_set(small(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def linear_auc(train: pa.Table, valid: pa.Table, boundaries: tuple[float, ...]) -> float:
    """AUC on valid of a logistic regression over one-hot ids, without histories."""
    names = [f"{name}_id" for name in ("user", *ATTRIBUTES, "age_group", "tab")]

    def ids(rows: pa.Table) -> np.ndarray:
        bucket = np.searchsorted(boundaries, column(rows, "duration_s"))
        return np.stack([*(column(rows, name) for name in names), bucket], axis=1)

    encoder = OneHotEncoder(handle_unknown="ignore").fit(ids(train))
    model = LogisticRegression(C=0.3, max_iter=60)
    model.fit(encoder.transform(ids(train)), column(train, "click"))
    scores = model.decision_function(encoder.transform(ids(valid)))
    return float(roc_auc_score(column(valid, "click"), scores))


def test_optimum_is_out_of_linear_reach(folder, splits):
    boundaries = read_manifest(folder).schema_.dense[0].boundaries
    label = column(splits["valid"], "click")
    optimum = roc_auc_score(label, column(splits["valid"], "truth_click"))
    linear = linear_auc(splits["train"], splits["valid"], boundaries)
    assert 0.79 < optimum < 0.87
    assert 0.60 < linear < optimum - 0.05


def test_recent_clicks_tell_more_than_the_user_id(splits):
    valid = splits["valid"]
    lists = valid["click_topic_ids"].combine_chunks()
    owner = np.repeat(np.arange(valid.num_rows), np.diff(lists.offsets.to_numpy()))
    same = lists.flatten().to_numpy() == column(valid, "topic_id")[owner]
    hits = np.bincount(owner, same, valid.num_rows)
    label = column(valid, "click")
    train_users = column(splits["train"], "user_id")
    clicks = np.bincount(train_users, column(splits["train"], "click"), 501)
    rate = clicks / np.maximum(np.bincount(train_users, minlength=501), 1)
    by_user = roc_auc_score(label, rate[column(valid, "user_id")])
    assert roc_auc_score(label, hits) > by_user + 0.05


def test_extra_fields_are_fixed_hashes_of_item_and_user(tmp_path):
    config = SyntheticIngest(
        source="synthetic", num_rows=4_000, num_users=50, num_items=60, extra_fields=(7, 1_000)
    )
    manifest = make_training_set(config, tmp_path / "set")
    rows = pq.ParquetDataset(tmp_path / "set" / "train").read().to_pandas()
    for number, (owner, num_ids) in enumerate((("item_id", 7), ("user_id", 1_000))):
        column = f"extra_{number}_id"
        assert manifest.schema_.table(f"extra_{number}").num_embeddings == num_ids + 1
        assert rows[column].between(1, num_ids).all()
        assert (rows.groupby(owner)[column].nunique() == 1).all()
    assert rows["extra_0_id"].nunique() == 7
    assert rows["extra_1_id"].nunique() > 40
    plain = make_training_set(config.model_copy(update={"extra_fields": ()}), tmp_path / "plain")
    assert plain.splits["train"].base_rates == manifest.splits["train"].base_rates
