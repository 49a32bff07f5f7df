"""A comparison's trials, what they come to, and what models cost; nothing is trained here."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infnet_dist.comparison.costs import ModelCosts, count_flops, measure_costs
from infnet_dist.comparison.protocol import (
    CONTROL,
    ablation_trials,
    base_config,
    load_protocol,
    trials,
    with_seed,
)
from infnet_dist.comparison.report import PICTURES, to_markdown, write_report
from infnet_dist.comparison.results import Finished, best_points, summarise
from infnet_dist.config.run import Config, parse_config
from infnet_dist.errors import ConfigError
from infnet_dist.model.build import build_train_model
from infnet_dist.model.tokens import SparseEmbeddings
from infnet_dist.schema import CategoricalFeature, Schema, SequenceAttribute, SequenceFeature, Task
from infnet_dist.schema import Table as EmbeddingTable
from tests.conftest import REPOSITORY

PROTOCOL = """
base: base.yaml
set: {training.epochs: 3, model.dropout: 0.2}
models:
  a: {name: infnet, num_hubs: 4}
  b: {name: stack, head: {name: mmoe}, dropout: 0.0}
grid:
  dense_optimizer.learning_rate: [0.001, 0.002]
  data.batch_size: [64]
seeds: [7, 8, 9]
finalists: 1
ablations: {of: a, models: {c: {name: infnet, num_hubs: 2}}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("data: {path: x}\nmodel: {token_dim: 16}\n")
    path = tmp_path / "compare.yaml"
    path.write_text(PROTOCOL)
    return path


def test_every_model_gets_every_point_and_the_common_settings(path: Path) -> None:
    protocol = load_protocol(path)
    base = base_config(protocol, path, ["training.epochs=2"])
    grid = trials(protocol, base, seed=7, data="x")
    assert [(t.model, t.point["dense_optimizer.learning_rate"]) for t in grid] == [
        ("a", 0.001),
        ("a", 0.002),
        ("b", 0.001),
        ("b", 0.002),
        (CONTROL, 0.001),
        (CONTROL, 0.002),
    ]
    for trial in grid:
        config = trial.config
        assert config.training.epochs == 2, "--set comes last"
        assert (config.run.seed, config.data.batch_size) == (7, 64)
        assert config.dense_optimizer.learning_rate == trial.point["dense_optimizer.learning_rate"]
        assert config.model.token_dim == 16
        assert config.model.dropout == (0.0 if trial.model == "b" else 0.2)
    assert len({trial.id for trial in grid}) == 6
    other = with_seed(grid[0], 8)
    assert other.id != grid[0].id and other.config.run.seed == 8
    elsewhere = grid[0].config.run.model_copy(update={"folder": path.parent})
    moved = replace(grid[0], config=grid[0].config.model_copy(update={"run": elsewhere}))
    assert moved.id == grid[0].id, "the same run, wherever its folder is"
    assert replace(grid[0], data="y").id != grid[0].id
    assert grid[0].config.tracking.wandb == "disabled"


def test_ablations_get_the_best_point_of_their_model_and_every_seed(path: Path) -> None:
    protocol = load_protocol(path)
    base = base_config(protocol, path)
    best = trials(protocol, base, seed=7, data="x")[1]
    variants = ablation_trials(protocol, base, best)
    assert [(t.model, t.config.run.seed) for t in variants] == [("c", 7), ("c", 8), ("c", 9)]
    for trial in variants:
        assert trial.point == best.point
        assert trial.config.dense_optimizer.learning_rate == 0.002
        assert trial.config.model.num_hubs == 2
        assert trial.config.model.token_dim == 16
    path.write_text(PROTOCOL.replace("{of: a", "{seeds: [8], of: a"))
    variants = ablation_trials(load_protocol(path), base, best)
    assert [(t.model, t.config.run.seed) for t in variants] == [("c", 8)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("finalists: 1", "finalist: 1", "'finalist'.*'finalists'"),
        ("seeds: [7, 8, 9]", "seeds: [7, 7]", r"seeds.*\[7, 7\]"),
        ("[64]", "[]", r"grid\.data\.batch_size"),
        ("[64]", "[64, 64]", r"grid\.data\.batch_size.*\[64, 64\]"),
        ("data.batch_size", "run.seed", r"grid\.run\.seed"),
        ("a: {name", "a/b: {name", "models.*'a/b'"),
        ("finalists: 1", "always_finalists: [c]", r"compare\.yaml.*model 'c'"),
        ("data.batch_size", "dat.batch_size", "'dat'"),
        ("data.batch_size", "data.batch_siz", "model 'a' at .*'data.batch_siz'"),
        ("num_hubs: 4", "num_hub: 4", "model 'a' at .*'model.num_hub'"),
        ("{of: a", "{seeds: [7, 1], of: a", r"ablations\.seeds.* 1 "),
        ("{of: a", "{seeds: [7, 7], of: a", r"ablations\.seeds.*\[7, 7\]"),
        ("of: a", "of: d", "model 'd'"),
        ("{c: {name", "{b: {name", r"ablations\.models.*'b'"),
        ("num_hubs: 2", "num_hub: 2", "model 'c' at .*'model.num_hub'"),
        ("b: {name", "linear_control: {name", "models.*'linear_control'"),
        ("data.batch_size: [64]", "model.dropout: [0.1]", r"models\.b\.dropout"),
        ("data.batch_size: [64]", "model.num_hubs: [1]", r"models\.a\.num_hubs"),
        ("data.batch_size: [64]", "dense_optimizer: [{}]", "dense_optimizer.learning_rate"),
        ("training.epochs: 3", "run.seed: 3", r"set\.run\.seed"),
        ("training.epochs: 3", "data.batch_size: 3", r"set\.data\.batch_size"),
        ("training.epochs: 3", "model.name: onetrans", r"set\.model\.name"),
        ("training.epochs: 3", "training: {epochs: 1}, training.epochs: 3", "training"),
        ("seeds: [7, 8, 9]", "seeds: [7, 8.0]", "seeds.1"),
        ("finalists: 1", "finalists: 1\nseeds: [1]", "'seeds'"),
        (PROTOCOL, "- a", "list"),
        ("base: base.yaml", "base: none.yaml", r"none\.yaml"),
    ],
)
def test_wrong_files_are_refused(path: Path, old: str, new: str, message: str) -> None:
    path.write_text(PROTOCOL.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        protocol = load_protocol(path)
        base = base_config(protocol, path)
        grid = trials(protocol, base, seed=0, data="x")
        ablation_trials(protocol, base, grid[0])


def test_the_control_reads_every_feature_and_lets_none_interact(path: Path) -> None:
    protocol = load_protocol(path)
    every = trials(protocol, base_config(protocol, path), seed=7, data="x")
    (config, _) = (trial.config for trial in every if trial.model == CONTROL)
    torch.manual_seed(0)
    schema = make_schema(3)
    dense = build_train_model(config, schema).model.dense.eval()

    def logit(item: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        embeddings = SparseEmbeddings(
            fields=[item], sequences=[history], masks=[torch.ones(1, 3, dtype=torch.bool)]
        )
        zeros = torch.zeros(1, 3, dtype=torch.int64)
        nothing = torch.zeros(1, 0)
        return dense(embeddings, nothing, nothing, zeros).detach()

    width = config.tables.embedding_dim
    items, histories = torch.randn(2, 1, width), torch.randn(2, 1, 3, width)
    a, b, c, d = (logit(item, history) for item in items for history in histories)
    assert not torch.allclose(a, b) and not torch.allclose(a, c), "it reads both"
    torch.testing.assert_close(a + d, b + c)  # a sum of effects has no interaction


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["dense_optimizer.learning_rate=0.1"], "dense_optimizer.learning_rate"),
        (["dense_optimizer={weight_decay: 0.1}"], "dense_optimizer.learning_rate"),
        (["model.num_hubs=8"], "model.num_hubs"),
        (["model={name: onetrans}"], "model"),
        (["run.seed=3"], "seeds"),
    ],
)
def test_changes_that_no_trial_would_see_are_refused(
    path: Path, overrides: list[str], named: str
) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        base_config(load_protocol(path), path, overrides)


