"""The first-order term: absent by default, silent at the start, linear afterwards."""

from pathlib import Path

import pytest
import torch

from infnet_dist.config.model import InfnetConfig, InfnetPaperConfig, StackConfig
from infnet_dist.config.run import Config, DataConfig
from infnet_dist.model.build import build_train_model
from infnet_dist.model.train_model import TrainModel
from tests.unit.test_reader import SCHEMA, make_reader, make_set


def make_model(first_order: bool) -> TrainModel:
    model = InfnetConfig(token_dim=8, num_hubs=2, first_order=first_order)
    return build_train_model(Config(data=DataConfig(path=Path("unused")), model=model), SCHEMA)


def test_without_history_only_the_fields_are_read(tmp_path: Path) -> None:
    """All parameters are trained, and other items change nothing."""
    manifest = make_set(tmp_path / "s", 11, rows_per_part=100, row_group_rows=4)
    batch = next(iter(make_reader(tmp_path / "s", manifest, shuffle_rows=None).batches()))
    options = StackConfig.model_validate({"name": "stack", "sequence": {"name": "none"}})
    model = build_train_model(Config(data=DataConfig(path=Path("unused")), model=options), SCHEMA)
    model(batch)[0].backward()
    dense = model.model.dense
    assert [n for n, p in dense.named_parameters() if p.grad is None] == []
    assert not [n for n, _ in dense.named_parameters() if "items" in n]
    embeddings = model.model.sparse(batch.sparse_features, None)
    before = dense(embeddings, batch.vectors_BV, batch.dense_BN, batch.time_gap_BL)
    others = embeddings._replace(sequences=[torch.randn_like(x) for x in embeddings.sequences])
    assert torch.equal(dense(others, batch.vectors_BV, batch.dense_BN, batch.time_gap_BL), before)


def test_the_first_order_term_is_zero_at_first_and_then_linear(tmp_path: Path) -> None:
    manifest = make_set(tmp_path / "s", 11, rows_per_part=100, row_group_rows=4)
    batch = next(iter(make_reader(tmp_path / "s", manifest, shuffle_rows=None).batches()))
    inputs = (batch.sparse_features, None, batch.vectors_BV, batch.dense_BN, batch.time_gap_BL)
    plain, model = make_model(False).model, make_model(True).model
    plain.sparse.load_state_dict(model.sparse.state_dict())
    assert torch.equal(plain(*inputs), model(*inputs))
    linear = model.dense.first_order.linear
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    fields = model.sparse(batch.sparse_features, None).fields
    added = model(*inputs) - plain(*inputs)
    for row in range(len(added)):
        values = [*(f[row] for f in fields), batch.dense_BN[row]]
        for task, weight in enumerate(linear.weight):
            expected = linear.bias[task].item()
            for value, part in zip(values, weight.split([len(v) for v in values]), strict=True):
                expected += (value * part).sum().item()
            assert added[row, task].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("model", [InfnetConfig(), InfnetPaperConfig(name="infnet_paper")])
def test_the_first_order_term_is_an_addition_that_must_be_asked_for(
    model: InfnetConfig | InfnetPaperConfig,
) -> None:
    config = Config(data=DataConfig(path=Path("unused")), model=model)
    assert build_train_model(config, SCHEMA).model.dense.first_order is None
