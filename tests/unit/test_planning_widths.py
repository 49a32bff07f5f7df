"""Suggested widths: planted cases, and `infnet plan widths` as users run it."""

import json
from pathlib import Path

import pytest
import yaml

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.config.run import load_config
from infnet_dist.errors import PlanError
from infnet_dist.ingest.synthetic.generate import make_training_set
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.review.facts import facts
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.planning.topology import load_topology
from infnet_dist.planning.widths import suggest_widths, table_bytes, with_widths
from ray_jobs.plan import main
from tests.conftest import REPOSITORY

ENOUGH = 1e18


def table(name: str, rows: int, **more: object) -> PlanTable:
    keys = more.pop("keys", {name: 1.0})
    assert isinstance(keys, dict)
    features = tuple(PlanFeature(name=key, mean_length=length) for key, length in keys.items())
    given = {"embedding_dim": 64} | more
    return PlanTable(name=name, num_embeddings=rows, features=features, **given)


def tables(*given: PlanTable) -> TableSet:
    return TableSet(batch_size=1024, tables=given)


@pytest.mark.parametrize(
    ("rows", "width"), [(1, 8), (20, 12), (1_000, 32), (10_000, 60), (100_000, 64)]
)
def test_with_enough_memory_rows_alone_decide(rows: int, width: int) -> None:
    """6 n^(1/4), in multiples of 4, up to the maximum."""
    found = suggest_widths(tables(table("t", rows)), budget_bytes=ENOUGH, max_width=64)
    assert found == {"t": width}


def test_a_skewed_table_counts_as_a_smaller_one() -> None:
    alike, skewed = table("alike", 50_000, zipf=0.0), table("skewed", 50_000, zipf=1.2)
    found = suggest_widths(tables(alike, skewed), budget_bytes=ENOUGH, max_width=256)
    assert found["skewed"] < 0.5 * found["alike"]


def test_where_memory_is_short_rows_in_use_stay_wide() -> None:
    hot = table("hot", 1_000_000, keys={f"hot{i}": 64.0 for i in range(4)})
    cold, tiny = table("cold", 1_000_000), table("tiny", 20)
    table_set = tables(hot, cold, tiny)
    budget = 1_000_000 * (64 + 1 + 12 + 1) * 4 + 20 * 13 * 4
    found = suggest_widths(table_set, budget_bytes=budget, max_width=128)
    assert found == {"hot": 64, "cold": 12, "tiny": 12}, "256^0.3 = 5.3 times as wide"
    assert sum(table_bytes(table_set, found).values()) <= budget
    same = suggest_widths(table_set, budget_bytes=budget, max_width=128, alpha=0.0)
    assert same["hot"] == same["cold"] > found["cold"]


def test_the_widths_are_the_largest_within_the_budget() -> None:
    table_set = tables(*(table(f"t{i}", 10**i, keys={f"t{i}": 2.0 * i}) for i in range(2, 8)))
    sizes = []
    for gib in (0.3, 0.5, 1, 2, 3):
        budget = gib * 2**30
        found = suggest_widths(table_set, budget_bytes=budget, max_width=64)
        sizes.append(sum(table_bytes(table_set, found).values()))
        assert sizes[-1] <= budget
        # The widest step is 4 floats of the largest table; without a limit all have what they use.
        unlimited = suggest_widths(table_set, budget_bytes=ENOUGH, max_width=64)
        assert found == unlimited or sizes[-1] > budget - 1.2 * 10**7 * 4 * 4
    assert sizes == sorted(sizes)


def test_tables_of_one_sequence_get_one_width() -> None:
    item = table("item", 400_000, pooling="none", keys={"item": 1.0, "click.item": 20.0})
    author = table("author", 5_000, pooling="none", keys={"click.author": 20.0, "like.author": 5.0})
    topic = table("topic", 30, pooling="none", keys={"like.topic": 5.0})
    user, tag = table("user", 400_000), table("tag", 30, keys={"user.tag": 2.0})
    found = suggest_widths(
        tables(item, topic, user, tag, author), budget_bytes=ENOUGH, max_width=512
    )
    assert found["item"] == found["author"] == found["topic"] == found["user"]
    assert found["tag"] == 16