def test_changes_that_trials_see_are_taken(path: Path) -> None:
    base = base_config(load_protocol(path), path, ["model.dropout=0.3", "training.epochs=4"])
    assert (base.model.dropout, base.training.epochs) == (0.3, 4)


def test_the_ready_protocols_hold() -> None:
    for path in sorted((REPOSITORY / "configs").glob("compare_*.yaml")):
        protocol = load_protocol(path)
        base = base_config(protocol, path)
        grid = trials(protocol, base, seed=0, data="x")
        assert grid
        assert ablation_trials(protocol, base, grid[0]) or protocol.ablations is None


# ------------------------------------------------------------------------------------- the results


def finished(path: Path, model: str, rate: float, seed: int, auc: float) -> Finished:
    protocol = load_protocol(path)
    every = trials(protocol, base_config(protocol, path), seed=seed, data="x")
    trial = next(
        t for t in every if (t.model, t.point["dense_optimizer.learning_rate"]) == (model, rate)
    )
    metrics = {
        f"valid/{metric}/{task}": auc + shift
        for metric in ("auc", "gauc", "normalized_entropy", "calibration")
        for task, shift in (("click", 0.1), ("like", -0.1))
    }
    return Finished(trial, metrics, 100.0 * seed, [(10, auc - 0.1), (20, auc)])


