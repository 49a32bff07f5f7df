"""Compares a bundle with the model that it was made of, on rows of the training set.

The same rows go through the unsharded model's evaluation, which training uses as well, and through
the bundle, a request per row. Then requests with several candidates are compared with a request per
candidate.

Letters: B rows, N candidates, K tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.checkpoint.loading import fill_alone
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.data.part_files import part_opener
from infnet_dist.data.reader import Reader
from infnet_dist.evaluation.metrics import auc
from infnet_dist.io.filesystem import Folder
from infnet_dist.lookups import table_of
from infnet_dist.model.build import build_train_model
from infnet_dist.model.train_model import TrainModel
from infnet_dist.schema import Schema
from infnet_dist.serving.bundle import Bundle
from infnet_dist.serving.manifest import TIME_GAP, Behaviour, BundleManifest, Field
from infnet_dist.training.setup import open_training_set
from infnet_dist.warm_start.start import Origin, read_origin

TOLERANCE = 1e-5  # of a logit
EXPECTED_AUC_LOSS = 0.0005
_BATCH, _SHARED = 256, 16  # rows read at once; candidates of a request


@dataclass(frozen=True)
class CheckResult:
    """How a bundle differs from its model.

    Attributes:
        largest_difference: of two logits of a row.
        shared_difference: of two logits of a candidate, among others or alone.
        aucs: by binary task, of the model and of the bundle, on the same rows; tasks with one class
            alone are left out.
    """

    split: str
    rows: int
    largest_difference: float
    shared_difference: float
    aucs: dict[str, tuple[float, float]]

    def fault(self, data_type: str) -> str | None:
        """Why the bundle is wrong, if it is; rounding of `data_type` isn't a fault."""
        if not self.shared_difference <= TOLERANCE:
            what, found = "requests with one and several candidates", self.shared_difference
        elif data_type == "fp32" and not self.largest_difference <= TOLERANCE:
            what, found = "the bundle and the model", self.largest_difference
        else:
            return None
        return (
            f"{what} differ by {found:.2g} of a logit, expected at most {TOLERANCE:g}; don't serve "
            "this bundle"
        )


@torch.no_grad()
def check_bundle(
    out: Path, checkpoint: Folder, data_path: Path, split: str, num_rows: int
) -> CheckResult:
    """Compare a bundle with its checkpoint on the first rows of a split.

    It takes memory for the tables.

    Raises:
        CheckpointError: the checkpoint is damaged.
        DataError: the model can't read the training set, or it has no such split.
        BundleError: the bundle is damaged.
    """
    bundle = Bundle.open(out)
    origin = read_origin(checkpoint, "infnet export --check")
    schema = origin.lookups.schema
    model = load_model(checkpoint, origin)
    pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    shared = 0.0
    for batch, left in _batches(origin, data_path, split, num_rows):
        theirs_BK = model(batch)[1].logits_BK[: batch.num_rows][:left]
        rows = BatchRequests(batch, bundle.manifest, schema)
        ours_BK = torch.cat([bundle.logits(rows.one(i)) for i in range(len(theirs_BK))])
        if not pairs:
            shared = _shared_difference(bundle, rows, min(_SHARED, len(theirs_BK)))
        pairs.append((theirs_BK, ours_BK, batch.labels_BK[: len(theirs_BK)]))
    theirs_BK, ours_BK, labels_BK = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return CheckResult(
        split,
        len(theirs_BK),
        float((theirs_BK - ours_BK).abs().max()),
        shared,
        dict(_aucs(schema, theirs_BK, ours_BK, labels_BK)),
    )


