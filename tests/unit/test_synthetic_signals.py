"""Signals of synthetic logs: the truth is that of plain loops over the written columns."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.data.checks.footers import check_split
from infnet_dist.data.manifest import MANIFEST, read_manifest, write_manifest
from infnet_dist.errors import DataError
from infnet_dist.features.hashing import cross_ids
from infnet_dist.ingest.synthetic import make_training_set
from infnet_dist.ingest.synthetic.population import BASE_RATES, build_world
from infnet_dist.ingest.synthetic.signals import CityAndDevice, Content, Interests, Tags
from infnet_dist.ingest.synthetic.world import TASKS
from infnet_dist.ingest.writing.existing import training_set_is_current

ALL = {
    "num_tags": 40,
    "num_interests": 30,
    "content_dim": 6,
    "num_cities": 12,
    "num_devices": 10,
    "sample_weights": True,
}


def settings(**changes) -> SyntheticIngest:
    given = {"num_rows": 20_000, "num_users": 3_000, "num_items": 3_000, "num_authors": 50}
    return SyntheticIngest(source="synthetic", **(given | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals") / "set"
    make_training_set(settings(**ALL), folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    """The whole log."""
    parts = [p for s in read_manifest(folder).splits.values() for p in s.parts]
    return pa.concat_tables([pq.read_table(folder / p.file) for p in parts]).combine_chunks()


def log_odds(rows):
    truth = np.stack([rows[f"truth_{task}"].to_numpy() for task in TASKS], 1).astype(np.float64)
    return np.log(truth / (1 - truth))


def loop_effects(world, row):
    """The term of each signal, from the columns of one row."""
    tags, interests, content, pair = world.signals
    assert (type(tags), type(interests)) == (Tags, Interests)
    assert (type(content), type(pair)) == (Content, CityAndDevice)
    terms = [np.zeros(len(TASKS)) for _ in range(4)]
    for tag in row["tag_ids"]:
        terms[0] += tags.effect[tag] / len(row["tag_ids"])
    for interest, weight in zip(row["interest_ids"], row["interest_weights"], strict=True):
        terms[1] += weight * interests.effect[interest]
    for number, effect in zip(row["content"] or [], content.effect, strict=bool(row["content"])):
        terms[2] += number * effect
    terms[3] += pair.effect[row["city_id"], row["device_id"]]
    return terms


def test_the_truth_is_that_of_the_written_columns(rows):
    """It differs from that of the same world without signals by these terms and the intercepts."""
    world = build_world(settings(**ALL))
    bare = dataclasses.replace(world, signals=())
    impressions = [world.impressions(first, n) for first, n in ((0, 20_000),)]
    (found,) = impressions
    assert found.users.tolist() == rows["user_id"].to_pylist()
    without = bare.logits(found)
    logits = log_odds(rows)
    for place in [*range(0, 20_000, 501), 19_999]:
        terms = loop_effects(world, rows.slice(place, 1).to_pylist()[0])
        np.testing.assert_allclose(logits[place], without[place] + sum(terms), atol=1e-4)


def test_each_signal_is_as_strong_and_the_rates_stay(rows):
    world = build_world(settings(**ALL))
    found = world.impressions(0, 20_000)
    for signal in world.signals:
        strength = signal.logits(found).std(0)
        assert 0.3 < strength.min() and strength.max() < 0.8
    np.testing.assert_allclose([rows[t].to_numpy().mean() for t in TASKS], BASE_RATES, rtol=0.1)
    pair = world.signals[3].effect[1:, 1:]
    np.testing.assert_allclose(pair.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(pair.mean(1), 0, atol=1e-9)


def test_columns_and_schema(folder, rows):
    manifest = read_manifest(folder)
    schema = manifest.schema_
    tags, interests = schema.bags
    assert (tags.pooling, tags.max_length, tags.weight_column) == ("mean", 5, None)
    assert (interests.pooling, interests.max_length) == ("sum", 4)
    assert interests.weight_column == "interest_weights"
    assert [f.name for f in schema.categorical][-2:] == ["city", "device"]
    assert schema.vectors[0].dim == 6 and schema.weight_column == "sample_weight"
    for split in manifest.splits:
        check_split(folder, manifest, schema, split=split, rank=0, world_size=1)
    lengths = {
        name: {len(x) for x in rows[name].to_pylist()} for name in ("tag_ids", "interest_ids")
    }
    assert lengths == {"tag_ids": set(range(6)), "interest_ids": set(range(1, 5))}
    assert 0.05 < rows["content"].null_count / len(rows) < 0.15
    weights = rows["sample_weight"].to_numpy()
    assert set(weights) == {0.0, 0.5, 1.0, 2.0} and 0.03 < (weights == 0).mean() < 0.07
    assert rows["city_id"].to_numpy().min() == 1 and rows["city_id"].to_numpy().max() == 12
    assert len(np.unique(rows["device_id"].to_numpy())) == 10
    # Of one item all rows have the same tags and content; of one user the same interests.
    for owner, name in (
        ("item_id", "tag_ids"),
        ("item_id", "content"),
        ("user_id", "interest_ids"),
    ):
        pairs = {
            (o, str(v))
            for o, v in zip(rows[owner].to_pylist(), rows[name].to_pylist(), strict=True)
        }
        assert len(pairs) == len({o for o, _ in pairs})


@pytest.mark.parametrize("key", ALL)
def test_a_signal_leaves_all_other_columns_as_they_are(key, tmp_path, rows):
    """Labels and histories differ, since the truth does; each signal's columns don't."""
    alone = {"num_cities": 12, "num_devices": 10} if key in ("num_cities", "num_devices") else {}
    make_training_set(settings(**({key: ALL[key]} | alone)), tmp_path / "set")
    made = pq.read_table(tmp_path / "set" / "train")
    drawn = {
        f"{task}{end}"
        for task in TASKS
        for end in ("", "_item_ids", "_author_ids", "_topic_ids", "_gaps_s")
    }
    drawn |= {f"truth_{task}" for task in TASKS}
    others = [name for name in made.column_names if name not in drawn]
    assert made.num_columns > len(others) and set(made.column_names) < set(rows.column_names)
    assert made.select(others).equals(rows.select(others).slice(0, len(made)))


def test_off_by_default(tmp_path):
    manifest = make_training_set(settings(num_rows=500), tmp_path / "set")
    schema = manifest.schema_
    assert not schema.bags and not schema.vectors and schema.weight_column is None
    assert build_world(settings()).signals == ()


def features(rows, leave_out=""):
    """One column per tag, interest (by weight), number of content and combination."""
    number, parts = len(rows), []
    for name, values in (("tag", None), ("interest", "interest_weights")):
        lists = rows[f"{name}_ids"].combine_chunks()
        owner = np.repeat(np.arange(number), np.diff(lists.offsets.to_numpy()))
        sums = np.zeros((number, ALL[f"num_{name}s"] + 1))
        weights = 1.0 if values is None else rows[values].combine_chunks().flatten().to_numpy()
        np.add.at(sums, (owner, lists.flatten().to_numpy()), weights)
        if values is None:
            sums /= np.maximum(sums.sum(1, keepdims=True), 1)
        parts.append((name, sums))
    content = np.array([v or [0.0] * 6 for v in rows["content"].to_pylist()])
    city, device = rows["city_id"].to_numpy(), rows["device_id"].to_numpy()
    crossed = np.eye(500)[cross_ids([city, device], 500)]
    parts += [("content", content), ("cross", crossed), ("city", np.eye(13)[city])]
    parts += [("device", np.eye(11)[device])]
    return np.concatenate([part for name, part in parts if name != leave_out], axis=1)


@pytest.mark.parametrize("signal", ["tag", "interest", "content", "cross"])
def test_each_signal_is_found(signal, rows):
    """Without its columns the AUC of a linear model is lower."""
    train, clicks = slice(0, 16_000), rows["click"].to_numpy()

    def auc(leave_out):
        inputs = features(rows, leave_out)
        model = LogisticRegression(C=0.2, max_iter=200).fit(inputs[train], clicks[train])
        return roc_auc_score(clicks[16_000:], model.decision_function(inputs[16_000:]))

    assert auc("") > auc(signal) + 0.01


@pytest.mark.parametrize("key", ["num_cities", "num_devices"])
def test_cities_need_devices(key):
    with pytest.raises(ValidationError, match=r"num_cities.*num_devices"):
        settings(**{key: 3})


def test_a_set_made_before_these_settings_is_current(tmp_path):
    """Keys that its manifest lacks have their defaults."""
    config = settings(num_rows=500)
    make_training_set(config, tmp_path / "set")
    manifest = read_manifest(tmp_path / "set")
    old = {key: value for key, value in manifest.source.items() if key not in ALL}
    assert len(old) == len(manifest.source) - len(ALL)
    (tmp_path / "set" / MANIFEST).unlink()
    write_manifest(tmp_path / "set", manifest.model_copy(update={"source": old}))
    assert training_set_is_current(tmp_path / "set", config.model_dump(mode="json"))
    with pytest.raises(DataError, match=r"ingest\.num_tags"):
        changed = settings(num_rows=500, num_tags=9).model_dump(mode="json")
        training_set_is_current(tmp_path / "set", changed)


def test_wide_sets_are_cheap_to_draw():
    """Memory grows with items and users, not with rows: a chunk of a huge log is made at once."""
    world = build_world(settings(num_rows=10**9, **ALL))
    late = world.impressions(10**9 - 100, 100)
    assert all(len(column) == 100 for s in world.signals for column in s.columns(late).values())