def test_best_points_spread_and_paired_test(path: Path, tmp_path: Path) -> None:
    grid = [
        finished(path, "a", 0.001, 7, 0.60),
        finished(path, "a", 0.002, 7, 0.70),
        finished(path, "b", 0.001, 7, 0.68),
        finished(path, "b", 0.002, 7, math.nan),
    ]
    best = best_points(grid)
    assert list(best) == ["a", "b"]
    assert best["a"].trial.point["dense_optimizer.learning_rate"] == 0.002
    costs = {name: ModelCosts(10, 2e6, 1.5) for name in [*best, CONTROL]}
    alone = summarise(grid, [], costs)
    assert [r.p_value for r in alone] == [None, None]
    seeds_of_b = [finished(path, "b", 0.001, 8, 0.5), finished(path, "b", 0.001, 9, 0.5)]
    assert [r.name for r in summarise(grid, seeds_of_b, costs)] == ["b", "a"], "one seed is last"
    more = [
        finished(path, "a", 0.002, 8, 0.66),
        finished(path, "b", 0.001, 8, 0.67),
        finished(path, "a", 0.002, 9, 0.68),
        finished(path, "b", 0.001, 9, 0.72),
    ]
    results = summarise(grid, more, costs)
    assert [r.name for r in results] == ["b", "a"], "means over seeds decide"
    b, a = results
    assert b.mean("auc") == pytest.approx((0.68 + 0.67 + 0.72) / 3)
    assert b.deviation("auc/like") == pytest.approx(np.std([0.68, 0.67, 0.72], ddof=1))
    assert b.samples_per_s == 800.0
    differences = np.array([0.68 - 0.70, 0.67 - 0.66, 0.72 - 0.68])
    t = differences.mean() / (differences.std(ddof=1) / 3**0.5)
    # Student's t with 2 degrees of freedom has a closed form.
    p = 1 - abs(t) / math.sqrt(2 + t * t)
    assert a.p_value == b.p_value == pytest.approx(p)
    assert (a.compared_with, b.compared_with) == ("b", "a")

    variants = [finished(path, "a", 0.001, seed, auc) for seed, auc in ((7, 0.9), (8, 0.8))]
    variants = [replace(one, trial=replace(one.trial, model="c")) for one in variants]
    costs["c"] = ModelCosts(5, 1e6, 1.0)
    everything = summarise(grid, more, costs, ablations=variants, ablations_of="a")
    assert [r.name for r in everything] == ["b", "a", "c"], "ablations are last"
    assert [r.compared_with for r in everything] == ["a", "b", "a"], (
        "ablations are compared only with their model"
    )
    assert everything[2].difference == pytest.approx((0.9 - 0.7 + 0.8 - 0.66) / 2)
    assert "c*" in to_markdown(everything, ["click", "like"])
    one_seed = summarise(grid, more, costs, ablations=variants[:1], ablations_of="a")[2]
    assert one_seed.difference == pytest.approx(0.9 - 0.7), "over the seeds that both have"
    assert one_seed.p_value is None
    assert "+.2000 (a) |" in to_markdown([one_seed], ["click", "like"])

    controls = [finished(path, CONTROL, 0.001, seed, 0.65) for seed in (7, 8, 9)]
    beside = summarise([*grid, controls[0]], more + controls[1:], costs)
    assert [r.name for r in beside] == ["b", "a", CONTROL]
    assert [r.is_control for r in beside] == [False, False, True]
    assert [r.compared_with for r in beside] == ["a", "b", "b"], (
        "nothing is compared with the control"
    )
    assert beside[0].over_control == pytest.approx((0.03 + 0.02 + 0.07) / 3)
    assert beside[2].over_control is None
    assert f"| {CONTROL} (control) | 3 |" in to_markdown(beside, ["click", "like"])
    assert "| +.0400 | " in to_markdown(beside, ["click", "like"])
    write_report(beside, tmp_path / "beside", tasks=["click", "like"], about={})
    saved = json.loads((tmp_path / "beside" / "results.json").read_text())["models"]
    assert [m["is_control"] for m in saved] == [False, False, True]

    write_report(results, tmp_path / "out", tasks=["click", "like"], about={"machine": "x"})
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [m["name"] for m in record["models"]] == ["b", "a"]
    assert record["models"][0]["tried"][1] == {
        "point": {"dense_optimizer.learning_rate": 0.002, "data.batch_size": 64},
        "mean_auc": None,
    }
    assert record["models"][1]["metrics"]["auc/click"]["mean"] == pytest.approx(0.78)
    for name in PICTURES:
        assert (tmp_path / "out" / name).stat().st_size > 1_000
    table = to_markdown(results, ["click", "like"])
    assert "| b | 3 | .6900 +- .0265 |" in table
    assert "2.00 | 800 | 1.5 |" in table


