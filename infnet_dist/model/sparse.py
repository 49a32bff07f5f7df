"""SparseArch: one EmbeddingCollection for all ids; returns padded tensors and masks.

Letters: B rows, L_f items kept of behaviour f, E embedding width.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from infnet_dist.schema import Schema, sequence_key

_DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}


class SparseEmbeddings(NamedTuple):
    """Embeddings after the lookup, always float32.

    Attributes:
        fields: one [B, E] per field, in the order of `Schema.fields`; zeros for padding rows.
        sequences: one [B, L_f, attributes x E] per behaviour; zeros where padded.
        masks: one bool [B, L_f] per behaviour, True for items, False for padding.
    """

    fields: list[torch.Tensor]
    sequences: list[torch.Tensor]
    masks: list[torch.Tensor]


class SparseArch(nn.Module):
    """All tables of the run in one EmbeddingCollection: the part that TorchRec shards.

    Args:
        schema: features and tables.
        embedding_dim: E, the same for all tables, as EmbeddingCollection requires.
        data_type: type of the rows, "fp32" or "fp16".
        device: "meta" if the model will be sharded, else a real device.
    """

    def __init__(
        self,
        schema: Schema,
        embedding_dim: int,
        *,
        data_type: str = "fp32",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        features: dict[str, list[str]] = {table.name: [] for table in schema.tables}
        for feature in schema.table_features:
            features[feature.table].append(feature.key)
        self.embeddings = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=table.name,
                    num_embeddings=table.num_embeddings,
                    embedding_dim=embedding_dim,
                    feature_names=features[table.name],
                    data_type=_DATA_TYPES[data_type],
                )
                for table in schema.tables
                if features[table.name]
            ],
            device=device,
        )
        self.padding = Padding(schema)

    def forward(self, sparse_features: KeyedJaggedTensor) -> SparseEmbeddings:
        """Look up all ids and pad; see `SparseEmbeddings` for the shapes."""
        return self.padding(self.embeddings(sparse_features))


class Padding(nn.Module):
    """Jagged embeddings by key -> padded tensors; a module of its own, so that it is an FX leaf."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self._fields = [field.key for field in schema.fields]
        self._sequences = [
            (sequence.max_length, [sequence_key(sequence, a) for a in sequence.attributes])
            for sequence in schema.sequences
        ]

    def forward(self, embeddings: dict[str, JaggedTensor]) -> SparseEmbeddings:
        """Pad every behaviour to its `max_length`, and fields for padding rows."""
        fields = [_field(embeddings[key]) for key in self._fields]
        sequences, masks = [], []
        for length, keys in self._sequences:
            sequences.append(torch.cat([_pad(embeddings[key], length) for key in keys], dim=-1))
            lengths_B = embeddings[keys[0]].lengths()
            places_L = torch.arange(length, device=lengths_B.device)
            masks.append(places_L < lengths_B.unsqueeze(1))
        return SparseEmbeddings(fields, sequences, masks)


def _field(jagged: JaggedTensor) -> torch.Tensor:
    """[B, E] in float32; padding rows, at the end of the batch, have no id and get zeros."""
    rows_NE, missing = jagged.values().float(), len(jagged.lengths()) - len(jagged.values())
    return functional.pad(rows_NE, (0, 0, 0, missing)) if missing else rows_NE


def _pad(jagged: JaggedTensor, length: int) -> torch.Tensor:
    """[B, length, E] in float32, converted from fp16 tables as well."""
    padded: torch.Tensor = torch.ops.fbgemm.jagged_to_padded_dense(
        jagged.values().float(), [jagged.offsets()], [length], 0.0
    )
    return padded
