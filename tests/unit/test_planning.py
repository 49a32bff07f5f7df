"""Plan files: made, saved, loaded, checked; and what is said when one doesn't fit."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from infnet_dist.config import SparseOptimizerConfig
from infnet_dist.errors import PlanError
from infnet_dist.optim import apply_sparse_optimizer
from infnet_dist.planning.plan import (
    Plan,
    Workers,
    check_plan,
    describe_plan,
    find_collection,
    load_plan,
    make_plan,
    save_plan,
    to_sharding_plan,
)
from infnet_dist.sparse import SparseArch
from tests.unit.test_reader import SCHEMA


def make_model(embedding_dim: int = 8) -> nn.Module:
    model = SparseArch(SCHEMA, embedding_dim, device=torch.device("meta"))
    apply_sparse_optimizer(find_collection(model)[1], SparseOptimizerConfig())
    return model


def workers_of(world_size: int, device: str = "cpu") -> Workers:
    return Workers(
        world_size=world_size,
        local_world_size=world_size,
        device=device,
        memory_bytes=8 * 2**30,
    )


def make(world_size: int = 2, device: str = "cpu", **types: tuple[str, ...]) -> Plan:
    workers = workers_of(world_size, device)
    return make_plan(make_model(), workers, batch_size=64, sharding_types=types)


def test_sharding_types_are_obeyed_and_every_row_has_a_place() -> None:
    plan = make(3, row=("row_wise",), author=("table_wise",), price=("table_wise",))
    assert {n: t.sharding_type for n, t in plan.tables.items()} == {
        "row": "row_wise",
        "author": "table_wise",
        "price": "table_wise",
    }
    shards = plan.tables["row"].shards
    assert [s.rank for s in shards] == [0, 1, 2]
    covered = [(s.row_offset, s.row_offset + s.rows) for s in shards]
    assert covered[0][0] == 0 and covered[-1][1] == 1_000_000
    assert all(a[1] == b[0] for a, b in pairwise(covered))
    # a million rows of 8 floats and one float of row-wise state, over 3 ranks
    planned = sum(s.storage_bytes for s in shards)
    assert planned >= 1_000_000 * 9 * 4


def test_round_trip_and_same_input_same_bytes(tmp_path: Path) -> None:
    plan = make()
    save_plan(plan, tmp_path / "a.json")
    save_plan(make(), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert load_plan(tmp_path / "a.json") == plan
    workers = workers_of(2)
    check_plan(plan, make_model(), workers)
    text = describe_plan(plan)
    assert "row: 1000000 x 8 FP32" in text and "MiB of 8.0 GiB" in text


def test_torchrec_plan_names_the_collection_and_the_device() -> None:
    plan = make(2, row=("row_wise",))
    for device, place in (("cpu", "rank:1/cpu"), ("cuda", "rank:1/cuda:1")):
        sharding = to_sharding_plan(plan, make_model(), torch.device(device))
        (module,) = sharding.plan
        assert module == "embeddings"
        parameter = sharding.plan[module]["row"]
        assert parameter.sharding_type == "row_wise"
        assert parameter.compute_kernel == "fused"
        assert str(parameter.sharding_spec.shards[1].placement) == place


def test_a_plan_for_gpus_is_made_without_one() -> None:
    plan = make(8, device="cuda")
    assert plan.made_for.device == "cuda"
    assert {s.rank for t in plan.tables.values() for s in t.shards} <= set(range(8))


def test_every_difference_is_listed() -> None:
    plan = make(2)
    other = make_model(embedding_dim=32)
    with pytest.raises(PlanError) as caught:
        check_plan(plan, other, workers_of(4))
    message = str(caught.value)
    assert "world_size is 2 in the plan, 4 in this run" in message
    assert "table 'author' is 50 x 8 FP32 in the plan, 50 x 32 FP32 in this run" in message
    assert "sharding.plan=auto" in message and "ray_jobs.plan" in message


def test_missing_and_foreign_tables_and_bad_shards() -> None:
    workers = workers_of(2)
    raw = make(2, row=("row_wise",)).model_dump()
    del raw["tables"]["author"], raw["made_for"]["tables"]["author"]
    raw["tables"]["ghost"] = raw["tables"]["price"]
    raw["tables"]["row"]["shards"][1]["rank"] = 7
    raw["tables"]["price"]["shards"][0]["rows"] -= 1
    with pytest.raises(PlanError) as caught:
        check_plan(Plan.model_validate(raw), make_model(), workers)
    message = str(caught.value)
    assert "table 'author' isn't in the plan" in message
    assert "table 'ghost' isn't in this run" in message
    assert "the shards of table 'row' don't cover it row_wise on ranks 0 to 1" in message
    assert "the shards of table 'price' don't cover it" in message


@pytest.mark.parametrize(
    "change",
    [
        {"sharding_type": "table_wise"},
        {"sharding_type": "column_wise"},
        {"shards": "one"},
        {"shards": "overlap"},
    ],
)
def test_shards_must_tile_the_table_as_the_type_says(change: dict[str, str]) -> None:
    raw = make(2, row=("row_wise",)).model_dump()
    table = raw["tables"]["row"]
    if change.get("shards") == "one":
        table["shards"] = table["shards"][:1]
    elif change.get("shards") == "overlap":  # same area, but a hole
        table["shards"][1]["row_offset"] -= 1
    else:
        table["sharding_type"] = change["sharding_type"]
    with pytest.raises(PlanError, match="the shards of table 'row' don't cover it"):
        check_plan(Plan.model_validate(raw), make_model(), workers_of(2))


def test_malformed_files(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(PlanError, match=r"no plan file .*plan\.json; set sharding\.plan=auto"):
        load_plan(path)
    with pytest.raises(PlanError, match=r"can't write plan .*nowhere.*No such file"):
        save_plan(make(), tmp_path / "nowhere" / "plan.json")
    path.write_text("{")
    with pytest.raises(PlanError, match="is not JSON"):
        load_plan(path)
    save_plan(make(), path)
    raw = json.loads(path.read_text())
    raw["tables"]["row"]["compute_kernel"] = "fusedd"
    path.write_text(json.dumps(raw))
    with pytest.raises(PlanError, match=r"tables\.row\.compute_kernel: .*'fused'"):
        load_plan(path)
    raw["tables"]["row"]["compute_kernel"] = "fused"
    raw["tables"]["row"]["shards"][0]["rank"] = "first"
    path.write_text(json.dumps(raw))
    with pytest.raises(PlanError, match=r"tables\.row\.shards\.0\.rank: .*integer"):
        load_plan(path)


def test_nothing_fits() -> None:
    with pytest.raises(PlanError, match=r"no plan for 2 workers \(cpu\): .*; use more workers"):
        make_plan(
            make_model(embedding_dim=4_000_000),
            workers_of(2),
            batch_size=64,
            sharding_types={},
        )
