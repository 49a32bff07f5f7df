"""Changes of a training set that a run may resume with, and the errors for others."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet_dist.checkpoint import CheckpointManifest, DataOrder, SavedProgress
from infnet_dist.data.checks.footers import check_split, count_orphan_positives
from infnet_dist.data.manifest import Ingested, Manifest, read_manifest, write_manifest
from infnet_dist.data.part_files import ChangedError, open_checked
from infnet_dist.data.reader import Reader
from infnet_dist.errors import CheckpointError, DataError
from infnet_dist.ingest.writing.parts import PartWriter
from infnet_dist.training.data_changes import (
    check_content,
    check_resumable,
    check_unchanged,
    warning_of_other_data,
)
from tests.hostile_parquet import forget_fingerprints, without_fingerprints
from tests.unit.test_reader import SCHEMA, make_set

PART = "train/part-00000.parquet"
ONE = {"split": "train", "rank": 0, "world_size": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_set(tmp_path / "set", 40, rows_per_part=20, row_group_rows=10)
    return tmp_path / "set"


def flipped(table: pa.Table) -> pa.Table:
    """Other labels, as many of each, so that sizes and statistics are the same."""
    place = table.column_names.index("label")
    labels = pa.array([1 - label for label in table["label"].to_pylist()], pa.int8())
    return table.set_column(place, table.schema.field("label"), labels)


def rewrite_as_ingest(path: Path, table: pa.Table) -> None:
    with PartWriter(path, table.schema) as writer:
        writer.write_table(table.cast(writer.schema), row_group_size=10)


def reader_of(folder: Path, **changes: Any) -> Reader:
    manifest = changes.pop("manifest", None) or read_manifest(folder)
    return Reader(folder, manifest, SCHEMA, "train", 8, 0, 1, shuffle_rows=20, **changes)


def test_a_part_of_the_same_shape_and_statistics_is_refused(folder: Path) -> None:
    before = pq.read_metadata(folder / PART)
    rewrite_as_ingest(folder / PART, flipped(pq.read_table(folder / PART)))
    after = pq.read_metadata(folder / PART)
    assert before.num_rows == after.num_rows and before.serialized_size == after.serialized_size
    for column in range(before.num_columns):
        one, other = (m.row_group(0).column(column) for m in (before, after))
        assert one.statistics == other.statistics
        assert one.total_compressed_size == other.total_compressed_size
    manifest = read_manifest(folder)
    for read in (
        lambda: list(reader_of(folder, max_bad_row_groups=9).batches()),
        lambda: check_split(folder, manifest, SCHEMA, **ONE),
        lambda: count_orphan_positives(folder, manifest, SCHEMA, task="click", under="click"),
    ):
        with pytest.raises(ChangedError, match=r"part-00000\.parquet"):
            read()


def test_a_fingerprint_is_that_of_all_bytes(folder: Path) -> None:
    """The same rows give the same one, at another place too."""
    (part, _) = read_manifest(folder).split("train").parts
    rewrite_as_ingest(folder / PART, pq.read_table(folder / PART))
    with open_checked(folder, part) as again:
        assert again.fingerprint == part.fingerprint
    size, _, digest = part.fingerprint.partition(":")
    assert int(size) == (folder / PART).stat().st_size and len(digest) == 64


def test_a_page_whose_bytes_changed_is_unreadable(folder: Path) -> None:
    """A flipped bit that still decodes, to other rows: the page's checksum sees it."""
    rows, content = pq.read_table(folder / PART), (folder / PART).read_bytes()
    column = pq.read_metadata(folder / PART).row_group(1).column(0)

    def decodes(place: int) -> bool:
        flipped = bytearray(content)
        flipped[place] ^= 1
        (folder / PART).write_bytes(flipped)
        try:
            return not pq.read_table(folder / PART).equals(rows)
        except OSError:
            return False

    start = column.data_page_offset
    assert any(decodes(start + i) for i in reversed(range(column.total_compressed_size)))
    with pytest.raises(DataError, match=r"row group 1 of .*part-00000\.parquet"):
        list(reader_of(folder).batches())


