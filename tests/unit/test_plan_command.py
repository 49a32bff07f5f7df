"""`python -m ray_jobs.plan` as users run it, in this process."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.config.run import load_config
from infnet_dist.data.statistics import sample_usage
from infnet_dist.errors import CheckpointError, ConfigError, PlanError
from infnet_dist.ingest.synthetic.generate import make_training_set
from infnet_dist.planning.plan_file import load_plan
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.planning.tables import load_table_set
from infnet_dist.schema import sequence_key
from ray_jobs.plan import main
from tests.conftest import REPOSITORY

TABLES = """
batch_size: 512
tables:
  - {name: user, num_embeddings: 90_000_000, embedding_dim: 64, features: [{name: user}]}
  - {name: item, num_embeddings: 5_000_000, embedding_dim: 64, pooling: none,
     features: [{name: item}, {name: history, mean_length: 40}]}
"""
CITY = "  - {name: city, num_embeddings: 4_000, embedding_dim: 16, features: [{name: city}]}\n"


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    path = tmp_path / "tables.yaml"
    path.write_text(TABLES)
    return path


@pytest.fixture
def plan(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "plan.json"
    main(["make", "--tables", str(tables), "--topology", "h100x8", "--output", str(path)])
    capsys.readouterr()
    return path


def test_make_shows_the_plan(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "plan.json")
    command = ["make", "--tables", str(tables), "--topology", "h200x8", "--world-size", "16"]
    main([*command, "--output", path])
    text = capsys.readouterr().out
    assert "90000000 x 64 fp32" in text and "16 workers of h200x8 (2 nodes)" in text
    main([*command, "--output", path, "--json"])
    known = json.loads(capsys.readouterr().out)
    assert known["world_size"] == 16
    assert known["bottleneck_ms"] == load_plan(Path(path)).bottleneck_ms


def test_a_place_that_can_t_be_written_to_is_found_before_planning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = ["make", "--tables", "no such tables", "--topology", "h100x8", "--output"]
    with pytest.raises(ConfigError, match=str(tmp_path / "file")):
        main([*command, str(tmp_path / "file" / "plan.json")])


def test_odd_names_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(TABLES.replace("name: user,", "name: 'user[/]',"))
    command = ["make", "--tables", str(path), "--output", str(tmp_path / "plan.json")]
    main([*command, "--topology", "h100x8"])
    assert "user[/]" in capsys.readouterr().out
    for bad in ("0", "-3", "x"):
        with pytest.raises(SystemExit):
            main([*command, "--world-size", bad])
        error = capsys.readouterr().err
        assert "--world-size" in error and repr(bad) in error
    main(["whatif", "--tables", str(path), "--topology", "h100x8", "--world-size", "8,12"])
    assert "h100x8 x 12: 12 " in capsys.readouterr().out


def test_show_writes_a_page_and_a_picture(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, picture = tmp_path / "plan.html", tmp_path / "plan.png"
    main(["show", str(plan), "--html", str(page), "--png", str(picture), "--tables", "1"])
    assert "... and 1 more" in capsys.readouterr().out
    assert "<h2>Tables</h2>" in page.read_text()
    assert picture.stat().st_size > 1_000


def test_check_lists_differences(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(plan), "--topology", "h100x8"])
    assert "the plan fits" in capsys.readouterr().out
    with pytest.raises(PlanError, match=r"workers_per_node.* 8 .* 2 "):
        main(["check", str(plan), "--topology", "cpu"])
    with pytest.raises(PlanError, match=r"--config.*--topology.*--checkpoint"):
        main(["check", str(plan)])
    with pytest.raises(CheckpointError, match=str(plan.parent)):
        main(["check", str(plan), "--checkpoint", str(plan.parent)])


def test_extend_and_diff(plan: Path, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables.write_text(TABLES + CITY)
    after = plan.with_name("after.json")
    main(["extend", str(plan), "--tables", str(tables), "--output", str(after)])
    capsys.readouterr()
    main(["diff", str(plan), str(after)])
    text = capsys.readouterr().out
    assert "added: city" in text and "moved: 0 B within nodes, 0 B between nodes" in text
    main(["diff", str(plan), str(after), "--json"])
    assert json.loads(capsys.readouterr().out)["added"] == ["city"]
    with pytest.raises(SystemExit):
        main(["extend", str(plan), "--tables", str(tables), "--output", "x", "--max-move", "50 XB"])
    assert "'50 XB'" in capsys.readouterr().err


def test_whatif_marks_the_smallest_that_fits(
    tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.write_text(TABLES.replace("90_000_000", "20_000_000_000"))
    command = ["whatif", "--tables", str(tables), "--topology", "h100x8,h200x8"]
    main([*command, "--world-size", "8,64,128", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [(r["topology"], r["world_size"]) for r in rows][:2] == [("h100x8", 8), ("h100x8", 64)]
    fits = {(r["topology"], r["world_size"]): r["fits"] for r in rows}
    assert not fits["h100x8", 8] and fits["h200x8", 128]
    smallest = {r["world_size"] for r in rows if r["recommended"]}
    assert smallest == {min(size for (_, size), ok in fits.items() if ok)}
    main([*command, "--world-size", "8"])
    text = capsys.readouterr().out
    assert "h100x8 x 8: " in text
    with pytest.raises(PlanError, match=r"--world-size.*'x'"):
        main([*command, "--world-size", "x"])


def test_to_cpu_scales_rows_or_takes_a_run_s(
    tmp_path: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "cpu.json"
    command = ["to-cpu", str(plan), "--ranks", "2", "--output", str(small)]
    main([*command, "--row-scale", "0.0001"])
    assert "user: 90000000 -> 9000 rows" in capsys.readouterr().out
    assert load_plan(small).made_for.topology.world_size == 2


def test_the_industrial_plan_trains_as_its_small_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan is made from its tables file again, and fits the small run when converted."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("INFNET_ROOT", str(tmp_path))
    plan = "sharding_plans/industrial-128xh100.json"
    again = tmp_path / "again.json"
    command = ["--tables", "sharding_plans/tables/industrial.yaml", "--topology", "h100x8"]
    main(["make", *command, "--world-size", "128", "--output", str(again)])
    reviewed, made = load_plan(Path(plan)), load_plan(again)
    assert made.made_for == reviewed.made_for
    assert made.bottleneck_ms == pytest.approx(reviewed.bottleneck_ms, rel=1e-3)
    table_set = load_table_set(Path("sharding_plans/tables/industrial.yaml"))
    assert len(table_set.tables) == 63
    assert {t.kind for t in table_set.tables} == {"sequence", "bag", "weighted bag"}
    small = {t.name for t in table_set.tables if t.num_embeddings <= 3_000}
    assert {name for name, e in made.tables.items() if e.sharding_type == "data_parallel"} == small

    config = "configs/industrial.yaml"
    ingest = load_config(config).ingest
    assert isinstance(ingest, SyntheticIngest)
    make_training_set(ingest.model_copy(update={"num_rows": 500}), tmp_path / "data/industrial")
    cpu = tmp_path / "cpu.json"
    main(["to-cpu", plan, "--ranks", "2", "--config", config, "--output", str(cpu)])
    assert "user: 2000000000 -> 2001 rows" in capsys.readouterr().out
    two = ["--set", "scaling.num_workers=2"]
    main(["check", str(cpu), "--config", config, *two])
    with pytest.raises(PlanError, match=r"world_size.* 2 .* 128 "):
        main(["check", str(cpu), "--config", config])


def test_lengths_and_skew_come_from_the_training_set(tmp_path: Path) -> None:
    config = SyntheticIngest(source="synthetic", num_rows=3_000, num_users=20, rows_per_part=700)
    manifest = make_training_set(config, tmp_path / "set")
    schema = manifest.schema_
    usage = sample_usage(tmp_path / "set", manifest, schema)  # all rows: they are few
    rows = pq.ParquetDataset(tmp_path / "set" / "train").read()
    ids: dict[str, list[int]] = {}
    for sequence in schema.sequences:
        for attribute in sequence.attributes:
            lists = rows[attribute.column].to_pylist()
            kept = [i for items in lists for i in items[: sequence.max_length]]
            key = sequence_key(sequence, attribute)
            assert usage.mean_lengths[key] == pytest.approx(len(kept) / len(lists))
            ids.setdefault(attribute.table, []).extend(kept)
    for feature in schema.categorical:
        ids.setdefault(feature.table, []).extend(rows[feature.column].to_pylist())
        assert usage.mean_lengths[feature.name] == 1
    for table, values in ids.items():
        looked_at = min(len(values), schema.table(table).num_embeddings)
        assert usage.lookups[table] == looked_at
        if looked_at == len(values):
            assert usage.distinct[table] == len(set(values))
    run = load_config(REPOSITORY / "configs/smoke.yaml")
    tables = tables_of_run(run, schema, usage)
    assert tables.table("item").zipf is not None
    assert tables_of_run(run, schema).table("item").zipf is None
