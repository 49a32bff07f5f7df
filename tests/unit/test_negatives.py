"""`ingest.negatives`: which rows of train are left out, and what stays as it is."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import Manifest, read_manifest
from infnet_dist.data.window.dividing import divide_at
from infnet_dist.errors import DataError
from infnet_dist.ingest.logs.pipeline import ingest_logs
from infnet_dist.ingest.logs.stages.runner import one_by_one
from infnet_dist.ingest.logs.task_sizes import TaskSizes
from infnet_dist.reranking.calibration.negatives import corrected_probabilities
from tests.unit.raw_logs import (
    START_MS,
    Row,
    canonical,
    make_rows,
    read_split,
    settings,
    write_logs,
)

SHARE = 0.3
NEGATIVES = {"task": "click", "share": SHARE}
VALID_MS = START_MS + 3 * 86_400_000  # valid_from of `settings`


def silent(*progress: Any) -> None:
    pass


def ingest(path: Path, folder: Path, **changes: Any) -> Manifest:
    made = ingest_logs(config(path, **changes), folder, one_by_one, silent)
    assert made is not None
    return made


def config(path: Path, **changes: Any) -> LogsIngest:
    return settings(path, **({"watch_time": None, "negatives": NEGATIVES} | changes))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Likes come with clicks alone; some labels of likes are unknown."""
    found = make_rows(5, rows=1500)
    for i, row in enumerate(found):
        row["is_like"] *= row["is_click"]
        if i % 7 == 0:
            row["is_like"] = None
    return found


@pytest.fixture(scope="module")
def sets(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training set with all rows, and one with a share of the negatives."""
    place = tmp_path_factory.mktemp("sets")
    logs = write_logs(place / "logs", rows)
    checks = {"is_like": {"nulls": "keep"}}
    ingest(logs, place / "all", negatives=None, checks=checks)
    ingest(logs, place / "share", checks=checks)
    return place / "all", place / "share"


def texts(folder: Path, split: str, names: list[str] | None = None) -> list[str]:
    found = read_split(folder, split)
    return canonical(found, names or list(found[0]))


def test_train_loses_negatives_alone_and_nothing_else_changes(sets: tuple[Path, Path]) -> None:
    everything, share = sets
    assert texts(share, "valid") == texts(everything, "valid")
    whole, kept = texts(everything, "train"), texts(share, "train")
    assert set(kept) < set(whole)  # histories, counters and ids included
    negatives = [r for r in read_split(everything, "train") if r["label_click"] == 0]
    positives = [r for r in read_split(everything, "train") if r["label_click"] == 1]
    assert len(negatives) > 500
    names = list(negatives[0])
    assert set(canonical(positives, names)) < set(kept)
    assert len(kept) == len(positives) + sum(
        r["label_click"] == 0 for r in read_split(share, "train")
    )
    kept_share = (len(kept) - len(positives)) / len(negatives)
    assert kept_share == pytest.approx(SHARE, abs=4 * np.sqrt(SHARE * 0.7 / len(negatives)))
    before, after = read_manifest(everything), read_manifest(share)
    assert after.schema_ == before.schema_  # vocabularies, boundaries, means
    assert after.ingested.left_out["negatives"] == len(whole) - len(kept)
    recorded = after.ingested.negatives
    assert (recorded.task, recorded.share, recorded.contradicting) == ("click", SHARE, 0)
    assert before.ingested.negatives is None
    for path in sorted((everything / "state" / "g0001").iterdir()):
        assert path.read_bytes() == (share / "state" / "g0001" / path.name).read_bytes(), path.name


def test_corrected_rates_are_those_of_all_rows(sets: tuple[Path, Path]) -> None:
    everything, share = (read_manifest(one).split("train").base_rates["click"] for one in sets)
    assert share > everything + 0.2
    assert corrected_probabilities(np.array([share]), SHARE) == pytest.approx(
        [everything], abs=0.03
    )


def test_files_and_partitions_do_not_matter(
    rows: list[Row], sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = TaskSizes(partition=200, chunk=100, part=300, count=500)
    monkeypatch.setattr("infnet_dist.ingest.logs.task_sizes.TaskSizes.of", lambda config: sizes)
    logs = write_logs(tmp_path / "logs", rows[::-1], files=5)
    ingest(logs, tmp_path / "set", seed=9, checks={"is_like": {"nulls": "keep"}})
    names = ["user_id", "item_id", "label_click", "label_like", "time_ms"]
    ours, theirs = (texts(one, "train", names) for one in (tmp_path / "set", sets[1]))
    assert ours == theirs


def test_rows_with_another_label_are_kept_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = make_rows(6, rows=300)  # likes without clicks, watch times everywhere
    logs = write_logs(tmp_path / "logs", rows)
    with caplog.at_level(logging.WARNING):
        manifest = ingest(logs, tmp_path / "likes")
    train = [row for row in rows if row["time_ms"] < VALID_MS and not row["is_click"]]
    liked = sum(row["is_like"] for row in train)
    assert manifest.ingested.negatives.contradicting == liked > 0
    assert "approximate" in caplog.text
    kept = [r for r in read_split(tmp_path / "likes", "train") if r["label_click"] == 0]
    assert sum(row["label_like"] for row in kept) == liked
    assert len(kept) < len(train)

    manifest = ingest(logs, tmp_path / "watched", watch_time="play_ms")
    watched = sum(row["is_like"] or row["play_ms"] > 0 for row in train)
    assert manifest.ingested.negatives.contradicting == watched
    assert manifest.ingested.left_out.get("negatives", 0) <= len(train) - watched


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    for changes, named in (
        ({"negatives": {"task": "clik", "share": 0.5}}, "click"),
        ({"negatives": {"task": "watch_time", "share": 0.5}}, "click"),
        ({"negatives": {"task": "click", "share": 1.5}}, "share"),
        ({"valid_from": None}, "valid_from"),
    ):
        with pytest.raises(ValidationError, match=named):
            config(tmp_path, **changes)


def test_sampled_and_other_rows_are_never_mixed(rows: list[Row], tmp_path: Path) -> None:
    rows = [row | {"is_like": row["is_like"] or 0} for row in rows]
    later = [row | {"time_ms": row["time_ms"] + 4 * 86_400_000} for row in rows]
    logs = write_logs(tmp_path / "logs" / "old", rows).parent
    first = ingest(logs, tmp_path / "set")
    write_logs(logs / "new", later)
    with pytest.raises(DataError, match="valid_from"):
        ingest(logs, tmp_path / "set", valid_from="2026-01-06")
    with pytest.raises(DataError, match="other settings"):
        ingest(logs, tmp_path / "set", negatives=None)
    with pytest.raises(DataError, match="negatives"):
        divide_at(tmp_path / "set", first, VALID_MS - 3_600_000)
    second = ingest(logs, tmp_path / "set")
    assert second.ingested.negatives == first.ingested.negatives
    assert second.split("train").rows == first.split("train").rows
    assert second.split("valid").rows == first.split("valid").rows + len(later)