def test_a_budget_below_the_least_widths_names_the_largest_tables() -> None:
    table_set = tables(table("user", 10**9), table("item", 10**6))
    with pytest.raises(PlanError, match=r"'user'.*--budget-gib"):
        suggest_widths(table_set, budget_bytes=2**30, max_width=64)


def test_without_a_limit_no_table_gets_wider() -> None:
    """Tables of a sequence count as one, which is as wide as the widest of them."""
    narrow = table("city", 3_000).model_copy(update={"embedding_dim": 8})
    wide = table("user", 50_000_000)
    found = suggest_widths(tables(narrow, wide), budget_bytes=ENOUGH)
    assert found == {"city": 8, "user": wide.embedding_dim}
    assert suggest_widths(tables(narrow, wide), budget_bytes=ENOUGH, max_width=32)["city"] == 32


YAML = """
batch_size: 1024
tables:
  - {name: user, num_embeddings: 50_000_000, embedding_dim: 64, features: [{name: user}]}
  - {name: item, num_embeddings: 1_000_000, embedding_dim: 64, pooling: none,
     features: [{name: item}, {name: click.item, mean_length: 40}]}
  - {name: age, num_embeddings: 20, embedding_dim: 64, features: [{name: age}]}
"""


def test_the_command_shows_what_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(YAML)
    command = ["widths", "--tables", str(path), "--topology", "h100x8", "--budget-gib", "4"]
    main([*command, "--json"])
    found = json.loads(capsys.readouterr().out)
    by_name = {row["table"]: row for row in found["tables"]}
    assert by_name["age"]["suggested"] == 12 and by_name["item"]["suggested"] == 64
    assert found["suggested"]["table_bytes"] <= 4 * 2**30 < found["now"]["table_bytes"]
    assert found["suggested"]["output_bytes"] < found["now"]["output_bytes"]
    main(command)
    text = capsys.readouterr().out
    assert "estimated step" in text and "exchange of outputs" in text
    pasted = yaml.safe_load(text.partition("for the run file:")[2])["tables"]["overrides"]
    assert pasted == found["overrides"]
    assert pasted == {n: {"embedding_dim": by_name[n]["suggested"]} for n in ("user", "age")}
    for bad in (["--budget-gib", "0"], ["--budget-gib", "x"], ["--alpha", "2"]):
        with pytest.raises(SystemExit):
            main(["widths", "--tables", str(path), *bad])
        assert bad[0] in capsys.readouterr().err
    with pytest.raises(PlanError, match="--max-width"):
        main(["widths", "--tables", str(path), "--max-width", "3"])


def test_the_figures_are_those_of_the_plans() -> None:
    table_set = tables(table("user", 50_000_000), table("age", 20))
    topology = load_topology("h100x8")
    widths = suggest_widths(table_set, budget_bytes=2**32, max_width=64)
    known = facts(make_plan(with_widths(table_set, widths), topology))
    entries = {name: make_plan(table_set, topology).table(name) for name in widths}
    assert all(entry.embedding_dim == 64 for entry in entries.values())
    assert known["stored_bytes"] >= sum(table_bytes(table_set, widths).values()) - 2


def test_a_run_file_takes_the_suggested_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest = SyntheticIngest(source="synthetic", num_rows=2_000, num_users=300, num_items=200)
    make_training_set(ingest, tmp_path / "set")
    run = tmp_path / "run.yaml"
    smoke = yaml.safe_load((REPOSITORY / "configs/smoke.yaml").read_text())
    smoke["data"]["path"] = str(tmp_path / "set")
    smoke.pop("ingest")
    run.write_text(yaml.safe_dump(smoke))
    main(["widths", "--config", str(run), "--max-width", "32", "--budget-gib", "1"])
    lines = capsys.readouterr().out.partition("for the run file:")[2]
    smoke["tables"] = smoke.get("tables", {}) | yaml.safe_load(lines)["tables"]
    run.write_text(yaml.safe_dump(smoke))
    config = load_config(run)
    widths = {name: config.table(name).embedding_dim for name in ("user", "item", "author")}
    assert widths["item"] == widths["author"] and set(widths.values()) <= {20, 24, 28, 32}
    main(["widths", "--config", str(run), "--max-width", "32", "--budget-gib", "1"])
    assert "for the run file" not in capsys.readouterr().out, "nothing left to suggest"
