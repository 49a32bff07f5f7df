"""What is looked up, and SparseArch and all models on it, against loops over rows and ids."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.config.run import Config
from infnet_dist.lookups import Lookups
from infnet_dist.model.build import build_train_model
from infnet_dist.model.sparse import SparseArch
from infnet_dist.model.tokens import SparseEmbeddings
from tests.mixed import SCHEMA, WIDTHS, config_of, looked_up, make_batch

MODELS: list[dict[str, Any]] = [
    *({"name": name} for name in ("infnet", "infnet_paper", "onetrans", "transformer")),
    *(
        {"name": "stack", "sequence": {"name": sequence}, "interaction": {"name": interaction}}
        for sequence, interaction in (
            ("none", "linear"),
            ("mean", "deepfm"),
            ("din", "dcnv2"),
            ("dien", "rankmixer"),
            ("hstu", "wukong"),
        )
    ),
]


def arch_and_rows(config: Config) -> tuple[SparseArch, dict[str, torch.Tensor]]:
    """A SparseArch and the rows of its tables, without the kernel's columns."""
    lookups = Lookups(SCHEMA, config)
    arch = SparseArch(lookups)
    rows = {}
    for name, weight in arch.state_dict().items():
        table = next(t for t in lookups.tables if f".{t.name}.weight" in name)
        rows[table.name] = weight[:, : table.settings.embedding_dim]
    return arch, rows


def embeddings_of(arch: SparseArch, batch: RankingBatch) -> SparseEmbeddings:
    return arch(batch.sparse_features, batch.weighted_features)


def test_homes_and_widths() -> None:
    lookups = Lookups(SCHEMA, config_of())
    homes = {table.name: (table.home, table.kernel_width) for table in lookups.tables}
    assert homes == {
        "user": ("bag", 8),
        "item": ("sequence", 8),
        "tag": ("bag", 8),  # 6 floats
        "topic": ("weighted", 12),
        "place": ("bag", 4),
        "cross": ("bag", 4),  # 1 float
        "author": ("sequence", 4),
    }
    kinds = {lookup.feature: lookup.kind for lookup in lookups}
    assert kinds["user_place"] == "single" and kinds["tags"] == "bag"
    assert kinds["click.item"] == "sequence"
    assert {lookup.table: lookup.width for lookup in lookups} == {"user": 8, "item": 8} | WIDTHS


@pytest.mark.parametrize("seed", [0, 1])
def test_lookups_by_loops(seed: int) -> None:
    config = config_of()
    arch, rows = arch_and_rows(config)
    batch = make_batch(seed)
    found, slow = embeddings_of(arch, batch), looked_up(rows, batch, config)
    for kind in SparseEmbeddings._fields:
        torch.testing.assert_close(getattr(found, kind), getattr(slow, kind))


def test_some_tables_in_half_precision() -> None:
    overrides = {name: {"data_type": "fp16"} for name in ("tag", "item")}
    config = config_of(overrides=overrides)
    arch, rows = arch_and_rows(config)
    assert rows["tag"].dtype == torch.float16 and rows["user"].dtype == torch.float32
    batch = make_batch(2)
    found = embeddings_of(arch, batch)
    slow = looked_up({name: table.float() for name, table in rows.items()}, batch, config)
    for one, other in zip(
        found.fields + found.sequences, slow.fields + slow.sequences, strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


def test_a_weight_of_zero_is_absence_and_padding_changes_nothing() -> None:
    arch, _ = arch_and_rows(config_of())
    batch = make_batch(3)
    before = embeddings_of(arch, batch)
    weighted = batch.weighted_features
    kept = weighted.weights() > 0
    assert not kept.all()
    lengths = torch.segment_reduce(kept.float(), "sum", lengths=weighted.lengths(), initial=0)
    without = type(weighted)(
        keys=weighted.keys(),
        values=weighted.values()[kept],
        weights=weighted.weights()[kept],
        lengths=lengths.long(),
        stride=len(batch.weights_B),
    )
    keys = [lookup.feature for lookup in Lookups(SCHEMA, config_of()).fields]
    after = embeddings_of(arch, replace(batch, weighted_features=without))
    for key, one, other in zip(keys, before.fields, after.fields, strict=True):
        if key != "liked":  # its ids are in the other tensor too
            torch.testing.assert_close(one, other)
    alone = make_batch(3, size=7)
    for one, padded in zip(embeddings_of(arch, alone).fields, before.fields, strict=True):
        assert torch.equal(one, padded[:7]) and not padded[7:].any()


@pytest.mark.parametrize("options", MODELS, ids=lambda o: o.get("interaction", o)["name"])
@pytest.mark.parametrize("first_order", [False, True])
def test_every_model_trains_on_all_kinds(options: dict[str, Any], first_order: bool) -> None:
    raw = config_of().model_dump() | {"model": options | {"token_dim": 8}}
    raw["model"]["first_order"] = first_order
    model = build_train_model(Config.model_validate(raw), SCHEMA)
    loss, output = model(make_batch(4))
    loss.backward()
    assert output.logits_BK.shape == (8, 2) and loss.isfinite()
    picture = model.model.dense.vectors.default_V.grad
    assert picture[:5].abs().sum() > 0 and not picture[5:].any()  # no sound is missing
    for name, parameter in model.named_parameters():
        unread = "author" in name and options.get("sequence") == {"name": "none"}
        assert (parameter.grad is None) == unread, name
