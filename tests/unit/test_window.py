"""Windows of train and replay: which rows are read, against the numbers of the rows."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from infnet_dist.config.window import WindowConfig
from infnet_dist.data.checks.footers import check_split
from infnet_dist.data.manifest import Ingested, Manifest, read_manifest, write_manifest
from infnet_dist.data.reader import Reader
from infnet_dist.data.window.replay import REPLAY, replay_of
from infnet_dist.data.window.selection import (
    EmptyWindowError,
    generations_of,
    select_window,
    window_text,
)
from infnet_dist.errors import DataError
from tests.unit.test_reader import SCHEMA, make_set, rows_of

GENERATIONS = (1, 1, 2, 3, 3)  # of parts of 20 rows; row i happens at i ms
DAY_MS = 86_400_000


def with_parts(manifest: Manifest, **columns: Any) -> Manifest:
    """The manifest with other fields of its parts of train."""
    split = manifest.split("train")
    parts = tuple(
        part.model_copy(update={name: values[i] for name, values in columns.items()})
        for i, part in enumerate(split.parts)
    )
    return manifest.model_copy(
        update={"splits": {"train": split.model_copy(update={"parts": parts})}}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    manifest = make_set(folder, 100, rows_per_part=20, row_group_rows=7)
    write_manifest(folder, with_parts(manifest, generation=GENERATIONS))
    return folder


def selected(folder: Path, manifest: Manifest | None = None, **window: Any) -> Manifest:
    manifest = manifest or read_manifest(folder)
    replay = window.pop("replay", False)
    return select_window(folder, manifest, WindowConfig(**window), replay=replay)


def read(folder: Path, manifest: Manifest, epoch: int = 0, **settings: Any) -> list[int]:
    """The rows of an epoch, in order."""
    fixed = {"batch_size": 8, "rank": 0, "world_size": 1, "shuffle_rows": 20}
    reader = Reader(folder, manifest, SCHEMA, "train", **fixed | settings)
    rows = [row for batch in reader.batches(epoch) for row in rows_of(batch)]
    assert len(rows) == reader.rows
    return rows


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({"new": True}, range(60, 100)),
        ({"generations": (1,)}, range(40)),
        ({"generations": (3, 2)}, range(40, 100)),
        ({"from": 25, "to": 50}, range(25, 51)),
        ({"to": 0}, range(1)),
        ({"from": 98}, range(98, 100)),
        ({"from": "1970-01-01", "to": "1970-01-01"}, range(100)),
        ({"from": "1970-01-01T01:00:00.030+01:00"}, range(30, 100)),
        ({"last_days": 30 / DAY_MS}, range(70, 100)),
        ({"last_days": 1000}, range(100)),
    ],
)
def test_a_window_is_exact(folder: Path, window: dict, expected: range) -> None:
    manifest = selected(folder, **window)
    assert manifest.split("train").rows == len(expected)
    assert sorted(read(folder, manifest)) == list(expected)
    assert read(folder, manifest, shuffle_rows=None) == list(expected)
    fingerprints = check_split(folder, manifest, SCHEMA, split="train", rank=0, world_size=1)
    assert manifest.with_fingerprints("train", fingerprints) == manifest
    assert f"{len(expected)} of 100 rows" in window_text(manifest, read_manifest(folder))


def test_without_a_window_nothing_changes(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert select_window(folder, manifest, None) is manifest
    assert generations_of(manifest.split("train").parts) == (1, 2, 3)


@pytest.mark.parametrize(
    ("window", "names"),
    [
        ({"generations": (2, 7)}, r"generation 7; .*1 \(40 rows.*; 2 \(20 rows.*; 3 \(40 rows"),
        ({"from": 100}, r"no rows in .*1 \(40 rows, 1970-01-01"),
        ({"from": "2026-05-01", "to": "2026-05-02"}, r"2026-05-01 00:00:00 to 2026-05-02 23:59:59"),
        ({"generations": (1,), "replay": True}, r"replay_share"),
    ],
)
def test_a_window_without_rows_names_what_exists(folder: Path, window: dict, names: str) -> None:
    with pytest.raises(DataError, match=names):
        selected(folder, **window)


def test_a_part_that_cant_be_read_is_no_empty_window(folder: Path, tmp_path: Path) -> None:
    """The daily loop waits for more logs where a window is empty, and only there."""
    with pytest.raises(EmptyWindowError):
        selected(folder, **{"from": 100})
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    part = read_manifest(damaged).split("train").parts[0]
    (damaged / part.file).write_bytes((damaged / part.file).read_bytes()[:20])
    with pytest.raises(DataError, match=part.file) as refused:
        selected(damaged, **{"from": 3, "to": 5})
    assert not isinstance(refused.value, EmptyWindowError)


def test_parts_of_earlier_versions(folder: Path) -> None:
    """Their times are unknown; they are of generation 1, unless the set was extended."""
    old = with_parts(read_manifest(folder), generation=[None] * 5, time_range_ms=[None] * 5)
    assert sorted(read(folder, selected(folder, old, new=True))) == list(range(100))
    for window in ({"last_days": 1.0}, {"from": 3}):
        with pytest.raises(DataError, match=r"part-00000\.parquet"):
            selected(folder, old, **window)
    extended = old.model_copy(update={"ingested": ingested(2)})
    with pytest.raises(DataError, match="earlier version"):
        selected(folder, extended, new=True)
    newest = with_parts(extended, generation=[None] * 4 + [3])
    assert sorted(read(folder, selected(folder, newest, new=True))) == list(range(80, 100))


def ingested(generation: int) -> Ingested:
    numbers = {"generation": generation, "last_time_ms": 0, "boundary_ms": 0}
    return Ingested(**numbers, files=(), unreadable={}, quarantined={}, left_out={})


def test_generations_that_overlap_in_time_are_refused(folder: Path) -> None:
    ranges = [(0, 19), (20, 50), (40, 59), (60, 79), (80, 99)]
    overlapping = with_parts(read_manifest(folder), time_range_ms=ranges)
    with pytest.raises(DataError, match=r"generations 1 and 2 "):
        selected(folder, overlapping, new=True)


def test_the_identity_is_that_of_the_selected_rows(folder: Path) -> None:
    manifest = read_manifest(folder)
    windows: list[dict] = [{"new": True}, {"from": 60}, {"from": 61}, {"from": 61, "to": 80}]
    windows += [{"new": True, "replay": True}, {"generations": (1, 2)}]
    identities = [selected(folder, **window).identity(SCHEMA) for window in windows]
    assert identities[0] == identities[1], "the same rows, selected in two ways"
    assert len({*identities, manifest.identity(SCHEMA)}) == len(windows)
    train = manifest.split("train")
    first = train.model_copy(update={"rows": 60, "parts": train.parts[:3]})
    smaller = manifest.model_copy(update={"splits": {"train": first}})  # before 3 was added
    for window in ({"generations": (1,)}, {"generations": (2,), "replay": True}):
        before, after = (selected(folder, one, **dict(window)) for one in (smaller, manifest))
        assert before.identity(SCHEMA) == after.identity(SCHEMA)


def test_rows_that_change_after_they_were_counted(folder: Path, tmp_path: Path) -> None:
    manifest = selected(folder, **{"from": 25})
    cut = manifest.split("train").parts[0]
    other = cut.model_copy(update={"times_ms": (27, 99)})
    changed = manifest.split("train").model_copy(update={"parts": (other,), "rows": other.rows})
    with pytest.raises(DataError, match=r"part-00001.*row group"):
        read(folder, manifest.model_copy(update={"splits": {"train": changed}}))


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_replay_is_a_seeded_sample_of_older_rows(folder: Path, share: float) -> None:
    manifest = selected(folder, new=True, replay=True)
    older = manifest.splits[REPLAY].parts
    replay = replay_of(older, window_rows=40, share=share, seed=3)
    expected = round(40 * share / (1 - share))
    epochs = [read(folder, manifest, epoch, replay=replay) for epoch in range(6)]
    for rows in epochs:
        replayed = [row for row in rows if row < 60]
        assert len(replayed) == len({*replayed}) == expected
        assert sorted(row for row in rows if row >= 60) == list(range(60, 100))
    again = replay_of(older, window_rows=40, share=share, seed=3)
    assert read(folder, manifest, 4, replay=again) == epochs[4]
    if expected:
        samples = {tuple(sorted(row for row in rows if row < 60)) for rows in epochs}
        assert len(samples) > 1, "each epoch has a sample of its own"


def test_replay_takes_all_row_groups_alike(folder: Path) -> None:
    """And at most as many rows as there are."""
    older = selected(folder, new=True, replay=True).splits[REPLAY].parts
    replay = replay_of(older, window_rows=40, share=1 / 5, seed=0)
    taken = Counter[tuple[str, int]]()
    for epoch in range(3_000):
        for part in replay.sample(epoch):
            taken.update({(part.file, i): rows > 0 for i, rows in enumerate(part.row_groups)})
    counts = [*taken.values()]
    assert len(counts) == 9 and max(counts) < 1.15 * min(counts)
    everything = replay_of(older, window_rows=40, share=0.9, seed=0)
    assert everything.rows == 60
    assert sum(part.rows for part in everything.sample(0)) == 60


@pytest.mark.parametrize("world_size", [1, 3])
def test_an_epoch_with_replay_is_read_once_by_any_number_of_ranks(
    folder: Path, world_size: int
) -> None:
    """Also if another number of ranks has read the first rows of its order."""
    manifest = selected(folder, **{"from": 65, "replay": True})
    older = manifest.splits[REPLAY].parts
    replay = replay_of(older, window_rows=35, share=0.3, seed=1)
    whole = read(folder, manifest, 2, replay=replay)
    consumed = ((0, 16), (20, 24))
    left = [row for place, row in enumerate(whole) if not any(a <= place < b for a, b in consumed)]
    found = []
    for rank in range(world_size):
        settings: dict[str, Any] = {"rank": rank, "world_size": world_size, "shuffle_rows": 20}
        reader = Reader(folder, manifest, SCHEMA, "train", 8, replay=replay, **settings)
        found += [row for batch in reader.batches(2, consumed) for row in rows_of(batch)]
    assert sorted(found) == sorted(left)
