"""Sources behind one protocol."""

from typing import get_args

import pytest

from infnet_dist.config.ingest import IngestConfig
from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import read_manifest
from infnet_dist.errors import DataError
from infnet_dist.ingest.lock import exclusive
from infnet_dist.ingest.logs.stages.runner import one_by_one
from infnet_dist.ingest.sources import SOURCES, update_training_set
from tests.unit.raw_logs import make_rows, settings, write_logs

SECTIONS = get_args(get_args(IngestConfig)[0])


def silent(stage, unit, done, total):
    assert 0 <= done <= total


def test_every_section_has_a_source():
    names = {get_args(section.model_fields["source"].annotation)[0] for section in SECTIONS}
    assert SOURCES.keys() | {"logs"} == names
    for source in SOURCES.values():
        assert callable(source.make_training_set)


def test_a_set_is_made_once_and_locked_meanwhile(tmp_path):
    section = next(s for s in SECTIONS if s.__name__ == "SyntheticIngest")
    config = section(source="synthetic", num_rows=200, num_users=10, num_items=10, num_authors=3)
    folder = tmp_path / "new" / "set"

    def locked(stage, unit, done, total):
        assert (stage, unit) == ("ingest", "rows")
        with pytest.raises(DataError, match=str(folder)), exclusive(folder):
            pass

    made = update_training_set(config, folder, one_by_one, locked)
    assert made == read_manifest(folder)
    assert update_training_set(config, folder, one_by_one, locked) is None
    with pytest.raises(DataError, match=str(folder)):
        changed = config.model_copy(update={"seed": 1})
        update_training_set(changed, folder, one_by_one, silent)


def test_logs_are_added(tmp_path):
    rows = sorted(make_rows(1), key=lambda row: row["time_ms"])
    write_logs(tmp_path / "logs" / "0", rows[:220])
    config = settings(tmp_path / "logs", valid_from="2026-01-02")
    assert isinstance(config, LogsIngest)
    assert update_training_set(config, tmp_path / "set", one_by_one, silent)
    assert update_training_set(config, tmp_path / "set", one_by_one, silent) is None
    write_logs(tmp_path / "logs" / "1", rows[220:])
    config = settings(tmp_path / "logs", valid_from="2026-01-04")
    manifest = update_training_set(config, tmp_path / "set", one_by_one, silent)
    assert manifest is not None and manifest.ingested is not None
    assert manifest.ingested.generation == 2
