"""KuaiRand ingest: both layouts agree, bad input is named, features hold up to plain loops."""

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from infnet_dist.config.ingest import KuaiRandIngest
from infnet_dist.contrib.kuairand.source import make_training_set
from infnet_dist.data.checks.footers import check_split
from infnet_dist.data.manifest import read_manifest
from infnet_dist.data.reader import Reader
from infnet_dist.errors import ConfigError, DataError
from infnet_dist.ingest.counters import EventCounts
from infnet_dist.ingest.encode import Vocabulary, quantile_boundaries

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("INFNET_SHARED", REPOSITORY / "../shared"))
SLICE = SHARED / "data" / "kuairand_pure_slice"
VALID_FROM_MS = 1_651_593_600_000  # 2022-05-04 00:00 in Beijing
DAY_MS = 86_400_000
LABELS = "is_click long_view is_like is_follow is_comment is_forward is_hate is_profile_enter"
LABELS = LABELS.split()


def make_raw_logs(seed=0, num_rows=600, num_users=15, num_videos=30):
    """Impressions, users and videos with ties, nulls, and ids that only valid has."""
    rng = np.random.default_rng(seed)
    start = VALID_FROM_MS - 3 * DAY_MS
    # Few distinct times, so that users often meet several videos in one millisecond.
    time_ms = np.sort(start + rng.integers(0, 400, num_rows) * (4 * DAY_MS // 400))
    late = time_ms >= VALID_FROM_MS
    rows = pd.DataFrame(
        {
            "user_id": rng.integers(0, num_users - 2 + 2 * late, num_rows) * 7,
            "video_id": rng.integers(0, num_videos - 3 + 3 * late, num_rows) + 100,
            "time_ms": time_ms,
            "tab": np.where(late & (rng.random(num_rows) < 0.2), 9, rng.integers(0, 4, num_rows)),
            "duration_ms": rng.choice([0, 5000, 18_000, 60_000, 61_500], num_rows),
            "play_time_ms": rng.integers(0, 60_000, num_rows),
        }
    )
    for label in LABELS:
        rows[label] = (rng.random(num_rows) < (0.005 if label == "is_hate" else 0.3)).astype(int)
    users = pd.DataFrame({"user_id": np.arange(num_users - 1) * 7})  # the last one isn't described
    users["user_active_degree"] = rng.choice(["full_active", "UNKNOWN"], len(users))
    users["is_live_streamer"] = rng.choice([-124, 1], len(users))
    users["is_video_author"] = rng.integers(0, 2, len(users))
    for i in range(18):
        users[f"onehot_feat{i}"] = rng.choice([0.0, 1.0, 2.0, np.nan], len(users))
    for column in ("register_days", "follow_user_num", "fans_user_num", "friend_user_num"):
        users[column] = rng.integers(0, 1000, len(users))
    videos = pd.DataFrame({"video_id": np.arange(num_videos) + 100})
    videos["author_id"] = rng.integers(0, 8, num_videos) * 1000
    videos["tag"] = rng.choice(["39", "3,40", "7", None], num_videos)
    videos["music_id"] = rng.integers(0, 4, num_videos)
    videos["video_type"] = rng.choice(["NORMAL", "AD", "UNKNOWN"], num_videos)
    videos["upload_type"] = rng.choice(["Web", "Kmovie"], num_videos)
    videos["music_type"] = rng.choice([4.0, 9.0, np.nan], num_videos)
    return {"rows": rows, "users": users, "videos": videos}


def write_slice(folder, logs, history=()):
    folder.mkdir()
    late = logs["rows"]["time_ms"] >= VALID_FROM_MS
    logs["rows"][~late].to_parquet(folder / "interactions_train.parquet", index=False)
    logs["rows"][late].to_parquet(folder / "interactions_valid.parquet", index=False)
    logs["users"].to_parquet(folder / "users.parquet", index=False)
    logs["videos"].to_parquet(folder / "videos.parquet", index=False)
    ids, flags = pa.list_(pa.int32()), pa.list_(pa.int8())
    types = {"user_id": pa.int32(), "history_len": pa.int32(), "last_time_ms": pa.int64()}
    types["exposed_video_id"] = ids
    types |= {"long_view": flags, "is_like": flags, "long_view_video_id": ids, "like_video_id": ids}
    table = pa.Table.from_pylist(list(history), pa.schema(types))
    pq.write_table(table, folder / "exposure_history.parquet")
    return folder


def write_csv(folder, logs, inner="data"):
    """The published layout: split elsewhere, more columns in another order, a random log."""
    place = folder / inner
    place.mkdir(parents=True)
    rows = logs["rows"].assign(date=20220501, hourmin=1200, is_rand=0)
    rows = rows[sorted(rows.columns)]
    half = len(rows) // 2
    rows[:half].to_csv(place / "log_standard_4_08_to_4_21_pure.csv", index=False)
    rows[half:].to_csv(place / "log_standard_4_22_to_5_08_pure.csv", index=False)
    rows[:9].to_csv(place / "log_random_4_22_to_5_08_pure.csv", index=False)
    logs["users"].to_csv(place / "user_features_pure.csv", index=False)
    logs["videos"].to_csv(place / "video_features_basic_pure.csv", index=False)
    return folder


def ingest(path, folder, **settings):
    config = KuaiRandIngest(source="kuairand", path=path, **settings)
    return make_training_set(config, folder)


def read_split(folder, split):
    return pq.ParquetDataset(folder / split).read()


# ---- synthetic logs


def test_both_layouts_give_the_same_training_set(tmp_path):
    logs = make_raw_logs()
    settings = {"history_length": 5, "row_group_rows": 100, "test_from": "2022-05-05"}
    logs["rows"].loc[580:, "time_ms"] += DAY_MS // 2
    ours = ingest(write_slice(tmp_path / "slice", logs), tmp_path / "a", **settings)
    public = ingest(write_csv(tmp_path / "csv", logs), tmp_path / "b", **settings)
    assert ours.schema_ == public.schema_
    assert list(ours.splits) == list(public.splits) == ["train", "valid", "test"]
    assert sum(split.rows for split in ours.splits.values()) == len(logs["rows"])
    for split in ours.splits:
        assert read_split(tmp_path / "a", split).equals(read_split(tmp_path / "b", split))
    assert read_manifest(tmp_path / "a") == ours
    assert ours.source["path"] == str(tmp_path / "slice")


def test_chunks_and_input_order_do_not_change_the_rows(tmp_path, monkeypatch):
    logs = make_raw_logs()
    ingest(write_csv(tmp_path / "csv", logs, inner="."), tmp_path / "a")
    logs["rows"] = logs["rows"].sort_values(["tab", "time_ms"])
    monkeypatch.setattr("infnet_dist.contrib.kuairand.source.ROWS_PER_CHUNK", 37)
    seen = []
    make_training_set(
        KuaiRandIngest(source="kuairand", path=write_csv(tmp_path / "csv2", logs)),
        tmp_path / "b",
        lambda done, rows: seen.append((done, rows)),
    )
    assert len(seen) > 10
    assert seen[-1] == (600, 600)
    columns = ["time_ms", "user_id", "video_id", "user_impressions", "exposed_video", "like_gap_s"]
    for split in ("train", "valid"):
        a, b = (read_split(tmp_path / x, split).select(columns) for x in "ab")
        # Rows of one (time, user, video) may swap; their features by time are the same.
        assert a.equals(b)


def test_what_happens_in_valid_changes_nothing_in_train(tmp_path):
    logs = make_raw_logs()
    first = ingest(write_csv(tmp_path / "csv", logs), tmp_path / "a")
    late = logs["rows"]["time_ms"] >= VALID_FROM_MS
    logs["rows"].loc[late, LABELS] = 1 - logs["rows"].loc[late, LABELS]
    logs["rows"].loc[late, ["user_id", "video_id", "tab", "duration_ms"]] += 1
    second = ingest(write_csv(tmp_path / "csv2", logs), tmp_path / "b")
    assert first.schema_ == second.schema_
    assert read_split(tmp_path / "a", "train").equals(read_split(tmp_path / "b", "train"))


def test_a_row_s_own_label_changes_none_of_its_features(tmp_path):
    logs = make_raw_logs()
    ingest(write_csv(tmp_path / "csv", logs), tmp_path / "a")
    row = 599  # the last one, so that no later row learns of it
    logs["rows"].loc[row, LABELS] = 1 - logs["rows"].loc[row, LABELS]
    ingest(write_csv(tmp_path / "csv2", logs), tmp_path / "b")
    a, b = (read_split(tmp_path / x, "valid") for x in "ab")
    features = [name for name in a.column_names if not name.startswith("label_")]
    assert a.select(features).equals(b.select(features))
    assert not a.equals(b)


def test_unseen_ids_are_row_0_but_known_attributes_stay(tmp_path):
    logs = make_raw_logs()
    ingest(write_csv(tmp_path / "csv", logs), tmp_path / "set")
    rows = read_split(tmp_path / "set", "valid").to_pandas()
    raw = logs["rows"][logs["rows"]["time_ms"] >= VALID_FROM_MS]
    raw = raw.sort_values(["time_ms", "user_id", "video_id"], kind="stable", ignore_index=True)
    unseen = rows["user_id"] == 13 * 7  # in valid only, described
    assert unseen.any()
    assert (rows["user"][unseen] == 0).all()
    assert (rows["user_impressions"][unseen] == 0).all()
    assert rows["user_click_rate"][unseen].isna().all()
    assert rows["register_days"][unseen].notna().all()
    assert (rows["user"][rows["user_id"] <= 12 * 7] > 0).all()
    undescribed = rows["user_id"] == 14 * 7
    assert rows["register_days"][undescribed].isna().all()
    assert (rows["onehot_feat0"][undescribed] == 0).all()
    assert ((rows["tab"] == 0) == (raw["tab"] == 9)).all()


def test_columns_fit_their_tables_and_rare_signals_make_no_task(tmp_path):
    manifest = ingest(write_csv(tmp_path / "csv", make_raw_logs()), tmp_path / "set")
    schema = manifest.schema_
    tasks = [task.name for task in schema.tasks]
    assert tasks == "click long_view like follow comment forward profile_enter".split()
    features = {feature.column for feature in (*schema.categorical, *schema.dense)}
    assert not any(word in column for column in features for word in ("label", "play", "stay"))
    rows = pa.concat_tables(read_split(tmp_path / "set", split) for split in manifest.splits)
    for feature in schema.categorical:
        ids = rows[feature.column].to_numpy()
        assert 0 <= ids.min() <= ids.max() < schema.table(feature.table).num_embeddings
    for feature in schema.dense:
        assert not np.isnan(rows[feature.column].drop_null().to_numpy()).any()
        if feature.boundaries is not None:
            table = schema.table(feature.name)
            assert table.num_embeddings == len(feature.boundaries) + 2
            assert list(feature.boundaries) == sorted(set(feature.boundaries))
    for sequence in schema.sequences:
        for attribute in sequence.attributes:
            ids = rows[attribute.column].combine_chunks().flatten().to_numpy()
            assert ids.max() < schema.table(attribute.table).num_embeddings
    known = make_raw_logs()["rows"]["duration_ms"] > 0
    assert rows["duration_ms"].null_count == (~known).sum()


def test_watch_time_can_be_a_task(tmp_path):
    logs = make_raw_logs()
    path = write_slice(tmp_path / "raw", logs)
    manifest = ingest(path, tmp_path / "set", watch_time=True)
    task = manifest.schema_.tasks[-1]
    assert (task.name, task.kind) == ("watch_time", "watch_time")
    train = logs["rows"][logs["rows"]["time_ms"] < VALID_FROM_MS]
    assert task.mean_ms == pytest.approx(train["play_time_ms"].mean(), abs=1e-3)
    found = read_split(tmp_path / "set", "train").select([task.column])[task.column]
    assert sorted(found.to_pylist()) == sorted(train["play_time_ms"])
    check_split(tmp_path / "set", manifest, manifest.schema_, split="train", rank=0, world_size=1)
    reader = Reader(
        folder=tmp_path / "set",
        manifest=manifest,
        schema=manifest.schema_,
        split="train",
        batch_size=len(train),
        rank=0,
        world_size=1,
    )
    labels = next(iter(reader.batches())).labels_BK[:, -1]
    assert labels.mean().item() == pytest.approx(1, rel=1e-5)
    logs["rows"].loc[4, "play_time_ms"] = -3
    with pytest.raises(DataError, match=r"play_time_ms.*-3.*user_id"):
        ingest(write_slice(tmp_path / "bad", logs), tmp_path / "bad_set", watch_time=True)


PAST_MS = VALID_FROM_MS - 5 * DAY_MS  # a midnight, two days before the first impression
PAST = [  # user 0 was shown 4 videos in two days, so one every 12 hours; user 7 one in all
    {
        "user_id": 0,
        "history_len": 4,
        "last_time_ms": PAST_MS + 2 * DAY_MS,
        "exposed_video_id": [101, 102, 103],
        "long_view": [1, 0, 1],
        "is_like": [0, 0, 1],
        "long_view_video_id": [110, 101, 103],
        "like_video_id": [111, 112, 103],
    },
    {
        "user_id": 7,
        "history_len": 1,
        "last_time_ms": PAST_MS + 7,
        "exposed_video_id": [101],
        "long_view": [0],
        "is_like": [0],
        "long_view_video_id": [],
        "like_video_id": [104],
    },
]
PAST_TIMES = {101: PAST_MS + DAY_MS, 102: PAST_MS + 3 * DAY_MS // 2, 103: PAST_MS + 2 * DAY_MS}


def test_past_exposures_become_rows_for_what_is_known_of_them(tmp_path):
    folder = write_slice(tmp_path / "raw", make_raw_logs(), PAST)
    without = ingest(folder, tmp_path / "a", watch_time=True)
    manifest = ingest(folder, tmp_path / "b", watch_time=True, past_exposures=3)
    assert not any(task.nullable for task in without.schema_.tasks)
    nullable = {task.name for task in manifest.schema_.tasks if task.nullable}
    tasks = tuple(t.model_copy(update={"nullable": False}) for t in manifest.schema_.tasks)
    assert manifest.schema_.model_copy(update={"tasks": tasks}) == without.schema_
    assert nullable == {task.name for task in manifest.schema_.tasks} - {"long_view", "like"}
    assert read_split(tmp_path / "b", "valid").equals(read_split(tmp_path / "a", "valid"))
    train = read_split(tmp_path / "b", "train")
    assert train.slice(4).equals(read_split(tmp_path / "a", "train"))
    check_split(tmp_path / "b", manifest, manifest.schema_, split="train", rank=0, world_size=1)

    rows = train.slice(0, 4).to_pylist()
    assert [(row["user_id"], row["video_id"], row["time_ms"]) for row in rows] == [
        (7, 101, PAST_MS + 7),
        *((0, video, time_ms) for video, time_ms in PAST_TIMES.items()),
    ]
    assert [(row["label_long_view"], row["label_like"]) for row in rows] == [
        (0, 0),
        (1, 0),
        (0, 0),
        (1, 1),
    ]
    for row in rows:
        assert {row[f"label_{task}"] for task in nullable} == {None}
        assert row["tab"] == row["hour"] == row["weekday"] == 0
    # What surely happened before: user 7's only one, for the first of user 0's.
    assert [row["user_impressions"] for row in rows] == [0, 0, 0, 0]
    assert [row["video_impressions"] for row in rows] == [0, 1, 0, 0]
    # A day's own feedback is not known before midnight; 103 was at midnight exactly.
    video = dict(zip(train["video_id"].to_pylist(), train["video"].to_pylist(), strict=True))
    assert rows[3]["exposed_video"] == [video[102], video[101]]
    assert rows[3]["exposed_action"] == [9, 10]
    assert rows[3]["exposed_gap_s"] == [43_200, 86_400]
    assert rows[3]["long_view_video"] == [video[101], video[110]]
    assert rows[3]["like_video"] == [video[112], video[111]]
    assert rows[3]["like_gap_s"] == [86_400, 86_400]
    tomorrow_ms = PAST_MS + 3 * DAY_MS
    later = [row for row in train.to_pylist() if row["time_ms"] >= tomorrow_ms]
    later = next(row for row in later if row["user_id"] == 0)
    ingest(folder, tmp_path / "c", past_exposures=2)
    newest = [row for row in rows if row["video_id"] != 101 or row["user_id"] == 7]
    assert read_split(tmp_path / "c", "train")["time_ms"].to_pylist()[:4] == [
        *(row["time_ms"] for row in newest),
        train["time_ms"][4].as_py(),
    ]
    assert later["like_video"][-3:] == [video[103], video[112], video[111]]
    assert later["exposed_action"][-3:] == [12, 9, 10]


def test_vocabulary_starts_at_1_and_leaves_nulls_out():
    vocabulary = Vocabulary.fit(pa.array(["b", None, "a", "b"]))
    assert vocabulary.num_embeddings == 3
    assert vocabulary.encode(pa.array(["a", "b", None, "c"])).tolist() == [1, 2, 0, 0]


def test_event_counts_equal_a_loop():
    rng = np.random.default_rng(0)
    keys, times_ms = rng.integers(0, 6, (2, 200)), rng.integers(100, 130, (2, 200))
    weights = rng.integers(0, 5, (200, 2)).astype(float)
    keys[1, :20] = 99  # no event has this key
    found = EventCounts(keys[0], times_ms[0], weights).before(keys[1], times_ms[1] - 10)
    for row in range(200):
        key, time_ms = keys[1, row], times_ms[1, row] - 10
        earlier = (keys[0] == key) & (times_ms[0] < time_ms) & (key != 0)
        assert np.array_equal(found[row], weights[earlier].sum(axis=0))
    nothing = EventCounts(keys[0, :0], times_ms[0, :0], weights[:0])
    assert nothing.before(keys[1], times_ms[1]).tolist() == [[0, 0]] * 200


def test_quantile_boundaries_split_evenly_and_between_values():
    values = np.concatenate([np.arange(1000.0), [np.nan] * 500])
    boundaries = quantile_boundaries(values, 4)
    counts = np.diff(np.searchsorted(np.arange(1000.0), [-1, *boundaries, 1000]))
    assert counts.tolist() == pytest.approx([250] * 4, abs=1)
    assert not set(boundaries) & set(values)
    assert quantile_boundaries(np.array([0.0] * 99 + [7.0]), 8) == (3.5,)
    assert quantile_boundaries(np.array([5.0, 5.0]), 8) == ()
    assert quantile_boundaries(np.array([np.nan]), 8) == ()


# ---- bad input


def break_label(logs):
    logs["rows"]["is_click"] = logs["rows"]["is_click"].astype(float)
    logs["rows"].loc[3, "is_click"] = 2


def break_label_empty(logs):
    logs["rows"]["is_like"] = logs["rows"]["is_like"].astype(float)
    logs["rows"].loc[4, "is_like"] = np.nan


def break_time(logs):
    logs["rows"].loc[5, "time_ms"] = -1


def break_users(logs):
    logs["users"].loc[1, "user_id"] = 0


def drop_column(logs):
    logs["videos"] = logs["videos"].drop(columns="tag")


BROKEN = [
    (break_label, ["is_click", "2 in row 3", "0 or 1"]),
    (break_label_empty, ["is_like", "empty in row 4", "0 or 1"]),
    (break_time, ["time_ms", "-1", "milliseconds"]),
    (break_users, ["user_id 0", "2 rows"]),
    (drop_column, ["column tag", "video_id"]),
]


@pytest.mark.parametrize("write", [write_slice, write_csv])
@pytest.mark.parametrize(("damage", "parts"), BROKEN)
def test_bad_values_are_named_with_file_and_place(tmp_path, write, damage, parts):
    logs = make_raw_logs()
    damage(logs)
    message = error_of(write(tmp_path / "raw", logs), tmp_path)
    for part in [*parts, str(tmp_path / "raw")]:
        assert part in message


def test_wrong_types_are_named(tmp_path):
    logs = make_raw_logs()
    logs["rows"]["tab"] = "main"
    message = error_of(write_slice(tmp_path / "slice", logs), tmp_path)
    assert all(part in message for part in ("interactions_train.parquet", "tab", "main in row 0"))
    message = error_of(write_csv(tmp_path / "csv", logs), tmp_path)
    assert "log_standard" in message
    assert "main" in message


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_slice, "videos.parquet"),
        (write_slice, "interactions_valid.parquet"),
        (write_slice, "exposure_history.parquet"),
        (write_csv, "data/user_features_pure.csv"),
        (write_csv, "data/video_features_basic_pure.csv"),
    ],
)
def test_a_missing_file_is_named(tmp_path, write, name):
    folder = write(tmp_path / "raw", make_raw_logs())
    (folder / name).unlink()
    stem = Path(name).stem.removesuffix("_pure")
    assert stem in error_of(folder, tmp_path)