def test_a_part_replaced_while_batches_are_read(folder: Path) -> None:
    reader = reader_of(folder, prefetch_batches=1)
    assert sum(batch.num_rows for batch in reader.batches(0)) == 40
    shutil.copy(folder / "train/part-00001.parquet", folder / PART)
    with pytest.raises(ChangedError, match=r"part-00000\.parquet"):
        list(reader.batches(1))


@pytest.mark.parametrize("whole", [True, False])
def test_a_part_written_to_between_two_row_groups(folder: Path, whole: bool) -> None:
    (part, _) = read_manifest(folder).split("train").parts
    columns = list(SCHEMA.columns)
    with open_checked(folder, part) as file:
        assert len(file.read_group(0, columns)) == 10
        content = (folder / PART).read_bytes()
        (folder / PART).write_bytes(content if whole else content[:500])
        with pytest.raises(ChangedError, match=r"part-00000\.parquet"):
            file.read_group(1, columns)


def test_sets_without_fingerprints_are_read_and_get_them(folder: Path) -> None:
    manifest = read_manifest(folder)
    forget_fingerprints(folder)
    old = read_manifest(folder)
    assert {part.fingerprint for part in old.split("train").parts} == {None}
    assert sum(batch.num_rows for batch in reader_of(folder).batches()) == 40
    found = check_split(folder, old, SCHEMA, **ONE)
    assert old.with_fingerprints("train", found) == manifest
    assert old.identity(SCHEMA) != manifest.identity(SCHEMA)


def saved(order: DataOrder, **progress: Any) -> CheckpointManifest:
    return CheckpointManifest(
        progress=SavedProgress(**{"step": 7} | progress),
        order=order,
        world_size=1,
        metrics={},
        block_bytes=1,
        files={},
        tensor_files={},
        tensors={},
    )


def order_of(manifest: Manifest, **changes: Any) -> DataOrder:
    order = {"content_hash": manifest.content_hash, "identity": manifest.identity(SCHEMA)}
    return DataOrder(**order | {"seed": 0, "shuffle_rows": 20, "version": 2} | changes)


WITHIN, BETWEEN = {"consumed": ((0, 16),)}, {"epoch": 1}


@pytest.mark.parametrize("progress", [WITHIN, BETWEEN])
def test_the_same_set_is_resumed_without_a_word(folder: Path, progress: dict) -> None:
    manifest = read_manifest(folder)
    now = order_of(manifest)
    assert check_resumable(saved(now, **progress), now, manifest) == ""
    old = order_of(manifest, identity="")  # of a checkpoint that knows none
    assert check_resumable(saved(old, **progress), now, manifest) == ""


