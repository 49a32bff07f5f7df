"""Synthetic logs that change from day to day: drift, births of items, and files per day."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.errors import ConfigError
from infnet_dist.ingest.synthetic.changes import days_of
from infnet_dist.ingest.synthetic.daily import main, write_daily_logs
from infnet_dist.ingest.synthetic.generate import log_chunks
from infnet_dist.ingest.synthetic.population import build_world
from infnet_dist.ingest.synthetic.world import START_MS, TASKS, Impressions, World

SIGNALS = {"num_tags": 30, "content_dim": 3, "num_cities": 3, "num_devices": 3}


def settings(**changes: object) -> SyntheticIngest:
    given = {"num_rows": 3_000, "num_users": 50, "num_items": 60, "num_authors": 9}
    return SyntheticIngest(source="synthetic", **(given | changes))


def all_impressions(world: World, config: SyntheticIngest) -> Impressions:
    return world.impressions(0, config.num_rows)


@pytest.mark.parametrize(
    ("changes", "digest"),
    [({}, "b19da870cc8b8296"), ({"own_favourites": True} | SIGNALS, "8b5847e314bb6d66")],
)
def test_logs_without_changes_are_those_of_earlier_versions(changes: dict, digest: str) -> None:
    """The digests were computed before there were drift, births and numbers of days."""
    config = settings(**changes)
    found = hashlib.sha256()
    for chunk in log_chunks(build_world(config), config):
        for name in ("user_id", "item_id", "time_ms", "click", "long_view", "item_age_days"):
            found.update(chunk[name].to_numpy().tobytes())
    assert found.hexdigest()[:16] == digest


def test_items_appear_on_the_day_of_their_birth() -> None:
    config = settings(num_items=4_000, num_rows=50_000, items_born_daily=0.05, num_days=8)
    world = build_world(config)
    rows = all_impressions(world, config)
    days, born = days_of(rows.times_ms), world.births.first_day
    assert (born[rows.items] <= days).all()
    shares = np.bincount(born[1:], minlength=8) / 4_000
    assert shares == pytest.approx([0.65, *[0.05] * 7], abs=0.015)
    age = world.item_age_days(rows)
    assert age.min() > 0
    new = born[rows.items] == days
    assert 0 < age[new & (days > 0)].max() < 1.25, "uploaded hours before the first day"
    assert new[days == 7].mean() == pytest.approx(0.05, abs=0.02), "shown as often as others"
    assert sorted({*days.tolist()}) == list(range(8))


def test_without_births_all_items_exist() -> None:
    config = settings()
    assert build_world(config).births is None
    with pytest.raises(ValueError, match=r"items_born_daily.*13 days"):
        settings(items_born_daily=0.08)


def test_drift_is_a_random_walk_of_items_and_tastes() -> None:
    config = settings(num_items=3_000, num_rows=20_000, drift=0.2)
    still, moving = build_world(settings(num_items=3_000, num_rows=20_000)), build_world(config)
    rows = all_impressions(moving, config)
    assert (rows.items == all_impressions(still, config).items).all()
    walked = moving.logits(rows) - moving.intercept - still.logits(rows) + still.intercept
    days = days_of(rows.times_ms)
    assert np.abs(walked[days == 0]).max() < 1e-9
    for day in (1, 4, 13):  # two walks, each of `day` steps
        assert walked[days == day].std() == pytest.approx(0.2 * np.sqrt(2 * day), rel=0.2)
    again = build_world(config).logits(rows)
    assert (again == moving.logits(rows)).all()
    assert (again[:500] == moving.logits(moving.impressions(0, 20_000))[:500]).all()


def test_the_truth_of_each_day_is_exact(tmp_path: Path) -> None:
    """The labels have these probabilities; those of a world that stands still rank worse later."""
    config = settings(num_rows=42_000, num_users=2_000, num_items=500, drift=0.3, num_days=6)
    files = write_daily_logs(config, tmp_path)
    still = build_world(config.model_copy(update={"drift": 0.0}))
    lost = []
    for day, path in enumerate(files):
        rows = pq.read_table(path)
        truth, click = rows["truth_click"].to_numpy(), rows["click"].to_numpy()
        assert click.mean() == pytest.approx(truth.mean(), abs=4 * 0.5 / np.sqrt(len(rows)))
        for low, high in ((0, 0.3), (0.3, 0.6), (0.6, 1)):
            inside = (truth >= low) & (truth < high)
            error = np.sqrt(truth[inside].var() + 0.25) / np.sqrt(inside.sum())
            assert click[inside].mean() == pytest.approx(truth[inside].mean(), abs=4 * error)
        names = ("user_id", "item_id", "tab_id", "time_ms")
        users, items, tabs, times = (rows[name].to_numpy() for name in names)
        then = still.truth(Impressions(users, items, tabs, times, np.zeros(len(rows), int)))[:, 0]
        lost.append(roc_auc_score(click, truth) - roc_auc_score(click, then))
        assert (days_of(times) == day).all()
    assert abs(lost[0]) < 1e-6 and lost[-1] > 0.01


def test_files_of_days_have_the_rows_of_the_training_set(tmp_path: Path) -> None:
    config = settings(
        num_rows=60_000, drift=0.1, items_born_daily=0.1, num_days=5, sample_weights=True, **SIGNALS
    )
    files = write_daily_logs(config, tmp_path / "all")
    assert [path.name for path in files][:2] == ["2024-01-01.parquet", "2024-01-02.parquet"]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [p.name for p in files]
    found = pa.concat_tables(pq.read_table(path) for path in files)
    expected = pa.concat_tables(log_chunks(build_world(config), config))
    assert found.equals(expected.select(found.column_names))
    assert {f"truth_{task}" for task in TASKS} <= {*found.column_names}
    assert START_MS <= found["time_ms"][0].as_py()
    (alone,) = write_daily_logs(config, tmp_path / "one", [3])
    assert pq.read_table(alone).equals(pq.read_table(files[3]))
    with pytest.raises(ConfigError, match="0 to 4"):
        write_daily_logs(config, tmp_path / "none", [5])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text("data: {path: x}\ningest: {source: synthetic, num_rows: 300, num_days: 3}")
    main(["--config", str(run_file), "--folder", str(tmp_path / "logs"), "--days", "0", "2"])
    names = ["2024-01-01.parquet", "2024-01-03.parquet"]
    assert capsys.readouterr().out.split() == [str(tmp_path / "logs" / name) for name in names]
    with pytest.raises(SystemExit):
        main(["--config", str(run_file), "--folder", str(tmp_path / "logs"), "--days", "7"])
    assert "0 to 2" in capsys.readouterr().err
