"""SparseArch: the TorchRec collections of all tables; returns pooled and padded tensors.

Letters: B rows, L_f items kept of behaviour f, E_t embedding width of table t.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from infnet_dist.lookups import Home, Lookup, Lookups, TableLookups
from infnet_dist.schema import sequence_keys

_DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}


class SparseEmbeddings(NamedTuple):
    """Embeddings after the lookup, always float32.

    Attributes:
        fields: one [B, E_t] per field, in the order of `Lookups.fields`; zeros for padding rows.
        sequences: one [B, L_f, sum of the attributes' E_t] per behaviour; zeros where padded.
        masks: one bool [B, L_f] per behaviour, True for items, False for padding.
    """

    fields: list[torch.Tensor]
    sequences: list[torch.Tensor]
    masks: list[torch.Tensor]


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
        "data_type": _DATA_TYPES[table.settings.data_type],
    }


class Pooling(nn.Module):
    """Embeddings by key -> dense tensors; a module of its own, so that it is an FX leaf."""

    def __init__(self, lookups: Lookups) -> None:
        super().__init__()
        self._fields = lookups.fields
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
        fields = []
        for field in self._fields:
            weighted = field.weighted or field.home == "weighted"
            features = weighted_features if weighted else sparse_features
            assert features is not None  # the batch has weights if a lookup reads them
            ids = features[field.feature]
            if field.home == "sequence":
                sums[field.feature] = self._pool(rows[field.feature], ids, field)
            sum_BE = sums[field.feature][:, : field.width].float()
            fields.append(_mean(sum_BE, ids, field) if field.pooling == "mean" else sum_BE)
        sequences, masks = [], []
        for length, attributes in self._sequences:
            padded = [_pad(rows[key].values(), rows[key], length)[..., :w] for key, w in attributes]
            sequences.append(torch.cat(padded, dim=-1))
            lengths_B = rows[attributes[0][0]].lengths()
            places_L = torch.arange(length, device=lengths_B.device)
            masks.append(places_L < lengths_B.unsqueeze(1))
        return SparseEmbeddings(fields, sequences, masks)

    def _pool(self, rows: JaggedTensor, ids: JaggedTensor, field: Lookup) -> torch.Tensor:
        """Sum of the rows of each bag, [B, E_t]; a single id is a bag of one."""
        length = self._max_lengths.get(field.feature, 1)
        rows_BLE = _pad(rows.values(), rows, length)
        if field.weighted:
            rows_BLE = rows_BLE * _pad(ids.weights().unsqueeze(1), ids, length)
        return rows_BLE.sum(1)


def _mean(sum_BE: torch.Tensor, ids: JaggedTensor, field: Lookup) -> torch.Tensor:
    """The sum divided by the number of ids, or by the sum of their weights; 0 where that is 0."""
    if field.weighted:
        total_B = torch.segment_reduce(ids.weights(), "sum", lengths=ids.lengths(), initial=0)
    else:
        total_B = ids.lengths().float()
    return sum_BE / total_B.where(total_B > 0, 1.0).unsqueeze(1)


def _pad(values: torch.Tensor, jagged: JaggedTensor, length: int) -> torch.Tensor:
    """[B, length, ...] in float32, converted from fp16 tables as well."""
    padded: torch.Tensor = torch.ops.fbgemm.jagged_to_padded_dense(
        values.float(), [jagged.offsets()], [length], 0.0
    )
    return padded