def test_a_set_that_changes_while_it_is_read(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    config = SimpleNamespace(data=SimpleNamespace(path=folder))
    setup: Any = SimpleNamespace(manifest=manifest, config=config)
    assert check_unchanged(setup) == ""
    make_set(tmp_path / "other", 60, rows_per_part=20, row_group_rows=10)
    other = read_manifest(tmp_path / "other")
    write_manifest(folder, grown(other, manifest.content_hash))
    assert "60 rows of train" in check_unchanged(setup)
    assert "40 that it began with" in check_unchanged(setup)
    write_manifest(folder, other)
    with pytest.raises(DataError, match=other.content_hash[:12]):
        check_unchanged(setup)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json"):
        check_unchanged(setup)


@pytest.mark.parametrize("progress", [WITHIN, BETWEEN])
def test_another_set_is_refused(folder: Path, tmp_path: Path, progress: dict) -> None:
    manifest = read_manifest(folder)
    make_set(tmp_path / "other", 40, rows_per_part=40, row_group_rows=10)
    other = read_manifest(tmp_path / "other")
    for before in (order_of(other), order_of(other, content_hash=manifest.content_hash)):
        with pytest.raises(CheckpointError, match="step 7"):
            check_resumable(saved(before, **progress), order_of(manifest), manifest)
    with pytest.raises(DataError, match=manifest.content_hash[:12]):
        check_content(folder, other.content_hash)
    check_content(folder, manifest.content_hash)


def test_another_schema_under_the_same_content_hash_is_refused(folder: Path) -> None:
    manifest = read_manifest(folder)
    price, age = SCHEMA.dense
    dense = (price, age.model_copy(update={"mean": 11.0}))
    other = order_of(
        manifest, identity=manifest.identity(SCHEMA.model_copy(update={"dense": dense}))
    )
    for progress in (WITHIN, BETWEEN):
        with pytest.raises(CheckpointError, match="step 7"):
            check_resumable(saved(other, **progress), order_of(manifest), manifest)


@pytest.mark.parametrize("key", ["seed", "shuffle_rows", "version"])
def test_another_order_is_refused_within_an_epoch_alone(folder: Path, key: str) -> None:
    manifest = read_manifest(folder)
    now = order_of(manifest)
    with pytest.raises(CheckpointError, match=f"{key} .*99"):
        check_resumable(saved(order_of(manifest, **{key: 99}), **WITHIN), now, manifest)
    assert check_resumable(saved(order_of(manifest, **{key: 99}), **BETWEEN), now, manifest) == ""


def grown(manifest: Manifest, *hashes: str) -> Manifest:
    """The manifest as if logs had been added to the sets with these content hashes."""
    ingested = Ingested(
        generation=2,
        last_time_ms=0,
        boundary_ms=0,
        files=(),
        unreadable={},
        quarantined={},
        left_out={},
        grew_from=hashes,
    )
    return manifest.model_copy(update={"ingested": ingested})


def test_a_set_that_grew_is_resumed_between_epochs_and_logged(folder: Path) -> None:
    manifest = read_manifest(folder)
    before = order_of(manifest, content_hash="ab" * 32, identity="ef" * 32)
    after = order_of(manifest)
    now = grown(manifest, "cd" * 32, "ab" * 32)
    growth = check_resumable(saved(before, **BETWEEN), after, now)
    assert "step 7" in growth and "40 rows of train" in growth
    with pytest.raises(CheckpointError, match="abab"):
        check_resumable(saved(before, **WITHIN), after, now)
    with pytest.raises(CheckpointError, match="abab"):
        check_resumable(saved(before, **BETWEEN), after, grown(manifest, "cd" * 32))
    assert warning_of_other_data(saved(before, **BETWEEN), now) == ""
    assert "abab" in warning_of_other_data(saved(before, **BETWEEN), manifest)


@pytest.mark.parametrize("progress", [WITHIN, BETWEEN])
def test_equal_selected_parts_of_a_set_that_grew_are_the_same_rows(
    folder: Path, progress: dict
) -> None:
    manifest = read_manifest(folder)
    before, after = order_of(manifest, content_hash="ab" * 32), order_of(manifest)
    assert check_resumable(saved(before, **progress), after, grown(manifest, "ab" * 32)) == ""
    with pytest.raises(CheckpointError, match="abab"):
        check_resumable(saved(before, **progress), after, grown(manifest, "cd" * 32))


def test_another_replay_share_is_refused_within_an_epoch(folder: Path) -> None:
    manifest = read_manifest(folder)
    other = order_of(manifest, replay_share=0.5)
    with pytest.raises(CheckpointError, match=r"replay_share .*0\.5"):
        check_resumable(saved(other, **WITHIN), order_of(manifest), manifest)


def test_a_position_beyond_the_rows_is_refused(folder: Path) -> None:
    manifest = read_manifest(folder)
    now = order_of(manifest)
    with pytest.raises(CheckpointError, match=r"row 41 .* 40 rows"):
        check_resumable(saved(now, consumed=((0, 3), (9, 41))), now, manifest)


def test_fingerprints_of_a_manifest_are_well_formed(folder: Path) -> None:
    assert read_manifest(folder) != without_fingerprints(read_manifest(folder))
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"fingerprint": "', '"fingerprint": "x'))
    with pytest.raises(DataError, match=r"fingerprint"):
        read_manifest(folder)