def test_unreadable_files_are_named(tmp_path):
    folder = write_slice(tmp_path / "raw", make_raw_logs())
    (folder / "users.parquet").write_text("not Parquet")
    assert "users.parquet" in error_of(folder, tmp_path)


def test_no_logs_at_all(tmp_path):
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path}/nowhere" in error_of(tmp_path / "nowhere", tmp_path)
    message = error_of(tmp_path / "empty", tmp_path)
    assert f"{tmp_path}/empty" in message
    assert "log_standard_*.csv" in message


def test_past_exposures_must_be_there_and_past(tmp_path):
    csv = write_csv(tmp_path / "csv", make_raw_logs())
    message = error_of(csv, tmp_path, ConfigError, past_exposures=7)
    assert "ingest.past_exposures" in message and "7" in message
    late = write_slice(
        tmp_path / "late", make_raw_logs(), [PAST[0] | {"last_time_ms": VALID_FROM_MS + 9}]
    )
    message = error_of(late, tmp_path)
    assert "exposure_history.parquet" in message and "ingest.valid_from" in message
    twice = write_slice(tmp_path / "twice", make_raw_logs(), [PAST[0], PAST[0]])
    message = error_of(twice, tmp_path)
    assert "user_id 0" in message and "2 rows" in message


def test_histories_of_unequal_length_are_named(tmp_path):
    event = {"user_id": 7, "history_len": 2, "last_time_ms": 1_650_000_000_000}
    event |= {"exposed_video_id": [100, 101], "long_view": [1], "is_like": [0, 0]}
    event |= {"long_view_video_id": [], "like_video_id": []}
    folder = write_slice(tmp_path / "raw", make_raw_logs(), [event])
    message = error_of(folder, tmp_path)
    assert "exposure_history.parquet" in message and "long_view" in message


