"""SparseArch against lookups by hand."""

from pathlib import Path

import pytest
import torch

from infnet_dist.config.run import Config, DataConfig
from infnet_dist.lookups import Lookups
from infnet_dist.model.sparse import SparseArch
from tests.unit.test_reader import SCHEMA, make_reader, make_set


def make_arch(**tables: object) -> SparseArch:
    config = Config(data=DataConfig(path=Path("unused")), tables={"embedding_dim": 4} | tables)
    return SparseArch(Lookups(SCHEMA, config))


@pytest.mark.parametrize("data_type", ["fp32", "fp16"])
def test_lookups_by_hand(tmp_path: Path, data_type: str) -> None:
    manifest = make_set(tmp_path / "s", 11, rows_per_part=100, row_group_rows=4)
    batches = make_reader(tmp_path / "s", manifest, shuffle_rows=None).batches()
    sparse = make_arch(data_type=data_type)
    weights = {name.split(".")[-2]: value.float() for name, value in sparse.state_dict().items()}
    assert {n: tuple(w.shape) for n, w in weights.items()} == {
        "row": (1_000_000, 4),
        "author": (50, 4),
        "price": (5, 4),
    }
    for batch in batches:
        out = sparse(batch.sparse_features, None)
        keys = batch.sparse_features
        assert [tuple(f.shape) for f in out.fields] == [(8, 4), (8, 4)]
        assert tuple(out.sequences[0].shape) == (8, 3, 8)
        rows = keys["row"].values().tolist()
        for b in range(8):
            if b < batch.num_rows:
                assert torch.equal(out.fields[0][b], weights["row"][rows[b]])
            else:
                assert not out.fields[0][b].any() and not out.fields[1][b].any()
        offsets = keys["click.row"].offsets().tolist()
        items, authors = keys["click.row"].values(), keys["click.author"].values()
        for b in range(8):
            length = offsets[b + 1] - offsets[b]
            assert out.masks[0][b].tolist() == [i < length for i in range(3)]
            for i in range(3):
                expected = torch.zeros(8)
                if i < length:
                    place = offsets[b] + i
                    expected = torch.cat(
                        [weights["row"][items[place]], weights["author"][authors[place]]]
                    )
                assert torch.equal(out.sequences[0][b, i], expected)


def test_item_and_history_share_one_table(tmp_path: Path) -> None:
    sparse = make_arch()
    tables = sparse.sequences["4"].embedding_configs()
    (config,) = [c for c in tables if c.name == "row"]
    assert config.feature_names == ["row", "click.row"]
