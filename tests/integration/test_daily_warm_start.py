"""Two days of logs by the commands: ingest, train, ingest, evaluate yesterday's model, train on."""

import json
from pathlib import Path

import pytest
import yaml

from infnet_dist.data.manifest import read_manifest
from tests.jobs import run_here
from tests.run_files import tensors
from tests.unit.raw_logs import make_rows, settings, write_logs

ROWS = sorted(make_rows(0, rows=6_000, users=150, items=80), key=lambda row: row["time_ms"])
CUT = 4_000
LATE_ITEM = 7 * 40  # items from this one on are born after the first logs


@pytest.mark.exhaustive
def test_vocabularies_grow_from_day_to_day(tmp_path: Path) -> None:
    config = {
        "run": {"name": "daily"},
        "ingest": settings(Path("logs"), valid_from="2026-01-02").model_dump(mode="json"),
        "data": {"path": "data", "batch_size": 64},
        "training": {"max_steps": 4},
        "scaling": {"num_workers": 1},
        "tracking": {"wandb": "disabled"},
    }
    (tmp_path / "daily.yaml").write_text(yaml.safe_dump(config))
    first = ("--config", str(tmp_path / "daily.yaml"))
    second = (*first, "--set", "ingest.valid_from='2026-01-04'")
    early = [row for row in ROWS[:CUT] if row["item_id"] < LATE_ITEM]
    write_logs(tmp_path / "logs" / "first", early, files=2)
    assert run_here(tmp_path, "ingest", *first)[0] == 0
    before = read_manifest(tmp_path / "data").schema_
    assert run_here(tmp_path, "train", *first, "--run-id", "monday")[0] == 0

    write_logs(tmp_path / "logs" / "second", ROWS[CUT:], files=2)
    assert run_here(tmp_path, "ingest", *second)[0] == 0
    now = read_manifest(tmp_path / "data").schema_
    grown = {
        table.name: (table.num_embeddings, now.table(table.name).num_embeddings)
        for table in before.tables
        if now.table(table.name) != table
    }
    assert "item" in grown and "tag" not in grown  # tags are hashed
    output = tmp_path / "evaluation.json"
    evaluate = ("evaluate", *first, "--run-id", "monday", "--output", str(output))
    assert run_here(tmp_path, *evaluate)[0] == 0
    assert 0 < json.loads(output.read_text())["out_of_vocabulary"]["item_id"] < 1

    start = (*second, "--run-id", "tuesday", "--set", "checkpoint.init_from=daily/monday")
    assert run_here(tmp_path, "train", *start, "--dry-run")[0] == 0
    runs = tmp_path / "runs" / "daily"
    assert not (runs / "tuesday").exists()
    assert run_here(tmp_path, "train", *start)[0] == 0
    recorded = json.loads((runs / "tuesday" / "init.json").read_text())
    status = {tensor["name"]: tensor["status"] for tensor in recorded["tensors"]}
    for table in before.tables:
        expected = "grown" if table.name in grown else "taken"
        assert status[f"model.tables.{table.name}.weight"] == expected
    assert tensors(runs / "tuesday")["model.tables.item.weight"].shape[0] == grown["item"][1]
    assert run_here(tmp_path, "train", *second, "--run-id", "monday")[0] == 0
    rows = tensors(runs / "monday")["model.tables.item.weight"].shape[0]
    assert rows == grown["item"][0], "a run that resumes reads the set that it began with"