def test_splits_without_rows_and_bad_days(tmp_path):
    folder = write_csv(tmp_path / "csv", make_raw_logs())
    message = error_of(folder, tmp_path, valid_from="2022-06-01")
    assert "split valid" in message
    assert "2022-05-01 to 2022-05-04" in message
    message = error_of(folder, tmp_path, ConfigError, valid_from="May 4")
    assert "ingest.valid_from" in message and "'May 4'" in message
    message = error_of(folder, tmp_path, ConfigError, test_from="2022-05-01")
    assert "ingest.test_from" in message and "valid_from" in message
    assert "ingest.min_base_rate" in error_of(folder, tmp_path, min_base_rate=0.9)


def error_of(path, tmp_path, kind=DataError, **settings):
    """The one-line message; nothing may be left at the target."""
    with pytest.raises(kind) as caught:
        ingest(path, tmp_path / "set", **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.glob(".*partial*"))
    return message


# ---- the real slice

needs_slice = pytest.mark.skipif(
    not SLICE.is_dir(), reason="no KuaiRand slice; set INFNET_SHARED to the folder with data/"
)


class RealSlice:
    """The ingested slice beside plain Python views of the raw files."""

    def __init__(self, folder, refresh):
        self.refresh = refresh
        self.manifest = ingest(SLICE, folder, refresh=refresh, past_exposures=50)
        self.schema = self.manifest.schema_
        self.splits = {s: read_split(folder, s) for s in ("train", "valid")}
        past = pc.is_null(self.splits["train"]["label_click"])
        self.past_rows = self.splits["train"].filter(past)
        self.splits["train"] = self.splits["train"].filter(pc.invert(past))
        raw = [pd.read_parquet(SLICE / f"interactions_{s}.parquet") for s in self.splits]
        keys = ["time_ms", "user_id", "video_id"]
        self.rows = pd.concat(raw).sort_values(keys, kind="stable", ignore_index=True)
        self.history = pd.read_parquet(SLICE / "exposure_history.parquet").set_index("user_id")
        self.author = pd.read_parquet(SLICE / "videos.parquet").set_index("video_id")["author_id"]
        self.train = self.rows[self.rows["time_ms"] < VALID_FROM_MS]
        seen = set(self.train["video_id"])
        for column in ("exposed_video_id", "long_view_video_id", "like_video_id"):
            seen.update(np.concatenate(self.history[column].to_list()).tolist())
        self.seen_videos = sorted(int(v) for v in seen)
        self.video_id = {v: i + 1 for i, v in enumerate(self.seen_videos)}

    def past(self, user_id, name):
        """[(time, video, action code)] of a behaviour before the log, oldest first, by hand."""
        if user_id not in self.history.index:
            return []
        entry = self.history.loc[user_id]
        flags = list(zip(entry["long_view"], entry["is_like"], strict=True))
        last_ms, number = int(entry["last_time_ms"]), max(int(entry["history_len"]), 1)
        first_day = pd.Timestamp(self.history["last_time_ms"].min(), unit="ms", tz="Asia/Shanghai")
        gap_ms = max((last_ms - first_day.normalize().value // 1_000_000) // number, 1)
        shown = [
            (last_ms - i * gap_ms, video, 9 + long_view + 2 * like)
            for i, (video, (long_view, like)) in enumerate(
                zip(entry["exposed_video_id"][::-1], flags[::-1], strict=True)
            )
        ][::-1]
        if name == "exposed":
            return shown
        bit = 1 if name == "long_view" else 2
        mine = [event for event in shown if (event[2] - 9) & bit]
        older = list(entry[f"{name}_video_id"])
        assert older[len(older) - len(mine) :] == [video for _, video, _ in mine]
        before = (shown[0][0] if shown else last_ms) - 1
        return [(before, video, 0) for video in older[: len(older) - len(mine)]] + mine

    def known_until_ms(self, row):
        """What the row may know is strictly before: itself, or the last midnight in Beijing."""
        if self.refresh == "live":
            return row["time_ms"]
        midnight = pd.Timestamp(row["time_ms"], unit="ms", tz="Asia/Shanghai").normalize()
        return midnight.value // 1_000_000

    def sample(self, num_rows, seed, earliest=20):
        """Rows spread over both splits, more of them among the earliest, where leaks would hide."""
        rng = np.random.default_rng(seed)
        for split, table in {"past": self.past_rows, **self.splits}.items():
            picked = rng.choice(table.num_rows, num_rows // 2, replace=False)
            if split == "train":
                picked = np.concatenate([np.arange(earliest), picked])
            yield from table.take(pa.array(picked)).to_pylist()


@pytest.fixture(
    scope="module",
    params=[pytest.param(counters, marks=pytest.mark.exhaustive) for counters in ("daily", "live")],
)
def real(request, tmp_path_factory):
    return RealSlice(tmp_path_factory.mktemp("kuairand") / "set", request.param)


@needs_slice
def test_slice_rows_and_split_times(real):
    assert {s: split.rows for s, split in real.manifest.splits.items()} == {
        "train": 154_235 + 817_187,
        "valid": 30_942,
    }
    for split, name in ((real.train, "train"), (real.rows[len(real.train) :], "valid")):
        found = real.splits[name]
        for column in ("time_ms", "user_id", "video_id"):
            assert np.array_equal(found[column], split[column])
        every = split["time_ms"].tolist()
        every += real.past_rows["time_ms"].to_pylist() if name == "train" else []
        assert real.manifest.split(name).time_range_ms == (min(every), max(every))
        for task in ("click", "like", "long_view", "profile_enter"):
            label = f"is_{task}" if task != "long_view" else task
            assert np.array_equal(found[f"label_{task}"], split[label])
    assert real.manifest.split("train").time_range_ms[1] < VALID_FROM_MS
    assert real.manifest.split("valid").time_range_ms[0] >= VALID_FROM_MS
    assert [task.name for task in real.schema.tasks] == [
        "click",
        "long_view",
        "like",
        "profile_enter",
    ]


@needs_slice
def test_slice_vocabulary_comes_from_the_training_window(real):
    assert real.schema.table("video").num_embeddings == len(real.seen_videos) + 1
    for split in real.splits.values():
        expected = [real.video_id.get(v, 0) for v in split["video_id"].to_pylist()]
        assert np.array_equal(split["video"], expected)
    assert 0 in real.splits["valid"]["video"].to_pylist()
    users = set(real.train["user_id"]) | set(real.history.index)
    assert real.schema.table("user").num_embeddings == len(users) + 1
    authors = {real.author[v] for v in real.seen_videos}
    assert real.schema.table("author").num_embeddings == len(authors) + 1
    hours = (real.splits["train"]["time_ms"].to_numpy() // 3_600_000 + 8) % 24
    assert np.array_equal(real.splits["train"]["hour"], hours + 1)


@needs_slice
def test_slice_histories_hold_only_earlier_events(real):
    of_user = dict(list(real.rows.groupby("user_id")))
    signal = {"exposed": None, "long_view": "long_view", "like": "is_like"}
    longest = defaultdict(int)
    for row in real.sample(300, seed=1, earliest=150):
        mine = of_user[row["user_id"]] if row["user_id"] in of_user else real.rows[:0]
        code = 1 + mine["is_click"] + 2 * mine["long_view"] + 4 * mine["is_like"]
        for name, column in signal.items():
            logged = mine if column is None else mine[mine[column] == 1]
            events = [(t, v, code[i]) for i, t, v in logged[["time_ms", "video_id"]].itertuples()]
            events = sorted(real.past(row["user_id"], name) + events, key=lambda event: event[0])
            known = [event for event in events if event[0] < real.known_until_ms(row)]
            newest = known[::-1][:50]
            assert row[f"{name}_video"] == [real.video_id.get(v, 0) for _, v, _ in newest]
            gaps = [max((row["time_ms"] - t) // 1000, 1) for t, _, _ in newest]
            assert row[f"{name}_gap_s"] == gaps
            if name == "exposed":
                assert row["exposed_action"] == [action for _, _, action in newest]
            longest[name] = max(longest[name], len(newest))
    assert longest["exposed"] == 50
    assert min(longest.values()) > 5


@needs_slice
def test_slice_counters_equal_plain_counts(real):
    past = pd.DataFrame(
        [
            (user_id, video, int(last_ms), (action - 9) & 1, (action - 9) >> 1)
            for user_id, last_ms in real.history["last_time_ms"].items()
            for _, video, action in real.past(user_id, "exposed")
        ],
        columns=["user_id", "video_id", "time_ms", "long_view", "is_like"],
    )
    events = pd.concat([past, real.rows])[
        ["user_id", "video_id", "time_ms", "long_view", "is_like", "is_click"]
    ].astype(float)
    events["author_id"] = real.author[events["video_id"]].to_numpy()
    signals = {"click": "is_click", "long_view": "long_view", "like": "is_like"}
    learned = events[events["time_ms"] < VALID_FROM_MS]
    prior = {name: learned[column].mean() for name, column in signals.items()}
    groups = {
        "user": ["user_id"],
        "video": ["video_id"],
        "author": ["author_id"],
        "user_author": ["user_id", "author_id"],
    }
    nonzero = defaultdict(int)
    events = events.reset_index(drop=True)
    by_key = {name: events.groupby(columns).indices for name, columns in groups.items()}
    for row in real.sample(400, seed=3):
        ids = row | {"author_id": real.author[row["video_id"]]}
        for name, keys in groups.items():
            key = tuple(float(ids[k]) for k in keys)
            mine = events.iloc[by_key[name].get(key if len(key) > 1 else key[0], [])]
            mine = mine[mine["time_ms"] < real.known_until_ms(row)]
            assert row[f"{name}_impressions"] == len(mine)
            for signal, column in signals.items():
                known = mine[column].dropna()
                rate = row[f"{name}_{signal}_rate"]
                if known.empty:
                    assert rate is None
                else:
                    expected = (known.sum() + 10 * prior[signal]) / (len(known) + 10)
                    assert rate == pytest.approx(expected, rel=1e-5)
                    nonzero[name] += 1
    assert min(nonzero[name] for name in groups) > 10
