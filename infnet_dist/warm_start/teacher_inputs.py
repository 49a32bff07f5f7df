"""The inputs of an older model in the batches of a run with more features, and more ids.

Letters: B rows, F keys, as in `RankingBatch`.
"""

from collections.abc import Iterator, Sequence

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.batch import RankingBatch
from infnet_dist.schema import Schema

_NO_LIMIT = torch.iinfo(torch.int64).max
Inputs = tuple[
    KeyedJaggedTensor,
    KeyedJaggedTensor | None,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor | None,
]


class TeacherInputs:
    """Takes a model's inputs from batches of a run; it must have no `missing_inputs`.

    Ids that the model has no row for become 0 (unknown), and so do crosses of them.

    Args:
        trained: the schema of the model.
        here: of the run.
        device: of the batches.
    """

    def __init__(self, trained: Schema, here: Schema, device: torch.device) -> None:
        dense = [feature.name for feature in here.standardised]
        vectors = {vector.name: vector.dim for vector in here.vectors}
        lengths = {sequence.name: sequence.max_length for sequence in here.sequences}
        self._dense = torch.tensor(
            [dense.index(feature.name) for feature in trained.standardised], device=device
        ).long()
        self._vectors = _columns(vectors, [v.name for v in trained.vectors], device)
        self._gaps = None
        if any(sequence.time_gap_column for sequence in trained.sequences):
            self._gaps = _columns(lengths, [s.name for s in trained.sequences], device)
        rows = {table.name: table.num_embeddings for table in here.tables}
        self._limits = {
            feature.key: limit
            for feature in trained.table_features
            if (limit := trained.table(feature.table).num_embeddings) < rows[feature.table]
        }
        self._limits_F = {
            keys: torch.tensor([self._limits.get(key, _NO_LIMIT) for key in keys], device=device)
            for keys in (here.unweighted_keys, here.weighted_keys)
        }
        self._crosses = {
            cross.name: grown
            for cross in trained.crosses
            if (grown := [name for name in cross.features if name in self._limits])
        }

    def __call__(self, batch: RankingBatch) -> Inputs:
        """The arguments of the model's `RankingModel`."""
        weighted, gaps_BL = batch.weighted_features, None
        if self._gaps is not None and batch.time_gap_BL is not None:
            gaps_BL = batch.time_gap_BL.index_select(1, self._gaps)
        return (
            self._known(batch.sparse_features, batch),
            None if weighted is None else self._known(weighted, batch),
            batch.vectors_BV.index_select(1, self._vectors),
            batch.dense_BN.index_select(1, self._dense),
            gaps_BL,
        )

    def _known(self, jagged: KeyedJaggedTensor, batch: RankingBatch) -> KeyedJaggedTensor:
        """With 0 for ids that the model doesn't know."""
        keys = tuple(jagged.keys())
        if not (self._limits.keys() | self._crosses.keys()) & set(keys):
            return jagged
        values = jagged.values()
        count_F = jagged.lengths().view(len(keys), -1).sum(1)
        limits = self._limits_F[keys].repeat_interleave(count_F, output_size=len(values))
        values = values.masked_fill(values >= limits, 0)
        for cross, features in self._crosses.items():
            for ids in _single_ids(jagged, cross, values, batch.num_rows):
                for name in features:
                    ids.masked_fill_(self._is_new(batch, name), 0)
        return KeyedJaggedTensor(
            keys=list(keys),
            values=values,
            weights=jagged.weights_or_none(),
            lengths=jagged.lengths(),
            stride=jagged.stride(),
        )

    def _is_new(self, batch: RankingBatch, key: str) -> torch.Tensor:
        """Whether the model doesn't know the id of each row, bool [num_rows]."""
        for jagged in filter(None, (batch.sparse_features, batch.weighted_features)):
            for ids in _single_ids(jagged, key, jagged.values(), batch.num_rows):
                return ids >= self._limits[key]
        raise KeyError(key)


def _single_ids(
    jagged: KeyedJaggedTensor, key: str, values: torch.Tensor, num_rows: int
) -> Iterator[torch.Tensor]:
    """The ids of a feature with one per row, a part of `values`; nothing if it has no such key.

    Such features are the first keys (`Schema.table_features`), so their places are known without
    waiting for the device.
    """
    if key in jagged.keys():
        place = jagged.keys().index(key) * num_rows
        yield values[place : place + num_rows]


def _columns(widths: dict[str, int], names: Sequence[str], device: torch.device) -> torch.Tensor:
    """Columns of the named parts of a tensor that has all parts side by side, int64."""
    starts, start = {}, 0
    for name, width in widths.items():
        starts[name], start = start, start + width
    columns = [starts[name] + i for name in names for i in range(widths[name])]
    return torch.tensor(columns, device=device).long()