# --------------------------------------------------------------------------------------- the costs


def make_schema(length: int) -> Schema:
    item = SequenceAttribute(name="item", table="item", column="items")
    return Schema(
        tables=(EmbeddingTable(name="item", num_embeddings=10),),
        categorical=(CategoricalFeature(name="item", table="item", column="item"),),
        sequences=(SequenceFeature(name="click", attributes=(item,), max_length=length),),
        tasks=(Task(name="click", column="label"),),
        group_column="user",
        time_column="time",
    )


def make_config(model: dict) -> Config:
    return parse_config({"data": {"path": "x"}, "tables": {"embedding_dim": 8}, "model": model})


def test_parameters_and_operations_by_hand() -> None:
    parts = {"sequence": {"name": "mean"}, "interaction": {"name": "fm"}}
    model = {"name": "stack", "token_dim": 4, **parts, "head": {"name": "linear"}}
    found = measure_costs(make_config(model), make_schema(6))
    # Field and item maps 8 -> 4, two norms, position and time gap, head of 2 x 4 + 4 inputs.
    assert found.parameters == 2 * (8 * 4 + 4) + 2 * 8 + 6 * 4 + 32 * 4 + 13
    products = 8 * 4 * (1 + 6 + 1) + 12  # field, items, candidate; head
    pooling = 6 * 4 + 6  # sums over items, and their number
    assert found.flops == pytest.approx(2 * (products + pooling), rel=0.05)
    assert found.forward_ms > 0


@pytest.mark.parametrize(
    ("model", "most"), [({"name": "infnet"}, 2.1), ({"name": "infnet_paper"}, 2.1)]
)
def test_infnet_is_linear_in_the_history(model: dict, most: float) -> None:
    config = make_config({"token_dim": 16, **model})
    flops = [count_flops(config, make_schema(length)) for length in (500, 1_000, 2_000)]
    assert flops[1] / flops[0] <= most and flops[2] / flops[1] <= most


def test_full_attention_grows_fourfold() -> None:
    config = make_config({"name": "transformer", "token_dim": 8})
    flops = [count_flops(config, make_schema(length)) for length in (1_000, 2_000)]
    assert flops[1] / flops[0] > 3.5
