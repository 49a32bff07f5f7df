"""SparseArch: the TorchRec collections of all tables; returns pooled and padded tensors.

Letters: B rows, L_f items kept of behaviour f, E_t embedding width of table t.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from infnet_dist.config.tables import DataType as DataTypeName
from infnet_dist.lookups import Home, Lookups, TableLookups
from infnet_dist.model.pooling import item_mask, num_ids, total_weight
from infnet_dist.model.tokens import SparseEmbeddings
from infnet_dist.schema import sequence_keys

DATA_TYPES: dict[DataTypeName, DataType] = {"fp32": DataType.FP32, "fp16": DataType.FP16}


class SparseArch(nn.Module):
    """The tables of a run, in the collections that TorchRec shards (`infnet_dist.lookups`).

    Args:
        lookups: features and tables.
        device: "meta" if the model will be sharded, else a real device.
    """

    def __init__(self, lookups: Lookups, *, device: torch.device | None = None) -> None:
        super().__init__()
        self.sequences = nn.ModuleDict()  # by the width of their rows
        for width, tables in _by_width(_at_home("sequence", lookups)).items():
            configs = [EmbeddingConfig(**_options(table)) for table in tables]
            self.sequences[str(width)] = EmbeddingCollection(tables=configs, device=device)
        self.bags = _bag_collection("bag", lookups, device)
        self.weighted_bags = _bag_collection("weighted", lookups, device)
        self.pooling = Pooling(lookups)

    def forward(
        self, sparse_features: KeyedJaggedTensor, weighted_features: KeyedJaggedTensor | None
    ) -> SparseEmbeddings:
        """Look up all ids, pool and pad; see `RankingBatch` and `SparseEmbeddings`."""
        jagged = [collection(sparse_features) for collection in self.sequences.values()]
        pooled = []
        if self.bags is not None:
            pooled.append(self.bags(sparse_features))
        if self.weighted_bags is not None:
            pooled.append(self.weighted_bags(weighted_features))
        embeddings: SparseEmbeddings = self.pooling(
            jagged, pooled, sparse_features, weighted_features
        )
        return embeddings


def _at_home(home: Home, lookups: Lookups) -> list[TableLookups]:
    return [table for table in lookups.tables if table.home == home]


def _by_width(tables: Iterable[TableLookups]) -> Mapping[int, list[TableLookups]]:
    groups: dict[int, list[TableLookups]] = {}
    for table in tables:
        groups.setdefault(table.kernel_width, []).append(table)
    return groups


def _bag_collection(
    home: Home, lookups: Lookups, device: torch.device | None
) -> EmbeddingBagCollection | None:
    configs = [EmbeddingBagConfig(**_options(table)) for table in _at_home(home, lookups)]
    if not configs:
        return None
    return EmbeddingBagCollection(tables=configs, is_weighted=home == "weighted", device=device)


def _options(table: TableLookups) -> dict[str, object]:
    return {
        "name": table.name,
        "num_embeddings": table.table.num_embeddings,
        "embedding_dim": table.kernel_width,
        "feature_names": list(table.keys),
        "data_type": DATA_TYPES[table.settings.data_type],
    }


class Pooling(nn.Module):
    """Embeddings by key -> dense tensors; a module of its own, so that it is an FX leaf."""

    def __init__(self, lookups: Lookups) -> None:
        super().__init__()
        self._fields = lookups.fields
        self._any_mean = any(field.pooling == "mean" for field in lookups.fields)
        widths = {lookup.feature: lookup.width for lookup in lookups}
        self._max_lengths = {bag.name: bag.max_length for bag in lookups.schema.bags}
        self._sequences = []
        for sequence in lookups.schema.sequences:
            items = [(key, widths[key]) for key in sequence_keys(sequence)]
            self._sequences.append((sequence.max_length, items))

    def forward(
        self,
        jagged: list[dict[str, JaggedTensor]],
        pooled: list[KeyedTensor],
        sparse_features: KeyedJaggedTensor,
        weighted_features: KeyedJaggedTensor | None,
    ) -> SparseEmbeddings:
        """Pool bags to means where asked, pad every behaviour to its `max_length`."""
        rows = {key: value for found in jagged for key, value in found.items()}
        sums = {key: value for found in pooled for key, value in found.to_dict().items()}
        counts = {}
        if self._any_mean:
            counts = _num_ids(sparse_features)
            if weighted_features is not None:
                counts |= _num_ids(weighted_features)
        fields = []
        for field in self._fields:
            key, weights = field.feature, None
            # Taking one key out of the others costs as much as a small lookup.
            if field.weighted and (field.home == "sequence" or field.pooling == "mean"):
                assert weighted_features is not None  # the batch has weights if a lookup reads them
                weights = weighted_features[key]
            if field.home == "sequence":
                sums[key] = self._pool(rows[key], weights, key)
            sum_BE = _narrow(sums[key].float(), field.width)
            if field.pooling == "mean":
                sum_BE = sum_BE / (
                    counts[key]
                    if weights is None
                    else total_weight(weights.weights(), weights.lengths())
                )
            fields.append(sum_BE)
        sequences, masks = [], []
        for length, attributes in self._sequences:
            first = rows[attributes[0][0]]
            values = [_narrow(rows[key].values(), width) for key, width in attributes]
            sequences.append(_pad(torch.cat(values, dim=-1), first, length))
            masks.append(item_mask(first.lengths(), length))
        return SparseEmbeddings(fields, sequences, masks)

    def _pool(self, rows: JaggedTensor, weights: JaggedTensor | None, key: str) -> torch.Tensor:
        """Sum of the rows of each bag, [B, E_t]; a single id is a bag of one."""
        length = self._max_lengths.get(key, 1)
        rows_BLE = _pad(rows.values(), rows, length)
        if weights is not None:
            rows_BLE = rows_BLE * _pad(weights.weights().unsqueeze(1), weights, length)
        return rows_BLE.sum(1)


def _narrow(rows: torch.Tensor, width: int) -> torch.Tensor:
    """Without the columns that only the kernel needs; a slice costs a copy in backward."""
    return rows if rows.shape[-1] == width else rows[..., :width]


def _num_ids(features: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
    """Number of ids per row by key, float32 [B, 1]; 1 where there are none."""
    keys = features.keys()
    count_FB1 = num_ids(features.lengths().view(len(keys), features.stride()))
    return dict(zip(keys, count_FB1.unbind(), strict=True))


def _pad(values: torch.Tensor, jagged: JaggedTensor, length: int) -> torch.Tensor:
    """[B, length, ...] in float32, converted from fp16 tables as well."""
    padded: torch.Tensor = torch.ops.fbgemm.jagged_to_padded_dense(
        values.float(), [jagged.offsets()], [length], 0.0
    )
    return padded