def load_model(checkpoint: Folder, origin: Origin) -> TrainModel:
    """The unsharded model of a checkpoint, to evaluate.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    model = build_train_model(origin.lookups.config, origin.lookups.schema).eval()
    shards = []
    for name, tensor in model.state_dict().items():
        if table := table_of(name):
            name, width = f"model.tables.{table}.weight", _width(origin, table)
            tensor = tensor[:, :width]  # without columns that only the kernel needs
        else:
            name = f"model.{name}"
        shape = tuple(tensor.shape)
        shards.append(LocalShard(name, shape, (0,) * len(shape), tensor.detach(), replicated=True))
    fill_alone(TensorReader(checkpoint, origin.manifest), shards)
    return model


def _width(origin: Origin, table: str) -> int:
    return origin.lookups.config.table(table).embedding_dim


def _batches(
    origin: Origin, data_path: Path, split: str, num_rows: int
) -> Iterator[tuple[RankingBatch, int]]:
    """Batches of the first rows of a split, and the rows that are left to compare."""
    config = origin.lookups.config
    data = config.data.model_copy(update={"path": data_path, "window": None, "replay_share": 0.0})
    manifest, schema = open_training_set(
        config.model_copy(update={"data": data}), origin.lookups.schema
    )
    manifest.split(split)
    reader = Reader(
        folder=data_path,
        manifest=manifest,
        schema=schema,
        split=split,
        batch_size=min(_BATCH, num_rows),
        rank=0,
        world_size=1,
        open_part=part_opener(data.reader, schema),
    )
    for batch in reader.batches():
        yield batch, num_rows
        num_rows -= batch.num_rows
        if num_rows <= 0:
            return


class BatchRequests:
    """Requests of the rows of a batch.

    Args:
        batch: of training or evaluation.
        manifest: of the bundle that they are for.
        schema: of the batch.
    """

    def __init__(self, batch: RankingBatch, manifest: BundleManifest, schema: Schema) -> None:
        self._manifest = manifest
        self._jagged = batch.sparse_features.to_dict()
        if batch.weighted_features is not None:
            weighted = batch.weighted_features.to_dict()
            self._jagged |= weighted
        dims = {vector.name: vector.dim for vector in manifest.vectors}
        vectors = batch.vectors_BV.split(list(dims.values()), dim=1)
        self._vectors = dict(zip(dims, vectors, strict=True))
        self._dense = dict(zip(manifest.dense, batch.dense_BN.unbind(1), strict=True))
        self._gaps = {}
        if batch.time_gap_BL is not None:
            lengths = {sequence.name: sequence.max_length for sequence in schema.sequences}
            gaps = batch.time_gap_BL.split(list(lengths.values()), dim=1)
            self._gaps = dict(zip(lengths, gaps, strict=True))
        self._once = {f.name for f in schema.categorical if f.column == schema.group_column}

    def one(self, row: int) -> dict[str, Any]:
        """A request of one row."""
        return self.several(row, [row])

    def several(self, user: int, rows: list[int]) -> dict[str, Any]:
        """A request of the user of one row, with the candidates of others."""
        request: dict[str, Any] = {"user": {}, "candidates": {}}
        for behaviour in self._manifest.behaviours:
            request["user"][behaviour.name] = self._history(behaviour, user)
        for field in self._manifest.fields:
            if field.name in self._once:
                request["user"][field.name] = int(self._ids(field.name, user)[0])
            else:
                request["candidates"][field.name] = self._field(field, rows)
        for name, vector_BV in self._vectors.items():
            picked = [vector_BV[i] for i in rows]
            request["candidates"][name] = [
                None if bool(one.isnan().any()) else one.numpy() for one in picked
            ]
        for name, dense_B in self._dense.items():
            request["candidates"][name] = dense_B[rows].numpy()
        return request

    def _field(self, field: Field, rows: list[int]) -> Any:
        ids = [self._ids(field.name, i) for i in rows]
        if field.kind == "single":
            return np.concatenate(ids)
        if not field.weighted:
            return ids
        weights = self._jagged[field.name].weights().numpy()
        return {"ids": ids, "weights": [weights[self._place(field.name, i)] for i in rows]}

    def _history(self, behaviour: Behaviour, row: int) -> dict[str, Any]:
        found = {
            one.name: self._ids(f"{behaviour.name}.{one.name}", row) for one in behaviour.attributes
        }
        if behaviour.time_gaps:
            length = len(next(iter(found.values())))
            found[TIME_GAP] = self._gaps[behaviour.name][row, :length].numpy().astype(np.int64)
        return found

    def _ids(self, key: str, row: int) -> np.ndarray[Any, Any]:
        ids: np.ndarray[Any, Any] = self._jagged[key].values().numpy()[self._place(key, row)]
        return ids

    def _place(self, key: str, row: int) -> slice:
        offsets = self._jagged[key].offsets()
        return slice(int(offsets[row]), int(offsets[row + 1]))


def _shared_difference(bundle: Bundle, rows: BatchRequests, count: int) -> float:
    """The largest difference of candidates' logits, scored together or each alone."""
    candidates = list(range(count))
    largest = 0.0
    for user in (0, count - 1):
        together_NK = bundle.logits(rows.several(user, candidates))
        alone_NK = torch.cat([bundle.logits(rows.several(user, [i])) for i in candidates])
        largest = max(largest, float((together_NK - alone_NK).abs().max()))
    return largest


def _aucs(
    schema: Schema, theirs_BK: torch.Tensor, ours_BK: torch.Tensor, labels_BK: torch.Tensor
) -> Iterator[tuple[str, tuple[float, float]]]:
    for k, task in enumerate(schema.tasks):
        known_B = ~labels_BK[:, k].isnan()
        labels = labels_BK[known_B, k].numpy()
        if task.kind == "binary" and 0 < labels.sum() < len(labels):
            one, other = (logits[known_B, k].numpy() for logits in (theirs_BK, ours_BK))
            yield task.name, (auc(one, labels), auc(other, labels))
